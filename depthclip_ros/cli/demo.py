# SPDX-License-Identifier: Apache-2.0
"""`depthclip demo`: node and image source as processes on a real ROS graph, and what came out.

Everything is left in one folder: depth_NNN.png (16-bit millimetres), color_NNN.png, cloud_NNN.ply,
overview.png, input.png, summary.json, the effective settings (depth_node.yaml) and the logs.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rclpy
import yaml
from rclpy.qos import ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from .. import __version__
from ..color import UNTRAINED
from ..core import weights as core_weights
from ..core.errors import ConfigError, DepthClipError, WeightsError
from ..resources import config_path, large_images_profile
from ..sources.bag import bag_topics, camera_topics, open_bag
from ..sources.bag_player import qos_profile
from ..sources.camera_info import CameraCalibration
from ..sources.pictures import picture_files
from .album import INPUT, Album
from .model import output_folder, print_untrained, settings, to_stderr
from .processes import Child, isolate, stopping, wait_until
from .recorder import Recorder

if TYPE_CHECKING:
    import argparse

    from ..core.config import DepthConfig
    from ..node.config import NodeConfig

# Where the source never ends by itself.
DEFAULT_FRAMES = 50
DEFAULT_SECONDS = 60.0
DEFAULT_RATE = 10.0
DEFAULT_PICTURES = 10
STEP = 0.1
PROGRESS_SECONDS = 5.0
DRAIN_SECONDS = 15.0


class DemoError(DepthClipError):
    """The demo failed: no depth arrived, or a process died."""


@dataclass(frozen=True)
class Plan:
    """What to run, worked out from the command line before anything starts."""

    description: str
    source: list[str]
    image: str = 'image'
    camera_info: str = 'camera_info'
    compressed: bool = False
    replay: bool = False
    reliable: bool = True
    built_in: bool = False
    frames: int | None = None
    seconds: float | None = None
    pictures: int = DEFAULT_PICTURES

    @property
    def images(self) -> str:
        """Full name of the topic with the images."""
        name = self.image if self.image.startswith('/') else f'/{self.image}'
        return f'{name}/compressed' if self.compressed else name


def run_demo(options: argparse.Namespace) -> int:
    """Run the demo.

    Args:
        options: of `depthclip demo`.

    Returns:
        Exit code: 0, or 1 when the source could not use some of its files.

    Raises:
        DepthClipError: wrong settings, no depth, or a process died; what came is written.

    """
    plan = _plan(options)
    if plan.built_in and not (options.config or options.weights):
        options.config = str(config_path('demo'))
    depth, node = settings(options.config, options.weights, options.device)
    folder = output_folder(options.output)
    node = _with_weights(depth, node)
    if node.weights == core_weights.DEMO:
        to_stderr('Weights: the small demo model, which knows rendered rooms and nothing else '
                  '(docs/demo_model.md).')
    trained = node.weights != core_weights.UNTRAINED
    if not trained:
        print_untrained()
    node = node.replace(image_transport='compressed' if plan.compressed else 'raw', autostart=True)
    album = Album(folder, plan.pictures, depth.depth_span, trained=trained)
    to_stderr(f'Graph: {isolate()}')
    os.environ.update(large_images_profile(os.environ))
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        recorder = Recorder(
            album, plan.images, compressed=plan.compressed, reliable=plan.reliable,
            replay=plan.replay)
        try:
            _write_parameters(folder / 'depth_node.yaml', depth, node)
            outcome = _record(options, plan, folder, recorder)
        finally:
            recorder.hand_over(time.monotonic())
            _finish(folder, plan, recorder, album)
            recorder.destroy_node()  # type: ignore[no-untyped-call]
    finally:
        rclpy.try_shutdown()
    return outcome


def _plan(options: argparse.Namespace) -> Plan:
    if options.bag:
        return _bag_plan(options)
    _check_camera(options)
    arguments = ['-m', 'depthclip_ros.sources.image_source', '--wait', '2']
    for name in ('fov', 'camera_info'):
        value = getattr(options, name)
        if value is not None:
            arguments += [f'--{name.replace("_", "-")}', str(value)]
    if options.images:
        files = picture_files(options.images, to_stderr)
        # One by one: every picture is answered, none is dropped for a newer one.
        arguments += ['--rate', str(options.rate or 1000.0), '--answer', 'depth/image']
        return Plan(
            f'{len(files)} pictures', [*arguments, '--', *map(str, files)],
            frames=options.frames, seconds=options.seconds,
            pictures=options.pictures or len(files))
    arguments += ['--rate', str(options.rate or DEFAULT_RATE)]
    description = 'rendered rooms'
    for name in ('video', 'webcam'):
        value = getattr(options, name)
        if value is not None:
            description = f'{name} {value}'
            arguments += [f'--{name}', str(value)]
    frames, seconds = options.frames, options.seconds
    if not frames and not seconds:
        frames, seconds = DEFAULT_FRAMES, DEFAULT_SECONDS
    return Plan(description, arguments, frames=frames, seconds=seconds,
                pictures=options.pictures or DEFAULT_PICTURES,
                built_in=options.video is None and options.webcam is None)


def _check_camera(options: argparse.Namespace) -> None:
    """Refuse what the source would refuse, before anything is downloaded or started."""
    if options.fov is not None:
        CameraCalibration.from_fov(640, 480, options.fov)
    if options.camera_info is None:
        return
    if not options.images and options.video is None and options.webcam is None:
        raise ConfigError('--camera-info does not apply to rendered rooms: give them --fov.')
    CameraCalibration.from_yaml(options.camera_info)


def _bag_plan(options: argparse.Namespace) -> Plan:
    for name in ('fov', 'camera_info'):
        if getattr(options, name) is not None:
            raise ConfigError(f'--{name.replace("_", "-")} does not apply to --bag: a bag brings '
                              'its own.')
    camera = camera_topics(bag_topics(options.bag), options.image_topic, '--image-topic TOPIC')
    image = camera.image + ('/compressed' if camera.compressed else '')
    topics = [image] if camera.camera_info is None else [image, camera.camera_info]
    if camera.camera_info is None:
        to_stderr(f'WARNING: the bag has no camera_info beside {camera.image}: no clouds.')
    return Plan(
        f'bag {options.bag}, {image}',
        ['-m', 'depthclip_ros.sources.bag_player', options.bag, '--clock',
         '--wait-for-subscribers', '30', '--rate', str(options.rate or 1.0), '--topics', *topics],
        image=camera.image, camera_info=camera.camera_info or 'camera_info',
        compressed=camera.compressed, replay=True, reliable=_is_reliable(options.bag, image),
        frames=options.frames, seconds=options.seconds,
        pictures=options.pictures or DEFAULT_PICTURES)


def _is_reliable(bag: str, topic: str) -> bool:
    """Whether the player will offer a topic of the bag as reliable."""
    reader = open_bag(bag)
    try:
        recorded = [qos for connection in reader.connections if connection.topic == topic
                    for qos in getattr(connection.ext, 'offered_qos_profiles', [])]
    finally:
        reader.close()
    return bool(qos_profile(recorded).reliability == ReliabilityPolicy.RELIABLE)


def _with_weights(depth: DepthConfig, node: NodeConfig) -> NodeConfig:
    """Weights that the user names, else the official ones, else untrained ones, said loudly."""
    if node.weights:
        return node
    name = 'RN50' if depth.backbone == 'auto' else depth.backbone
    folder = core_weights.cache_folder(node.cache_dir)
    try:
        if node.offline and core_weights.find(name, folder) is None:
            raise WeightsError(f'{name} is not in the cache, and offline is set.')
        core_weights.fetch(name, folder, to_stderr)
    except WeightsError as error:
        to_stderr(f'WARNING: no trained weights: {error}\nThe demo goes on with untrained ones.')
        return node.replace(weights=core_weights.UNTRAINED)
    return node.replace(weights=name)


def _write_parameters(path: Path, depth: DepthConfig, node: NodeConfig) -> None:
    """Leave the effective settings beside the results; the node starts from this file."""
    parameters = {**depth.to_dict(), **node.to_dict()}
    path.write_text('# Settings of this demo. To run the node with them:\n'
                    f'#   depth_node --ros-args --params-file {path.name}\n'
                    + yaml.safe_dump({'/**': {'ros__parameters': parameters}}, sort_keys=False),
                    encoding='utf-8')


def _record(options: argparse.Namespace, plan: Plan, folder: Path, recorder: Recorder) -> int:
    """Start the processes and listen until it is enough; returns the source's exit code or 0."""
    children: list[Child] = []
    with stopping(children):
        node = Child('depth_node', _node_arguments(options, plan, folder),
                     folder / 'depth_node.log')
        children.append(node)
        watch = _Watch(recorder, children)
        to_stderr(f'Starting depth_node (log: {node.log}) …')
        if not wait_until(recorder.is_node_listening, options.timeout, watch.step):
            raise DemoError(f'depth_node did not become active in {options.timeout:g} s. '
                            f'Its log ends:\n{node.tail()}')
        source = Child('source', plan.source, folder / 'source.log')
        children.append(source)
        to_stderr(f'Feeding {plan.description} (log: {source.log}) …')
        watch.until_enough(plan, source, options.timeout)
        recorder.finish(watch.step)
    for child in children:
        for line in child.new_complaints():
            to_stderr(f'{child.name}: {line}')
    if source.exit_code not in (0, None) and source.exit_code > 0:
        to_stderr(f'The source ended with exit code {source.exit_code}:\n{source.tail()}')
        return 1
    return 0


