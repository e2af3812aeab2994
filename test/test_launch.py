# SPDX-License-Identifier: Apache-2.0
"""The launch files, for real: launched, with the nodes and the replay as their processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('launch_ros', reason='launch_ros is not installed (the wheels lack it)')
pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('rosbags', reason='rosbags is not installed')
from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
)

try:
    get_package_prefix('depthclip_ros')
except PackageNotFoundError:
    pytest.skip('depthclip_ros is not installed in this ROS', allow_module_level=True)

import bags
import rclpy
from rcl_interfaces.srv import GetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from ros_harness import own_domain
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

ROOT = Path(__file__).resolve().parents[1]
LAUNCH_FILE = ROOT / 'launch' / 'depth.launch.py'
DEMO_FILE = ROOT / 'launch' / 'demo.launch.py'
PATIENCE = 90.0

# What `ros2 launch` does, without needing ros2launch.
RUNNER = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource
arguments = [tuple(text.split(':=', 1)) for text in sys.argv[2:]]
service = LaunchService(argv=sys.argv[2:])
source = AnyLaunchDescriptionSource(sys.argv[1])
service.include_launch_description(LaunchDescription([
    IncludeLaunchDescription(source, launch_arguments=arguments)]))
sys.exit(service.run())
"""


@pytest.fixture(scope='module', autouse=True)
def domain():
    with own_domain() as number, pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_DOMAIN_ID', str(number))
        yield


@pytest.fixture
def settings(tmp_path, tiny_weights):
    """Parameter file for a small, fast network; bound to the node's name, not to /**."""
    path = tmp_path / 'settings.yaml'
    path.write_text(
        f'/**/depth_node:\n  ros__parameters:\n    weights: {tiny_weights}\n    backbone: auto\n'
        '    device: cpu\n    num_threads: 1\n    input_height: 96\n    input_width: 128\n'
    )
    return path


@pytest.fixture
def no_weights(tmp_path):
    """A file that is there, but no network: the node ends."""
    path = tmp_path / 'no_weights.pt'
    path.write_text('no weights')
    return path


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    return bags.rendered(tmp_path_factory.mktemp('bag') / 'room', frames=30)


def stamps_of(messages):
    """Stamps in nanoseconds."""
    return [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in messages]


def recorded_stamps(bag, topic=bags.IMAGE):
    return {seconds * 10**9 + nanoseconds for seconds, nanoseconds in (
        struct.unpack_from('<iI', data, 4) for _, data in bags.messages(bag)[topic])}


