# SPDX-License-Identifier: Apache-2.0
"""Rendered drives as recordings: in memory, as folders and as bags; and what can be wrong."""

import math
from dataclasses import replace

import cv2
import numpy as np
import yaml
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from depthclip_ros.calibrate.recordings import Frame, Moment
from depthclip_ros.calibrate.registration import resample, unproject
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.sim import KINDS, RenderOptions, Scene, SimCamera, render, trajectory
from depthclip_ros.sim.datasets import NANOSECONDS, START, _Messages, punch_holes


def camera_of_width(width=160, degrees=None):
    """A rendered camera, as NYU's or of another angle of view."""
    if degrees is None:
        return SimCamera().scaled(width, width * 3 // 4)
    focal, height = width / 2 / math.tan(math.radians(degrees) / 2), width * 3 // 4
    return SimCamera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


def drive(rooms=3, frames=60, *, step=0.2, camera=None, seed=0, pause=5.0):
    """Frames of one drive through several rooms, with a pause at each door."""
    camera = camera or camera_of_width()
    model = CameraModel.pinhole(
        camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
    found, each = [], frames // rooms
    for number in range(frames):
        room = min(number // each, rooms - 1)
        scene = Scene.generate(KINDS[(seed + room) % len(KINDS)], 1000 * seed + room)
        picture = render(
            scene, camera, trajectory(scene, seed + room).pose(step * (number % each)),
            RenderOptions(noise=0.01, seed=seed + number))
        found.append(Frame(picture.rgb, picture.depth, model, Moment(
            number * step + room * pause, room, f'{number}')))
    return found


def sensed(frames, sensor):
    """The same drive as another sensor measures it."""
    rng = np.random.default_rng(0)
    return [replace(frame, depth=_sensed(frame.depth, sensor, rng)) for frame in frames]


def _sensed(depth, sensor, rng):
    kind, _, lines = sensor.partition(' ')
    known = np.zeros(depth.shape, bool)
    if kind == 'dense':
        return depth
    if kind == 'coarse':
        return resample(depth, len(depth) // 3, depth.shape[1] // 3)
    if kind == 'lidar':
        known[np.linspace(0.3 * len(depth), 0.8 * len(depth), int(lines)).astype(int)] = True
    elif kind == 'kinect':
        known = punch_holes(depth, int(rng.integers(1000))) > 0
    noisy = depth * rng.normal(1, 0.01, depth.shape).astype(np.float32)
    return np.where(known, noisy, np.float32(np.nan))


def _each(change):
    return lambda frames: [replace(f, depth=np.ascontiguousarray(change(f.depth)))
                           for f in frames]


def _order(places):
    return lambda frames: [replace(f, depth=frames[p].depth) for f, p in zip(
        frames, places(len(frames)), strict=True)]


def _enlarged(depth):
    height, width = depth.shape
    return resample(depth[height // 10:-(height // 10), width // 10:-(width // 10)], *depth.shape)


def _standing(frames):
    rng, rgb = np.random.default_rng(0), frames[0].rgb
    return [replace(frames[0], moment=f.moment, rgb=np.clip(
        rgb + rng.normal(0, 3, rgb.shape), 0, 255).astype(np.uint8)) for f in frames]


# What is done to a recording, and the cause that is named for it.
SABOTAGE = {
    'centimetres, read as millimetres': (_each(lambda d: 0.1 * d), 'wrong unit'),
    'metres, read as millimetres': (_each(lambda d: 0.001 * d), 'wrong unit'),
    'millimetres, read as metres': (_each(lambda d: 1000 * d), 'wrong unit'),
    'tenths of a millimetre (D405)': (_each(lambda d: 10 * d), 'wrong unit'),
    'disparity': (_each(lambda d: 6 / d), 'inverse depth'),
    '0.4 s late': (_order(lambda n: (np.arange(n) - 2).clip(0)), 'offset stamps'),
    '1 s early': (_order(lambda n: (np.arange(n) + 5).clip(0, n - 1)), 'offset stamps'),
    'of a longer lens': (_each(_enlarged), 'not registered'),
    'constant': (_each(lambda d: np.full_like(d, 2.5)), 'constant depth'),
    'empty': (_each(lambda d: np.full_like(d, np.nan)), 'empty depth'),
    'frozen': (_order(lambda n: [0] * n), 'frozen depth'),
    'too few frames': (lambda frames: frames[:12], 'too few frames'),
    'one standing view': (_standing, 'one standing view'),
}


def write_folder(path, frames, *, npy=False, nested=False):
    """`rgb/`, `depth/` and `camera.yaml`."""
    for number, frame in enumerate(frames):
        name = f'{number}' if not nested else f'room{frame.moment.sequence}/{number}'
        for part in ('rgb', 'depth'):
            (path / part / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path / 'rgb' / f'{name}.png'), frame.rgb[..., ::-1])
        if npy:
            np.save(path / 'depth' / f'{name}.npy', frame.depth)
        else:
            stored = np.nan_to_num(1000 * frame.depth).clip(0, 65535).astype(np.uint16)
            cv2.imwrite(str(path / 'depth' / f'{name}.png'), stored)
    write_camera(path / 'camera.yaml', frames[0].camera)
    return path


def write_camera(path, model):
    """A calibration as `camera_calibration` writes it."""
    entries = {'camera_matrix': model.K, 'distortion_coefficients': np.zeros(5),
               'rectification_matrix': np.eye(3), 'projection_matrix': model.P}
    path.write_text(yaml.safe_dump({
        'image_width': model.width, 'image_height': model.height,
        'distortion_model': 'plumb_bob',
        **{name: {'data': values.ravel().tolist()} for name, values in entries.items()}}))
    return path


IMAGE_TOPIC, INFO_TOPIC = '/camera/color/image_raw', '/camera/color/camera_info'
# Optical frame (x right, y down, z forward) in a body frame (x forward, y left, z up).
BODY_TO_OPTICAL = np.array([[0., -1, 0], [0, 0, -1], [1, 0, 0]])
LIDAR_AT = np.array([0.0, 0.1, 0.05])  # metres, in the body frame of the camera


class BagWriter:
    """Messages into a bag; `edit` gives what is written of a topic's message, None for nothing."""

    def __init__(self, path, edit=None, rename=None):
        self.rename = rename or {}
        self.edit = edit or (lambda _, message: message)
        self.store = get_typestore(Stores.ROS2_HUMBLE)
        self.messages = _Messages(self.store.types)
        self.writer = Writer(path, version=8, storage_plugin=StoragePlugin.MCAP)
        self.connections = {}

    def write(self, topic, message, received):
        message = self.edit(topic, message)
        if message is None:
            return
        topic = self.rename.get(topic, topic)
        kind = message.__msgtype__
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(
                topic, kind, typestore=self.store)
        self.writer.write(self.connections[topic], received,
                          self.store.serialize_cdr(message, kind))

    def transform(self, header, child, translation, rotation):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, translation
        message = self.messages.transform(header, pose)
        message.transforms[0].child_frame_id = child
        return message

    def packed(self, header, described, data):
        return self.store.types['sensor_msgs/msg/CompressedImage'](
            header=header, format=described, data=np.frombuffer(data, np.uint8))

    def cloud(self, header, points):
        types = self.store.types
        data = np.ascontiguousarray(points, np.float32)
        return types['sensor_msgs/msg/PointCloud2'](
            header=header, height=1, width=len(data), is_bigendian=False, point_step=12,
            row_step=12 * len(data), data=data.view(np.uint8).ravel(), is_dense=True, fields=[
                types['sensor_msgs/msg/PointField'](name=name, offset=4 * i, datatype=7, count=1)
                for i, name in enumerate('xyz')])

    def scan(self, header, angles, ranges):
        return self.store.types['sensor_msgs/msg/LaserScan'](
            header=header, angle_min=float(angles[0]), angle_max=float(angles[-1]),
            angle_increment=float(angles[1] - angles[0]), time_increment=0.0, scan_time=0.1,
            range_min=0.05, range_max=30.0, ranges=np.asarray(ranges, np.float32),
            intensities=np.empty(0, np.float32))


def write_drive(path, frames, depth='32FC1', *, late=0.0, tf=True, info=True, own_info=None,
                compressed=False, stamped=True, turned=0.0, depth_every=1, edit=None, rename=None):
    """Write a drive as a bag, with every message as `edit` changes it, see `BagWriter`.

    depth: '32FC1', '16UC1', 'compressedDepth', 'cloud', 'scan' or '' for none.
    late: seconds that the depth's stamps are behind. turned: degrees that the lidar's mounting in
    tf is wrong. own_info: camera of the depth image, 10 cm to the right of the other.
    depth_every: images from one depth to the next. rename: topics, by what they are here.
    """
    bag = BagWriter(path, edit, rename)
    with bag.writer:
        start = START * NANOSECONDS
        c, s = np.cos(np.radians(turned)), np.sin(np.radians(turned))
        for parent, child, place, rotation in (
                ('body', 'optical', (0, 0, 0), BODY_TO_OPTICAL.T),
                ('optical', 'depth_optical', (0.1, 0, 0), np.eye(3)),
                ('body', 'lidar', LIDAR_AT, np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])),
        ) if tf else ():
            bag.write('/tf_static', bag.transform(
                bag.messages.header(0, parent), child, place, rotation), start)
        for number, frame in enumerate(frames):
            time = start + round(frame.moment.time * NANOSECONDS)
            header = bag.messages.header(time if stamped else 0, 'optical')
            behind = bag.messages.header(
                time + round(late * NANOSECONDS) if stamped else 0,
                'lidar' if depth in ('cloud', 'scan') else
                'depth_optical' if own_info else 'optical')
            K = frame.camera.K
            if info:
                bag.write(INFO_TOPIC, bag.messages.camera_info(header, SimCamera(
                    frame.camera.width, frame.camera.height, K[0, 0], K[1, 1], K[0, 2], K[1, 2],
                )), time)
            if compressed:
                data = cv2.imencode('.png', frame.rgb[..., ::-1])[1].tobytes()
                bag.write(f'{IMAGE_TOPIC}/compressed',
                          bag.packed(header, 'rgb8; png compressed bgr8', data), time)
            else:
                bag.write(IMAGE_TOPIC, bag.messages.image(header, 'rgb8', frame.rgb), time)
            if own_info:
                bag.write('/camera/depth/camera_info',
                          bag.messages.camera_info(behind, own_info), time)
            if number % depth_every == 0:
                bag.write(*_measured(bag, frame, behind, depth), time)
    return path


def _measured(bag, frame, header, depth):
    """Topic and message of one measurement."""
    millimetres = np.nan_to_num(1000 * frame.depth).astype(np.uint16)
    image = '/camera/depth/image_raw'
    if depth == '32FC1':
        return image, bag.messages.image(header, depth, frame.depth)
    if depth == '16UC1':
        return image, bag.messages.image(header, depth, millimetres)
    if depth == 'compressedDepth':
        data = bytes(12) + cv2.imencode('.png', millimetres)[1].tobytes()
        return f'{image}/{depth}', bag.packed(header, '16UC1; compressedDepth png', data)
    if depth == 'cloud':
        return '/lidar/points', bag.cloud(header, seen_by_lidar(frame))
    if depth == 'scan':
        return '/scan', bag.scan(header, *scan_of(frame))
    return '/tf', bag.transform(header, 'x', (0, 0, 0), np.eye(3))


def seen_by_lidar(frame):
    """Points in the lidar's frame, of every fourth row."""
    sparse = np.full_like(frame.depth, np.nan)
    sparse[::4] = frame.depth[::4]
    return unproject(sparse, frame.camera) @ BODY_TO_OPTICAL - LIDAR_AT


def scan_of(frame):
    """Angles and ranges of a scanner that sees what the camera's middle row shows."""
    camera = frame.camera
    reach = 0.9 * np.arctan(0.5 * camera.width / camera.K[0, 0])
    angles = np.linspace(-reach, reach, 100)
    columns = np.rint(camera.K[0, 2] - camera.K[0, 0] * np.tan(angles)).astype(int)
    forward = frame.depth[round(camera.K[1, 2]), columns]
    # The scanner stands beside the camera: a point's angle there is another one.
    x, y = forward - LIDAR_AT[0], forward * np.tan(angles) - LIDAR_AT[1]
    there, ranges = np.arctan2(y, x), np.hypot(x, y)
    regular = np.linspace(there.min(), there.max(), 150)
    return regular, ranges[np.abs(there[None, :] - regular[:, None]).argmin(axis=1)]
