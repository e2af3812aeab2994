# SPDX-License-Identifier: Apache-2.0
"""`depthclip view`: how much each word answers in pictures, as in the paper's Figure 4."""

from __future__ import annotations

import io
import re
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from offline_eval.report.view import Spot

    from ..core.config import DepthConfig
    from ..core.estimator import DepthPrediction

    Point = tuple[float, float]

DPI = 130
MOST = 50  # images of a path, where --max-images says nothing


@dataclass(frozen=True)
class Seen:
    """One image, and what the words say of it.

    Attributes:
        number: from 1.
        name: of the image.
        rgb: (H, W, 3) uint8.
        prediction: the estimator's.
        config: the settings in force.
        trained: False: its depth is meaningless.
        camera: that took it; None if it is not known.
        live: it is replaced as soon as there is another.
        label: of its calibration; '' without one.

    """

    number: int
    name: str
    rgb: NDArray[np.uint8]
    prediction: DepthPrediction
    config: DepthConfig
    trained: bool
    camera: CameraModel | None
    live: bool = False
    label: str = ''

    @property
    def title(self) -> str:
        """One line that stands above the picture."""
        return ', '.join(filter(None, (
            '' if self.trained else UNTRAINED, self.name, scene_words(self.prediction),
            self.label)))

    @property
    def span(self) -> tuple[float, float]:
        """Depths between which everything lies that the words can say [m]."""
        low, high = self.config.depth_span
        return low * self.prediction.focal_ratio, high * self.prediction.focal_ratio

    def spot(self, point: Point) -> Spot:
        """The patch that a pixel lies in, and what is said of it.

        Raises:
            ImageError: the pixel is not in the image, or the network does not see it.

        """
        return self.spot_at(*self.prediction.patch_at(*point))

    def spot_at(self, row: int, column: int) -> Spot:
        """A patch, and what is said of it."""
        from offline_eval.report.view import Spot
        return Spot(row, column, depth_words(self.prediction, row, column))

    def figure(self, spots: Sequence[Spot]) -> Figure:
        """Draw it; within `offline_eval.report.figures.look`."""
        from offline_eval.report.figures import sample_of
        from offline_eval.report.view import view as draw
        return draw(sample_of(self.rgb, self.prediction, self.config), self.span, self.title,
                    spots, self.prediction.patch_stddev)

    def answers(self, row: int, column: int) -> str:
        """Depth of a patch, and the words that answer most there, on one line."""
        said = depth_words(self.prediction, row, column).replace('\n', ' ')
        return f'{said}: {answer_words(self.prediction, row, column, self.config.tokens)}'


class Output(Protocol):
    """Where images are shown."""

    def show(self, seen: Seen) -> bool:
        """Show an image.

        Returns:
            False: whoever looks at it wants no more.

        Raises:
            ImageError: a point that was asked for is not in it.

        """
        ...


class Files:
    """A picture of every image, in a folder."""

    def __init__(self, folder: str, points: Sequence[Point]) -> None:
        """Make the folder.

        Raises:
            DepthClipError: it cannot be written, or matplotlib is missing.

        """
        from offline_eval.report import figures
        figures.require()
        self._folder, self._points = output_folder(folder), points

    def show(self, seen: Seen) -> bool:
        """Write it; see `Output`."""
        from offline_eval.report import figures
        spots = [seen.spot(point) for point in self._points]
        name = re.sub(r'[^A-Za-z0-9.-]', '_', Path(seen.name).stem)
        path, stream = self._folder / f'{seen.number:03d}_{name}.png', io.BytesIO()
        with figures.look():
            seen.figure(spots).savefig(stream, format='png', dpi=DPI)
        save(path, stream.getvalue())
        print(f'{path}: {seen.title}', *(
            f'  {seen.answers(spot.row, spot.column)}' for spot in spots), sep='\n', flush=True)
        return True


