# SPDX-License-Identifier: Apache-2.0
"""Pictures from files, folders, videos, webcams, or built in. Needs no ROS."""

from __future__ import annotations

import errno
import re
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ImageError, quoted
from ..core.files import open_regular, user_path
from ..core.formats import kind_of
from ..core.opencv import cv2
from ..messages.image_io import TIFF_STARTS, size_of, tiff_directory
from .camera_info import BUILTIN_HFOV

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ..color import Picture

SUFFIXES = frozenset((
    '.avif', '.bmp', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png',
    '.pnm', '.ppm', '.tif', '.tiff', '.webp'))
MAX_PIXELS = 100_000_000  # of a picture in a file
_NUMBERS = ('holds {}: a depth map, or a picture in linear light? Give a photograph of 8 or 16 '
            'bits a channel')
_DECODED = frozenset(('png', 'jpeg', 'gif', 'webp', 'tiff', 'jpeg 2000', 'pnm', 'bmp', 'avif'))
# Of `depthclip predict`, behind a name.
RESULTS = ('_depth.png', '_color.png', '_patches.png', '_patches.npy')


class Notes:
    """What is peculiar about pictures: said of the first; and of how many, at the end."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Begin; `say` is told sentences."""
        self._say = say
        self._counts = Counter[str]()

    def add(self, name: str | Path, condition: str, sentence: str) -> None:
        """Note of a picture what a short key stands for, by a sentence; '' where it is not so."""
        self._counts[condition] += bool(sentence)
        if sentence and self._counts[condition] == 1:
            self._say(f'{name}: {sentence}')

    def close(self) -> None:
        """Say how many pictures it was true of, where it was not the first one alone."""
        for condition, count in self._counts.items():
            if count > 1:
                self._say(f'{condition}: {count} pictures in all')


def picture_files(paths: Sequence[str | Path]) -> list[Path]:
    """Expand folders (not their sub-folders) to the pictures in them, sorted by name.

    What `depthclip predict` has made of a picture beside it is left out, and so is what is no
    picture by its name; both are counted on stderr.

    Raises:
        ImageError: a path does not exist, or a folder holds no picture.

    """
    files: list[Path] = []
    for given in paths:
        try:
            path = user_path(given)
            path.stat()
            pictures, rest = _pictures_in(path) if path.is_dir() else ([path], '')
        except OSError as error:
            # What is missing of a long path is at its end.
            raise ImageError('missing file', f'{quoted(str(Path(given).absolute()), 300)} is no '
                             f'image or folder: {error.strerror}.') from error
        if not pictures:
            raise ImageError('empty folder', f'{path} holds no picture '
                             f'({", ".join(sorted(SUFFIXES))}) but {rest or "nothing"}.')
        files += pictures
    return files


def _pictures_in(folder: Path) -> tuple[list[Path], str]:
    """Pictures of a folder by name, and what else is there, by number and kind."""
    entries = sorted(folder.iterdir())
    kinds = {path: _kind_by_name(path) for path in entries}
    results = {path.stem + result for path in entries if not kinds[path] for result in RESULTS}
    pictures = [path for path in entries if not kinds[path] and path.name not in results]
    counts = Counter(kind for path, kind in kinds.items() if kind and path.name not in results)
    rest = ', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))
    if count := len(results.intersection(path.name for path in entries)):
        sys.stderr.write(f'{folder}: {count} results of depthclip predict are left out.\n')
    if pictures and rest:
        sys.stderr.write(f'{folder}: passed over: {rest}.\n')
    return pictures, rest


def _kind_by_name(path: Path) -> str:
    """What an entry of a folder is; '' for a picture."""
    if path.name.startswith('._'):
        return '._* of macOS'
    if path.is_dir():
        return 'sub-folder(s)'
    suffix = path.suffix.lower()
    return '' if suffix in SUFFIXES else suffix or 'without a suffix'


def read_picture(path: Path, *, upright: bool = True, notes: Notes | None = None) -> Picture:
    """Read one picture as uint8 (H, W, 3) BGR.

    Of 16 bits a channel the upper 8 count of those that are used, 8, 10, 12, 14 or 16 by the
    largest value. (Those of a camera's messages, which are one film, are always taken as 16.)

    Args:
        path: of the file.
        upright: turn it as its EXIF says; else it is as it is stored.
        notes: told of unused bits, one channel of 16 bits, and of pages that are not read.

    Raises:
        ImageError: as `read_pixels`, or 'not 8 or 16 bits'.

    """
    data = _read(path)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    pixels = _decoded(path, data, flags if upright else flags | cv2.IMREAD_IGNORE_ORIENTATION)
    notes = notes or Notes(lambda _: None)
    if _has_pages(data):
        notes.add(path, 'several pages', 'has several pages or pictures, of which the first is '
                  f'read ({pixels.shape[1]} x {pixels.shape[0]} pixels).')
    if pixels.dtype == np.uint16:
        least, most = int(pixels.min()), int(pixels.max())
        bits = next((bits for bits in (8, 10, 12, 14) if most < 1 << bits), 16)
        if bits < 16:
            notes.add(path, f'{bits} bits', f'has {bits} bits a channel in use (values to '
                      f'{most}): read as a picture of {bits} bits, not of 16.')
        if (pixels == pixels[..., :1]).all():
            notes.add(path, 'grey of 16 bits', f'is grey of 16 bits ({least} to {most}): a depth '
                      'or thermal picture? Depth by words is of photographs.')
        pixels = (pixels >> bits - 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImageError('not 8 or 16 bits', f'{path}: {_NUMBERS.format(pixels.dtype)}.')
    return np.asarray(pixels, np.uint8)


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
    return _decoded(path, _read(path), flags)


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise ImageError('unreadable file', f'{path}: {error.strerror}.') from error


def _decoded(path: Path, data: bytes, flags: int) -> NDArray[Any]:
    size = None  # of other formats than JPEG, PNG and TIFF it is known when they are decoded
    with suppress(ImageError):  # of a truncated one the decoder decides
        size = size_of(data)
    _check_size(path, *(size or (0, 0)))
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:  # some decoders throw where others return nothing
        pixels = None
    if pixels is None:
        raise ImageError('not an image', f'{path}: {_undecodable(data)}.')
    _check_size(path, *pixels.shape[1::-1])
    return np.asarray(pixels)


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            'too many pixels', f'{path}: has {width} x {height} pixels, and at most '
            f'{MAX_PIXELS:,} are read. Reduce it: convert {path.name} -resize 25% OUT.png')


