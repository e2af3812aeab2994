# SPDX-License-Identifier: Apache-2.0
"""Try the installed package beside ROS's own `ros2 launch` and rosbag2, as a user would.

    python tools/try_upstream.py --bag ../shared/bags/rgbd_raw --launches 20

Run it where this package is installed and sourced (`ros2 pkg prefix depthclip_ros` finds it). It
replays every bag by launch, with each player that is there, and then tries what a launch file can
do wrong. What is not installed here is said and left out. Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ACCOUNT = re.compile(r'Stopped: .*?(\d+) received = (\d+) published \+ (\d+) dropped \+ '
                     r'(\d+) rejected \+ (\d+) idle \+ (\d+) pending(.*)')
LAUNCH = ['ros2', 'launch', 'depthclip_ros']
DEPTH = [*LAUNCH, 'depth.launch.py']
PATIENCE = 180

NEIGHBOUR = """
from launch import LaunchDescription
from launch.actions import ExecuteProcess, IncludeLaunchDescription
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare


def generate_launch_description():
    depth = PathJoinSubstitution([FindPackageShare('depthclip_ros'), 'launch', 'depth.launch.py'])
    return LaunchDescription([
        IncludeLaunchDescription(depth, launch_arguments=[('weights', '/nowhere.pt')]),
        ExecuteProcess(cmd=['sh', '-c', 'sleep 12; echo the neighbour lives'], output='screen'),
    ])
