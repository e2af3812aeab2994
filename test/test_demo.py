# SPDX-License-Identifier: Apache-2.0
"""`depthclip demo`: its parts, and the whole of it with a tiny network on a real graph."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import yaml

from depthclip_ros.cli import main as cli
from depthclip_ros.cli import processes
from depthclip_ros.cli.album import Album, Cloud, Frame, write_ply
from depthclip_ros.color import UNTRAINED

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


# Parts -------------------------------------------------------------------------------------

def frame(number):
    return Frame(number, np.full((12, 16, 3), number, np.uint8),
                 np.full((12, 16), 1 + number / 100, np.float32),
                 Cloud(np.ones((2, 3), np.float32), np.ones((2, 3), np.uint8)), f'frame {number}')


@pytest.mark.parametrize('late', [False, True])
@pytest.mark.parametrize('count', [1, 4, 5, 8, 9, 37, 100])
def test_an_album_keeps_few_frames_spread_over_the_whole_run(tmp_path, count, late):
    album = Album(tmp_path, 4, (1.0, 3.0), trained=True)
    for number in range(1, count + 1):
        if late or album.wants(number):  # late: it was wanted when its cloud was still to come
            album.add(frame(number))
    album.close('title')
    numbers = sorted(int(path.stem[-3:]) for path in tmp_path.glob('depth_*.png'))
    assert len(numbers) == min(count, 4)
    assert numbers[0] == 1
    assert numbers[-1] > 0.6 * count
    for number in numbers:
        assert (cv2.imread(str(tmp_path / f'depth_{number:03d}.png'), -1)
                == 1000 + 10 * number).all()
    assert len(list(tmp_path.glob('color_*.png'))) == len(list(tmp_path.glob('cloud_*.ply'))) \
        == len(numbers)
    assert (tmp_path / 'overview.png').exists()


def test_an_album_puts_a_late_frame_in_its_place(tmp_path):
    album = Album(tmp_path, 2, (1.0, 3.0), trained=True)
    for number in (2, 3, 1):
        album.add(frame(number))
    album.close('')
    assert sorted(path.stem for path in tmp_path.glob('depth_*.png')) == ['depth_001', 'depth_003']


def test_an_album_removes_the_last_runs_files_and_no_others(tmp_path):
    for name in ('color_007.png', 'cloud_007.ply', 'summary.json', 'thesis.txt', 'mydepth.png'):
        (tmp_path / name).touch()
    Album(tmp_path, 4, (1.0, 3.0), trained=True).close('nothing came')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['mydepth.png', 'thesis.txt']


def test_an_album_of_untrained_depth_says_so_in_picture_and_cloud(tmp_path):
    for trained in (True, False):
        folder = tmp_path / str(trained)
        folder.mkdir()
        album = Album(folder, 1, (1.0, 3.0), trained=trained)
        album.add(frame(1))
        album.close('')
    plain, warned = (cv2.imread(str(tmp_path / name / 'color_001.png')) for name in
                     ('True', 'False'))
    assert warned.shape[0] > plain.shape[0]
    assert UNTRAINED not in read_ply(tmp_path / 'True' / 'cloud_001.ply')[0]
    assert UNTRAINED in read_ply(tmp_path / 'False' / 'cloud_001.ply')[0]


def test_ply_holds_points_and_colours(tmp_path):
    points = np.array([[1, 2, 3], [-1, 0.5, 2]], np.float32)
    write_ply(tmp_path / 'a.ply', Cloud(points, np.array([[1, 2, 3], [250, 0, 9]], np.uint8)))
    _, table = read_ply(tmp_path / 'a.ply')
    assert np.stack([table['x'], table['y'], table['z']], -1).tolist() == points.tolist()
    assert (table['r'].tolist(), table['b'].tolist()) == ([1, 250], [3, 9])


def test_depth_and_cloud_messages_are_read_back():
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from depthclip_ros.cli.recorder import cloud_points, depth_metres
    from depthclip_ros.node.image_io import depth_values, image_fields
    from depthclip_ros.node.messages import make
    from depthclip_ros.node.outputs import cloud_message
    depth = np.array([[1.25, np.nan, 3.0]], np.float32)
    for encoding in ('32FC1', '16UC1'):
        values, _ = depth_values(depth, encoding)
        message = Image(**image_fields(values, encoding, Header()))
        np.testing.assert_allclose(depth_metres(message), depth)
    rays = np.array([[[0, 0, 1], [1, 0, 1], [2, -1, 1]]], np.float32)
    colors = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], np.uint8)
    cloud = cloud_points(cloud_message(make, Header(), rays, depth, colors))
    assert cloud.points.tolist() == [[0, 0, 1.25], [6, -3, 3]]
    assert cloud.colors.tolist() == [[1, 2, 3], [7, 8, 9]]


def test_the_last_frames_wait_for_what_they_lack(tmp_path, monkeypatch):
    import rclpy
    from builtin_interfaces.msg import Time
    from ros_harness import PATIENCE, own_domain
    from sensor_msgs.msg import Image, PointCloud2
    from std_msgs.msg import Header

    from depthclip_ros.cli import recorder as recording
    from depthclip_ros.cli.recorder import Recorder
    from depthclip_ros.node.image_io import image_fields
    from depthclip_ros.node.messages import make
    from depthclip_ros.node.outputs import cloud_message
    monkeypatch.setattr(recording, 'CLOUD_SECONDS', PATIENCE)  # how long they wait at most
    header = Header(frame_id='camera')
    image = Image(header=header, height=2, width=3, encoding='rgb8', step=9)
    image.data.frombytes(bytes(18))
    depth = Image(**image_fields(np.full((2, 3), 2, np.float32), '32FC1', header))
    cloud = cloud_message(make, header, np.ones((1, 1, 3), np.float32),
                          np.ones((1, 1), np.float32), np.zeros((1, 1, 3), np.uint8))
    with own_domain() as domain:
        rclpy.init(domain_id=domain)
        try:
            album = Album(tmp_path, 3, (1.0, 3.0), trained=True)
            recorder = Recorder(album, 'image', compressed=False, reliable=True, replay=True)
            send = {topic: recorder.create_publisher(kind, topic, 10) for topic, kind in
                    (('image', Image), ('depth/image', Image), ('points', PointCloud2))}
            assert processes.wait_until(
                lambda: all(p.get_subscription_count() for p in send.values()), PATIENCE,
                lambda: recorder.spin_for(0.05))
            send['image'].publish(image)
            send['depth/image'].publish(depth)
            assert processes.wait_until(
                lambda: recorder.account.depths, PATIENCE, lambda: recorder.spin_for(0.05))

            late = Image(**image_fields(np.full((2, 3), 2, np.float32), '32FC1',
                                        Header(frame_id='camera', stamp=Time(sec=1))))
            send['depth/image'].publish(late)  # too late to begin anew

            def step():
                if recorder.account.depths > 1:
                    send['points'].publish(cloud)
                recorder.spin_for(0.05)

            recorder.finish(step)
            recorder.destroy_node()
        finally:
            rclpy.try_shutdown()
    album.close('')
    assert sorted(path.stem for path in tmp_path.iterdir()) == [
        'cloud_001', 'color_001', 'depth_001', 'input', 'overview']


def test_a_busy_domain_is_not_chosen(monkeypatch):
    some = range(60, 80)  # other tests may be on a few of them
    monkeypatch.setattr(processes, 'DOMAINS', some)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        busy = processes.free_domain()
        taken.bind(('', 7400 + 250 * busy + 10))
        chosen = {processes.free_domain() for _ in range(50)}
    assert busy not in chosen
    assert chosen <= set(some)


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', '33')
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    assert 'ROS_DOMAIN_ID=33 (as set), ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET' in processes.isolate()
    monkeypatch.delenv('ROS_DOMAIN_ID')
    monkeypatch.delenv('ROS_AUTOMATIC_DISCOVERY_RANGE')
    processes.isolate()
    assert os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert 1 <= int(os.environ['ROS_DOMAIN_ID']) <= 101


def test_a_child_reports_each_complaint_once_and_is_stopped(tmp_path):
    code = ('import time\n'
            'for _ in range(2):\n'
            '    print("[WARN] [1.5] [n]: too warm"); print("[INFO] [1.5] [n]: fine")\n'
            'time.sleep(600)')
    child = processes.Child('n', ['-c', code], tmp_path / 'n.log')
    assert processes.wait_until(lambda: child.log.read_text().count('fine') == 2, 60,
                                lambda: time.sleep(0.05))
    assert child.new_complaints() == ['[WARN] [n]: too warm']
    assert child.new_complaints() == []
    assert child.exit_code is None
    child.stop()
    assert child.exit_code not in (None, 0)
    assert 'too warm' in child.tail()


# The whole ---------------------------------------------------------------------------------

@pytest.fixture
def demo(tmp_path, tiny_weights):
    """Start `depthclip demo` with the tiny network."""
    (tmp_path / 'tiny.yaml').write_text(SETTINGS)

    def start(*arguments, weights=tiny_weights, environment=None):
        command = [sys.executable, '-m', 'depthclip_ros.cli.main', 'demo', '--device', 'cpu',
                   '--config', str(tmp_path / 'tiny.yaml'), '-o', str(tmp_path / 'out'),
                   *(['--weights', str(weights)] if weights else []), *map(str, arguments)]
        inherited = {key: value for key, value in os.environ.items() if key != 'ROS_DOMAIN_ID'}
        return subprocess.Popen(
            command, cwd=ROOT, env={**inherited, **(environment or {})}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    def run(*arguments, **options):
        process = start(*arguments, **options)
        try:
            output, error = process.communicate(timeout=300)
        finally:
            process.kill()
        assert 'Traceback' not in error, error
        return process.returncode, output, error, tmp_path / 'out'

    run.start = start
    return run


def children_of(folder):
    """Command lines of processes that mention a folder."""
    found = []
    for entry in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            command = entry.read_bytes().replace(b'\0', b' ').decode(errors='replace')
        except OSError:
            continue
        if str(folder) in command and 'depth_node' in command:
            found.append(command)
    return found


def the_account_adds_up(frames):
    assert frames['in'] == \
        frames['answered'] + frames['dropped'] + frames['waiting at the end']


def test_the_demo_leaves_depth_pictures_clouds_and_a_summary(demo):
    code, output, error, out = demo('--frames', 12, '--pictures', 3, '--rate', 20)
    assert code == 0, error
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['trained'] is True
    assert summary['frames']['out'] >= 12
    assert summary['frames']['clouds'] > 0
    the_account_adds_up(summary['frames'])
    assert 0 < summary['latency_ms']['p50'] <= summary['latency_ms']['p99']
    assert summary['rate_hz'] > 0
    assert summary['model']['weights'] == 'tiny.pt'
    names = [path.name for path in sorted(out.iterdir())]
    assert set(summary['files']) == {n for n in names if n.endswith(('.png', '.ply'))}
    for ending in ('color_*.png', 'depth_*.png'):
        assert len(list(out.glob(ending))) == 3
    # Not every frame has a cloud: the first image may overtake its camera_info, which comes on
    # another topic, and on a busy machine a cloud may be later than the demo waits.
    clouds = sorted(out.glob('cloud_*.ply'))
    numbers = {path.stem.removeprefix('depth') for path in out.glob('depth_*.png')}
    assert {path.stem.removeprefix('cloud') for path in clouds} <= numbers
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
    assert (out / 'depth_node.yaml').exists()
    assert children_of(out) == []
    suggestions_work(output, out)


def suggestions_work(output, out):
    """Three commands at the end: the first is run, the others are understood as printed.

    The second is this very demo through another lens, the third `depthclip doctor` or a webcam.
    """
    lines = output.partition('Try next:\n')[2].splitlines()
    commands = [shlex.split(line) for line in lines[::2]]
    assert [command[:2] for command in commands] in (
        [['depthclip', name] for name in ('predict', 'demo', third)] for third in
        ('doctor', 'demo'))
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
    # A picture that waits too long for its answer is sent again: there is room for all.
    code, _, error, out = demo('--images', folder, '--pictures', 100)
    assert code == 1
    assert 'bad.png: 7 bytes' in error
    frames = json.loads((out / 'summary.json').read_text())['frames']
    assert frames['out'] >= 5
    the_account_adds_up(frames)
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
    assert 0 < summary['frames']['in'] <= 8
    assert summary['frames']['answered'] > 0
    assert summary['frames']['clouds'] > 0
    the_account_adds_up(summary['frames'])
    assert summary['latency_ms']['from'] == 'arrival of the image'


NOWHERE = dict.fromkeys(('https_proxy', 'HTTPS_PROXY'), 'http://127.0.0.1:9')


@pytest.mark.nightly
def test_without_a_network_the_demo_goes_on_untrained_and_says_so(demo, tmp_path):
    """With a whole RN50, whose random weights take their time."""
    (tmp_path / 'tiny.yaml').write_text(SETTINGS.replace('auto', 'RN50'))
    code, output, error, out = demo('--frames', 2, weights=None, environment=NOWHERE)
    assert code == 0, error
    assert 'no trained weights: RN50: download' in error
    assert error.count(f'*** {UNTRAINED}') == 2  # at the beginning and at the end
    assert 'untrained RN50' in output
    assert UNTRAINED in (out / 'depth_node.log').read_text()
    picture = cv2.imread(str(out / 'color_001.png'))
    assert picture[0, 5, 2] > 150 > picture[0, 5, 0]  # the red stripe


# Without the node -------------------------------------------------------------------------------


@pytest.fixture
def demo_here(tmp_path, monkeypatch, capsys):
    """Run `depthclip demo` in this process; what stands in for the node is a Python program."""
    from ros_harness import own_domain

    def run(program, *arguments, **environment):
        monkeypatch.setattr('depthclip_ros.cli.demo._node_arguments', lambda *_: ['-c', program])
        with own_domain() as domain, mock.patch.dict(
                os.environ, {**environment, 'ROS_DOMAIN_ID': str(domain)}):
            code = cli.main(['demo', '-o', str(tmp_path / 'out'), *map(str, arguments)])
        settings = yaml.safe_load((tmp_path / 'out/depth_node.yaml').read_text())
        summary = json.loads((tmp_path / 'out/summary.json').read_text())
        return code, *capsys.readouterr(), settings['/**']['ros__parameters'], summary

    return run


DIES = 'raise SystemExit("no node today")'
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
    assert 'no trained weights: RN50: download' in error
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


# Interrupts -------------------------------------------------------------------------------------

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.fixture
def handled():
    """Handle a signal, whatever these tests were started under, until the end of the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield signal.signal
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', SIGNALS)
def test_an_interrupt_that_rclpy_turns_into_another_error_is_still_one(number, handled):
    def take_message():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise RuntimeError('Unable to convert call argument') from None

    handled(number, signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt), processes.stopping([]):
        take_message()
    assert signal.getsignal(number) == signal.SIG_DFL
    with pytest.raises(RuntimeError, match='of its own'), processes.stopping([]):
        raise RuntimeError('of its own')


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_that_is_ignored_as_under_nohup_stays_ignored(number, handled):
    handled(number, signal.SIG_IGN)
    try:
        with processes.stopping([]):
            signal.raise_signal(number)
    except KeyboardInterrupt:
        pytest.fail('it was not ignored')
    assert signal.getsignal(number) == signal.SIG_IGN


def test_an_interrupt_stops_everything_and_keeps_what_came(demo, tmp_path):
    process = demo.start('--frames', 100000)
    try:
        first = tmp_path / 'out' / 'color_001.png'
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
