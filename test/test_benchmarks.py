# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks compute from what they measure."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy')

import clip_standin
import numpy as np
import torch
from PIL import Image

from benchmarks import crops, machine, node, readouts, report, rooms
from benchmarks.node_graph import Trial
from depthclip_ros.core import DepthConfig
from depthclip_ros.core.clip_package import import_clip

RESULTS = Path(node.__file__).parent / 'results'
SECOND = 10**9


def trial(rate, answered, *, seconds=10, latency=0.02, lead=1.0):
    """Two cameras at `rate`; `answered` says which images of each came back."""
    sent = {name: [round((100 + shift + i / rate) * SECOND) for i in range(int(rate * seconds))]
            for name, shift in (('a', 0.0), ('b', 0.5 / rate))}
    arrivals = {(name, stamp): stamp + round(latency * SECOND)
                for name, stamps in sent.items() for i, stamp in enumerate(stamps) if answered(i)}
    return Trial(sent, arrivals, lead, cpu=0.1 * len(arrivals))


def test_a_trial_counts_what_comes_back_after_the_lead():
    half = trial(10.0, lambda i: i >= 10 and i % 2)
    assert half.rate == pytest.approx(10.0, rel=0.01)
    assert (half.sent, half.received, half.drops) == (180, 90, 0.5)
    assert half.percentile(50) == half.percentile(99) == pytest.approx(20.0)
    assert half.cpu == pytest.approx(100.0)
    nothing = trial(10.0, lambda _: False)
    assert nothing.drops == 1.0
    assert math.isnan(nothing.percentile(50))


@pytest.mark.parametrize(('capacity', 'source', 'limit'),
                         [(40.0, 1e3, 'node'), (400.0, 1e3, 'node'), (400.0, 90.0, 'cameras')])
def test_the_highest_rate_is_found_from_any_guess(capacity, source, limit):
    """A node that answers so many images a second and camera, and a source with a limit."""
    class Running:
        names = ('a', 'b')
        seconds_per_frame = 1 / 160.0

        def send(self, rate, _seconds, _lead):
            rate = min(rate, source)
            return trial(rate, lambda i: int(i * capacity / rate) > int((i - 1) * capacity / rate)
                         or rate <= capacity)

    options = argparse.Namespace(quick=False, seconds=5.0)
    rate, found = node._highest_rate(Running(), options)
    assert found == limit
    assert min(capacity, source) / 1.15 <= rate <= min(capacity, source) * 1.08


def test_a_result_has_only_what_json_has(tmp_path):
    machine.write(tmp_path / 'new' / 'x.json', {
        **machine.describe(), 'values': (1.23456789, math.nan, math.inf), 'file': tmp_path})
    result = json.loads((tmp_path / 'new' / 'x.json').read_text())
    assert result['values'] == [1.2346, None, None]
    assert result['versions']['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert result['machine']
    assert result['load after'] >= 0


@pytest.mark.parametrize('kind', ['estimator-cpu', 'evaluation'])
def test_table_and_plot_come_beside_the_result(tmp_path, kind):
    path = tmp_path / 'any_name.json'
    shutil.copy(RESULTS / 'xeon-amx' / f'{kind}.json', path)
    report.beside(path)
    assert path.with_suffix('.md').read_text().count('\n|') > 3
    assert path.with_suffix('.png').stat().st_size > 10000


def test_a_forward_pass_that_did_not_run_is_left_out(tmp_path):
    """Such as bfloat16 where a processor has no arithmetic for it."""
    result = json.loads((RESULTS / 'xeon-amx' / 'estimator-cpu.json').read_text())
    for key in ('forward [GFLOP/s]', 'forward, fraction of matmul'):
        del result['roofline'][f'bfloat16 {key}']
    report.write(tmp_path / 'part.json', result)
    assert (tmp_path / 'part.png').exists()


def test_what_could_not_be_measured_is_shown_as_such():
    result = json.loads((RESULTS / 'xeon-amx' / 'node-tiny-cpu.json').read_text())
    result['results'][0]['at 30 Hz'].update({'latency p50 [ms]': None, 'latency p99 [ms]': None})
    assert '| 0.0 % | - | - |' in report.markdown(result)


def test_overheads_with_several_cameras_need_no_rates(tmp_path):
    result = json.loads((RESULTS / 'xeon-amx' / 'node-tiny-cpu.json').read_text())
    one = {row['node']: row['overhead'] for row in result['results'] if 'overhead' in row}
    for row in result['results']:
        row['overhead'] = {**one[row['node']], 'CPU per image [ms]': 7.0 * row['cameras']}
        for key in ('at 30 Hz', 'highest rate [Hz]', 'limited by'):
            del row[key]
    result['results'][2]['overhead']['overhead p50 [ms]'] = 2.5
    result['summary'] = node._summary(result)
    goals = result['summary']['goals']
    assert result['summary']['ours to plain'] == {}
    assert not goals['overhead [ms], 2 cameras']['reached']
    assert goals['overhead, part of the plain one, 4 cameras']['value'] == pytest.approx(
        one['depth_node']['overhead p50 [ms]'] / one['plain_node']['overhead p50 [ms]'])
    table = report.write(tmp_path / 'several.json', result)
    assert '| 2 | depth_node | 2.5 ms |' in table
    assert '| 56 ms |' in table
    assert 'highest rate' not in table
    assert (tmp_path / 'several.png').exists()


# Rendered rooms --------------------------------------------------------------------------------


def test_scores_by_hand():
    truth = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    rmse, delta1, rel, correlation = rooms.scores(2 * truth, truth)
    assert (rmse, delta1, rel) == (pytest.approx(math.sqrt(85 / 4)), 0.0, 1.0)
    assert correlation == pytest.approx(1.0)
    assert rooms.scores(truth.flip(0, 1), truth)[3] == pytest.approx(-1.0)
    flat = rooms.scores(torch.full((2, 2), 2.2), truth)
    assert flat[1:] == pytest.approx([0.25, (1.2 + 0.1 + 0.45 + 0.725) / 4, 0.0])


def test_a_row_is_compared_on_the_same_images():
    first, second = [[1.0, 0, 0, 0], [3.0, 0, 0, 0]], [[1.5, 1, 0, 0], [3.7, 0, 0, 0]]
    row = rooms.row(second, first)
    assert row['rmse [m]'] == pytest.approx(2.6)
    assert row['delta1'] == 0.5
    assert row['rmse more than the first [m]'] == pytest.approx(0.6)
    assert row['± [m]'] == pytest.approx(1.96 * np.std([0.5, 0.7], ddof=1) / math.sqrt(2))


@pytest.mark.parametrize(('features', 'read_out', 'smoothing', 'upsampling'), [
    ('maskclip', 'mean', 0.0, 'bilinear'), ('attnpool', 'argmax', 1.0, 'centered')])
def test_what_is_read_out_is_the_estimators_own(features, read_out, smoothing, upsampling):
    config = DepthConfig.from_yaml(report.ROOT / 'config/demo.yaml')
    model = readouts.Model(config, features)
    seen = rooms.view(rooms.TEST, 0.0)
    model.temperature = 6.0
    found = model.depth(model.see(seen), read_out, smoothing, upsampling, seen)
    estimator = model.estimator
    estimator.reconfigure(estimator.config.replace(
        temperature=6.0, read_out=read_out, smoothing=smoothing, upsampling=upsampling))
    np.testing.assert_allclose(found, estimator.predict(seen.rgb).depth, atol=1e-4)


def test_crops_are_what_clip_says_of_every_cell_alone():
    weights = clip_standin.tiny_state_dict()
    encoder = crops.CropFeatures(weights)
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
