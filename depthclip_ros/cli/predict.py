# SPDX-License-Identifier: Apache-2.0
"""`depthclip predict`: depth of image files. Also reads images of files, folders and bags."""

from __future__ import annotations

import io
import sys
import time
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..calibrate.recordings import evenly_spaced
from ..core.camera import stretch_notice
from ..core.camera_image import CameraImage
from ..core.errors import ConfigError, DataError, ImageError
from ..core.files import check_new, output_folder, printable, shortened, user_path
from ..core.opencv import cv2
from ..drawing.color import (
    UNTRAINED,
    colorize,
    depth_scale,
    png,
    side_by_side,
    write_note,
    write_warning,
)
from ..messages.depth import depth_values, metres_from_pixels
from ..messages.image_io import to_rgb
from ..messages.message_types import parse_message
from ..sources.bag import NANOSECONDS, Bag, CameraTopics, camera_topics, deserialize, is_bag
from ..sources.pictures import RESULTS, Notes, picture_files, read_picture, read_pixels
from .model import (
    camera_of_options,
    load_estimator,
    print_untrained,
    save,
    settings,
    to_stderr,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ..core.estimator import DepthEstimator
    from ..core.prediction import DepthPrediction


_SUFFIX_LENGTH = max(map(len, RESULTS)) + len('_9999')  # appended to a picture's name


def predict_files(options: argparse.Namespace) -> int:
    """Write depth, colours and patch map of every image.

    Returns:
        Exit code: 1 if any image could not be read; all others are written.

    Raises:
        DepthClipError: the settings, the weights or the output folder cannot be used.

    """
    depth_config, node_config = settings(options.config, options.weights, options.device)
    camera = camera_of_options(options, rectified=node_config.rectified)
    failures: list[str] = []
    files: list[Path] = []
    for path in options.paths:
        try:
            files += picture_files([path])
        except ImageError as error:  # noqa: PERF203 (other paths go on)
            failures.append(f"{path} is a bag: 'depthclip bag' writes depth of all its images, "
                            "'depthclip view' shows some."
                            if _is_bag(path) else str(error))
    folder = output_folder(options.output)
    names = _result_names(files)
    check_new(folder / f'{name}{ending}' for name in names for ending in RESULTS)
    if not files:
        raise ConfigError('\n  '.join(['none of the inputs can be used:', *failures]))
    estimator = load_estimator(depth_config, node_config)
    results: dict[str, tuple[NDArray[np.float32], str]] = {}
    start_time, notes = time.perf_counter(), Notes(to_stderr)
    for file, name in zip(files, names, strict=True):
        try:
            rgb = _read_rgb(file, notes)
            notes.add(file, 'stretched', stretch_notice(rgb.shape, depth_config.input_size))
            start = time.perf_counter()
            intrinsics = camera(rgb.shape[1], rgb.shape[0])
            prediction = estimator.predict(CameraImage(rgb, intrinsics))
            milliseconds = 1e3 * (time.perf_counter() - start)
        except DataError as error:
            failures.append(str(error) if str(file) in str(error) else f'{file}: {error}')
            continue
        lost = _write_numbers(prediction, folder / name)
        note = f', x {prediction.focal_ratio:.3f} for the focal length' if intrinsics else ''
        note += f'; {lost} pixels do not fit 16 bits' if lost else ''
        valid_depth = prediction.depth[np.isfinite(prediction.depth)]
        summary = 'no depth'
        if valid_depth.size:
            low, middle, high = np.percentile(valid_depth, (0, 50, 100))
            missing = 100 * (1 - valid_depth.size / prediction.depth.size)
            summary = f'depth {low:.2f} to {high:.2f} m, median {middle:.2f} m' + (
                f', none in {missing:.0f} % of the picture' if missing else '')
        print(f'{file} -> {name}_*: {milliseconds:.0f} ms, {summary}{note}', flush=True)
        results[name] = prediction.patch_depth, f'{file.name}: {summary}'
    _write_pictures(estimator, folder, results, options)
    elapsed = 1e3 * (time.perf_counter() - start_time)
    print(f'{len(results)} of {len(files)} images in {elapsed:.0f} ms '
          f'with reading and writing, in {folder}')
    notes.close()
    if not estimator.weights.trained:
        print_untrained()
    if failures:
        print(f'{len(failures)} of the inputs could not be used:', *failures, sep='\n  ',
              file=sys.stderr)
    return 1 if failures else 0


def _is_bag(path: str) -> bool:
    with suppress(OSError):
        return is_bag(user_path(path))
    return False


def _result_names(files: Sequence[Path]) -> list[str]:
    """Name the results of each file; equal names get a number: photo_2."""
    names: dict[str, None] = {}
    for file in files:
        name, number = (stem := shortened(file.stem, _SUFFIX_LENGTH)), 2
        while name in names:
            name, number = f'{stem}_{number}', number + 1
        names[name] = None
    return list(names)


def _write_numbers(prediction: DepthPrediction, target: Path) -> int:
    """Write the depth of one image; returns the number of pixels that exceed 16 bits."""
    millimetres, lost = depth_values(prediction.depth, '16UC1')
    np.save(array := io.BytesIO(), prediction.patch_depth)
    for ending, content in (RESULTS[0], png(millimetres)), (RESULTS[3], array.getvalue()):
        save(target.with_name(target.name + ending), content)
    return lost


def _write_pictures(
    estimator: DepthEstimator, folder: Path,
    results: Mapping[str, tuple[NDArray[np.float32], str]], options: argparse.Namespace,
) -> None:
    """Write the pictures of all images on one colour scale.

    Args:
        estimator: of the predictions.
        folder: with the files of `_write_numbers`, whose depth is shown.
        results: by name, the depth of the patches and a caption.
        options: of the command line, with the scale.

    """
    warning = '' if estimator.weights.trained else UNTRAINED
    scale = depth_scale((patches for patches, _ in results.values()), options.colormap,
                        options.range)
    for name, (patches, caption) in results.items():
        depth = metres_from_pixels(read_pixels(
            folder / f'{name}{RESULTS[0]}', cv2.IMREAD_UNCHANGED))
        patch_picture = np.asarray(cv2.resize(colorize(patches, scale), depth.shape[::-1],
                                              interpolation=cv2.INTER_NEAREST), np.uint8)
        if warning:
            write_warning(patch_picture, warning)
        if estimator.label:
            write_note(patch_picture, estimator.label)
        save(folder / f'{name}{RESULTS[1]}', png(side_by_side(
            depth, scale, caption=f'{caption}\n{estimator.label}', warning=warning)))
        save(folder / f'{name}{RESULTS[2]}', png(patch_picture))


class NamedFrame(NamedTuple):
    """One image: displayed name, uint8 (H, W, 3) RGB, sensor_msgs/CameraInfo or None."""

    name: str
    rgb: NDArray[np.uint8]
    info: Any = None


def named_frames(
    paths: Sequence[str], max_images: int, skip: Callable[[DataError], None], notes: Notes,
    topic: str = '',
) -> Iterator[NamedFrame]:
    """Yield images in the order of their paths; images of a bag have its first camera_info.

    Paths are checked at once, images are read one by one.

    Args:
        paths: files, folders and bags.
        max_images: of each path, evenly spaced from the first to the last.
        skip: called with the error of an image that cannot be read.
        notes: see `read_picture`.
        topic: of the images, if a bag has several cameras.

    Raises:
        DepthClipError: a path is missing, a folder has no picture, or a bag no camera.

    """
    def open_path(path: str) -> Iterator[NamedFrame]:
        if not is_bag(user_path(path)):
            return _picture_frames(picture_files([path]), max_images, skip, notes)
        with Bag(path) as bag:
            camera = camera_topics(bag.topics, topic, '--topic TOPIC')
        return _bag_frames(path, max_images, skip, camera)
    return chain.from_iterable([open_path(path) for path in paths])


def _picture_frames(
    files: Sequence[Path], max_images: int, skip: Callable[[DataError], None], notes: Notes,
) -> Iterator[NamedFrame]:
    for index in evenly_spaced(len(files), max_images):
        try:
            rgb = _read_rgb(files[index], notes)
        except ImageError as error:
            skip(error)
            continue
        yield NamedFrame(printable(files[index].name), rgb)


def _read_rgb(path: Path, notes: Notes) -> NDArray[np.uint8]:
    return np.ascontiguousarray(read_picture(path, notes=notes)[..., ::-1])


def _bag_frames(
    path: str, max_images: int, skip: Callable[[DataError], None], camera: CameraTopics,
) -> Iterator[NamedFrame]:
    with Bag(path) as bag:
        info = None
        for connection, _, data in bag.messages({camera.camera_info}):
            with suppress(DataError):  # the next message will do
                info = parse_message(deserialize, data, connection.msgtype, DataError)
                break
        count = sum(topic.count for topic in bag.topics if topic.name == camera.topic)
        selected = set(evenly_spaced(count, max_images))
        if not selected:
            raise ConfigError(f'{path}: no image on {camera.topic}.')
        for number, (connection, time_ns, data) in enumerate(bag.messages({camera.topic})):
            if number not in selected:
                continue
            try:
                rgb = to_rgb(parse_message(deserialize, data, connection.msgtype, ImageError))
            except DataError as error:
                skip(error)
                continue
            yield NamedFrame(f'{(time_ns - bag.begin) / NANOSECONDS:.2f} s',
                             np.ascontiguousarray(rgb), info)
