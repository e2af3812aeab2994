# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or absent, and paths that a user wrote."""

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

_NAME_LIMIT = 255  # bytes of a file's name, on nearly all file systems


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file for an atomic write: `path` appears when the file is on the disk.

    Makes the folder. The data goes to a temporary file beside `path`, which any error removes;
    the leftover of a killed process goes when the same file is written an hour later. OSError: the
    file cannot be written, e.g. the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.{path.name[:40]}.'  # below _NAME_LIMIT, whatever the name
    for leftover in path.parent.glob(f'{escape(prefix)}*.part'):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 3600:  # its writer is gone
                leftover.unlink()
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
    """Refuse to overwrite files; `option` of the command line chooses another place.

    ConfigError: a file, folder or dangling link of that name exists.
    """
    existing = [file for file in files if file.exists() or file.is_symlink()]
    if existing:
        raise ConfigError(f'{first_of(existing)}: there already, and not overwritten. Remove what '
                          f'is no longer needed, or choose another place with {option}.')


def numbered_folder(folder: Path) -> Path:
    """Make a folder, with the first free number after its name if the name exists: NAME_2.

    ConfigError: the folder cannot be made.
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
    """Replace by U+FFFD what is no UTF-8 in a path or text, so that any stream can print it."""
    return re.sub('[\ud800-\udfff]', '\ufffd', str(path))


def shortened(name: str, reserve: int) -> str:
    """Cut a file's name so that `reserve` bytes remain below the limit of file systems."""
    while len(os.fsencode(name)) > _NAME_LIMIT - reserve:
        name = name[:-1]
    return name


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; OSError for a pipe or device, which would block."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, 'it is a folder, a pipe or a device, not a file')
    return path.open('rb')


def user_path(text: str | Path) -> Path:
    """Expand ~ in a path that a user wrote; OSError if no file can have that name."""
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
    """Expand the path that `option` gives; ConfigError if no file can have that name."""
    try:
        return user_path(path)
    except OSError as error:
        raise ConfigError(f'{option}: {quoted(path)}: {error.strerror}.') from error


def output_folder(path: str, option: str = '-o') -> Path:
    """Make the folder for results, which `option` chooses; ConfigError if it is not writable."""
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
