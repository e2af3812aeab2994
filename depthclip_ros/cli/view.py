# SPDX-License-Identifier: Apache-2.0
"""`depthclip view`: how much each word answers in pictures, as in the paper's Figure 4."""

from __future__ import annotations

import io
import re
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..color import UNTRAINED, WARNING_HEIGHT, bins_scale, png
from ..core.camera import CameraModel, stretch_notice
from ..core.errors import CameraInfoError, ConfigError, DataError, DepthClipError, ImageError
from ..core.files import check_new, output_folder, shortened
from ..core.image import CameraImage
from ..core.opencv import cv2
from ..overlay import answer_words, depth_words, draw, photo_size, scene_words
from ..sources.pictures import Notes, webcam_frames
from .model import (
    given_camera,
    has_display,
    load_estimator,
    print_untrained,
    save,
    settings,
    to_stderr,
)
from .predict import NamedFrame, named_frames

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from ..color import Picture, Scale
    from ..core.estimator import DepthEstimator
    from ..core.prediction import DepthPrediction
    from ..figures import Place

    Point = tuple[float, float]
    #: Shows an image; False: whoever looks at it wants no more.
    Show = Callable[['Seen'], bool]

DPI = 130
MOST = 50  # images of a path, where --max-images says nothing
MOST_POINTS = 4
TITLE = 'depthclip view'
ELSEWHERE = ('Give -o FOLDER for pictures, or --save FILE.rrd to look at a recording elsewhere; '
             'over ssh, ssh -X brings windows along.')
HELP = 'left click: ask a patch; right click: all patches; any other key: next image; q: end'


class Seen(NamedTuple):
    """One image, and what the words say of it."""

    number: int  # from 1 on
    image: NamedFrame
    prediction: DepthPrediction
    estimator: DepthEstimator
    camera: CameraModel | None  # if it is known
    live: bool  # replaced as soon as there is another
    scale: Scale  # of the colours of depth

    @property
    def warning(self) -> str:
        """What must be known before its depth is believed."""
        return '' if self.estimator.weights.trained else UNTRAINED

    @property
    def title(self) -> str:
        """One line that stands above the picture."""
        return ', '.join(filter(None, (self.warning, self.image.name,
                                       scene_words(self.prediction), self.estimator.label)))

    def answers(self, place: Place) -> str:
        """Depth of a patch, and the words that answer most there, on one line."""
        said = depth_words(self.prediction, *place).replace('\n', ' ')
        return f'{said}: {answer_words(self.prediction, *place, self.estimator.config.tokens)}'

    def painted(self, place: Place | None = None) -> Picture:
        """The picture that the node publishes as depth/words, BGR."""
        return draw(self.image.rgb, self.prediction, self.estimator.config, place,
                    [*filter(None, (self.image.name, self.estimator.label))], self.warning,
                    self.scale)


def view(options: argparse.Namespace) -> int:
    """Show how much each word answers: in a window, in Rerun, or in files.

    Returns:
        Exit code: 1 if any image could not be used; the others are shown all the same.

    Raises:
        DepthClipError: settings, weights, or the output cannot be used, or no image can.

    """
    depth, node = settings(options.config, options.weights, options.device)
    given = given_camera(options, rectified=node.rectified)
    failures: list[str] = []
    notes = Notes(to_stderr)

    def skip(error: Exception) -> None:
        failures.append(str(error))
        to_stderr(f'not used: {error}')

    images, shown = _images(options, skip, notes), 0
    if len(failures) == len(options.images):
        raise ConfigError('no image could be used.')
    with ExitStack() as stack:
        shows = _shows(options, stack)
        estimator = load_estimator(depth, node)
        for image, live in images:
            try:
                height, width = image.rgb.shape[:2]
                notes.add(image.name, 'stretched', stretch_notice(
                    image.rgb.shape, depth.input_size))
                camera = given(width, height) or _own_camera(image, rectified=node.rectified)
                prediction = estimator.predict(CameraImage(image.rgb, camera))
                seen = Seen(shown + 1, image, prediction, estimator, camera, live, bins_scale(
                    options.range or estimator.config.depth_span,
                    1.0 if options.range else prediction.focal_ratio, options.colormap))
                wanted = [show(seen) for show in shows]
            except DataError as error:
                skip(DataError(error.condition, f'{image.name}: {error}'))
                wanted = [not live]  # the next one would be no better
            else:
                shown += 1
            if not all(wanted):
                break
    notes.close()
    if not shown:
        raise ConfigError('no image could be used.')
    if not estimator.weights.trained:
        print_untrained()
    if failures:
        to_stderr(f'{shown} image{"s" if shown > 1 else ""} shown, {len(failures)} not used.')
    return 1 if failures else 0


def _shows(options: argparse.Namespace, stack: ExitStack) -> list[Show]:
    """What is asked for, open; a window where nothing is."""
    points, in_window = options.points, not (options.output or options.rerun or options.save)
    if len(points) > (1 if in_window else MOST_POINTS):
        raise ConfigError(f'--point: {len(points)} points, but a window shows one at a time, and '
                          f'pictures (-o), --save and --rerun {MOST_POINTS} at most.')
    shows = [_pictures(options.output, points)] if options.output else []
    if options.rerun or options.save:
        from .view_rerun import recording
        shows.append(stack.enter_context(recording(options.save, points)))
    if in_window:
        shows.append(Window(points).show)
        stack.callback(cv2.destroyAllWindows)
    return shows