class Launched:
    """The launch file in a process, its output, and a peer on the same ROS graph."""

    def __init__(self, *arguments, file=LAUNCH_FILE):
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        self.process = subprocess.Popen(
            [sys.executable, '-c', RUNNER, file, *map(str, arguments)],
            env={**os.environ, 'PYTHONPATH': path}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        self.context = Context()
        rclpy.init(context=self.context)
        self.peer = rclpy.create_node('peer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.peer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.executor.shutdown()
        self.peer.destroy_node()
        self.context.try_shutdown()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def listen(self, kind, topic):
        got = []
        self.peer.create_subscription(kind, topic, got.append, 20)
        return got

    def spin_until(self, condition, seconds=PATIENCE):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            self.executor.spin_once(timeout_sec=0.05)
        return False

    def parameters(self, node, *names):
        client = self.peer.create_client(GetParameters, f'{node}/get_parameters')
        assert self.spin_until(client.service_is_ready), 'the node never came'
        future = client.call_async(GetParameters.Request(names=list(names)))
        assert self.spin_until(future.done)
        return future.result().values

    def output_at_end(self):
        assert self.spin_until(lambda: self.process.poll() is not None), 'it never ended'
        return self.process.stdout.read()

    def read_until(self, words):
        """Output up to the line that has these words, or to its end."""
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if words in line:
                break
        return ''.join(lines)

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        return self.output_at_end()


def test_replays_a_bag_to_its_end(bag, settings):
    with Launched(f'params_file:={settings}', f'bag:={bag}') as launched:
        answers = [launched.listen(kind, topic) for kind, topic in (
            (Image, '/depth/image'), (CameraInfo, '/depth/camera_info'), (PointCloud2, '/points'))]
        assert launched.spin_until(lambda: answers[0]), 'no depth came'
        use_sim_time = launched.parameters('/depth_node', 'use_sim_time')[0].bool_value
        output = launched.output_at_end()
        assert launched.process.returncode == 0, output
    assert use_sim_time
    # Answers have the stamps of their images; a busy machine may leave images out.
    for messages in answers:
        stamps = stamps_of(messages)
        assert stamps == sorted(set(stamps))
        assert set(stamps) <= recorded_stamps(bag)
        assert stamps
    assert 'the bag has ended' in output
    assert 'Traceback' not in output


def test_arguments_reach_the_node_in_its_namespace(settings, tmp_path, tiny_weights):
    other = shutil.copy(tiny_weights, tmp_path / 'other.pt')
    arguments = [
        f'params_file:={settings}', 'namespace:=front', 'image:=/cam/image_raw',
        f'weights:={other}', 'device:=auto', 'use_sim_time:=True',
    ]
    with Launched(*arguments) as launched:
        weights, device, height, use_sim_time = launched.parameters(
            '/front/depth_node', 'weights', 'device', 'input_height', 'use_sim_time'
        )
        # Also over a file that names the node, which is more specific than /**.
        assert (weights.string_value, device.string_value) == (str(other), 'auto')
        assert height.integer_value == 96
        assert use_sim_time.bool_value
        for topic in ('/cam/image_raw', '/cam/camera_info'):
            assert launched.spin_until(
                lambda topic=topic: launched.peer.count_subscribers(topic) == 1
            ), topic
        assert launched.spin_until(
            lambda: launched.peer.count_publishers('/front/depth/image') == 1)
        output = launched.interrupt()
        assert launched.process.returncode == 0, output


def test_settings_are_arguments_over_overlays_over_the_file(settings, tmp_path):
    overlay = tmp_path / 'overlay.yaml'
    overlay.write_text('/**:\n  ros__parameters: {max_age: 4.0, input_timeout: 7.0}\n')
    words = ['no', '1', 'a b']
    arguments = [f'params_file:={settings}', f'overlay:={overlay}', 'max_age:=6',
                 f'tokens:={",".join(words)}', 'bins:=1,2,3', 'flip_average:=true']
    with Launched(*arguments) as launched:
        age, timeout, tokens, bins, flip, height = launched.parameters(
            '/depth_node', 'max_age', 'input_timeout', 'tokens', 'bins', 'flip_average',
            'input_height')
        assert (age.double_value, timeout.double_value) == (6.0, 7.0)
        assert list(tokens.string_array_value) == words
        assert list(bins.double_array_value) == [1.0, 2.0, 3.0]
        assert flip.bool_value
        assert height.integer_value == 96
        launched.interrupt()


INCLUDING = """
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription, LogInfo, OpaqueFunction
def told(context):
    return [LogInfo(msg=f'left behind: {sorted(context.launch_configurations)}')]
def generate_launch_description():
    include = IncludeLaunchDescription(DEPTH, launch_arguments=[('weights', WEIGHTS)])
    return LaunchDescription([include, OpaqueFunction(function=told)])
"""


@pytest.mark.parametrize('file', [LAUNCH_FILE, DEMO_FILE])
def test_an_include_leaves_no_defaults_behind(tmp_path, no_weights, file):
    outer = tmp_path / 'outer.launch.py'
    outer.write_text(INCLUDING.replace('DEPTH', repr(str(file))).replace(
        'WEIGHTS', repr(str(no_weights))))
    with Launched('rviz:=false', file=outer) as launched:
        output = launched.output_at_end()
    assert re.search(r"left behind: \['rviz', 'weights'\]", output), output


def test_everything_ends_when_the_node_cannot_start(settings, bag, no_weights):
    arguments = [f'params_file:={settings}', f'weights:={no_weights}', f'bag:={bag}']
    with Launched(*arguments) as launched:
        output = launched.output_at_end()
        assert launched.process.returncode == 1
    assert str(no_weights) in output
    assert 'depth_node has ended' in output
    assert 'playing' not in output


@pytest.mark.parametrize(('argument', 'words'), [
    ('weights:=/nowhere.pt', "'/nowhere.pt' cannot be read"),
    ('calibration:=/nowhere.safetensors', "'/nowhere.safetensors' cannot be read"),
    ('image:=/cam//image', "'/cam//image'"), ('camera_info:=/info/', "'/info/'")])
def test_what_the_node_cannot_use_is_refused_before_it_starts(argument, words):
    with Launched(argument) as launched:
        output = launched.output_at_end()
        assert launched.process.returncode == 1
    assert words in output
    assert 'process started' not in output


def test_a_replay_in_which_the_node_died_has_failed_although_it_came_back(bag, settings):
    arguments = [f'params_file:={settings}', f'bag:={bag}', 'respawn:=true', 'respawn_delay:=0.1']
    with Launched(*arguments) as launched:
        depths = launched.listen(Image, '/depth/image')
        assert launched.spin_until(lambda: depths)
        pid = int(subprocess.run(
            ['pgrep', '-n', '-g', str(launched.process.pid), '-f', 'depthclip_ros/depth_node '],
            capture_output=True, check=True).stdout)
        os.kill(pid, signal.SIGKILL)
        output = launched.output_at_end()
        assert launched.process.returncode == 1, output
    assert 'it is started again in 0.1 s' in output
    assert 'the bag has ended' in output


AROUND = """
from launch import LaunchDescription
from launch.actions import GroupAction
from launch_ros.actions import PushRosNamespace
DOCUMENTED
def generate_launch_description():
    return LaunchDescription([GroupAction([PushRosNamespace('robot'), include(
        'depthclip_ros', 'launch', 'depth.launch.py', namespace='two', weights='demo')])])
"""


def test_the_include_of_the_documents_keeps_the_namespace_around_it(tmp_path):
    page = (ROOT / 'docs/robot.md').read_text(encoding='utf-8')
    documented, = re.findall(r'```python\n(.+?)```', page, re.DOTALL)
    outer = tmp_path / 'outer.launch.py'
    outer.write_text(AROUND.replace('DOCUMENTED', documented))
    with Launched(file=outer) as launched:
        assert launched.spin_until(
            lambda: launched.peer.count_publishers('/robot/two/depth/image') == 1)
        assert 'ros_namespace' not in launched.interrupt()


@pytest.mark.parametrize('file', [LAUNCH_FILE, DEMO_FILE])
def test_a_misspelt_argument(file):
    with Launched('weigths:=demo', file=file) as launched:
        output = launched.output_at_end()
        assert launched.process.returncode == 1
    assert "did you mean 'weights'?" in output
    assert 'process started' not in output


def test_several_cameras_of_a_bag_in_one_node(tmp_path, bag, settings):
    """Found under their names; images of both are answered under their camera's name."""
    names = ('left', 'right', 'other')
    several = bags.changed(bag, tmp_path / 'several', lambda topic, _, time: [
        (f'/{name}/{topic.rpartition("/")[2]}', time) for name in names
        if topic in (bags.IMAGE, bags.INFO)])
    arguments = [f'params_file:={settings}', f'bag:={several}', 'cameras:=left, right']
    with Launched(*arguments) as launched:
        depths = {name: launched.listen(Image, f'/{name}/depth/image') for name in names[:2]}
        clouds = launched.listen(PointCloud2, '/right/points')
        output = launched.output_at_end()
        assert launched.process.returncode == 0, output
    for name, answers in depths.items():
        assert answers, name
        assert set(stamps_of(answers)) <= recorded_stamps(bag), name
    assert clouds


@pytest.fixture
def without_rviz():
    with contextlib.suppress(PackageNotFoundError):
        get_package_prefix('rviz2')
        pytest.skip('rviz2 is installed')


def test_without_rviz_nothing_starts(without_rviz):
    with Launched('rviz:=true', 'weights:=demo') as launched:
        output = launched.output_at_end()
        assert launched.process.returncode == 1
    assert re.search(r'apt install ros-\w+-rviz2', output)
    assert 'process started' not in output
    assert 'Traceback' not in output


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A package rviz2 with an executable that says how it was called."""
    prefix = tmp_path / 'standin'
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{prefix}:{os.environ.get("AMENT_PREFIX_PATH", "")}')
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    program = prefix / 'lib/rviz2/rviz2'
    for path in (prefix / 'share/ament_index/resource_index/packages/rviz2', program):
        path.parent.mkdir(parents=True)
        path.touch(mode=0o755)
    program.write_text('#!/bin/sh\necho "called: $@"\n')


SIM_TIME = """
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch_ros.actions import SetParameter
def generate_launch_description():
    return LaunchDescription([SetParameter('use_sim_time', True), IncludeLaunchDescription(DEPTH)])
"""


@pytest.mark.usefixtures('stand_in')
def test_a_parameter_that_is_set_around_an_include_reaches_rviz(tmp_path, settings):
    outer = tmp_path / 'outer.launch.py'
    outer.write_text(SIM_TIME.replace('DEPTH', repr(str(LAUNCH_FILE))))
    with Launched(f'params_file:={settings}', 'rviz:=true', file=outer) as launched:
        words = launched.read_until('called:').splitlines()[-1].split()
        given = [Path(path).read_text() for flag, path in itertools.pairwise(words)
                 if flag == '--params-file']
        launched.interrupt()
    assert '-p use_sim_time:=True' in ' '.join(words) or 'use_sim_time: true' in ''.join(given)
    assert 'use_sim_time: false' not in ''.join(given)


@pytest.mark.parametrize(('arguments', 'frame'), [
    (['cameras:=front,rear'], '-f world'),  # which sim_camera publishes
    (['cameras:=front,rear', 'fixed_frame:=front_color_optical_frame'], '-f front_color_optical'),
    ([], 'depth.rviz --ros-args')])
@pytest.mark.usefixtures('stand_in')
def test_rviz_of_the_demo_has_a_frame_that_exists(settings, tmp_path, arguments, frame):
    left = set(Path('/tmp').glob('depthclip_*'))
    with Launched(f'params_file:={settings}', *arguments, file=DEMO_FILE) as launched:
        said = launched.read_until('called:')
        launched.read_until('Active')
        launched.interrupt()
    assert frame in said.splitlines()[-1]
    if arguments:
        assert list((tmp_path / 'log').rglob('cameras.rviz'))
    assert set(Path('/tmp').glob('depthclip_*')) == left


# demo.launch.py ------------------------------------------------------------------------------


def test_the_demo_shows_rooms_to_the_node(settings, without_rviz):
    arguments = [
        f'params_file:={settings}', 'namespace:=show', 'kind:=office', 'seed:=3', 'rate:=4',
        'scene_seconds:=0', 'noise:=0.01', 'distortion:=true',
    ]
    with Launched(*arguments, file=DEMO_FILE) as launched:
        depths = launched.listen(Image, '/show/depth/image')
        truths = launched.listen(Image, '/show/depth/ground_truth')
        clouds = launched.listen(PointCloud2, '/show/points')
        seed, rate, noise, distortion, width = launched.parameters(
            '/show/sim_camera', 'seed', 'rate', 'noise', 'distortion', 'width')
        assert (seed.integer_value, rate.double_value, noise.double_value) == (3, 4.0, 0.01)
        assert distortion.bool_value
        assert width.integer_value == 640  # its own default
        assert launched.spin_until(
            lambda: clouds and set(stamps_of(depths)) & set(stamps_of(truths))), 'no depth came'
        assert (depths[0].width, depths[0].height) == (640, 480)
        output = launched.interrupt()
        assert launched.process.returncode == 0, output
    assert 'rviz2 is not installed here' in output
    assert re.search(r'camera: office, seed 3, from stamp \d+', output)
    assert 'Traceback' not in output


def test_the_demo_shows_several_cameras_to_one_node(settings):
    names = ('front', 'left', 'rear', 'right')
    arguments = [f'params_file:={settings}', f'cameras:={",".join(names)}', 'rate:=1.0',
                 'rviz:=false', 'namespace:=show']
    with Launched(*arguments, file=DEMO_FILE) as launched:
        depths = {name: launched.listen(Image, f'/show/{name}/depth/image') for name in names}
        assert launched.spin_until(lambda: all(depths.values())), depths.keys()
        output = launched.interrupt()
        assert launched.process.returncode == 0, output
    for name, answers in depths.items():
        assert {answer.header.frame_id for answer in answers} == {f'{name}_color_optical_frame'}


@pytest.mark.parametrize(('wrong', 'words'), [
    ('kind:=kitchen', "kind: 'kitchen' is none of"), ('rate:=[1', "'[1' is no value"),
    ('device:=none', "device: 'none' is none of auto")])  # which depth.launch.py refuses
def test_the_demo_ends_when_something_cannot_start(settings, wrong, words):
    with Launched(f'params_file:={settings}', wrong, 'rviz:=false', file=DEMO_FILE) as launched:
        output = launched.output_at_end()
    assert words in output
    assert 'rviz2' not in output
    # A process that launch has begun to start when it stops at an error is left behind.
    assert ('process started' in output) == wrong.startswith('kind')
    assert not subprocess.run(['pgrep', '-g', str(launched.process.pid)], check=False,
                              capture_output=True).stdout
