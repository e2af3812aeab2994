# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime gives the reference's depth in float32, and nearly so in 8 bits; never stale."""

from __future__ import annotations

import math
import sys

import clip_standin
import cv2
import numpy as np
import pytest
import torch

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from depthclip_ros.cli import doctor  # noqa: E402
from depthclip_ros.cli.main import main  # noqa: E402
from depthclip_ros.core import ConfigError, DepthConfig, DepthEstimator, EngineError, int8  # noqa: E402
from depthclip_ros.core.backbone import build_image_encoder  # noqa: E402
from depthclip_ros.core.device import resolve_precision, use_threads  # noqa: E402
from depthclip_ros.core.resnet import FoldedResNet  # noqa: E402

SMALL = DepthConfig(backbone='auto', input_height=96, input_width=128, temperature=2.0)
INT8 = SMALL.replace(precision='int8')
IMAGES = [clip_standin.synthetic_rgb(seed)[:96, :128] for seed in range(3)]
PICTURES = [clip_standin.synthetic_rgb(seed)[::4, ::4] for seed in range(10, 20)]


@pytest.fixture(scope='module')
def kept(state_dict, tmp_path_factory):
    """A cache with the network in 8 bits, whose files nobody changes."""
    folder = tmp_path_factory.mktemp('cache')
    estimator = DepthEstimator(INT8, state_dict, 'cpu', cache_dir=folder, quantize=False)
    assert estimator.is_provisional
    assert (estimator.precision, estimator.engine, estimator.quantized_on) == (
        'float32', 'torch', '')
    estimator.use(estimator.quantize(PICTURES))
    assert not estimator.is_provisional
    return folder


@pytest.fixture
def own(kept, tmp_path):
    """The same to change: the folder, and the file in it."""
    target = tmp_path / 'int8'
    target.mkdir()
    file, = (kept / 'int8').iterdir()
    (target / file.name).write_bytes(file.read_bytes())
    return tmp_path, target / file.name


def build(state_dict, folder, log=lambda text: None, config=INT8, **rest):
    return DepthEstimator(config, state_dict, 'cpu', cache_dir=folder, log=log, **rest)


def exact(state_dict, folder, **changes):
    return build(state_dict, folder, config=SMALL.replace(**changes))


@pytest.mark.parametrize('flip', [False, True])
def test_float32_equals_the_reference(state_dict, kept, flip):
    reference = exact(state_dict, kept, engine='eager', flip_average=flip)
    estimator = exact(state_dict, kept, engine='onnxruntime', flip_average=flip)
    assert (estimator.engine, estimator.precision) == ('onnxruntime', 'float32')
    for images in (IMAGES[:1], IMAGES):
        for found, expected in zip(
                estimator.predict(images), reference.predict(images), strict=True):
            np.testing.assert_allclose(found.depth, expected.depth, rtol=0, atol=1e-4)
            np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=2e-3)


def rounding(state_dict):
    """Relative error of features that rounding to 8 bits explains, twice as much as expected.

    Each step rounds its map to 255 levels, and its weights to `greatest_weight()` of either sign:
    63 where a processor's sums would overflow, so that the tolerance is the processor's. The
    largest value is about three times the root mean square in both, a level s errs by s / √12,
    and the errors of the steps are independent.
    """
    steps = int8.steps_of(FoldedResNet(build_image_encoder(state_dict, 'reference').trunk))
    level = 3 / 255 + 3 / int8.greatest_weight()
    return 2 * level / math.sqrt(12) * math.sqrt(len(steps))


@pytest.mark.parametrize('flip', [False, True])
def test_int8_is_near_float32_alone_and_in_batches(state_dict, kept, flip):
    estimator = build(state_dict, kept, log=(said := []).append,
                      config=INT8.replace(flip_average=flip))
    assert (estimator.engine, estimator.precision) == ('onnxruntime', 'int8')
    assert estimator.quantized_on == int8.label(PICTURES)
    assert any(int8.label(PICTURES) in text for text in said)
    found = estimator.features(IMAGES)
    expected = exact(state_dict, kept, flip_average=flip).features(IMAGES)
    assert 0 < (found - expected).norm() / expected.norm() < rounding(state_dict)
    for image, together in zip(IMAGES, estimator.predict(IMAGES), strict=True):
        np.testing.assert_allclose(  # a value between two levels may become either
            estimator.predict(image).depth, together.depth, rtol=1 / 255)


