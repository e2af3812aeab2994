# SPDX-License-Identifier: Apache-2.0
"""tools/foreign_robots.py: its worlds, its scores, and a whole run in small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import foreign_report as report  # noqa: E402
import foreign_robots  # noqa: E402
import foreign_rows as rows  # noqa: E402
from foreign_bench import Bench, range_points  # noqa: E402
from foreign_scores import Coverage, Sheet, mean_of  # noqa: E402
from foreign_worlds import LOW, ROBOTS, Studio, drive, kind_of, unseen  # noqa: E402

from depthclip_ros.sim import KINDS, Scene  # noqa: E402

# Worlds --------------------------------------------------------------------------------------


def test_the_same_shots_are_the_same_frames_whether_rendered_or_kept(tmp_path):
    shots = unseen(ROBOTS['D'], 2)
    first = Studio(tmp_path / 'a', 1).frames(shots)
    kept = Studio(tmp_path / 'a', 1).frames(shots)
    again = Studio(tmp_path / 'b', 1).frames(shots)
    assert len(list((tmp_path / 'a').iterdir())) == 1
    for other in (kept, again):
        assert other.rgb.tobytes() == first.rgb.tobytes()
        assert other.depth.tobytes() == first.depth.tobytes()
    assert first.rgb.shape == (2, 240, 320, 3)
    assert first.camera.focal_length() == pytest.approx(0.5)


def test_a_frame_of_another_robot_is_another_one(tmp_path):
    studio = Studio(tmp_path, 1)
    frames = {name: studio.frames(unseen(robot, 1)) for name, robot in ROBOTS.items()}
    assert len({f.rgb.tobytes() for f in frames.values()}) == len(ROBOTS)
    assert frames['E'].rgb.mean() < 0.6 * frames['A'].rgb.mean()


def test_rooms_are_of_every_kind_and_of_one_use_only():
    test = unseen(ROBOTS['C'], 300)
    assert [kind_of(shot.room) for shot in test[:5]] == list(KINDS)
    used = [{shot.room for shot in test}] + [
        {shot.room for shot in drive(ROBOTS['C'], number, rooms, 60)}
        for number, rooms in ((0, 5), (1, 10), (20, 5))]
    assert [len(rooms) for rooms in used] == [300, 5, 10, 5]
    assert len(set.union(*used)) == 320
    assert max(map(max, used)) < 1_000_000  # which the demo model was trained from on


def test_a_low_camera_stands_beside_the_furniture(tmp_path):
    for shot in unseen(ROBOTS['C'], 100):
        path = rows_path(shot)
        x, y, z = path.pose(shot.seconds)[:3, 3]
        assert Scene.generate(kind_of(shot.room), shot.room).clearance(x, y, 0, z + 0.1) > 0.1


def rows_path(shot):
    from depthclip_ros.sim import trajectory
    return trajectory(Scene.generate(kind_of(shot.room), shot.room), shot.room, LOW)


def test_range_points_are_noisy_and_some_are_wrong():
    depth = np.full((240, 320), 2.0, np.float32)
    points = range_points(depth, 3, outliers=0.1, count=1000)
    off = np.abs(np.log(points.z / 2))
    assert 0.02 < np.median(off) / 0.6745 < 0.04  # 3 %
    assert 0.06 < (off > 0.15).mean() <= 0.1
    assert not np.array_equal(points.u, range_points(depth, 4, count=1000).u)


# Scores --------------------------------------------------------------------------------------


def test_scores_are_means_over_images_and_ratios_are_paired():
    truth = np.full((4, 24, 32), 2.0, np.float32)
    sheet = Sheet(truth)
    factors = np.array([1.1, 1.2, 1.4, 1.48], np.float32)[:, None, None]
    sheet.add('base', truth * factors)
    sheet.add('half', truth * (1 + (factors - 1) / 2))
    assert sheet.metric('base') == pytest.approx(0.59, rel=1e-5)
    row = sheet.row('half', 'base')
    assert row['of base'] == pytest.approx(0.5, rel=1e-5)
    assert row['of base, 95 %'] == pytest.approx([0.5, 0.5], rel=1e-5)
    assert row['d1'] == 1.0
    assert sheet.row('base', 'base')['d1'] == 0.5
    with pytest.raises(ValueError, match='not finite'):
        sheet.add('bad', truth * np.nan)


def test_the_mean_of_rows_tells_their_range():
    mean = mean_of([{'of base': 0.4, 'of base, 95 %': [0.3, 0.5]},
                    {'of base': 0.6, 'of base, 95 %': [0.5, 0.7]}])
    assert mean['of base'] == pytest.approx(0.5)
    assert list(mean['of base, 95 %']) == pytest.approx([0.4, 0.6])
    assert mean['of base, least and most'] == [0.4, 0.6]


def test_coverage_is_counted_in_all_by_kind_and_by_decile():
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 9, (2, 100, 100)).astype(np.float32)
    covered = Coverage(np.array(['office', 'bedroom']))
    assert covered.summary() == {}
    # Within 1.645 standard deviations: all of the first, of the second what is nearer than 5 m.
    for true, off in zip(truth, (np.zeros((100, 100)), truth[1] > 5), strict=True):
        covered.add(true + off.astype(np.float32), np.full((100, 100), 1.0), true, 2.0)
    found = covered.summary()
    assert found['all'] == pytest.approx(0.75, abs=0.01)
    assert found['by kind of room'] == {
        'bedroom': pytest.approx(0.5, abs=0.02), 'office': 1.0}
    assert found['by decile of true depth'][:4] == [1.0] * 4
    assert found['by decile of true depth'][6:] == pytest.approx([0.5] * 4, abs=0.05)
    covered.add(truth[0], None, truth[0])
    assert len(covered.shares) == 2


# The whole ----------------------------------------------------------------------------------


@pytest.mark.nightly
def test_the_script_runs_in_small(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, 'ROBOTS', {name: ROBOTS[name] for name in 'AB'})
    for name in 'CDE':
        monkeypatch.delitem(foreign_robots.PARTS, f'robot {name}')
    fit = Bench._fit
    fitted = {}

    def once(self, frames, variant, *, shuffled, focal):
        """The same calibration for all that have one: it is tested elsewhere, and takes long."""
        if focal not in fitted:
            fitted[focal] = fit(self, frames, variant, shuffled=shuffled, focal=focal)
        return fitted[focal]

    monkeypatch.setattr(Bench, '_fit', once)
    monkeypatch.setattr(sys, 'argv', [
        'foreign_robots.py', '--tiny', '--processes', '1', '--cache', str(tmp_path / 'cache'),
        '--out', str(tmp_path / 'out')])
    foreign_robots.main()
    results = json.loads((tmp_path / 'out' / 'robots.json').read_text(encoding='utf-8'))
    assert set(results) == set(foreign_robots.PARTS)
    assert all(part['machine'] and part['cores'] and part['versions']
               for part in results.values())
    b = results['robot B']['measured']
    assert b['rows']['focal length']['rmse [m]'] < b['rows']['zero-shot']['rmse [m]']
    page = (tmp_path / 'out' / 'notes/robots.md').read_text(encoding='utf-8')
    assert page == report.filled(page, results)
    assert '| A |  | zero-shot |' in page
