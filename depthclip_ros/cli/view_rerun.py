# SPDX-License-Identifier: Apache-2.0
"""`depthclip view` in Rerun (optional): image, depth, cloud and answers in one window or file."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..color import UNTRAINED
from ..core.camera import CameraModel
from ..core.device import reason
from ..core.errors import ConfigError
from ..core.files import user_path
from ..core.opencv import cv2
from ..core.weights import UNTRAINED as RANDOM
from ..overlay import scene_words
from ..sources.camera_info import BUILTIN_HFOV, CameraCalibration
from .model import check_new, output_folder, to_stderr

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from offline_eval.report.view import Spot

    from ..core.config import DepthConfig
    from .view import Point, Seen

LETTERS = 'ABCD'
_JPEG_QUALITY = 90
_BLOCKS = 12  # of a bar that is full
_GUESS = (f'The camera is not known: the cloud is drawn as of one that is {BUILTIN_HFOV:g} '
          'degrees wide.')


def require() -> Any:
    """Give the package rerun.

    Raises:
        ConfigError: it is missing, or cannot be imported.

    """
    try:
        return importlib.import_module('rerun')
    except Exception as error:  # other people's code raises anything
        raise ConfigError(
            f'--rerun and --save need Rerun ({reason(error)}): pip install '
            'rerun-sdk. Without it: -o FOLDER, or a plain '
            'window.') from error


class Recording:
    """Images of one run, for Rerun's viewer or for a file that it opens.

    On the timeline `image` (their number) there are

    - `camera` (Pinhole), `camera/image`, `camera/patches` (frames of those that are looked at),
    - `depth` and, with a calibration, `stddev` (DepthImage, float32 metres, NaN unknown),
    - `points` (Points3D: one a patch, in the patch's colour, discs as large as it),
    - `answers/A` … `answers/D` (BarChart: weights of the words), `words` (Tensor: in every patch),
    - `said` (TextDocument: words, metres and weights as a table; the scene).
    """

    def __init__(
        self, path: str, points: Sequence[Point], config: DepthConfig, weights: str,
    ) -> None:
        """Open the file, or the viewer.

        Args:
            path: of the file, new; '' for the viewer.
            points: pixels whose patches are looked at; none: four patches from near to far.
            config: the settings in force.
            weights: as in `NodeConfig`.

        Raises:
            ConfigError: Rerun is missing, the file cannot be written, or there is no display.

        """
        self._rr = require()
        self._points, self._config = list(points), config
        self._guessed, self._file, self._images = False, Path(), 0
        self._stream = self._rr.RecordingStream('depthclip')
        if path:
            self._save(path)
        else:
            self._spawn()
        self._stream.send_blueprint(_blueprint(
            len(self._points) or len(LETTERS), stddev=bool(config.calibration),
            trained=weights != RANDOM))

    def _save(self, path: str) -> None:
        file = user_path(path)
        check_new([file], '--save')
        output_folder(str(file.parent), '--save')
        self._file = file
        try:
            self._stream.save(file)
        except RuntimeError as error:
            raise ConfigError(f'{file}: cannot be written: {error}.') from error

    def _spawn(self) -> None:
        if sys.platform == 'linux' and not (
                os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
            raise ConfigError('--rerun: there is no display for its viewer. Give --save FILE.rrd, '
                              'and open that elsewhere: rerun FILE.rrd.')
        try:
            self._stream.spawn()
        except RuntimeError as error:
            raise ConfigError(f'--rerun: its viewer does not start: {error}. Give --save '
                              'FILE.rrd, and open that elsewhere: rerun FILE.rrd.') from error

    def __enter__(self) -> Self:
        """It is open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send, or write, the rest; a file without an image is removed."""
        self._stream.flush()
        self._stream.disconnect()
        if not self._images and self._file.is_file():
            self._file.unlink()

    def show(self, seen: Seen) -> bool:
        """Log an image; see `depthclip_ros.cli.view.Output`."""
        from offline_eval.report.figures import at_quantiles
        rr, log, prediction = self._rr, self._stream.log, seen.prediction
        spots = [seen.spot(point) for point in self._points] or [
            seen.spot_at(*place) for place in at_quantiles(_known(prediction.patch_depth))]
        camera = self._camera(seen)
        self._stream.set_time('image', sequence=seen.number)
        log('camera', rr.Pinhole(
            image_from_camera=camera.K, resolution=[camera.width, camera.height],
            camera_xyz=rr.ViewCoordinates.RDF))
        log('camera/image', rr.Image(seen.rgb).compress(jpeg_quality=_JPEG_QUALITY))
        self._log_patches(seen, spots)
        log('depth', rr.DepthImage(_known(prediction.depth), meter=1.0, colormap='spectral',
                                   depth_range=seen.span))
        stddev = prediction.stddev()
        if stddev is not None:
            log('stddev', rr.DepthImage(stddev, meter=1.0, colormap='magma'))
        self._log_points(seen, camera)
        log('words', rr.Tensor(prediction.weights, dim_names=('word', 'row', 'column')))
        log('said', rr.TextDocument(_said(seen, spots, guessed=seen.camera is None),
                                    media_type='text/markdown'))
        self._images += 1
        return True

    def _camera(self, seen: Seen) -> CameraModel:
        """The image's, or a stated guess, which the cloud's shape needs and depth does not."""
        if seen.camera is not None:
            return seen.camera
        if not self._guessed:
            to_stderr(f'{_GUESS} Give --fov or --camera-info.')
        self._guessed = True
        height, width = seen.rgb.shape[:2]
        return CameraCalibration.from_fov(width, height, BUILTIN_HFOV).model()

    def _log_patches(self, seen: Seen, spots: Sequence[Spot]) -> None:
        """Frames in the image, and the bars of each."""
        from offline_eval.report.figures import PATCHES
        rr, (height, width) = self._rr, seen.prediction.image_size
        rows, columns = seen.prediction.patch_depth.shape
        size = width / columns, height / rows
        colors = [[int(color[i:i + 2], 16) for i in (1, 3, 5)] for color in PATCHES]
        self._stream.log('camera/patches', rr.Boxes2D(
            mins=[(spot.column * size[0], spot.row * size[1]) for spot in spots],
            sizes=[size] * len(spots), labels=list(LETTERS[:len(spots)]),
            colors=colors[:len(spots)]))
        for letter, color, spot in zip(LETTERS, colors, spots, strict=False):
            self._stream.log(f'answers/{letter}', rr.BarChart(
                seen.prediction.weights[:, spot.row, spot.column], color=color))
        for letter in LETTERS[len(spots):]:  # or the image's before would stay
            self._stream.log(f'answers/{letter}', rr.Clear(recursive=False))

    def _log_points(self, seen: Seen, camera: CameraModel) -> None:
        """Centres of the patches, as the node publishes them."""
        prediction = seen.prediction
        height, width = prediction.image_size
        rows, columns = prediction.patch_depth.shape
        depth = _known(prediction.patch_depth)
        points = camera.patch_rays(rows, columns) * depth[..., None]
        there = np.isfinite(points).all(axis=2)
        size = width / columns, height / rows
        smooth = cv2.blur(seen.rgb, (max(1, round(size[0])), max(1, round(size[1]))))
        u = ((np.arange(columns) + 0.5) * size[0]).astype(int)
        v = ((np.arange(rows) + 0.5) * size[1]).astype(int)
        colors = smooth[np.clip(v, 0, camera.height - 1)[:, None],
                        np.clip(u, 0, camera.width - 1)[None]]
        self._stream.log('points', self._rr.Points3D(
            points[there], colors=colors[there],
            radii=depth[there] * size[0] / camera.K[0, 0] / 2))


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


def _said(seen: Seen, spots: Sequence[Spot], *, guessed: bool) -> str:
    """Words, metres and weights as a table."""
    def escaped(text: str) -> str:
        return text.replace('|', r'\|')

    weights = seen.prediction.weights
    lines = [f'## {escaped(seen.name)}', '']
    lines += [] if seen.trained else [f'**{UNTRAINED}**', '']
    lines += [scene_words(seen.prediction), seen.label, '']
    lines += [_GUESS, ''] if guessed else []
    said = [spot.said.replace('\n', ' ') for spot in spots]
    lines += [' | '.join(('', 'word', 'metres', *(
        f'{letter}: {text}' for letter, text in zip(LETTERS, said, strict=False)), '')).strip(),
        '|---|---:|' + '---|' * len(spots)]
    for number, (word, metres) in enumerate(zip(
            seen.config.tokens, seen.prediction.word_depths(seen.config), strict=True)):
        shares = [float(weights[number, spot.row, spot.column]) for spot in spots]
        lines.append('| ' + ' | '.join((escaped(word), f'{metres:.2f}', *(
            f'{"█" * round(_BLOCKS * share)} {share:.0%}' for share in shares))) + ' |')
    return '\n'.join(lines)
