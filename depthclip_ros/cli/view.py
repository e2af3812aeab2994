# SPDX-License-Identifier: Apache-2.0
"""`depthclip view`: how much each word answers in pictures, as in the paper's Figure 4."""

from __future__ import annotations

import io
import re
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.camera import CameraModel, stretch_notice
from ..core.camera_image import CameraImage
from ..core.errors import CameraInfoError, ConfigError, DataError, DepthClipError, ImageError
from ..core.files import check_new, output_folder, shortened
from ..core.opencv import cv2
from ..drawing.color import WARNING_HEIGHT, bins_scale, png
from ..drawing.overlay import depth_text, photo_size
from ..sources.pictures import Notes, webcam_frames
from .model import (
    camera_of_options,
    has_display,
    load_estimator,
    print_untrained,
    save,
    settings,
    to_stderr,
)
from .predict import NamedFrame, named_frames
from .predicted_image import PredictedImage

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from .predicted_image import Point, Show

DPI = 130
MAX_IMAGES = 50  # of each path, without --max-images
MAX_POINTS = 4
TITLE = 'depthclip view'
NO_WINDOW_HINT = ('Give -o FOLDER for pictures, or --save FILE.rrd to look at a recording '
                  'elsewhere; over ssh, ssh -X brings windows along.')
WINDOW_KEYS = ('left click: ask a patch; right click: all patches; any other key: next image; '
               'q: end')


def view(options: argparse.Namespace) -> int:
    """Show how much each word answers: in a window, in Rerun, or in files.

    Returns:
        Exit code: 1 if any image could not be used; all others are shown.

    Raises:
        DepthClipError: settings, weights or output cannot be used, or no image can be.

    """
    depth, node = settings(options.config, options.weights, options.device)
    user_camera = camera_of_options(options, rectified=node.rectified)
    failures: list[str] = []
    notes = Notes(to_stderr)

    def skip(error: Exception) -> None:
        failures.append(str(error))
        to_stderr(f'not used: {error}')

    images, shown_count = _open_images(options, skip, notes), 0
    if len(failures) == len(options.images):
        raise ConfigError('no image could be used.')
    with ExitStack() as stack:
        outputs = _open_outputs(options, stack)
        estimator = load_estimator(depth, node)
        for frame, live in images:
            try:
                height, width = frame.rgb.shape[:2]
                notes.add(frame.name, 'stretched', stretch_notice(
                    frame.rgb.shape, depth.input_size))
                camera = user_camera(width, height) or _bag_camera(frame, rectified=node.rectified)
                prediction = estimator.predict(CameraImage(frame.rgb, camera))
                scale = bins_scale(options.range or estimator.config.depth_span,
                                   1.0 if options.range else prediction.focal_ratio,
                                   options.colormap)
                predicted = PredictedImage(
                    shown_count + 1, frame, prediction, estimator, camera, live, scale)
                results = [show(predicted) for show in outputs]
            except DataError as error:
                skip(DataError(error.condition, f'{frame.name}: {error}'))
                results = [not live]  # a webcam's next image would fail as well
            else:
                shown_count += 1
            if not all(results):
                break
    notes.close()
    if not shown_count:
        raise ConfigError('no image could be used.')
    if not estimator.weights.trained:
        print_untrained()
    if failures:
        to_stderr(f'{shown_count} image{"s" if shown_count > 1 else ""} shown, {len(failures)} '
                  'not used.')
    return 1 if failures else 0


def _open_outputs(options: argparse.Namespace, stack: ExitStack) -> list[Show]:
    """Open the outputs of the options; a window by default."""
    points, in_window = options.points, not (options.output or options.rerun or options.save)
    if len(points) > (1 if in_window else MAX_POINTS):
        raise ConfigError(f'--point: {len(points)} points, but a window shows one at a time, and '
                          f'pictures (-o), --save and --rerun {MAX_POINTS} at most.')
    outputs = [_picture_writer(options.output, points)] if options.output else []
    if options.rerun or options.save:
        from .view_rerun import open_recording
        outputs.append(stack.enter_context(open_recording(options.save, points)))
    if in_window:
        outputs.append(Window(points).show)
        stack.callback(cv2.destroyAllWindows)
    return outputs


def _picture_writer(path: str, points: Sequence[Point]) -> Show:
    """Make a folder; the returned function writes pictures into it."""
    from ..report import figures
    folder = output_folder(path)
    check_new(sorted(folder.glob('[0-9][0-9][0-9]*_*.png')))

    def show(predicted: PredictedImage) -> bool:
        prediction, stream = predicted.prediction, io.BytesIO()
        places = [prediction.patch_at(*point) for point in points]
        name = re.sub(r'[^A-Za-z0-9.-]', '_', Path(predicted.image.name).stem)
        file = folder / f'{shortened(f"{predicted.number:03d}_{name}", len(".png"))}.png'
        if places:
            with figures.figure_style():
                figures.responses(
                    figures.sample_of(predicted.image.rgb, prediction, predicted.estimator.config),
                    predicted.title, {place: depth_text(prediction, *place) for place in places},
                    predicted.scale).savefig(stream, format='png', dpi=DPI)
        save(file, stream.getvalue() or png(predicted.paint()))
        print(f'{file}: {predicted.title}',
              *(f'  {predicted.patch_text(place)}' for place in places), sep='\n', flush=True)
        return True

    return show


