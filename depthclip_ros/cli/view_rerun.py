# SPDX-License-Identifier: Apache-2.0
"""`depthclip view` in Rerun (optional): image, depth, cloud and answers in one window or file."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, reason
from ..core.files import check_new, output_folder, user_path
from ..core.opencv import cv2
from ..figures import LETTERS, PATCHES, at_quantiles, finite_or_nan
from ..overlay import depth_words, scene_words
from ..sources.camera_info import BUILTIN_HFOV, CameraCalibration
from .model import has_display

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..figures import Place
    from .view import Point, Seen, Show

_JPEG_QUALITY = 90
_GUESS = (f'The camera is not known: the cloud is drawn as of one that is {BUILTIN_HFOV:g} '
          'degrees wide. Give --fov or --camera-info.')


@contextmanager
def recording(path: str, points: Sequence[Point]) -> Iterator[Show]:
    """Images of one run, for Rerun's viewer or for a file that it opens.

    Args:
        path: of the file, new, which is not left without an image; '' for the viewer.
        points: pixels whose patches are looked at; none: four patches from near to far.

    Raises:
        ConfigError: Rerun is missing, the file cannot be written, or there is no display.

    """
    try:
        rerun: Any = importlib.import_module('rerun')
    except Exception as error:  # other people's code raises anything
        raise ConfigError(f'--rerun and --save need Rerun ({reason(error)}): pip install '
                          'rerun-sdk. Without it: -o FOLDER, or a plain window.') from error
    stream = rerun.RecordingStream('depthclip')
    file = user_path(path) if path else None
    try:
        if file:
            check_new([file], '--save')
            output_folder(str(file.parent), '--save')
            stream.save(file)
        elif has_display():
            stream.spawn()
        else:
            raise RuntimeError('there is no display')
    except RuntimeError as error:
        raise ConfigError(
            f'{file}: cannot be written: {error}.' if file else f'--rerun: its viewer does not '
            f'start: {error}. Give --save FILE.rrd, and open that elsewhere: rerun FILE.rrd.',
        ) from error
    shown = False

    def show(seen: Seen) -> bool:
        nonlocal shown
        _log(rerun, stream, seen, points)
        shown = True
        return True

    try:
        yield show
    finally:
        stream.flush()
        stream.disconnect()
        if file and not shown:
            file.unlink(missing_ok=True)


def _log(rr: Any, stream: Any, seen: Seen, points: Sequence[Point]) -> None:
    log, prediction = stream.log, seen.prediction
    height, width = prediction.image_size
    rows, columns = prediction.patch_depth.shape
    size = width / columns, height / rows
    depth = finite_or_nan(prediction.patch_depth)
    places = [prediction.patch_at(*point) for point in points] or at_quantiles(depth)
    # A stated guess, which the cloud's shape needs and depth does not.
    camera = seen.camera or CameraCalibration.from_fov(width, height, BUILTIN_HFOV).model()
    stream.set_time('image', sequence=seen.number)
    log('camera', rr.Pinhole(
        image_from_camera=camera.K, resolution=[camera.width, camera.height],
        camera_xyz=rr.ViewCoordinates.RDF))
    log('camera/image', rr.Image(seen.image.rgb).compress(jpeg_quality=_JPEG_QUALITY))
    colors = [[int(color[i:i + 2], 16) for i in (1, 3, 5)] for color in PATCHES]
    log('camera/patches', rr.Boxes2D(
        mins=[(column * size[0], row * size[1]) for row, column in places],
        sizes=[size] * len(places), labels=list(LETTERS[:len(places)]),
        colors=colors[:len(places)]))
    for letter, color, place in zip_longest(LETTERS, colors, places):
        log(f'answers/{letter}', rr.BarChart(
            prediction.weights[(slice(None), *place)], color=color) if place else
            rr.Clear(recursive=False))  # or the image's before would stay
    log('depth', rr.DepthImage(finite_or_nan(prediction.depth), meter=1.0, colormap='spectral',
                               depth_range=seen.scale[:2]))
    stddev = prediction.stddev()
    if stddev is not None:
        log('stddev', rr.DepthImage(stddev, meter=1.0, colormap='magma'))
    cloud = camera.patch_rays(rows, columns) * depth[..., None]  # as the node publishes it
    there = np.isfinite(cloud).all(axis=2)
    shades = cv2.resize(seen.image.rgb, (columns, rows), interpolation=cv2.INTER_AREA)
    log('points', rr.Points3D(cloud[there], colors=shades[there], radii=(
        depth[there] * camera.width / columns / camera.K[0, 0] / 2)))
    log('words', rr.Tensor(prediction.weights, dim_names=('word', 'row', 'column')))
    log('said', rr.TextDocument(_said(seen, places), media_type='text/markdown'))


def _said(seen: Seen, places: Sequence[Place]) -> str:
    """Words, metres and weights as a table."""
    config, prediction = seen.estimator.config, seen.prediction
    facts = (seen.warning and f'**{seen.warning}**', scene_words(prediction),
             seen.estimator.label, '' if seen.camera else _GUESS)
    said = [f'{letter}: {depth_words(prediction, *place)}'.replace('\n', ' ')
            for letter, place in zip(LETTERS, places, strict=False)]
    rows = [['word', 'metres', *said], ['---', '---:', *['---:'] * len(places)], *(
        [word, f'{metres:.2f}', *(f'{shares[place]:.0%}' for place in places)]
        for word, metres, shares in zip(
            config.tokens, prediction.word_depths(config), prediction.weights, strict=True))]
    return '\n'.join([f'## {seen.image.name}', '', *(f'{fact}\n' for fact in facts if fact), *(
        f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in row)} |' for row in rows)])