def _has_pages(data: bytes) -> bool:
    """Whether a TIFF has a second page, or pictures within its first (tag 330), as raw ones do."""
    if not data.startswith(TIFF_STARTS):
        return False
    tags, following = tiff_directory(data)
    return following > 0 or 330 in tags


def _undecodable(data: bytes) -> str:
    kind = kind_of(data)
    if kind.name == 'tiff':
        with suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is not None:
                return _NUMBERS.format(pixels.dtype)
    if kind.name in _DECODED:
        return (f'is {kind.sentence.partition(":")[0]} that OpenCV {cv2.__version__} cannot '
                'decode: truncated, damaged, or of a kind that it lacks. Copy it again, or '
                'convert it to PNG')
    return f'is no picture that can be read but {kind.sentence}'


def file_frames(
    files: Sequence[Path], skip: Callable[[ImageError], None], notes: Notes | None = None,
) -> Iterator[Picture]:
    """Pictures of the files in order; each file is read when its turn comes.

    Args:
        files: what to read.
        skip: called with the error of a file that cannot be read; it is left out.
        notes: see `read_picture`.

    Raises:
        ImageError: none of the files can be read.

    """
    count = 0
    for path in files:
        try:
            picture = read_picture(path, notes=notes)
        except ImageError as error:  # noqa: PERF203 (one bad file stops no other)
            skip(error)
        else:
            count += 1
            yield picture
    if not count:
        raise ImageError(
            'not an image', f'None of the {len(files)} given files is a readable image.')


def video_file(given: str | Path) -> Path:
    """Absolute path of a video.

    Raises:
        ImageError: there is no such file; says what else was given, as a stream.

    """
    if re.match(r'\w+://', str(given)):
        raise ImageError('a stream', f'{given}: is a stream, and a file is expected. Record it '
                         '(ffmpeg -i ADDRESS -t 60 OUT.mp4), or let a driver of ROS publish it, '
                         'and run depth_node on its topic.')
    try:
        path = user_path(given).absolute()
        open_regular(path).close()
    except OSError as error:
        sequence = ' For pictures, such as a sequence: --images FOLDER.' if re.search(
            r'%\d*d', str(given)) or error.errno == errno.EINVAL else ''
        raise ImageError('missing file', f'There is no video at {quoted(str(given), 300)}: '
                         f'{error.strerror}.{sequence}') from error
    return path


def video_frames(given: str | Path, notes: Notes | None = None) -> Iterator[Picture]:
    """Frames of a video file in order.

    Args:
        given: its path.
        notes: told where it ends before its header says.

    Raises:
        ImageError: as `video_file`, or it holds no frame that OpenCV can decode.

    """
    path, count = video_file(given), 0
    with _name_for_opencv(path) as name:
        capture = cv2.VideoCapture(name)
        in_header = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        codec = int(capture.get(cv2.CAP_PROP_FOURCC)) if capture.isOpened() else 0
        for frame in _captured(capture):
            count += 1
            yield frame
    if not count:
        raise ImageError('not a video', f'{path}: {_undecodable_video(path, codec)}.')
    if notes and count < 0.95 * in_header - 1:
        notes.add(path, 'short video', f'ends after {count} frames, of about {in_header:.0f} by '
                  'its header: truncated, or its rate varies.')


def _undecodable_video(path: Path, codec: int) -> str:
    kind = kind_of(path)
    if kind.name not in ('video', ''):
        return f'is no video but {kind.sentence}'
    name = (codec & 0xFFFFFFFF).to_bytes(4, 'little').decode('ascii', 'replace').strip('\0')
    name = {'av01': 'AV1'}.get(name.lower(), name)
    return (f'OpenCV can decode no frame of it{f" ({name})" * bool(name)}: it is truncated, or of '
            'a kind that this OpenCV lacks. ffmpeg -i IN -c:v libx264 OUT.mp4 converts it')


@contextmanager
def _name_for_opencv(path: Path) -> Iterator[str]:
    """A name under which OpenCV opens a file: one that is no UTF-8 would end the process."""
    if str(path).isprintable() and '%' not in str(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, 'video')
        link.symlink_to(path)
        yield str(link)


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
