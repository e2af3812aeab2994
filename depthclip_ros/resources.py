# SPDX-License-Identifier: Apache-2.0
"""Where this package's own files are: settings, launch and RViz files. Needs no ROS."""

from __future__ import annotations

from pathlib import Path

from .core.errors import DepthClipError

PACKAGE = 'depthclip_ros'


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
    from_index = _from_ament_index()
    if from_index is not None:
        return from_index
    raise DepthClipError(
        f'The files of {PACKAGE} (share/{PACKAGE}) are neither above {here.parent} nor in the '
        'ament index. Install the package again, with pip or colcon (docs/install.md).'
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


def _from_ament_index() -> Path | None:
    """Share folder by the ament index, for layouts where it is not above the code."""
    try:
        from ament_index_python.packages import (
            PackageNotFoundError,
            get_package_share_directory,
        )
    except ImportError:
        return None
    try:
        return Path(get_package_share_directory(PACKAGE))
    except PackageNotFoundError:
        return None
