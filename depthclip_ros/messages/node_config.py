# SPDX-License-Identifier: Apache-2.0
"""Settings of the node's inputs and outputs, each with its default. Needs no ROS."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import (
    ANCHOR_REACH,
    DepthConfig,
    Settings,
    define,
    is_misspelt,
    undefined_settings_message,
)
from ..core.errors import ConfigError, first_of, quoted
from ..core.parameter_file import read_parameters
from ..core.releases import DEMO
from ..resources import config_path

# Parameters that ROS itself, not this package, declares on a node.
ROS_PARAMETERS = re.compile(
    r'use_sim_time$|start_type_description_service$|(qos_overrides|diagnostic_updater)(\.|$)')
MAX_POSE_VALUE = 1000.0  # metres, radians
GROUND = 'ground'
ANCHORS = ('scan', 'points', 'depth', GROUND)


@dataclass(frozen=True)
class NodeConfig(Settings):
    """Settings of the node's inputs and outputs."""

    weights: str = define(
        '', "CLIP weights: an official name, 'demo' (with its own settings), a file, or "
            "'untrained' (random: depth is meaningless); empty: the backbone's official weights")
    device: str = define('auto', 'auto, cpu, cuda, or cuda:N; cuda without a GPU is an error')
    offline: bool = define(False, 'Never download weights')
    cache_dir: str = define(
        '', 'Folder of weights and text features; empty: $DEPTHCLIP_CACHE, '
            'else ~/.cache/depthclip_ros')
    image_transport: str = define(
        'raw', 'Subscribe to image, or to image/compressed', choices=('raw', 'compressed'))
    cameras: tuple[str, ...] = define(
        ('',), "Names of the cameras, each the namespace of its topics; '': the node's own")
    depth_encoding: str = define(
        '32FC1', 'Encoding of depth/image: metres with NaN, or millimetres with 0 (REP-118)',
        choices=('32FC1', '16UC1'))
    rectified: bool = define(
        False, 'The image is rectified: its rays follow P without distortion, not K and D')
    anchor: str = define(
        '', f'What fixes the scale of depth: {", ".join(ANCHORS[:-1])} (of another sensor) or '
            f'{GROUND} (the floor below the camera); empty: nothing (docs/scale.md)',
        choices=('', *ANCHORS))
    anchor_timeout: float = define(
        5.0, 'Let the anchor go, and report it, when it could not be followed for this long',
        unit='s', minimum=0.1, maximum=3600.0)
    anchor_reach: float = define(
        ANCHOR_REACH, "How far the anchor's points correct what its scale leaves around them (not "
                      f"those of {GROUND}), as part of the image's width; 0: they give a scale "
                      'alone',
        minimum=0.0, maximum=1.0)
    anchor_pose: str = define(
        '', "Where the anchor's sensor is in the camera's body (x forward, y left, z up): six "
            "numbers, 'x y z roll pitch yaw' in metres and radians; empty: tf tells")
    odom_frame: str = define(
        '', 'Frame that the robot moves in without jumps (REP-105), by which the anchor bridges '
            'the time between sensor and image; empty: the one with odom in its name, else the '
            'nearest but map')
    camera_height: float = define(
        0.0, f'Height of the camera above the floor, for anchor: {GROUND}; 0: tf tells', unit='m',
        minimum=0.0, maximum=100.0)
    camera_pitch: float = define(
        0.0, 'How far the camera looks up, with camera_height; negative: down', unit='rad',
        minimum=-1.6, maximum=1.6)
    base_frame: str = define(
        'base_footprint', f'Frame on the floor with z up, for anchor: {GROUND} without '
                          'camera_height')
    input_timeout: float = define(
        5.0, 'Warn when no image or camera_info came for this long', unit='s', minimum=0.1,
        maximum=3600.0, reload=False)
    worker_timeout: float = define(
        10.0, 'Report the worker as stuck when one batch takes this long', unit='s', minimum=0.5,
        maximum=3600.0, reload=False)
    max_age: float = define(
        2.0, 'Warn when depth is older than this, an error beyond twice; 0: never', unit='s',
        minimum=0.0, maximum=3600.0, reload=False)
    max_nan_share: float = define(
        0.5, 'Warn when a larger part of the depth is NaN, an error beyond twice or when all is; '
             '0: never', minimum=0.0, maximum=1.0, reload=False)
    autostart: bool = define(True, 'Configure and activate at start, without a manager')
    num_threads: int = define(
        0, "CPU threads of the network; 0: torch's choice", minimum=0, maximum=1024)

    def _check(self) -> None:
        if not re.fullmatch(r'auto|cpu|cuda(:\d+)?', self.device):
            raise ConfigError(
                f'device: {quoted(self.device)} is none of auto, cpu, cuda, cuda:N.')
        if self.cache_dir and not self.cache_dir.startswith(('/', '~')):
            raise ConfigError(f'cache_dir: {quoted(self.cache_dir)} is relative to wherever the '
                              'node was started; give the whole path.')
        check_camera_names(self.cameras)
        if self.anchor_pose:
            parse_pose(self.anchor_pose)
        if self.anchor_pose and len(self.cameras) > 1:
            raise ConfigError(f'anchor_pose: cannot hold for {len(self.cameras)} cameras at once; '
                              'leave it empty, and publish tf.')