class Window:
    """An OpenCV window, repainted for every image and every click; see `WINDOW_KEYS`."""

    def __init__(self, points: Sequence[Point]) -> None:
        """Open the window; the patch of the first point, if any, is selected from the start."""
        if not has_display():
            raise ConfigError(f'There is no display for a window. {NO_WINDOW_HINT}')
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
        except cv2.error as error:
            raise ConfigError('This OpenCV opens no window; opencv-python-headless has none: pip '
                              f'install opencv-python instead. {NO_WINDOW_HINT}') from error
        self._point = points[0] if points else None
        self._image: PredictedImage | None = None
        self._is_stale = True
        cv2.setMouseCallback(TITLE, self._on_mouse)
        to_stderr(WINDOW_KEYS)

    def show(self, predicted: PredictedImage) -> bool:
        """Show an image until a key is pressed, or a live one briefly; returns False after q."""
        self._image, self._is_stale = predicted, True
        while True:
            if self._is_stale:
                self._paint(predicted)
            key = cv2.waitKey(1 if predicted.live else 30)
            is_closed = cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
            if is_closed or (key != -1 and key & 0xFF in (ord('q'), 27)):
                return False
            if predicted.live or key != -1:
                return True

    def _paint(self, predicted: PredictedImage) -> None:
        self._is_stale, place = False, None
        try:
            place = predicted.prediction.patch_at(*self._point) if self._point else None
        except ImageError as error:  # the image before had another size
            to_stderr(f'{predicted.image.name}: {error}')
            self._point = None
        if place and not predicted.live:
            print(f'{predicted.image.name}: {predicted.patch_text(place)}', flush=True)
        cv2.imshow(TITLE, predicted.paint(place))

    def _on_mouse(self, event: int, x: int, y: int, _flags: int, _data: object) -> None:
        if event == cv2.EVENT_RBUTTONDOWN:
            self._point, self._is_stale = None, True
        elif event == cv2.EVENT_LBUTTONDOWN and self._image is not None:
            height, width = self._image.image.rgb.shape[:2]
            down, across = photo_size(height, width)
            row = y - WARNING_HEIGHT * bool(self._image.warning)
            if 0 <= row < down and 0 <= x < across:
                self._point = (x + 0.5) * width / across - 0.5, (row + 0.5) * height / down - 0.5
                self._is_stale = True


def _open_images(
    options: argparse.Namespace, skip: Callable[[Exception], None], notes: Notes,
) -> Iterator[tuple[NamedFrame, bool]]:
    """Yield the images of all paths, and whether each comes from a webcam; errors are skipped.

    Paths are checked at once, images are read one by one.
    """
    max_images, sources = options.max_images or MAX_IMAGES, []
    for path in options.images:
        is_webcam = path.isdecimal() and not Path(path).exists()
        try:
            frames = _webcam_frames(path) if is_webcam else named_frames(
                [path], max_images, skip, notes, options.topic)
        except DepthClipError as error:
            skip(error)
            continue
        # A webcam in a window has no limit.
        endless = not (options.output or options.save or options.max_images)
        if is_webcam and not endless:
            frames = islice(frames, max_images)
        sources.append((frames, is_webcam))

    def read() -> Iterator[tuple[NamedFrame, bool]]:
        for frames, is_webcam in sources:
            try:
                for frame in frames:
                    yield frame, is_webcam
            except DepthClipError as error:  # noqa: PERF203 (other paths go on)
                skip(error)
    return read()


def _webcam_frames(path: str) -> Iterator[NamedFrame]:
    for number, bgr in enumerate(webcam_frames(int(path)), 1):
        yield NamedFrame(f'webcam {path}, image {number}', np.ascontiguousarray(bgr[..., ::-1]))


def _bag_camera(frame: NamedFrame, *, rectified: bool) -> CameraModel | None:
    """Make the camera of the image's bag; None, with a message, if it does not fit."""
    if frame.info is None:
        return None
    try:
        camera = CameraModel.from_info(frame.info, rectified)
        camera.check_size(frame.rgb.shape[1], frame.rgb.shape[0])
    except CameraInfoError as error:
        to_stderr(f"{frame.name}: the bag's camera_info is not used: {error} Depth is without "
                  'its focal length; or give --fov or --camera-info.')
        return None
    return camera