def view(options: argparse.Namespace) -> int:
    """Show how much each word answers: in a window, in Rerun, or in files.

    Args:
        options: of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 1 if any image could not be used; the others are shown all the same.

    Raises:
        DepthClipError: settings, weights, or the output cannot be used, or no image can.

    """
    points = _points(options)
    depth, node = settings(options.config, options.weights, options.device)
    failures: list[str] = []

    def skip(error: Exception) -> None:
        failures.append(str(error))
        to_stderr(f'not used: {error}')

    shown, camera_of = 0, _Cameras(options, rectified=node.rectified)
    with ExitStack() as stack:
        outputs = _outputs(options, depth, node.weights, points, stack)
        estimator = load_estimator(depth, node)
        for image, live in _images(options, skip, endless=not options.output and not options.save):
            try:
                given = camera_of(image)
                prediction = estimator.predict(image.rgb, intrinsics=given)
                seen = Seen(shown + 1, image.name, image.rgb, prediction, depth,
                            estimator.weights.trained, given, live, estimator.label)
                more = [output.show(seen) for output in outputs]
            except DataError as error:
                skip(DataError(error.condition, f'{image.name}: {error}'))
                if live:  # the next one would be no better
                    break
                continue
            shown += 1
            if not all(more):
                break
        if not shown:
            raise ConfigError(f'no image could be used: {"; ".join(failures[:3])}')
    if not estimator.weights.trained:
        print_untrained()
    if failures:
        to_stderr(f'{shown} image{"s" if shown > 1 else ""} shown, {len(failures)} not used.')
    return 1 if failures else 0


def _points(options: argparse.Namespace) -> list[Point]:
    from offline_eval.report import figures
    points = options.points
    if len(points) > len(figures.PATCHES):
        raise ConfigError(f'--point: {len(points)} points, but there are charts for '
                          f'{len(figures.PATCHES)} at most.')
    return list(points)


def _outputs(
    options: argparse.Namespace, depth: DepthConfig, weights: str, points: list[Point],
    stack: ExitStack,
) -> list[Output]:
    """What is asked for, in a state to take images; a window where nothing is."""
    outputs: list[Output] = []
    if options.output:
        outputs.append(Files(options.output, points))
    if options.rerun or options.save:
        from .view_rerun import Recording
        outputs.append(stack.enter_context(Recording(options.save, points, depth, weights)))
    if not outputs:
        from .view_window import Window
        outputs.append(stack.enter_context(Window(points)))
    return outputs


def _images(
    options: argparse.Namespace, skip: Callable[[Exception], None], *, endless: bool,
) -> Iterator[tuple[NamedFrame, bool]]:
    """Images of all paths, and whether they are a webcam's; a path that is wrong stops no other.

    Args:
        options: of the command line.
        skip: told what cannot be used.
        endless: a webcam's images go on for as long as somebody looks.

    """
    def of(path: str) -> Iterator[tuple[NamedFrame, bool]]:
        most = options.max_images or MOST
        try:
            if path.isdecimal() and not Path(path).exists():
                limit = None if endless and not options.max_images else most
                for number, bgr in enumerate(islice(webcam_frames(int(path)), limit), 1):
                    yield NamedFrame(f'webcam {path}, image {number}',
                                     np.ascontiguousarray(bgr[..., ::-1])), True
            else:
                for frame in named_frames([path], most, skip, options.topic, to_stderr):
                    yield frame, False
        except DepthClipError as error:
            skip(error)

    return chain.from_iterable(map(of, options.images))


class _Cameras:
    """The camera of every image: the one that is given, else that of its bag."""

    def __init__(self, options: argparse.Namespace, *, rectified: bool) -> None:
        self._given = given_camera(options, rectified=rectified)
        self._rectified = rectified
        self._complaints: set[str] = set()

    def __call__(self, image: NamedFrame) -> CameraModel | None:
        """Camera of an image; None if it is not known.

        Raises:
            CameraInfoError: the given calibration is of another size.

        """
        height, width = image.rgb.shape[:2]
        given = self._given(width, height)
        if given is not None or image.info is None:
            return given
        try:
            camera = CameraModel.from_info(image.info, self._rectified)
            camera.check_size(width, height)
        except CameraInfoError as error:
            if str(error) not in self._complaints:
                to_stderr(f"{image.name}: the bag's camera_info is not used: {error} Depth is "
                          'without its focal length; or give --fov or --camera-info.')
            self._complaints.add(str(error))
            return None
        return camera