def test_biases_bring_the_means_back(state_dict):
    """And without their correction the means are off."""
    steps = int8.steps_of(FoldedResNet(build_image_encoder(state_dict, 'reference').trunk))
    images = torch.cat([torch.from_numpy(picture[:96, :128].copy()).permute(2, 0, 1)[None] / 64 - 2
                        for picture in PICTURES[:8]])
    with torch.inference_mode():
        corrected, ranges = int8.quantize(steps, list(images[:, None]), 63)
        expected = int8.OnnxTrunk(int8.write(steps))(images)
        error = [float((int8.OnnxTrunk(int8.write(some, ranges, 63))(images) - expected).mean(
            (0, 2, 3)).norm()) for some in (corrected, steps)]
    assert error[0] < 0.3 * error[1]


def test_weights_leave_room_where_sums_overflow(state_dict, monkeypatch):
    steps = int8.steps_of(FoldedResNet(build_image_encoder(state_dict, 'reference').trunk))
    model = onnx.load_from_string(int8.write(steps, [(0.0, 1.0)] * (len(steps) + 1), 63))
    levels = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
              if tensor.name.endswith('weight levels')]
    # All convolutions but the first, and the averages.
    assert len(levels) == sum(
        step.convolution is not None or step.pool > 0 for step in steps) - 1
    assert {abs(values).max() for values in levels} == {63}

    int8.greatest_weight.cache_clear()
    monkeypatch.setattr(int8.OnnxTrunk, 'forward', lambda self, images: 0.5 * images)
    try:
        assert int8.greatest_weight() == 63
    finally:
        int8.greatest_weight.cache_clear()
    monkeypatch.undo()
    assert int8.greatest_weight() in (63, 127)


# The cache ----------------------------------------------------------------------------------


def no_calibration(monkeypatch):
    monkeypatch.setattr(int8, 'quantize', lambda *_: pytest.fail('it is calibrated again'))


def few_rooms(monkeypatch):
    """Make the rooms cheap."""
    monkeypatch.setattr(int8, 'rooms', lambda: iter(PICTURES))


def test_it_is_calibrated_once(state_dict, own, monkeypatch):
    folder, path = own
    before = path.read_bytes()
    no_calibration(monkeypatch)
    assert build(state_dict, folder).precision == 'int8'
    assert path.read_bytes() == before


def damaged(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]


FAULTS = {'a bit': damaged, 'cut off': lambda content: content[:-1]}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_damaged_file_is_made_anew(state_dict, own, monkeypatch, fault):
    folder, path = own
    few_rooms(monkeypatch)
    path.write_bytes(FAULTS[fault](path.read_bytes()))
    said = []
    assert build(state_dict, folder, said.append).quantized_on == '24 rendered rooms'
    assert any(text.startswith('WARNING') and '(it is damaged); it is made anew' in text
               for text in said)
    no_calibration(monkeypatch)
    build(state_dict, folder)


def test_a_file_of_another_network_is_not_taken(state_dict, own, monkeypatch):
    """Even if somebody gives it the right name."""
    folder, path = own
    few_rooms(monkeypatch)
    other = clip_standin.tiny_state_dict(2)
    said = []
    estimator = build(other, folder, said.append)
    assert estimator.quantized_on == '24 rendered rooms'
    mine = estimator.quantized_cache().path
    assert mine != path
    mine.write_bytes(path.read_bytes())
    estimator = build(other, folder, said.append, quantize=False)
    assert estimator.is_provisional
    assert any('is damaged' in text for text in said)


@pytest.mark.parametrize('change', [
    {'input_width': 160}, {'normalization': 'clip'}, 'torch', 'onnxruntime', 'weight'])
def test_what_changes_the_result_makes_another_file(state_dict, own, monkeypatch, change):
    folder, _ = own
    config = INT8
    if isinstance(change, dict):
        config = INT8.replace(**change)
    elif change == 'weight':
        top = 190 - int8.greatest_weight()
        monkeypatch.setattr(int8, 'greatest_weight', lambda: top)
    else:
        monkeypatch.setattr(sys.modules[change], '__version__', '0.0')
    assert build(state_dict, folder, config=config, quantize=False).is_provisional


