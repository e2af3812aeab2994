# SPDX-License-Identifier: Apache-2.0
"""Pictures from files, videos and the built-in rooms, and the process that publishes them."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml

from depthclip_ros.core.errors import CameraInfoError, ImageError
from depthclip_ros.sources import pictures
from depthclip_ros.sources.camera_info import BUILTIN_HFOV, Intrinsics, intrinsics_of

CALIBRATION = {
    'image_width': 64, 'image_height': 48, 'camera_name': 'head',
    'camera_matrix': {'rows': 3, 'cols': 3, 'data': [60, 0, 31.5, 0, 61, 23.5, 0, 0, 1]},
    'distortion_model': 'plumb_bob',
    'distortion_coefficients': {'rows': 1, 'cols': 5, 'data': [0.1, -0.2, 0.0, 0.0, 0.05]},
    'rectification_matrix': {'rows': 3, 'cols': 3, 'data': [1, 0, 0, 0, 1, 0, 0, 0, 1]},
    'projection_matrix': {'rows': 3, 'cols': 4, 'data': [59, 0, 31, 0, 0, 60, 23, 0, 0, 0, 1, 0]},
}


def picture(seed, height=48, width=64):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one text file."""
    for seed, name in enumerate(('b.png', 'a.png', 'c.PNG')):
        (tmp_path / name).write_bytes(cv2.imencode('.png', picture(seed))[1].tobytes())
    (tmp_path / 'notes.txt').write_text('no picture')
    return tmp_path


# Files -------------------------------------------------------------------------------------

def test_folders_are_expanded_by_name_and_files_keep_their_order(folder):
    files = pictures.picture_files([folder / 'b.png', folder])
    assert [path.name for path in files] == ['b.png', 'a.png', 'b.png', 'c.PNG']


def test_results_of_predict_beside_their_pictures_are_no_pictures(folder, capsys):
    for name in ('a_depth', 'a_depth_color', 'c_patches', 'd_depth', 'b_color_new'):
        (folder / f'{name}.png').touch()
    files = pictures.picture_files([folder])
    assert [path.stem for path in files] == ['a', 'b', 'b_color_new', 'c', 'd_depth']
    assert capsys.readouterr().err.splitlines()[0] == \
        f'{folder}: 3 results of depthclip predict are left out.'
    assert pictures.picture_files([folder / 'a_depth.png']) == [folder / 'a_depth.png']


@pytest.mark.parametrize(('content', 'said'), [
    (b'', r'is no picture that can be read but empty \(0 bytes\)'),
    (b'garbage', 'is no picture that can be read but text that begins with "garbage"'),
    (b'\xff\xd8\xff\xe0 cut', 'is a JPEG picture that OpenCV .* cannot decode'),
    (b'\0\0\0\x18ftypmp42', 'is no picture that can be read but a video: depthclip demo --video')])
def test_what_is_no_picture_says_so(tmp_path, content, said):
    path = tmp_path / 'bad.jpg'
    with pytest.raises(ImageError, match='holds no picture'):
        pictures.picture_files([tmp_path])
    with pytest.raises(ImageError, match=r'bad\.jpg. is no image or folder'):
        pictures.picture_files([path])
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf'bad\.jpg: {said}'):
        pictures.read_picture(path)
    with pytest.raises(ImageError, match='None of the 1'):
        list(pictures.file_frames([path], lambda _: None))


def test_gray_and_alpha_become_three_channels(tmp_path):
    alpha = np.dstack([picture(1), picture(1)[..., :1]])
    for name, values in (('gray', picture(1)[..., 0]), ('alpha', alpha)):
        cv2.imwrite(str(tmp_path / f'{name}.png'), values)
        assert pictures.read_picture(tmp_path / f'{name}.png').shape == (48, 64, 3)


NAMES = ('latin\udce9', 'new\nline', '-o', '%04d 100%', "quote'$(x)`", 'tab\t\x1b[31m', 'L' * 251,
         '$^{$')


@pytest.mark.parametrize('name', NAMES)
def test_pictures_and_videos_have_any_name(tmp_path, name):
    (tmp_path / f'{name}.png').write_bytes(png(picture(1)))
    film(tmp_path / 'film.avi', (20, 120)).rename(tmp_path / f'{name}.avi')
    np.testing.assert_array_equal(pictures.read_picture(tmp_path / f'{name}.png'), picture(1))
    assert len(list(pictures.video_frames(tmp_path / f'{name}.avi'))) == 2


