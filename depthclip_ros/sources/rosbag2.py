# SPDX-License-Identifier: Apache-2.0
"""Handing a bag over to `ros2 bag play`, which needs no rosbags but waits for nobody."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TYPE_CHECKING

from .bag import BagError, checked_path, storage_of

if TYPE_CHECKING:
    import argparse

# Seconds before the first message: Fast DDS repeats an announcement that was lost after 3 s.
DISCOVERY = 3.5


def is_needed(bag: str) -> bool:
    """Whether `ros2 bag play` can play a bag here, and bag_player cannot.

    Raises:
        BagError: there is no such bag.

    """
    storage = storage_of(bag)
    if importlib.util.find_spec('rosbags') is not None:
        return False
    packages = ['ros2bag', *(['rosbag2_storage_mcap'] if storage == 'mcap' else [])]
    return all(map(_is_installed, packages))


def command(given: argparse.Namespace) -> list[str]:
    """`ros2 bag play` with the options of bag_player.

    Raises:
        BagError: there is no bag, or no `ros2`.

    """
    path = str(checked_path(given.bag))
    if shutil.which('ros2') is None:
        raise BagError("--rosbag2: there is no command 'ros2' here. Source a ROS 2 setup file, or "
                       'leave --rosbag2 away.')
    result = ['ros2', 'bag', 'play', path, '--disable-keyboard-controls',
              '--delay', str(DISCOVERY), '--rate', str(given.rate)]
    if given.loop:
        result.append('--loop')
    for name in ('clock', 'start_offset', 'topics', 'remap'):
        value = getattr(given, name)
        values = value if isinstance(value, list) else [value]
        if value:
            result += [f'--{name.replace("_", "-")}', *map(str, values)]
    return result


def _is_installed(package: str) -> bool:
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True
