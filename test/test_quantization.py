# SPDX-License-Identifier: Apache-2.0
"""The network in 8 bits is near float32's, made on request, read or refused, never stale."""

from __future__ import annotations

import sys

import clip_standin
import cv2
import numpy as np
import pytest
import torch

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from depthclip_ros.cli.main import main  # noqa: E402
from depthclip_ros.core import (  # noqa: E402
    ConfigError,
    DepthConfig,
    DepthEstimator,
    EngineError,
    engine,
    quantization,
)
from depthclip_ros.core.backbone import build_image_encoder  # noqa: E402
from depthclip_ros.core.engine import resolve_precision, use_threads  # noqa: E402

SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
INT8 = SMALL.replace(precision='int8')
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(3)]
PICTURES = [clip_standin.synthetic_rgb(seed)[::4, ::4] for seed in range(10, 20)]


def build(state_dict, folder, config=INT8, **rest):
    return DepthEstimator(config, state_dict, 'cpu', cache_dir=folder, **rest)


@pytest.fixture(scope='module')
def kept(state_dict, tmp_path_factory):
    """A cache with the network in 8 bits, whose files nobody changes."""
    folder = tmp_path_factory.mktemp('cache')
    assert build(state_dict, folder, SMALL).quantize(PICTURES).parent == folder / 'int8'
    return folder


@pytest.mark.parametrize('flip', [False, True])
def test_int8_is_near_float32_alone_and_in_batches(state_dict, kept, flip):
    estimator = build(state_dict, kept, INT8.replace(flip_average=flip))
    assert (estimator.engine, estimator.precision) == ('ONNX Runtime', 'int8')
    found = estimator.encode(IMAGES).features
    expected = build(state_dict, kept, SMALL.replace(flip_average=flip)).encode(IMAGES).features
    assert 0 < engine.relative_error(found, expected) < quantization.TOLERANCE
    for image, together in zip(IMAGES, estimator.predict(IMAGES), strict=True):
        np.testing.assert_allclose(  # a value between two levels may become either
            estimator.predict(image).depth, together.depth, rtol=1 / 255)


@pytest.fixture(scope='module')
def network(state_dict):
    return build_image_encoder(state_dict, 'reference').trunk


INPUTS = [torch.from_numpy(picture[:96, :128].copy()).permute(2, 0, 1)[None] / 64 - 2
          for picture in PICTURES[:8]]


@torch.inference_mode()
def test_biases_bring_the_means_back(network):
    """And without their correction the means are off."""
    together = torch.cat(INPUTS)
    model, expected = quantization.quantize(network, INPUTS), network(together)

    def error(content):
        return float((quantization.OnnxTrunk(content)(together) - expected).mean((0, 2, 3)).norm())
    plain = error(model.SerializeToString())
    assert error(quantization.correct_biases(network, model, together)) < 0.3 * plain


@pytest.mark.parametrize(('machine', 'vnni', 'greatest'), [
    ('x86_64', True, 127), ('x86_64', False, 64), ('aarch64', False, 127)])
def test_weights_leave_room_where_sums_overflow(network, monkeypatch, machine, vnni, greatest):
    """255 levels of a map by 64 of a weight, twice, are less than 2 ** 15."""
    monkeypatch.setattr(quantization.platform, 'machine', lambda: machine)
    monkeypatch.setattr(torch.cpu, '_is_vnni_supported', lambda: vnni, raising=False)
    levels = [onnx.numpy_helper.to_array(tensor)
              for tensor in quantization.quantize(network, INPUTS[:1]).graph.initializer
              if tensor.name.endswith('weight_quantized')]
    assert len(levels) == 18 + 7, 'all convolutions but the first, and the averages'
    assert {abs(values.astype(int)).max() for values in levels} == {greatest}


@pytest.mark.parametrize('change', [
    {'input_width': 160}, {'normalization': 'clip'}, 'weights', 'weight range'])
def test_what_changes_the_network_needs_another_file(state_dict, kept, monkeypatch, change):
    if change == 'weights':
        state_dict = clip_standin.tiny_state_dict(2)
    elif change == 'weight range':
        other = not quantization.has_vnni()
        monkeypatch.setattr(quantization, 'has_vnni', lambda: other)
    config = INT8.replace(**change) if isinstance(change, dict) else INT8
    with pytest.raises(EngineError, match=r'is missing.*depthclip quantize'):
        build(state_dict, kept, config)


