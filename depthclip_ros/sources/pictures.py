# SPDX-License-Identifier: Apache-2.0
"""Pictures from files, folders, videos, webcams, or built in. Needs no ROS."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ImageError, quoted
from ..core.files import open_regular, user_path
from ..core.formats import kind_of
from ..core.opencv import cv2
from ..messages.image_io import size_of
from .camera_info import BUILTIN_HFOV

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ..color import Picture

SUFFIXES = frozenset(
    ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'))
MAX_PIXELS = 100_000_000  # of a picture in a file
_DECODED = frozenset(('png', 'jpeg', 'gif', 'webp', 'tiff', 'jpeg 2000', 'pnm', 'bmp', 'pfm'))
RESULTS = ('_depth.png', '_color.png', '_patches.png')  # of `depthclip predict`, behind a name


def picture_files(paths: Sequence[str | Path]) -> list[Path]:
    """Expand folders (not their sub-folders) to the pictures in them, sorted by name.

    What `depthclip predict` has made of a picture beside it is left out, and so said on stderr.

    Raises:
        ImageError: a path does not exist, or a folder holds no picture.

    """
    files: list[Path] = []
    for given in paths:
        try:
            path = user_path(given)
            path.stat()
            found = _pictures_in(path) if path.is_dir() else [path]
        except OSError as error:
            # What is missing of a long path is at its end.
            raise ImageError('missing file', f'{quoted(str(Path(given).absolute()), 300)} is no '
                             f'image or folder: {error.strerror}.') from error
        if not found:
            raise ImageError('empty folder', f'{path} holds no picture '
                             f'({", ".join(sorted(SUFFIXES))}).')
        files += found
    return files


def _pictures_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    made = {path.stem + result for path in found for result in RESULTS}
    pictures = [path for path in found if path.name not in made]
    if len(pictures) < len(found):
        count = len(found) - len(pictures)
        sys.stderr.write(f'{folder}: {count} results of depthclip predict are left out.\n')
    return pictures


def read_picture(path: Path, *, upright: bool = True) -> Picture:
    """Read one picture as uint8 (H, W, 3) BGR.

    Args:
        path: of the file.
        upright: turn it as its EXIF says; else it is as it is stored.

    Raises:
        ImageError: as `read_pixels`.

    """
    return np.asarray(read_pixels(path, cv2.IMREAD_COLOR | (
        0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)), np.uint8)


def read_pixels(path: Path, flags: int) -> NDArray[Any]:
    """Decode an image file of any name; OpenCV's own `imread` ends the process for some names.

    Args:
        path: of the file.
        flags: OpenCV's, as `cv2.IMREAD_UNCHANGED`.

    Returns:
        What OpenCV makes of it.

    Raises:
        ImageError: 'unreadable file', 'too many pixels' (more than MAX_PIXELS), or 'not an
            image', with what it is instead.

    """
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise ImageError('unreadable file', f'{path}: {error.strerror}.') from error
    size = None
    with suppress(ImageError):  # of a truncated one the decoder decides
        size = size_of(data)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            'too many pixels', f'{path}: has {size[0]} x {size[1]} pixels, and at most '
            f'{MAX_PIXELS:,} are read. Reduce it: convert {path.name} -resize 25% OUT.png')
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:  # some decoders throw where others return nothing
        pixels = None
    if pixels is None:
        raise ImageError('not an image', f'{path}: {_undecodable(data)}.')
    return np.asarray(pixels)


def _undecodable(data: bytes) -> str:
    kind = kind_of(data)
    if kind.name in _DECODED:
        return f'is {kind.sentence} that cannot be decoded: truncated or damaged, so copy it again'
    return f'is no picture but {kind.sentence}'


def file_frames(
    files: Sequence[Path], skip: Callable[[ImageError], None],
) -> Iterator[Picture]:
    """Pictures of the files in order; each file is read when its turn comes.

    Args:
        files: what to read.
        skip: called with the error of a file that cannot be read; it is left out.

    Raises:
        ImageError: none of the files can be read.

    """
    count = 0
    for path in files:
        try:
            picture = read_picture(path)
        except ImageError as error:  # noqa: PERF203 (one bad file stops no other)
            skip(error)
        else:
            count += 1
            yield picture
    if not count:
        raise ImageError(
            'not an image', f'None of the {len(files)} given files is a readable image.')


def video_frames(path: str | Path) -> Iterator[Picture]:
    """Frames of a video file in order.

    Raises:
        ImageError: the file is missing, or holds no frame that OpenCV can decode.

    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise ImageError('missing file', f'There is no video at {path}.')
    count = 0
    for frame in _captured(cv2.VideoCapture(str(path))):
        count += 1
        yield frame
    if not count:
        raise ImageError('not a video', f'{path}: OpenCV can decode no frame of it; it may be '
                         'truncated or of a format this OpenCV lacks.')


def webcam_frames(index: int) -> Iterator[Picture]:
    """Live frames of a webcam, newest first: the driver's queue is kept at one.

    Raises:
        ImageError: there is no such camera, or it stops sending.

    """
    capture = cv2.VideoCapture(index)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    opened = capture.isOpened()
    yield from _captured(capture)
    if not opened:
        raise ImageError('no webcam', f'Webcam {index} cannot be opened: no such camera, in use, '
                         f'or no permission for /dev/video{index} (group video).')
    raise ImageError('webcam stopped', f'Webcam {index} stopped sending frames.')


def builtin_frames(
    announce: Callable[[str], None], fov: float = BUILTIN_HFOV,
) -> Iterator[Picture]:
    """Rendered rooms of 640 x 480 pixels, endlessly, always the same.

    From the first one on, torch has one thread in this process, so that the other cores are left
    to the network.

    Args:
        announce: told of every new room: its kind and seed.
        fov: horizontal field of view in degrees.

    """
    import torch  # late: it takes seconds

    from ..sim.world import SimConfig, tour
    torch.set_num_threads(1)
    for rgb in tour(SimConfig(fov=fov).camera(), announce):
        yield np.ascontiguousarray(rgb[:, :, ::-1])


def _captured(capture: cv2.VideoCapture) -> Iterator[Picture]:
    """Frames until there is no more; the capture is released in any case."""
    try:
        while capture.isOpened():
            there, frame = capture.read()
            if not there:
                return
            yield np.asarray(frame, np.uint8)
    finally:
        capture.release()
