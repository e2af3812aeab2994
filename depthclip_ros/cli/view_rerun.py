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
from ..drawing.overlay import depth_text, scene_text
from ..report.figures import LETTERS, PATCHES, at_quantiles, finite_or_nan
from ..sources.camera_info import BUILTIN_HFOV, Intrinsics
from .model import has_display

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..report.figures import Place
    from .predicted_image import Point, PredictedImage, Show

_JPEG_QUALITY = 90
_CAMERA_NOTE = (f'The camera is not known: the cloud is drawn as of one that is {BUILTIN_HFOV:g} '
                'degrees wide. Give --fov or --camera-info.')


@contextmanager
def open_recording(path: str, points: Sequence[Point]) -> Iterator[Show]:
    """Open a Rerun recording; the function it gives logs images.

    Args:
        path: of a new .rrd file, removed again if it gets no image; '' for the viewer.
        points: pixels whose patches are shown; empty: four patches from near to far.

    Raises:
        ConfigError: Rerun is missing, the file cannot be written, or there is no display.

    """
    try:
        rerun: Any = importlib.import_module('rerun')
    except Exception as error:  # its import can raise anything
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
    has_images = False

    def show(predicted: PredictedImage) -> bool:
        nonlocal has_images
        _log_image(rerun, stream, predicted, points)
        has_images = True
        return True

    try:
        yield show
    finally:
        stream.flush()
        stream.disconnect()
        if file and not has_images:
            file.unlink(missing_ok=True)


def _log_image(rr: Any, stream: Any, predicted: PredictedImage, points: Sequence[Point]) -> None:
    log, prediction = stream.log, predicted.prediction
    height, width = prediction.image_size
    rows, columns = prediction.patch_depth.shape
    size = width / columns, height / rows
    depth = finite_or_nan(prediction.patch_depth)
    places = [prediction.patch_at(*point) for point in points] or at_quantiles(depth)
    # The cloud needs a camera: `_CAMERA_NOTE` reports the guess.
    camera = predicted.camera or Intrinsics.from_fov(width, height, BUILTIN_HFOV).model()
    stream.set_time('image', sequence=predicted.number)
    log('camera', rr.Pinhole(
        image_from_camera=camera.K, resolution=[camera.width, camera.height],
        camera_xyz=rr.ViewCoordinates.RDF))
    log('camera/image', rr.Image(predicted.image.rgb).compress(jpeg_quality=_JPEG_QUALITY))
    colors = [[int(color[i:i + 2], 16) for i in (1, 3, 5)] for color in PATCHES]
    log('camera/patches', rr.Boxes2D(
        mins=[(column * size[0], row * size[1]) for row, column in places],
        sizes=[size] * len(places), labels=list(LETTERS[:len(places)]),
        colors=colors[:len(places)]))
    for letter, color, place in zip_longest(LETTERS, colors, places):
        log(f'answers/{letter}', rr.BarChart(
            prediction.weights[(slice(None), *place)], color=color) if place else
            rr.Clear(recursive=False))  # else the chart of the previous image would stay
    log('depth', rr.DepthImage(finite_or_nan(prediction.depth), meter=1.0, colormap='spectral',
                               depth_range=predicted.scale[:2]))
    stddev = prediction.stddev()
    if stddev is not None:
        log('stddev', rr.DepthImage(stddev, meter=1.0, colormap='magma'))
    cloud = camera.patch_rays(rows, columns) * depth[..., None]  # as the node publishes it
    valid = np.isfinite(cloud).all(axis=2)
    shades = cv2.resize(predicted.image.rgb, (columns, rows), interpolation=cv2.INTER_AREA)
    log('points', rr.Points3D(cloud[valid], colors=shades[valid], radii=(
        depth[valid] * camera.width / columns / camera.K[0, 0] / 2)))
    log('words', rr.Tensor(prediction.weights, dim_names=('word', 'row', 'column')))
    log('said', rr.TextDocument(_table(predicted, places), media_type='text/markdown'))


def _table(predicted: PredictedImage, places: Sequence[Place]) -> str:
    """Format words, metres and weights as a Markdown table."""
    config, prediction = predicted.estimator.config, predicted.prediction
    facts = (predicted.warning and f'**{predicted.warning}**', scene_text(prediction),
             predicted.estimator.label, '' if predicted.camera else _CAMERA_NOTE)
    depths = [f'{letter}: {depth_text(prediction, *place)}'.replace('\n', ' ')
              for letter, place in zip(LETTERS, places, strict=False)]
    rows = [['word', 'metres', *depths], ['---', '---:', *['---:'] * len(places)], *(
        [word, f'{metres:.2f}', *(f'{shares[place]:.0%}' for place in places)]
        for word, metres, shares in zip(
            config.tokens, prediction.word_depths(config), prediction.weights, strict=True))]
    return '\n'.join([
        f'## {predicted.image.name}', '', *(f'{fact}\n' for fact in facts if fact),
        *(f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in row)} |' for row in rows)])