def png(values):
    return cv2.imencode('.png', values)[1].tobytes()


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
def test_of_sixteen_bits_those_count_that_are_used(tmp_path, suffix, bits):
    plain, path, said = picture(1), tmp_path / f'x{suffix}', []
    values = plain.astype(np.uint16) << bits - 8
    path.write_bytes(cv2.imencode(suffix, values)[1].tobytes())
    found = pictures.read_picture(path, notes=pictures.Notes(said.append))
    np.testing.assert_array_equal(found, plain)
    assert len(said) == (bits < 16)
    assert all(f'as a picture of {bits} bits' in text and str(values.max()) in text
               for text in said)


def test_grey_of_sixteen_bits_may_be_no_photograph(tmp_path):
    said = []
    (tmp_path / 'a.png').write_bytes(png(7000 + picture(1)[..., 0].astype(np.uint16)))
    (tmp_path / 'b.png').write_bytes(png(picture(1)[..., 0]))
    for name in 'aab':
        pictures.read_picture(tmp_path / f'{name}.png', notes=(notes := pictures.Notes(
            said.append)))
        notes.close()
    assert sum('depth or thermal picture?' in text for text in said) == 2
    assert any('7000 to 7255' in text for text in said)


def test_what_is_true_of_many_pictures_is_said_once_and_counted():
    said = []
    notes = pictures.Notes(said.append)
    for name in 'abc':
        notes.add(name, 'too dark', 'is too dark.')
    notes.add('c', 'too large', 'is too large.')
    assert said == ['a: is too dark.', 'c: is too large.']
    notes.close()
    assert said[2:] == ['too dark: 3 pictures in all']


@pytest.mark.parametrize('values', [
    picture(1).astype(np.float32) / 255, picture(1)[..., 0].astype(np.float32) / 50,
    picture(1)[..., 0].astype(np.float64)])
def test_floating_point_is_no_photograph(tmp_path, values):
    (tmp_path / 'a.tif').write_bytes(cv2.imencode('.tif', values)[1].tobytes())
    with pytest.raises(ImageError, match=f'holds {values.dtype}: a depth map'):
        pictures.read_picture(tmp_path / 'a.tif')


def test_of_several_pages_the_first_is_read_and_said(tmp_path):
    said = []
    assert cv2.imwritemulti(str(tmp_path / 'a.tif'), [picture(1, 12, 16), picture(2)])
    found = pictures.read_picture(tmp_path / 'a.tif', notes=pictures.Notes(said.append))
    np.testing.assert_array_equal(found, picture(1, 12, 16))
    assert ['several pages' in text and '16 x 12' in text for text in said] == [True]


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.tif'])
def test_no_memory_is_taken_for_what_a_file_claims(tmp_path, monkeypatch, suffix):
    data = cv2.imencode(suffix, picture(1))[1].tobytes()
    for order in ('>', '<'):  # width and height as they stand in the header
        for width, height in ((64, 48), (48, 64)):
            for kind in ('I', 'H'):
                small = struct.pack(f'{order}2{kind}', width, height)
                data = data.replace(small, struct.pack(f'{order}2{kind}', 50000, 50000), 1)
    if suffix == '.tif':  # tags 256 and 257, each a number of 16 bits
        for tag, size in ((256, 64), (257, 48)):
            data = data.replace(struct.pack('<HHIH', tag, 3, 1, size),
                                struct.pack('<HHIH', tag, 3, 1, 50000))
    (tmp_path / 'a.png').write_bytes(data)
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('decoded'))
    with pytest.raises(ImageError, match='50000 x 50000 pixels, and at most 100,000,000'):
        pictures.read_picture(tmp_path / 'a.png')


def test_too_many_pixels_of_any_format_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, 'MAX_PIXELS', 48 * 64 - 1)
    for suffix in ('.png', '.jpg', '.webp', '.bmp', '.tif', '.ppm', '.jp2'):
        path = tmp_path / f'a{suffix}'
        path.write_bytes(cv2.imencode(suffix, picture(1))[1].tobytes())
        with pytest.raises(ImageError, match='has 64 x 48 pixels'):
            pictures.read_picture(path)


def test_what_a_folder_holds_beside_pictures_is_counted(folder, capsys):
    for name in ('x.heic', 'y.HEIC', 'film.mp4', '._a.png', 'none'):
        (folder / name).touch()
    (folder / 'more.png').mkdir()
    assert [path.name for path in pictures.picture_files([folder])] == [
        'a.png', 'b.png', 'c.PNG']
    said = capsys.readouterr().err
    for text in ('2 .heic', '1 .mp4', '1 .txt', '1 ._* of macOS', '1 sub-folder',
                 '1 without a suffix'):
        assert text in said
    for name in ('a.png', 'b.png', 'c.PNG'):
        (folder / name).unlink()
    with pytest.raises(ImageError, match=r'holds no picture .* but .*2 \.heic'):
        pictures.picture_files([folder])


