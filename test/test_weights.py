# SPDX-License-Identifier: Apache-2.0
"""Weights from names, files and memory; a real HTTP server stands in for OpenAI's."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import clip_standin
import numpy as np
import pytest
import safetensors.torch
import torch

from depthclip_ros.core import ConfigError, WeightsError
from depthclip_ros.core import weights as weights_module
from depthclip_ros.core.weights import (
    RELEASES,
    cache_folder,
    fetch,
    file_digest,
    load,
    read_file,
)


@pytest.fixture(scope='module')
def tiny():
    return clip_standin.tiny_state_dict()


@pytest.fixture(scope='module')
def archive(tmp_path_factory, tiny):
    """Write an archive as OpenAI's are."""
    path = tmp_path_factory.mktemp('archive') / 'tiny.pt'
    clip_standin.write_release(path, tiny)
    return path


@pytest.fixture
def release(monkeypatch, archive):
    """Make 'RN50' the tiny archive, so that a download can be checked for real."""
    release = dataclasses.replace(
        RELEASES['RN50'], sha256=file_digest(archive),
        architecture=weights_module.architecture(clip_standin.tiny_state_dict()))
    monkeypatch.setattr(weights_module, 'RELEASES', {**RELEASES, 'RN50': release})
    return release


@pytest.fixture
def server(tmp_path, release, archive):
    """Serve the archive at SHA256/FILE and count the requests."""
    folder = tmp_path / 'served' / release.sha256
    folder.mkdir(parents=True)
    (folder / release.file).write_bytes(archive.read_bytes())
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(self.path)

    http = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Handler, directory=str(tmp_path / 'served')))
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{http.server_port}', folder / release.file, requests
    http.shutdown()


def test_download_once_then_from_the_cache(server, tmp_path):
    address, _, requests = server
    lines = []
    path = fetch('RN50', tmp_path / 'cache', lines.append, address)
    assert path == tmp_path / 'cache/weights/RN50.pt'
    assert fetch('RN50', tmp_path / 'cache', lines.append, address) == path
    assert len(requests) == 1
    assert [file.name for file in path.parent.iterdir()] == ['RN50.pt']
    info, state_dict = load('RN50', 'RN50', tmp_path / 'cache', lines.append, offline=True)
    assert info.trained
    assert info.digest == file_digest(path)
    assert 'visual.conv1.weight' in state_dict


