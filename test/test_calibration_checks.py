# SPDX-License-Identifier: Apache-2.0
"""Recordings that something is wrong with are refused with their cause; good ones are not.

All twenty of each were tried with the demo model (docs/calibration.md).
"""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rosbags')

from drives import SABOTAGE, camera_of_width, drive, sensed

from depthclip_ros.calibrate.checks import Comparison, Thumbnail, check, unit_doubt, views
from depthclip_ros.calibrate.recordings import gather


@pytest.fixture(scope='module')
def good():
    return drive(rooms=3, frames=36, step=0.3, seed=1, camera=camera_of_width(160))


def words(frames):
    """Depth as words might say it: the truth, coarse, and a little wrong."""
    rng = np.random.default_rng(0)
    return np.array([gather(f.depth, 6, 8) * rng.normal(1, 0.1, (6, 8)) for f in frames])


def judged(frames, said, trained=True, **options):
    measured = np.array([gather(frame.depth, 6, 8) for frame in frames])
    comparison = Comparison.of(measured, said[:len(frames)], trained=trained)
    return check([Thumbnail.of(frame) for frame in frames], comparison, **options)


@pytest.mark.parametrize('sensor', ['dense', 'lidar 16', 'lidar 1', 'kinect'])
def test_a_good_recording_is_accepted(good, sensor):
    assert judged(sensed(good, sensor), words(good)) == []


@pytest.mark.parametrize('name', SABOTAGE)
def test_a_sabotaged_recording_is_refused_with_its_cause(good, name):
    change, causes = SABOTAGE[name]
    refused = judged(change(good, np.random.default_rng(0)), words(good))
    assert {refusal.cause for refusal in refused} <= causes
    assert refused
    for refusal in refused:
        assert refusal.message.endswith(('.', '?', ')'))


def test_depth_of_another_drive_is_refused(good):
    other = drive(rooms=3, frames=36, step=0.3, seed=4)
    mixed = [replace(f, depth=o.depth) for f, o in zip(good, other, strict=True)]
    assert [r.cause for r in judged(mixed, words(good))] == ['nothing in common']


@pytest.mark.parametrize('count', [0, 3])
def test_of_next_to_no_frames_nothing_is_said_of_views(good, count):
    assert [r.cause for r in check([Thumbnail.of(f) for f in good[:count]])] == ['too few frames']


def test_dark_images_are_refused(good):
    dark = [replace(f, rgb=np.full_like(f.rgb, 3)) for f in good]
    assert [r.cause for r in judged(dark, words(good))] == ['blank images']


def test_a_shuffled_scan_is_refused_by_the_words(good):
    scan = sensed(good, 'lidar 1')
    order = np.random.default_rng(3).permutation(len(scan))
    mixed = [replace(f, depth=scan[p].depth) for f, p in zip(scan, order, strict=True)]
    assert [r.cause for r in judged(mixed, words(good))] == ['nothing in common']


def test_the_offset_is_told(good):
    late = SABOTAGE['0.4 s late'][0](good, None)  # by two frames, which are 0.3 s apart here
    refusal, = judged(late, words(good))
    assert '0.6 s later' in refusal.message
    refusal, = judged(late, words(good), timed=False)
    assert '2 places later' in refusal.message


def test_the_likely_unit_is_told(good):
    refusal, = judged([replace(f, depth=f.depth / 10) for f in good], words(good))
    assert 'centimetres, read as millimetres' in refusal.message
    assert '--depth-unit' in refusal.message


@pytest.mark.parametrize('factor', [0.2, 5])
def test_depth_that_may_be_right_elsewhere_is_doubted_and_used(good, factor):
    """A hall or a table top; or, five times as far, TUM's files."""
    other = [replace(f, depth=np.float32(factor) * f.depth) for f in good]
    thumbnails = [Thumbnail.of(frame) for frame in other]
    measured = np.array([gather(frame.depth, 6, 8) for frame in other])
    compared = Comparison.of(measured, words(good), trained=True)
    assert check(thumbnails, compared) == []
    doubt = unit_doubt(thumbnails, compared)
    assert '--depth-unit' in doubt
    assert ("TUM's files" in doubt) == (factor == 5)
    assert unit_doubt(thumbnails, compared._replace(trained=False)) == ''
    assert unit_doubt(thumbnails, Comparison.of(
        measured / np.float32(factor), words(good), trained=True)) == ''


def test_a_given_unit_is_believed_where_it_is_possible(good):
    far = [replace(f, depth=10 * f.depth) for f in good]
    assert [r.cause for r in judged(far, words(good))] == ['wrong unit']
    assert judged(far, words(good), unit_given=True) == []
    assert judged(far, words(good), trained=False) == []
    impossible = [replace(f, depth=1000 * f.depth) for f in good]
    assert [r.cause for r in judged(impossible, words(good), unit_given=True)] == ['wrong unit']


def test_views_are_counted(good):
    thumbnails = [Thumbnail.of(frame) for frame in good]
    assert views(thumbnails) > 10
    assert views(thumbnails[:1] * 5) == 1
