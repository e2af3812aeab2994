# SPDX-License-Identifier: Apache-2.0
"""`depthclip view`: how much each word answers in pictures, as in the paper's Figure 4."""

from __future__ import annotations

import io
import re
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..color import UNTRAINED
from ..core.camera import CameraModel
from ..core.errors import CameraInfoError, ConfigError, DataError, DepthClipError
from ..overlay import answer_words, depth_words, scene_words
from ..sources.pictures import webcam_frames
from .frames import NamedFrame, named_frames
from .model import (
    given_camera,
    load_estimator,
    output_folder,
    print_untrained,
    save,
    settings,
    to_stderr,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator, DepthPrediction
    from ..figures import Spot

    Point = tuple[float, float]
    #: Shows an image; False: whoever looks at it wants no more.
    Show = Callable[['Seen'], bool]

DPI = 130
MOST = 50  # images of a path, where --max-images says nothing
MOST_POINTS = 4


class Seen(NamedTuple):
    """One image, from number 1 on, and what the words say of it.

    Its camera is None if it is not known; a live one is replaced as soon as there is another.
    """

    number: int
    image: NamedFrame
    prediction: DepthPrediction
    estimator: DepthEstimator
    camera: CameraModel | None
    live: bool

    @property
    def is_trained(self) -> bool:
        """False: its depth is meaningless."""
        return self.estimator.weights.trained

    @property
    def title(self) -> str:
        """One line that stands above the picture."""
        return ', '.join(filter(None, (
            '' if self.is_trained else UNTRAINED, self.image.name, scene_words(self.prediction),
            self.estimator.label)))

    @property
    def span(self) -> tuple[float, float]:
        """Depths between which everything lies that the words can say [m]."""
        low, high = self.estimator.config.depth_span
        return low * self.prediction.focal_ratio, high * self.prediction.focal_ratio

    def spot(self, row: int, column: int) -> Spot:
        """A patch, and what is said of it."""
        from ..figures import Spot
        return Spot(row, column, depth_words(self.prediction, row, column))

    def spots(self, points: Sequence[Point]) -> list[Spot]:
        """The patches that these pixels lie in.

        Raises:
            ImageError: a pixel is not in the image, or the network does not see it.

        """
        return [self.spot(*self.prediction.patch_at(*point)) for point in points]

    def answers(self, row: int, column: int) -> str:
        """Depth of a patch, and the words that answer most there, on one line."""
        said = depth_words(self.prediction, row, column).replace('\n', ' ')
        tokens = self.estimator.config.tokens
        return f'{said}: {answer_words(self.prediction, row, column, tokens)}'


def view(options: argparse.Namespace) -> int:
    """Show how much each word answers: in a window, in Rerun, or in files.

    Returns:
        Exit code: 1 if any image could not be used; the others are shown all the same.

    Raises:
        DepthClipError: settings, weights, or the output cannot be used, or no image can.

    """
    if len(options.points) > MOST_POINTS:
        raise ConfigError(f'--point: {len(options.points)} points, but there are charts for '
                          f'{MOST_POINTS} at most.')
    depth, node = settings(options.config, options.weights, options.device)
    given = given_camera(options, rectified=node.rectified)
    failures: list[str] = []

    def skip(error: Exception) -> None:
        failures.append(str(error))
        to_stderr(f'not used: {error}')

    with ExitStack() as stack:
        shows = _shows(options, depth, node.weights, stack)
        estimator = load_estimator(depth, node)
        shown = 0
        for image, live in _images(options, skip):
            try:
                height, width = image.rgb.shape[:2]
                camera = given(width, height) or _own_camera(image, rectified=node.rectified)
                prediction = estimator.predict(image.rgb, intrinsics=camera)
                seen = Seen(shown + 1, image, prediction, estimator, camera, live)
                wanted = [show(seen) for show in shows]
            except DataError as error:
                skip(DataError(error.condition, f'{image.name}: {error}'))
                wanted = [not live]  # the next one would be no better
            else:
                shown += 1
            if not all(wanted):
                break
    if not shown:
        raise ConfigError(f'no image could be used: {"; ".join(failures[:3])}')
    if not estimator.weights.trained:
        print_untrained()
    if failures:
        to_stderr(f'{shown} image{"s" if shown > 1 else ""} shown, {len(failures)} not used.')
    return 1 if failures else 0


def _shows(
    options: argparse.Namespace, depth: DepthConfig, weights: str, stack: ExitStack,
) -> list[Show]:
    """What is asked for, open; a window where nothing is."""
    shows = [pictures(options.output, options.points)] if options.output else []
    if options.rerun or options.save:
        from .view_rerun import recording
        shows.append(stack.enter_context(recording(options.save, options.points, depth, weights)))
    if not shows:
        from .view_window import Window
        shows.append(stack.enter_context(Window(options.points)).show)
    return shows


def pictures(path: str, points: Sequence[Point]) -> Show:
    """Make a folder; what is shown is written there.

    Raises:
        DepthClipError: it cannot be written, or matplotlib is missing.

    """
    from .. import figures
    from ..figures import view as draw
    figures.require()
    folder = output_folder(path)

    def show(seen: Seen) -> bool:
        spots = seen.spots(points)
        name = re.sub(r'[^A-Za-z0-9.-]', '_', Path(seen.image.name).stem)
        file, stream = folder / f'{seen.number:03d}_{name}.png', io.BytesIO()
        sample = figures.sample_of(seen.image.rgb, seen.prediction, seen.estimator.config)
        with figures.look():
            draw(sample, seen.span, seen.title, spots, seen.prediction.patch_stddev).savefig(
                stream, format='png', dpi=DPI)
        save(file, stream.getvalue())
        print(f'{file}: {seen.title}', *(
            f'  {seen.answers(spot.row, spot.column)}' for spot in spots), sep='\n', flush=True)
        return True

    return show


def _images(
    options: argparse.Namespace, skip: Callable[[Exception], None],
) -> Iterator[tuple[NamedFrame, bool]]:
    """Images of all paths, and whether they are a webcam's; one that is wrong stops no other."""
    most = options.max_images or MOST

    def of(path: str) -> Iterator[tuple[NamedFrame, bool]]:
        try:
            if path.isdecimal() and not Path(path).exists():
                # In a window, as long as somebody looks.
                endless = not (options.output or options.save or options.max_images)
                frames = islice(webcam_frames(int(path)), None if endless else most)
                for number, bgr in enumerate(frames, 1):
                    yield NamedFrame(f'webcam {path}, image {number}',
                                     np.ascontiguousarray(bgr[..., ::-1])), True
            else:
                for frame in named_frames([path], most, skip, options.topic):
                    yield frame, False
        except DepthClipError as error:
            skip(error)

    return chain.from_iterable(map(of, options.images))


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
