# SPDX-License-Identifier: Apache-2.0
"""Recordings that something is wrong with are refused with their cause; good ones are not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rosbags')

from drives import SABOTAGE, camera_of_width, drive, sensed

from depthclip_ros.calibrate.bags import open_recording
from depthclip_ros.calibrate.checks import Comparison, Thumbnail, check, unit_doubt, views
from depthclip_ros.calibrate.recordings import Options
from depthclip_ros.calibrate.registration import downsample
from depthclip_ros.sources.camera_info import Intrinsics

KITCHEN = Path(__file__).parents[1] / '..' / 'shared' / 'field' / 'real' / 'kitchen'


@pytest.fixture(scope='module')
def good():
    return drive(rooms=3, frames=36, step=0.3, seed=1, camera=camera_of_width(160))


def compared(frames, good):
    """Depth beside words that say the truth of the good frames, coarse, and a little wrong."""
    rng = np.random.default_rng(0)
    said = [downsample(f.depth, 6, 8) * rng.normal(1, 0.1, (6, 8)) for f in good[:len(frames)]]
    return Comparison.of(np.array([downsample(f.depth, 6, 8) for f in frames]), np.array(said))


def judged(frames, good, **options):
    return check([Thumbnail.of(frame) for frame in frames], compared(frames, good), **options)


def causes(*about, **options):
    return [refusal.cause for refusal in judged(*about, **options)]


def scaled(frames, factor):
    return [replace(f, depth=np.float32(factor) * f.depth) for f in frames]


@pytest.mark.parametrize('sensor', ['dense', 'lidar 16', 'lidar 1', 'kinect', 'coarse'])
def test_a_good_recording_is_accepted(good, sensor):
    assert judged(sensed(good, sensor), good) == []


@pytest.mark.parametrize('name', SABOTAGE)
def test_a_sabotaged_recording_is_refused_with_its_cause(good, name):
    change, cause = SABOTAGE[name]
    assert causes(change(good), good) == [cause]


@pytest.mark.skipif(not KITCHEN.is_dir(), reason='shared/field is not here')
def test_a_real_kinect_is_refused_until_its_depth_is_registered():
    """Its depth camera has 585 pixels of focal length, its colour camera 525."""
    recording = open_recording(KITCHEN)
    frames = [frame for _, frame in recording.read(range(0, len(recording), 4))]
    refusal, = check([Thumbnail.of(frame) for frame in frames], timed=recording.timed)
    assert refusal.cause == 'not registered'
    assert 'enlarged 0.89 times' in refusal.message
    assert '585' in refusal.message
    registered = open_recording(KITCHEN, Options(depth_camera=Intrinsics.pinhole(
        640, 480, (585.0, 0.0, 320.0, 0.0, 585.0, 240.0, 0.0, 0.0, 1.0))))
    frames = [frame for _, frame in registered.read(range(0, len(registered), 4))]
    assert check([Thumbnail.of(frame) for frame in frames], timed=registered.timed) == []


def test_views_are_counted(good):
    thumbnails = [Thumbnail.of(frame) for frame in good]
    assert views(thumbnails) > 10
    assert views(thumbnails[:1] * 5) == 1
    for count in (0, 3):  # of next to no frames nothing is said of them
        assert [r.cause for r in check(thumbnails[:count])] == ['too few frames']


def test_offset_and_unit_are_told(good):
    late = SABOTAGE['0.4 s late'][0](good)  # by two frames, which are 0.3 s apart here
    for timed, said, remedy in ((True, '0.6 s later', 'clocks'),
                                (False, '2 places later', 'Name them by their times')):
        refusal, = judged(late, good, timed=timed)
        assert said in refusal.message
        assert remedy in refusal.message
    refusal, = judged(scaled(good, 0.1), good)
    assert '--depth-unit' in refusal.message


@pytest.mark.parametrize('factor', [0.2, 5])
def test_depth_that_may_be_right_elsewhere_is_doubted_and_used(good, factor):
    """A hall or a table top, farther or nearer than any words; or, five times, TUM's files."""
    other = scaled(good, factor)
    thumbnails = [Thumbnail.of(frame) for frame in other]
    assert check(thumbnails, compared(other, good)) == []
    assert '--depth-unit' in unit_doubt(thumbnails, compared(other, good))
    assert unit_doubt(thumbnails, compared(good, good)) == ''


@pytest.mark.parametrize('unit', [5000, 4000, 6553.5, 256, 10000, 100])
@pytest.mark.parametrize('off', [0.9, 1, 1.1])
def test_files_of_another_usual_unit_are_refused_with_the_option(good, unit, off):
    """16 bits of TUM's, of Replica, of KITTI, read as millimetres; words are 10 % off, too."""
    other = scaled(good, off * unit / 1000)
    refusal, = judged(other, good, integers=True)
    assert refusal.cause == 'wrong unit'
    assert f'--depth-unit {1 / unit:.6g}' in refusal.message
    assert judged(other, good, integers=True, unit_given=True) == []
    assert judged(scaled(good, off), good, integers=True) == []


def test_a_given_unit_is_believed_where_it_is_possible(good):
    far = scaled(good, 10)
    assert causes(far, good) == ['wrong unit']
    assert judged(far, good, unit_given=True) == []
    assert check([Thumbnail.of(frame) for frame in far]) == []  # untrained words say nothing
    assert causes(scaled(good, 1000), good, unit_given=True) == ['wrong unit']
