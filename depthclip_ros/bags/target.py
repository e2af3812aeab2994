# SPDX-License-Identifier: Apache-2.0
"""The bag that is written: unfinished, done, and what it says that it was made of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__
from ..core.files import user_path
from ..sources.bag import BagError, custom_data, existing_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..core.config import DepthConfig
    from .options import Options

PARTIAL = '.partial'  # behind the name of a bag that is being made
MADE_OF = 'depthclip_made_of'  # in the output's metadata


def is_done(source: Path, output: Path, config: DepthConfig, options: Options) -> bool:
    """Whether the output is there, of the very source that is there now and the same settings.

    Raises:
        BagError: something else is there.

    """
    output = output_path(output)
    if not output.exists():
        return False
    source = existing_path(source)
    if custom_data(output).get(MADE_OF) != made_of(source, config, options):
        raise BagError(f'{output} is there, and was made of another bag or with other settings. '
                       'Remove it, or choose another place with -o.')
    return True


def made_of(source: Path, config: DepthConfig, options: Options) -> str:
    """Hash of what a converted bag follows from; the machine may be another one."""
    files = sorted(source.rglob('*')) if source.is_dir() else [source]
    about = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    asked = dataclasses.asdict(options)
    for machine in ('device', 'cache_dir', 'offline', 'num_threads'):
        del asked['node'][machine]
    text = json.dumps([about, config.to_dict(), asked], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def output_path(path: str | Path) -> Path:
    """Path of a bag to make, with ~ replaced.

    Raises:
        BagError: there is no such user.

    """
    try:
        return user_path(path)
    except OSError as error:
        raise BagError(f'{path}: {error.strerror}.') from error


def begin(output: Path, *, resume: bool) -> Path:
    """Make the folder in which the output is made; nothing that is complete is overwritten.

    Raises:
        BagError: the output is there, or something unfinished is and is not to be made again, or
            it cannot be written.

    """
    partial = output.with_name(output.name + PARTIAL)
    if output.exists() or output.is_symlink():
        raise BagError(f'{output} is there already, and not overwritten. Choose another place '
                       'with -o.')
    if partial.exists() and not resume:
        raise BagError(f'{partial} is there: another run is at work there, or was stopped. If it '
                       'was stopped, make the bag again with --resume.')
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise BagError(f'{output} cannot be written: {error.strerror}. Choose another place with '
                       '-o.') from error
    return partial


def writer(
    output: Path, version: Literal[8, 9], storage: str, compression: str,
    about: Mapping[str, str],
) -> Any:
    """The bag itself, to be opened by `with`; `about` is kept in its metadata."""
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    plugin = StoragePlugin.MCAP if storage == 'mcap' else StoragePlugin.SQLITE3
    bag = Writer(output, version=version, storage_plugin=plugin)
    mode = {'zstd': CompressionMode.STORAGE, 'message': CompressionMode.MESSAGE,
            'file': CompressionMode.FILE, 'none': CompressionMode.NONE}[compression]
    bag.set_compression(mode, CompressionFormat.ZSTD)
    for key, value in {'depthclip_ros': __version__, **about}.items():
        bag.set_custom_data(key, value)
    return bag
