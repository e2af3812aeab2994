# SPDX-License-Identifier: Apache-2.0
"""`depthclip compare`: planted errors are found, and what is no comparison is said."""

import json
import re
from unittest import mock

import numpy as np
import pytest
import torch
from drives import IMAGE_TOPIC, START, BagWriter, camera_of_width, drive, write_drive, write_folder
from test_recordings import RGBD

from depthclip_ros.cli import compare as compare_command
from depthclip_ros.cli.main import main
from depthclip_ros.core import CameraImage, DepthConfig, DepthEstimator
from depthclip_ros.evaluation.bootstrap import MIN_GROUPS
from depthclip_ros.evaluation.metrics import METRICS, metrics_of, score
from depthclip_ros.evaluation.recording_scores import Scores, pool
from depthclip_ros.messages.node_config import with_demo_settings
from depthclip_ros.sim.camera import SimCamera
from depthclip_ros.sim.datasets import NANOSECONDS

SAID = '/depth/image'


@pytest.fixture(scope='module')
def frames():
    return drive(rooms=2, frames=6, camera=camera_of_width(64), seed=5)


def with_depth(path, frames, said, *, missing=()):
    """A bag that holds `said(depth)` beside the measured depth, as `depthclip bag` writes it."""
    bag = BagWriter(path)
    with bag.writer:
        bag.writer.set_custom_data('depthclip_topics', f'{SAID} /depth/camera_info')
        for number, frame in enumerate(frames):
            time = START * NANOSECONDS + round(frame.moment.time * NANOSECONDS)
            header = bag.messages.header(time, 'optical')
            K = frame.camera.K
            info = bag.messages.camera_info(header, SimCamera(
                frame.camera.width, frame.camera.height, K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
            bag.write('/camera/color/camera_info', info, time)
            bag.write(IMAGE_TOPIC, bag.messages.image(header, 'rgb8', frame.rgb), time)
            bag.write('/camera/depth/image_raw',
                      bag.messages.image(header, '32FC1', frame.depth), time)
            if number not in missing:
                bag.write('/depth/camera_info', info, time)
                bag.write(SAID, bag.messages.image(
                    header, '32FC1', said(frame.depth).astype(np.float32)), time)
    return path


def run(*arguments):
    return main(['compare', *map(str, arguments)])


def compared(output):
    return json.loads((output / 'comparison.json').read_text())


def lines(comparison):
    return {line['name']: line for line in comparison['lines']}


def test_a_planted_factor_is_found_and_the_one_scale_repairs_it(frames, tmp_path, capsys):
    """No network is asked: the bag holds depth already."""
    bag = with_depth(tmp_path / 'bag', frames, lambda depth: 1.5 * depth)
    assert run(bag, '-o', tmp_path / 'out') == 0
    found = compared(tmp_path / 'out')
    assert found['model'] == {}
    depth, filled, scaled, constant = lines(found['pooled']).values()
    assert filled['metrics']['rmse'] == pytest.approx(depth['metrics']['rmse'])
    assert depth['metrics']['d1'] == 0
    assert depth['metrics']['d2'] == 1
    assert depth['metrics']['rel'] == pytest.approx(0.5, rel=1e-5)
    rmse = np.mean([np.sqrt(np.mean((0.5 * f.depth) ** 2)) for f in frames])
    assert depth['metrics']['rmse'] == pytest.approx(rmse, rel=1e-5)
    assert scaled['metrics']['d1'] == 1
    assert scaled['chosen']['rmse'] == pytest.approx(1 / 1.5, rel=0.01)
    assert scaled['metrics']['rel'] < 0.01
    everything = np.concatenate([f.depth.ravel() for f in frames])
    assert everything.min() < constant['chosen']['rmse'] < everything.max()
    assert all(d['ratio'] == pytest.approx(1.5) for d in found['pooled']['distances'])
    assert sum(d['share'] for d in found['pooled']['distances']) == pytest.approx(1)
    assert f'{SAID} is compared with it' in capsys.readouterr().err
    bag = with_depth(tmp_path / 'far', frames, lambda d: np.where(d < 3, d, 1.1 * d))
    assert run(bag, '-o', tmp_path / 'shown_far') == 0
    distances = compared(tmp_path / 'shown_far')['pooled']['distances']
    assert {d['low'] < 3 for d in distances} == {True, False}
    for d in distances:
        assert d['metrics']['rel'] == pytest.approx(0 if d['low'] < 3 else 0.1, abs=1e-6)


def test_holes_are_counted_and_not_scored(frames, tmp_path):
    def half(depth):
        holes = depth.copy()
        holes[:, ::2] = np.nan
        holes[:, 1::4] = -np.inf
        return holes
    bag = with_depth(tmp_path / 'bag', frames, half, missing=[2])
    assert run(bag, '-o', tmp_path / 'out') == 0
    pooled, (recording,) = (compared(tmp_path / 'out')[k] for k in ('pooled', 'recordings'))
    assert pooled['answered'] == 0.25
    assert lines(pooled)['depth']['metrics']['d1'] == 1
    assert pooled['images'] == len(frames) - 1
    assert recording['unreadable']['images without depth at their time'] == 1
    assert recording['unreadable'][
        'images that the depth to be compared is missing at'] == 1


def test_the_network_is_scored_as_the_evaluation_scores_it(frames, tmp_path):
    assert run(write_drive(tmp_path / 'bag', frames), '-o', tmp_path / 'out', '--weights', 'demo',
               '--max-depth', '4') == 0
    depth, _ = with_demo_settings(DepthConfig(), 'demo')
    estimator = DepthEstimator(depth, 'demo', 'cpu')
    each = []
    for frame in frames:
        truth = np.where(frame.depth < 4, frame.depth, np.nan).astype(np.float32)
        said = estimator.predict(CameraImage(frame.rgb, frame.camera)).depth
        each.append(metrics_of(score(
            torch.from_numpy(truth), torch.from_numpy(said)[None], 4.0)[0].numpy()))
    found = compared(tmp_path / 'out')
    # A pixel on the border of d1 to d3 may fall on either side where sums are in another order.
    pixel = 1 / (len(frames) * frames[0].depth.size)
    np.testing.assert_allclose(
        [lines(found['pooled'])['depth']['metrics'][m] for m in METRICS], np.mean(each, axis=0),
        rtol=1e-5, atol=2 * pixel)
    assert found['model']['trained']
    assert found['model']['settings']['bins'] == list(depth.bins)


def test_what_depthclip_bag_has_written_is_compared_as_it_is(frames, tmp_path):
    """Under any name, and with the same metrics as the network's own answers."""
    bag = write_drive(tmp_path / 'bag', frames)
    assert main(['bag', str(bag), '-o', str(tmp_path / 'new'), '--weights', 'demo', '--namespace',
                 'robot']) == 0
    assert run(bag, '-o', tmp_path / 'first', '--weights', 'demo') == 0
    assert run(tmp_path / 'new', '-o', tmp_path / 'second') == 0
    first, second = (compared(tmp_path / name) for name in ('first', 'second'))
    assert '/robot/depth/image' in second['recordings'][0]['described']
    assert second['model'] == {}
    for line, other in zip(first['pooled']['lines'], second['pooled']['lines'], strict=True):
        assert line['metrics'] == pytest.approx(
            other['metrics'], rel=1e-6, abs=1e-3)


def test_what_is_projected_through_tf(frames, tmp_path):
    bag = write_drive(tmp_path / 'bag', frames, 'scan')
    assert run(bag, '-o', tmp_path / 'out', '--weights', 'demo') == 0
    pooled = compared(tmp_path / 'out')['pooled']
    assert pooled['images'] == len(frames)
    assert 0 < pooled['pixels'] < 0.3 * len(frames) * frames[0].depth.size


def test_several_are_pooled_and_a_damaged_one_stops_none(frames, tmp_path, capsys):
    first = with_depth(tmp_path / 'first', frames[:2], lambda depth: 1.1 * depth)
    second = with_depth(tmp_path / 'second', frames[2:], lambda depth: 1.4 * depth)
    (tmp_path / 'bad.mcap').write_bytes(b'\x89MCAP0\r\n' + bytes(100))
    assert run(first, tmp_path / 'bad.mcap', second, '-o', tmp_path / 'out') == 1
    found = compared(tmp_path / 'out')
    assert lines(found['pooled'])['depth']['metrics']['d1'] == pytest.approx(2 / 6)
    assert [lines(r)['depth']['metrics']['d1'] for r in found['recordings']] == [1, 0]
    (source, reason), = found['failed'].items()
    assert source.endswith('bad.mcap')
    assert 'without its end' in reason
    assert 'bad.mcap' in (tmp_path / 'out' / 'comparison.md').read_text()
    capsys.readouterr()
    assert run(tmp_path / 'bad.mcap', tmp_path / 'none') == 1
    assert 'none of 2 recordings' in capsys.readouterr().err


def test_page_and_pictures(frames, tmp_path, monkeypatch, capsys):
    """The paper's Figures 3 to 5, of nothing beyond the greatest depth that counts."""
    drawn = [mock.Mock(wraps=getattr(compare_command, name))
             for name in ('distributions', 'predictions')]
    monkeypatch.setattr(compare_command, 'distributions', drawn[0])
    monkeypatch.setattr(compare_command, 'predictions', drawn[1])
    given = (write_folder(tmp_path / 'recording', frames), '--weights', 'demo', '--max-depth', '3',
             '-o', tmp_path / 'out')
    assert run(*given) == 0
    html = (tmp_path / 'out' / 'comparison.html').read_text()
    assert "default-src 'none'" in html
    names = {f'figures/{path.name}' for path in (tmp_path / 'out' / 'figures').iterdir()}
    assert set(re.findall(r'(?:src|href)="((?!data:|#)[^"]+)"', html)) == names
    assert names == {f'figures/{name}' for name in (
        'distributions.svg', 'predictions.png', *(f'responses_{n}.png' for n in (1, 2, 3)))}
    assert run(*given) == 1
    assert 'not overwritten' in capsys.readouterr().err
    assert (tmp_path / 'out' / 'comparison.html').read_text() == html
    (edges, counts, *_), (samples, _) = (one.call_args.args for one in drawn)
    known = np.concatenate([frame.depth[frame.depth < 3] for frame in frames])
    assert sum(counts['all recordings']) == known.size
    assert counts['all recordings'][np.searchsorted(edges, 2.001) - 1] == pytest.approx(
        np.sum((known >= 2) & (known < 2.1)), rel=0.05)  # it is rounded to millimetres
    assert len(samples) == 6
    assert np.nanmedian(samples[0].truth) == pytest.approx(
        np.nanmedian(frames[0].depth), rel=0.02)
    said = DepthEstimator(with_demo_settings(DepthConfig(), 'demo')[0], 'demo', 'cpu').predict(
        CameraImage(frames[0].rgb, frames[0].camera))
    np.testing.assert_allclose(samples[0].weights, said.weights, atol=1e-5)
    assert np.median(samples[0].depth) == pytest.approx(np.median(said.depth), rel=0.02)


@pytest.mark.parametrize(('more', 'message'), [
    (['--said', 'x'], 'no bag'), (['-o', 'recording/rgb/0.png'], 'cannot'),
    (['--config', 'anchor.yaml'], 'depthclip bag')])
def test_what_cannot_be_compared(frames, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / 'recording', frames)
    (tmp_path / 'anchor.yaml').write_text('/**: {ros__parameters: {anchor: ground}}')
    assert run(folder, *more) == 1
    assert message in capsys.readouterr().err


def test_intervals_are_of_recordings(tmp_path):
    """From 20 of them on, and where depth is good, its gain over the constant is certain."""
    rng = np.random.default_rng(1)
    several = []
    for number in range(MIN_GROUPS):
        scores = Scores(f'{number}', '')
        for image in range(2):
            truth = rng.lognormal(0.8, 0.4, (8, 8)).astype(np.float32)
            scores.add(str(image), truth * 1.05, truth)
        several.append(scores)
    assert pool(several[1:]).intervals == {}
    found = pool(several)
    assert {metric: i.outcome() for metric, i in found.intervals.items()} == {
        'd1': 'better', 'rmse': 'better'}
    assert 'interval of the gain' in found.verdict


def test_what_is_measured_beyond_200_metres_counts_where_it_is_asked_for():
    truth = np.array([[150.0, 250.0, 290.0, 400.0]], np.float32)
    scores = Scores('far', '')
    scores.add('0', truth, truth, 300.0)
    found = pool([scores])
    assert (found.pixels, found.lines[0].metrics['d1']) == (3, 1.0)
    assert [(d.low, d.high) for d in found.distances] == [(100.0, 200.0), (200.0, 500.0)]
    with pytest.raises(SystemExit, match='2'):
        run('bag', '--max-depth', '1001')


def test_who_says_nothing_where_it_is_hard_is_not_better_for_it():
    """Half of the pixels are right, and the others unknown: a constant answers all of them."""
    rng = np.random.default_rng(2)
    bold, shy = Scores('bold', ''), Scores('shy', '')
    for image in range(4):
        truth = rng.uniform(1, 5, (8, 8)).astype(np.float32)
        wrong = truth * np.where(np.arange(8) < 4, 1.0, 2.0).astype(np.float32)
        bold.add(str(image), wrong, truth)
        shy.add(str(image), np.where(wrong == truth, wrong, np.nan), truth)
    bold, shy = pool([bold]), pool([shy])
    assert (bold.answered, shy.answered) == (1.0, 0.5)
    constants = [next(x for x in c.lines if x.name == 'best constant') for c in (bold, shy)]
    assert constants[0] == constants[1]
    depth, filled = (next(x for x in shy.lines if x.name == name).metrics for name in (
        'depth', 'depth, with its median where it says nothing'))
    assert depth['d1'] == 1.0
    assert 0.5 < filled['d1'] < 0.8
    assert 'says nothing of 50.0 %' in shy.verdict
    gain = filled['rmse'] - constants[1].metrics['rmse']
    assert f'{abs(gain):.3f} m in rmse' in shy.verdict
    assert 'says nothing' not in bold.verdict


def test_a_real_camera(tmp_path):
    if not RGBD.is_dir():
        pytest.skip('the recorded RGB-D bag (../shared) is not on this machine')
    assert run(RGBD, '-o', tmp_path / 'out', '--weights', 'demo') == 0
    found = compared(tmp_path / 'out')
    assert found['pooled']['images'] == 9
    assert 0.5 < lines(found['pooled'])['depth']['metrics']['rmse'] < 1.5