def _pictures(path: str, points: Sequence[Point]) -> Show:
    """Make a folder; what is shown is written there."""
    from .. import figures
    folder = output_folder(path)
    check_new(sorted(folder.glob('[0-9][0-9][0-9]*_*.png')))

    def show(seen: Seen) -> bool:
        prediction, stream = seen.prediction, io.BytesIO()
        places = [prediction.patch_at(*point) for point in points]
        name = re.sub(r'[^A-Za-z0-9.-]', '_', Path(seen.image.name).stem)
        file = folder / f'{shortened(f"{seen.number:03d}_{name}", len(".png"))}.png'
        if places:
            with figures.look():
                figures.responses(
                    figures.sample_of(seen.image.rgb, prediction, seen.estimator.config),
                    seen.title, {place: depth_words(prediction, *place) for place in places},
                    seen.scale).savefig(stream, format='png', dpi=DPI)
        save(file, stream.getvalue() or png(seen.painted()))
        print(f'{file}: {seen.title}', *(f'  {seen.answers(place)}' for place in places),
              sep='\n', flush=True)
        return True

    return show


class Window:
    """A window of OpenCV's, painted anew for every image and every click; see `HELP`."""

    def __init__(self, points: Sequence[Point]) -> None:
        """Open it; the first pixel, if there is one, is looked at from the start."""
        if not has_display():
            raise ConfigError(f'There is no display for a window. {ELSEWHERE}')
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
        except cv2.error as error:
            raise ConfigError('This OpenCV opens no window; opencv-python-headless has none: pip '
                              f'install opencv-python instead. {ELSEWHERE}') from error
        self._point = points[0] if points else None
        self._seen: Seen | None = None
        self._is_stale = True
        cv2.setMouseCallback(TITLE, self._on_mouse)
        to_stderr(HELP)

    def show(self, seen: Seen) -> bool:
        """Show an image until there is a key, or a live one for a moment; False after q."""
        self._seen, self._is_stale = seen, True
        while True:
            if self._is_stale:
                self._paint(seen)
            key = cv2.waitKey(1 if seen.live else 30)
            is_closed = cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
            if is_closed or (key != -1 and key & 0xFF in (ord('q'), 27)):
                return False
            if seen.live or key != -1:
                return True

    def _paint(self, seen: Seen) -> None:
        self._is_stale, place = False, None
        try:
            place = seen.prediction.patch_at(*self._point) if self._point else None
        except ImageError as error:  # the image before had another size
            to_stderr(f'{seen.image.name}: {error}')
            self._point = None
        if place and not seen.live:
            print(f'{seen.image.name}: {seen.answers(place)}', flush=True)
        cv2.imshow(TITLE, seen.painted(place))

    def _on_mouse(self, event: int, x: int, y: int, _flags: int, _data: object) -> None:
        if event == cv2.EVENT_RBUTTONDOWN:
            self._point, self._is_stale = None, True
        elif event == cv2.EVENT_LBUTTONDOWN and self._seen is not None:
            height, width = self._seen.image.rgb.shape[:2]
            down, across = photo_size(height, width)
            row = y - WARNING_HEIGHT * bool(self._seen.warning)
            if 0 <= row < down and 0 <= x < across:
                self._point = (x + 0.5) * width / across - 0.5, (row + 0.5) * height / down - 0.5
                self._is_stale = True


def _images(
    options: argparse.Namespace, skip: Callable[[Exception], None], notes: Notes,
) -> Iterator[tuple[NamedFrame, bool]]:
    """Images of all paths, and whether they are a webcam's; one that is wrong stops no other.

    Paths are looked at at once, images are read one by one.
    """
    most, every = options.max_images or MOST, []
    for path in options.images:
        is_webcam = path.isdecimal() and not Path(path).exists()
        try:
            frames = _of_webcam(path) if is_webcam else named_frames(
                [path], most, skip, notes, options.topic)
        except DepthClipError as error:
            skip(error)
            continue
        # In a window, as long as somebody looks.
        endless = not (options.output or options.save or options.max_images)
        every.append((islice(frames, most) if is_webcam and not endless else frames, is_webcam))

    def read() -> Iterator[tuple[NamedFrame, bool]]:
        for frames, is_webcam in every:
            try:
                for frame in frames:
                    yield frame, is_webcam
            except DepthClipError as error:  # noqa: PERF203 (one that is wrong stops no other)
                skip(error)
    return read()


def _of_webcam(path: str) -> Iterator[NamedFrame]:
    for number, bgr in enumerate(webcam_frames(int(path)), 1):
        yield NamedFrame(f'webcam {path}, image {number}', np.ascontiguousarray(bgr[..., ::-1]))


def _own_camera(image: NamedFrame, *, rectified: bool) -> CameraModel | None:
    """That of the image's bag; None, and said, where there is none that fits."""
    if image.info is None:
        return None
    try:
        camera = CameraModel.from_info(image.info, rectified)
        camera.check_size(image.rgb.shape[1], image.rgb.shape[0])
    except CameraInfoError as error:
        to_stderr(f"{image.name}: the bag's camera_info is not used: {error} Depth is without "
                  'its focal length; or give --fov or --camera-info.')
        return None
    return camera