def test_other_words_and_flip_share_a_file(state_dict, own):
    folder, _ = own
    config = INT8.replace(flip_average=True, temperature=1.0, upsampling='patch')
    assert not build(state_dict, folder, config=config, quantize=False).is_provisional


def wrong_scale(steps, ranges, *rest):
    """As `write`, with one map's scale wrong."""
    ranges = list(ranges)
    low, high = ranges[5]
    ranges[5] = low, high / 8
    return WRITE(steps, ranges, *rest)


WRITE = int8.write


def test_a_wrong_scale_is_refused(state_dict, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, 'write', wrong_scale)
    estimator = build(state_dict, tmp_path, quantize=False)
    with pytest.raises(EngineError, match=r'onnxruntime gives wrong features .* in int8 only'):
        estimator.quantize(PICTURES)
    assert not list(tmp_path.glob('int8/*'))
    assert estimator.is_provisional


def test_a_wrong_scale_in_the_cache_is_made_anew(state_dict, own, monkeypatch):
    folder, path = own
    steps = int8.steps_of(FoldedResNet(build_image_encoder(state_dict, 'reference').trunk))
    with torch.inference_mode():
        _, ranges = int8.quantize(steps, [torch.rand(1, 3, 96, 128)], 127)
        wrong = wrong_scale(steps, ranges, 127)
    few_rooms(monkeypatch)
    cache = build(state_dict, folder).quantized_cache()
    cache.write(wrong)  # with the right hash
    assert cache.path == path
    said = []
    assert build(state_dict, folder, said.append).precision == 'int8'
    assert any('wrong features' in text and text.endswith('It is made anew.') for text in said)


def test_a_cache_that_cannot_be_written_is_said(state_dict, tmp_path, monkeypatch):
    (tmp_path / 'int8').write_text('a file where the folder should be')
    few_rooms(monkeypatch)
    said = []
    assert build(state_dict, tmp_path, said.append).precision == 'int8'
    assert any('cannot keep the quantised network' in text for text in said)


def test_a_calibration_can_be_stopped(state_dict, tmp_path):
    estimator = build(state_dict, tmp_path, quantize=False)
    with pytest.raises(EngineError, match='stopped'):
        estimator.quantize(PICTURES, stop=lambda: True)


@pytest.mark.parametrize('threads', [1, 2])
def test_threads_follow_num_threads_and_do_not_spin(state_dict, kept, threads):
    before = torch.get_num_threads()
    try:
        estimator = build(state_dict, kept, num_threads=threads)
    finally:
        use_threads(0)
    assert torch.get_num_threads() == before
    settings = estimator._encoder.trunk._session.get_session_options()
    assert settings.intra_op_num_threads == threads
    assert settings.get_session_config_entry('session.intra_op.allow_spinning') == '0'


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize('package', ['onnx', 'onnxruntime'])
@pytest.mark.parametrize('changes', [{'precision': 'int8'}, {'engine': 'onnxruntime'}])
def test_a_missing_library_is_named(state_dict, tmp_path, monkeypatch, package, changes):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match='pip install onnxruntime onnx'):
        build(state_dict, tmp_path, config=SMALL.replace(**changes))
    exact(state_dict, tmp_path)  # nothing else needs it


@pytest.mark.parametrize(('changes', 'words'), [
    ({'precision': 'int8', 'engine': 'torch'}, 'engine: torch has no arithmetic in 8 bits'),
    ({'precision': 'bfloat16', 'engine': 'onnxruntime'}, 'computes in float32 or int8'),
    ({'precision': 'int8', 'features': 'crops'}, 'a yardstick')])
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(ConfigError, match=words):
        SMALL.replace(**changes)


def test_vision_transformers_and_gpus_are_refused(tmp_path):
    with pytest.raises(ConfigError, match='int8 is for ResNets'):
        build(clip_standin.state_dict(0, **clip_standin.TINY_VIT), tmp_path,
              config=INT8.replace(features='maskclip'))
    with pytest.raises(ConfigError, match='int8 is for a CPU, and the device is cuda:0'):
        resolve_precision('int8', torch.device('cuda:0'))


