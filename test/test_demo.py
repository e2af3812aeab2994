# SPDX-License-Identifier: Apache-2.0
"""`depthclip demo`: its pictures, and the whole of it with a tiny network on a real graph."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time
from ros_harness import own_domain
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from depthclip_ros.cli import demo as demo_command
from depthclip_ros.cli import main as cli
from depthclip_ros.cli.demo_recorder import Album, Frame
from depthclip_ros.drawing.color import UNTRAINED
from depthclip_ros.messages.image_io import image_fields
from depthclip_ros.messages.message_types import create_message
from depthclip_ros.messages.outputs import cloud_message

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = """
/**:
  ros__parameters:
    backbone: auto
    input_height: 96
    input_width: 128
    num_threads: 1
"""


def read_ply(path):
    header, _, body = path.read_bytes().partition(b'end_header\n')
    count = int(header.split(b'element vertex ')[1].split()[0])
    table = np.frombuffer(body, [
        ('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('r', 'u1'), ('g', 'u1'), ('b', 'u1')])
    assert len(table) == count
    return header.decode(), table


# Pictures -----------------------------------------------------------------------------------


def frame(number, encoding='32FC1'):
    """A frame whose depth tells its number; its cloud has one point of two."""
    header = Header(frame_id='camera', stamp=Time(sec=number))
    depth = np.full((12, 16), 1 + number / 100, np.float32)
    values = depth if encoding == '32FC1' else np.rint(1000 * depth).astype(np.uint16)
    return Frame(
        Image(**image_fields(np.full((12, 16, 3), number, np.uint8), 'rgb8', header)), 1.0,
        Image(**image_fields(values, encoding, header)), 1.25, 0.25, number,
        cloud_message(create_message, header, np.array([[[0, 0, 1], [2, -1, 1]]], np.float32),
                      np.array([[np.nan, 3]], np.float32),
                      np.array([[[1, 2, 3], [7, 8, 9]]], np.uint8)))


@pytest.mark.parametrize(('count', 'known', 'expected'), [
    (1, False, [1]), (4, False, [1, 2, 3, 4]), (5, False, [1, 3, 5]),
    (37, False, [1, 17, 33]), (12, True, [1, 4, 7, 10]), (50, True, [1, 14, 27, 40])])
def test_an_album_keeps_few_frames_of_the_whole_run(tmp_path, count, known, expected):
    """At most four; what was written of the others goes, and nothing else."""
    strangers = {'thesis.txt', 'mydepth.png', 'color_1.png'}
    for name in strangers:
        (tmp_path / name).touch()
    album = Album(tmp_path, 4, count if known else None, (1.0, 3.0), trained=True)
    for number in range(1, count + (3 if known else 1)):  # there may be more than expected
        album.add(frame(number, '16UC1' if number % 2 else '32FC1'))
    files = album.close('title')
    assert {*files} - strangers == {'overview.png', 'input.png', *(
        f'{name}_{number:03d}.{ending}' for number in expected
        for name, ending in (('depth', 'png'), ('color', 'png'), ('cloud', 'ply')))}
    assert {path.name for path in tmp_path.iterdir()} == {*files, *strangers}
    for number in expected:
        depth = cv2.imread(str(tmp_path / f'depth_{number:03d}.png'), -1)
        assert depth.dtype == np.uint16
        assert (depth == 1000 + 10 * number).all()
    header, points = read_ply(tmp_path / 'cloud_001.ply')
    assert points.tolist() == [(6, -3, 3, 7, 8, 9)]
    assert UNTRAINED not in header


def test_an_album_of_untrained_depth_says_so_in_picture_and_cloud(tmp_path):
    album = Album(tmp_path, 1, None, (1.0, 3.0), trained=False)
    album.add(frame(1))
    album.close('')
    assert cv2.imread(str(tmp_path / 'color_001.png'))[0, 5, 2] > 150  # the red stripe
    assert UNTRAINED in read_ply(tmp_path / 'cloud_001.ply')[0]


def test_what_the_user_has_set_of_the_graph_stays(monkeypatch):
    for name in demo_command.DISCOVERY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('ROS_DOMAIN_ID', '33')
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    with mock.patch.dict(os.environ):
        demo_command.isolate()
        assert os.environ['ROS_DOMAIN_ID'] == '33'
        assert os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'SUBNET'
    for distribution, name, value in (('jazzy', 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST'),
                                      ('humble', 'ROS_LOCALHOST_ONLY', '1')):
        with mock.patch.dict(os.environ, ROS_DISTRO=distribution):
            del os.environ['ROS_DOMAIN_ID'], os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE']
            demo_command.isolate()
            assert os.environ[name] == value
            assert 1 <= int(os.environ['ROS_DOMAIN_ID']) <= 101


# The whole ----------------------------------------------------------------------------------


@pytest.fixture
def demo(tmp_path, tiny_weights):
    """Start `depthclip demo` with the tiny network."""
    (tmp_path / 'tiny.yaml').write_text(SETTINGS)
    with own_domain() as domain:

        def start(*arguments):
            command = [sys.executable, '-m', 'depthclip_ros.cli.main', 'demo', '--device', 'cpu',
                       '--config', str(tmp_path / 'tiny.yaml'), '-o', str(tmp_path / 'out'),
                       '--weights', str(tiny_weights), *map(str, arguments)]
            return subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**os.environ, 'ROS_DOMAIN_ID': str(domain)})

        def run(*arguments):
            process = start(*arguments)
            try:
                output, error = process.communicate(timeout=300)
            finally:
                process.kill()
            assert 'Traceback' not in error, error
            assert children_of(tmp_path / 'out') == []
            return process.returncode, output, error, tmp_path / 'out'

        run.start = start
        yield run


def children_of(folder):
    """Command lines of nodes that mention a folder."""
    found = []
    for entry in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            command = entry.read_bytes().replace(b'\0', b' ').decode(errors='replace')
        except OSError:
            continue
        if str(folder) in command and 'depth_node' in command:
            found.append(command)
    return found


def test_the_demo_leaves_depth_pictures_clouds_and_a_summary(demo):
    code, output, error, out = demo('--frames', 12, '--rate', 20)
    assert code == 0, error
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['trained'] is True
    frames, node = summary['frames'], summary['node_diagnostics']
    assert frames['in'] >= frames['out'] >= 12
    assert frames['clouds'] > 0
    # The node's own account of the end of the run; a few more may have come since.
    assert int(node['published']) >= 12
    assert sum(int(node[key]) for key in ('published', 'dropped', 'rejected', 'idle', 'pending')
               ) == int(node['received'])
    assert 0 < summary['latency_ms']['p50'] <= summary['latency_ms']['p99']
    assert summary['rate_hz'] > 0
    assert summary['model']['weights'] == 'tiny.pt'
    assert set(summary['files']) == {
        path.name for path in out.iterdir() if path.suffix in ('.png', '.ply')}
    for name in ('color', 'depth'):
        assert [path.name for path in sorted(out.glob(f'{name}_*.png'))] == [
            f'{name}_{number:03d}.png' for number in range(1, 13, 2)]
    # Not every frame has a cloud: the first image may overtake its camera_info, which comes on
    # another topic, and on a busy machine a cloud may be later than the demo waits.
    clouds = sorted(out.glob('cloud_*.ply'))
    assert clouds
    depth = cv2.imread(str(out / 'depth_001.png'), cv2.IMREAD_UNCHANGED)
    assert (depth.dtype, depth.shape) == (np.uint16, (480, 640))
    assert 1000 <= depth.min() <= depth.max() <= 3000
    header, points = read_ply(clouds[0])
    assert len(points) == 12  # 3 x 4 patches
    assert 1 <= points['z'].min() <= points['z'].max() <= 3
    assert UNTRAINED not in header + output + error
    for text in ('rate:', 'latency:  p50', 'dropped', str(out)):
        assert text in output
    suggestions_work(output, out)


def suggestions_work(output, out):
    """Three commands at the end: the first is run, the others are understood as printed."""
    lines = output.partition('Try next:\n')[2].splitlines()
    commands = [shlex.split(line) for line in lines[::2]]
    assert [command[:2] for command in commands[:2]] == [
        ['depthclip', 'predict'], ['depthclip', 'demo']]
    assert all(line.startswith('    # ') for line in lines[1::2])
    for command in commands:
        cli._parser().parse_args(command[1:])
    assert cli.main(commands[0][1:]) == 0
    assert (out / 'predicted' / 'input_depth.png').exists()
    # The first image is as the camera took it: the left half of the first picture shows it.
    shown, taken = cv2.imread(str(out / 'color_001.png')), cv2.imread(str(out / 'input.png'))
    assert (shown[40:440, 20:600] == taken[40:440, 20:600]).mean() > 0.95


def test_every_given_picture_is_answered_and_bad_ones_make_the_exit_code_1(demo, tmp_path):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    levels = [0, 50, 100, 150, 200]
    for level in levels:
        cv2.imwrite(str(folder / f'{level:03d}.png'), np.full((60, 80, 3), level, np.uint8))
    (folder / 'bad.png').write_bytes(b'garbage')
    code, _, error, out = demo('--images', folder)
    assert code == 1
    assert 'bad.png: is no picture' in error
    # A picture that waits too long for its answer is sent again.
    assert json.loads((out / 'summary.json').read_text())['frames']['out'] >= 5
    shown = [cv2.imread(str(path))[30, 40, 0] for path in sorted(out.glob('color_*.png'))]
    assert shown == sorted(shown)
    assert sorted(set(shown)) == levels


def test_a_bag_is_replayed(demo, tmp_path):
    """Under the names that its topics have, with its own times."""
    pytest.importorskip('rosbags')
    from drives import camera_of_width, drive, write_drive
    bag = write_drive(tmp_path / 'bag', drive(rooms=1, frames=8, camera=camera_of_width(64)))
    code, _, error, out = demo('--bag', bag)
    assert code == 0, error
    summary = json.loads((out / 'summary.json').read_text())
    assert 0 < summary['frames']['out'] <= summary['frames']['in'] <= 8
    assert summary['frames']['clouds'] > 0
    assert 0 < summary['latency_ms']['p50'] < 60000
    assert summary['latency_ms']['from'] == 'arrival of the image'


def test_an_interrupt_stops_everything_and_keeps_what_came(demo, tmp_path):
    process = demo.start('--frames', 100000)
    try:
        first = tmp_path / 'out' / 'depth_001.png'
        while not first.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert 'Traceback' not in error
    assert 'begin with' in output
    assert (tmp_path / 'out' / 'overview.png').exists()
    assert children_of(tmp_path / 'out') == []


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGHUP])
def test_a_signal_counts_unless_it_is_ignored_as_under_nohup(number):
    before = signal.getsignal(number)
    try:
        signal.signal(number, signal.SIG_IGN)
        with demo_command.interruptible():
            assert signal.getsignal(number) == signal.SIG_IGN
        signal.signal(number, signal.SIG_DFL)
        with demo_command.interruptible() as check:
            signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt):
                check()
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


# Without the node ---------------------------------------------------------------------------


@pytest.fixture
def demo_here(tmp_path, monkeypatch, capsys):
    """Run `depthclip demo` in this process; what stands in for the node is a Python program."""
    def run(program, *arguments, **environment):
        monkeypatch.setattr(demo_command, '_node_arguments', lambda *_: ['-c', program])
        with own_domain() as domain, mock.patch.dict(
                os.environ, {**environment, 'ROS_DOMAIN_ID': str(domain)}):
            code = cli.main(['demo', '-o', str(tmp_path / 'out'), *map(str, arguments)])
        settings = yaml.safe_load((tmp_path / 'out/depth_node.yaml').read_text())
        summary = json.loads((tmp_path / 'out/summary.json').read_text())
        return code, *capsys.readouterr(), settings['/**']['ros__parameters'], summary

    return run


NOWHERE = dict.fromkeys(('https_proxy', 'HTTPS_PROXY'), 'http://127.0.0.1:9')
DIES = ('print("[WARN] [1.5] [n]: too warm\\n[WARN] [2.5] [n]: too warm"); '
        'raise SystemExit("no node today")')
LISTENS = """
import rclpy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node('depth_node')
node.create_subscription(Image, 'image', print, 1)
node.create_publisher(Image, 'depth/image', 1)
rclpy.spin(node)
"""


def test_without_a_network_the_node_gets_untrained_weights(demo_here, tmp_path):
    (tmp_path / 'rn50.yaml').write_text(SETTINGS.replace('auto', 'RN50'))
    _, _, error, settings, summary = demo_here(
        DIES, '--config', tmp_path / 'rn50.yaml', **NOWHERE)
    assert 'WARNING: no trained weights: ' in error
    assert f'*** {UNTRAINED}' in error
    assert settings['weights'] == 'untrained'
    assert summary['trained'] is False
    assert summary['statement'] == UNTRAINED


def test_weights_that_are_named_never_fall_back(demo_here, tmp_path):
    (tmp_path / 'broken.pt').write_bytes(b'no weights')
    code, _, error, settings, summary = demo_here(DIES, '--weights', tmp_path / 'broken.pt')
    assert code == 1
    assert 'depth_node ended' in error
    assert 'no node today' in error
    assert settings['weights'] == str(tmp_path / 'broken.pt')
    assert summary['frames']['out'] == 0


def test_a_source_without_images_is_named_in_the_last_line(demo_here, tmp_path):
    (tmp_path / 'film.avi').write_bytes(b'garbage')
    code, output, error, _, summary = demo_here(
        LISTENS, '--video', tmp_path / 'film.avi', '--weights', 'demo')
    assert code == 1
    last = error.splitlines()[-1]
    assert last.startswith('depthclip demo: there was no image')
    assert 'film.avi: ' in last
    assert last.endswith('source.log)')
    assert not output  # no rates of nothing
    assert summary['frames']['out'] == 0
