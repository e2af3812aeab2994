# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there at all, and paths that a user wrote."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

_DIGEST_BYTES = 32


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that gets its name when it is complete and on the disk, or never.

        with atomic(path) as file:
            file.write(...)

    Its folder is made. Until the end it has a temporary name beside `path`, which any error
    removes; what a killed process left goes when the same file is written next. Others may read
    it as far as the umask allows.

    Raises:
        OSError: it cannot be written, e.g. the disk is full.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    part, file = _open_part(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)  # while the lock says that somebody still needs it
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every file system lets a folder be synchronised
        _synchronize(path.parent)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting for what is none (a pipe, a device, a folder).

    Raises:
        OSError: it is not there, no regular file, or may not be read.

    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, 'it is a folder, a pipe or a device, not a file')
        return os.fdopen(handle, 'rb')
    except OSError:
        os.close(handle)
        raise


def write_sealed(path: Path, content: bytes) -> None:
    """Write a file of a cache: the SHA-256 of its name and content, then the content.

    The name says what the content was made of, so that neither counts without the other.

    Raises:
        OSError: it cannot be written.

    """
    with atomic(path) as file:
        file.write(_seal(path, content) + content)


def keep_sealed(path: Path, content: bytes, what: str, otherwise: str, log: Callable[[str], None],
                ) -> None:
    """Write a file of a cache; where that is not possible, say so, and what is done instead."""
    try:
        write_sealed(path, content)
    except OSError as error:
        log(f'WARNING: cannot keep {what} in {path.parent} ({error.strerror}); {otherwise} at '
            'every start. Set cache_dir or $DEPTHCLIP_CACHE to a folder that can be written.')


def read_sealed(path: Path, largest: int) -> bytes:
    """Content of a file that `write_sealed` wrote.

    Args:
        path: the file.
        largest: bytes that the content can have; no more are read.

    Raises:
        OSError: it is not there, no regular file, or may not be read.
        ValueError: it is not as it was written, or larger.

    """
    with open_regular(path) as file:
        sealed = file.read(_DIGEST_BYTES + largest + 1)
    content = sealed[_DIGEST_BYTES:]
    if len(content) > largest or sealed[:_DIGEST_BYTES] != _seal(path, content):
        raise ValueError('it is damaged')
    return content


def _seal(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + content).digest()


def user_path(text: str | Path) -> Path:
    """Path as a user wrote it, with ~ expanded.

    Raises:
        OSError: it cannot be the name of a file, or ~ is nobody's home.

    """
    if '\0' in str(text):
        raise OSError(errno.EINVAL, 'a path cannot hold a NUL character')
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise OSError(errno.ENOENT, 'no home folder is known for that user') from error


def _open_part(path: Path) -> tuple[Path, BinaryIO]:
    """Make a file of an unused temporary name, locked for as long as this process has it open."""
    while True:
        part = path.with_name(f'{_prefix(path)}{secrets.token_hex(8)}.part')
        file = os.fdopen(
            os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), 'wb')
        with suppress(OSError):  # a file system without locks: nothing is tidied up there
            fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():  # else another process took it for abandoned just before the lock
            return part, file
        file.close()


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of `path` whose writer is gone, and with it the lock."""
    for part in path.parent.glob(f'{escape(_prefix(path))}*.part'):
        with suppress(OSError), open_regular(part) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    return f'.{path.name[:40]}.'  # names are at most 255 bytes long


def _synchronize(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
