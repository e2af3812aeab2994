# SPDX-License-Identifier: Apache-2.0
"""What every row of `foreign_robots.py` is measured with: frames, the estimator, calibrations.

Nothing in here knows the package from inside: what is measured is what a user of it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from foreign_worlds import Frames, Robot, Studio, drive, unseen
from numpy.typing import NDArray

from depthclip_ros.calibrate.fit import fit
from depthclip_ros.calibrate.recordings import Frame, Moment
from depthclip_ros.core import DepthEstimator
from depthclip_ros.core.anchor import Points, ScaleFilter
from depthclip_ros.core.estimator import DepthPrediction
from depthclip_ros.node.config import read_config

ROOT = Path(__file__).resolve().parents[1]
POINTS, POINT_NOISE, OUTLIERS = 20, 0.03, 0.1
FARTHEST_POINT = 10.0  # metres: outliers are anywhere up to there


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rooms: unseen ones, one frame of each.
        plan: frames, rooms, and number of drives of each kind to calibrate on.
        usual: frames and rooms of the drive that the other parts calibrate on.
        run: frames in each room of a drive whose frames follow each other closely.
        changes: drives on which the mounting changes.

    """

    rooms: int = 300
    plan: tuple[tuple[int, int, int], ...] = (
        (60, 5, 2), (60, 10, 2), (200, 20, 1), (200, 200, 1))
    usual: tuple[int, int] = (60, 10)
    run: int = 100
    changes: int = 18


TINY = Size(rooms=3, plan=((10, 5, 1),), usual=(10, 5), run=2, changes=1)


@dataclass(frozen=True)
class Drive:
    """Frames to calibrate on.

    Attributes:
        name: frames and rooms.
        frames: themselves, each room a sequence.

    """

    name: str
    frames: Frames


