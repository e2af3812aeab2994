# SPDX-License-Identifier: Apache-2.0
"""sim_camera as a process: what it says on the ROS graph is what the renderer says."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
import re

import pytest

pytest.importorskip('rclpy')

import numpy as np
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.parameter import Parameter
from ros_harness import NodeProcess, Peer, depth_array
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from depthclip_ros.core.camera import CameraModel
from depthclip_ros.core.errors import ConfigError
from depthclip_ros.messages.image_io import to_rgb
from depthclip_ros.sim import RenderOptions, Scene, camera_pose, render, trajectory
from depthclip_ros.sim.views import SimConfig, SimulatedView
from depthclip_ros.sources.sim_camera import SimCameraNode, transform

SECOND = 1_000_000_000
TOPICS = {'image': Image, 'camera_info': CameraInfo, 'depth/ground_truth': Image}
HAS_TF = importlib.util.find_spec('tf2_msgs') is not None


def arguments(**parameters):
    """ROS arguments for small, quick pictures."""
    values = {'width': 160, 'height': 120, 'scene_seconds': 0.0, **parameters}
    return ['--ros-args', *itertools.chain.from_iterable(
        ('-p', f'{name}:={str(value).lower() if isinstance(value, bool) else value}')
        for name, value in values.items())]


@contextlib.contextmanager
def filming(domain, tmp_path, *cameras, **parameters):
    """Run sim_camera; yields the process and a peer that listens to every camera."""
    process = NodeProcess(arguments(**parameters), domain=domain, cache=tmp_path,
                          module='depthclip_ros.sources.sim_camera')
    try:
        with Peer(domain, (), process) as peer:
            for prefix, (topic, kind) in itertools.product(cameras or ('',), TOPICS.items()):
                peer.listen(prefix + topic, kind)
            yield process, peer
    finally:
        status = process.stop()
    assert status == 0, process.output
    assert 'Traceback' not in process.output, process.output


def stamp_of(message):
    return message.header.stamp.sec * SECOND + message.header.stamp.nanosec


def start_of(process, room):
    """Stamp, in nanoseconds, that the log gives for the first picture of a room."""
    line = process.wait_for(rf'{room}, from stamp ')
    sec, nanosec = re.search(r'from stamp (\d+)\.(\d{9}) on', line).groups()
    return int(sec) * SECOND + int(nanosec)


def complete(peer, prefix=''):
    """Stamp to (image, camera_info, depth) where all three have come."""
    found = [{stamp_of(m): m for m in list(peer.messages[prefix + topic])} for topic in TOPICS]
    return {stamp: [messages[stamp] for messages in found]
            for stamp in sorted(set.intersection(*map(set, found)))}


def test_pictures_calibration_and_truth_are_the_renderers(domain, tmp_path):
    rate = 5.0
    settings = {'kind': 'office', 'seed': 7, 'rate': rate, 'distortion': True, 'noise': 0.02}
    with filming(domain, tmp_path, **settings) as (process, peer):
        peer.wait(lambda: len(complete(peer)) >= 5, 'five complete pictures')
        start = start_of(process, 'camera: office, seed 7')
        sets = complete(peer)
    assert re.search(r'published \d+ pictures of each camera, skipped \d+', process.output)
    assert ('/tf is not published' in process.output) != HAS_TF
    scene = Scene.generate('office', 7)
    path = trajectory(scene, 0)
    camera = SimConfig(width=160, height=120, distortion=True).camera()
    for stamp, (image, info, depth) in list(sets.items())[:5]:
        number = round((stamp - start) * rate / SECOND)
        assert stamp == start + round(number * SECOND / rate)  # the time of the picture
        expected = render(scene, camera, path.pose((stamp - start) / SECOND),
                          RenderOptions(noise=0.02, seed=number))
        assert (image.encoding, depth.encoding) == ('rgb8', '32FC1')
        assert (to_rgb(image) == expected.rgb).all()
        assert (depth_array(depth) == expected.depth).all()
        model = CameraModel.from_info(info)
        assert (model.width, model.height) == (160, 120)
        np.testing.assert_array_equal(model.K, camera.matrix)
        assert tuple(info.d) == camera.distortion
        assert {m.header.frame_id for m in (image, info, depth)} == {'camera_color_optical_frame'}


def test_cameras_of_a_rig_have_topics_frames_and_views_of_their_own(domain, tmp_path):
    settings = {'kind': 'bedroom', 'seed': 2, 'cameras': '[front, rear]', 'fov': 90.0}
    with filming(domain, tmp_path, 'front/', 'rear/', **settings) as (process, peer):
        front, rear = peer.wait(
            lambda: all(pair := (complete(peer, 'front/'), complete(peer, 'rear/'))) and pair,
            'both cameras')
        start = start_of(process, 'rear: bedroom, seed 2')
        both = peer.wait(lambda: complete(peer, 'front/').keys() & complete(peer, 'rear/'),
                         'pictures of one time')
        front, rear = (complete(peer, name) for name in ('front/', 'rear/'))
        assert not peer.node.count_publishers('image')
    stamp = min(both)
    for name, sets in (('front', front), ('rear', rear)):
        assert {m.header.frame_id for m in sets[stamp]} == {f'{name}_color_optical_frame'}
    scene = Scene.generate('bedroom', 2)
    pose = trajectory(scene, 0).pose((stamp - start) / SECOND)
    camera = SimConfig(width=160, height=120, fov=90.0).camera()
    np.testing.assert_array_equal(
        depth_array(front[stamp][2]), render(scene, camera, pose).depth)
    pose[:2, :3] *= -1  # half a turn about the vertical
    # Rounding of the pose may move an edge by a pixel.
    close = np.isclose(depth_array(rear[stamp][2]), render(scene, camera, pose).depth, atol=0.01)
    assert close.mean() > 0.99


def test_too_high_a_rate_is_said_once_and_pictures_are_skipped(domain, tmp_path):
    with filming(domain, tmp_path, rate=120.0, width=1280, height=960) as (process, peer):
        complaint = process.wait_for('Rendering cannot keep up with 120 Hz')
        before = len(peer.messages['image'])
        peer.wait(lambda: len(peer.messages['image']) > before + 3, 'more pictures')
        stamps = [stamp_of(m) for m in peer.messages['image']]
    assert process.output.count('cannot keep up') == 1
    # Not the summary: a process that is late to its end, on a busy machine, has none.
    assert int(re.search(r'(\d+) pictures skipped', complaint)[1]) > 0
    assert max(np.diff(stamps)) > SECOND / 120 * 1.5  # what is late is left out, not queued


def test_simulated_time_is_the_time_of_the_pictures_and_may_go_back(domain, tmp_path):
    settings = {'rate': 10.0, 'kind': 'office', 'use_sim_time': True}
    with filming(domain, tmp_path, **settings) as (process, peer):
        clock = peer.publisher('/clock', Clock)

        def tick(seconds):
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(round(seconds * SECOND), SECOND)
            clock.publish(message)

        def run_from(second):
            times = itertools.count(second, 0.02)
            peer.wait(lambda: tick(next(times)) or any(
                second <= stamp_of(m) / SECOND for m in peer.messages['image'][known:]),
                f'a picture after {second} s')

        known = 0
        run_from(500.0)
        assert stamp_of(peer.messages['image'][0]) < 600 * SECOND
        known = len(peer.messages['image'])
        run_from(100.0)
        process.wait_for('The time went back: starting again')
        process.wait_for('office, seed 0, from stamp 10')


# In this process -----------------------------------------------------------------------------

@pytest.fixture
def make_node(domain):
    """Make nodes from ROS arguments."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=domain)
    nodes = []

    def make(*extra, **parameters):
        given = arguments(**parameters) + list(extra)
        nodes.append(SimCameraNode(context=context, cli_args=given, use_global_arguments=False))
        return nodes[-1]
    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown(context=context)
    gc.collect()  # nodes that refused their parameters


