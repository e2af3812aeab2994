# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there at all, and paths that a user wrote."""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

from .errors import ConfigError, first_of, quoted

_LONGEST = 255  # bytes of a file's name, on nearly all file systems


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that gets its name when it is complete and on the disk, or never.

    Its folder is made. Until the end it has a temporary name beside `path`, which any error
    removes; what a killed process left goes when the same file is written an hour later.

    Raises:
        OSError: it cannot be written, e.g. the disk is full.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.{path.name[:40]}.'  # names are at most 255 bytes long
    for left in path.parent.glob(f'{escape(prefix)}*.part'):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 3600:  # nobody writes so long without a write
                left.unlink()
    part = path.with_name(f'{prefix}{secrets.token_hex(8)}.part')
    try:
        with part.open('xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_new(files: Iterable[Path], option: str = '-o') -> None:
    """Refuse to write what is there already; `option` of the command line chooses another place.

    Raises:
        ConfigError: a file or a folder is there, or a link to nothing; says which.

    """
    there = [file for file in files if file.exists() or file.is_symlink()]
    if there:
        raise ConfigError(f'{first_of(there)}: there already, and not overwritten. Remove what is '
                          f'no longer needed, or choose another place with {option}.')


def numbered_folder(folder: Path) -> Path:
    """Make a folder; where one of that name is there, with the first free number: NAME_2.

    Raises:
        ConfigError: it cannot be made.

    """
    names = chain([folder.name], (f'{folder.name}_{number}' for number in count(2)))
    for path in map(folder.with_name, names):
        if path.exists() or path.is_symlink():
            continue
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # another process was faster, as where several begin at once
            continue
        except OSError as error:
            raise ConfigError(f'{path}: cannot be made: {error.strerror}. Choose another folder.'
                              ) from error
        return path
    raise AssertionError('numbers do not end')


def printable(path: str | Path) -> str:
    """A path, or a text with one, that can be written anywhere: U+FFFD stands for no UTF-8."""
    return re.sub('[\ud800-\udfff]', '\ufffd', str(path))


def shortened(name: str, room: int) -> str:
    """The beginning of a file's name that leaves `room` bytes of what a name may have."""
    while len(os.fsencode(name)) > _LONGEST - room:
        name = name[:-1]
    return name


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; OSError instead of waiting where it is a pipe or a device."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, 'it is a folder, a pipe or a device, not a file')
    return path.open('rb')


def user_path(text: str | Path) -> Path:
    """Path as a user wrote it, with ~ expanded; OSError where it can be the name of no file."""
    if '\0' in str(text):
        raise OSError(errno.EINVAL, 'a path cannot hold a NUL character')
    path = Path(text)
    if not str(text).startswith('~'):
        return path.absolute() if str(path).startswith('~') else path  # of ./~, where ~ is a name
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise OSError(errno.ENOENT, 'no home folder is known for that user') from error


def named_path(path: str, option: str = '-o') -> Path:
    """A path that `option` gives; ConfigError where it can be the name of no file."""
    try:
        return user_path(path)
    except OSError as error:
        raise ConfigError(f'{option}: {quoted(path)}: {error.strerror}.') from error


def output_folder(path: str, option: str = '-o') -> Path:
    """Make the folder for results, which `option` of the command line chooses.

    Raises:
        ConfigError: it cannot be written.

    """
    folder = named_path(path, option)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = '' if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise ConfigError(f'{folder}: results cannot be written there: {reason}. Choose another '
                          f'folder with {option}.')
    return folder