def film(path, levels):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48))
    for level in levels:
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return path


def test_a_video_that_ends_before_its_header_says_is_read_and_said(tmp_path):
    path, said = film(tmp_path / 'film.avi', range(0, 250, 5)), []
    whole = path.read_bytes()
    notes = pictures.Notes(said.append)
    assert len(list(pictures.video_frames(path, notes))) == 50
    assert not said
    path.write_bytes(whole[:len(whole) // 2])
    count = len(list(pictures.video_frames(path, notes)))
    assert 0 < count < 45
    assert [f'ends after {count} frames, of about 50' in text for text in said] == [True]


@pytest.mark.parametrize(('given', 'words'), [
    ('rtsp://192.0.2.1/live', 'is a stream'), ('http://192.0.2.1/a.mp4', 'is a stream'),
    ('frame_%04d.png', '--images FOLDER'), ('.', '--images FOLDER'), ('x' * 300, 'too long'),
    ('~nobody/film.mp4', 'no video at')])
def test_what_is_no_file_of_a_video_is_named(given, words):
    with pytest.raises(ImageError, match=words):
        next(pictures.video_frames(given))


def test_a_codec_that_opencv_lacks_is_named(tmp_path):
    path = str(tmp_path / 'film.mp4')
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 48))
    writer.write(picture(1))
    writer.release()
    data = (tmp_path / 'film.mp4').read_bytes()
    assert data.count(b'mp4v') == data.count(b'esds') == 1
    (tmp_path / 'film.mp4').write_bytes(data.replace(b'mp4v', b'av01').replace(b'esds', b'free'))
    with pytest.raises(ImageError, match=r'no frame of it \(AV1\).*libx264'):
        next(pictures.video_frames(path))


def test_video_frames_come_in_order(tmp_path):
    path = film(tmp_path / 'film.avi', (20, 120, 220))
    levels = [int(frame.mean()) for frame in pictures.video_frames(path)]
    assert levels == pytest.approx([20, 120, 220], abs=6)


def test_a_broken_video_and_an_absent_webcam_are_errors(tmp_path):
    (tmp_path / 'film.mp4').write_bytes(b'garbage' * 100)
    for frames, words in ((pictures.video_frames(tmp_path / 'film.mp4'), 'is no video but text'),
                          (pictures.video_frames(tmp_path / 'none.mp4'), 'no video at'),
                          (pictures.webcam_frames(97), 'Webcam 97 cannot be opened')):
        with pytest.raises(ImageError, match=words):
            next(frames)


def test_the_built_in_rooms_are_the_same_every_time_and_named(monkeypatch):
    from depthclip_ros.sim import KINDS, SimCamera, views
    monkeypatch.setattr(views, 'TOUR_FRAMES', 2)
    rooms = []
    camera = SimCamera().scaled(80, 60)
    frames, again = (views.tour(camera, say) for say in (rooms.append, lambda _: None))
    seen = [next(frames) for _ in range(2 * len(KINDS) + 1)]
    assert seen[0].shape == (60, 80, 3)
    assert all((next(again) == rgb).all() for rgb in seen)
    assert all(np.abs(a.astype(int) - b).mean() > 1 for a, b in itertools.pairwise(seen))
    assert rooms == [f'{kind}, seed {seed}' for seed, kind in enumerate([*KINDS, KINDS[0]])]


def test_without_a_source_the_pictures_are_rendered_rooms_with_a_true_camera_info():
    from depthclip_ros.core.camera import CameraModel
    from depthclip_ros.sim.views import SimConfig
    with publishing('--rate', 1000, '--wait') as (listener, process):
        listener.listen_until(lambda: len(listener.images) >= 12)
        process.send_signal(signal.SIGTERM)  # in the midst of rendering, since it never waits
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert 'image_source: bathroom, seed 0\nimage_source: bedroom, seed 1' in output
    assert 'GUESS' not in output
    camera = SimConfig().camera()
    np.testing.assert_allclose(CameraModel.from_info(listener.infos[0]).K, camera.matrix)
    expected = next(pictures.builtin_frames(lambda _: None))
    assert bytes(listener.images[0].data) == expected.tobytes()
    wide = next(pictures.builtin_frames(lambda _: None, 90.0))  # as --fov 90, which is published
    assert (wide != expected).any()


