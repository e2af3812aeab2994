# SPDX-License-Identifier: Apache-2.0
"""`depthclip demo`: runs node and image source as processes, and records their topics.

All results are in one folder: depth_NNN.png (16-bit millimetres), color_NNN.png, cloud_NNN.ply,
overview.png, input.png, summary.json, the effective settings (depth_node.yaml) and the logs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import rclpy
from rclpy.qos import ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from .. import __version__
from ..core import releases
from ..core import weights as core_weights
from ..core.errors import ConfigError, DepthClipError, WeightsError
from ..core.files import check_new, numbered_folder, output_folder
from ..drawing.color import UNTRAINED
from ..resources import config_path, large_images_profile, ros_distribution
from ..sources.bag import Bag, camera_topics
from ..sources.bag_player import recorded_qos
from ..sources.pictures import picture_files, video_file
from .demo_recorder import INPUT, PATTERNS, SUMMARY, Album, Recorder
from .model import (
    camera_of_options,
    check_for_ros,
    parameter_file,
    print_untrained,
    save,
    settings,
    to_stderr,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from ..core.config import DepthConfig
    from ..messages.node_config import NodeConfig

DEFAULT_FRAMES = 50  # of a source without an end
DEFAULT_RATE = 10.0
DEFAULT_PICTURES = 10
FILES = (*PATTERNS, 'depth_node.yaml', 'depth_node.log', 'source.log')
STEP = 0.1
PROGRESS_SECONDS = 5.0
DRAIN_SECONDS = 15.0
TIMEOUT = 120.0  # seconds without depth
STOP_SECONDS = 10.0
DOMAINS = 101  # ports of higher domains overlap Linux's ephemeral ports
DISCOVERY = ('ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_LOCALHOST_ONLY')
COMPLAINT = re.compile(r'^\[(WARN|ERROR|FATAL)\] \[[\d.]+\] (.*)$', re.MULTILINE)


class DemoError(DepthClipError):
    """The demo failed: no depth arrived, or a process died."""


class Plan(NamedTuple):
    """Source, topics and limits of the run, from the command line."""

    description: str
    source: list[str]
    frames: int | None
    pictures: int | None = DEFAULT_PICTURES
    image: str = 'image'
    camera_info: str = 'camera_info'
    compressed: bool = False
    replay: bool = False
    reliable: bool = True
    built_in: bool = False


def run_demo(options: argparse.Namespace) -> int:
    """Run the demo.

    Returns:
        Exit code: 0, or 1 if the source could not use some of its files.

    Raises:
        DepthClipError: invalid settings, no depth, or a process died; results so far are written.

    """
    plan = _bag_plan(options) if options.bag else _plan(options)
    if plan.built_in and not (options.config or options.weights):
        options.config = str(config_path('demo'))
    depth, node = settings(options.config, options.weights, options.device)
    for name, path in ('--config', options.config), ('-o', options.output):
        check_for_ros(name, path)
    folder = _results_folder(options.output)
    node = _with_weights(depth, node)
    if node.weights == releases.DEMO:
        to_stderr('Weights: the small demo model, which knows rendered rooms and nothing else '
                  '(docs/demo_model.md).')
    trained = node.weights != releases.UNTRAINED
    if not trained:
        print_untrained()
    node = node.replace(image_transport='compressed' if plan.compressed else 'raw', autostart=True)
    _write_parameters(folder / 'depth_node.yaml', depth, node)
    isolate()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        album = Album(folder, plan.pictures, plan.frames, options.range,
                      trained=trained, colormap=options.colormap)
        recorder = Recorder(album, plan.image + '/compressed' * plan.compressed,
                            compressed=plan.compressed, reliable=plan.reliable,
                            replay=plan.replay)
        try:
            return _record(options, plan, folder, recorder)
        finally:
            _finish(folder, plan, recorder, album, trained=trained)
            recorder.destroy_node()  # type: ignore[no-untyped-call]
    finally:
        rclpy.try_shutdown()


def _results_folder(path: str) -> Path:
    """Make the folder for results; if it holds an earlier demo, one with a number beside it.

    Raises:
        ConfigError: it cannot be written, or holds such files without a summary of a demo.

    """
    folder = output_folder(path)
    files = [file for pattern in FILES for file in sorted(folder.glob(pattern))]
    if not files:
        return folder
    summary: Any = {}
    with suppress(OSError, ValueError):  # it may be no JSON
        summary = json.loads((folder / SUMMARY).read_bytes())
    if not (isinstance(summary, dict) and {'depthclip_ros', 'node_diagnostics'} <= {*summary}):
        check_new(files)
    folder = numbered_folder(folder.resolve())
    to_stderr(f'{path} holds an earlier demo, which stays: this one is in {folder}.')
    return folder


def _plan(options: argparse.Namespace) -> Plan:
    camera_of_options(options, rectified=False)  # raises before any download or process
    built_in = not options.images and options.video is None and options.webcam is None
    if options.video is not None:
        video_file(options.video)  # likewise
    if built_in and options.camera_info:
        raise ConfigError('--camera-info does not apply to rendered rooms: give them --fov.')
    arguments = ['-m', 'depthclip_ros.sources.image_source', '--wait', '2']
    for name in ('fov', 'camera_info', 'video', 'webcam'):
        value = getattr(options, name)
        if value is not None:
            arguments += [f'--{name.replace("_", "-")}', str(value)]
    if options.images:
        files = picture_files(options.images)
        # One by one, so that the node drops no picture for a newer one.
        arguments += ['--rate', str(options.rate or 1000.0), '--answer', 'depth/image', '--']
        return Plan(f'{len(files)} pictures', [*arguments, *map(str, files)], options.frames,
                    pictures=None)
    description = 'rendered rooms' if built_in else f'video {options.video}' if options.video \
        else f'webcam {options.webcam}'
    return Plan(description, [*arguments, '--rate', str(options.rate or DEFAULT_RATE)],
                options.frames or DEFAULT_FRAMES, built_in=built_in)


def _bag_plan(options: argparse.Namespace) -> Plan:
    for name in ('fov', 'camera_info'):
        if getattr(options, name) is not None:
            raise ConfigError(f'--{name.replace("_", "-")} does not apply to --bag: a bag brings '
                              'its own.')
    with Bag(options.bag) as bag:
        camera = camera_topics(bag.topics, options.image_topic, '--image-topic TOPIC')
        offered = recorded_qos(bag, camera.topic)
    if not camera.camera_info:
        to_stderr(f'WARNING: the bag has no camera_info beside {camera.image}: no clouds.')
    return Plan(
        f'bag {options.bag}, {camera.topic}',
        ['-m', 'depthclip_ros.sources.bag_player', options.bag, '--clock',
         '--wait-for', camera.topic, camera.topic, '--rate', str(options.rate or 1.0),
         '--topics', camera.topic, *filter(None, [camera.camera_info])],
        options.frames, image=camera.image, camera_info=camera.camera_info or 'camera_info',
        compressed=camera.compressed, replay=True,
        reliable=offered.reliability == ReliabilityPolicy.RELIABLE)


def _with_weights(depth: DepthConfig, node: NodeConfig) -> NodeConfig:
    """Choose the user's weights, else official ones, else untrained ones with a warning."""
    if node.weights:
        return node
    name = 'RN50' if depth.backbone == 'auto' else depth.backbone
    folder = core_weights.cache_folder(node.cache_dir)
    try:
        core_weights.download_release(name, folder, to_stderr, offline=node.offline)
    except WeightsError as error:
        to_stderr(f'WARNING: no trained weights: {error}\nThe demo goes on with untrained ones.')
        name = releases.UNTRAINED
    return node.replace(weights=name)


