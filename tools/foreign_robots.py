# SPDX-License-Identifier: Apache-2.0
"""Depth on robots that the model was not made for: measured, with controls, in rendered rooms.

    python tools/foreign_robots.py --cache build/robots               everything
    python tools/foreign_robots.py --only lenses                      one part anew
    python tools/foreign_robots.py --only                             tables and the plot alone

Results go to docs/robots.json, part by part, each with the machine that measured it, and from
there into the marked tables of docs/robots.md and docs/notes/robots.md and into
docs/robots/methods.png. All parts take about 8 minutes of processor time, and rendering 7.
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
from depthclip_ros.core import CameraImage, DepthEstimator  # noqa: E402
from depthclip_ros.core.anchor import Adjustment, Points, ScaleFilter  # noqa: E402
from depthclip_ros.core.camera import CameraModel  # noqa: E402
from depthclip_ros.core.prediction import DepthPrediction  # noqa: E402
from depthclip_ros.evaluation.metrics import metrics_of, named, score  # noqa: E402
from depthclip_ros.messages.config import read_config  # noqa: E402
from depthclip_ros.sim import (  # noqa: E402
    KINDS,
    Mount,
    RenderOptions,
    Scene,
    SimCamera,
    render,
    trajectory,
)

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
    """Drive through rooms of its own (by its number), one after the other, as many frames in each.

    `frames` are of all rooms; `step` is the seconds between two, 0: a loop of each room evenly.
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
                      shots[0].robot.model())


# What is measured with ---------------------------------------------------------------------------

POINTS, POINT_NOISE, OUTLIERS = 20, 0.03, 0.1
FARTHEST = 100.0  # metres: nothing is cut off
QUANTILE = 1.645  # standard deviations that hold 90 %
STEP = 0.1  # seconds between the frames of a drive that an anchor follows


@dataclass(frozen=True)
class Size:
    """How much is measured; a drive to calibrate on is so many frames of so many rooms."""

    rooms: int = 300  # unseen ones, one frame of each
    plan: tuple[tuple[int, int, int], ...] = (  # with the number of drives of each kind
        (60, 5, 2), (60, 10, 2), (200, 20, 1), (200, 200, 1))
    usual: tuple[int, int] = (60, 10)  # of the drive that lenses and anchors calibrate on
    run: int = 100  # frames in each room of a drive whose frames follow each other closely


TINY = Size(rooms=3, plan=((10, 5, 1),), usual=(10, 5), run=2)


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
        """To be measured on."""
        return self.frames(unseen(robot, self.size.rooms))

    def usual(self, robot: Robot) -> Frames:
        """That all but the robots' own parts calibrate on."""
        frames, rooms = self.size.usual
        return self.frames(drive(robot, 0, rooms, frames))

    def calibrate(self, frames: Frames, *, focal: bool = True) -> None:
        """Calibrate as `depthclip calibrate` does, and predict so from now on."""
        self.use(focal=focal)
        fitted = fit(self.estimator, [
            Frame(rgb, truth, frames.camera, Moment(0.0, int(room)))
            for rgb, truth, room in zip(frames.rgb, frames.depth, frames.rooms, strict=True)],
            source='rendered rooms', log=lambda _: None)
        self.use(str(fitted.calibration.save(self._folder, 'robot')), focal=focal)

    def use(self, calibration: str = '', *, focal: bool = True) -> None:
        """Predict with a calibration's file from now on, '': none."""
        self.estimator.reconfigure(self._config.replace(
            calibration=calibration,
            reference_focal=self._config.reference_focal if focal else 0.0))

    def predict(
        self, frames: Frames, anchor: Callable[[int], Any] | None = None, *, known: bool = True,
    ) -> Iterator[DepthPrediction]:
        """Predict frame by frame; `anchor` gives a frame's, `known`: the camera is."""
        for number, rgb in enumerate(frames.rgb):
            yield self.estimator.predict(CameraImage(
                rgb, frames.camera if known else None,
                None if anchor is None else anchor(number)))

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
    silent: Callable[[int], bool] = lambda _: False,
) -> Callable[[int], Any]:
    """Anchors of frames that follow each other, by `scale`; None: every image by itself.

    `outliers`: share of the points; `silent`: whether there are none in a frame.
    """
    def anchor(number: int) -> Any:
        points = None if silent(number) else range_points(frames.depth[number], number, outliers)
        follower = scale or ScaleFilter()

        def adjust(*about: Any) -> Adjustment:
            adjustment, follower.state = follower.adjust(number * STEP, points, *about)
            return adjustment
        return adjust
    return anchor


