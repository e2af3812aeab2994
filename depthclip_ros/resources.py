# SPDX-License-Identifier: Apache-2.0
"""Paths of this package's own files: settings, launch and RViz files. Needs no ROS."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from .core.errors import DepthClipError

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE = 'depthclip_ros'

# By rclpy's major version, for an environment without ROS_DISTRO; later ones need no exception.
DISTRIBUTIONS = {'3': 'humble', '4': 'iron', '7': 'jazzy'}
# Environment variables of Fast DDS's profile: in these distributions, and in later ones.
PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
# Further environment variables by which the user chooses its transports.
TRANSPORT_VARIABLES = ('FASTDDS_BUILTIN_TRANSPORTS', 'SKIP_DEFAULT_XML')
SHARED_MEMORY = Path('/dev/shm')  # noqa: S108 (Fast DDS's, not a file of ours)
# Shared memory for four processes with the profile. Containers often have 64 MiB in all.
PROFILE_BYTES = 128 * 2**20


def share_dir() -> Path:
    """Find the folder with package.xml, config/, launch/ and rviz/ of the running code.

    It is a parent of this file, so that a source tree beside an older installation, or one
    workspace over another, never reads the other's files.

    Raises:
        DepthClipError: the installation lacks the folder.

    """
    source_file = Path(__file__)
    for folder in source_file.parents:
        for candidate in (folder, folder / 'share' / PACKAGE):
            if (candidate / 'package.xml').is_file() and (candidate / 'config').is_dir():
                return candidate
    raise DepthClipError(
        f'The files of {PACKAGE} (share/{PACKAGE}) are not above {source_file.parent}. Install '
        'the package again, with pip or colcon (docs/install.md).'
    )


def config_path(name: str = 'depth.yaml') -> Path:
    """Return the path of a settings file of the package.

    Args:
        name: file name in config/, with or without `.yaml`.

    Raises:
        DepthClipError: there is no such file; the message lists the existing ones.

    """
    folder = share_dir() / 'config'
    path = folder / (name if name.endswith('.yaml') else f'{name}.yaml')
    if path.parent != folder or not path.is_file():
        names = ', '.join(sorted(file.name for file in folder.glob('*.yaml'))) or 'none'
        raise DepthClipError(f"No settings '{name}' in {folder}; there are: {names}.")
    return path


def ros_distribution(environ: Mapping[str, str]) -> str:
    """Return the name of the ROS distribution in use; '' where it is a later one or unknown."""
    try:
        version = metadata.version('rclpy')
    except metadata.PackageNotFoundError:
        version = ''
    return environ.get('ROS_DISTRO') or DISTRIBUTIONS.get(version.partition('.')[0], '')


def large_images_profile(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variable that makes Fast DDS use config/fastdds_large_images.xml.

    With its defaults, Fast DDS loses a camera_info sent just before a large image, and repeats it
    only 3 s later: until then there are no clouds.

    Args:
        environ: the process's environment.

    Returns:
        An empty mapping if the user has chosen a profile, the middleware is another one, or the
        machine (usually a container) has too little shared memory.

    """
    is_configured = any(name in environ for name in (*PROFILE_VARIABLES, *TRANSPORT_VARIABLES))
    middleware = environ.get('RMW_IMPLEMENTATION') or 'rmw_fastrtps_cpp'
    if is_configured or not middleware.startswith('rmw_fastrtps'):
        return {}
    try:
        free_bytes = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return {}
    if free_bytes < PROFILE_BYTES:
        return {}
    older, newer = PROFILE_VARIABLES  # later distributions warn of the older one
    variable = older if ros_distribution(environ) in DISTRIBUTIONS.values() else newer
    return {variable: str(share_dir() / 'config' / 'fastdds_large_images.xml')}
