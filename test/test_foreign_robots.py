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

from depthclip_ros.sim import KINDS


def test_the_same_shots_are_the_same_frames_whether_rendered_or_kept(tmp_path):
    shots = robots.unseen(robots.ROBOTS['D'], 1)
    first, kept, again = (robots.rendered(shots, tmp_path / name) for name in 'aab')
    assert len(list((tmp_path / 'a').iterdir())) == 1
    for other in (kept, again):
        assert other.rgb.tobytes() == first.rgb.tobytes()
        assert other.depth.tobytes() == first.depth.tobytes()
    assert first.rgb.shape == (1, 240, 320, 3)
    assert first.camera.focal_length() == pytest.approx(0.5)
    dark = robots.rendered(robots.unseen(robots.ROBOTS['E'], 1), tmp_path)
    assert dark.rgb.mean() < 0.8 * first.rgb.mean()


def test_rooms_are_of_every_kind_and_of_one_use_only():
    robot = robots.ROBOTS['C']
    test = robots.unseen(robot, 300)
    assert [robots.kind_of(shot.room) for shot in test[:5]] == list(KINDS)
    used = [{shot.room for shot in test}] + [
        {shot.room for shot in robots.drive(robot, number, rooms, 60)}
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
    assert not np.array_equal(points.u, robots.range_points(depth, 4, count=1000).u)


def test_scores_are_means_over_images_and_ratios_are_paired():
    truth = np.full((4, 24, 32), 2.0, np.float32)
    factors = np.array([1.1, 1.2, 1.4, 1.48], np.float32)[:, None, None]
    base = robots.rmse_of(truth, truth * factors)
    assert base.mean() == pytest.approx(0.59, rel=1e-5)
    half = robots.row(truth, truth * (1 + (factors - 1) / 2), base)
    assert half['of base'] == pytest.approx(0.5, rel=1e-5)
    assert half['of base, 95 %'] == pytest.approx([0.5, 0.5], rel=1e-5)
    assert half['d1'] == 1.0
    whole = robots.row(truth, truth * factors, base)
    assert whole['d1'] == 0.5
    mean = robots.mean_of([half, whole])
    assert mean['of base'] == pytest.approx(0.75)
    assert mean['of base, least and most'] == pytest.approx([0.5, 1.0])
    with pytest.raises(ValueError, match='not finite'):
        robots.scores(truth, truth * np.nan)


def test_coverage_is_counted_in_all_by_kind_and_by_decile():
    truth = np.random.default_rng(0).uniform(1, 9, (2, 100, 100)).astype(np.float32)
    # Within 1.645 standard deviations: all of the first, of the second what is nearer than 5 m.
    predictions = [SimpleNamespace(depth=true + off, stddev=lambda: np.full((100, 100), 0.5))
                   for true, off in zip(truth, (0, truth[1] > 5), strict=True)]
    found = robots.coverage(SimpleNamespace(
        depth=truth, rooms=[KINDS.index('office'), KINDS.index('bedroom')]), predictions)
    assert found['all'] == pytest.approx(0.75, abs=0.01)
    assert found['by kind of room'] == {
        'bedroom': pytest.approx(0.5, abs=0.02), 'office': 1.0}
    assert found['by decile of true depth'][:4] == [1.0] * 4
    assert found['by decile of true depth'][6:] == pytest.approx([0.5] * 4, abs=0.1)


@pytest.mark.nightly
def test_the_script_runs_in_small(tmp_path, monkeypatch):
    for name in 'CDE':
        monkeypatch.delitem(robots.PARTS, f'robot {name}')
    page = tmp_path / 'out' / 'robots.md'
    page.parent.mkdir()
    page.write_text(''.join(f'<!-- {name} -->\n<!-- end of {name} -->\n' for name in (
        'robots', 'anchors', 'goals')))
    monkeypatch.setattr(sys, 'argv', [
        'foreign_robots.py', '--tiny', '--processes', '1', '--cache', str(tmp_path / 'cache'),
        '--out', str(tmp_path / 'out')])
    robots.main()
    results = json.loads((tmp_path / 'out' / 'robots.json').read_text(encoding='utf-8'))
    assert set(results) == set(robots.PARTS)
    rows = results['robot B']['measured']['rows']
    assert rows['focal length']['rmse [m]'] < rows['zero-shot']['rmse [m]']
    text = page.read_text(encoding='utf-8')
    assert text == robots.filled(text, results, ('robots', 'anchors'))
    assert f'| B | {rows["zero-shot"]["rmse [m]"]:.3f} |' in text
    assert text.count('\n| --- ') == 2
    assert '| lenses |' in (page.parent / 'notes' / 'robots.md').read_text(encoding='utf-8')
    assert (tmp_path / 'out' / 'robots' / 'methods.png').stat().st_size > 1000
