# SPDX-License-Identifier: Apache-2.0
"""Depth on robots that the model was not made for: measured, with controls, in rendered rooms.

    python tools/foreign_robots.py --cache build/robots               everything
    python tools/foreign_robots.py --cache build/robots --only cost   one part anew
    python tools/foreign_robots.py --tables                           tables and the plot alone

Results go to docs/robots.json, part by part, each with the machine that measured it, and from
there into the marked tables of docs/robots.md and docs/notes/robots.md and into
docs/robots/methods.png. All parts take about 13 minutes of processor time, and rendering 7.
What is measured is what a user of the package gets: calibrations are those of `depthclip
calibrate`, scores those of `offline_eval`, means over images of which each is of its own room.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import math
import operator
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import machine  # noqa: E402
from depthclip_ros import sim  # noqa: E402
from depthclip_ros.calibrate.fit import fit  # noqa: E402
from depthclip_ros.calibrate.recordings import Frame, Moment  # noqa: E402
from depthclip_ros.core import DepthEstimator  # noqa: E402
from depthclip_ros.core.anchor import Points, ScaleFilter  # noqa: E402
from depthclip_ros.core.camera import CameraModel  # noqa: E402
from depthclip_ros.core.estimator import DepthPrediction  # noqa: E402
from depthclip_ros.node.config import read_config  # noqa: E402
from depthclip_ros.sim import (  # noqa: E402
    KINDS,
    Mount,
    RenderOptions,
    Scene,
    SimCamera,
    render,
    trajectory,
)
from offline_eval.metrics import metrics_of, named, score  # noqa: E402

Float32 = NDArray[np.float32]
Results = Mapping[str, Any]

# Worlds ------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 320, 240
NOISE = 0.01
USUAL = SimCamera().scaled(WIDTH, HEIGHT)
LOW = Mount(height=(0.35, 0.35), pitch=(0.07, 0.27))
LENS = (-0.25, 0.06, 0.001, -0.001, 0.0)
# All below 1,000,000: the demo model has seen none of them. Neither has anything been chosen on
# the test rooms: its temperature is from rooms 20000 to 20149.
FIRST_TEST_ROOM, FIRST_DRIVE_ROOM, ROOMS_OF_A_DRIVE = 60_000, 100_000, 1_000
INSTEAD = 100 * len(KINDS)  # from a room without a place for the camera to the one taken for it
LOOP = 22.8  # seconds that a drive spends in a room: about one loop


@dataclass(frozen=True)
class Robot:
    """A camera on a robot, and the gain of its exposure."""

    title: str
    camera: SimCamera = USUAL
    mount: Mount = field(default_factory=Mount)
    exposure: float = 1.0

    def model(self) -> CameraModel:
        """The camera as camera_info tells of it."""
        own = self.camera
        pinhole = CameraModel.pinhole(own.width, own.height, own.fx, own.fy, own.cx, own.cy)
        return pinhole if not any(own.distortion) else CameraModel(
            own.width, own.height, pinhole.K, np.array(own.distortion), 'plumb_bob', pinhole.R,
            pinhole.P)


def wide(degrees: float) -> SimCamera:
    """A camera of square pixels without distortion, so many degrees wide."""
    focal = WIDTH / 2 / math.tan(math.radians(degrees / 2))
    return SimCamera(WIDTH, HEIGHT, focal, focal, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)


ROBOTS = {
    'A': Robot('the training camera'),
    'B': Robot('90 degrees wide instead of 63', wide(90)),
    'C': Robot('0.35 m high instead of 1.4, pitched up', mount=LOW),
    'D': Robot('both', wide(90), LOW),
    'E': Robot('half the exposure, a lens that distorts', SimCamera(
        WIDTH, HEIGHT, USUAL.fx, USUAL.fy, USUAL.cx, USUAL.cy, LENS), exposure=0.5),
}
LENSES = {63: ROBOTS['A'], 50: Robot('50 degrees wide', wide(50)),
          75: Robot('75 degrees wide', wide(75)), 90: ROBOTS['B']}


@dataclass(frozen=True)
class Shot:
    """All that one frame is made of: the same shot gives the same bytes, in any process."""

    robot: Robot
    room: int
    seconds: float


@dataclass(frozen=True)
class Frames:
    """Frames of one robot in their order: (N, H, W, 3) uint8, (N, H, W) metres, (N,) rooms."""

    rgb: NDArray[np.uint8]
    depth: Float32
    rooms: NDArray[np.int64]
    camera: CameraModel
    name: str  # of what they were made of

    def __len__(self) -> int:
        return len(self.rgb)


def kind_of(room: int) -> str:
    """Kinds come in turn."""
    return KINDS[room % len(KINDS)]


def unseen(robot: Robot, count: int) -> list[Shot]:
    """One frame each of so many rooms that nothing was trained, chosen or calibrated in."""
    rooms = _passable(robot.mount, FIRST_TEST_ROOM, count)
    return [Shot(robot, room, float(i % 23)) for i, room in enumerate(rooms)]


def drive(robot: Robot, number: int, rooms: int, frames: int, step: float = 0.0) -> list[Shot]:
    """A drive through rooms of its own, one after the other, as many frames in each.

    Args:
        robot: that drives.
        number: of the drive; another one goes through other rooms.
        rooms: how many.
        frames: of all rooms together.
        step: seconds between two frames; 0: a loop of each room evenly.

    """
    each = math.ceil(frames / rooms)
    places = _passable(robot.mount, FIRST_DRIVE_ROOM + number * ROOMS_OF_A_DRIVE, rooms)
    return [Shot(robot, places[i // each], i % each * (step or LOOP / each))
            for i in range(frames)]


def _passable(mount: Mount, first: int, count: int) -> list[int]:
    """So many rooms, kinds in turn; one without a place for the camera has another instead."""
    def has_place(room: int) -> bool:
        try:
            trajectory(Scene.generate(kind_of(room), room), room, mount)
        except RuntimeError:
            return False
        return True
    return [next(filter(has_place, itertools.count(room, INSTEAD)))
            for room in range(first, first + count)]


def _take(shot: Shot) -> tuple[NDArray[np.uint8], Float32]:
    robot, room = shot.robot, shot.room
    scene = Scene.generate(kind_of(room), room)
    frame = render(
        scene, robot.camera, trajectory(scene, room, robot.mount).pose(shot.seconds),
        RenderOptions(exposure=robot.exposure, noise=NOISE,
                      seed=room * 1000 + round(40 * shot.seconds)))
    return frame.rgb, frame.depth


def rendered(shots: Sequence[Shot], folder: Path, processes: int = 1) -> Frames:
    """Render shots of one robot, or read them from a folder, where all may be deleted any time."""
    name = hashlib.sha256(b''.join(
        path.read_bytes() for path in sorted(Path(sim.__file__).parent.glob('*.py'))))
    name.update(repr(list(shots)).encode())
    path = folder / f'{name.hexdigest()[:24]}.npz'
    if not path.exists():
        with ProcessPoolExecutor(
                processes, get_context('spawn'), torch.set_num_threads, (1,)) as pool:
            taken = list((pool.map if processes > 1 else map)(_take, shots))
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f'.{os.getpid()}.npz')
        np.savez(unfinished, rgb=[rgb for rgb, _ in taken], depth=[depth for _, depth in taken])
        unfinished.replace(path)
    with np.load(path) as kept:
        return Frames(kept['rgb'], kept['depth'], np.array([shot.room for shot in shots]),
                      shots[0].robot.model(), path.stem)


# What is measured with ---------------------------------------------------------------------------

POINTS, POINT_NOISE, OUTLIERS = 20, 0.03, 0.1
FARTHEST = 100.0  # metres: nothing is cut off
RESAMPLES, LEVEL = 2000, 0.95
QUANTILE = 1.645  # standard deviations that hold 90 %
STEP = 0.1  # seconds between the frames of a drive that an anchor follows


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


def named_drive(frames: int, rooms: int) -> str:
    """What drives are called that differ in their rooms only."""
    return f'{frames} frames, {rooms} rooms'


class Bench:
    """Frames, and an estimator of the demo model that can be calibrated."""

    def __init__(self, cache: Path, processes: int, folder: Path, size: Size) -> None:
        """Load the model with its own settings; `folder` is for calibrations."""
        self.size, self._folder = size, folder
        self.frames = partial(rendered, folder=cache, processes=processes)
        self._config = read_config(ROOT / 'config' / 'demo.yaml')[0]
        self.estimator = DepthEstimator(self._config, 'demo', 'cpu')

    def unseen(self, robot: Robot) -> Frames:
        """Frames to be measured on."""
        return self.frames(unseen(robot, self.size.rooms))

    def usual(self, robot: Robot) -> Frames:
        """Frames that all but the robots' own parts calibrate on."""
        frames, rooms = self.size.usual
        return self.frames(drive(robot, 0, rooms, frames))

    def calibrate(
        self, frames: Frames, variant: str = 'auto', *, shuffled: bool = False,
        focal: bool = True,
    ) -> dict[str, Any]:
        """Calibrate as `depthclip calibrate` does, and predict so from now on.

        Args:
            frames: of a drive.
            variant: as `fit`.
            shuffled: give each frame the depth of another room: a control.
            focal: whether the focal length counts.

        Returns:
            What the fit said of itself.

        """
        depth = np.roll(frames.depth, len(frames) // 2, axis=0) if shuffled else frames.depth
        self.use(focal=focal)
        fitted = fit(self.estimator, [
            Frame(rgb, truth, frames.camera, Moment(0.0, int(room)))
            for rgb, truth, room in zip(frames.rgb, depth, frames.rooms, strict=True)],
            variant, 'rendered rooms', log=lambda _: None)
        self.use(str(fitted.calibration.save(self._folder, 'robot')), focal=focal)
        return {'variant': fitted.variant, 'improved': fitted.improved}

    def use(self, calibration: str = '', *, focal: bool = True) -> str:
        """Predict with a calibration's file from now on, '': none; gives it back."""
        self.estimator.reconfigure(self._config.replace(
            calibration=calibration,
            reference_focal=self._config.reference_focal if focal else 0.0))
        return calibration

    def predict(
        self, frames: Frames, anchor: Callable[[int], Any] | None = None, *, known: bool = True,
    ) -> Iterator[DepthPrediction]:
        """Predict frame by frame; `anchor` gives a frame's, `known`: the camera is."""
        for number, rgb in enumerate(frames.rgb):
            yield self.estimator.predict(
                rgb, intrinsics=frames.camera if known else None,
                anchors=None if anchor is None else anchor(number))

    def depth(self, *about: Any, **more: Any) -> list[Float32]:
        """Depth of `predict`."""
        return [prediction.depth for prediction in self.predict(*about, **more)]


def range_points(
    depth: Float32, seed: int, outliers: float = OUTLIERS, count: int = POINTS,
) -> Points:
    """What a range sensor says of (H, W) metres: a few places, noisy, some of them quite wrong."""
    rng = np.random.default_rng([seed, 20])
    v, u = (rng.integers(0, size, count) for size in depth.shape)
    z = depth[v, u] * np.exp(POINT_NOISE * rng.standard_normal(count))
    wrong = rng.permutation(count) < round(outliers * count)
    return Points(u.astype(float), v.astype(float), np.where(
        wrong, rng.uniform(0.3, 10.0, count), z))


def anchor_of(
    frames: Frames, scale: ScaleFilter | None = None, outliers: float = OUTLIERS,
    silent: Callable[[int], bool] = lambda _: False, begin: int = 0,
) -> Callable[[int], Any]:
    """Anchors that follow the scale from image to image, or know of one image each.

    Args:
        frames: that follow each other.
        scale: what follows; None: every image by itself.
        outliers: share of the points.
        silent: whether there are no points in a frame.
        begin: how many frames the scale has followed before.

    """
    def anchor(number: int) -> Any:
        points = None if silent(number) else range_points(
            frames.depth[number], begin + number, outliers)
        return partial(_adjusted, scale or ScaleFilter(), (begin + number) * STEP, points)
    return anchor


def _adjusted(scale: ScaleFilter, time: float, points: Points | None, *about: Any) -> Any:
    return scale.adjust(time, points, *about)


def scores(truth: Float32, depth: Iterable[Float32]) -> list[dict[str, float]]:
    """Metrics of every image.

    Raises:
        ValueError: a depth is not finite; a score would hide it.

    """
    found = []
    for true, predicted in zip(truth, depth, strict=True):
        if not np.isfinite(predicted).all():
            raise ValueError('a predicted depth is not finite, and cannot be scored')
        sums = score(torch.from_numpy(true), torch.from_numpy(
            np.ascontiguousarray(predicted))[None], FARTHEST)
        found.append(named(metrics_of(sums.numpy())[0]))
    return found


def rmse_of(truth: Float32, depth: Iterable[Float32]) -> NDArray[np.float64]:
    """(N,) metres, of every image."""
    return np.array([score['rmse'] for score in scores(truth, depth)])


def row(truth: Float32, depth: Iterable[Float32], base: NDArray[np.float64]) -> dict[str, Any]:
    """All that the tables say of a method; `base`: rmse of another one on the same images.

    The interval of the ratio of two means is the bootstrap's over rooms, always the same draws.
    """
    found = scores(truth, depth)
    rmse = np.array([score['rmse'] for score in found])
    draws = np.random.default_rng(0).multinomial(
        len(rmse), np.full(len(rmse), 1 / len(rmse)), RESAMPLES).astype(float)
    ends = np.quantile(draws @ rmse / (draws @ base), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {'d1': np.mean([score['d1'] for score in found]), 'rmse [m]': rmse.mean(),
            'rel': np.mean([score['rel'] for score in found]),
            'of base': rmse.mean() / base.mean(), 'of base, 95 %': list(ends)}


def mean_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of several rows, and the least and greatest of what is a share of base."""
    rows = list(rows)
    shares = [of_one['of base'] for of_one in rows]
    return {**{key: np.mean([of_one[key] for of_one in rows], axis=0) for key in rows[0]},
            'of base, least and most': [min(shares), max(shares)]}


def covered(frames: Frames, predictions: Iterable[DepthPrediction]) -> NDArray[np.float64]:
    """(N,) shares of the pixels that are within 1.645 standard deviations of the truth."""
    return np.array([np.mean(np.abs(p.depth - true) <= QUANTILE * p.stddev())
                     for p, true in zip(predictions, frames.depth, strict=True)])


def coverage(frames: Frames, predictions: Sequence[DepthPrediction]) -> dict[str, Any]:
    """Coverage in all, by kind of room, and by decile of depth; nothing without error bars."""
    if predictions[0].stddev() is None:
        return {}
    shares, kinds = covered(frames, predictions), np.array([kind_of(r) for r in frames.rooms])
    depth = np.stack([p.depth[::4, ::4] for p in predictions])
    true = frames.depth[:, ::4, ::4]
    inside = np.abs(depth - true) <= QUANTILE * np.stack(
        [p.stddev()[::4, ::4] for p in predictions])
    return {
        'all': shares.mean(),
        'by kind of room': {
            str(kind): shares[kinds == kind].mean() for kind in sorted(set(kinds))},
        **{f'by decile of {by}': [inside.ravel()[part].mean() for part in np.array_split(
            values.ravel().argsort(kind='stable'), 10)]
            for by, values in (('depth', depth), ('true depth', true))}}


def best_scale(depth: Float32, truth: Float32) -> float:
    """The scale of an image with the least rmse."""
    flat, true = depth.ravel().astype(np.float64), truth.ravel().astype(np.float64)
    return float(flat @ true / (flat @ flat))


def best_scaled(depth: Sequence[Float32], truth: Float32) -> list[Float32]:
    """Every image times the scale with the least rmse: no scale can do better."""
    return [image * np.float32(best_scale(image, true))
            for image, true in zip(depth, truth, strict=True)]


# The parts ---------------------------------------------------------------------------------------


def measure_robot(bench: Bench, which: str) -> dict[str, Any]:
    """A foreign robot: zero-shot, focal length, calibrated, anchored, and their controls."""
    robot, size = ROBOTS[which], bench.size
    test = bench.unseen(robot)
    bench.use(focal=False)
    zero_shot = bench.depth(test)
    base = rmse_of(test.depth, zero_shot)
    bench.use()
    own = bench.depth(test)
    rows = {name: row(test.depth, depth, base) for name, depth in {
        'zero-shot': zero_shot, 'focal length': own,
        'focal length, picture of another room': np.roll(own, len(own) // 2, 0),
        'focal length, best scale': best_scaled(own, test.depth),
        'focal length, anchor': bench.depth(test, anchor_of(test))}.items()}
    drives: dict[str, dict[str, Any]] = {}
    verdicts, covers = defaultdict(list), defaultdict(list)
    for count, rooms, several in size.plan:
        name, found = named_drive(count, rooms), defaultdict(list)
        for number in range(several):
            frames = bench.frames(drive(robot, number, rooms, count))
            verdicts[name].append(bench.calibrate(frames))
            predictions = list(bench.predict(test))
            covers[name].append(coverage(test, predictions))
            depth = [prediction.depth for prediction in predictions]
            maps = {'calibrated': depth,
                    'calibrated, anchor': bench.depth(test, anchor_of(test))}
            if not number:  # controls are of one drive of each kind
                maps |= {'calibrated, best scale': best_scaled(depth, test.depth),
                         'mean map': [frames.depth.mean(axis=0)] * len(test)}
                if (count, rooms) == size.usual:
                    bench.calibrate(frames, 'scale')
                    maps['one scale'] = bench.depth(test)
                    bench.calibrate(frames, 'full', shuffled=True)
                    maps['calibrated on shuffled depth'] = bench.depth(test)
            for method, of_all in maps.items():
                found[method].append(row(test.depth, of_all, base))
        drives[name] = {method: mean_of(of_all) for method, of_all in found.items()}
    return {'title': robot.title, 'rows': rows, 'drives': drives, 'verdicts': verdicts,
            'coverage': {name: [part for part in parts if part] for name, parts in covers.items()}}


def lenses(bench: Bench) -> dict[str, Any]:
    """Rmse in metres, calibrated with the training camera's lens and run with others."""
    tests = {degrees: bench.unseen(robot) for degrees, robot in LENSES.items()}
    frames = bench.usual(ROBOTS['A'])
    result: dict[str, Any] = {named_drive(*bench.size.usual): {}, 'zero-shot': {}}
    for way, focal, known in (
            ('with', True, True), ('without', False, True), ('camera unknown', True, False)):
        for on, rows in result.items():
            if on == 'zero-shot':
                bench.use(focal=focal)
            else:
                bench.calibrate(frames, focal=focal)
            rows.update({f'{degrees} degrees, {way}': rmse_of(
                test.depth, bench.depth(test, known=known)).mean()
                for degrees, test in tests.items()})
    return result


def anchors(bench: Bench) -> dict[str, Any]:
    """An anchor that follows a drive: how it steps, and what is lost against the best scale."""
    result: dict[str, Any] = {}
    run = bench.size.run
    for name in 'AB':
        frames = bench.frames(drive(ROBOTS[name], 10, 4, 4 * run, STEP))
        bench.calibrate(bench.usual(ROBOTS[name]))
        plain = bench.depth(frames)
        medians = [float(np.median(true / depth))
                   for true, depth in zip(frames.depth, plain, strict=True)]
        oracle = rmse_of(frames.depth, [
            depth * np.float32(scale) for depth, scale in zip(plain, medians, strict=True)])
        least = rmse_of(frames.depth, best_scaled(plain, frames.depth)).mean()
        settled = np.arange(len(frames)) % run >= min(10, run // 2)
        cases: dict[str, Any] = {}
        for dropouts in ('', ', dropouts'):  # the last 15 of 60 frames have no points
            for share in (0.0, 0.2, 0.4):
                predictions = list(bench.predict(frames, anchor_of(
                    frames, ScaleFilter(), share,
                    lambda number, drops=bool(dropouts): drops and number % 60 >= 45)))
                scales = np.array([p.adjustment.scale for p in predictions])
                errors = rmse_of(frames.depth, [p.depth for p in predictions])
                steps = np.exp(np.abs(np.diff(np.log(scales)))) - 1
                cases[f'{share:.0%} outliers{dropouts}'] = {
                    'largest step': steps.max(), 'median step': np.median(steps),
                    'rmse [m]': errors.mean(),
                    'of the oracle scale': errors.mean() / oracle.mean(),
                    'of the oracle scale, from a second after a new room on':
                        errors[settled].mean() / oracle[settled].mean(),
                    'of the best scale': errors.mean() / least}
        result[name] = {
            'frames': len(frames), 'frames in a room': run,
            'rmse without an anchor [m]': rmse_of(frames.depth, plain).mean(),
            'rmse with the oracle scale [m]': oracle.mean(), 'rmse with the best scale [m]': least,
            'cases': cases}
    return result


def recovery(bench: Bench) -> dict[str, Any]:
    """Coverage before and after the camera is mounted lower than where it was calibrated."""
    part = min(50, bench.size.run)
    before, after = 2 * part, 6 * part
    bench.calibrate(bench.usual(ROBOTS['A']))
    shares: dict[str, list[NDArray[np.float64]]] = {'with an anchor': [], 'without': []}
    for number in range(20, 20 + bench.size.changes):
        legs = [bench.frames(drive(robot, number, count // part, count, STEP))
                for robot, count in ((ROBOTS['A'], before), (ROBOTS['C'], after))]
        for way, lines in shares.items():
            scale = ScaleFilter()
            lines.append(np.concatenate([covered(frames, bench.predict(
                frames, anchor_of(frames, scale, begin=begin)
                if way == 'with an anchor' else None))
                for frames, begin in zip(legs, (0, before), strict=True)]))
    return {'drives': bench.size.changes, 'frames before': before, 'frames after': after,
            'frames averaged': part,
            **{way: np.mean(lines, axis=0).reshape(-1, part).mean(axis=1)
               for way, lines in shares.items()}}


def cost(bench: Bench) -> dict[str, Any]:
    """Milliseconds that a frame takes longer, on one thread, by the processor's time.

    In pairs of blocks of frames that follow each other, the first two of a block do not count.
    """
    frames, size = bench.usual(ROBOTS['B']), bench.size
    bench.calibrate(frames, 'full')
    calibration = bench.estimator.config.calibration
    points, threads = range_points(frames.depth[0], 0), torch.get_num_threads()

    def predict() -> DepthPrediction:
        return bench.estimator.predict(frames.rgb[0], intrinsics=frames.camera)

    def block(file: str) -> float:
        bench.use(file, focal=bool(file))
        return float(np.median([_milliseconds(predict) for _ in range(10)][2:]))

    torch.set_num_threads(1)
    try:
        plain, more = np.array([(block(''), block(calibration))
                                for _ in range(max(1, size.rooms // 3))]).T
        prediction, scale = predict(), ScaleFilter()
        anchor = [_milliseconds(partial(
            scale.adjust, i * STEP, points, prediction.patch_depth, prediction.patch_stddev,
            prediction.image_size)) for i in range(4 * size.rooms)]
        stddev = [_milliseconds(prediction.stddev) for _ in range(4 * size.rooms)]
    finally:
        torch.set_num_threads(threads)
    return {
        'predict, zero-shot [ms]': np.median(plain),
        'predict, focal length, calibration and stddev [ms]': np.median(more),
        'focal length, calibration and stddev [ms]': np.median(more - plain),
        'stddev of every pixel, while subscribed [ms]': np.median(stddev),
        f'anchor of {POINTS} points [ms]': np.median(anchor)}


def _milliseconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return 1e3 * (time.process_time() - begin)


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    **{f'robot {name}': partial(measure_robot, which=name) for name in ROBOTS},
    'lenses': lenses, 'anchors': anchors, 'recovery': recovery, 'cost': cost}

# The pages ---------------------------------------------------------------------------------------

PAGES = {'robots.md': ('robots', 'anchors'),
         'notes/robots.md': ('lenses', 'coverage', 'recovery', 'cost', 'runs')}
FIVE, TEN, ALL = '60 frames, 5 rooms', '60 frames, 10 rooms', '200 frames, 200 rooms'
COLUMNS = {  # of the table of robots: calibrated on, and the method
    'words': ('', 'zero-shot'), 'focal length': ('', 'focal length'),
    'focal length, anchor': ('', 'focal length, anchor'),
    'calibrated: 5 rooms': (FIVE, 'calibrated'), '10 rooms': (TEN, 'calibrated'),
    '200 rooms': (ALL, 'calibrated'), '10 rooms, anchor': (TEN, 'calibrated, anchor'),
    'mean map': (TEN, 'mean map')}


def tables(results: Results) -> dict[str, list[str]]:
    """Lines of Markdown by the names of their marks, as far as their figures are there."""
    found = {name: part['measured'] for name, part in results.items() if name in PARTS}
    robots = {name.removeprefix('robot '): part for name, part in found.items()
              if name.startswith('robot ')}
    made = {'robots': _table(['robot', *COLUMNS, 'coverage'], [
        [name, *(_rmse(robot, *column) for column in COLUMNS.values()),
         _percent(robot['coverage'].get(TEN, []))] for name, robot in robots.items()])}
    if 'lenses' in found:
        degrees = list(LENSES)
        made['lenses'] = _table(['calibrated on', 'focal length', *(f'{d}°' for d in degrees)], [
            [on, way, *(f'{rows[f"{d} degrees, {way}"]:.3f}' for d in degrees)]
            for on, rows in found['lenses'].items()
            for way in ('with', 'without', 'camera unknown') if f'63 degrees, {way}' in rows])
    made['coverage'] = _table(
        ['robot', 'calibrated on', 'all', 'by kind of room', 'by decile of depth'], [
            [name, on, _percent(parts), ', '.join(
                f'{kind} {_percent(parts, "by kind of room", kind)}'
                for kind in parts[0]['by kind of room']),
             ' '.join(_percent(parts, 'by decile of depth', i) for i in range(10))]
            for name, robot in robots.items() for on, parts in robot['coverage'].items() if parts])
    if 'anchors' in found:
        cases = list(next(iter(found['anchors'].values()))['cases'])
        rmse = 'rmse {} [m]'.format
        made['anchors'] = _table(['robot', 'no anchor', *cases], [
            [name, *(f'{value:.3f}' for value in (
                rows[rmse('without an anchor')] / rows[rmse('with the oracle scale')],
                *(rows['cases'][case]['of the oracle scale'] for case in cases)))]
            for name, rows in found['anchors'].items()])
    if 'recovery' in found:
        made['recovery'] = _table(['coverage', 'before', '', *('after' for _ in range(6))], [
            [way, *(f'{share:.3f}' for share in found['recovery'][way])]
            for way in ('with an anchor', 'without')])
    if 'cost' in found:
        made['cost'] = _table(['what', 'ms'], [
            [name.removesuffix(' [ms]'), f'{value:.3f}'] for name, value in found['cost'].items()
            if name.endswith('[ms]')])
    made['runs'] = _table(['part', 'machine', 'when', 'seconds'], [
        [name, f'{part["machine"]}, {part["cores"]} cores, torch {part["versions"]["torch"]}',
         part['date'][:10], f'{part["seconds"]:.0f}']
        for name, part in results.items() if name in PARTS])
    return made


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f'| {" | ".join(cells)} |' for cells in (head, ['---'] * len(head), *rows)]


def _rmse(robot: Results, on: str, method: str) -> str:
    rows = robot['drives'].get(on, {}) if on else robot['rows']
    return f'{rows[method]["rmse [m]"]:.3f}' if method in rows else ''


def _percent(parts: Sequence[Any], *keys: Any) -> str:
    values = [functools.reduce(operator.getitem, keys or ('all',), part) for part in parts]
    return f'{100 * np.mean(values):.0f} %' if values else ''


def filled(page: str, results: Results, names: Iterable[str]) -> str:
    """A page with some tables made anew, where it has marks for them."""
    made = tables(results)
    for name in names:
        rows = made.get(name, [])
        begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        if begin in page:
            before, rest = page.split(begin)
            page = '\n'.join((before + begin, *rows, end)) + rest.split(end)[1]
    return page


def plot(results: Results, path: Path) -> None:
    """Draw rmse by robot and method."""
    import matplotlib as mpl
    mpl.use('Agg')
    from matplotlib import pyplot as plt
    robots = {name: part['measured'] for name, part in results.items() if name.startswith('robot')}
    figure, axes = plt.subplots(figsize=(10, 4))
    shown = [name for name in COLUMNS if any(_rmse(r, *COLUMNS[name]) for r in robots.values())]
    width = 0.8 / len(shown)
    for i, name in enumerate(shown):
        axes.bar([place - 0.4 + (i + 0.5) * width for place in range(len(robots))],
                 [float(_rmse(robot, *COLUMNS[name]) or 'nan') for robot in robots.values()],
                 width, label=name)
    axes.set_xticks(range(len(robots)), [
        f'{name}:\n{robot["title"]}'.replace(', ', ',\n').replace(' instead', '\ninstead')
        for name, robot in robots.items()], fontsize=8)
    axes.set(ylabel='rmse [m], mean over rooms')
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, keep, show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cache', type=Path, default=Path('build/robots'),
                        help='folder of rendered frames, 4 GB; default %(default)s')
    parser.add_argument('--processes', type=int, default=2, help='that render')
    parser.add_argument('--only', nargs='+', choices=PARTS, default=list(PARTS),
                        metavar='PART', help=f'of {", ".join(PARTS)}')
    parser.add_argument('--tiny', action='store_true', help='a few rooms, to try the script')
    parser.add_argument('--tables', action='store_true',
                        help='measure nothing: write tables and plot from docs/robots.json')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='instead of docs/')
    options = parser.parse_args()
    figures = options.out / 'robots.json'
    results = json.loads(figures.read_text(encoding='utf-8')) if figures.exists() else {}
    if not options.tables:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(options.cache, options.processes, Path(folder),
                          TINY if options.tiny else Size())
            for name in options.only:
                about, begin = machine.describe(), time.perf_counter()
                measured = PARTS[name](bench)
                results[name] = machine.plain({
                    **about, 'seconds': time.perf_counter() - begin, 'size': vars(bench.size),
                    'measured': measured})
                sys.stderr.write(f'{name}: {results[name]["seconds"]:.0f} s\n')
                options.out.mkdir(parents=True, exist_ok=True)
                figures.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n',
                                   encoding='utf-8')
    for page, names in PAGES.items():
        text = next((path.read_text(encoding='utf-8') for path in (
            options.out / page, ROOT / 'docs' / page) if path.exists()), '')
        if text:
            (options.out / page).parent.mkdir(parents=True, exist_ok=True)
            (options.out / page).write_text(filled(text, results, names), encoding='utf-8')
    plot(results, options.out / 'robots' / 'methods.png')


if __name__ == '__main__':
    main()