# Calibration -------------------------------------------------------------------------------

def test_a_field_of_view_reaches_from_edge_to_edge():
    camera = Intrinsics.from_fov(640, 480, 60.0)
    fx, cx, cy = camera.k[0], camera.k[2], camera.k[5]
    left, right = ((u - cx) / fx for u in (-0.5, 639.5))
    assert math.degrees(math.atan(right) - math.atan(left)) == pytest.approx(60.0)
    assert (cx, cy) == (319.5, 239.5)
    assert camera.k[4] == fx
    assert camera.p[:3] == camera.k[:3]


@pytest.mark.parametrize('fov', [0, -1, 180, float('nan')])
def test_an_impossible_field_of_view_is_refused(fov):
    with pytest.raises(CameraInfoError, match='field of view'):
        Intrinsics.from_fov(640, 480, fov)


def test_a_calibration_file_is_read(tmp_path):
    path = tmp_path / 'head.yaml'
    path.write_text(yaml.safe_dump(CALIBRATION))
    camera = Intrinsics.from_yaml(path)
    assert (camera.width, camera.height, camera.k[4], camera.p[0]) == (64, 48, 61.0, 59.0)
    assert camera.d == (0.1, -0.2, 0.0, 0.0, 0.05)
    assert intrinsics_of(camera, 64, 48) is camera
    with pytest.raises(CameraInfoError, match='64 x 48 pixels, but a picture has 640 x 480'):
        intrinsics_of(camera, 640, 480)


@pytest.mark.parametrize(('change', 'message'), [
    ({'image_width': 0}, 'image_width'), ({'camera_matrix': {'data': [1, 2]}}, 'camera_matrix'),
    ({'projection_matrix': {'data': [1]}}, 'projection_matrix'),
    ({'distortion_coefficients': {'data': ['x']}}, 'distortion_coefficients'),
    ({'image_height': 48.5}, 'image_height'), ({'camera_matrix': None}, 'no camera_matrix'),
    ('[1, 2]', 'image_width'), ('', 'image_width'), ('a: [', r'no YAML \(line 1\)'),
    ('\xff', 'no text'),
    ('# Camera intrinsics\n\n[image]\n\nwidth\n64\n', 'camera_calibration_parsers convert'),
    ('%YAML:1.0\n---\ncamera_matrix: !!opencv-matrix\n   rows: 3\n', 'FileStorage'),
    ('<opencv_storage><K type_id="opencv-matrix">', 'FileStorage'),
    ({'cam0': {'camera_model': 'pinhole', 'intrinsics': [1, 1, 1, 1]}}, 'Kalibr'),
    ('resolution: [752, 480]\nintrinsics: [458, 457, 367, 248]\n', 'Kalibr.*resolution'),
    ('{"width": 640, "height": 480, "intrinsic_matrix": [525, 0, 0, 0, 525, 0, 320, 240, 1]}',
     'Open3D.*columns'),
    ('{"intrinsic": {"width": 640, "intrinsic_matrix": [525, 0, 0, 0, 525, 0, 320, 240, 1]}}',
     'Open3D.*columns'),
    ('{"w": 720, "h": 960, "K": [700, 0, 0, 0, 700, 0, 360, 480, 1], "fps": 60}',
     'Record3D.*columns'),
    ('{"CalibrationInformation": {"Cameras": [{"SensorWidth": 1024}]}}',
     'Azure Kinect.*rational_polynomial'),
    ('%YAML:1.0\n\nCamera.fx: 517.3\nCamera.width: 640\n', r'ORB-SLAM.*Camera\.fx'),
    ('%YAML:1.0\n---\nCamera1.fx: 517.3\n', r'ORB-SLAM.*Camera\.fx'),
    ('{"w": 640, "h": 480, "fl_x": 500.0, "fl_y": 500.0, "cx": 320, "cy": 240}', 'fl_x'),
    ('{"fx": 599.6, "fy": 599.6, "ppx": 325.1, "ppy": 235.8, "width": 640}', 'ppx'),
    ('5.85e+02\t0\t320\n0\t5.85e+02\t240\n0\t0\t1\n', 'numbers alone.*size'),
    ('481.20 480.00 319.50 239.50\n', 'numbers alone.*size'),
    ('# ID MODEL WIDTH HEIGHT PARAMS[]\n1 PINHOLE 640 480 525 525 320 240\n', 'COLMAP'),
    ({'camera_matrix': {'data': [0.5, 0, 0.495, 0, 0.5, 0.495, 0, 0, 1]}},
     'camera_matrix.*in pixels'),
    ({'camera_matrix': {'data': [60, 0, 0, 0, 61, 0, 31, 23, 1]}}, 'camera_matrix.*transpose'),
    ({'camera_matrix': {'data': [60, 0, 31, 0, -61, 23, 0, 0, 1]}}, 'camera_matrix.*negative')])
