# SPDX-License-Identifier: Apache-2.0
"""Recordings to calibrate from: what is read of bags and folders, and what is wrong with them."""

import gc
import os
import weakref
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags')

from drives import BagWriter, camera_of_width, drive, write_camera, write_drive, write_folder

from depthclip_ros.calibrate.bags import depth_topic, language_depth_topic, open_recording
from depthclip_ros.calibrate.recordings import (
    Moment,
    Options,
    RecordingError,
    blocks,
    evenly_spaced,
    moments_in_time,
    nearest_pairs,
)
from depthclip_ros.calibrate.registration import resample
from depthclip_ros.core.errors import DepthClipError
from depthclip_ros.sim import SimCamera
from depthclip_ros.sources.bag import BagTopic, camera_topics
from depthclip_ros.sources.camera_info import Intrinsics

RGBD = Path(__file__).parents[1] / '..' / 'shared' / 'bags' / 'rgbd_raw'


@pytest.fixture(scope='module')
def frames():
    return drive(rooms=2, frames=8, camera=camera_of_width(96), seed=3)


def read(recording):
    return [frame for _, frame in recording.read(range(len(recording)))]


def bag(path, frames, *about, **more):
    return open_recording(write_drive(path / 'bag', frames, *about, **more))


def same(found, expected, tolerance=0.0):
    for frame, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(frame.rgb, other.rgb)
        np.testing.assert_allclose(frame.depth, other.depth, atol=tolerance)
        np.testing.assert_allclose(frame.camera.K, other.camera.K)


@pytest.mark.parametrize(('depth', 'tolerance', 'compressed'), [
    ('32FC1', 0, False), ('16UC1', 1e-3, True), ('compressedDepth', 1e-3, False)])
def test_a_bag_of_depth_images(frames, tmp_path, depth, tolerance, compressed):
    recording = bag(tmp_path, frames, depth, compressed=compressed)
    assert [moment.sequence for moment in recording.moments] == [0] * 4 + [1] * 4
    same(read(recording), frames, tolerance)
    assert [m.time for m in recording.moments] == pytest.approx([f.moment.time for f in frames])
    assert not recording.failures
    assert [position for position, _ in recording.read([6, 1])] == [1, 6]
    same([frame for _, frame in recording.read([6, 1])], [frames[1], frames[6]], tolerance)


def test_clouds_and_scans_are_projected_through_tf(frames, tmp_path):
    for frame, expected in zip(read(bag(tmp_path, frames, 'cloud')), frames, strict=True):
        known = np.isfinite(frame.depth)
        assert 0.15 < known.mean() <= 0.25  # a quarter of the rows
        np.testing.assert_allclose(frame.depth[known], expected.depth[known], rtol=1e-4)
    wrong = read(bag(tmp_path / 'wrong', frames, 'cloud', turned=10))
    assert max(np.nanmax(np.abs(f.depth / e.depth - 1))
               for f, e in zip(wrong, frames, strict=True)) > 0.1
    ratios = []
    for frame, expected in zip(read(bag(tmp_path / 'scan', frames, 'scan')), frames, strict=True):
        rows, columns = np.nonzero(np.isfinite(frame.depth))
        assert len(rows) > 40
        # The scanner is 5 cm above the camera, what it sees at 1 m, 4 of 75 pixels higher.
        assert 15 < rows.min() <= rows.max() < 40
        ratios.extend(frame.depth[rows, columns]
                      / expected.depth[round(expected.camera.K[1, 2]), columns])
    assert np.median(np.abs(np.log(ratios))) < 0.02


def test_a_depth_camera_of_its_own_is_registered(tmp_path):
    """It stands 10 cm to the right of the colour camera: a post at 2 m is at another column."""
    frame = drive(rooms=1, frames=1, camera=camera_of_width(96))[0]
    post = np.full((48, 64), 20.0, np.float32)
    post[:, 30:34] = 2.0  # through the optical axis of the depth camera
    found, = read(bag(tmp_path, [replace(frame, depth=post)],
                      own_info=SimCamera(64, 48, 50, 50, 31.5, 23.5)))
    columns = np.nonzero(found.depth < 3)[1]
    K = found.camera.K
    assert columns.mean() == pytest.approx(K[0, 2] + K[0, 0] * 0.1 / 2, abs=0.6)
    assert np.nanmax(found.depth) == 20


def test_what_cannot_be_brought_onto_the_image(frames, tmp_path):
    with pytest.raises(RecordingError, match='a camera_info is missing'):
        read(bag(tmp_path / '1', frames, own_info=camera_of_width(96), info=False))
    recording = bag(tmp_path / '2', frames, 'cloud', tf=False)
    assert read(recording) == []
    (reason, count), = recording.failures.items()
    assert "does not connect 'lidar' with" in reason
    assert count == len(frames)
    without = write_drive(tmp_path / '3', frames, 'cloud', info=False)
    with pytest.raises(RecordingError, match='--camera-info'):
        read(open_recording(without))
    given = open_recording(without, Options(camera=frames[0].camera))
    assert np.isfinite(read(given)[0].depth).any()


