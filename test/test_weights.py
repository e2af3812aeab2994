# SPDX-License-Identifier: Apache-2.0
"""Weights from names, files and memory, the cache, and files that are whole or not there.

A real HTTP server stands in for OpenAI's.
"""

from __future__ import annotations

import argparse
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import clip_standin
import numpy as np
import pytest
import safetensors.torch
import torch

from depthclip_ros.core import ConfigError, DepthConfig, DepthEstimator, WeightsError
from depthclip_ros.core import weights as weights_module
from depthclip_ros.core.errors import quoted
from depthclip_ros.core.file_formats import kind_of
from depthclip_ros.core.files import atomic, open_regular, user_path
from depthclip_ros.core.releases import RELEASES, file_digest
from depthclip_ros.core.weights import (
    architecture,
    cache_folder,
    download_release,
    load_weights,
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


def test_download_once_then_from_a_cache(server, release, tmp_path, monkeypatch):
    address, served, requests = server
    path = download_release('RN50', tmp_path / 'cache', print, address)
    assert path == tmp_path / 'cache/weights/RN50.pt'
    assert download_release('RN50', tmp_path / 'cache', print, address, offline=True) == path
    assert [file.name for file in path.parent.iterdir()] == ['RN50.pt']
    info, state_dict = load_weights('RN50', 'RN50', tmp_path / 'cache', print, offline=True)
    assert (info.trained, info.digest) == (True, file_digest(path))
    assert 'visual.conv1.weight' in state_dict
    monkeypatch.setenv('HOME', str(tmp_path))
    own = tmp_path / '.cache/clip' / release.file  # of OpenAI's own loader
    own.parent.mkdir(parents=True)
    own.write_bytes(served.read_bytes())
    assert download_release('RN50', tmp_path / 'other', print, address) == own
    assert len(requests) == 1


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
    remedies = 'depthclip fetch RN50.*cache_dir.*--weights demo'
    with pytest.raises(WeightsError, match=rf'{reason}.*{remedies}'):
        download_release('RN50', tmp_path / 'cache', print, address)
    assert [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()] == []


@pytest.mark.parametrize(('spelt', 'meant'), [
    ('ViT-B-32', 'ViT-B/32'), ('vit_b_16', 'ViT-B/16'), ('rn50', 'RN50'), ('RN50X4', 'RN50x4'),
    ('openai/clip-vit-base-patch32', 'ViT-B/32'),
    ('openai/clip-vit-large-patch14-336', 'ViT-L/14@336px'), ('ViT-H-14', ''), ('50', '')])
def test_a_backbone_in_the_spelling_of_others_is_recognized(spelt, meant, tmp_path):
    with pytest.raises(WeightsError) as error:
        load_weights('', spelt, tmp_path, print, offline=True)
    hint = f'did you mean {meant}?'
    assert hint in str(error.value) if meant else 'did you' not in str(error.value)


def test_names_and_files_that_are_none(release, tmp_path, tiny):
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights' / release.file).write_bytes(b'not it')
    for weights, backbone, message in (
            ({}, 'RN51', "backbone: 'RN51'"),
            ('', 'RN101', r'offline.*depthclip fetch RN101.*--weights demo'),
            ('', 'auto', r'auto.*Give weights: .*RN50'), ('', 'RN50', 'damaged'),
            (tiny, 'RN101', r"backbone is 'RN101'.*backbone: auto"),
            ('demo', 'RN101', r'config/demo\.yaml'), ('x' * 300, 'auto', 'File name too long'),
            ('missing.pt', 'auto', 'No such file.*RN50'), ('/dev/zero', 'auto', 'not a file'),
            ('~nobody-of-that-name/x.pt', 'auto', 'No such file')):
        with pytest.raises(WeightsError, match=message):
            load_weights(weights, backbone, tmp_path, print, offline=True)
    with pytest.raises(WeightsError, match=r"'RN51'.*RN50"):
        download_release('RN51', tmp_path)


def test_archive_and_state_dict_hold_the_same(archive, release, tiny, tmp_path):
    digest, script = read_file(archive)
    assert digest == release.sha256
    for name, tensor in tiny.items():
        torch.testing.assert_close(script[name].float(), tensor.float(), rtol=1e-3, atol=1e-3)
    tiny = {**tiny, 'visual.bn1.num_batches_tracked': torch.tensor(1_000_000)}  # a long training
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


def damaged(tiny):
    """Contents of a weights file, and what the refusal says."""
    name = 'visual.conv1.weight'
    numbers = tiny[name]
    one = torch.where(torch.arange(numbers.numel()).view_as(numbers) == 77, torch.nan, numbers)
    return {
        'a class': ({**tiny, 'x': Evil('ran')}, r'asks for _?io\.open, which is a program'),
        'a list': ([1, 2], 'holds list, no state dict'),
        'one tensor': (numbers, r'holds one tensor of \(4, 3, 3, 3\), no state dict'),
        'another model': ({'weight': torch.zeros(2)}, 'not a CLIP model'),
        'whole numbers': ({**tiny, name: numbers.to(torch.int8)}, f"{name}' is torch.int8"),
        'empty tensor': ({**tiny, name: torch.zeros(0, 3, 3, 3)}, f"{name}' is torch.float32"),
        'two models': ({f'{name}.{key}': value for name in ('student', 'teacher')
                        for key, value in tiny.items()}, r'2 models, student\., teacher\.'),
        'meta': ({key: value.to('meta') for key, value in tiny.items()}, 'holds no numbers'),
        'sparse': ({**tiny, name: numbers.to_sparse()}, 'is sparse'),
        'float8': ({**tiny, name: numbers.to(torch.float8_e4m3fn)}, 'is torch.float8'),
        'expanded': ({**tiny, name: torch.zeros(1).expand(100000, 50000)}, 'repeats numbers'),
        'infinity': ({**tiny, 'ln_final.bias': torch.full((64,), -torch.inf)},
                     "'ln_final.bias' holds"),
        'one NaN': ({**tiny, name: one.half()}, f"{name}' holds NaN"),
        'beyond half': ({**tiny, name: numbers * 1e7}, 'beyond -65504 to 65504'),
        'variance': ({**tiny, 'visual.bn1.running_var': -torch.ones(4)}, 'beyond 0 to'),
        'dimensions': ({**tiny, 'visual.layer1.0.conv1.weight': torch.tensor(1.0)},
                       'not a CLIP model'),
        'heads': ({**tiny, 'ln_final.weight': torch.ones(32)}, 'do not fit'),
    }


@pytest.mark.parametrize('kind', damaged({'visual.conv1.weight': torch.ones(4, 3, 5, 5)}))
def test_damaged_weights_are_named(kind, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, words = damaged(tiny)[kind]
    torch.save(content, 'damaged.pt')
    for weights in ['damaged.pt', *([content] if isinstance(content, dict) and kind != 'a class'
                                    else [])]:
        with pytest.raises(WeightsError, match=words) as error:
            DepthEstimator(CONFIG, weights, 'cpu', cache_dir=tmp_path)
        assert 'weights_only' not in str(error.value), "torch's advice would run what is in it"
        assert len(str(error.value)) < 1000
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(('kind', 'reason'), [
    ('empty', 'empty'), ('noise', 'no format that is known'), ('truncated', 'truncated'),
    ('truncated archive', 'truncated'), ('a whole archive', 'TorchScript'),
    ('safetensors', 'truncated'), ('one page', r'checksum of damaged/data/\d+ in it is wrong')])
def test_damaged_files_end_in_a_reason(kind, reason, archive, tiny, tmp_path):
    """An archive of TorchScript, which is a program, is only read if it is OpenAI's."""
    path = tmp_path / 'damaged.pt'
    torch.save(tiny, path)
    if kind == 'safetensors':
        safetensors.torch.save_file(tiny, path)
    whole = (archive if 'archive' in kind else path).read_bytes()
    page = whole.find(tiny['ln_final.weight'].numpy().tobytes())
    path.write_bytes({'empty': b'', 'noise': b'\x01' * 5000, 'a whole archive': whole,
                      'one page': whole[:page] + b'\0' * 64 + whole[page + 64:]}.get(
        kind, whole[:len(whole) // 2]))
    with pytest.raises(WeightsError, match=rf'{path}: .*{reason}'):
        load_weights(path, 'auto', tmp_path, print)


def others(tiny):
    """State dicts as training programs save them, and what the log names of each."""
    module = {f'module.{key}': value for key, value in tiny.items()}
    return {
        'module': (module, ''),
        'compiled': ({f'_orig_mod.{key}': value for key, value in tiny.items()}, ''),
        'open_clip_train': ({'epoch': 3, 'name': 'x', 'state_dict': module, 'optimizer': {}}, ''),
        'lightning': ({'state_dict': {'loss.weight': torch.ones(1), **{
            f'model.clip.{key}': value for key, value in tiny.items()}}}, 'loss.weight'),
        'model': ({'model': tiny, 'args': {'lr': 0.1}}, ''),
        'model_state_dict': ({'model_state_dict': {'state_dict': tiny}, 'loss': 0.1}, ''),
        'a number of NumPy': ({'state_dict': tiny, 'best': np.float64(0.7),
                               'epoch': np.int64(3)}, ''),
        'options and a path': ({'model': tiny, 'args': argparse.Namespace(lr=0.1),
                                'output': Path('a/b'), 'best': np.float32(0.7)}, ''),
        'a second model': ({'model': tiny, 'model_ema': tiny}, 'model_ema'),
        'foreign keys': ({**tiny, 'attn_mask': torch.full((77, 77), -torch.inf),
                          'logit_bias': torch.tensor(-10.0), 'visual.head.weight': torch.ones(2),
                          'prompt_learner.ctx': torch.ones(2)},
                         'attn_mask, logit_bias, visual.head.weight, prompt_learner.ctx'),
        'a part of a storage': ({**tiny, 'ln_final.bias': torch.zeros(1000)[10:74]}, ''),
        'as float64': ({key: value.double() if value.is_floating_point() else value
                        for key, value in tiny.items()}, ''),
    }


@pytest.mark.parametrize('kind', others({}))
def test_weights_as_others_save_them(kind, tiny, tmp_path):
    """In every format and under any name; what is no part of CLIP is left out and named."""
    content, left_out = others(tiny)[kind]
    lines = []
    torch.save(content, tmp_path / 'x.safetensors')  # a name that says something else
    name = os.fsdecode(b'caf\xe9.bin')  # no UTF-8
    torch.save(content, tmp_path / 'legacy', _use_new_zipfile_serialization=False)
    (tmp_path / name).write_bytes((tmp_path / 'legacy').read_bytes())
    part = {'ln_final.bias': torch.zeros(64)} if kind == 'a part of a storage' else {}
    for weights in (tmp_path / 'x.safetensors', tmp_path / name, content):
        state_dict = load_weights(weights, 'auto', tmp_path, lines.append)[1]
        assert state_dict.keys() == tiny.keys()
        for key, tensor in state_dict.items():
            assert torch.equal(tensor.double(), {**tiny, **part}[key].double())
    assert sum('left out' in line and left_out in line for line in lines) == (3 if left_out else 0)
    safetensors.torch.save_file(tiny, tmp_path / 'y.pt')
    path = (tmp_path / 'y.pt').rename(tmp_path / os.fsdecode(b'y\xe9.pt'))
    assert load_weights(path, 'auto', tmp_path, lines.append)[1].keys() == tiny.keys()


@pytest.mark.parametrize(('keys', 'reason'), [
    (('text_model.embeddings.token_embedding.weight', 'vision_model.x'), 'Hugging Face'),
    (('visual.trunk.patch_embed.proj.weight', 'text.x'), 'backbone: open_clip:'),
    (('image_encoder.model.x', 'text_encoder.x'), 'MobileCLIP'), (('ctx',), 'learned prompts'),
    (('base_model.model.lora_A.weight',), 'LoRA'), (('visual.conv1.weight',), 'text encoder'),
    (('fc.0.weight',), 'Its keys are fc.0.weight')])
def test_weights_of_another_model_are_named(keys, reason, tmp_path):
    shard = tmp_path / 'x-00001-of-00003.bin'
    torch.save({key: torch.ones(2) for key in keys}, shard)
    with pytest.raises(WeightsError, match=rf'{reason}') as error:
        load_weights(shard, 'auto', tmp_path, print)
    assert 'one of 3 shards' in str(error.value)


@pytest.mark.parametrize(('content', 'reason'), [
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605143316\n',
     'git-lfs pointer, not the file of 605,143,316 bytes'),
    (b'\n<!DOCTYPE html><html><title>Virus scan warning</title></html>', 'web page'),
    (b'{"error": "Invalid username"}', 'Invalid username'), (b'\0' * 5000, 'zeros'),
    (b'\x08\x08\x12\x07pytorch\x1a\x052.0.0:' + b'\xf0' * 99, 'ONNX'),
    (b'ftrt' + b'\xf0' * 99, 'TensorRT'), (b'GGUF' + b'\xf0' * 99, 'llama.cpp'),
    (b'\x1f\x8b\x08' + b'\xf0' * 99, 'gzip'), (b'\x89HDF\r\n\x1a\n', 'HDF5'),
    (b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', 'list of the shards')])
def test_files_that_are_no_weights_are_named(content, reason, tmp_path):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason) as error:
        load_weights(path, 'auto', tmp_path, print)
    assert 'damaged' not in str(error.value)
    with pytest.raises(WeightsError, match=r'Give weights: one of the files in it \(x\.safetens'):
        load_weights(tmp_path, 'auto', tmp_path, print)


def test_what_cannot_be_opened_has_a_kind_too(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    assert [kind_of(path).name for path in (tmp_path, tmp_path / 'none', tmp_path / 'pipe')] == \
        ['unreadable'] * 3


def test_what_a_state_dict_does_not_say_is_said(tmp_path, release, archive):
    """Heads and activation: refused where a head of another width is likely, else named."""
    lines = []
    vit = clip_standin.TINY_VIT
    load_weights(clip_standin.state_dict(2, **vit), 'auto', tmp_path, lines.append)
    assert sum('QuickGELU' in line and 'open_clip:' in line for line in lines) == 1
    for width in (320, 1152, 1280, 1408, 1664, 1792):
        with pytest.raises(WeightsError, match=rf'{width} wide.*backbone: open_clip:ARCHITECTURE'):
            load_weights(clip_standin.state_dict(2, **{**vit, 'width': width, 'vit_layers': 1}),
                         'auto', tmp_path, print)
    load_weights(archive, 'RN50', tmp_path, lines.append)
    load_weights('demo', 'auto', tmp_path, lines.append)
    assert sum('QuickGELU' in line for line in lines) == 1


@pytest.mark.parametrize(('name', 'value', 'reason'), [
    ('DEPTHCLIP_CACHE', '~nobody-of-that-name', 'no home folder'),
    ('DEPTHCLIP_CACHE', 'relative', 'relative'), (None, '~nobody-of-that-name', 'no home folder'),
    (None, 'a\0b', 'NUL')])
def test_a_cache_folder_that_can_be_none(name, value, reason, monkeypatch):
    if name:
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf'{reason}.* Set cache_dir'):
        cache_folder(None if name else value)


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert cache_folder() == cache_folder(os.environ['DEPTHCLIP_CACHE'])
    monkeypatch.delenv('DEPTHCLIP_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder() == tmp_path / 'depthclip_ros'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', '/home/robot')
    assert str(cache_folder()) == '/home/robot/.cache/depthclip_ros'
    assert cache_folder(tmp_path) == tmp_path


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
        same, *facts, numbers = before[key]
        assert same is value
        assert [value.dtype, value.requires_grad, value.stride()] == facts, key
        assert torch.equal(value, numbers), key
    with torch.no_grad():  # nor does what the caller does next reach the estimator
        for value in given.values():
            value.zero_()
    assert np.array_equal(estimator.predict(np.zeros((64, 64, 3), np.uint8)).depth, depth)


def test_untrained_is_deterministic_and_says_so(tmp_path, release):
    before = torch.random.get_rng_state()
    info, first = load_weights('untrained', 'RN50', tmp_path, print)
    _, second = load_weights('untrained', 'auto', tmp_path, print)
    assert not info.trained
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


# Files that are whole or not there ----------------------------------------------------------


@pytest.mark.parametrize(('umask', 'mode'), [(0o022, 0o644), (0o077, 0o600)])
def test_complete_or_not_at_all(tmp_path, umask, mode):
    """Readable as far as the umask allows; what a killed writer left goes an hour later."""
    target = tmp_path / 'folder' / 'file'
    left, recent = (target.with_name(f'.file.{name}.part') for name in ('left', 'recent'))
    before = os.umask(umask)
    try:
        with atomic(target) as file:
            file.write(b'first')
            assert not target.exists()
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == mode
    for path in (left, recent):
        path.write_bytes(b'half')
    os.utime(left, (1e9, 1e9))
    with pytest.raises(ZeroDivisionError), atomic(target) as file:
        file.write(b'second' * (1 // 0))
    assert target.read_bytes() == b'first'
    assert sorted(target.parent.iterdir()) == [recent, target]  # which somebody may still write


@pytest.mark.parametrize('kind', ['folder', 'pipe', 'device', 'dangling link', 'missing'])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    """Opening a pipe that nobody writes to would never end."""
    path = tmp_path / 'path'
    {'folder': path.mkdir, 'pipe': lambda: os.mkfifo(path), 'missing': lambda: None,
     'device': lambda: path.symlink_to('/dev/zero'),
     'dangling link': lambda: path.symlink_to(tmp_path / 'nowhere')}[kind]()
    with pytest.raises(OSError, match='No such file' if kind in ('dangling link', 'missing')
                       else 'not a file'):
        open_regular(tmp_path / 'path')


def test_paths_and_values_of_users(monkeypatch):
    monkeypatch.setenv('HOME', '/home/robot')
    assert str(user_path('~/weights.pt')) == '/home/robot/weights.pt'
    with pytest.raises(OSError, match='no home folder'):
        user_path('~nobody-of-that-name/x')
    assert quoted([1, 2]) == '[1, 2]'
    text = quoted('x' * 1_000_000)
    assert text.endswith('x… (1000000 characters)')
    assert len(text) < 110