def test_what_is_no_calibration_names_the_entry(tmp_path, change, message):
    path = tmp_path / 'head.yaml'
    path.write_text(change if isinstance(change, str) else yaml.safe_dump(CALIBRATION | change),
                    encoding='latin-1')
    with pytest.raises(CameraInfoError, match=rf'head\.yaml.*{message}'):
        Intrinsics.from_yaml(path)


@pytest.mark.parametrize('names', ['height width k d r p', 'height width K D R P'])
@pytest.mark.parametrize('missing', [False, True])
def test_a_camera_info_that_was_printed_is_a_calibration(tmp_path, names, missing):
    """As `ros2 topic echo --once` and `rostopic echo -n 1` print it."""
    kinds = ('image_height', 'image_width', 'camera_matrix', 'distortion_coefficients',
             'rectification_matrix', 'projection_matrix')
    values = [CALIBRATION[kind] for kind in kinds]
    printed = {name: value['data'] if isinstance(value, dict) else value
               for name, value in zip(names.split(), values, strict=True)}
    if missing:  # an uncalibrated camera has none
        printed[names.split()[3]] = []
    path = tmp_path / 'head.yaml'
    path.write_text(yaml.safe_dump({
        'header': {'frame_id': 'a', 'stamp': {'sec': 1, 'nanosec': 2}}, **printed,
        'distortion_model': CALIBRATION['distortion_model'], 'binning_x': 0, 'binning_y': 0,
        'roi': {'x_offset': 0, 'y_offset': 0, 'width': 0, 'height': 0, 'do_rectify': False},
    }) + '---\n')
    camera = Intrinsics.from_yaml(path)
    path.write_text(yaml.safe_dump(CALIBRATION))
    expected = Intrinsics.from_yaml(path)
    assert camera == (replace(expected, d=()) if missing else expected)


def test_a_printed_camera_info_of_a_part_of_its_sensor_is_refused(tmp_path):
    path = tmp_path / 'head.yaml'
    for more in ({'binning_x': 2}, {'roi': {'x_offset': 8, 'y_offset': 0, 'width': 32,
                                            'height': 48}}):
        path.write_text(yaml.safe_dump({
            'width': 64, 'height': 48, 'k': [60, 0, 31, 0, 61, 23, 0, 0, 1], 'd': [], **more}))
        with pytest.raises(CameraInfoError, match='binning or roi'):
            Intrinsics.from_yaml(path)


def test_what_a_calibration_may_leave_out_and_call_otherwise(tmp_path):
    path = tmp_path / 'head.yaml'
    others = {key: value for key, value in CALIBRATION.items() if key in (
        'image_width', 'image_height', 'camera_matrix')}

    def read(**more):
        path.write_text(yaml.safe_dump(others | more))
        return Intrinsics.from_yaml(path)

    bare = read()
    assert (bare.distortion_model, set(bare.d)) == ('plumb_bob', {0.0})
    assert (bare.r[::4], bare.p[:3], bare.p[5]) == ((1.0, 1.0, 1.0), bare.k[:3], bare.k[4])
    assert not bare.model().notices
    assert read(distortion_coefficients=[0.1, -0.2, 0.0, 0.0]).model().D.tolist() == [
        0.1, -0.2, 0.0, 0.0]  # a list alone, and no name
    named = read(camera_model='fisheye', distortion_coefficients={'data': [0.02, 0.01, 0, 0]})
    assert named.model().distortion_model == 'equidistant'
    assert read(camera_matrix=[[60, 0, 31.5], [0, 61, 23.5], [0, 0, 1]]).k == bare.k


def test_a_guessed_camera_leaves_depth_as_it_is():
    from depthclip_ros.core import DepthConfig
    guess = Intrinsics.from_fov(640, 480, BUILTIN_HFOV).model()
    assert guess.focal_length() / DepthConfig().reference_focal == pytest.approx(1, abs=1e-3)


# The process -------------------------------------------------------------------------------

