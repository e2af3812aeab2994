# SPDX-License-Identifier: Apache-2.0
"""tools/foreign_robots.py: its worlds, its scores, and a whole run in small."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))

import foreign_robots as robots

from depthclip_ros.calibrate.recordings import Moment
from depthclip_ros.sim import KINDS


def test_the_same_room_and_moment_are_the_same_frame():
    first, again = (robots.unseen(robots.ROBOTS['D'], 1)[0] for _ in range(2))
    assert again.rgb.tobytes() == first.rgb.tobytes()
    assert again.depth.tobytes() == first.depth.tobytes()
    assert first.camera.focal_length() == pytest.approx(0.5)
    dark, = robots.unseen(robots.ROBOTS['E'], 1)
    assert dark.rgb.mean() < 0.8 * first.rgb.mean()
    assert dark.camera.distortion_model == 'plumb_bob'


def test_rooms_are_of_every_kind_and_of_one_use_only(monkeypatch):
    monkeypatch.setattr(robots, 'rendered', lambda robot, room, seconds: room)
    robot = robots.ROBOTS['C']
    test = robots.unseen(robot, 300)
    assert [KINDS[room % len(KINDS)] for room in test[:5]] == list(KINDS)
    used = [set(test)] + [set(robots.drive(robot, number, 60, rooms))
                          for number, rooms in ((0, 5), (1, 10), (20, 5))]
    assert [len(rooms) for rooms in used] == [300, 5, 10, 5]
    assert len(set.union(*used)) == 320
    assert max(map(max, used)) < 1_000_000  # which the demo model was trained from on


def test_range_points_are_noisy_and_some_are_wrong():
    depth = np.full((240, 320), 2.0, np.float32)
    points = robots.range_points(depth, 3, count=1000)
    off = np.abs(np.log(points.z / 2))
    assert 0.02 < np.median(off) / 0.6745 < 0.04  # 3 %
    assert 0.06 < (off > 0.15).mean() <= 0.1


def test_scores_and_coverage():
    truth = np.random.default_rng(0).uniform(1, 9, (2, 100, 100)).astype(np.float32)
    flat = [SimpleNamespace(depth=np.full((100, 100), 2.0, np.float32))] * 2
    half = [frame.depth * factor for frame, factor in zip(flat, (1.2, 1.4), strict=True)]
    assert robots.row(flat, half) == pytest.approx(
        {'d1': 0.5, 'rmse [m]': 0.6, 'rel': 0.3}, rel=1e-5)  # one of them is within 1.25
    with pytest.raises(ValueError, match='not finite'):
        robots.row(flat, [depth * np.nan for depth in half])
    # Within 1.645 standard deviations: all of the first, of the second what is nearer than 5 m.
    found = robots.coverage(
        [SimpleNamespace(depth=true, moment=Moment(name=kind))
         for true, kind in zip(truth, ('office', 'bedroom'), strict=True)],
        [SimpleNamespace(depth=true + off, stddev=lambda: np.full((100, 100), 0.5))
         for true, off in zip(truth, (0, truth[1] > 5), strict=True)])
    assert found['all'] == pytest.approx(0.75, abs=0.01)
    assert found['by kind of room'] == {
        'bedroom': pytest.approx(0.5, abs=0.02), 'office': 1.0}
    assert found['by decile of depth'][:4] == [1.0] * 4
    assert found['by decile of depth'][-1] < 0.3


@pytest.mark.nightly
def test_the_script_runs_in_small(tmp_path, monkeypatch):
    for name in 'CDE':
        monkeypatch.delitem(robots.PARTS, f'robot {name}')
    out = tmp_path / 'out'
    monkeypatch.setattr(sys, 'argv', ['foreign_robots.py', '--tiny', '--out', str(out)])
    robots.main()
    results = json.loads((out / 'robots.json').read_text(encoding='utf-8'))
    assert set(results) == set(robots.PARTS)
    rows = results['robot B']['measured']['rows']
    assert rows['focal length']['rmse [m]'] < rows['zero-shot']['rmse [m]']
    text = (out / 'robots.md').read_text(encoding='utf-8')
    assert text == robots.filled(text, results)
    assert f'| B | {rows["zero-shot"]["rmse [m]"]:.3f} |' in text
    assert '| zero-shot | without |' in (out / 'notes' / 'robots.md').read_text(encoding='utf-8')