def _node_arguments(options: argparse.Namespace, plan: Plan, folder: Path) -> list[str]:
    arguments = ['-m', 'depthclip_ros.node.depth_node', '--ros-args']
    if options.config:  # for what is ROS's own in it, such as qos_overrides
        arguments += ['--params-file', options.config]
    arguments += ['--params-file', str(folder / 'depth_node.yaml')]
    if plan.replay:
        arguments += ['-p', 'use_sim_time:=true']
    for name, topic in (('image', plan.image), ('camera_info', plan.camera_info)):
        if topic != name:
            arguments += ['-r', f'{name}:={topic}']
    return arguments


class _Watch:
    """Looks after the processes while the recorder listens."""

    def __init__(self, recorder: Recorder, children: list[Child]) -> None:
        self.recorder = recorder
        self.children = children
        self._progress = time.monotonic()

    def step(self) -> None:
        """Listen for a moment; show complaints; fail when the node has died."""
        self.recorder.spin_for(STEP)
        for child in self.children:
            for line in child.new_complaints():
                to_stderr(f'{child.name}: {line}')
        node = self.children[0]
        if node.exit_code is not None:
            raise DemoError(f'depth_node ended with exit code {node.exit_code}. Its log '
                            f'({node.log}) ends:\n{node.tail()}')
        account = self.recorder.account
        if account.depths and time.monotonic() > self._progress + PROGRESS_SECONDS:
            self._progress = time.monotonic()
            to_stderr(f'  depth images: {account.depths}, {account.rate:.1f} Hz, latency '
                      f'{_milliseconds(account.latency_ms(50))}')

    def until_enough(self, plan: Plan, source: Child, timeout: float) -> None:
        """Listen until the plan is fulfilled or the source has ended.

        Raises:
            DemoError: no depth came for `timeout` seconds, or a process failed.

        """
        account = self.recorder.account
        start = time.monotonic()
        ended: float | None = None
        while True:
            self.step()
            now = time.monotonic()
            if plan.frames is not None and account.depths >= plan.frames:
                return
            if plan.seconds is not None and account.depths and now > account.first + plan.seconds:
                return
            if source.exit_code is not None:
                ended = ended or now
                if not account.waiting or now > max(ended, account.last) + DRAIN_SECONDS:
                    break
            elif now > max(start, account.last) + timeout:
                raise DemoError(self._no_depth(timeout, source))
        if not account.depths:
            raise DemoError(self._no_depth(now - start, source))

    def _no_depth(self, seconds: float, source: Child) -> str:
        account, node = self.recorder.account, self.children[0]
        if source.exit_code and not account.images:  # the node is not to blame
            return f'there was no image. {source.tail(1).strip()} (log: {source.log})'
        return (f'no depth image for {seconds:.0f} s ({account.images} images went in, '
                f'{account.depths} depth images came out).\n'
                f'depth_node ({node.log}) says:\n{node.tail()}\n'
                f'The source ({source.log}) says:\n{source.tail(8)}')


