# SPDX-License-Identifier: Apache-2.0
"""Where this package's own files are: settings, launch and RViz files. Needs no ROS."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from .core.errors import DepthClipError

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE = 'depthclip_ros'

# By rclpy's major version, where no sourced ROS says it; later ones need no treatment of theirs.
DISTRIBUTIONS = {'3': 'humble', '4': 'iron', '7': 'jazzy'}
# Where Fast DDS looks for a profile: in these distributions, and in later ones, ...
PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
# ... and what else tells that the user has chosen its transports.
OTHER_CHOICES = ('FASTDDS_BUILTIN_TRANSPORTS', 'SKIP_DEFAULT_XML')
SHARED_MEMORY = Path('/dev/shm')  # noqa: S108 (Fast DDS's, not a file of ours)
# Bytes of shared memory for four processes with it. Containers often have 64 MiB in all.
ROOM_FOR_PROFILE = 128 * 2**20


def share_dir() -> Path:
    """Folder with package.xml, config/, launch/ and rviz/ of the running code.

    It is found from this file upwards, so that a source tree beside an older installation, or
    one workspace over another, never reads the other's files.

    Raises:
        DepthClipError: the installation lacks them.

    """
    here = Path(__file__)
    for folder in here.parents:
        for candidate in (folder, folder / 'share' / PACKAGE):
            if (candidate / 'package.xml').is_file() and (candidate / 'config').is_dir():
                return candidate
    raise DepthClipError(
        f'The files of {PACKAGE} (share/{PACKAGE}) are not above {here.parent}. Install the '
        'package again, with pip or colcon (docs/install.md).'
    )


def config_path(name: str = 'depth.yaml') -> Path:
    """Path of a settings file that comes with the package.

    Args:
        name: File name in config/, with or without `.yaml`.

    Raises:
        DepthClipError: no such file; the message lists those there are.

    """
    folder = share_dir() / 'config'
    path = folder / (name if name.endswith('.yaml') else f'{name}.yaml')
    if path.parent != folder or not path.is_file():
        known = ', '.join(sorted(file.name for file in folder.glob('*.yaml'))) or 'none'
        raise DepthClipError(f"No settings '{name}' in {folder}; there are: {known}.")
    return path


def ros_distribution(environ: Mapping[str, str]) -> str:
    """Name of the ROS distribution that processes use; '' where it is a later one or unknown."""
    try:
        version = metadata.version('rclpy')
    except metadata.PackageNotFoundError:
        version = ''
    return environ.get('ROS_DISTRO') or DISTRIBUTIONS.get(version.partition('.')[0], '')


def large_images_profile(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variable by which Fast DDS takes config/fastdds_large_images.xml.

    With its defaults, a camera_info sent just before a large image is lost behind it, and comes
    only 3 s later: images without clouds.

    Args:
        environ: the process's environment.

    Returns:
        Nothing where the user has chosen a profile, the middleware is another one, or the
        machine (a container, usually) has too little shared memory for it.

    """
    chosen = any(name in environ for name in (*PROFILE_VARIABLES, *OTHER_CHOICES))
    middleware = environ.get('RMW_IMPLEMENTATION') or 'rmw_fastrtps_cpp'
    if chosen or not middleware.startswith('rmw_fastrtps'):
        return {}
    try:
        room = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return {}
    if room < ROOM_FOR_PROFILE:
        return {}
    older, newer = PROFILE_VARIABLES  # of which later distributions warn, and others know nothing
    variable = older if ros_distribution(environ) in DISTRIBUTIONS.values() else newer
    return {variable: str(share_dir() / 'config' / 'fastdds_large_images.xml')}
