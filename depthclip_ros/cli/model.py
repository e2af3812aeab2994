# SPDX-License-Identifier: Apache-2.0
"""Settings, estimator and output files of the sub-commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.camera import notices_of
from ..core.config import DepthConfig
from ..core.errors import ConfigError
from ..core.estimator import DepthEstimator
from ..core.files import atomic, check_new, printable
from ..core.parameter_file import to_yaml
from ..drawing.color import UNTRAINED
from ..messages.node_config import NodeConfig, read_config, read_values, with_demo_settings
from ..report.document import Block, to_html, to_markdown
from ..sources.camera_info import Intrinsics, intrinsics_of

if TYPE_CHECKING:
    import argparse

    from ..core.camera import CameraModel
    from ..core.weights import LoadedWeights


def settings(
    config: str | None, weights: str = '', device: str = '',
) -> tuple[DepthConfig, NodeConfig]:
    """Read a parameter file (None: the defaults); options of the command line override it.

    Raises:
        DepthClipError: the file or an option is wrong.

    """
    depth, node = read_config(config) if config else (DepthConfig(), NodeConfig())
    values = read_values(config, log=to_stderr) if config else ()
    node = node.replace(**{key: value for key, value in (
        ('weights', weights), ('device', device)) if value})
    depth, note = with_demo_settings(depth, node.weights, values)
    if note:
        to_stderr(note)
    return depth, node


def load_estimator(
    depth: DepthConfig, node: NodeConfig, weights: LoadedWeights | None = None,
) -> DepthEstimator:
    """Build the estimator that the node would build, and print its device and precision.

    Raises:
        DepthClipError: as `DepthEstimator`.

    """
    estimator = DepthEstimator(
        depth, weights or node.weights, node.device, cache_dir=node.cache_dir,
        offline=node.offline, num_threads=node.num_threads, log=to_stderr)
    to_stderr(f'{estimator.weights.name} on {estimator.device}, {estimator.precision}, '
              f'{depth.input_height} x {depth.input_width} pixels in '
              f'{estimator.grid[0]} x {estimator.grid[1]} patches')
    if estimator.label:
        to_stderr(f'Depth is {estimator.label}.')
    if not estimator.weights.trained:
        print_untrained()
    return estimator


def print_untrained() -> None:
    """Print a frame with the warning that depth of untrained weights means nothing."""
    line = f'*** {UNTRAINED}. ***'
    frame = '*' * len(line)
    print(f"\n{frame}\n{line}\n{frame}\n    Trained weights: 'depthclip fetch RN50', or --weights "
          'FILE.\n', file=sys.stderr, flush=True)


def to_stderr(message: str) -> None:
    """Print progress to stderr; stdout is for results."""
    print(message, file=sys.stderr, flush=True)


def has_display() -> bool:
    """Whether a window can be opened. Without a display, Qt would end the process that tries."""
    return sys.platform != 'linux' or bool(
        os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'))


def save(path: Path, content: str | bytes) -> None:
    """Write a new file atomically.

    Raises:
        ConfigError: the file exists, or cannot be written.

    """
    check_new((path,))
    try:
        with atomic(path) as file:
            file.write(printable(content).encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ConfigError(f'{path}: cannot be written: {error.strerror}.') from error


def check_for_ros(name: str, value: object) -> None:
    """Raise ConfigError for a value that ROS cannot hold: text that is no UTF-8."""
    if printable(str(value)) != str(value):
        raise ConfigError(f'{name}: {value} is no UTF-8, and ROS takes nothing else. Rename the '
                          'file or folder, or choose another one.')


def parameter_file(comment: str, parameters: dict[str, Any]) -> str:
    """Compose a ROS parameter file for every node; lines of the comment begin with a hash.

    Raises:
        ConfigError: as `check_for_ros`.

    """
    for name, value in parameters.items():
        check_for_ros(name, value)
    return comment + to_yaml(parameters)


def save_page(path: Path, blocks: Sequence[Block]) -> None:
    """Write a page as HTML and as Markdown; the suffix of its path is replaced."""
    save(path.with_suffix('.html'), to_html(blocks))
    save(path.with_suffix('.md'), to_markdown(blocks))


def print_notices(*cameras: CameraModel | None) -> None:
    """Print notices on peculiar cameras to stderr."""
    for sentence in notices_of(*cameras):
        to_stderr(f'WARNING: {sentence}')


def camera_of_options(
    options: argparse.Namespace, *, rectified: bool,
) -> Callable[[int, int], CameraModel | None]:
    """Return the camera of --fov or --camera-info as a function of an image's width and height.

    It returns None without both options, and raises CameraInfoError if the file has another size.

    Raises:
        DepthClipError: the file or the field of view cannot be used.

    """
    camera = Intrinsics.from_yaml(options.camera_info) if options.camera_info \
        else options.fov
    if isinstance(camera, Intrinsics):
        print_notices(camera.model(rectified=rectified))
    elif camera is not None:
        Intrinsics.from_fov(640, 480, camera)
    return lambda width, height: None if camera is None else intrinsics_of(
        camera, width, height).model(rectified=rectified)