def _finish(folder: Path, plan: Plan, recorder: Recorder, album: Album) -> None:
    """Write summary and overview, and say where everything is."""
    account, model = recorder.account, recorder.model
    weights = model.get('weights', 'unknown weights')
    rate = f'{account.rate:.2f} Hz'
    files = album.close('   '.join(filter(None, (
        f'depthclip demo   {weights} on {model.get("device", "?")}', model.get('calibration'),
        plan.description, rate))))
    summary: dict[str, Any] = {
        'depthclip_ros': __version__,
        'statement': 'trained weights' if album.trained else UNTRAINED,
        'trained': album.trained,
        'source': plan.description,
        'frames': {'in': account.images, 'out': account.depths, 'answered': account.answered,
                   'dropped': account.dropped, 'waiting at the end': account.waiting,
                   'answers to images not seen here': account.unseen,
                   'clouds': account.clouds},
        'rate_hz': account.rate,
        'latency_ms': {
            'p50': account.latency_ms(50), 'p99': account.latency_ms(99),
            'from': 'arrival of the image' if plan.replay else "the image's stamp",
            'to': 'arrival of its depth at the recorder'},
        'pixels_beyond_16_bit_millimetres': album.lost_pixels,
        'model': model,
        'node_diagnostics': recorder.node_frames,
        'files': [path.name for path in files],
    }
    (folder / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n', encoding='utf-8')
    if not (account.images or account.depths):
        return
    pictures = sum(path.name.startswith('color_') for path in files)
    print(f'weights:  {weights} on {model.get("device", "?")} ({model.get("precision", "?")})')
    print(f'frames:   {account.images} in, {account.depths} out, {account.dropped} dropped '
          f'(the newest image wins), {account.waiting} not yet answered at the end')
    print(f'rate:     {rate}')
    print(f'latency:  p50 {_milliseconds(account.latency_ms(50))}, '
          f'p99 {_milliseconds(account.latency_ms(99))} ({summary["latency_ms"]["from"]} to '
          f'{summary["latency_ms"]["to"]})')
    print(f'pictures: {pictures} frames in {folder.absolute()}')
    if pictures:
        print(f'          begin with {folder.absolute() / "overview.png"}', flush=True)
    if not album.trained:
        sys.stdout.flush()
        print_untrained()
    if (folder / INPUT).exists():
        print('Try next:', *suggestions(folder, plan), sep='\n  ', flush=True)


def suggestions(folder: Path, plan: Plan) -> list[str]:
    """Three commands that work as they are printed, with the reason behind each.

    They begin as the demo was called: run.py says how in $DEPTHCLIP_COMMAND.
    """
    name = os.environ.get('DEPTHCLIP_COMMAND', 'depthclip')
    again = shlex.join(['predict', str(folder / INPUT), '--config',
                        str(folder / 'depth_node.yaml'), '-o', str(folder / 'predicted')])
    rooms = shlex.join(['demo', *(['--fov', '90'] if plan.built_in else []), '-o',
                        f'{folder}_rooms'])
    webcam = shlex.join(['demo', '--webcam', '0', '-o', f'{folder}_webcam'])
    why = 'the same rooms through a wider lens' if plan.built_in else 'rooms that words can tell'
    last, wherefore = (webcam, 'your own surroundings') if Path('/dev/video0').exists() else (
        'doctor', 'what this machine has, and how to mend what it lacks')
    return [
        f'{name} {command}\n    # {reason}' for command, reason in (
            (again, 'the first image again, or one of yours; first change a word in that file'),
            (rooms, why), (last, wherefore))
    ]


def _milliseconds(value: float | None) -> str:
    return '-' if value is None else f'{value:.0f} ms'