"""


class Listener:
    """Counts what the node publishes, on the graph of this process."""

    def __init__(self) -> None:
        import rclpy
        from sensor_msgs.msg import Image, PointCloud2

        self.rclpy = rclpy
        rclpy.init()
        self.node = rclpy.create_node('try_upstream')
        self.counts: Counter[str] = Counter()
        for topic, kind in (('depth/image', Image), ('points', PointCloud2)):
            self.node.create_subscription(
                kind, topic, lambda _, topic=topic: self.counts.update([topic]), 100, raw=True)

    def run(self, command: list[str], seconds: float = PATIENCE) -> tuple[int | None, str]:
        """Run a command to its end while listening; gives exit code (None: too late), output."""
        self.counts.clear()
        with tempfile.TemporaryFile('w+') as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                                       start_new_session=True)
            end = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < end:
                self.rclpy.spin_once(self.node, timeout_sec=0.1)
            code = process.poll()
            if code is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(20)
            for _ in range(20):
                self.rclpy.spin_once(self.node, timeout_sec=0.02)
            output.seek(0)
            return code, output.read()


def replay(listener: Listener, bag: str, player: str) -> list[str]:
    """Launch once; gives what was wrong."""
    from depthclip_ros.sources.bag import bag_topics, camera_topics

    topics = bag_topics(bag)
    camera = camera_topics(topics)
    image = camera.image + '/compressed' * camera.compressed
    expected = next(topic.count for topic in topics if topic.name == image)
    code, output = listener.run(
        [*DEPTH, f'bag:={bag}', f'params_file:={demo_settings()}',
         *([f'player:={player}'] if player else [])])
    found = ACCOUNT.search(output)
    if code != 0 or not found:
        return [f'exit code {code}, {"no " * (not found)}account', *output.splitlines()[-12:]]
    received, published, *others = map(int, found.groups()[:6])
    wrong = []
    if received != expected:
        wrong.append(f'{received} of {expected} images received')
    if received != published + sum(others):
        wrong.append(f'the account does not add up: {found[0]}')
    if others[1] or others[2] or others[3]:
        wrong.append(found[0])
    if 'no cloud' in found[7]:
        wrong.append(f'clouds are missing: {found[7].strip()}')
    wrong += [f'{listener.counts[topic]} of {published} came on {topic}'
              for topic in ('depth/image', 'points') if listener.counts[topic] != published]
    for line in output.splitlines():
        if 'WARN' in line:  # no failure: a busy machine may keep the node waiting
            print(f'  {line}')
    return wrong


def demo_settings() -> str:
    """Parameter file of the demo weights: no download."""
    from depthclip_ros.resources import config_path

    return str(config_path('demo'))


def trials(listener: Listener, bag: Path) -> dict[str, list[str]]:
    """What else a launch can do wrong, by name; each with what was wrong."""
    settings = f'params_file:={demo_settings()}'
    results = {}

    def trial(name: str, command: list[str], code: int | None, *words: str,
              seconds: float = PATIENCE) -> None:
        got, output = listener.run(command, seconds)
        wrong = [f'exit code {got} instead of {code}'] * (got != code)
        wrong += [f'it does not say: {word}' for word in words if word not in output]
        wrong += ['a traceback'] * ('Traceback' in output)
        results[name] = [*wrong, *(output.splitlines()[-12:] if wrong else [])]

    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder, 'neighbour.launch.py')
        other.write_text(NEIGHBOUR, encoding='utf-8')
        Path(folder, 'other.yaml').write_text('/other_node:\n  ros__parameters:\n    a: 1\n',
                                              encoding='utf-8')
        trial('a node that dies leaves its neighbours alone', ['ros2', 'launch', str(other)], 1,
              'all else goes on', 'the neighbour lives')
        trial('params_file for another node', [*DEPTH, f'params_file:={folder}/other.yaml'], 1,
              'no section for /depth_node')
    trial('a node that dies makes the exit code 1', [*DEPTH, settings, 'weights:=/nowhere.pt'], 1,
          '/nowhere.pt')
    trial('required:=true', [*DEPTH, settings, 'weights:=/nowhere.pt', 'required:=true'], 1,
          'depth_node has ended: stopping')
    trial('respawn:=true', [*DEPTH, settings, 'weights:=/nowhere.pt', 'respawn:=true'], None,
          'it is started again in 5 s', '[depth_node-1]: process started', seconds=25)
    trial('params_file that is missing', [*DEPTH, 'params_file:=/nowhere.yaml'], 1,
          'cannot read the parameter file')
    trial('weights:=demo', [*DEPTH, 'weights:=demo'], None, 'Active: ', seconds=40)
    file = next((file for file in bag.glob('*') if file.suffix in ('.mcap', '.db3')), None)
    if file is not None:
        trial('a lone bag file', [*DEPTH, settings, f'bag:={file}'], 0, 'bag: images from',
              'the bag has ended')
    trial('demo.launch.py bag:=', [*LAUNCH, 'demo.launch.py', f'bag:={bag}'], 1, 'depth.launch.py')
    trial('depthclip is on PATH', ['depthclip', '--version'], 0, 'depthclip_ros')
    return results


def missing() -> list[str]:
    """What must be installed for any of this, and is not."""
    lacking = []
    if shutil.which('ros2') is None:
        lacking.append("the command 'ros2' (ros2cli)")
    try:
        import rclpy  # noqa: F401
        from ament_index_python.packages import PackageNotFoundError, get_package_prefix
    except ImportError as error:
        return [*lacking, str(error)]

    def is_there(package: str) -> bool:
        try:
            return bool(get_package_prefix(package))
        except PackageNotFoundError:
            return False

    packages = ('ros2launch', 'launch_ros', 'depthclip_ros')
    return lacking + [f'the package {package}' for package in packages if not is_there(package)]


def main() -> int:
    """Run everything that can run here."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bag', nargs='+', required=True)
    parser.add_argument('--launches', type=int, default=20, help='of each bag and player')
    parser.add_argument('--only', choices=('replay', 'trials'))
    given = parser.parse_args()
    lacking = missing()
    if lacking:
        print(f'skipped: not installed or not sourced here: {"; ".join(lacking)}')
        return 0
    bags = [str(Path(bag).absolute()) for bag in given.bag]
    players = ['']
    if subprocess.run(['ros2', 'bag', 'play', '--help'], capture_output=True,
                      check=False).returncode == 0:
        players.append('rosbag2')
    else:
        print('left out: rosbag2 (ros2 bag play) is not installed here')
    listener = Listener()
    failures = 0
    for bag in bags if given.only != 'trials' else []:
        for player in players:
            good = 0
            for number in range(1, given.launches + 1):
                wrong = replay(listener, bag, player)
                good += not wrong
                for line in wrong:
                    print(f'  launch {number}: {line}', flush=True)
            failures += given.launches - good
            about = f'{Path(bag).name}, {player or "bag_player"}'
            print(f'{good} of {given.launches} launches complete: {about}', flush=True)
    for name, wrong in (trials(listener, Path(bags[0])) if given.only != 'replay' else {}).items():
        failures += bool(wrong)
        print(f'{"FAILED" if wrong else "passed"}: {name}', *wrong, sep='\n  ', flush=True)
    return int(failures > 0)


if __name__ == '__main__':
    sys.exit(main())