def scores(truth: Float32, depth: Iterable[Float32]) -> dict[str, NDArray[np.float64]]:
    """(N,) of every image, by metric.

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
    return {name: np.array([of_one[name] for of_one in found]) for name in ('d1', 'rmse', 'rel')}


def row(truth: Float32, depth: Iterable[Float32]) -> dict[str, Any]:
    """All that the tables say of a method: means over images."""
    return {name + ' [m]' * (name == 'rmse'): values.mean()
            for name, values in scores(truth, depth).items()}


def coverage(frames: Frames, predictions: Sequence[DepthPrediction]) -> dict[str, Any]:
    """Shares of pixels within 1.645 standard deviations: all, by kind of room, and of depth."""
    inside = np.stack([np.abs(p.depth - true) <= QUANTILE * p.stddev()
                       for p, true in zip(predictions, frames.depth, strict=True)])
    shares, kinds = inside.mean((1, 2)), np.array([kind_of(r) for r in frames.rooms])
    order = np.stack([p.depth[::4, ::4] for p in predictions]).ravel().argsort(kind='stable')
    return {
        'all': shares.mean(),
        'by kind of room': {
            str(kind): shares[kinds == kind].mean() for kind in sorted(set(kinds))},
        'by decile of depth': [inside[:, ::4, ::4].ravel()[part].mean()
                               for part in np.array_split(order, 10)]}


# The parts ---------------------------------------------------------------------------------------


def measure_robot(bench: Bench, which: str) -> dict[str, Any]:
    """A foreign robot: zero-shot, focal length, calibrated, anchored, and the mean map."""
    robot, size = ROBOTS[which], bench.size
    test = bench.unseen(robot)
    bench.use(focal=False)
    rows = {'zero-shot': row(test.depth, bench.depth(test))}
    bench.use()
    rows['focal length'] = row(test.depth, bench.depth(test))
    rows['focal length, anchor'] = row(test.depth, bench.depth(test, anchor_of(test)))
    drives: dict[str, dict[str, Any]] = {}
    covers = defaultdict(list)
    for count, rooms, several in size.plan:
        name, found = named_drive(count, rooms), defaultdict(list)
        for number in range(several):
            frames = bench.frames(drive(robot, number, rooms, count))
            bench.calibrate(frames)
            predictions = list(bench.predict(test))
            covers[name].append(coverage(test, predictions))
            found['calibrated'].append(row(test.depth, [p.depth for p in predictions]))
            found['calibrated, anchor'].append(
                row(test.depth, bench.depth(test, anchor_of(test))))
            if not number:  # the control is of one drive of each kind
                found['mean map'].append(
                    row(test.depth, [frames.depth.mean(axis=0)] * len(test)))
        drives[name] = {method: {key: np.mean([of_one[key] for of_one in of_all])
                                 for key in of_all[0]} for method, of_all in found.items()}
    return {'title': robot.title, 'rows': rows, 'drives': drives, 'coverage': covers}


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
            rows.update({f'{degrees} degrees, {way}': row(
                test.depth, bench.depth(test, known=known))['rmse [m]']
                for degrees, test in tests.items()})
    return result


def anchors(bench: Bench) -> dict[str, Any]:
    """An anchor that follows a drive: how it steps, and what is lost against an oracle's scale."""
    result: dict[str, Any] = {}
    run = bench.size.run
    for name in 'AB':
        frames = bench.frames(drive(ROBOTS[name], 10, 4, 4 * run, STEP))
        bench.calibrate(bench.usual(ROBOTS[name]))
        plain = bench.depth(frames)
        oracle = row(frames.depth, [
            depth * np.float32(float(np.median(true / depth)))
            for true, depth in zip(frames.depth, plain, strict=True)])['rmse [m]']
        cases: dict[str, Any] = {}
        for dropouts in ('', ', dropouts'):  # the last 15 of 60 frames have no points
            for share in (0.0, 0.2, 0.4):
                predictions = list(bench.predict(frames, anchor_of(
                    frames, ScaleFilter(), share,
                    lambda number, drops=bool(dropouts): drops and number % 60 >= 45)))
                scales = np.array([p.adjustment.scale for p in predictions])
                rmse = row(frames.depth, [p.depth for p in predictions])['rmse [m]']
                cases[f'{share:.0%} outliers{dropouts}'] = {
                    'largest step': (np.exp(np.abs(np.diff(np.log(scales)))) - 1).max(),
                    'rmse [m]': rmse, 'of the oracle scale': rmse / oracle}
        result[name] = {
            'frames': len(frames), 'frames in a room': run,
            'rmse without an anchor [m]': row(frames.depth, plain)['rmse [m]'],
            'rmse with the oracle scale [m]': oracle, 'cases': cases}
    return result


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    **{f'robot {name}': partial(measure_robot, which=name) for name in ROBOTS},
    'lenses': lenses, 'anchors': anchors}

# The pages ---------------------------------------------------------------------------------------

PAGES = 'robots.md', 'notes/robots.md'
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


def filled(page: str, results: Results) -> str:
    """A page with its tables made anew, where it has marks for them."""
    for name, rows in tables(results).items():
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
    parser.add_argument('--only', nargs='*', choices=PARTS, default=list(PARTS), metavar='PART',
                        help=f'of {", ".join(PARTS)}; none: tables and the plot alone')
    parser.add_argument('--tiny', action='store_true', help='a few rooms, to try the script')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='instead of docs/')
    options = parser.parse_args()
    figures = options.out / 'robots.json'
    results = json.loads(figures.read_text(encoding='utf-8')) if figures.exists() else {}
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
    for page in PAGES:
        text = next((path.read_text(encoding='utf-8') for path in (
            options.out / page, ROOT / 'docs' / page) if path.exists()), '')
        (options.out / page).parent.mkdir(parents=True, exist_ok=True)
        (options.out / page).write_text(filled(text, results), encoding='utf-8')
    plot(results, options.out / 'robots' / 'methods.png')


if __name__ == '__main__':
    main()