def test_depth_goes_to_the_image_nearest_in_time(frames, tmp_path):
    late = write_drive(tmp_path / 'late', frames, late=0.06)
    with pytest.raises(RecordingError, match=r'within 0\.05 s.*--tolerance'):
        open_recording(late)
    assert len(open_recording(late, Options(tolerance=0.1))) == len(frames)
    found = read(bag(tmp_path, frames, late=0.19))
    np.testing.assert_array_equal(found[0].rgb, frames[1].rgb)
    np.testing.assert_array_equal(found[0].depth, frames[0].depth)
    same(read(bag(tmp_path / 'unstamped', frames, stamped=False)), frames)  # as received


@pytest.mark.parametrize(('every', 'late'), [(2, 0.0), (2, 0.005), (3, -0.005)])
def test_slower_depth_goes_to_one_image_each_and_no_frame_is_held_back(tmp_path, every, late):
    frames = [replace(frame, moment=Moment(number / 30, 0, f'{number}')) for number, frame
              in enumerate(drive(rooms=1, frames=24, camera=camera_of_width(32)))]
    recording = bag(tmp_path, frames, late=late, depth_every=every)
    measured = frames[::every]
    assert recording.failures == {'images without depth at their time': 24 - len(measured)}
    given = []
    for (_, found), frame in zip(recording.read(range(len(recording))), measured, strict=True):
        np.testing.assert_array_equal(found.rgb, frame.rgb)
        np.testing.assert_array_equal(found.depth, frame.depth)
        given.append(weakref.ref(found))
        gc.collect()
        assert sum(one() is not None for one in given) <= 2


@pytest.mark.parametrize(('depths', 'pairs'), [
    ([0, 10, 20], [(0, 0), (1, 1), (2, 2)]), ([9, 11], [(1, 0)]), ([4, 5], [(0, 0), (1, 1)]),
    ([-3, 3, 22], [(0, 0), (2, 2)]), ([50], []), ([], [])])
def test_pairs_are_the_nearest_and_each_is_one_of_its_kind(depths, pairs):
    assert nearest_pairs([0, 10, 20], depths, 6) == pairs
    assert nearest_pairs(depths, [0, 10, 20], 6) == [(j, i) for i, j in pairs]


