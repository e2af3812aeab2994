# SPDX-License-Identifier: Apache-2.0
"""`depthclip view` in Rerun (optional): image, depth, cloud and answers in one window or file."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..color import UNTRAINED
from ..core.errors import ConfigError, reason
from ..core.files import user_path
from ..core.opencv import cv2
from ..core.weights import UNTRAINED as RANDOM
from ..overlay import scene_words
from ..sources.camera_info import BUILTIN_HFOV, CameraCalibration
from .model import check_new, has_display, output_folder, to_stderr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..core.camera import CameraModel
    from ..core.config import DepthConfig
    from ..figures import Spot
    from .view import Point, Seen, Show

LETTERS = 'ABCD'
_JPEG_QUALITY = 90
_BLOCKS = 12  # of a bar that is full
_GUESS = (f'The camera is not known: the cloud is drawn as of one that is {BUILTIN_HFOV:g} '
          'degrees wide.')


@contextmanager
def recording(
    path: str, points: Sequence[Point], config: DepthConfig, weights: str,
) -> Iterator[Show]:
    """Images of one run, for Rerun's viewer or for a file that it opens.

    On the timeline `image` (their number) there are

    - `camera` (Pinhole), `camera/image`, `camera/patches` (frames of those that are looked at),
    - `depth` and, with a calibration, `stddev` (DepthImage, float32 metres, NaN unknown),
    - `points` (Points3D: one a patch, in the patch's colour, discs as large as it),
    - `answers/A` … `answers/D` (BarChart: weights of the words), `words` (Tensor: in every patch),
    - `said` (TextDocument: words, metres and weights as a table; the scene).

    Args:
        path: of the file, new, which is not left without an image; '' for the viewer.
        points: pixels whose patches are looked at; none: four patches from near to far.
        config: the settings in force.
        weights: as in `NodeConfig`.

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
    elsewhere = 'Give --save FILE.rrd, and open that elsewhere: rerun FILE.rrd.'
    try:
        if file:
            check_new([file], '--save')
            output_folder(str(file.parent), '--save')
            stream.save(file)
        elif not has_display():
            raise ConfigError(f'--rerun: there is no display for its viewer. {elsewhere}')
        else:
            stream.spawn()
    except RuntimeError as error:
        raise ConfigError(f'{file}: cannot be written: {error}.' if file else
                          f'--rerun: its viewer does not start: {error}. {elsewhere}') from error
    stream.send_blueprint(_blueprint(
        len(points) or len(LETTERS), stddev=bool(config.calibration), trained=weights != RANDOM))
    shown = False

    def show(seen: Seen) -> bool:
        nonlocal shown
        if seen.camera is None and not shown:
            to_stderr(f'{_GUESS} Give --fov or --camera-info.')
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
    from ..figures import PATCHES, at_quantiles
    log, prediction = stream.log, seen.prediction
    height, width = prediction.image_size
    rows, columns = prediction.patch_depth.shape
    size = width / columns, height / rows
    spots = seen.spots(points) or [
        seen.spot(*place) for place in at_quantiles(_known(prediction.patch_depth))]
    # A stated guess, which the cloud's shape needs and depth does not.
    camera = seen.camera or CameraCalibration.from_fov(width, height, BUILTIN_HFOV).model()
    stream.set_time('image', sequence=seen.number)
    log('camera', rr.Pinhole(
        image_from_camera=camera.K, resolution=[camera.width, camera.height],
        camera_xyz=rr.ViewCoordinates.RDF))
    log('camera/image', rr.Image(seen.image.rgb).compress(jpeg_quality=_JPEG_QUALITY))
    colors = [[int(color[i:i + 2], 16) for i in (1, 3, 5)] for color in PATCHES[:len(spots)]]
    log('camera/patches', rr.Boxes2D(
        mins=[(spot.column * size[0], spot.row * size[1]) for spot in spots],
        sizes=[size] * len(spots), labels=list(LETTERS[:len(spots)]), colors=colors))
    for letter, color, spot in zip(LETTERS, colors, spots, strict=False):
        log(f'answers/{letter}', rr.BarChart(
            prediction.weights[:, spot.row, spot.column], color=color))
    for letter in LETTERS[len(spots):]:  # or the image's before would stay
        log(f'answers/{letter}', rr.Clear(recursive=False))
    log('depth', rr.DepthImage(_known(prediction.depth), meter=1.0, colormap='spectral',
                               depth_range=seen.span))
    stddev = prediction.stddev()
    if stddev is not None:
        log('stddev', rr.DepthImage(stddev, meter=1.0, colormap='magma'))
    log('points', _cloud(rr, seen, camera))
    log('words', rr.Tensor(prediction.weights, dim_names=('word', 'row', 'column')))
    log('said', rr.TextDocument(_said(seen, spots), media_type='text/markdown'))


def _cloud(rr: Any, seen: Seen, camera: CameraModel) -> Any:
    """Centres of the patches, as the node publishes them."""
    depth = _known(seen.prediction.patch_depth)
    rows, columns = depth.shape
    points = camera.patch_rays(rows, columns) * depth[..., None]
    there = np.isfinite(points).all(axis=2)
    colors = cv2.resize(seen.image.rgb, (columns, rows), interpolation=cv2.INTER_AREA)
    return rr.Points3D(points[there], colors=colors[there], radii=(
        depth[there] * camera.width / columns / camera.K[0, 0] / 2))


def _known(metres: NDArray[np.float32]) -> NDArray[np.float32]:
    """NaN for what is too near or too far as well."""
    return np.where(np.isfinite(metres), metres, np.float32(np.nan))


def _blueprint(charts: int, *, stddev: bool, trained: bool) -> Any:
    """All in one window: image, depth and cloud above, answers below."""
    views: Any = importlib.import_module('rerun.blueprint')
    warning = '' if trained else f' ({UNTRAINED})'
    pictures = [views.Spatial2DView(origin='camera', name='image'),
                views.Spatial2DView(origin='depth', name=f'depth{warning}')]
    if stddev:
        pictures.append(views.Spatial2DView(origin='stddev', name='standard deviation'))
    return views.Blueprint(
        views.Vertical(
            views.Horizontal(
                *pictures,
                views.Spatial3DView(origin='/', contents=['points', 'camera', 'camera/image'],
                                    name=f'cloud{warning}')),
            views.Horizontal(
                views.TextDocumentView(origin='said', name='what the words say'),
                views.Tabs(
                    views.Grid(*(views.BarChartView(origin=f'answers/{letter}', name=letter)
                                 for letter in LETTERS[:charts]), name='patches'),
                    views.TensorView(origin='words', name='a word in all patches')))),
        views.SelectionPanel(state='collapsed'), views.BlueprintPanel(state='collapsed'),
        views.TimePanel(timeline='image'))


def _said(seen: Seen, spots: Sequence[Spot]) -> str:
    """Words, metres and weights as a table."""
    config, weights = seen.estimator.config, seen.prediction.weights
    lines = [f'## {_escaped(seen.image.name)}', '', *(
        f'{line}\n' for line in (
            '' if seen.is_trained else f'**{UNTRAINED}**', scene_words(seen.prediction),
            seen.estimator.label, _GUESS if seen.camera is None else '') if line)]
    said = (f'{letter}: {spot.said}'.replace('\n', ' ')
            for letter, spot in zip(LETTERS, spots, strict=False))
    lines += [f'| word | metres | {" | ".join(said)} |', '|---|---:|' + '---|' * len(spots)]
    metres = seen.prediction.word_depths(config)
    for word, depth, shares in zip(config.tokens, metres, weights, strict=True):
        bars = (f'{"█" * round(_BLOCKS * float(share))} {share:.0%}'
                for share in (shares[spot.row, spot.column] for spot in spots))
        lines.append(f'| {_escaped(word)} | {depth:.2f} | {" | ".join(bars)} |')
    return '\n'.join(lines)


def _escaped(text: str) -> str:
    return text.replace('|', r'\|')
