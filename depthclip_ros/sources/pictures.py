# SPDX-License-Identifier: Apache-2.0
"""Read pictures from files, folders, videos and webcams, or render them. Needs no ROS."""

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
from ..core.file_formats import kind_of
from ..core.files import open_regular, user_path
from ..core.opencv import cv2
from ..messages.image_io import TIFF_STARTS, image_size, tiff_directory
from .camera_info import BUILTIN_HFOV

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ..drawing.color import Picture

SUFFIXES = frozenset((
    '.avif', '.bmp', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png',
    '.pnm', '.ppm', '.tif', '.tiff', '.webp'))
MAX_PIXELS = 100_000_000  # of a picture in a file
_NUMBERS = ('holds {}: a depth map, or a picture in linear light? Give a photograph of 8 or 16 '
            'bits a channel')
_DECODED = frozenset(('png', 'jpeg', 'gif', 'webp', 'tiff', 'jpeg 2000', 'pnm', 'bmp', 'avif'))
# Endings of the files that `depthclip predict` writes.
RESULTS = ('_depth.png', '_color.png', '_patches.png', '_patches.npy')


class Notes:
    """Notices on peculiar pictures: logged for the first of a kind, and counted at the end."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """Start without notices; `log` receives sentences."""
        self._log = log
        self._counts = Counter[str]()

    def add(self, name: str | Path, condition: str, sentence: str) -> None:
        """Count a condition (a short key) of a picture, if its sentence is not ''."""
        self._counts[condition] += bool(sentence)
        if sentence and self._counts[condition] == 1:
            self._log(f'{name}: {sentence}')

    def close(self) -> None:
        """Log how many pictures meet each condition, if more than one does."""
        for condition, count in self._counts.items():
            if count > 1:
                self._log(f'{condition}: {count} pictures in all')


def picture_files(paths: Sequence[str | Path]) -> list[Path]:
    """Expand folders (not their sub-folders) to the pictures in them, sorted by name.

    Results of `depthclip predict` beside their picture are left out, and so are files without a
    picture's suffix; both are counted on stderr.

    Raises:
        ImageError: a path does not exist, or a folder holds no picture.

    """
    files: list[Path] = []
    for name in paths:
        try:
            path = user_path(name)
            path.stat()
            pictures, rest = _pictures_in(path) if path.is_dir() else ([path], '')
        except OSError as error:
            # Show enough of a long path for its end.
            raise ImageError('missing file', f'{quoted(str(Path(name).absolute()), 300)} is no '
                             f'image or folder: {error.strerror}.') from error
        if not pictures:
            raise ImageError('empty folder', f'{path} holds no picture '
                             f'({", ".join(sorted(SUFFIXES))}) but {rest or "nothing"}.')
        files += pictures
    return files


def _pictures_in(folder: Path) -> tuple[list[Path], str]:
    """List the pictures of a folder by name, and count its other entries in a phrase."""
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
    """Name the kind of a folder's entry; '' for a picture."""
    if path.name.startswith('._'):
        return '._* of macOS'
    if path.is_dir():
        return 'sub-folder(s)'
    suffix = path.suffix.lower()
    return '' if suffix in SUFFIXES else suffix or 'without a suffix'