def parse_pose(text: str) -> tuple[float, ...]:
    """Parse x, y, z in metres and roll, pitch, yaw in radians.

    Raises:
        ConfigError: the text is not six numbers below MAX_POSE_VALUE.

    """
    try:
        numbers = tuple(map(float, text.split()))
    except ValueError:
        numbers = ()
    if len(numbers) != 6 or not all(abs(number) < MAX_POSE_VALUE for number in numbers):
        raise ConfigError(f"anchor_pose: {quoted(text)} must be six numbers, 'x y z roll pitch "
                          "yaw' in metres and radians, or empty.")
    return numbers


def check_camera_names(names: Sequence[str]) -> None:
    """Refuse names that cannot be namespaces of topics, and one that occurs twice."""
    if len(set(names)) < len(names):
        raise ConfigError(f'cameras: {quoted(list(names))} holds one name twice; give '
                          "every camera a name of its own, or a single one ''.")
    part = '[A-Za-z](_?[A-Za-z0-9])*'
    for name in names:
        if len(name) > 100 or (name and not re.fullmatch(f'{part}(/{part})*', name)):
            raise ConfigError(f'cameras: {quoted(name)} cannot be a ROS namespace; use letters, '
                              'digits and single underscores, with slashes only in between, at '
                              'most 100 characters.')


def foreign_names(values: Mapping[str, Any]) -> list[str]:
    """List parameters that are neither this node's nor ROS's own, as in a robot's shared file.

    Raises:
        ConfigError: a name is a misspelt setting, or a former setting with an effect.

    """
    setting_names = DepthConfig.names() + NodeConfig.names()
    foreign = sorted(
        name for name in values if name not in setting_names and not ROS_PARAMETERS.match(name))
    if mistaken := [name for name in foreign if is_misspelt(name, values[name], setting_names)]:
        raise ConfigError(undefined_settings_message(mistaken, setting_names))
    return foreign


def foreign_notice(names: Sequence[str]) -> str:
    """Return the warning about foreign parameters."""
    return (f'{quoted(first_of(names))}: no setting of depth_node, and without effect on it '
            '(config/depth.yaml has all).')


def read_config(
    path: str | Path, node_name: str = 'depth_node',
) -> tuple[DepthConfig, NodeConfig]:
    """Read one ROS parameter file.

    The file has the usual form: node name or wildcard (`/**`, `/*`, `/front/depth_node`), then
    `ros__parameters`. Every section that matches the node, by its bare or fully qualified name,
    applies in file order; sections of other nodes are ignored.

    Returns:
        The core's and the node's settings, with defaults for those that the file leaves out.

    Raises:
        ConfigError: missing or malformed file, no section for the node, misspelt or wrong setting.

    """
    values = read_values(path, node_name)
    try:
        return build_configs(values)
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error


def build_configs(values: Mapping[str, Any]) -> tuple[DepthConfig, NodeConfig]:
    """Build both configurations from one set of values, with defaults for missing ones.

    Raises:
        ConfigError: a value is wrong by itself.
        MismatchError: values of the core do not fit each other.

    """
    node = NodeConfig.from_dict({k: v for k, v in values.items() if k in NodeConfig.names()})
    return DepthConfig.from_dict(
        {k: v for k, v in values.items() if k in DepthConfig.names()}), node


def read_values(
    path: str | Path, node_name: str = 'depth_node', log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Read the values of a ROS parameter file, as `read_config`, without a check of them.

    `log` receives the warning about foreign parameters.

    Raises:
        ConfigError: missing or malformed file, no section for the node, misspelt setting.

    """
    values = read_parameters(path, node_name)
    try:
        foreign = foreign_names(values)
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error
    if foreign and log is not None:
        log(f'WARNING: {path}: {foreign_notice(foreign)}')
    setting_names = DepthConfig.names() + NodeConfig.names()
    return {key: value for key, value in values.items() if key in setting_names}


def with_demo_settings(
    depth: DepthConfig, weights: str, names: Collection[str] = (),
) -> tuple[DepthConfig, str]:
    """Replace defaults by the settings of the demo model (config/demo.yaml), which needs them.

    The settings in `names`, which the user set, stay; tokens and bins count as one. Nothing
    changes unless the weights are 'demo'.

    Returns:
        The settings to use, and a sentence to log; '' if nothing changed.

    Raises:
        DepthClipError: config/demo.yaml is missing, or does not fit the user's settings.

    """
    if weights != DEMO:
        return depth, ''
    demo = DepthConfig.from_yaml(config_path(DEMO))
    fixed_names = set(names)
    if fixed_names & {'tokens', 'bins'}:
        fixed_names |= {'tokens', 'bins'}
    result = demo.replace(**{
        name: getattr(depth, name) for name in depth.names() if name in fixed_names})
    changed = [name for name in depth.names() if getattr(result, name) != getattr(depth, name)]
    if not changed:
        return depth, ''
    return result, f'weights: {DEMO} bring their own {", ".join(changed)} (config/demo.yaml).'