def _write_parameters(path: Path, depth: DepthConfig, node: NodeConfig) -> None:
    """Write the effective settings beside the results; the node starts with this file."""
    parameters = {**depth.to_dict(), **node.to_dict()}
    save(path, parameter_file(
        '# Settings of this demo. To run the node with them:\n'
        f'#   depth_node --ros-args --params-file {path.name}\n', parameters))


def isolate() -> None:
    """Restrict discovery to this machine and a separate domain, for this process and children.

    Environment variables of the user stay.
    """
    if not any(name in os.environ for name in DISCOVERY):
        # Humble knows only the older of the two, and later ones warn about it.
        older = ros_distribution(os.environ) == 'humble'
        os.environ[DISCOVERY[older]] = '1' if older else 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % DOMAINS))
    os.environ.update(large_images_profile(os.environ))
    to_stderr('Graph: ' + ', '.join(f'{name}={os.environ[name]}' for name in (
        'ROS_DOMAIN_ID', *DISCOVERY) if name in os.environ))


class Child:
    """One process and its log file."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        """Start this Python interpreter with arguments; its output goes to the log."""
        self.name, self.log = name, log
        # A separate session: Ctrl-C reaches this process alone, which stops children in order.
        with log.open('wb') as file:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, 'PYTHONUNBUFFERED': '1', 'RCUTILS_COLORIZED_OUTPUT': '0'})

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N: ended by signal N."""
        return self._process.poll()

    def complaints(self) -> list[str]:
        """List the warnings and errors in the log, each text once."""
        return [f'{self.name}: [{level}] {text}' for level, text in dict.fromkeys(
            COMPLAINT.findall(self.log.read_text(errors='replace')))]

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of the log."""
        with self.log.open(errors='replace') as file:
            return ''.join(f'    {line}' for line in deque(file, lines)).rstrip() or '    (empty)'

    def stop(self) -> None:
        """Interrupt, then terminate, then kill; returns when the process has ended."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.exit_code is not None:
                return
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Defer SIGINT, SIGTERM and SIGHUP: the given function raises KeyboardInterrupt after one.

    Signals thus interrupt no clean-up: all children are stopped and all results written. A signal
    that is ignored, as under nohup, stays ignored.
    """
    received: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: received.append(number))
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                if signal.getsignal(number) != signal.SIG_IGN}

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    try:
        yield check
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _record(options: argparse.Namespace, plan: Plan, folder: Path, recorder: Recorder) -> int:
    """Start the processes and record until the plan is fulfilled; returns the exit code."""
    children: list[Child] = []
    last_report = time.monotonic()

    def step() -> None:
        nonlocal last_report
        recorder.spin_for(STEP)
        check()
        if node.exit_code is not None:
            raise DemoError(f'depth_node ended with exit code {node.exit_code}. Its log '
                            f'({node.log}) ends:\n{node.tail()}')
        if recorder.depths and time.monotonic() > last_report + PROGRESS_SECONDS:
            last_report = time.monotonic()
            to_stderr(f'  depth images: {recorder.depths}, {recorder.rate:.1f} Hz, latency '
                      f'{_milliseconds(recorder.latency(50))}')

    with interruptible() as check:
        try:
            node = Child('depth_node', _node_arguments(options, plan, folder),
                         folder / 'depth_node.log')
            children.append(node)
            to_stderr(f'Starting depth_node (log: {node.log}) …')
            end = time.monotonic() + TIMEOUT
            while not recorder.node_is_active():
                if time.monotonic() > end:
                    raise DemoError(f'depth_node did not become active in {TIMEOUT:g} s. '
                                    f'Its log ends:\n{node.tail()}')
                step()
            source = Child('source', plan.source, folder / 'source.log')
            children.append(source)
            to_stderr(f'Feeding {plan.description} (log: {source.log}) …')
            _listen(plan, recorder, node, source, step)
            recorder.finish(step)
        finally:
            for child in reversed(children):
                child.stop()
    for child in children:
        for line in child.complaints():
            to_stderr(line)
    if source.exit_code is not None and source.exit_code > 0:
        to_stderr(f'The source ended with exit code {source.exit_code}:\n{source.tail()}')
        return 1
    return 0


def _listen(
    plan: Plan, recorder: Recorder, node: Child, source: Child, step: Callable[[], None],
) -> None:
    """Take steps until the plan is fulfilled or the source has ended.

    Raises:
        DemoError: no depth arrived for `TIMEOUT` seconds, or none at all.

    """
    last_event = time.monotonic()  # time of the newest depth, or of the end of the source
    source_ended = False
    while plan.frames is None or recorder.depths < plan.frames:
        step()
        now = time.monotonic()
        if source.exit_code is not None and not source_ended:
            source_ended, last_event = True, now
        silence = now - max(last_event, recorder.last)
        if not (source_ended and not recorder.waiting) \
                and silence <= (DRAIN_SECONDS if source_ended else TIMEOUT):
            continue
        if source_ended and recorder.depths:
            return
        if source.exit_code and not recorder.images:  # the node is not to blame
            raise DemoError(f'there was no image. {source.tail(1).strip()} (log: {source.log})')
        raise DemoError(
            f'no depth image for {silence:.0f} s ({recorder.images} images went in, '
            f'{recorder.depths} depth images came out).\ndepth_node ({node.log}) says:\n'
            f'{node.tail()}\nThe source ({source.log}) says:\n{source.tail(8)}')


def _node_arguments(options: argparse.Namespace, plan: Plan, folder: Path) -> list[str]:
    arguments = ['-m', 'depthclip_ros.node.depth_node', '--ros-args']
    if options.config:  # for ROS's own parameters, such as qos_overrides
        arguments += ['--params-file', options.config]
    arguments += ['--params-file', str(folder / 'depth_node.yaml')]
    if plan.replay:
        arguments += ['-p', 'use_sim_time:=true']
    for name, topic in (('image', plan.image), ('camera_info', plan.camera_info)):
        if topic != name:
            arguments += ['-r', f'{name}:={topic}']
    return arguments


def _finish(
    folder: Path, plan: Plan, recorder: Recorder, album: Album, *, trained: bool,
) -> None:
    """Write summary and overview, and print rates and paths."""
    model, counts = recorder.model, recorder.counts
    runs = f'{model.get("weights", "unknown weights")} on {model.get("device", "?")}'
    rate = f'{recorder.rate:.2f} Hz'
    files = recorder.close('   '.join(filter(None, (
        f'depthclip demo   {runs}', model.get('calibration'), plan.description, rate))))
    begin = 'arrival of the image' if plan.replay else "the image's stamp"
    latency = {f'p{percent}': recorder.latency(percent) for percent in (50, 99)}
    summary: dict[str, Any] = {
        'depthclip_ros': __version__,
        'statement': 'trained weights' if trained else UNTRAINED,
        'trained': trained,
        'source': plan.description,
        'frames': {'in': recorder.images, 'out': recorder.depths, 'clouds': recorder.clouds},
        'rate_hz': recorder.rate,
        'latency_ms': {**latency, 'from': begin, 'to': 'arrival of its depth at the recorder'},
        'pixels_beyond_16_bit_millimetres': album.lost_pixels,
        'model': model,
        'node_diagnostics': counts,
        'files': files,
    }
    save(folder / SUMMARY, json.dumps(summary, indent=2) + '\n')
    if not (recorder.images or recorder.depths):
        return
    print(f'weights:  {runs} ({model.get("precision", "?")})')
    print(f'frames:   {recorder.images} in, {recorder.depths} out, {counts.get("dropped", "?")} '
          f'dropped (the newest image wins), {counts.get("rejected", "?")} rejected')
    print(f'rate:     {rate}')
    print('latency:  ' + ', '.join(f'{name} {_milliseconds(value)}' for name, value in
                                   latency.items()), f'({begin} to arrival of its depth)')
    print(f'pictures: {len(album.numbers)} frames in {folder.absolute()}')
    if album.numbers:
        print(f'          begin with {folder.absolute() / "overview.png"}', flush=True)
    if not trained:
        sys.stdout.flush()
        print_untrained()
    if (folder / INPUT).exists():
        print('Try next:', *suggestions(folder, built_in=plan.built_in), sep='\n  ', flush=True)


def suggestions(folder: Path, *, built_in: bool) -> list[str]:
    """Suggest three commands, each with its purpose.

    They start with $DEPTHCLIP_COMMAND, which run.py sets to its own call.
    """
    predict = ['predict', folder / INPUT, '--config', folder / 'depth_node.yaml', '-o',
               folder / 'predicted']
    demo: list[Any] = ['demo', *(['--fov', '90'] if built_in else []), '-o', f'{folder}_rooms']
    reason_ = 'the same rooms through a wider lens' if built_in else 'rooms that words can tell'
    name = os.environ.get('DEPTHCLIP_COMMAND', 'depthclip')
    return [f'{name} {shlex.join(map(str, command))}\n    # {reason}' for command, reason in (
        (predict, 'the first image again, or one of yours; first change a word in that file'),
        (demo, reason_), (['doctor'], 'what this machine has, and how to mend what it lacks'))]


def _milliseconds(value: float | None) -> str:
    return '-' if value is None else f'{value:.0f} ms'