def test_weights_of_openais_own_loader_are_found(server, release, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    own = tmp_path / '.cache/clip' / release.file
    own.parent.mkdir(parents=True)
    own.write_bytes(server[1].read_bytes())
    assert fetch('RN50', tmp_path / 'cache', print, server[0]) == own
    assert server[2] == []


def test_wrong_checksum_is_refused_and_leaves_nothing(server, tmp_path):
    address, file, _ = server
    file.write_bytes(file.read_bytes()[:-1] + b'x')
    with pytest.raises(WeightsError, match=r'SHA-256 .* expected'):
        fetch('RN50', tmp_path / 'cache', print, address)
    assert list((tmp_path / 'cache/weights').iterdir()) == []


def test_damaged_cache_is_refused(release, tmp_path):
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights' / release.file).write_bytes(b'not it')
    with pytest.raises(WeightsError, match='damaged'):
        load('', 'RN50', tmp_path, print)


def test_no_network_says_what_to_do(release, tmp_path):
    with pytest.raises(WeightsError, match='depthclip fetch RN50'):
        fetch('RN50', tmp_path, print, 'http://127.0.0.1:9')
    assert list((tmp_path / 'weights').iterdir()) == []


def test_missing_on_the_server(server, tmp_path):
    server[1].unlink()
    with pytest.raises(WeightsError, match='File not found'):
        fetch('RN50', tmp_path / 'cache', print, server[0])


def test_broken_off_download(tmp_path, release):
    """A server that promises more than it sends."""
    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()
            self.wfile.write(b'x' * 10)

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    with pytest.raises(WeightsError, match='10 of 1000'):
        fetch('RN50', tmp_path, print, f'http://127.0.0.1:{http.server_port}')
    http.shutdown()


def test_offline_forbids_the_download(tmp_path):
    with pytest.raises(WeightsError, match=r'offline.*depthclip fetch RN101'):
        load('', 'RN101', tmp_path, print, offline=True)


def test_unwritable_cache(release, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(WeightsError, match='cannot write to the cache'):
        fetch('RN50', tmp_path / 'file', print)


def test_unknown_name(tmp_path):
    with pytest.raises(WeightsError, match=r"'RN51'.*RN50"):
        fetch('RN51', tmp_path)
    with pytest.raises(WeightsError, match=r'neither a file .*No such file.* nor an official'):
        load('missing.pt', 'auto', tmp_path, print)
    with pytest.raises(WeightsError, match="backbone: 'RN51'"):
        load({}, 'RN51', tmp_path, print)


def test_archive_and_state_dict_hold_the_same(archive, release, tiny, tmp_path):
    digest, script = read_file(archive)
    assert digest == release.sha256
    for name, tensor in tiny.items():
        torch.testing.assert_close(
            script[name].float(), tensor.float(), rtol=1e-3, atol=1e-3)
    torch.save(tiny, tmp_path / 'plain.pt')
    torch.save({'state_dict': tiny}, tmp_path / 'wrapped.pt')
    safetensors.torch.save_file(tiny, tmp_path / 'x.safetensors')
    for file in ('plain.pt', 'wrapped.pt', 'x.safetensors'):
        for name, tensor in read_file(tmp_path / file)[1].items():
            assert torch.equal(tensor, tiny[name])


@pytest.mark.parametrize('kind', ['empty', 'noise', 'truncated', 'truncated archive'])
def test_corrupt_file(kind, archive, tiny, tmp_path):
    path = tmp_path / 'broken.pt'
    torch.save(tiny, path)
    whole = archive.read_bytes() if 'archive' in kind else path.read_bytes()
    path.write_bytes({'empty': b'', 'noise': b'\x01' * 5000}.get(kind, whole[:len(whole) // 2]))
    with pytest.raises(WeightsError, match='cannot be read') as error:
        load(path, 'auto', tmp_path, print)
    assert str(path) in str(error.value)


def test_code_in_a_pickle_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'ran'), 'w'))

    torch.save({'x': Evil()}, tmp_path / 'evil.pt')
    with pytest.raises(WeightsError, match='cannot be read'):
        read_file(tmp_path / 'evil.pt')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('name', ['RN50.pt', 'renamed.pt'])
def test_official_archives_are_known_by_their_hash(name, archive, release, tmp_path, monkeypatch):
    loaded = []
    load_archive = torch.jit.load
    monkeypatch.setattr(torch.jit, 'load', lambda path, **options: (
        loaded.append(path), load_archive(path, **options))[1])
    path = tmp_path / name
    path.write_bytes(archive.read_bytes())
    assert load(path, 'RN50', tmp_path, print)[0].digest == release.sha256
    assert [file.getvalue() for file in loaded] == [archive.read_bytes()]


def test_a_false_official_archive_is_not_run(archive, release, tmp_path, monkeypatch):
    (tmp_path / 'weights').mkdir()
    with zipfile.ZipFile(archive) as old, \
            zipfile.ZipFile(tmp_path / 'weights/RN50.pt', 'w') as new:
        for record in old.infolist():
            new.writestr(record, old.read(record))
        new.comment = b'other'
    monkeypatch.setattr(torch.jit, 'load', lambda *_, **__: pytest.fail('it was run'))
    with pytest.raises(WeightsError, match='not the official one'):
        load('RN50', 'RN50', tmp_path, print)


class Writer(torch.nn.Module):
    """Writes a file when TorchScript loads it."""

    def __init__(self, target):
        super().__init__()
        self.target = target
        self.weight = torch.zeros(2)

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        # type: () -> Tuple[str, Tensor, bool]
        return (self.target, self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state):
        # type: (Tuple[str, Tensor, bool]) -> None
        self.target = state[0]
        self.weight = state[1]
        self.training = state[2]
        torch.save(self.weight, self.target)


def test_code_in_an_archive_does_not_run(tmp_path):
    torch.jit.save(torch.jit.script(Writer(str(tmp_path / 'ran'))), str(tmp_path / 'evil.pt'))
    with pytest.raises(WeightsError, match=r"none of OpenAI's.*run its code.*torch.save"):
        load(tmp_path / 'evil.pt', 'auto', tmp_path, print)
    assert not (tmp_path / 'ran').exists()
    torch.jit.load(str(tmp_path / 'evil.pt'))
    assert (tmp_path / 'ran').exists()  # the attack is real


class Other:
    """What no weights file should hold."""


def damaged(kind, archive, tiny):
    """Content of a weights file, and what the refusal says; archives have 'archive' in `kind`."""
    name = 'visual.conv1.weight'
    recursive = dict(tiny)
    recursive['all'] = recursive
    numbers = tiny[name]
    contents = {
        'a class': ({**tiny, 'x': Other()}, 'holds .*Other, and only tensors'),
        'whole numbers': ({**tiny, name: numbers.to(torch.int8)}, f"{name}' is of torch.int8"),
        'truth values': ({**tiny, name: numbers > 0}, 'torch.bool'),
        'complex numbers': ({**tiny, name: numbers.to(torch.complex64)}, 'torch.complex64'),
        'quantized': ({**tiny, name: torch.quantize_per_tensor(
            numbers, 0.1, 0, torch.qint8)}, 'sparse, quantized'),
        'sparse': ({**tiny, name: numbers.to_sparse()}, 'sparse, quantized'),
        'eight bits': ({**tiny, name: numbers.to(torch.float8_e4m3fn)}, 'torch.float8'),
        'empty tensor': ({**tiny, name: torch.zeros(0, 3, 3, 3)}, f"{name}' is empty"),
        'nested': ({'model': {'weights': tiny}}, "'model' is a dict"),
        'other keys': ({**tiny, 7: numbers}, '7 is a Tensor'),
        'recursive': (recursive, "'all' is a dict"),
        'NaN': ({**tiny, name: torch.full_like(numbers, torch.nan)}, f"{name}' holds NaN"),
        'infinity': ({**tiny, 'ln_final.bias': torch.full((64,), -torch.inf)},
                     "'ln_final.bias' holds"),
        'one NaN': ({**tiny, name: torch.where(
            torch.arange(numbers.numel()).view_as(numbers) == 77, torch.nan, numbers).half()},
            f"{name}' holds NaN"),
        'beyond half': ({**tiny, name: numbers * 1e7}, 'beyond 65504'),
        'variance': ({**tiny, 'visual.bn1.running_var': -torch.ones(4)}, 'negative variance'),
        'dimensions': ({**tiny, 'visual.layer1.0.conv1.weight': torch.tensor(1.0)},
                       'other shapes'),
        'heads': ({**tiny, 'ln_final.weight': torch.ones(32)}, 'do not fit'),
    }
    return contents[kind]


@pytest.mark.parametrize('kind', [
    'a class', 'whole numbers', 'truth values', 'complex numbers', 'quantized', 'sparse',
    'eight bits', 'empty tensor', 'nested', 'other keys', 'recursive', 'NaN',
    'infinity', 'one NaN', 'beyond half', 'variance', 'dimensions', 'heads'])
@pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::DeprecationWarning')
def test_damaged_weights_are_named(kind, archive, tiny, tmp_path):
    content, words = damaged(kind, archive, tiny)
    path = tmp_path / 'damaged.pt'
    torch.save(content, path)
    from depthclip_ros.core import DepthConfig, DepthEstimator
    config = DepthConfig(backbone='auto', input_height=64, input_width=64)
    with pytest.raises(WeightsError, match=words) as error:
        DepthEstimator(config, path, 'cpu', cache_dir=tmp_path)
    assert 'weights_only' not in str(error.value)
    assert len(str(error.value)) < 1000
    if kind not in ('a class', 'recursive'):
        with pytest.raises(WeightsError, match=words):
            DepthEstimator(config, content, 'cpu', cache_dir=tmp_path)


def rewritten(path, target, change):
    """Copy a zip file record by record; `change` gives each record's new content, None to omit."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, 'w') as new:
        for record in old.infolist():
            content = change(record.filename, old.read(record))
            if content is not None:
                new.writestr(record.filename, content)


@pytest.mark.parametrize('kind', [
    'no data', 'no pickle', 'short data', 'cut pickle', 'other class', 'no zip directory',
    'strides'])
def test_damaged_files_end_in_a_reason(kind, tiny, tmp_path):
    torch.save(tiny, tmp_path / 'whole.pt')

    def change(name, content):
        if name.endswith('/data/3'):
            return {'no data': None, 'short data': content[:-1]}.get(kind, content)
        if not name.endswith('/data.pkl'):
            return content
        if kind == 'strides':
            return content.replace(b'M@\x13', b'M@\x7f')
        return {
            'no pickle': None, 'cut pickle': content[:-30],
            'other class': b'\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.',
        }.get(kind, content)

    path = tmp_path / 'damaged.pt'
    rewritten(tmp_path / 'whole.pt', path, change)
    if kind == 'no zip directory':
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError) as error:
        load(path, 'auto', tmp_path, print)
    assert str(path) in str(error.value)
    assert 'weights_only' not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(('text', 'reason'), [
    ('x' * 300, 'File name too long'), ('/' + 'x/' * 3000, 'File name too long'),
    ('~nobody-of-that-name/x.pt', 'no home folder'), ('a\0b.pt', 'NUL'),
    ('/dev/zero', 'not a file'), ('/proc', 'not a file'), ('PIPE', 'not a file'),
    ('LINK', 'No such file'), ('/dev/null/x.pt', 'Not a directory'), ('auto', "weights: ''"),
    ('nowhere/RN50.pt', 'No such file'),
])
def test_paths_that_are_no_files(text, reason, tmp_path):
    os.mkfifo(tmp_path / 'PIPE')
    (tmp_path / 'LINK').symlink_to(tmp_path / 'nowhere')
    if text in ('PIPE', 'LINK'):
        text = str(tmp_path / text)
    with pytest.raises(WeightsError, match=reason) as error:
        load(text, 'auto', tmp_path, print)
    assert len(str(error.value)) < 1000


def test_a_file_larger_than_any_clip_is_not_read(tmp_path):
    with (tmp_path / 'sparse.pt').open('wb') as file:
        file.truncate(1 << 40)
    with pytest.raises(WeightsError, match='more than any CLIP'):
        load(tmp_path / 'sparse.pt', 'auto', tmp_path, print)


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads everything')
@pytest.mark.parametrize('locked', ['file', 'folder'])
def test_a_cache_of_another_user_is_a_reason(locked, archive, release, tmp_path):
    path = tmp_path / 'weights/RN50.pt'
    path.parent.mkdir()
    path.write_bytes(archive.read_bytes())
    (path if locked == 'file' else path.parent).chmod(0)
    try:
        with pytest.raises(WeightsError, match=r'Permission denied.*chmod a'):
            load('RN50', 'RN50', tmp_path, print)
    finally:
        path.parent.chmod(0o755)


def test_a_permission_error_says_what_to_do(tmp_path, monkeypatch, archive, release):
    """The same where the tests run as root, whom no mode keeps out."""
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights/RN50.pt').write_bytes(archive.read_bytes())

    def refuse(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(weights_module.files, 'open_regular', refuse)
    for weights in ('RN50', tmp_path / 'weights/RN50.pt'):
        with pytest.raises(WeightsError, match=r'Permission denied.*chmod a'):
            load(weights, 'RN50', tmp_path, print)


@pytest.mark.parametrize(('value', 'reason'), [
    ('~nobody-of-that-name', 'no home folder'), ('/' + 'x' * 300, 'File name too long'),
    ('a\0b', 'NUL'), ('FILE', 'not a folder'), ('relative', 'relative'),
])
def test_a_cache_folder_that_can_be_none(value, reason, tmp_path, monkeypatch):
    (tmp_path / 'FILE').write_text('')
    value = str(tmp_path / value) if value == 'FILE' else value
    if '\0' not in value:
        monkeypatch.setenv('DEPTHCLIP_CACHE', value)
        with pytest.raises(ConfigError, match=rf'\$DEPTHCLIP_CACHE.*{reason}'):
            cache_folder()
    if value != 'relative':
        with pytest.raises(ConfigError, match=f'cache_dir: .*{reason}'):
            cache_folder(value)


def test_without_a_home_a_cache_must_be_named(tmp_path, monkeypatch):
    for variable in ('DEPTHCLIP_CACHE', 'XDG_CACHE_HOME', 'HOME'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr('pwd.getpwuid', lambda _: (_ for _ in ()).throw(KeyError('uid')))
    with pytest.raises(ConfigError, match=r'home folder.*DEPTHCLIP_CACHE'):
        cache_folder()
    assert cache_folder(tmp_path) == tmp_path
    assert weights_module.find('RN50', tmp_path) is None


def test_the_caller_s_state_dict_is_left_alone(tiny, tmp_path):
    from depthclip_ros.core import DepthConfig, DepthEstimator
    given = {name: torch.nn.Parameter(tensor.clone(), requires_grad=True)
             if tensor.is_floating_point() and tensor.dim() > 1 else tensor.clone()
             for name, tensor in tiny.items()}
    name = 'visual.attnpool.c_proj.weight'
    given[name] = given[name].detach().t().contiguous().t()  # another order in memory
    given['visual.conv1.weight'] = torch.nn.Parameter(
        tiny['visual.conv1.weight'].to(memory_format=torch.channels_last), requires_grad=False)
    given['ln_final.bias'] = tiny['ln_final.bias'].double()
    before = {key: (value, value.dtype, value.requires_grad, value.stride(), value.data_ptr(),
                    value.detach().clone()) for key, value in given.items()}
    config = DepthConfig(backbone='auto', input_height=64, input_width=64)
    estimator = DepthEstimator(config, given, 'cpu', cache_dir=tmp_path)
    depth = estimator.predict(np.zeros((64, 64, 3), np.uint8)).depth
    assert list(given) == list(before)
    for key, value in given.items():
        tensor, dtype, gradient, stride, pointer, numbers = before[key]
        assert value is tensor
        assert (value.dtype, value.requires_grad, value.stride(), value.data_ptr()) == (
            dtype, gradient, stride, pointer), key
        assert torch.equal(value, numbers), key
    with torch.no_grad():  # nor does what the caller does next reach the estimator
        for value in given.values():
            value.zero_()
    assert np.array_equal(estimator.predict(np.zeros((64, 64, 3), np.uint8)).depth, depth)


def test_something_else_in_the_file(tmp_path):
    torch.save([1, 2], tmp_path / 'list.pt')
    with pytest.raises(WeightsError, match='holds a list'):
        read_file(tmp_path / 'list.pt')
    torch.save({'weight': torch.zeros(2)}, tmp_path / 'other.pt')
    with pytest.raises(WeightsError, match='not a CLIP model'):
        load(tmp_path / 'other.pt', 'auto', tmp_path, print)


def test_other_architecture_than_configured(tiny, tmp_path):
    with pytest.raises(WeightsError, match=r"backbone is 'RN50'.*backbone: auto"):
        load(tiny, 'RN50', tmp_path, print)


def test_untrained_is_deterministic_and_says_so(tmp_path, monkeypatch):
    small = dataclasses.replace(
        RELEASES['RN50'], architecture=weights_module.architecture(clip_standin.tiny_state_dict()))
    monkeypatch.setattr(weights_module, 'RELEASES', {'RN50': small})
    before = torch.random.get_rng_state()
    info, first = load('untrained', 'RN50', tmp_path, print)
    _, second = load('untrained', 'auto', tmp_path, print)
    assert not info.trained
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


def test_digest_of_a_state_dict_sees_every_tensor(tiny):
    changed = {name: tensor.clone() for name, tensor in tiny.items()}
    assert weights_module.state_dict_digest(changed) == weights_module.state_dict_digest(tiny)
    changed['visual.bn1.bias'][0] += 1
    assert weights_module.state_dict_digest(changed) != weights_module.state_dict_digest(tiny)
    assert len(weights_module.state_dict_digest(tiny)) == len(hashlib.sha256().hexdigest())