class Bench:
    """Frames and an estimator that can be calibrated.

    Attributes:
        size: how much is measured.

    """

    def __init__(self, studio: Studio, folder: Path, size: Size) -> None:
        """Load the demo model with its own settings.

        Args:
            studio: renders.
            folder: for calibrations.
            size: how much is measured.

        """
        self.size = size
        self._studio, self._folder = studio, folder
        self._known: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
        self._config = read_config(ROOT / 'config' / 'demo.yaml')[0]
        self.estimator = DepthEstimator(self._config, 'demo', 'cpu')
        self._reference = self._config.reference_focal

    def unseen(self, robot: Robot) -> Frames:
        """Frames to be measured on."""
        return self._studio.frames(unseen(robot, self.size.rooms))

    def drive(self, robot: Robot, number: int, rooms: int, frames: int,
              step: float = 0.0) -> Frames:
        """Frames of a drive, see `foreign_worlds.drive`."""
        return self._studio.frames(drive(robot, number, rooms, frames, step))

    def drives(self, robot: Robot) -> Iterator[Drive]:
        """All that is calibrated on, the same name for drives that differ in their rooms only."""
        for frames, rooms, drives in self.size.plan:
            for number in range(drives):
                yield Drive(f'{frames} frames, {rooms} rooms',
                            self.drive(robot, number, rooms, frames))

    @property
    def usual_name(self) -> str:
        """What the drives are called that the other parts calibrate on."""
        frames, rooms = self.size.usual
        return f'{frames} frames, {rooms} rooms'

    def usual(self, robot: Robot) -> str:
        """Calibrate as the other parts do; gives the file."""
        frames, rooms = self.size.usual
        return self.calibrate(self.drive(robot, 0, rooms, frames))[0]

    def calibrate(
        self, frames: Frames, variant: str = 'auto', *, shuffled: bool = False,
        focal: bool = True,
    ) -> tuple[str, dict[str, Any]]:
        """Calibrate as `depthclip calibrate` does.

        Args:
            frames: of a drive.
            variant: as `Options`.
            shuffled: give each frame the depth of another room: a control.
            focal: whether the focal length counts.

        Returns:
            The calibration's file, and what the fit said of itself.

        """
        key = frames.name, variant, shuffled, focal
        if key not in self._known:
            self._known[key] = self._fit(frames, variant, shuffled=shuffled, focal=focal)
        return self._known[key]

    def _fit(
        self, frames: Frames, variant: str, *, shuffled: bool, focal: bool,
    ) -> tuple[str, dict[str, Any]]:
        depth = frames.depth
        if shuffled:
            depth = np.roll(depth, len(frames) // 2, axis=0)
        samples = [Frame(rgb, truth, frames.camera, Moment(float(i), int(room))) for i, (
            rgb, truth, room) in enumerate(zip(frames.rgb, depth, frames.rooms, strict=True))]
        self.use('', focal=focal)
        fitted = fit(self.estimator, samples, variant, 'rendered rooms', log=lambda _: None)
        said = {'variant': fitted.variant, 'improved': fitted.improved}
        return str(fitted.calibration.save(self._folder, 'robot')), said

    def use(self, calibration: str = '', *, focal: bool = True) -> None:
        """Predict with a calibration from now on; '': none.

        Args:
            calibration: a file.
            focal: whether the focal length counts.

        """
        self.estimator.reconfigure(self._config.replace(
            calibration=calibration, reference_focal=self._reference if focal else 0.0))

    def predict(
        self, frames: Frames, anchor: Callable[[int], Any] | None = None, *, known: bool = True,
    ) -> Iterator[DepthPrediction]:
        """Predict frame by frame.

        Args:
            frames: of a robot.
            anchor: gives the anchor of a frame's number; None: without.
            known: whether the camera is.

        """
        for number, rgb in enumerate(frames.rgb):
            yield self.estimator.predict(
                rgb, intrinsics=frames.camera if known else None,
                anchors=None if anchor is None else anchor(number))


def range_points(
    depth: NDArray[np.float32], seed: int, outliers: float = OUTLIERS, count: int = POINTS,
) -> Points:
    """What a range sensor says of an image: a few places, noisy, some of them quite wrong.

    Args:
        depth: (H, W) metres, true.
        seed: another one, other places.
        outliers: share of the points that are anywhere between 0.3 and 10 m.
        count: number of points.

    """
    rng = np.random.default_rng([seed, 20])
    v, u = (rng.integers(0, size, count) for size in depth.shape)
    z = depth[v, u] * np.exp(POINT_NOISE * rng.standard_normal(count))
    wrong = rng.permutation(count) < round(outliers * count)
    z = np.where(wrong, rng.uniform(0.3, FARTHEST_POINT, count), z)
    return Points(u.astype(float), v.astype(float), z)


def one_image(frames: Frames, outliers: float = OUTLIERS) -> Callable[[int], Any]:
    """Anchors that know of one image alone, each."""
    def anchor(number: int) -> Any:
        points = range_points(frames.depth[number], number, outliers)
        scale = ScaleFilter()
        return lambda depth, stddev, window, upsampling: scale.adjust(
            0.0, points, depth, stddev, window, upsampling)
    return anchor


def following(
    frames: Frames, scale: ScaleFilter, step: float, outliers: float = OUTLIERS,
    silent: Callable[[int], bool] = lambda _: False, begin: int = 0,
) -> Callable[[int], Any]:
    """Anchors that follow the scale from image to image.

    Args:
        frames: that follow each other.
        scale: what follows.
        step: seconds between two frames.
        outliers: share of the points.
        silent: whether there are no points in a frame.
        begin: how many frames the scale has followed before.

    """
    def anchor(number: int) -> Any:
        points = None if silent(number) else range_points(
            frames.depth[number], begin + number, outliers)
        return lambda depth, stddev, window, upsampling: scale.adjust(
            (begin + number) * step, points, depth, stddev, window, upsampling)
    return anchor
