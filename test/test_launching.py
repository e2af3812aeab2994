# SPDX-License-Identifier: Apache-2.0
"""What the launch files start, where launch itself is not installed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from depthclip_ros import resources
from depthclip_ros.core.errors import BagError, ConfigError, DepthClipError
from depthclip_ros.launch_support import launching

ROOT = Path(__file__).resolve().parents[1]
RAW, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
INFO = 'sensor_msgs/msg/CameraInfo'
ARGUMENTS = {**dict.fromkeys(launching.ARGUMENTS, ''),
             'params_file': str(ROOT / 'config/demo.yaml')}


def make_plan(namespace='/', **arguments):
    return launching.plan_launch({**ARGUMENTS, **arguments}, namespace)


@pytest.fixture
def bag(tmp_path):
    """Make a bag folder, which is judged by its metadata alone."""
    def write(*topics):
        entries = [{'topic_metadata': {'name': name, 'type': kind}, 'message_count': 3}
                   for name, kind in topics]
        (tmp_path / 'metadata.yaml').write_text(yaml.safe_dump({'rosbag2_bagfile_information': {
            'storage_identifier': 'mcap', 'topics_with_message_count': entries}}))
        return str(tmp_path)
    return write


def camera(name, kind=RAW):
    return [(f'/{name}/image' + '/compressed' * (kind == COMPRESSED), kind),
            (f'/{name}/camera_info', INFO)]


# The node ------------------------------------------------------------------------------------


def test_arguments_become_parameters_and_remappings():
    plan = make_plan()
    assert (plan.parameters, plan.remappings, plan.topics, plan.notes) == ({}, [], [], [])
    plan = make_plan(image='/cam/image_raw', weights='demo', device='cpu', use_sim_time='true')
    assert plan.parameters == {'weights': 'demo', 'device': 'cpu', 'use_sim_time': True}
    assert dict(plan.remappings) == {
        'image': '/cam/image_raw', 'image/compressed': '/cam/image_raw/compressed',
        'camera_info': '/cam/camera_info'}


def test_compressed_images_of_several_cameras():
    plan = make_plan(cameras='left, right', image='/l/image/compressed,/r/image/compressed',
                     camera_info='/l/info,/r/info')
    assert plan.parameters == {'cameras': ['left', 'right'], 'image_transport': 'compressed'}
    assert dict(plan.remappings)['right/camera_info'] == '/r/info'
    assert dict(plan.remappings)['left/image/compressed'] == '/l/image/compressed'


@pytest.mark.parametrize(('arguments', 'words'), [
    ({'cameras': 'left,right', 'image': '/left/image_raw'}, '1 topics for 2 cameras'),
    ({'image': '/a/image,/b/image'}, '2 topics for 1 cameras'),
    ({'cameras': 'left,right', 'image': '/a,/b/compressed'}, 'some are compressed'),
    ({'weights': '/nowhere.pt'}, "weights: '/nowhere.pt' cannot be read: No such file"),
    ({'weights': str(ROOT)}, f"weights: '{ROOT}' cannot be read: it is a folder"),
    ({'weights': 'RN5'}, "weights: 'RN5' cannot be read"),
    ({'calibration': '/nowhere'}, "calibration: '/nowhere' cannot be read"),
    ({'respawn': 'true', 'required': 'true'}, 'give one of them'),
    ({'params_file': '/nowhere.yaml'}, 'cannot read the parameter file'),
    ({'bag': '/nowhere'}, 'There is no bag at ./nowhere'),
    *(({name: 'maybe'}, f"{name}: 'maybe' is not true or false")
      for name in ('use_sim_time', 'respawn', 'required', 'rviz', 'offline')),
    *(({'respawn_delay': text}, f'respawn_delay: .*{words}') for text, words in (
        ('soon', 'not a number'), ('-1', 'outside'), ('inf', 'outside'))),
    ({'temperature': 'hot'}, "temperature: 'hot' is not a number"),
    ({'temperature': '-1'}, 'is outside'), ({'flip_average': '2'}, 'not true or false'),
    ({'bins': '[1, 2'}, 'is no value'), ({'tokens': 'near,far'}, 'the arguments of the launch'),
    ({'tokens': '[no, yes, far, a, b, 1, c, d, e, f]'}, 'same type; quote texts'),
    ({'tokens': '[1, 2, 3, 4, 5, 6, 7]'}, 'not a list of texts'),
])
def test_arguments_that_do_not_fit_are_refused_before_anything_starts(arguments, words):
    with pytest.raises(DepthClipError, match=words):
        make_plan(**arguments)


def test_a_parameter_file_must_be_for_the_node_where_it_will_be(tmp_path):
    path = tmp_path / 'settings.yaml'
    path.write_text('/front/depth_node:\n  ros__parameters:\n    offline: true\n')
    assert make_plan('/front', params_file=str(path)).params_files == [str(path)]
    with pytest.raises(ConfigError, match='no section for /depth_node; found'):
        make_plan(params_file=str(path))
    path.write_text('/**:\n  ros__parameters:\n    ofline: true\n')
    with pytest.raises(ConfigError, match="unknown setting 'ofline'"):
        make_plan(params_file=str(path))


@pytest.mark.parametrize(('weights', 'name'), [('', 'depth'), ('demo', 'demo')])
def test_without_a_parameter_file_the_weights_have_their_own(weights, name):
    path, = make_plan(params_file='', weights=weights).params_files
    assert Path(path) == ROOT / 'config' / f'{name}.yaml'


@pytest.mark.parametrize(('name', 'text', 'value'), [
    ('temperature', '2', 2.0), ('input_height', '96', 96), ('flip_average', 'true', True),
    ('tokens', 'no,yes,1,a b,c,d,e,f,g,h', ['no', 'yes', '1', 'a b', *'cdefgh']),
    ('tokens', '["no", "yes", "1", a, b, c, d, e, f, g]', ['no', 'yes', '1', *'abcdefg']),
    ('bins', '1,2,3,4,5,6,7,8,9,10', [*map(float, range(1, 11))]),
    ('cameras', 'front, rear', ['front', 'rear']), ('anchor_pose', '1 0 0 0 0 0', '1 0 0 0 0 0'),
    ('image_transport', 'compressed', 'compressed'),
    *((name, text, value) for name in ('use_sim_time', 'flip_average') for text, value in (
        ('True', True), ('1', True), ('yes', True), ('FALSE', False), ('0', False), ('no', False)))
])
def test_every_setting_is_an_argument(name, text, value):
    assert repr(make_plan(**{name: text}).parameters) == repr({name: value})  # types, too


def test_overlays_count_in_their_order_and_arguments_before_them(tmp_path):
    first, second = tmp_path / 'first.yaml', tmp_path / 'second.yaml'
    first.write_text('/**:\n  ros__parameters: {temperature: 3.0, max_age: 4.0, anchor: scan}\n')
    second.write_text('/depth_node:\n  ros__parameters: {temperature: 5, use_sim_time: true}\n')
    overlay = f'{first}, {second}'
    plan = make_plan(overlay=overlay, max_age='6.5')
    assert plan.parameters == {'temperature': 5.0, 'max_age': 6.5, 'anchor': 'scan'}
    # The files go along for what is ROS's own, such as use_sim_time and qos_overrides.
    assert plan.params_files == [ARGUMENTS['params_file'], str(first), str(second)]
    with pytest.raises(ConfigError, match='no section for /front/depth_node'):
        make_plan('/front', overlay=overlay)
    second.write_text('/**:\n  ros__parameters: {temprature: 5}\n')
    with pytest.raises(ConfigError, match=r"second\.yaml: unknown setting 'temprature'"):
        make_plan(overlay=overlay)
    # Settings that only fit together may come from several places.
    second.write_text('/**:\n  ros__parameters: {bins: [1, 2]}\n')
    assert make_plan(overlay=overlay, tokens='near,far').parameters['bins'] == [1.0, 2.0]
    with pytest.raises(ConfigError, match=r'and the arguments of the launch: .*bins'):
        make_plan(overlay=overlay)


KNOWN = ['weights', 'image', 'cameras', 'bag']


def strangers(given, typed):
    return launching.unknown_arguments(given, typed, KNOWN, 'depth.launch.py')


def test_a_misspelt_argument_is_refused_before_anything_starts():
    for name, meant in (('weigths', 'weights'), ('imge', 'image')):
        with pytest.raises(ConfigError, match=f"{name}:= is no argument .* mean '{meant}'"):
            strangers([name, 'bag'], [name, 'bag'])
    assert strangers(['bag'], ['bag']) == []
    assert strangers(['robot'], ['robot']) == [
        'robot:= is no argument of depth.launch.py and has no effect']
    # A launch file that includes ours may have arguments of its own; the last is the include's.
    of_both, typed = ['camera', 'robot', 'image'], ['camera', 'robot']
    assert strangers(of_both, typed) == []
    note, = strangers([*of_both, 'weigths'], typed)
    assert "did you mean 'weights'" in note


def test_what_stands_around_an_include_is_no_argument():
    for name in ('ros_namespace', 'ros_remaps', 'global_params'):
        assert launching.unknown_arguments(
            ['bag', name], ['bag'], launching.ARGUMENTS, 'depth.launch.py') == []


# How it ends ---------------------------------------------------------------------------------


def test_the_node_ends_its_neighbours_only_when_asked_and_with_a_replay(bag):
    path = bag(*camera('cam'))
    for arguments, ending in (
            ({}, (False, False)), ({'required': 'true'}, (False, True)),
            ({'respawn': 'true'}, (True, False)), ({'bag': path}, (False, True)),
            ({'bag': path, 'required': 'false'}, (False, False)),
            ({'bag': path, 'respawn': 'true'}, (True, False))):
        plan = make_plan(**arguments)
        assert (plan.launch.respawn, plan.launch.required) == ending, arguments
    assert make_plan(respawn='true').launch.respawn_delay == 5.0
    assert make_plan(respawn='true', respawn_delay='0').launch.respawn_delay == 0.0


def test_a_failure_is_told_to_the_loop_of_the_launch_and_ends_nothing():
    loop, told = asyncio.new_event_loop(), []
    loop.set_exception_handler(lambda _, context: told.append(context['message']))
    for code, is_shutdown, actions in ((0, False, ['end']), (-9, False, ['end']), (-9, True, [])):
        assert launching.on_exit(
            'depth_node', SimpleNamespace(returncode=code),
            SimpleNamespace(is_shutdown=is_shutdown, asyncio_loop=loop), ['end']) == actions
    loop.close()
    assert told == ['depth_node has died (exit code -9)']


# Replay --------------------------------------------------------------------------------------


def test_the_camera_of_a_bag_is_found_and_the_player_waits_for_the_node(bag):
    plan = make_plan(bag=bag(*camera('cam', COMPRESSED), *camera('depth')))
    assert plan.parameters == {'use_sim_time': True, 'image_transport': 'compressed'}
    assert plan.topics == ['/cam/image/compressed', '/cam/camera_info']
    assert plan.notes == []
    plan = make_plan(bag=bag(('/cam/image', RAW)))
    assert 'no cloud' in plan.notes[0]
    assert plan.topics == ['/cam/image']


def test_several_cameras_of_a_bag(bag):
    path = bag(*camera('left'), *camera('right'))
    assert dict(make_plan(bag=path, cameras='left,right').remappings)['right/image'] \
        == '/right/image'
    with pytest.raises(BagError, match='several cameras: /left/image, /right/image'):
        make_plan(bag=path)
    with pytest.raises(BagError, match='camera up: the bag has no topic under /up/'):
        make_plan(bag=path, cameras='left,up')


def test_nothing_of_pip_is_needed(bag):
    """`ros2 launch` runs in the system's Python."""
    path = bag(*camera('cam'))
    code = ('import sys\n'
            'for name in ("torch", "numpy", "cv2", "clip", "rosbags", "rclpy"):\n'
            '    sys.modules[name] = None\n'
            'from depthclip_ros.launch_support.launching import plan_launch\n'
            f'print(plan_launch({({**ARGUMENTS, "bag": path})!r}, "/").topics)')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False,
                          capture_output=True, text=True)
    assert '/cam/image' in done.stdout, done.stderr


# Shared memory -------------------------------------------------------------------------------


def test_large_images_get_a_profile_where_the_user_has_none(monkeypatch):
    room = SimpleNamespace(free=2**30)
    monkeypatch.setattr(resources.shutil, 'disk_usage', lambda _: room)
    profile = resources.large_images_profile({})
    for distribution, name in zip(('humble', 'jazzy', 'kilted', 'lyrical'), (
            *[resources.PROFILE_VARIABLES[0]] * 2, *[resources.PROFILE_VARIABLES[1]] * 2),
            strict=True):
        assert [*resources.large_images_profile({'ROS_DISTRO': distribution})] == [name]
    assert set(map(Path, profile.values())) == {ROOT / 'config' / 'fastdds_large_images.xml'}
    for name in (*resources.PROFILE_VARIABLES, 'FASTDDS_BUILTIN_TRANSPORTS'):
        assert resources.large_images_profile({name: 'mine'}) == {}
    assert resources.large_images_profile({'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'}) == {}
    assert resources.large_images_profile({'RMW_IMPLEMENTATION': 'rmw_fastrtps_cpp'})
    room.free = 64 * 2**20
    assert resources.large_images_profile({}) == {}