@pytest.mark.parametrize('mark', ['', 'noted', 'words'])
def test_the_packages_own_depth_is_known_by_its_mark_and_not_by_its_name(frames, tmp_path, mark):
    """A sensor's /depth/image is read; what this package has written measures nothing."""
    path = tmp_path / 'bag'
    writer = BagWriter(path)
    with writer.writer:
        if mark == 'noted':
            writer.writer.set_custom_data('depthclip_topics', '/depth/image /points')
        for frame in frames:
            time = round(frame.moment.time * 1e9) + 10 ** 18
            header = writer.messages.header(time, 'optical')
            K = frame.camera.K
            info = writer.messages.camera_info(header, SimCamera(
                96, 72, K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
            for topic, message in (
                    ('/camera/camera_info', info), ('/depth/camera_info', info),
                    ('/camera/image_raw', writer.messages.image(header, 'rgb8', frame.rgb)),
                    ('/depth/image', writer.messages.image(header, '32FC1', 2 * frame.depth)),
                    *([('/depth/words', writer.messages.image(header, 'rgb8', frame.rgb))]
                      if mark == 'words' else []),
                    ('/points', writer.cloud(header, np.ones((5, 3)))),
                    ('/camera/stereo', writer.messages.image(header, '32FC1', frame.depth))):
                writer.write(topic, message, time)
    assert language_depth_topic(path) == ('/depth/image' if mark else '')
    if mark:
        same(read(open_recording(path)), frames)
    else:  # the one that is named so
        same(read(open_recording(path)), [replace(f, depth=2 * f.depth) for f in frames])
    asked = open_recording(path, Options(depth='/depth/image', image='/camera/image_raw'))
    assert asked.topics == ('/camera/image_raw', '/depth/image')


def test_what_an_image_topic_holds_its_first_message_says(frames, tmp_path):
    """Depth of a stereo camera that is not called so, and colour of a camera that is."""
    path = write_drive(tmp_path / 'bag', frames, rename={
        '/camera/depth/image_raw': '/oak/stereo/image_raw',
        '/camera/color/image_raw': '/depth_camera/image_raw',
        '/camera/color/camera_info': '/depth_camera/camera_info'})
    same(read(open_recording(path)), frames)


def test_sensors_of_types_that_are_not_read_are_named():
    for ask in (lambda topics: depth_topic(topics, '/image'),
                lambda topics: camera_topics(topics, '', '--image TOPIC')):
        with pytest.raises(DepthClipError, match=r'/livox \(livox_ros_driver2/msg/CustomMsg\)'):
            ask([BagTopic('/livox', 'livox_ros_driver2/msg/CustomMsg', 5)])


def test_which_topic_measures_depth(frames, tmp_path):
    def found(*names, wanted=''):
        kinds = {'points': 'sensor_msgs/msg/PointCloud2', 'scan': 'sensor_msgs/msg/LaserScan'}
        return depth_topic([
            BagTopic(name, kinds.get(name.rpartition('/')[2], 'sensor_msgs/msg/Image'), 5)
            for name in ('/color/image', *names)], '/color/image', wanted).name
    assert found('/depth/image', '/scan', '/points') == '/depth/image'
    assert found('/scan', '/points') == '/points'
    assert found('/depth/image', '/aligned_depth/image') == '/aligned_depth/image'
    assert found('/depth/image', '/scan', wanted='scan') == '/scan'
    with pytest.raises(RecordingError, match='several sources of depth: /a/depth, /b/depth'):
        found('/a/depth', '/b/depth')
    with pytest.raises(RecordingError, match=r"no depth on 'depth'.*/scan"):
        found('/scan', wanted='depth')
    with pytest.raises(RecordingError, match='no depth: record'):
        bag(tmp_path, frames, '')


@pytest.mark.parametrize('damage', ['half', 'empty', 'no record'])
def test_damaged_bags_end_with_a_message(frames, tmp_path, damage):
    path = write_drive(tmp_path / 'bag', frames)
    file = next(path.glob('*.mcap'))
    data = file.read_bytes()
    file.write_bytes({'half': data[:len(data) // 2], 'empty': b'',
                      'no record': data[:16] + bytes(len(data) - 32) + data[-16:]}[damage])
    with pytest.raises(DepthClipError, match='copy or record it again') as error:
        read(open_recording(path))
    assert str(path) in str(error.value)


def test_random_damage_is_a_message_or_fewer_frames(frames, tmp_path):
    path = write_drive(tmp_path / 'bag', frames[:3], 'cloud')
    file = next(path.glob('*.mcap'))
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    said, read_on = [], []
    for _ in range(25):
        data = whole.copy()
        data[rng.integers(0, len(data), 30)] = rng.integers(0, 256, 30)
        file.write_bytes(data.tobytes())
        try:
            read_on.append(len(read(open_recording(path))))
        except DepthClipError as error:
            said.append(str(error))
    assert said  # both kinds of damage were among them
    assert all(str(path) in text for text in said)
    assert read_on
    assert set(read_on) <= {1, 2, 3}


@pytest.mark.parametrize(('npy', 'nested'), [(False, True), (True, False)])
def test_a_folder(frames, tmp_path, npy, nested):
    recording = open_recording(write_folder(tmp_path, frames * 2, npy=npy, nested=nested))
    assert not recording.timed
    names = [moment.name for moment in recording.moments]
    if not nested:
        assert names == [str(number) for number in range(16)]  # numbers sort as such
    assert [f'room{m.sequence}/' if nested else '' for m in recording.moments] == [
        name.removesuffix(name.rpartition('/')[2]) for name in names]
    same(read(recording), [frames[int(name.rpartition('/')[2]) % 8] for name in names], 1e-3)
    assert not recording.failures


def test_a_folder_of_times_and_another_unit(frames, tmp_path):
    """As TUM's: names are seconds, image and depth at other times."""
    write_folder(tmp_path, frames)
    for part, late in (('rgb', 0.0), ('depth', 0.013)):
        for number, frame in enumerate(frames):
            file = tmp_path / part / f'{number}.png'
            file.rename(file.with_stem(f'{1305031102.1 + frame.moment.time + late:.6f}'))
    recording = open_recording(tmp_path)
    assert recording.timed
    assert [m.sequence for m in recording.moments] == [0] * 4 + [1] * 4
    same(read(recording), frames, 1e-3)
    with pytest.raises(RecordingError, match='none of 8 images'):
        open_recording(tmp_path, Options(tolerance=0.01))
    tenths = [replace(frame, depth=frame.depth / 10) for frame in frames]
    for path in (tmp_path, write_drive(tmp_path / 'bag', frames, '16UC1')):
        same(read(open_recording(path, Options(unit=0.0001))), tenths, 1e-3)


def layout(path, frames, image, depth, scale=1000):
    """Pictures and depth maps under the names that `image` and `depth` give for a number."""
    for number, frame in enumerate(frames):
        stored = np.nan_to_num(scale * frame.depth).astype(np.uint16)
        for name, pixels in (image(number), frame.rgb[..., ::-1]), (depth(number), stored):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path / name), pixels)
    return path


@pytest.mark.parametrize(('image', 'depth', 'timed'), [
    ('color/{0}.png', 'depth/{0}.png', False),  # ScanNet
    ('images/{0}.png', 'depth/{0}.tif', False),  # Polycam
    ('seq-01/frame-{0:06}.color.png', 'seq-01/frame-{0:06}.depth.png', False),  # 7-Scenes
    ('results/frame{0:06}.png', 'results/depth{0:06}.png', False),  # Replica
    ('rgb/rgb_{0:05}.png', 'depth/depth_{0:05}.png', False),
    ('rgb/{0}-{1:012}.png', 'depth/{0}-{2:012}.png', False),  # Redwood
    ('rgb/{0}.png', 'depth/{0:04}.png', False),
    ('rgb/14036365{1:011}.png', 'depth/14036365{2:011}.png', True),  # EuRoC: nanoseconds
    ('rgb/14036365{3:05}.png', 'depth/14036365{3:05}.png', True),  # milliseconds
])
def test_names_that_data_sets_and_phones_give(frames, tmp_path, image, depth, timed):
    """Beside them is what other programs leave: an archive's shadows, poses."""
    def name(form):
        return lambda n: form.format(n, 20_000_000 * n, 20_000_000 * n + 4_000_000, 200 * n)
    layout(tmp_path, frames, name(image), name(depth))
    first = tmp_path / name(image)(0)
    first.with_name(f'._{first.name}').write_bytes(b'\0\5\x16\7')
    first.with_suffix('.pose.txt').write_text('1 0 0 0')
    recording = open_recording(tmp_path)
    assert recording.timed is timed
    for frame, expected in zip(read(recording), frames, strict=True):
        np.testing.assert_array_equal(frame.rgb, expected.rgb)
        np.testing.assert_allclose(frame.depth, expected.depth, atol=1e-3)
    assert not recording.failures


@pytest.mark.parametrize(('image', 'depth'), [
    ('RGB/{}.png', 'Depth/{}.png'), ('color/{}.png', 'aligned_depth/{}.png'),
    ('color/{}.png', 'depth_registered/{}.png'), ('{}_color.png', '{}_aligned_depth_to_color.png'),
    ('rgb/rgb_{}.png', 'depth/aligned_depth_{}.png')])
def test_names_of_folders(frames, tmp_path, image, depth):
    layout(tmp_path, frames, image.format, depth.format)
    for frame, expected in zip(read(open_recording(tmp_path)), frames, strict=True):
        np.testing.assert_array_equal(frame.rgb, expected.rgb)
        np.testing.assert_allclose(frame.depth, expected.depth, atol=1e-3)


def test_depth_goes_to_images_by_the_times_behind_their_numbers(frames, tmp_path):
    """As Redwood's: both begin at 0, and each camera counts its own frames, of which some lack."""
    layout(tmp_path, frames, lambda n: f'rgb/{n + 1:07}-{33369 * n:012}.png',
           lambda n: f'depth/{n + 1 - (n > 2):07}-{(33369 * n + 4000) * (n > 0):012}.png')
    (tmp_path / 'depth' / f'{3:07}-{2 * 33369 + 4000:012}.png').unlink()
    recording = open_recording(tmp_path)
    assert recording.failures == {'images without depth': 1}
    for frame, expected in zip(read(recording), frames[:2] + frames[3:], strict=True):
        np.testing.assert_array_equal(frame.rgb, expected.rgb)
        np.testing.assert_allclose(frame.depth, expected.depth, atol=1e-3)


@pytest.mark.parametrize('form', ['{}.{:09}', '{}.{}'])
def test_nanoseconds_behind_the_seconds_with_and_without_zeros(frames, tmp_path, form):
    def name(part, late):
        return lambda n: f'{part}/' + form.format(
            1738133056 + (150 * n + late) // 1000, (150 * n + late) % 1000 * 10 ** 6 + n) + '.png'
    layout(tmp_path, frames, name('rgb', 30), name('depth', 50))
    recording = open_recording(tmp_path)
    assert [m.time for m in recording.moments] == pytest.approx([0.15 * n for n in range(8)])
    for frame, expected in zip(read(recording), frames, strict=True):
        np.testing.assert_array_equal(frame.rgb, expected.rgb)
        np.testing.assert_allclose(frame.depth, expected.depth, atol=1e-3)
    assert len(recording.notes) == (form == '{}.{}')


def test_two_files_of_one_frame_are_refused(frames, tmp_path):
    write_folder(tmp_path, frames)
    (tmp_path / 'rgb' / '0.jpg').write_bytes((tmp_path / 'rgb' / '0.png').read_bytes())
    with pytest.raises(RecordingError, match=r"0\.jpg.*0\.png.*'0'|0\.png.*0\.jpg.*'0'"):
        open_recording(tmp_path)


def test_two_depth_maps_of_one_image_are_refused(frames, tmp_path):
    layout(tmp_path, frames, 'color_{}.png'.format, 'depth_{}.png'.format)
    layout(tmp_path, frames, 'color_{}.png'.format, 'aligned_depth_{}.png'.format)
    with pytest.raises(RecordingError, match='are of one frame'):
        open_recording(tmp_path)


def turned_jpeg(rgb, orientation):
    """A JPEG whose EXIF asks for a turn."""
    data = cv2.imencode('.jpg', rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    exif = (b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0' + bytes([orientation])
            + bytes(7))
    return data[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + data[2:]


@pytest.mark.parametrize('orientation', [3, 6])
def test_pictures_lie_as_they_are_stored_like_their_depth(frames, tmp_path, orientation):
    write_folder(tmp_path, frames[:2])
    for number, frame in enumerate(frames[:2]):
        (tmp_path / 'rgb' / f'{number}.png').unlink()
        (tmp_path / 'rgb' / f'{number}.jpg').write_bytes(turned_jpeg(frame.rgb, orientation))
    for frame, expected in zip(read(open_recording(tmp_path)), frames[:2], strict=True):
        assert np.abs(frame.rgb.astype(int) - expected.rgb).mean() < 10


def clipped(frames, share, value):
    """The farthest pixels of every frame at the sensor's largest value, or told so by 65535."""
    limit = np.quantile(np.stack([frame.depth for frame in frames]), 1 - share)
    return [replace(f, depth=np.where(f.depth > limit, np.float32(value), f.depth))
            for f in frames], limit


@pytest.mark.parametrize('form', ['32FC1', '16UC1', 'compressedDepth', 'npy', 'png'])
@pytest.mark.parametrize(('share', 'value'), [(0.35, 10.0), (0.08, 12.0), (0.3, 65.535)])
def test_where_a_sensor_clips_is_no_measurement(frames, tmp_path, form, share, value):
    changed, limit = clipped(frames, share, value)
    path = write_folder(tmp_path / 'r', changed, npy=form == 'npy') if form in ('npy', 'png') \
        else write_drive(tmp_path / 'r', changed, form)
    recording = open_recording(path)
    for frame, expected in zip(read(recording), frames, strict=True):
        near = expected.depth <= limit
        np.testing.assert_array_equal(np.isfinite(frame.depth), near)
        np.testing.assert_allclose(frame.depth[near], expected.depth[near], atol=1.1e-3)
    said = value != 65.535 or form in ('32FC1', 'npy')  # by 16 bits 65535 says it without a rule
    assert len(recording.notes) == said
    assert all(f'{value:g} m' in note for note in recording.notes)


def test_a_few_pixels_at_the_largest_value_stay(frames, tmp_path):
    changed, _ = clipped(frames, 0.005, 10.0)
    recording = bag(tmp_path, changed)
    same(read(recording), changed)
    assert recording.notes == []


@pytest.mark.parametrize('form', ['bag', 'folder'])
def test_depth_of_another_shape_is_not_stretched(frames, tmp_path, form):
    """Colour of 16:9 beside depth of 4:3, and a picture that lies on its side."""
    wide = [replace(f, rgb=np.ascontiguousarray(f.rgb[9:63])) for f in frames]
    tall = [replace(f, rgb=np.ascontiguousarray(f.rgb.transpose(1, 0, 2))) for f in frames]
    slightly = [replace(f, depth=f.depth[:70]) for f in frames]  # 53 of 40 pixels, for 4:3
    for name, changed, count, word in (('wide', wide, 0, '96x54'), ('tall', tall, 0, 'side'),
                                       ('slightly', slightly, len(frames), '')):
        path = tmp_path / name
        recording = bag(path, changed, info=False) if form == 'bag' else \
            open_recording(layout(path, changed, 'rgb/{}.png'.format, 'depth/{}.png'.format))
        assert len(read(recording)) == count
        assert all(word in reason and '96x72' in reason for reason in recording.failures)
        assert sum(recording.failures.values()) == len(frames) - count


def test_a_lens_of_one_camera_alone_is_seen_in_where_depth_lies(frames, tmp_path):
    """The colour image has a lens, the registered depth beside it has none, and the same K."""
    def lens(topic, message):
        return replace(message, d=np.array([-0.3, 0.09, 0, 0, 0])) \
            if topic == '/camera/color/camera_info' else message
    own = camera_of_width(96)
    ramp = np.broadcast_to(1 + 0.05 * np.arange(96, dtype=np.float32), (72, 96))
    frame = replace(frames[0], depth=np.ascontiguousarray(ramp))
    path = write_drive(tmp_path / 'bag', [frame], own_info=own, edit=lambda topic, message: (
        replace(message, header=replace(message.header, frame_id='optical'))
        if topic.startswith('/camera/depth') else lens(topic, message)))
    found, = read(open_recording(path))
    u, v = np.meshgrid(np.arange(8, 96, 8), np.arange(8, 72, 8))
    columns = frame.camera.project(found.camera.rays(u, v))[..., 0]
    assert np.isfinite(found.depth[v, u]).mean() > 0.5
    assert np.nanmax(np.abs(found.depth[v, u] - (1 + 0.05 * columns))) < 0.06
    assert np.nanmax(np.abs(columns - u)) > 5  # where it would lie if it was left as it is


@pytest.mark.parametrize(('topic', 'option', 'matrix'), [
    ('/stereo/image_rect', None, 'p'), ('/stereo/rectified/depth', None, 'p'),
    ('/camera/depth/image_raw', None, 'k'), ('/camera/depth/image_raw', True, 'p'),
    ('/stereo/depth_rect', False, 'k'), ('/direct/depth', None, 'k')])
def test_each_camera_is_rectified_or_not_by_itself(frames, tmp_path, topic, option, matrix):
    """A stereo camera's camera_info has the raw K, and the P of its rectified depth."""
    own, names = camera_of_width(96), []

    def stereo(name, message):
        if not name.startswith('/camera/depth'):
            return message
        if name.endswith('camera_info'):
            P = message.p.copy()
            P[[0, 5]] *= 0.5
            message = replace(message, p=P)
        names.append(name)
        return message
    writer_topic = {'/camera/depth/image_raw': topic,
                    '/camera/depth/camera_info': topic.rpartition('/')[0] + '/camera_info'}
    path = write_drive(tmp_path / 'bag', frames[:1], own_info=own, edit=stereo,
                       rename=writer_topic)
    found, = read(open_recording(path, Options(depth=topic, image='/camera/color/image_raw',
                                               depth_rectified=option)))
    # By P it is a wider lens, whose pixels are a quarter of those of the colour image.
    known = np.isfinite(found.depth).mean()
    assert (known < 0.4) == (matrix == 'p'), known


@pytest.mark.parametrize(('depth', 'size'), [((36, 48), None), ((36, 47), '47x36')])
def test_depth_that_its_driver_has_decimated(frames, tmp_path, depth, size):
    """Its camera_info is still that of the full size."""
    def decimated(topic, message):
        if topic != '/camera/depth/image_raw':
            return message
        pixels = message.data.view(np.float32).reshape(72, 96)[::2, ::2][:depth[0], :depth[1]]
        return replace(message, height=depth[0], width=depth[1], step=4 * depth[1],
                       data=np.ascontiguousarray(pixels).reshape(-1).view(np.uint8))
    recording = bag(tmp_path, frames[:1], own_info=camera_of_width(96), edit=decimated)
    found = read(recording)
    assert len(found) == (size is None)
    if size is None:
        # 10 cm to the right, so that a part is beyond the image; else as many as before.
        assert np.isfinite(found[0].depth).sum() > 0.6 * 36 * 48
        assert '48x36' in recording.notes[0]
    else:
        (reason, _), = recording.failures.items()
        assert '/camera/depth/camera_info' in reason
        assert size in reason


@pytest.mark.parametrize('kind', ['cloud', 'scan'])
def test_a_unit_counts_for_points_as_for_pixels(frames, tmp_path, kind):
    path = write_drive(tmp_path / 'bag', frames[:1], kind)
    metres, = read(open_recording(path))
    halves, = read(open_recording(path, Options(unit=0.5)))
    assert np.nanmedian(halves.depth) == pytest.approx(0.5 * np.nanmedian(metres.depth), rel=0.1)


def test_frame_ids_with_a_slash_are_the_same_frames(frames, tmp_path):
    def slash(topic, message):
        return replace(message, header=replace(message.header, frame_id='/optical')) \
            if topic == '/camera/depth/image_raw' else message
    same(read(open_recording(write_drive(tmp_path / 'bag', frames, edit=slash))), frames)


def test_what_is_wrong_with_files_is_counted(frames, tmp_path):
    write_folder(tmp_path, frames, npy=True)
    (tmp_path / 'rgb' / '0.png').write_bytes(b'\x89PNG and no more')
    (tmp_path / 'depth' / '1.npy').write_bytes(b'')
    np.save(tmp_path / 'depth' / '2.npy', np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / 'depth' / '3.npy', np.zeros((2, 2), int))
    (tmp_path / 'depth' / '4.npy').unlink()
    cv2.imwrite(str(tmp_path / 'depth' / '4.png'), np.zeros((5, 5, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'rgb' / '5.png'), np.zeros((5, 5, 3), np.uint8))
    (tmp_path / 'depth' / '6.npy').unlink()
    recording = open_recording(tmp_path)
    for _ in range(2):  # the checks read it, and the fit once more: what is wrong counts once
        assert len(read(recording)) == 1
    assert sum(recording.failures.values()) == 7
    assert recording.failures['images without depth'] == 1


def test_what_a_file_is_instead_is_said(frames, tmp_path):
    """What macOS writes beside files counts for nothing."""
    write_folder(tmp_path, frames)
    (tmp_path / 'depth' / '._0.png').write_bytes(b'\0\5\x16\7')
    (tmp_path / 'rgb' / '._0.png').write_bytes(b'\0\5\x16\7')
    (tmp_path / 'depth' / '1.png').write_bytes(b'version https://git-lfs.github.com/spec/v1\n')
    (tmp_path / 'rgb' / '2.png').write_bytes(b'<!DOCTYPE html><html>login')
    recording = open_recording(tmp_path)
    assert len(read(recording)) == len(frames) - 2
    said = ' '.join(recording.failures)
    assert 'a git-lfs pointer' in said
    assert 'a web page' in said
    assert sum(recording.failures.values()) == 2


@pytest.mark.parametrize(('suffix', 'write'), [
    ('.npz', lambda path, depth: np.savez(path, depth[None])),
    ('.npy', lambda path, depth: np.save(path, depth[..., None])),
    ('.pfm', lambda path, depth: cv2.imwrite(str(path), depth)),
    ('.tiff', lambda path, depth: cv2.imwrite(str(path), depth))])
def test_forms_of_floating_point(frames, tmp_path, suffix, write):
    write_folder(tmp_path, frames)
    for number, frame in enumerate(frames):
        (tmp_path / 'depth' / f'{number}.png').unlink()
        write(tmp_path / 'depth' / f'{number}{suffix}', frame.depth.astype(np.float32))
    same(read(open_recording(tmp_path)), frames)


@pytest.mark.parametrize('kind', [np.uint16, np.int32, np.int64])
def test_arrays_of_whole_numbers_need_their_unit(frames, tmp_path, kind):
    write_folder(tmp_path, frames, npy=True)
    for number, frame in enumerate(frames):
        np.save(tmp_path / 'depth' / f'{number}.npy', np.rint(1000 * frame.depth).astype(kind))
    same(read(open_recording(tmp_path, Options(unit=0.001))), frames, 1e-3)
    recording = open_recording(tmp_path)
    assert read(recording) == []
    assert 'unit' in str(recording.failures)


def with_other_depth(frames, camera):
    """The frames with depth as another camera in the same place measures it, and that camera."""
    other = drive(rooms=2, frames=8, camera=camera, seed=3)
    return [replace(frame, depth=seen.depth) for frame, seen in zip(
        frames, other, strict=True)], other[0].camera


OTHER_CAMERAS = pytest.mark.parametrize('camera', [
    SimCamera(96, 72, 91.0, 91.0, 46.0, 37.0),
    SimCamera(120, 100, 60.0, 60.0, 59.5, 49.5)], ids=['longer', 'another shape'])


@OTHER_CAMERAS
@pytest.mark.parametrize('way', ['beside', 'option'])
def test_depth_of_another_camera_comes_onto_the_images(frames, tmp_path, camera, way):
    recorded, model = with_other_depth(frames, camera)
    folder = write_folder(tmp_path / 'drive', recorded)
    file = write_camera((folder if way == 'beside' else tmp_path) / 'depth_camera.yaml', model)
    recording = open_recording(folder, Options(
        depth_camera=None if way == 'beside' else Intrinsics.from_yaml(file)))
    note, = (note for note in recording.notes if 'in one place' in note)
    assert '25 mm' in note
    for frame, truth in zip(read(recording), frames, strict=True):
        assert frame.depth.shape == truth.depth.shape
        known = np.isfinite(frame.depth)
        assert known.mean() > 0.3
        ratio = frame.depth[known] / truth.depth[known]
        assert np.median(np.abs(ratio - 1)) < 0.01
        assert np.mean(np.abs(ratio - 1) < 0.05) > 0.9


def test_depth_of_a_camera_of_the_same_view_stays_as_it_is(frames, tmp_path):
    folder = write_folder(tmp_path, frames)
    write_camera(folder / 'depth_camera.yaml', frames[0].camera)
    recording = open_recording(folder)
    same(read(recording), frames, 1e-3)
    assert recording.notes == []


def test_a_depth_camera_without_the_images_own_is_refused(frames, tmp_path):
    folder = write_folder(tmp_path, frames)
    (folder / 'camera.yaml').rename(folder / 'depth_camera.yaml')
    with pytest.raises(RecordingError, match=r'camera\.yaml or with --camera-info'):
        open_recording(folder)


@pytest.mark.parametrize('form', ['bag', 'folder'])
def test_a_depth_camera_is_of_the_depth_that_is_not_registered(frames, tmp_path, form):
    """Both are there: registered depth would be projected a second time."""
    recorded, model = with_other_depth(frames, SimCamera(96, 72, 91.0, 91.0, 46.0, 37.0))
    options = Options(depth_camera=Intrinsics.from_yaml(
        write_camera(tmp_path / 'depth.yaml', model)))
    path = tmp_path / 'drive'
    if form == 'folder':
        write_folder(path, recorded)
        layout(path, frames, 'rgb/{}.png'.format, 'aligned_depth/{}.png'.format)
    else:
        registered = '/camera/aligned_depth_to_color/image_raw'
        writer = BagWriter(path)
        with writer.writer:
            for frame, other in zip(frames, recorded, strict=True):
                time = round(frame.moment.time * 1e9) + 10 ** 18
                header = writer.messages.header(time, 'optical')
                K = frame.camera.K
                for topic, message in (
                        ('/camera/color/camera_info', writer.messages.camera_info(
                            header, SimCamera(96, 72, K[0, 0], K[1, 1], K[0, 2], K[1, 2]))),
                        ('/camera/color/image_raw',
                         writer.messages.image(header, 'rgb8', frame.rgb)),
                        (registered, writer.messages.image(header, '32FC1', frame.depth)),
                        ('/camera/depth/image_rect_raw',
                         writer.messages.image(header, '32FC1', other.depth))):
                    writer.write(topic, message, time)
    same(read(open_recording(path)), frames, 1e-3)  # what is registered already
    for frame, truth in zip(read(open_recording(path, options)), frames, strict=True):
        known = np.isfinite(frame.depth)
        assert 0.3 < known.mean() < 0.9
        assert np.mean(np.abs(frame.depth[known] / truth.depth[known] - 1) < 0.02) > 0.9


@OTHER_CAMERAS
def test_the_depth_camera_of_a_bag_without_its_camera_info(frames, tmp_path, camera):
    recorded, model = with_other_depth(frames, camera)
    source = write_drive(tmp_path / 'bag', recorded, '16UC1')
    file = write_camera(tmp_path / 'depth.yaml', model)
    recording = open_recording(source, Options(
        depth_camera=Intrinsics.from_yaml(file)))
    for frame, truth in zip(read(recording), frames, strict=True):
        known = np.isfinite(frame.depth)
        assert known.mean() > 0.3
        assert np.median(np.abs(frame.depth[known] / truth.depth[known] - 1)) < 0.01
        np.testing.assert_allclose(frame.camera.K, truth.camera.K)


def test_a_depth_camera_of_a_cloud_is_refused(frames, tmp_path):
    source = write_drive(tmp_path / 'bag', frames, 'cloud')
    file = write_camera(tmp_path / 'depth.yaml', frames[0].camera)
    with pytest.raises(RecordingError, match='PointCloud2'):
        open_recording(source, Options(depth_camera=Intrinsics.from_yaml(file)))


def test_names_that_are_no_utf8(frames, tmp_path):
    folder = write_folder(tmp_path / 'a', frames).rename(tmp_path / os.fsdecode(b'caf\xe9'))
    for path in [*folder.glob('*/*.png')]:
        path.rename(path.with_name(os.fsdecode(b'gar\xe7on_') + path.name))
    same(read(open_recording(folder)), frames, 1e-3)


def test_folders_that_are_none(tmp_path):
    (tmp_path / 'rgb').mkdir()
    with pytest.raises(RecordingError, match='in rgb/ and depth maps of the same names in depth/'):
        open_recording(tmp_path)
    (tmp_path / 'depth').mkdir()
    with pytest.raises(RecordingError, match=r'rgb holds no picture .* but nothing'):
        open_recording(tmp_path)
    for part in ('rgb', 'depth'):
        (tmp_path / part / '0.png').touch()
    (tmp_path / 'camera.yaml').write_text('image_width: many')
    with pytest.raises(DepthClipError, match='image_width'):
        open_recording(tmp_path)


@pytest.mark.parametrize('suffix', ['.exr', '.jpg', '.depth', '.zip'])
def test_a_folder_of_other_files_is_named_with_them(frames, tmp_path, suffix):
    write_folder(tmp_path, frames)
    for file in (tmp_path / 'depth').iterdir():
        file.rename(file.with_suffix(suffix))
    with pytest.raises(RecordingError, match=rf'depth holds no depth map .* but 8 \{suffix}'):
        open_recording(tmp_path)


def stray_scanner(path):
    (path / 'rgb').rename(path / 'depth.old')
    (path / 'rgb.mp4').write_bytes(b'\0\0\0\x20ftypisom')


def deeper(path):
    for part in ('rgb', 'depth'):
        (path / 'desk').mkdir(exist_ok=True)
        (path / part).rename(path / 'desk' / part)


def otherwise_called(path):
    (path / 'rgb').rename(path / 'lowres_wide')
    (path / 'depth').rename(path / 'lowres_depth')


def packed(path):
    for part in ('rgb', 'depth'):
        (path / part).rename(path / f'old_{part}')
        (path / f'{part}.zip').write_bytes(b'PK\3\4')
        for file in (path / f'old_{part}').iterdir():
            file.unlink()


def record_3d(path):
    (path / 'rgb').rename(path / 'rgbd')
    for file in (path / 'depth').iterdir():
        file.rename(path / 'rgbd' / f'{file.stem}.depth')
    (path / 'depth').rmdir()


@pytest.mark.parametrize(('change', 'said'), [
    (record_3d, r'rgbd/\d\.depth is not read.*export'),
    (stray_scanner, r'rgb\.mp4 is a video.*ffmpeg'), (deeper, r'depth are in desk.*path'),
    (otherwise_called, r'lowres_depth.*lowres_wide.*rename'), (packed, r'rgb\.zip.*unpack')])
def test_layouts_that_are_read_after_a_step(frames, tmp_path, change, said):
    change(write_folder(tmp_path, frames))
    with pytest.raises(RecordingError, match=said):
        open_recording(tmp_path)


@pytest.mark.parametrize(('name', 'data'), [
    ('a.svo', b'SVO2'), ('a.oni', b'NI10'), ('a.sens', b'\4\0\0\0'), ('a.zip', b'PK\3\4'),
    ('a.mkv', b'\x1a\x45\xdf\xa3')])
def test_recordings_of_other_programs_are_to_be_exported(tmp_path, name, data):
    (tmp_path / name).write_bytes(data + bytes(60))
    with pytest.raises(RecordingError, match=rf'{name}.*into rgb/.*into depth/') as error:
        open_recording(tmp_path / name)
    assert 'v7.3' not in str(error.value)  # it is no damaged copy of NYU's file


@pytest.mark.parametrize('way', ['beside', 'option', 'bag'])
def test_a_camera_of_images_of_another_size_is_named_as_a_file(frames, tmp_path, way):
    folder = write_drive(tmp_path / 'drive', frames) if way == 'bag' else \
        write_folder(tmp_path / 'drive', frames)
    camera = frames[0].camera.scaled(192, 144)
    if way == 'beside':
        write_camera(folder / 'camera.yaml', camera)
    recording = open_recording(folder, Options(camera=None if way == 'beside' else camera))
    assert read(recording) == []
    (said, _), = recording.failures.items()
    assert 'camera.yaml' in said or '--camera-info' in said
    assert '192x144' in said
    assert '96x72' in said
    assert 'topic' not in said


def test_blocks_are_rooms_or_pieces_of_time():
    many = [Moment(float(i), i // 12) for i in range(60)]
    assert blocks(many) == [i // 12 for i in range(60)]
    assert blocks(many[:1]) == [0]
    assert blocks([Moment(float(i)) for i in range(60)]) == [i // 6 for i in range(60)]
    two = blocks([Moment(float(i), int(i >= 45)) for i in range(60)])
    assert len(set(two)) == 10
    assert not set(two[:45]) & set(two[45:])


def test_sequences_end_at_pauses():
    for times, sequences in (
            ([7.0], [0]), ([0, 0.1, 0.2, 5, 5.1, 5.2, 20], [0, 0, 0, 1, 1, 1, 2]),
            ([0, 1.9, 3.8, 5.7, 7.6], [0] * 5)):
        moments = moments_in_time(times, [''] * len(times))
        assert [moment.sequence for moment in moments] == sequences
        assert [moment.time for moment in moments] == [time - times[0] for time in times]


def test_even_choice_and_resampling():
    assert evenly_spaced(5, 10) == [0, 1, 2, 3, 4]
    assert evenly_spaced(101, 5) == [0, 25, 50, 75, 100]
    depth = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(resample(depth, 6, 8)[::2, ::2], depth)


@pytest.mark.skipif(not RGBD.is_dir(), reason='shared/bags is not here')
def test_a_real_bag():
    recording = open_recording(RGBD)
    found = read(recording)
    assert len(found) == 9
    assert not recording.failures
    for frame in found:
        assert frame.rgb.shape == (480, 640, 3)
        assert 1.8 < np.nanmedian(frame.depth) < 1.9
        assert frame.camera.focal_length() == pytest.approx(525 / 640)