@pytest.mark.parametrize(('parameters', 'message'), [
    ({'sede': 1}, "unknown setting 'sede'"),
    ({'kind': 'kitchen'}, "kind: 'kitchen' is none of all, bathroom"),
    ({'rate': -1.0}, 'rate: -1.0 Hz is outside'),
    ({'cameras': '[front, front]'}, 'cameras: .* one name twice'),
    ({'cameras': '[1st]'}, 'cannot be a ROS namespace'),
])
def test_wrong_parameters_are_refused(make_node, parameters, message):
    with pytest.raises(ConfigError, match=message):
        make_node(**parameters)


def test_parameters_are_fixed(make_node):
    node = make_node(rate=7)  # a whole number will do
    assert node.get_parameter('rate').value == 7.0
    result, = node.set_parameters([Parameter('seed', value=5)])
    assert 'read-only' in result.reason


def test_without_subscribers_nothing_is_rendered(make_node, monkeypatch):
    monkeypatch.setattr(SimulatedView, 'frame', lambda *_: pytest.fail('rendered for nobody'))
    node = make_node()
    node._tick()
    assert node.published == 1


def test_the_transform_takes_points_of_the_camera_into_the_room():
    pose = camera_pose((1.0, 2.0, 1.4), yaw=2.0, pitch=-0.2, roll=0.1)
    message = transform(Header(frame_id='cam'), 'world', pose)
    assert isinstance(message, TransformStamped)
    assert (message.header.frame_id, message.child_frame_id) == ('world', 'cam')
    place, q = message.transform.translation, message.transform.rotation
    assert [place.x, place.y, place.z] == [1.0, 2.0, 1.4]
    point, axis = np.array([0.3, -0.5, 2.0]), np.array([q.x, q.y, q.z])
    turned = point + 2 * np.cross(axis, np.cross(axis, point) + q.w * point)
    np.testing.assert_allclose(turned, pose[:3, :3] @ point, atol=1e-9)