class Listener:
    """Collects what a source publishes, in a context of its own."""

    def __init__(self, domain, *, reliable=True):
        import rclpy
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CameraInfo, Image
        self.images, self.infos = [], []
        self.context = rclpy.Context()
        rclpy.init(args=[], context=self.context, domain_id=domain)
        self.node = rclpy.create_node('listener', context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        qos = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE if reliable
                         else ReliabilityPolicy.BEST_EFFORT)
        self.node.create_subscription(CameraInfo, 'camera_info', self.infos.append, qos)
        self.node.create_subscription(Image, 'image', self.images.append, qos)

    def listen_until(self, condition, seconds=60.0):
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.1)
        assert condition(), 'waited in vain'

    def close(self):
        import rclpy
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@contextlib.contextmanager
def publishing(*arguments, command=('-m', 'depthclip_ros.sources.image_source'), **options):
    """Run image_source in a process and listen to it."""
    from ros_harness import own_domain
    with own_domain() as domain:
        listener = Listener(domain, **options)
        process = subprocess.Popen(
            [sys.executable, *command, *map(str, arguments)], text=True,
            env={**os.environ, 'ROS_DOMAIN_ID': str(domain)}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        try:
            yield listener, process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
            listener.close()


def test_every_file_is_published_once_in_order_with_its_camera_info(folder):
    (folder / 'bad.png').write_bytes(b'garbage')
    with publishing(folder, '--wait', '--rate', 20, '--fov', 90) as (
            listener, process):
        listener.listen_until(lambda: process.poll() is not None and (
            min(len(listener.images), len(listener.infos)) >= 3 or process.returncode != 1))
        output = process.stdout.read()
    assert process.returncode == 1, output  # one file was no image
    assert 'bad.png: is no picture' in output
    assert 'published 3 pictures' in output
    assert 'Traceback' not in output
    assert 'GUESS' not in output
    assert len(listener.images) == 3
    for message, seed in zip(listener.images, (1, 0, 2), strict=True):
        assert (message.encoding, message.height, message.width) == ('bgr8', 48, 64)
        assert message.step == 192
        assert bytes(message.data) == picture(seed).tobytes()
    assert {m.header.frame_id for m in listener.images + listener.infos} == {
        'camera_color_optical_frame'}
    stamps = [(m.header.stamp.sec, m.header.stamp.nanosec) for m in listener.images]
    assert stamps == [(m.header.stamp.sec, m.header.stamp.nanosec) for m in listener.infos]
    assert stamps == sorted(set(stamps))
    assert abs(stamps[0][0] - time.time()) < 100
    assert listener.infos[0].k[0] == pytest.approx(32.0)  # 90 degrees over 64 pixels


def test_a_guess_is_called_one_and_an_interrupt_is_clean(folder):
    with publishing(folder, '--rate', 0.5, '--wait', reliable=False) as (listener, process):
        listener.listen_until(lambda: listener.images)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert 'GUESS' in output
    assert 'Traceback' not in output


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--ros-args', '-p', 'x:=['], "Couldn't parse parameter override rule"),
    (['--answer', 'no name'], 'Invalid topic name'),
    (['--camera-info', 'head.yaml'], 'head.yaml'),
])
def test_what_is_refused_is_a_sentence(folder, capsys, monkeypatch, arguments, words):
    from depthclip_ros.sources import image_source

    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'DEFAULT')  # no profile for later tests
    assert image_source.main([str(folder), *arguments]) == 1
    error = capsys.readouterr().err
    assert '\nimage_source: ' in f'\n{error}'
    assert words in error


IMPATIENT = ('import sys, depthclip_ros.sources.image_source as source; '
             'source.ANSWER_TIMEOUT = 0.5; sys.exit(source.main())')


def test_what_nobody_answers_is_sent_again(folder):
    """With the same stamp, so that a late answer counts, too."""
    from sensor_msgs.msg import Image
    with publishing(folder, '--wait', '--answer', 'answer', command=('-c', IMPATIENT)) as (
            listener, process):
        answers, images = listener.node.create_publisher(Image, 'answer', 5), listener.images
        for _ in range(3):
            seen = len(images)
            listener.listen_until(lambda seen=seen: len(images) >= seen + 2)
            assert images[-1].header == images[-2].header
            answers.publish(Image(header=images[-1].header))
            listener.listen_until(lambda: images[-1].header != images[-2].header
                                  or process.poll() is not None)
        listener.listen_until(lambda: process.poll() is not None)
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert len({bytes(m.data) for m in images}) == 3, output
    assert 'published 3 pictures' in output
