# SPDX-License-Identifier: Apache-2.0
"""Weights from names, files and memory; a real HTTP server stands in for OpenAI's."""

from __future__ import annotations

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

from depthclip_ros.core import ConfigError, DepthConfig, DepthEstimator, WeightsError
from depthclip_ros.core import weights as weights_module
from depthclip_ros.core.weights import (
    RELEASES,
    architecture,
    cache_folder,
    fetch,
    file_digest,
    load,
    read_file,
)

CONFIG = DepthConfig(backbone='auto', input_height=64, input_width=64)


@pytest.fixture(scope='module')
def tiny():
    return clip_standin.tiny_state_dict()


@pytest.fixture(scope='module')
def archive(tmp_path_factory, tiny):
    """An archive as OpenAI's are."""
    path = tmp_path_factory.mktemp('archive') / 'tiny.pt'
    clip_standin.write_release(path, tiny)
    return path


@pytest.fixture
def release(monkeypatch, archive, tiny):
    """Make 'RN50' the tiny archive, so that a download can be checked for real."""
    release = RELEASES['RN50']._replace(
        sha256=file_digest(archive), architecture=architecture(tiny))
    monkeypatch.setattr(weights_module, 'RELEASES', {**RELEASES, 'RN50': release})
    return release


# Downloads ----------------------------------------------------------------------------------


class Handler(SimpleHTTPRequestHandler):
    """Sends files; of those below TORN it promises more than it sends."""

    def log_message(self, *arguments):
        self.server.requests.append(self.path)

    def send_header(self, name, value):
        torn = name == 'Content-Length' and self.path.startswith('/TORN')
        super().send_header(name, str(int(value) + 1000) if torn else value)


@pytest.fixture
def server(tmp_path, release, archive):
    """Serve the archive at SHA256/FILE: the address, the file, and the requests."""
    root = tmp_path / 'served'
    for folder in (root, root / 'TORN'):
        path = folder / release.sha256 / release.file
        path.parent.mkdir(parents=True)
        path.write_bytes(archive.read_bytes()[:None if folder == root else 1000])
    http = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(root)))
    http.requests = []
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield (f'http://127.0.0.1:{http.server_port}', root / release.sha256 / release.file,
           http.requests)
    http.shutdown()


def test_download_once_then_from_the_cache(server, tmp_path):
    address, _, requests = server
    path = fetch('RN50', tmp_path / 'cache', print, address)
    assert path == tmp_path / 'cache/weights/RN50.pt'
    assert fetch('RN50', tmp_path / 'cache', print, address) == path
    assert len(requests) == 1
    assert [file.name for file in path.parent.iterdir()] == ['RN50.pt']
    info, state_dict = load('RN50', 'RN50', tmp_path / 'cache', print, offline=True)
    assert (info.trained, info.digest) == (True, file_digest(path))
    assert 'visual.conv1.weight' in state_dict


