# SPDX-License-Identifier: Apache-2.0
"""Folders and data sets as recordings."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..core.calibration import image_digest
from ..core.camera import CameraModel, notices_of
from ..core.errors import DataError, ImageError
from ..core.file_formats import kind_of
from ..messages.depth import metres_from_pixels
from ..sources import depth_maps
from ..sources.camera_info import Intrinsics
from ..sources.pictures import SUFFIXES, read_picture
from .recordings import (
    CLIPPING_FRAMES,
    Clipping,
    FailureCounts,
    Frame,
    Moment,
    Options,
    Recording,
    RecordingError,
    evenly_spaced,
    moments_in_time,
    nearest_pairs,
)
from .registration import (
    check_size,
    is_registered,
    measured_points,
    of_same_view,
    rasterize,
    same_view,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from .recordings import Float32

# Names of folders beside each other in data sets and exports of phones.
IMAGE_FOLDERS, DEPTH_FOLDERS = ('rgb', 'color', 'colour', 'images', 'image'), ('depth', 'depths')
_EXPORT = ('export images into rgb/, and depth under the same names into depth/, as PNG of 16 '
           'bits in millimetres or .npy in metres')
# Beside, or in place of, such folders.
_VIDEOS = ('.mp4', '.mov', '.avi', '.mkv')
_ARCHIVES = ('.zip', '.tar', '.tgz', '.gz', '.7z')
_UNREAD_MAPS = ('.depth', '.exr', '.dpt')
# Words that names of images and depth maps do not have in common.
_WORDS = re.compile(r'(?i)rgb|(_to_)?colou?r|depth|image|img|frame|aligned|registered')
# Numbers above the first are times since 1970 in seconds, above the others in milli-, micro- and
# nanoseconds; smaller numbers are counts.
_CLOCKS = (1e6, 1.0), (1e11, 1e-3), (1e14, 1e-6), (1e17, 1e-9)
_NANOSECOND_DIGITS = 9


class Files(NamedTuple):
    """Images and depth maps of a folder.

    Attributes:
        images: paths by name, without words such as `rgb`.
        depths: paths by name, without words such as `depth`.
        description: their folders, in words.

    """

    images: dict[str, Path]
    depths: dict[str, Path]
    description: str


def files_beside(path: Path, *, registered: bool = True) -> Files | None:
    """Find images and depth maps in two folders such as `rgb/` and `depth/`; None without them.

    Args:
        path: of their parent folder.
        registered: of several folders of depth, prefer one whose name says registered; False
            prefers another, because the depth camera is given.

    Raises:
        RecordingError: two files are of one frame, or a folder holds no usable ones.

    """
    names = _folders_in(path, registered=registered)
    if names is None:
        return None
    images, depths = (_files_of(path / name, kind, suffixes) for name, kind, suffixes in zip(
        names, ('picture', 'depth map'), (SUFFIXES, depth_maps.SUFFIXES), strict=True))
    return Files(images, depths, '/ with '.join(names) + '/')


def _files_of(folder: Path, kind: str, suffixes: Collection[str]) -> dict[str, Path]:
    """Find files below a folder, see `_by_name`; without any, raise an error with its content."""
    entries = [entry for entry in folder.rglob('*') if not entry.is_dir()]
    if files := _by_name(folder, entries, suffixes):
        return files
    counts = Counter(entry.suffix.lower() or 'without a suffix' for entry in entries)
    rest = ', '.join(f'{count} {suffix}' for suffix, count in sorted(counts.items()))
    raise RecordingError(f'{folder} holds no {kind} ({", ".join(sorted(suffixes))}) but '
                         f'{rest or "nothing"}. Unpack or convert what is there.')


def _folders_in(path: Path, *, registered: bool = True) -> tuple[str, str] | None:
    """Return the names of the folders of images and of depth, see `files_beside`."""
    folders = {entry.name.lower(): entry.name for entry in path.glob('*') if entry.is_dir()}
    by_name = sorted(name for name in folders if 'depth' in name and is_registered(name))
    usual = [name for name in DEPTH_FOLDERS if name in folders]
    depths = by_name + usual if registered else usual + by_name
    images = [name for name in IMAGE_FOLDERS if name in folders]
    return (folders[images[0]], folders[depths[0]]) if images and depths else None


def files_mixed(path: Path) -> Files | None:
    """Find images and depth maps in one folder or its sub-folders, by `depth` in their names.

    Raises:
        RecordingError: two files are of one frame.

    """
    files = [*path.glob('*'), *path.glob('*/*')] if path.is_dir() else []
    images, depths = (
        _by_name(path, (file for file in files if ('depth' in file.stem.lower()) is depth), kinds)
        for kinds, depth in ((SUFFIXES, False), (depth_maps.SUFFIXES, True)))
    return Files(images, depths, 'images with depth beside them') if images and depths else None


def of_folder(path: Path, files: Files, options: Options) -> Recording:
    """Open images and depth maps of the same names, `camera.yaml`, and `depth_camera.yaml`.

    Depth of a second camera (`depth_camera.yaml`) is registered to the images as though both
    cameras were in one place. Sub-folders are sequences. Names that are times, as in TUM's data,
    are paired by time, Redwood's by the time behind their numbers; if no names are equal, the
    first number in them counts.

    Raises:
        DepthClipError: there are no pairs, or a camera file is wrong.

    """
    camera, depth_camera = _cameras(path, options)
    notes: list[str] = []
    images, depths, described = files
    times = _times([*images, *depths], notes)
    timed = all(name in times for name in (*images, *depths))
    pairs = _pairs_in_time(images, depths, times, options.tolerance) if timed else \
        _pairs_by_name(images, depths)
    if not pairs:
        raise RecordingError(
            f'{path}: none of {len(images)} images ({_examples(images)}) has depth of the same '
            f'name, or time within {options.tolerance:g} s, among {len(depths)} files '
            f'({_examples(depths)}; PNG of 16 bits in millimetres, or .npy in metres). Rename one '
            'of them.')
    names = [name for name, _ in pairs]
    folders = {folder: number for number, folder in enumerate(
        dict.fromkeys(name.rpartition('/')[0] for name in names))}
    moments = moments_in_time([times[name] for name in names], names) if timed else [
        Moment(float(number), folders[name.rpartition('/')[0]], name)
        for number, name in enumerate(names)]

    def metres(position: int) -> Float32:
        file = depths[pairs[position][1]]
        values = depth_maps.read_depth_map(file, integers=options.unit > 0)
        return options.metres(metres_from_pixels(values), integer=values.dtype.kind == 'u')

    clipping = Clipping()
    for position in evenly_spaced(len(pairs), CLIPPING_FRAMES):
        with contextlib.suppress(DataError):  # counted when the frame is read
            clipping.update(metres(position))

    def frame(position: int) -> Frame:
        # As stored: the rotation in its EXIF was not applied to the depth.
        rgb = np.ascontiguousarray(
            read_picture(images[pairs[position][0]], upright=False)[..., ::-1])
        depth = clipping.remove(metres(position))
        check_size(camera, *rgb.shape[:2], file='--camera-info' if options.camera else str(
            path / 'camera.yaml'))
        if camera is None or depth_camera is None or same_view(depth_camera, camera):
            depth = of_same_view(depth, *rgb.shape[:2])
        else:
            depth = rasterize(measured_points(
                depth, depth_camera, 'The calibration of the depth camera', notes), camera)
        return Frame(rgb, depth, camera, moments[position])

    notes += clipping.notes + notices_of(camera, depth_camera)
    if camera and depth_camera and not same_view(depth_camera, camera):
        notes.append(
            'Depth is brought from its camera onto the images, as though both stood in one place. '
            f'With 25 mm between them, edges at 1 m lie {0.025 * camera.K[0, 0]:.0f} pixels '
            'aside: a bag with /tf_static knows better.')
    return Recording(
        str(path), described, moments, partial(_decoders, frame), FailureCounts({
            'images without depth': len(images) - len(pairs),
            'depth without an image': len(depths) - len(pairs)}), timed,
        notes=notes,
        integers=any(depths[name].suffix.lower() not in depth_maps.ARRAYS for _, name in pairs))


def knows_depth_camera(path: Path, options: Options) -> bool:
    """Whether the options or a file give the depth camera of a folder."""
    return options.depth_camera is not None or (path / 'depth_camera.yaml').exists()


def _cameras(path: Path, options: Options) -> tuple[CameraModel | None, CameraModel | None]:
    """Read the cameras of the images and of the depth; None without a file or option.

    Raises:
        DepthClipError: a file is no camera's, or the depth camera alone is given.

    """
    camera, depth = options.camera, options.depth_camera
    if camera is None and (path / 'camera.yaml').exists():
        camera = Intrinsics.from_yaml(path / 'camera.yaml').model(
            rectified=options.rectified)
    if depth is None and (path / 'depth_camera.yaml').exists():
        depth = Intrinsics.from_yaml(path / 'depth_camera.yaml')
    if depth is None:
        return camera, None
    if camera is None:
        raise RecordingError(
            f'{path}: the depth camera is known, and the camera of the images is not, so that '
            'depth cannot be brought onto them. Give its calibration in camera.yaml or with '
            '--camera-info FILE.')
    return camera, depth.model(rectified=bool(options.depth_rectified))


def _by_name(folder: Path, paths: Iterable[Path], suffixes: Iterable[str]) -> dict[str, Path]:
    """Index files below a folder by their names without words, in the order of their numbers."""
    files: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() not in suffixes or path.name.startswith('.'):
            continue
        parent = path.relative_to(folder).parent
        name = (parent / (_WORDS.sub('', path.stem).strip('._- ') or path.stem)).as_posix()
        if name in files:
            raise RecordingError(f'{files[name]} and {path.name} beside it are of one frame, '
                                 f'{name!r}. Take one of them away.')
        files[name] = path
    return {name: files[name] for name in sorted(files, key=lambda name: re.sub(
        r'\d+', lambda digits: digits[0].zfill(20), name))}


def _examples(files: dict[str, Path]) -> str:
    names = [f'{path.parent.name}/{path.name}' for path in files.values()]
    return f'{names[0]} to {names[-1]}' if names else 'none'


def _times(names: Sequence[str], notes: list[str]) -> dict[str, float]:
    """Parse the names that are times since 1970 [s].

    Args:
        names: of images and of depth maps.
        notes: receives a sentence if nanoseconds lack their leading zeros.

    """
    matches = {name: re.fullmatch(r'(\d+)(?:\.(\d*))?', name) for name in names}
    fractions = {match[2] for match in matches.values() if match and match[2]}
    lengths = {len(fraction) for fraction in fractions}
    # A point between two integers: such a time in floating point has fewer than nine decimals, and
    # one in ten fractions would begin with a zero.
    unpadded = max(lengths, default=0) == _NANOSECOND_DIGITS and len(lengths) > 1 and not any(
        fraction.startswith('0') for fraction in fractions - {'0'})
    if unpadded:
        name = next(name for name, match in matches.items()
                    if match and len(match[2] or '') < _NANOSECOND_DIGITS)
        notes.append(f'Names are seconds and nanoseconds without their zeros: {name} is read as '
                     f'{_with_zeros(name)}.')
    times = {name: _seconds(_with_zeros(name) if unpadded else name)
             for name, match in matches.items() if match}
    return {name: time for name, time in times.items() if time is not None}


def _with_zeros(name: str) -> str:
    seconds, _, nanoseconds = name.partition('.')
    return f'{seconds}.{nanoseconds.zfill(_NANOSECOND_DIGITS)}'


def _seconds(number: str) -> float | None:
    """Convert a number to seconds since 1970; None for a number that is no time."""
    return next((float(number) * unit for minimum, unit in reversed(_CLOCKS)
                 if float(number) > minimum), None)


def _pairs_in_time(
    images: Iterable[str], depths: Iterable[str], times: dict[str, float], tolerance: float,
) -> list[tuple[str, str]]:
    first, second = (sorted(names, key=times.__getitem__) for names in (images, depths))
    return [(first[i], second[j]) for i, j in nearest_pairs(
        [times[name] for name in first], [times[name] for name in second], tolerance)]


def _pairs_by_name(images: Collection[str], depths: Collection[str]) -> list[tuple[str, str]]:
    """Pair equal names, else equal first numbers if they are unique in a folder.

    Times behind the numbers take precedence, because each camera counts its own frames.
    """
    if set(images) != set(depths) and (pairs := _pairs_by_counts_and_times(images, depths)):
        return pairs
    for key in (str, _first_number):
        first, second = ({key(name): name for name in names} for names in (images, depths))
        pairs = [(first[name], second[name]) for name in first if name in second]
        if pairs and len(first) == len(images) and len(second) == len(depths):
            return pairs
    return []


def _pairs_by_counts_and_times(
    images: Iterable[str], depths: Iterable[str],
) -> list[tuple[str, str]]:
    """Pair names such as 0000002-000000033369 by time; no pairs if any name has another form."""
    pairs = []
    first, second = (_by_folder(names) for names in (images, depths))
    for folder in first:
        times: list[dict[int, str]] = []
        for names in (first[folder], second.get(folder, [])):
            matches = [re.fullmatch(r'(\d+)[-_](\d{6,})', name) for name in names]
            numbers = sorted((int(match[1]), int(match[2]), name)
                             for match, name in zip(matches, names, strict=True) if match)
            ordered = all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(numbers))
            if not (numbers and ordered and len(numbers) == len(names)):
                return []
            times.append({time: f'{folder}{name}' for _, time, name in numbers})
        image_stamps, depth_stamps = map(list, times)
        # Their unit is unknown, but an image and its depth are nearer than two images.
        step = float(np.median(np.diff(image_stamps))) if len(image_stamps) > 1 else 0.0
        pairs += [(times[0][image_stamps[i]], times[1][depth_stamps[j]])
                  for i, j in nearest_pairs(image_stamps, depth_stamps, step / 2)]
    return pairs


def _by_folder(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the last parts of names by their folder, which ends with its slash."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, slash, last = name.rpartition('/')
        folders.setdefault(folder + slash, []).append(last)
    return folders


def _first_number(name: str) -> str:
    folder, _, last = name.rpartition('/')
    digits = re.search(r'\d+', last)
    return f'{folder}/{int(digits[0])}' if digits else name


def _decoders(
    frame: Callable[[int], Frame], positions: list[int],
) -> Iterator[tuple[int, Callable[[], Frame]]]:
    return ((position, partial(frame, position)) for position in positions)


def _next_step(path: Path) -> str:
    """Return a sentence on how to make a folder readable, with a space behind it, or ''."""
    entries = sorted(path.glob('*'))
    folders = [entry.name for entry in entries if entry.is_dir()]
    if nested := [name for name in folders if _folders_in(path / name)]:
        return f'Images with depth are in {", ".join(nested[:6])}: give the path of one. '
    for entry in entries:
        if entry.suffix.lower() in _VIDEOS and any('depth' in name.lower() for name in folders):
            return (f'{entry} is a video. Make its frames pictures of the names that depth has: '
                    f'ffmpeg -i {entry.name} -start_number 0 rgb/%06d.png. ')
    packed = [entry.name for entry in entries if entry.suffix.lower() in _ARCHIVES]
    if packed:
        return f'It holds {", ".join(packed[:3])}: unpack them. '
    if maps := [file for file in path.glob('**/*') if file.suffix.lower() in _UNREAD_MAPS]:
        return f'{maps[0]} is not read as depth: {_EXPORT}. '
    if any('depth' in name.lower() for name in folders):
        return (f'Its folders are {", ".join(folders[:6])}: rename that of the images to rgb, and '
                'that of the depth to depth. ')
    return ''


def training_split(path: Path, options: Options) -> Recording:
    """Open the training split of a data set of `evaluation.datasets`, else a mixed folder.

    A scene class is a sequence: held out as a whole, so that no place is on both sides.

    Raises:
        RecordingError: the path is neither, or the data set has no training split.

    """
    from ..evaluation.datasets import open_dataset
    from ..evaluation.errors import EvaluationError
    from ..evaluation.protocol import PROTOCOLS
    if path.is_file() and path.suffix.lower() != '.mat' and (kind := kind_of(path)).name not in (
            'hdf5', 'matlab'):
        raise RecordingError(
            f'{path} is {kind.sentence}. A single file may be a rosbag2 bag (.mcap, .db3) or '
            'nyu_depth_v2_labeled.mat. Of an archive give the folder that is unpacked from it. Of '
            f'a recording of another program (.svo, .oni, .sens, .r3d, .mkv) {_EXPORT}.')
    try:
        data = open_dataset(path).training()
    except EvaluationError as error:
        if files := files_mixed(path):
            return of_folder(path, files, options)
        raise RecordingError(
            f'{path}: no recording. {_next_step(path)}Expected a rosbag2 bag (a folder with '
            'metadata.yaml, .mcap, .db3), a folder with images in rgb/ and depth maps of the same '
            f'names in depth/, or depth in their names, or a data set: {error}') from error
    if data is None:
        raise RecordingError(f'{path}: this data set has no training split here, and the test '
                             'split must not be calibrated on.')
    if options.depth_camera is not None:
        raise RecordingError(
            f'{path}: depth of {data.format} is on the pixels of its images already, and '
            '--depth-camera is for folders and bags. Leave it away.')
    crop = PROTOCOLS.get(options.protocol)
    described = f'{data.format}, {data.split}' + (
        f', cropped as by protocol {crop.name}' if crop else '')
    scenes = {entry.scene: number for number, entry in enumerate(data.entries)}
    moments = [Moment(float(number), scenes[entry.scene], entry.name)
               for number, entry in enumerate(data.entries)]

    def frame(position: int) -> Frame:
        try:
            pair = data.read(position)
            rgb, depth = crop.prepare(pair) if crop else (
                pair.rgb, np.where(pair.depth > 0, pair.depth, np.float32(np.nan)))
        except EvaluationError as error:
            raise ImageError('damaged', str(error)) from error
        camera, focal = options.camera, data.entries[position].focal
        check_size(camera, *rgb.shape[:2], file='--camera-info')
        if camera is None and focal:
            camera = CameraModel.pinhole(rgb.shape[1], rgb.shape[0], focal)
        return Frame(rgb, depth, camera, moments[position], image_digest(pair.rgb))

    return Recording(str(data.path), described, moments, partial(_decoders, frame), timed=False,
                     split=described)