def test_the_doctor_says_what_is_missing(monkeypatch):
    version = doctor._version

    def line():
        check, = (check for check in doctor.check_optional() if check.name == 'int8')
        assert check.status == doctor.OK, 'it is optional'
        return check.detail
    assert f'onnx {onnx.__version__}' in line()
    monkeypatch.setattr(
        doctor, '_version', lambda name: '?' if name == 'onnxruntime' else version(name))
    assert 'int8 is not possible without onnxruntime: ' in line()
    assert line().endswith('install onnxruntime')


# depthclip quantize -------------------------------------------------------------------------


@pytest.fixture
def camera(tmp_path, monkeypatch):
    """A folder of pictures, and weights and settings for the command."""
    monkeypatch.setenv('DEPTHCLIP_CACHE', str(tmp_path / 'cache'))
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for number, picture in enumerate(PICTURES):
        cv2.imwrite(str(folder / f'{number}.png'), picture[..., ::-1])
    clip_standin.write_tiny_weights(tmp_path / 'tiny.pt')
    config = tmp_path / 'tiny.yaml'
    config.write_text(
        '/**:\n  ros__parameters:\n    backbone: auto\n    input_height: 96\n'
        f'    input_width: 128\n    temperature: 2.0\n    weights: {tmp_path / "tiny.pt"}\n')
    return folder, ['quantize', '--config', str(config), '--images', str(folder)]


def test_quantize_command(camera, capsys, monkeypatch):
    folder, command = camera
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f'on {int8.label(PICTURES)}' in said
    assert "differs from float32's by" in said
    no_calibration(monkeypatch)
    assert main(command) == 0, 'the second time it is there'
    monkeypatch.undo()
    (folder / '0.png').write_bytes((folder / '1.png').read_bytes())
    monkeypatch.setenv('DEPTHCLIP_CACHE', str(folder.parent / 'cache'))
    capsys.readouterr()
    assert main(command) == 0
    again = capsys.readouterr().out
    assert '10 pictures, SHA-256' in again, 'others make it anew'
    assert int8.label(PICTURES) not in again


def test_quantize_needs_some_pictures(camera, capsys):
    folder, command = camera
    for path in sorted(folder.iterdir())[:3]:
        path.unlink()
    assert main(command) == 1
    assert '7 pictures; give at least 8' in capsys.readouterr().err


# The node -----------------------------------------------------------------------------------


def test_the_node_runs_float32_until_it_is_made(tiny_weights, domain, tmp_path):
    pytest.importorskip('rclpy')
    from ros_harness import NodeProcess, Peer, image, tiny_arguments
    pixels = clip_standin.synthetic_rgb(0)[:96, :128]
    node = NodeProcess(tiny_arguments(tiny_weights, precision='int8'), domain=domain,
                       cache=tmp_path)
    try:
        with Peer(domain, node=node) as peer:
            node.wait_for('float32 runs until the network in 8 bits is made')
            peer.ready('depth/image')
            first = peer.ask(image(peer.header(), pixels, 'rgb8'))
            # The node gives way to all else meanwhile: beside two busy processes it is 2 minutes.
            node.wait_for(r'quantised on 24 rendered rooms in', timeout=540)
            # It is said when the file is there; the network is exchanged between two images.
            said = 'Depth in int8, calibrated on 24 rendered rooms, first in the image'
            seconds = []

            def exchanged():
                seconds.append(peer.ask(image(peer.header(), pixels, 'rgb8')))
                return said in node.output
            peer.wait(exchanged, said)
            _, values = peer.diagnostics(
                'depth_node: model', lambda values: values.get('precision') == 'int8')
    finally:
        status = node.stop()
    assert status == 0, node.output
    assert 'in float32, engine torch' in node.output
    assert (values['engine'], values['quantised on']) == ('onnxruntime', '24 rendered rooms')
    depths = [np.frombuffer(bytes(depth.data), '<f4') for depth in (first, seconds[-1])]
    assert np.median(abs(depths[0] - depths[1])) > 0
    assert len(list((tmp_path / 'int8').iterdir())) == 1