def test_weights_of_openais_own_loader_are_found(server, release, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    own = tmp_path / '.cache/clip' / release.file
    own.parent.mkdir(parents=True)
    own.write_bytes(server[1].read_bytes())
    assert fetch('RN50', tmp_path / 'cache', print, server[0]) == own
    assert server[2] == []


@pytest.mark.parametrize(('fault', 'reason'), [
    ('another', r'with SHA-256 \w+, expected'), ('torn', r'1000 of 2000 bytes came'),
    ('absent', 'File not found'), ('no server', 'Connection refused'),
    ('no folder', 'Not a directory|File exists')])
def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(server, tmp_path, fault, reason):
    address, file, _ = server
    if fault == 'another':
        file.write_bytes(file.read_bytes()[:-1] + b'x')
    elif fault == 'absent':
        file.unlink()
    elif fault == 'no folder':
        (tmp_path / 'cache').write_text('in the way')
    address = {'torn': f'{address}/TORN', 'no server': 'http://127.0.0.1:9'}.get(fault, address)
    with pytest.raises(WeightsError, match=rf'{reason}.*depthclip fetch RN50.*cache_dir'):
        fetch('RN50', tmp_path / 'cache', print, address)
    assert [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()] == []


def test_names_that_are_none_and_offline(release, tmp_path):
    with pytest.raises(WeightsError, match=r"'RN51'.*RN50"):
        fetch('RN51', tmp_path)
    with pytest.raises(WeightsError, match="backbone: 'RN51'"):
        load({}, 'RN51', tmp_path, print)
    with pytest.raises(WeightsError, match=r'offline.*depthclip fetch RN101'):
        load('', 'RN101', tmp_path, print, offline=True)
    with pytest.raises(WeightsError, match="weights: ''"):
        load('', 'auto', tmp_path, print)
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights' / release.file).write_bytes(b'not it')
    with pytest.raises(WeightsError, match='damaged'):
        load('', 'RN50', tmp_path, print)


# Files --------------------------------------------------------------------------------------


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


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


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


def test_code_in_a_file_does_not_run(archive, release, tmp_path, monkeypatch):
    torch.save({'x': Evil(tmp_path / 'ran')}, tmp_path / 'pickle.pt')
    torch.jit.save(torch.jit.script(Writer(str(tmp_path / 'ran'))), str(tmp_path / 'script.pt'))
    for name, reason in (('pickle', 'more than tensors'),
                         ('script', r"none of OpenAI's.*run its code.*torch.save")):
        with pytest.raises(WeightsError, match=reason):
            load(tmp_path / f'{name}.pt', 'auto', tmp_path, print)
        assert not (tmp_path / 'ran').exists()
    torch.jit.load(str(tmp_path / 'script.pt'))
    assert (tmp_path / 'ran').exists()  # the attack is real
    (tmp_path / 'weights').mkdir()
    with zipfile.ZipFile(archive) as old, \
            zipfile.ZipFile(tmp_path / 'weights/RN50.pt', 'w') as new:
        for record in old.infolist():
            new.writestr(record, old.read(record))
        new.comment = b'other'  # and so another hash
    monkeypatch.setattr(torch.jit, 'load', lambda *_, **__: pytest.fail('it was run'))
    with pytest.raises(WeightsError, match='not the official one'):
        load('RN50', 'RN50', tmp_path, print)


def damaged(tiny):
    """Contents of a weights file, and what the refusal says."""
    name = 'visual.conv1.weight'
    numbers = tiny[name]
    one = torch.where(torch.arange(numbers.numel()).view_as(numbers) == 77, torch.nan, numbers)
    return {
        'a class': ({**tiny, 'x': Evil('x')}, 'more than tensors'),
        'a list': ([1, 2], 'holds a list'),
        'another model': ({'weight': torch.zeros(2)}, 'not a CLIP model'),
        'whole numbers': ({**tiny, name: numbers.to(torch.int8)}, f"{name}' is torch.int8"),
        'truth values': ({**tiny, name: numbers > 0}, 'torch.bool'),
        'complex numbers': ({**tiny, name: numbers.to(torch.complex64)}, 'torch.complex64'),
        'sparse': ({**tiny, name: numbers.to_sparse()}, 'torch.sparse_coo'),
        'empty tensor': ({**tiny, name: torch.zeros(0, 3, 3, 3)}, f"{name}' is .*0, 3, 3, 3"),
        'nested': ({'model': {'weights': tiny}}, "'model' is a dict"),
        'other keys': ({**tiny, 7: numbers}, '7 is a Tensor'),
        'infinity': ({**tiny, 'ln_final.bias': torch.full((64,), -torch.inf)},
                     "'ln_final.bias' holds"),
        'one NaN': ({**tiny, name: one.half()}, f"{name}' holds NaN"),
        'beyond half': ({**tiny, name: numbers * 1e7}, 'beyond -65504 to 65504'),
        'variance': ({**tiny, 'visual.bn1.running_var': -torch.ones(4)}, 'beyond 0 to'),
        'dimensions': ({**tiny, 'visual.layer1.0.conv1.weight': torch.tensor(1.0)},
                       'other shapes'),
        'heads': ({**tiny, 'ln_final.weight': torch.ones(32)}, 'do not fit'),
    }


@pytest.mark.parametrize('kind', damaged({'visual.conv1.weight': torch.ones(4, 3, 5, 5)}))
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_damaged_weights_are_named(kind, tiny, tmp_path):
    content, words = damaged(tiny)[kind]
    path = tmp_path / 'damaged.pt'
    torch.save(content, path)
    given = [path] if kind in ('a class', 'a list') else [path, content]
    for weights in given:
        with pytest.raises(WeightsError, match=words) as error:
            DepthEstimator(CONFIG, weights, 'cpu', cache_dir=tmp_path)
        assert 'weights_only' not in str(error.value)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize('kind', [
    'empty', 'noise', 'truncated', 'truncated archive', 'no data', 'no pickle', 'cut pickle',
    'safetensors'])
def test_damaged_files_end_in_a_reason(kind, archive, tiny, tmp_path):
    path = tmp_path / f'damaged.{"safetensors" if kind == "safetensors" else "pt"}'
    torch.save(tiny, path)
    whole = (archive if 'archive' in kind else path).read_bytes()
    if kind in ('no data', 'no pickle', 'cut pickle'):
        (tmp_path / 'whole.pt').write_bytes(whole)
        with zipfile.ZipFile(tmp_path / 'whole.pt') as old, zipfile.ZipFile(path, 'w') as new:
            for record in old.infolist():
                content, is_pickle = old.read(record), record.filename.endswith('/data.pkl')
                if kind == 'cut pickle' and is_pickle:
                    content = content[:-30]
                if not (kind == 'no pickle' and is_pickle) and not (
                        kind == 'no data' and record.filename.endswith('/data/3')):
                    new.writestr(record.filename, content)
    else:
        half = whole[:len(whole) // 2]
        path.write_bytes({'empty': b'', 'noise': b'\x01' * 5000}.get(kind, half))
    with pytest.raises(WeightsError, match='cannot be read as CLIP weights') as error:
        load(path, 'auto', tmp_path, print)
    assert str(path) in str(error.value)
    assert 'weights_only' not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(('text', 'reason'), [
    ('x' * 300, 'File name too long'), ('~nobody-of-that-name/x.pt', 'No such file'),
    ('missing.pt', 'No such file.*RN50'), ('a\0b', 'null'), ('/proc', 'not a file'),
    ('/dev/null/x.pt', 'Not a directory'), ('/dev/zero', 'not a file'),
])
def test_paths_that_are_no_files(text, reason, tmp_path):
    with pytest.raises(WeightsError, match=reason):
        load(text, 'auto', tmp_path, print)


def test_a_file_of_another_user_is_a_reason(tmp_path, monkeypatch, archive):
    def refuse(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(weights_module.files, 'open_regular', refuse)
    with pytest.raises(WeightsError, match=r'Permission denied.*chmod a'):
        load(archive, 'auto', tmp_path, print)


# The cache's folder, memory -----------------------------------------------------------------


@pytest.mark.parametrize(('value', 'reason'), [
    ('~nobody-of-that-name', 'no home folder'), ('a\0b', 'NUL'), ('FILE', 'not a folder'),
    ('relative', 'relative'),
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


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert cache_folder() == cache_folder(os.environ['DEPTHCLIP_CACHE'])
    monkeypatch.delenv('DEPTHCLIP_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder() == tmp_path / 'depthclip_ros'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.delenv('HOME')
    monkeypatch.setattr('pwd.getpwuid', lambda _: (_ for _ in ()).throw(KeyError('uid')))
    with pytest.raises(ConfigError, match=r'home folder.*DEPTHCLIP_CACHE'):
        cache_folder()
    assert cache_folder(tmp_path) == tmp_path
    assert weights_module.find('RN50', tmp_path) is None


def test_the_caller_s_state_dict_is_left_alone(tiny, tmp_path):
    given = {name: torch.nn.Parameter(tensor.clone(), requires_grad=True)
             if tensor.is_floating_point() and tensor.dim() > 1 else tensor.clone()
             for name, tensor in tiny.items()}
    name = 'visual.attnpool.c_proj.weight'
    given[name] = given[name].detach().t().contiguous().t()  # another order in memory
    given['ln_final.bias'] = tiny['ln_final.bias'].double()
    before = {key: (value, value.dtype, value.requires_grad, value.stride(),
                    value.detach().clone()) for key, value in given.items()}
    estimator = DepthEstimator(CONFIG, given, 'cpu', cache_dir=tmp_path)
    depth = estimator.predict(np.zeros((64, 64, 3), np.uint8)).depth
    assert list(given) == list(before)
    for key, value in given.items():
        *same, numbers = before[key]
        assert same[0] is value
        assert (value.dtype, value.requires_grad, value.stride()) == tuple(same[1:]), key
        assert torch.equal(value, numbers), key
    with torch.no_grad():  # nor does what the caller does next reach the estimator
        for value in given.values():
            value.zero_()
    assert np.array_equal(estimator.predict(np.zeros((64, 64, 3), np.uint8)).depth, depth)


def test_other_architecture_than_configured(tiny, tmp_path):
    with pytest.raises(WeightsError, match=r"backbone is 'RN50'.*backbone: auto"):
        load(tiny, 'RN50', tmp_path, print)


def test_untrained_is_deterministic_and_says_so(tmp_path, release):
    before = torch.random.get_rng_state()
    info, first = load('untrained', 'RN50', tmp_path, print)
    _, second = load('untrained', 'auto', tmp_path, print)
    assert not info.trained
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())
