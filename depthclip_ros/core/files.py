# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there at all, and paths that a user wrote."""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

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