def read_picture(path: Path, *, upright: bool = True, notes: Notes | None = None) -> Picture:
    """Read one picture as uint8 (H, W, 3) BGR.

    Of channels with 16 bits, the upper 8 of the bits in use count: 8, 10, 12, 14 or 16 by the
    largest value. (A camera's messages always count as 16, because their images belong together.)

    Args:
        path: of the file.
        upright: rotate by its EXIF entry; else return the stored pixels.
        notes: receives notices on unused bits, grey of 16 bits, and unread pages.

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
        minimum, maximum = int(pixels.min()), int(pixels.max())
        bits = next((bits for bits in (8, 10, 12, 14) if maximum < 1 << bits), 16)
        if bits < 16:
            notes.add(path, f'{bits} bits', f'has {bits} bits a channel in use (values to '
                      f'{maximum}): read as a picture of {bits} bits, not of 16.')
        if (pixels == pixels[..., :1]).all():
            notes.add(path, 'grey of 16 bits', f'is grey of 16 bits ({minimum} to {maximum}): a '
                      'depth or thermal picture? Depth by words is of photographs.')
        pixels = (pixels >> bits - 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImageError('not 8 or 16 bits', f'{path}: {_NUMBERS.format(pixels.dtype)}.')
    return np.asarray(pixels, np.uint8)


def read_pixels(path: Path, flags: int) -> NDArray[Any]:
    """Decode an image file of any name; OpenCV's `imread` ends the process for some names.

    Args:
        path: of the file.
        flags: of OpenCV, such as `cv2.IMREAD_UNCHANGED`.

    Returns:
        Pixels as OpenCV decodes them.

    Raises:
        ImageError: 'unreadable file', 'too many pixels' (more than MAX_PIXELS), or 'not an
            image', with the content of the file.

    """
    return _decoded(path, _read(path), flags)


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise ImageError('unreadable file', f'{path}: {error.strerror}.') from error


def _decoded(path: Path, data: bytes, flags: int) -> NDArray[Any]:
    size = None  # known before decoding for JPEG, PNG and TIFF alone
    with suppress(ImageError):  # the decoder judges truncated files
        size = image_size(data)
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
    """Whether a TIFF has a second page, or pictures within its first (tag 330, raw formats)."""
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
    """Yield the pictures of files in order; each file is read when its turn comes.

    Args:
        files: to read.
        skip: called with the error of each unreadable file.
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


def video_file(name: str | Path) -> Path:
    """Return the absolute path of a video.

    Raises:
        ImageError: there is no such file, or the name is that of a stream.

    """
    if re.match(r'\w+://', str(name)):
        raise ImageError('a stream', f'{name}: is a stream, and a file is expected. Record it '
                         '(ffmpeg -i ADDRESS -t 60 OUT.mp4), or let a driver of ROS publish it, '
                         'and run depth_node on its topic.')
    try:
        path = user_path(name).absolute()
        open_regular(path).close()
    except OSError as error:
        sequence = ' For pictures, such as a sequence: --images FOLDER.' if re.search(
            r'%\d*d', str(name)) or error.errno == errno.EINVAL else ''
        raise ImageError('missing file', f'There is no video at {quoted(str(name), 300)}: '
                         f'{error.strerror}.{sequence}') from error
    return path


def video_frames(name: str | Path, notes: Notes | None = None) -> Iterator[Picture]:
    """Yield the frames of a video file in order.

    Args:
        name: its path.
        notes: receives a notice if it ends before the length in its header.

    Raises:
        ImageError: as `video_file`, or OpenCV can decode no frame.

    """
    path, count = video_file(name), 0
    with _name_for_opencv(path) as alias:
        capture = cv2.VideoCapture(alias)
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
    """Yield a name under which OpenCV opens a file: a name that is no UTF-8 ends the process."""
    if str(path).isprintable() and '%' not in str(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, 'video')
        link.symlink_to(path)
        yield str(link)


def webcam_frames(index: int) -> Iterator[Picture]:
    """Yield live frames of a webcam, without a backlog: the driver's queue has length one.

    Raises:
        ImageError: there is no such camera, or it stops sending.

    """
    capture = cv2.VideoCapture(index)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    is_open = capture.isOpened()
    yield from _captured(capture)
    if not is_open:
        raise ImageError('no webcam', f'Webcam {index} cannot be opened: no such camera, in use, '
                         f'or no permission for /dev/video{index} (group video).')
    raise ImageError('webcam stopped', f'Webcam {index} stopped sending frames.')


def builtin_frames(
    announce: Callable[[str], None], fov: float = BUILTIN_HFOV,
) -> Iterator[Picture]:
    """Render rooms of 640 x 480 pixels, endlessly, in the same sequence every time.

    It limits torch to one thread in this process, to leave the other cores to the network.

    Args:
        announce: receives kind and seed of every new room.
        fov: horizontal field of view in degrees.

    """
    import torch  # late: it takes seconds

    from ..sim.views import SimConfig, tour
    torch.set_num_threads(1)
    for rgb in tour(SimConfig(fov=fov).camera(), announce):
        yield np.ascontiguousarray(rgb[:, :, ::-1])


def _captured(capture: cv2.VideoCapture) -> Iterator[Picture]:
    """Yield all frames of a capture, and release it in any case."""
    try:
        while capture.isOpened():
            success, frame = capture.read()
            if not success:
                return
            yield np.asarray(frame, np.uint8)
    finally:
        capture.release()
