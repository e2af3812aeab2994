# SPDX-License-Identifier: Apache-2.0
"""Weights from names, files and memory; a real HTTP server stands in for OpenAI's."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import clip_standin
import pytest
import torch

from depthclip_ros.core import WeightsError
from depthclip_ros.core import weights as weights_module
from depthclip_ros.core.weights import RELEASES, fetch, file_digest, load, read_file


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
        architecture=weights_module.architecture(read_file(archive)))
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
    threading.Thread(target=http.serve_forever, daemon=True).start()
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
    threading.Thread(target=http.serve_forever, daemon=True).start()
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
    with pytest.raises(WeightsError, match='neither a file nor an official name'):
        load('missing.pt', 'auto', tmp_path, print)
    with pytest.raises(WeightsError, match="backbone: 'RN51'"):
        load({}, 'RN51', tmp_path, print)


def test_archive_and_state_dict_hold_the_same(archive, tiny, tmp_path):
    script = read_file(archive)
    for name, tensor in tiny.items():
        torch.testing.assert_close(
            script[name].float(), tensor.float(), rtol=1e-3, atol=1e-3)
    torch.save(tiny, tmp_path / 'plain.pt')
    torch.save({'state_dict': tiny}, tmp_path / 'wrapped.pt')
    for file in ('plain.pt', 'wrapped.pt'):
        for name, tensor in read_file(tmp_path / file).items():
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


def test_something_else_in_the_file(tmp_path):
    torch.save([1, 2], tmp_path / 'list.pt')
    with pytest.raises(WeightsError, match='list'):
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
