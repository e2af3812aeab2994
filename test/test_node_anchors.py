# SPDX-License-Identifier: Apache-2.0
"""Anchors in the node: messages of other sensors become points in the image, whatever comes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy')

import calibrations
import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from lifecycle_msgs.msg import State
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rclpy.serialization import serialize_message
from ros_harness import (
    FRAME,
    NodeProcess,
    Peer,
    camera_info,
    depth_array,
    image,
    values_of,
)
from sensor_msgs.msg import CompressedImage, Image, LaserScan, PointCloud2, PointField
from std_msgs.msg import Header

from depthclip_ros.core import CameraImage, depth_steps
from depthclip_ros.core.anchor import Adjustment
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.core.errors import ConfigError, DataError, SensorError
from depthclip_ros.messages import message_types as messages
from depthclip_ros.messages.anchors import Anchor, AnchorSensor
from depthclip_ros.messages.camera_context import CameraContext, DecodedImage, predict
from depthclip_ros.messages.node_config import NodeConfig
from depthclip_ros.sim import RenderOptions, Scene, SimCamera, render, trajectory

WIDTH, HEIGHT = 320, 240
CAMERA = SimCamera().scaled(WIDTH, HEIGHT)
MODEL = CameraModel.pinhole(WIDTH, HEIGHT, CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy)
# The lidar is 0.1 m above the camera and 0.05 m before it, level with it.
POSE = '0.05 0.0 0.1 0.0 0.0 0.0'


def header(seconds, frame=FRAME):
    whole = math.floor(seconds)
    return Header(stamp=Time(sec=whole, nanosec=round((seconds - whole) * 1e9)), frame_id=frame)


def scan(at, depth, factor=1.0, frame='laser', **changes):
    """What the lidar of POSE measures, by the picture's depth: seen from the camera.

    A beam is so long that it ends where the camera sees something in its plane.
    """
    angles = np.linspace(-0.5, 0.5, 101)
    ranges = []
    for angle in angles:
        along = np.linspace(0.3, 12.0, 600)
        x, y, z = 0.05 + along * np.cos(angle), along * np.sin(angle), 0.1
        u = np.rint(CAMERA.cx - CAMERA.fx * y / x).astype(int)
        v = np.rint(CAMERA.cy - CAMERA.fy * z / x).astype(int)
        seen = (u >= 0) & (u < WIDTH) & (v >= 0)
        hit = np.flatnonzero(seen & (x >= depth[np.where(seen, v, 0), np.where(seen, u, 0)]))
        ranges.append(float(along[hit[0]] * factor) if len(hit) else math.inf)
    return LaserScan(**{
        'header': header(at, frame), 'angle_min': float(angles[0]),
        'angle_max': float(angles[-1]), 'angle_increment': float(angles[1] - angles[0]),
        'range_min': 0.1, 'range_max': 30.0, 'ranges': ranges, **changes})


def cloud(at, points, frame=FRAME, **changes):
    message = PointCloud2(**{
        'header': header(at, frame), 'height': 1, 'width': len(points), 'point_step': 12,
        'row_step': 12 * len(points),
        'fields': [PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
                   for i, name in enumerate('xyz')], **changes})
    message.data.frombytes(np.asarray(points, np.float32).tobytes())
    return message


def seen_points(depth, count=40, factor=1.0):
    """Points of a picture's depth in the camera's frame, anywhere in it."""
    rng = np.random.default_rng(0)
    u, v = rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count)
    return MODEL.rays(u, v) * depth[v, u][:, None] * factor


def sparse(at, depth, factor=1.0, encoding='32FC1', frame=FRAME):
    """One pixel in a hundred, in half the picture's size."""
    kept = np.full((HEIGHT // 2, WIDTH // 2), np.nan, np.float32)
    kept[::10, ::10] = depth[::20, ::20] * factor
    if encoding == '16UC1':
        kept = np.nan_to_num(1000 * kept).astype(np.uint16)
    return image(header(at, frame), kept, encoding)


# Points of messages -----------------------------------------------------------------------------


def listening(**settings):
    config = NodeConfig(**settings)
    sensor = AnchorSensor(config, '/the/topic', messages.deserialize)
    return sensor, Anchor(sensor, config)


def ask(anchor, at, patches=None, model=MODEL, frame=FRAME, deviation=None):
    """Adjustment of an image whose patches are all 2 m deep, or as given."""
    patches = np.full((6, 8), 2.0, np.float32) if patches is None else patches
    observation = anchor.observe(header(at, frame), model, (HEIGHT, WIDTH))
    adjustment = observation.adjust(patches, deviation, (HEIGHT, WIDTH), 'centered')
    anchor.commit(observation)
    return adjustment


WALL = np.full((HEIGHT, WIDTH), 3.0, np.float32)


@pytest.mark.parametrize(('settings', 'message'), [
    ({'anchor': 'scan', 'anchor_pose': POSE}, scan(5.0, WALL)),
    ({'anchor': 'points'}, cloud(5.0, seen_points(WALL))),
    ({'anchor': 'points', 'anchor_pose': '0 0 0 0 0 0'},
     cloud(5.0, seen_points(WALL)[:, [2, 0, 1]] * [1, -1, -1], 'lidar')),
    ({'anchor': 'depth'}, sparse(5.0, WALL)),
    ({'anchor': 'depth'}, sparse(5.0, WALL, encoding='16UC1')),
])
def test_every_sensor_says_how_far_a_wall_is(settings, message):
    shared, anchor = listening(**settings)
    shared.on_message(serialize_message(message))
    assert ask(anchor, 5.1).scale == pytest.approx(1.5, rel=0.02)
    assert anchor.condition == ''
    assert anchor.filter.state.anchored


@pytest.mark.parametrize('by_tf', [False, True])
def test_the_floor_fixes_the_scale(by_tf):
    settings = {} if by_tf else {'camera_height': 0.5, 'camera_pitch': -0.3}
    shared, anchor = listening(anchor='ground', **settings)
    if by_tf:
        half = 0.15
        shared._tree.add('base_footprint', 'body', (0, 0, 0.5),
                         (0, math.sin(half), 0, math.cos(half)), None)
        shared._tree.add('body', FRAME, (0, 0, 0), (-0.5, 0.5, -0.5, 0.5), None)
    rays = MODEL.patch_rays(6, 8)
    down = rays[..., 1] * math.cos(0.3) + rays[..., 2] * math.sin(0.3)
    floor = np.where(down > 0.12, 0.5 / np.maximum(down, 0.12), 4.0).astype(np.float32)
    floor[4:, 2:4] *= 0.6  # something stands on it
    # Between the centres of patches depth is linear, and the floor is not: a bit too near.
    assert ask(anchor, 1.0, floor / 1.5).scale == pytest.approx(1.5, rel=0.08)


def test_of_several_messages_the_nearest_counts():
    shared, anchor = listening(anchor='points')
    for at, factor in ((4.8, 2.0), (5.0, 1.0), (5.4, 3.0)):
        shared.on_message(serialize_message(cloud(at, seen_points(WALL, factor=factor))))
    assert ask(anchor, 5.1).scale == pytest.approx(1.5, rel=0.02)


# What cannot be used ----------------------------------------------------------------------------


def raw(message):
    return serialize_message(message)


GOOD = cloud(5.0, seen_points(WALL))
HOSTILE = {
    'cut off': ('points', raw(GOOD)[:40], 'unreadable message'),
    'another type': ('points', raw(camera_info(header(5.0), 8, 8)), 'unreadable message'),
    'wrong fields': ('points', raw(cloud(5.0, seen_points(WALL), fields=[])), 'wrong layout'),
    'giant cloud': ('points', raw(cloud(5.0, seen_points(WALL), width=2**31, height=2**31,
                                        row_step=2**32 - 1)), 'wrong layout'),
    'wrong frame': ('points', raw(cloud(5.0, seen_points(WALL), frame='nowhere')),
                    'no transform'),
    'too few': ('points', raw(cloud(5.0, seen_points(WALL, 3))), 'too few points'),
    'stamp of another clock': ('points', raw(cloud(500.0, seen_points(WALL))), 'stamps apart'),
    'NaN angles': ('scan', raw(scan(5.0, WALL, angle_min=math.nan)), 'wrong angles'),
    'depth of another frame': ('depth', raw(sparse(5.0, WALL, frame='other')), 'wrong frame'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_what_cannot_be_used_is_counted_and_named(name):
    kind, message, condition = HOSTILE[name]
    shared, anchor = listening(anchor=kind, anchor_pose=POSE if kind != 'points' else '')
    shared.on_message(message)
    adjustment = ask(anchor, 5.0)
    assert adjustment == Adjustment()
    assert dict(anchor.conditions) == {condition: 1}
    assert anchor.reason
    assert len(anchor.reason) < 1000
    assert not anchor.filter.state.anchored


def test_tf_says_where_the_sensor_is_also_when_it_comes_late():
    shared, anchor = listening(anchor='scan')
    shared.on_message(serialize_message(scan(5.0, WALL)))
    ask(anchor, 5.0)
    assert anchor.condition == 'no transform'
    assert 'laser' in anchor.reason
    shared._tree.add('base', 'laser', (0.25, 0.0, 0.6), (0, 0, 0, 1), None)
    shared._tree.add('base', FRAME, (0.2, 0.0, 0.5), (-0.5, 0.5, -0.5, 0.5), None)
    ask(anchor, 5.05)
    assert anchor.condition == ''
    assert anchor.filter.state.points > 10
    assert anchor.filter.state.log_scale == pytest.approx(math.log(1.5), abs=0.02)


@pytest.mark.parametrize('kind', ['points', 'ground'])
def test_what_is_tried_again_counts_its_points_once(kind, estimator, monkeypatch, tmp_path):
    """An attempt fails at its end, when the anchors have been asked."""
    config = NodeConfig(anchor=kind, camera_height=1.0, camera_pitch=-0.5)
    calibration = calibrations.calibration_for(estimator).save(tmp_path, 'own')
    estimator.reconfigure(estimator.config.replace(calibration=str(calibration)))

    def drive(failures):
        shared = AnchorSensor(config, '/the/topic', messages.deserialize)
        context = CameraContext(messages.deserialize, config, shared)
        for at in (5.0, 5.1, 7.0):  # the last one without a message
            if at < 7.0:
                shared.on_message(raw(cloud(at, seen_points(WALL))))
            frame = DecodedImage(
                context, header(at), np.zeros((HEIGHT, WIDTH, 3), np.uint8), MODEL)
            for _ in range(failures):
                with monkeypatch.context() as patch:
                    patch.setattr(depth_steps, 'upsample', lambda *_: 1 / 0)
                    with pytest.raises(ZeroDivisionError):
                        predict(estimator, [frame])
            predict(estimator, [frame])
        anchor = context.anchor
        state = anchor.filter.state
        return (state.scale, state.variance, state.inflation,
                [factor.tolist() for factor in state.local or ()], anchor.conditions)
    try:
        expected = drive(0)
        assert expected[2] != 1.0
        assert drive(1) == expected
    finally:
        estimator.reconfigure(estimator.config.replace(calibration=''))


@pytest.mark.parametrize('moves', [True, False])
def test_points_are_moved_with_the_robot(moves):
    """It drives 1 m towards the wall between a scan and the image; without odometry none is used.

    What was 3 m ahead is 2 m ahead then.
    """
    shared, anchor = listening(anchor='points')
    shared._tree.add('base', FRAME, (0.2, 0.0, 0.5), (-0.5, 0.5, -0.5, 0.5), None)
    for at, x in ((4.9, 0.0), (5.0, 0.0), (5.4, 1.0), (5.5, 1.0)) if moves else ():
        shared._tree.add('odom', 'base', (x, 0, 0), (0, 0, 0, 1), round(at * 1e9))
    shared.on_message(serialize_message(cloud(5.0, seen_points(WALL))))
    scale = ask(anchor, 5.4).scale
    if moves:
        assert scale == pytest.approx(1.0, rel=0.02)
        assert anchor.condition == ''
    else:
        assert scale == 1.0
        assert anchor.condition == 'stamps apart'
        assert 'odom' in anchor.reason


@pytest.mark.parametrize('settings', [{}, {'anchor_pose': POSE}])
@pytest.mark.parametrize(('late', 'followed'), [(0.1, True), (0.21, True), (0.3, False)])
def test_a_lidar_that_is_stamped_at_the_start_of_its_sweep_is_followed(settings, late, followed):
    """10 Hz, published at the sweep's end: images are 0.1 to 0.2 s newer than any cloud."""
    shared, anchor = listening(anchor='scan', **settings)
    for frame, place, turn in () if settings else (
            ('laser', (0.25, 0.0, 0.6), (0, 0, 0, 1)), (FRAME, (0.2, 0, 0.5), (-.5, .5, -.5, .5))):
        shared._tree.add('base', frame, place, turn, None)
    shared.on_message(raw(scan(5.0, WALL)))
    ask(anchor, 5.0 + late)
    assert anchor.condition == ('' if followed else 'stamps apart')
    assert anchor.filter.state.anchored is followed


@pytest.mark.parametrize('nothing', ['zeros', '65535', 'range_max'])
def test_what_says_that_nothing_was_measured_is_no_point(nothing):
    """Most of the points; they lie before the camera, where it would see them."""
    rng = np.random.default_rng(0)
    if nothing == 'zeros':
        shared, anchor = listening(anchor='points', anchor_pose='0.35 0 0 0 0 0')
        points = np.array([3.0, 0, 0]) - [0.35, 0, 0] + rng.uniform(-1, 1, (40, 3)) * [0, 1, 0.8]
        message = cloud(5.0, np.vstack([points, np.zeros((400, 3))]), 'lidar')
    elif nothing == '65535':
        shared, anchor = listening(anchor='depth')
        pixels = np.where(rng.random((HEIGHT, WIDTH)) < 0.6, 65535, 3000).astype(np.uint16)
        message = image(header(5.0), pixels, '16UC1')
    else:
        shared, anchor = listening(anchor='scan', anchor_pose=POSE)
        message = scan(5.0, WALL, range_max=12.0)
        message.ranges = [12.0 if rng.random() < 0.7 else r for r in message.ranges]
    shared.on_message(raw(message))
    assert ask(anchor, 5.0).scale == pytest.approx(1.5, rel=0.03)
    assert not anchor.filter.state.is_unusual


@pytest.mark.parametrize('frame', [FRAME, f'/{FRAME}'])
def test_a_depth_image_may_be_compressed_and_its_frame_have_a_slash(frame):
    data = cv2.imencode('.png', np.full((HEIGHT, WIDTH), 3000, np.uint16))[1].tobytes()
    config = NodeConfig(anchor='depth')
    shared = AnchorSensor(config, '/depth', messages.deserialize, messages.COMPRESSED_IMAGE)
    shared.on_message(serialize_message(CompressedImage(
        header=header(5.0, frame), format='16UC1; compressedDepth png', data=bytes(12) + data)))
    anchor = Anchor(shared, config)
    assert ask(anchor, 5.0).scale == pytest.approx(1.5, rel=0.02)
    assert anchor.condition == ''


def test_frames_of_one_body_need_no_odometry_that_is_late():
    read = {b'static': transforms(('base', FRAME, None), ('base', 'laser', None)),
            b'odom': transforms(('odom', 'base', 4))}
    frames = AnchorSensor(NodeConfig(anchor='points'), '', lambda raw, _kind: read[raw])
    frames.on_static(b'static')
    frames.on_transforms(b'odom')
    now = 5 * 10 ** 9
    frames.lookup(FRAME, now, 'laser', now)
    with pytest.raises(DataError) as error:
        frames.lookup(FRAME, now, 'laser', now - 4 * 10 ** 8)
    assert error.value.condition == 'no transform'


def transforms(*links):
    """As tf2_msgs/TFMessage, which may not be here: (parent, child, seconds) without a turn."""
    return SimpleNamespace(transforms=[
        link(parent, child, (0.1, 0.0, 0.0), at=at or 0.0) for parent, child, at in links])


def test_transforms_begin_anew_when_time_jumps_back():
    shared, anchor = listening(anchor='points')
    shared._tree.add('base', FRAME, (0, 0, 0), (0, 0, 0, 1), None)
    shared._tree.add('odom', 'base', (0, 0, 0), (0, 0, 0, 1), 100_000_000_000)
    shared.clear()
    shared._tree.add('odom', 'base', (0, 0, 0), (0, 0, 0, 1), 5_000_000_000)
    shared.on_message(serialize_message(GOOD))
    assert ask(anchor, 5.0).scale == pytest.approx(1.5, rel=0.02)


def test_whatever_fails_inside_depth_goes_on_with_the_last_scale(monkeypatch):
    shared, anchor = listening(anchor='points')
    shared.on_message(serialize_message(GOOD))
    scale = ask(anchor, 5.0).scale
    monkeypatch.setattr(anchor.filter, 'adjust', lambda *_, **__: 1 / 0)
    assert ask(anchor, 5.1) == Adjustment(scale, 1.0)
    assert dict(anchor.conditions) == {'ZeroDivisionError in anchor': 1}


def test_between_two_messages_the_last_one_corrects_around_its_points():
    """It has its say of the scale once; where it cannot be brought into an image, that is held."""
    shared, anchor = listening(anchor='points')
    shared.on_message(serialize_message(GOOD))
    first = ask(anchor, 5.0)
    assert first.patch_scale is not None
    variance = anchor.filter.state.variance
    again = ask(anchor, 5.1)
    assert again.patch_scale is not None
    assert again.scale == pytest.approx(first.scale, rel=1e-6)
    assert anchor.filter.state.variance > variance  # it has not had its say again
    shared.transform = lambda *_: (_ for _ in ()).throw(SensorError('no transform', 'none'))
    held = ask(anchor, 5.2)
    assert held.scale == pytest.approx(first.scale, rel=1e-6)
    np.testing.assert_allclose(
        np.log(held.patch_scale), math.exp(-0.1) * np.log(again.patch_scale), atol=1e-3)
    assert not anchor.conditions
    shared, anchor = listening(anchor='scan', anchor_pose=POSE, anchor_reach=0.0)
    shared.on_message(raw(scan(5.0, WALL)))
    assert ask(anchor, 5.0).patch_scale is None


@pytest.mark.parametrize(('settings', 'words'), [
    ({'anchor': 'sonar'}, 'scan, points, depth, ground'),
    ({'anchor_pose': '1 2 3'}, 'six numbers'),
    ({'anchor_pose': '1 2 3 4 5 nan'}, 'six numbers'),
    ({'anchor_pose': '1 2 3 4 5 1e300'}, 'six numbers'),
    ({'anchor_pose': POSE, 'cameras': ['a', 'b']}, 'tf'),
])
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        NodeConfig(**settings)


# The running node -------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def drive():
    """Pictures and depth of a room, and what the demo model makes of them alone."""
    from depthclip_ros.core import DepthConfig, DepthEstimator
    from depthclip_ros.resources import config_path
    scene = Scene.generate('office', 60002)
    path = trajectory(scene, 60002)
    frames = [render(scene, CAMERA, path.pose(i / 10), RenderOptions(seed=i)) for i in range(6)]
    config = DepthConfig.from_yaml(config_path('demo')).replace(precision='float32')
    estimator = DepthEstimator(config, 'demo', 'cpu')
    alone = [estimator.predict(CameraImage(frame.rgb, MODEL)).depth for frame in frames]
    return [(frame.rgb, frame.depth, depth) for frame, depth in zip(frames, alone, strict=True)]


class Robot:
    """A camera and a sensor at 10 Hz, and the node that hears them."""

    def __init__(self, peer, drive):
        self.peer, self.drive, self.time, self.count = peer, drive, 100.0, 0

    def step(self, make=None, topic='', kind=LaserScan, factor=1.0):
        """One picture with its message; gives the published depth, the words' and the true one."""
        rgb, depth, alone = self.drive[self.count % len(self.drive)]
        self.time, self.count = self.time + 0.1, self.count + 1
        head = header(self.time)
        if make is not None:
            message = make(self.time, depth, factor) if callable(make) else make
            self.peer.publisher(topic, kind).publish(message)
        answer = self.peer.ask(image(head, rgb, 'rgb8'),
                               info=camera_info(head, WIDTH, HEIGHT, k=(
                                   CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy)))
        return depth_array(answer), alone, depth

    def configure(self, anchor='scan', anchor_pose=POSE, **values):
        """Other parameters, for which the node is configured anew; nothing is anchored then."""
        self.peer.bring(State.PRIMARY_STATE_UNCONFIGURED)
        assert self.peer.put(anchor=anchor, anchor_pose=anchor_pose, **values) == ''
        self.peer.bring(State.PRIMARY_STATE_ACTIVE)

    def values(self, condition=lambda _: True):
        """What is told after the last step."""
        self.peer.diagnostics('depth_node: frames', condition)
        return self.peer.quiet('depth_node: frames')['depth_node: frames']

    def scale(self):
        return float(self.values()['anchor scale'])


@pytest.fixture(scope='module')
def robot(domain, cache, drive):
    arguments = ['--ros-args']
    for setting in ('weights:=demo', 'device:=cpu', 'num_threads:=1', 'precision:=float32',
                    'anchor:=scan', f'anchor_pose:="{POSE}"', 'anchor_timeout:=1.0'):
        arguments += ['-p', setting]
    process = NodeProcess(arguments, domain=domain, cache=cache)
    try:
        process.wait_for(r'\]: Active: ')
        with Peer(domain, listen=('depth/image',), node=process) as peer:
            yield Robot(peer, drive)
    finally:
        status = process.stop()
    assert status == 0, process.output
    assert 'Traceback' not in process.output, process.output


def spread(ratio):
    """Standard deviation of its logarithm."""
    return np.std(np.log(ratio))


def test_a_scan_scales_the_depth_that_is_published(robot):
    robot.configure()
    until_anchored(robot, lambda: robot.step(scan, 'scan'))
    for _ in range(10):  # images that came before the first scan had a scale of 1
        published, alone, depth = robot.step(scan, 'scan')
    row = slice(80, 120)  # what the lidar sees
    # Around its points depth errs less than with any one scale.
    assert spread(depth[row] / published[row]) < 0.9 * spread(depth[row] / alone[row])
    values = robot.values(lambda values: values['anchored'] == 'True')
    assert values['anchor'] == 'scan'
    assert 50.0 < float(values['anchor share [%]']) <= 100.0
    assert float(values['anchor scale']) == pytest.approx(
        math.exp(np.median(np.log(depth[row] / alone[row]))), rel=0.12)
    robot.peer.process.wait_for('Anchored by scan: scale')


def test_a_silent_anchor_is_said_and_let_go(robot):
    robot.configure()
    until_anchored(robot, lambda: robot.step(scan, 'scan', factor=1.6))
    for _ in range(25):
        robot.step(scan, 'scan', factor=1.6)
    anchored = robot.scale()
    robot.time += 0.9
    robot.step()
    assert robot.scale() == pytest.approx(anchored, rel=0.02)
    for _ in range(60):
        robot.step()
    assert abs(math.log(robot.scale())) < abs(math.log(anchored)) / 10
    status = robot.peer.status(
        'depth_node: frames', lambda status: 'no anchor: stamps apart' in status.message)
    assert values_of(status)['anchored'] == 'False'
    robot.peer.process.wait_for(r'depth has no anchor \(anchor: scan; stamps apart\)')
    robot.step(scan, 'scan')
    robot.values(lambda values: values['anchored'] == 'True')


@pytest.mark.parametrize(('kind', 'topic', 'make'), [
    (PointCloud2, 'anchor/points',
     lambda at, depth, _factor: cloud(at, seen_points(depth))),
    (Image, 'anchor/depth', sparse),
    (None, '', None),
])
def test_other_anchors_in_the_running_node(robot, kind, topic, make):
    name = topic.rpartition('/')[2] or 'ground'
    robot.configure(anchor=name, anchor_pose='', camera_height=1.4, camera_pitch=-0.2)
    until_anchored(robot, lambda: robot.step(make, topic, kind))
    for _ in range(10):
        published, alone, depth = robot.step(make, topic, kind)
    scale = robot.scale()
    if kind is None:
        np.testing.assert_allclose(published / alone, scale, rtol=2e-3)
    else:
        assert spread(depth / published) < 0.95 * spread(depth / alone)
        assert scale == pytest.approx(math.exp(np.median(np.log(depth / alone))), rel=0.08)
        robot.values(lambda values: values['anchored'] == 'True')


def test_tf_says_where_the_lidar_is_as_soon_as_it_is_there(robot):
    tf2_msgs = pytest.importorskip('tf2_msgs.msg')
    robot.configure(anchor_pose='')
    published, alone, _ = robot.step(scan, 'scan')
    np.testing.assert_allclose(published, alone, rtol=1e-4)
    camera = link('base', FRAME, (0.2, 0.0, 0.5), (-0.5, 0.5, -0.5, 0.5))
    latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    publisher = robot.peer.node.create_publisher(tf2_msgs.TFMessage, '/tf_static', latched)
    publisher.publish(tf2_msgs.TFMessage(transforms=[
        camera, link('base', 'laser', (0.25, 0.0, 0.6)),
        link('base', 'broken', (math.nan, 0.0, 0.0))]))
    until_anchored(robot, lambda: robot.step(scan, 'scan'))

    # A lidar on a mast that goes up and down: where it was at the image's time.
    robot.configure(anchor_pose='')
    tf = robot.peer.publisher('/tf', tf2_msgs.TFMessage)

    def moving(at, depth, factor):
        for when, height in ((at - 0.05, 0.3), (at, 0.6), (at + 0.05, 0.9)):
            tf.publish(tf2_msgs.TFMessage(transforms=[
                link('base', 'mast', (0.25, 0.0, height), at=when)]))
        return scan(at, depth, factor, 'mast')
    until_anchored(robot, lambda: robot.step(moving, 'scan'))
    assert float(robot.values()['anchor share [%]']) > 50.0
    robot.peer.on_executor(robot.peer.node.destroy_publisher, publisher)


def link(parent, child, place, turn=(0.0, 0.0, 0.0, 1.0), at=0.0):
    transform = Transform(translation=Vector3(**dict(zip('xyz', place, strict=True))),
                          rotation=Quaternion(**dict(zip('xyzw', turn, strict=True))))
    return TransformStamped(header=header(at, parent), child_frame_id=child, transform=transform)


def until_anchored(robot, step):
    """Steps until the transforms have come and the node says so."""
    robot.peer.diagnostics(
        'depth_node: frames', lambda values: step() and values['anchored'] == 'True')