@pytest.mark.parametrize('content', [b'', b'not a network', None], ids=['empty', 'text', 'cut'])
def test_a_damaged_file_is_refused(state_dict, kept, tmp_path, content):
    file, = (kept / 'int8').iterdir()
    (tmp_path / 'int8').mkdir()
    (tmp_path / 'int8' / file.name).write_bytes(
        file.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(EngineError, match=r'cannot be used \(.*depthclip quantize'):
        build(state_dict, tmp_path)


@pytest.mark.parametrize('times', [1 / 8, 256])
def test_a_network_with_a_wrong_scale_is_not_kept(state_dict, tmp_path, monkeypatch, times):
    """Off by more than rounding explains."""
    corrected = quantization.correct_biases

    def wrong_scale(network, model, images):
        corrected(network, model, images)
        scale = next(tensor for tensor in model.graph.initializer
                     if tensor.name == 'relu__4_scale')
        scale.CopyFrom(onnx.numpy_helper.from_array(
            times * onnx.numpy_helper.to_array(scale), scale.name))
        return model.SerializeToString()
    monkeypatch.setattr(quantization, 'correct_biases', wrong_scale)
    with pytest.raises(EngineError, match=r'8 bits differ .* nothing was kept'):
        build(state_dict, tmp_path, SMALL).quantize(PICTURES)
    assert not list(tmp_path.glob('int8/*'))


@pytest.mark.parametrize('threads', [1, 2])
def test_threads_follow_num_threads_and_do_not_spin(state_dict, kept, threads):
    try:
        estimator = build(state_dict, kept, num_threads=threads)
    finally:
        use_threads(0)
    settings = estimator.model.encoder.trunk._session.get_session_options()
    assert settings.intra_op_num_threads == threads
    assert settings.get_session_config_entry('session.intra_op.allow_spinning') == '0'


@pytest.mark.parametrize('package', ['onnx', 'onnxruntime'])
def test_a_missing_library_is_named(state_dict, kept, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match='pip install onnxruntime onnx'):
        build(state_dict, kept)
    build(state_dict, kept, SMALL)  # nothing else needs it


def test_vision_transformers_and_gpus_are_refused(tmp_path):
    with pytest.raises(ConfigError, match='int8 is for ResNets'):
        build(clip_standin.state_dict(0, **clip_standin.TINY_VIT), tmp_path,
              INT8.replace(features='maskclip'))
    with pytest.raises(ConfigError, match='int8, but the device is cuda:0'):
        resolve_precision('int8', torch.device('cuda:0'))


def test_quantize_command(tmp_path, monkeypatch, capsys):
    cache, folder, config = (tmp_path / name for name in ('cache', 'pictures', 'tiny.yaml'))
    monkeypatch.setenv('DEPTHCLIP_CACHE', str(cache))
    folder.mkdir()
    for number, picture in enumerate(PICTURES):
        cv2.imwrite(str(folder / f'{number}.png'), picture[..., ::-1])
    clip_standin.write_tiny_weights(tmp_path / 'tiny.pt')
    config.write_text(
        '/**:\n  ros__parameters:\n    backbone: auto\n    input_height: 96\n'
        f'    input_width: 128\n    temperature: 2.0\n    weights: {tmp_path / "tiny.pt"}\n')
    command = ['quantize', '--config', str(config), '--images', str(folder)]
    cache.mkdir()
    (cache / 'int8').write_text('a file where the folder should be')
    assert main(command) == 1
    assert 'cannot be kept' in capsys.readouterr().err
    (cache / 'int8').unlink()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert 'calibrated: on 10 pictures' in said
    assert "differs from float32's by" in said
    for path in sorted(folder.iterdir())[:3]:
        path.unlink()
    assert main(command) == 1
    assert '7 pictures; give at least 8' in capsys.readouterr().err


def test_the_node_reads_the_file_or_says_how_to_make_it(tiny_weights, domain, tmp_path):
    pytest.importorskip('rclpy')
    from ros_harness import NodeProcess, Peer, image, tiny_arguments
    arguments = tiny_arguments(tiny_weights, precision='int8')
    refused = NodeProcess(arguments, domain=domain, cache=tmp_path)
    assert refused.wait() == 1
    assert 'depthclip quantize' in refused.output
    build(tiny_weights, tmp_path, SMALL).quantize(PICTURES)
    node = NodeProcess(arguments, domain=domain, cache=tmp_path)
    try:
        with Peer(domain, node=node) as peer:
            peer.ready('depth/image')
            peer.ask(image(peer.header(), IMAGES[0], 'rgb8'))
            _, values = peer.diagnostics('depth_node: model', lambda values: True)
    finally:
        status = node.stop()
    assert status == 0, node.output
    assert (values['precision'], values['engine']) == ('int8', 'ONNX Runtime')
