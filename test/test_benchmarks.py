# SPDX-License-Identifier: Apache-2.0
"""The benchmarks from outside: a quick run, its record and its table; and what they compute."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy')

import clip_standin
import numpy as np
import torch
from drives import drive, write_camera, write_folder
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks import estimator, graph, machine, readouts, recordings, report, rooms, run, timing
from depthclip_ros.core import DepthConfig, DepthEstimator, engine
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.core.openai_clip import import_clip
from depthclip_ros.core.readout import upsample
from depthclip_ros.evaluation.metrics import by_name

ROOT = Path(run.__file__).resolve().parents[1]
SECOND = 10**9
QUICK = ('estimator',)  # others: nightly


# One command -----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly)
    for name in run.BENCHMARKS])
def test_a_quick_run_leaves_a_record_and_its_table(tmp_path, name):
    here = {recordings.VARIABLE: str(write_folder(tmp_path / 'drive', drive(rooms=5)))} \
        if name == 'recordings' else {}
    done = subprocess.run(
        [sys.executable, 'benchmarks/run.py', name, '--quick', '--out', tmp_path / 'new'],
        cwd=ROOT, check=False, capture_output=True, text=True, env={**os.environ, **here})
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / 'new' / f'{name}.json').read_text())
    assert measured['date']
    assert measured['versions']['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert measured['rows']
    for row in measured['rows']:
        assert (row['commit'], row['machine']) == (measured['commit'], measured['machine'])
        assert len(row) > 3
    table = (tmp_path / 'new' / f'{name}.md').read_text()
    assert table in done.stdout
    lines = [line for line in table.splitlines() if line.startswith('|')]
    tables = len({tuple(row) for row in measured['rows']})
    assert len(lines) == len(measured['rows']) + 2 * tables


REAL = ROOT / '..' / 'shared' / 'field' / 'real'


@pytest.mark.skipif(not REAL.is_dir(), reason='shared/field is not here')
def test_a_real_kitchen_is_predicted_better_once_it_is_calibrated(tmp_path):
    """The second half of a drive, from the first: better than all that sees no image."""
    for part in ('rgb', 'depth'):
        (tmp_path / part).symlink_to(REAL / 'kitchen' / part)
    shutil.copy(REAL / 'kitchen' / 'camera.yaml', tmp_path)
    depth_camera = CameraModel.pinhole(640, 480, 585, cx=320, cy=240)
    write_camera(tmp_path / 'depth_camera.yaml', depth_camera)
    demo = DepthEstimator(DepthConfig.from_yaml(ROOT / 'config/demo.yaml'), 'demo', 'cpu')
    rows = recordings.of_recording(demo, str(tmp_path))
    *others, calibrated = [row['rmse [m]'] for row in rows if 'what' in row]
    assert calibrated < 0.95 * min(others)
    coverage, = (row['coverage'] for row in rows if row.get('coverage of') == 'all')
    assert 0.85 < coverage < 0.99


def test_what_the_package_would_replace_is_not_measured(monkeypatch):
    """Such as bfloat16 on a processor that has AVX2 alone."""
    for known, wanted in ((True, ['float32', 'bfloat16']), (False, ['float32'])):
        monkeypatch.setattr(engine, 'cpu_has_bfloat16', lambda known=known: known)
        assert estimator.precisions(torch.device('cpu')) == wanted
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: (8, 0))
    assert estimator.precisions(torch.device('cuda')) == ['float32', 'float16']


# Records and tables ----------------------------------------------------------------------------


def test_a_record_has_only_what_json_has(tmp_path):
    measured = report.record('x', machine.describe(), [
        {'values': (1.23456789, math.nan, math.inf), 'file': tmp_path, 'one': np.float32(2)}])
    report.write(tmp_path / 'new' / 'x.json', measured)
    row, = json.loads((tmp_path / 'new' / 'x.json').read_text())['rows']
    assert row['values'] == [1.2346, None, None]
    assert (row['file'], row['one']) == (str(tmp_path), 2.0)


# Turns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('warm', [True, False])
def test_contenders_take_turns_and_the_first_round_does_not_count(warm):
    turns = []

    def contender(name, seconds):
        def clock():
            turns.append(name)
            return seconds.pop(0)
        return timing.Contender(name, clock, images=2)

    each = [[9.0, 9.0, 9.0, 1.0, 9.0, 3.0], [9.0, 9.0, 9.0, 4.0, 9.0, 6.0]] if warm else \
        [[9.0, 1.0, 3.0], [9.0, 4.0, 6.0]]
    fast, slow = map(contender, 'ab', each)
    rows = timing.race([fast, slow], 2, warm=warm)
    assert ''.join(turns) == ('aabb' if warm else 'ab') * 3
    assert [row['p50 [ms]'] for row in rows] == [2000.0, 5000.0]
    assert rows[0]['images/s'] == 1.0
    assert timing.ratio(slow, fast) == 3.0  # of 4 and 2, and not 2.5


# The node --------------------------------------------------------------------------------------


def trial(rate, answered, *, seconds=10, latency=0.02):
    """Two cameras at `rate`; `answered` says which images of each came back."""
    sent = {name: [round((100 + shift + i / rate) * SECOND) for i in range(int(rate * seconds))]
            for name, shift in (('a', 0.0), ('b', 0.5 / rate))}
    arrivals = {(name, stamp): stamp + round(latency * SECOND)
                for name, stamps in sent.items() for i, stamp in enumerate(stamps) if answered(i)}
    return graph.Trial(sent, arrivals, cpu=0.1 * len(arrivals))


def test_a_trial_counts_what_comes_back():
    half = trial(10.0, lambda i: i % 2)
    assert half.rate == pytest.approx(10.0, rel=0.02)
    assert (half.images, half.answered) == (200, 100)
    assert half.answers == pytest.approx(10.0, rel=0.03)
    assert half.age(50) == half.age(99) == pytest.approx(20.0)
    assert half.cpu == pytest.approx(100.0)
    nothing = trial(10.0, lambda _: False)
    assert (nothing.answered, nothing.answers) == (0, 0.0)
    assert math.isnan(nothing.age(50))


# Rendered rooms --------------------------------------------------------------------------------


def test_scores_by_hand():
    truth = np.float32([[1.0, 2.0], [4.0, 8.0]])
    metrics = by_name(rooms.scores(2 * truth, truth))
    assert (metrics['d1'], metrics['rel']) == (0.0, 1.0)
    assert metrics['rmse'] == pytest.approx(math.sqrt(85 / 4))
    with pytest.raises(ValueError, match='not finite'):
        rooms.scores(np.inf * truth, truth)
    assert rooms.correlation(2 * truth, truth) == pytest.approx(1.0)
    assert rooms.correlation(truth[::-1, ::-1], truth) == pytest.approx(-1.0)
    assert rooms.correlation(np.full((2, 2), 2.2), truth) == 0


@pytest.mark.parametrize(('features', 'upsampling'), [
    ('maskclip', 'bilinear'), ('attnpool', 'centered')])
def test_what_is_read_out_is_the_estimators_own(features, upsampling):
    config = DepthConfig.from_yaml(ROOT / 'config/demo.yaml')
    model = readouts.Model(config, features)
    seen = rooms.view(rooms.TEST, 0.0)
    model.temperature = 6.0
    found = model.depth(model.see(seen), 'mean', 0.0, upsampling, seen)
    estimator = model.estimator
    estimator.reconfigure(estimator.config.replace(
        temperature=6.0, upsampling=upsampling))
    prediction = estimator.predict(seen.rgb)
    np.testing.assert_allclose(found, prediction.depth, atol=1e-4)
    best = np.float32(config.bins)[prediction.logits.argmax(axis=0)]
    found = model.depth(model.see(seen), 'argmax', 1.0, 'patch', seen)
    sums = [gaussian_filter(values, 1.0, mode='constant', truncate=20)
            for values in (best, np.ones_like(best))]
    expected = upsample(torch.from_numpy(sums[0] / sums[1])[None], found.shape, 'patch')[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_crops_are_what_clip_says_of_every_cell_alone():
    weights = clip_standin.tiny_state_dict()
    encoder = readouts.CropFeatures(weights)
    model, cell = import_clip().model.build_model(dict(weights)).float(), encoder.stride
    batch = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = encoder(batch)
        assert found.shape == (2, 64, 2, 3)
        for i, row, column in np.ndindex(2, 2, 3):
            crop = batch[i, :, row * cell:(row + 1) * cell, column * cell:(column + 1) * cell]
            resized = np.stack([
                Image.fromarray(channel.numpy()).resize((64, 64), Image.Resampling.BILINEAR)
                for channel in crop])
            alone = model.encode_image(torch.from_numpy(resized)[None])[0]
            torch.testing.assert_close(
                found[i, :, row, column], alone / alone.norm(), rtol=1e-3, atol=1e-4)
