# SPDX-License-Identifier: Apache-2.0
"""Depth on robots that the model was not made for: measured, with controls, in rendered rooms.

    python tools/foreign_robots.py                      everything
    python tools/foreign_robots.py --only lenses        one part anew
    python tools/foreign_robots.py --only               the tables alone

Results go to docs/robots.json, part by part, each with the machine that measured it, and from
there into the marked tables of docs/robots.md and docs/notes/robots.md. Calibrations are those of
`depthclip calibrate`, scores those of `offline_eval`: means over images, each of its own room.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import machine, rooms  # noqa: E402
from depthclip_ros import sim  # noqa: E402
from depthclip_ros.calibrate.errorbars import QUANTILE_STDDEVS  # noqa: E402
from depthclip_ros.calibrate.fit import fit  # noqa: E402
from depthclip_ros.calibrate.recordings import Frame, Moment  # noqa: E402
from depthclip_ros.core import CameraImage, DepthEstimator  # noqa: E402
from depthclip_ros.core.anchor import Adjustment, Points, ScaleFilter  # noqa: E402
from depthclip_ros.core.camera import CameraModel  # noqa: E402
from depthclip_ros.core.prediction import DepthPrediction  # noqa: E402
from depthclip_ros.evaluation.metrics import Float32, by_name  # noqa: E402
from depthclip_ros.messages.node_config import read_config  # noqa: E402

Results = Mapping[str, Any]

# Worlds ------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 320, 240
USUAL = sim.SimCamera().scaled(WIDTH, HEIGHT)
LOW = sim.Mount(height=(0.35, 0.35), pitch=(0.07, 0.27))
# All below 1,000,000: training saw none of them; the temperature is from rooms 20000 to 20149.
FIRST_TEST_ROOM, FIRST_DRIVE_ROOM, ROOMS_OF_A_DRIVE = 60_000, 100_000, 1_000
INSTEAD = 100 * len(sim.KINDS)  # from a room without a place for the camera to another one
LOOP = 22.8  # seconds that a drive spends in a room: about one loop


class Robot(NamedTuple):
    """A camera on a robot, and the gain of its exposure."""

    title: str
    camera: sim.SimCamera = USUAL
    mount: sim.Mount = sim.Mount()
    exposure: float = 1.0

    def model(self) -> CameraModel:
        """The camera's intrinsics, as camera_info has them."""
        c = self.camera
        pinhole = CameraModel.pinhole(c.width, c.height, c.fx, c.fy, c.cx, c.cy)
        return replace(pinhole, D=np.array(c.distortion), distortion_model='plumb_bob') \
            if any(c.distortion) else pinhole


def wide(degrees: float, height: int = HEIGHT) -> sim.SimCamera:
    """A camera of square pixels without distortion, so many degrees wide."""
    focal = WIDTH / 2 / math.tan(math.radians(degrees / 2))
    return sim.SimCamera(WIDTH, height, focal, focal, (WIDTH - 1) / 2, (height - 1) / 2)


ROBOTS = {
    'A': Robot('the training camera'),
    'B': Robot('90 degrees wide instead of 63', wide(90)),
    'C': Robot('0.35 m high instead of 1.4, pitched up', mount=LOW),
    'D': Robot('both', wide(90), LOW),
    'E': Robot('half the exposure, a lens that distorts', replace(
        USUAL, distortion=(-0.25, 0.06, 0.001, -0.001, 0.0)), exposure=0.5)}
LENSES = {63: ROBOTS['A'], 50: Robot('', wide(50)), 75: Robot('', wide(75)), 90: ROBOTS['B']}
BARREL, PINCUSHION = (-0.25, 0.06, 0.0, 0.0, 0.0), (0.2, -0.03, 0.0, 0.0, 0.0)
WIDE_PICTURE = WIDTH * 9 // 16
CAMERAS = {
    '63°, as in training': USUAL, '40°': wide(40), '50°': wide(50), '75°': wide(75),
    '90°': wide(90), '110°': wide(110), '63°, barrel': replace(USUAL, distortion=BARREL),
    '63°, pincushion': replace(USUAL, distortion=PINCUSHION),
    '90°, barrel': replace(wide(90), distortion=BARREL),
    '16:9, 69°, stretched': wide(69, WIDE_PICTURE),
    '16:9, 90°, stretched': wide(90, WIDE_PICTURE), '1:1, 50°, stretched': wide(50, WIDTH)}
SCALES = np.geomspace(0.6, 1.7, 43)  # tried for the best; 2.5 % apart


def free_rooms(mount: sim.Mount, first: int, count: int) -> list[int]:
    """So many rooms, kinds in turn; one without a place for the camera has another instead."""
    def has_place(room: int) -> bool:
        try:
            return bool(sim.trajectory(
                sim.Scene.generate(sim.KINDS[room % len(sim.KINDS)], room), room, mount))
        except RuntimeError:
            return False
    return [next(filter(has_place, itertools.count(room, INSTEAD)))
            for room in range(first, first + count)]


def rendered(robot: Robot, room: int, seconds: float) -> Frame:
    """The same room and seconds of a robot are the same bytes."""
    frame = rooms.view(room, seconds, robot.camera, robot.mount, sim.RenderOptions(
        robot.exposure, rooms.NOISE, room * 1000 + round(40 * seconds)))
    return Frame(frame.rgb, frame.depth, robot.model(), Moment(0.0, room, frame.kind))


def unseen(robot: Robot, count: int) -> list[Frame]:
    """One frame each of so many rooms that nothing was trained, chosen or calibrated in."""
    return [rendered(robot, room, float(i % 23))
            for i, room in enumerate(free_rooms(robot.mount, FIRST_TEST_ROOM, count))]


def drive(robot: Robot, number: int, frames: int, places: int, step: float = 0.0) -> list[Frame]:
    """Drive through the rooms of its number, so many, with as many of the frames in each.

    `step` is the seconds between two frames; 0: evenly over a loop of each room.
    """
    each = math.ceil(frames / places)
    through = free_rooms(robot.mount, FIRST_DRIVE_ROOM + number * ROOMS_OF_A_DRIVE, places)
    return [rendered(robot, through[i // each], i % each * (step or LOOP / each))
            for i in range(frames)]


# What is measured with ---------------------------------------------------------------------------

STEP = 0.1  # seconds between the frames of a drive that an anchor follows
WAYS = {'with': (True, True), 'without': (False, True), 'camera unknown': (True, False)}
CASES = {f'{share:.0%} outliers{", dropouts" * dropouts}': (share, dropouts)
         for dropouts in (False, True) for share in (0.0, 0.2, 0.4)}


# How much is measured: unseen rooms, one frame of each; frames, rooms and number of the drives to
# calibrate on; frames and rooms of the drive that lenses and anchors calibrate on; frames in each
# room of a drive whose frames follow each other closely.
FULL = SimpleNamespace(
    rooms=300, plan=((60, 5, 2), (60, 10, 2), (200, 20, 1), (200, 200, 1)), usual=(60, 10),
    run=100)
TINY = SimpleNamespace(rooms=3, plan=((10, 5, 1),), usual=(10, 5), run=2)


class Bench:
    """An estimator of the demo model with its own settings, that can be calibrated."""

    def __init__(self, size: SimpleNamespace) -> None:
        """Load the model."""
        self.size, self._config = size, read_config(ROOT / 'config' / 'demo.yaml')[0]
        self._estimator = DepthEstimator(self._config, 'demo', 'cpu')

    def use(self, frames: Iterable[Frame] = (), *, focal: bool = True) -> None:
        """Predict from now on as `depthclip calibrate` corrects it on frames; none: zero-shot."""
        config = self._config if focal else self._config.replace(reference_focal=0.0)
        self._estimator.reconfigure(config)
        if frames:
            fitted = fit(self._estimator, frames, source='rendered rooms', log=lambda _: None)
            with tempfile.TemporaryDirectory() as folder:
                self._estimator.reconfigure(config.replace(
                    calibration=str(fitted.calibration.save(Path(folder), 'robot'))))

    def predict(self, frames: Iterable[Frame], anchors: Iterable[Any] = (), *,
                known: bool = True) -> list[DepthPrediction]:
        """Predict every frame, with an anchor of each or without; `known`: the camera is."""
        return [self._estimator.predict(CameraImage(f.rgb, f.camera if known else None, anchor))
                for f, anchor in zip(frames, anchors or itertools.repeat(None), strict=False)]

    def row(self, frames: Sequence[Frame], *about: Any, **more: Any) -> dict[str, float]:
        """Scores of `predict`."""
        return row(frames, [p.depth for p in self.predict(frames, *about, **more)])


def range_points(depth: Float32, seed: int, outliers: float = 0.1, count: int = 20) -> Points:
    """What a range sensor says of (H, W) metres: a few places, noisy, some of them quite wrong."""
    rng = np.random.default_rng([seed, 20])
    v, u = (rng.integers(0, size, count) for size in depth.shape)
    z = depth[v, u] * np.exp(0.03 * rng.standard_normal(count))
    is_outlier = rng.permutation(count) < round(outliers * count)
    return Points(u.astype(float), v.astype(float),
                  np.where(is_outlier, rng.uniform(0.3, 10.0, count), z))


def anchors_of(frames: Sequence[Frame], scale: ScaleFilter | None = None, outliers: float = 0.1,
               *, dropouts: bool = False) -> Iterator[Callable[..., Adjustment]]:
    """Anchors of frames that follow each other, by `scale`; None: every image by itself.

    `outliers`: share of the points; `dropouts`: the last 15 of 60 frames have no points.
    """
    def adjust(number: int, points: Points | None, *about: Any) -> Adjustment:
        follower = scale or ScaleFilter()
        adjustment, follower.state = follower.adjust(number * STEP, points, *about)
        return adjustment
    for i, frame in enumerate(frames):
        silent = dropouts and i % 60 >= 45
        yield partial(adjust, i, None if silent else range_points(frame.depth, i, outliers))


def row(frames: Sequence[Frame], depth: Iterable[Float32]) -> dict[str, float]:
    """All that the tables say of a method: means over images."""
    every = [rooms.scores(p, frame.depth) for p, frame in zip(depth, frames, strict=True)]
    mean = by_name(np.mean(every, axis=0))
    return {'d1': mean['d1'], 'rmse [m]': mean['rmse'], 'rel': mean['rel']}


def coverage(frames: Sequence[Frame], predictions: Sequence[DepthPrediction]) -> dict[str, Any]:
    """Shares of pixels within 1.645 standard deviations: all, by kind of room, and of depth."""
    inside = np.stack([np.abs(p.depth - frame.depth) <= QUANTILE_STDDEVS * p.stddev()
                       for p, frame in zip(predictions, frames, strict=True)])
    shares, kinds = inside.mean((1, 2)), np.array([frame.moment.name for frame in frames])
    order = np.stack([p.depth[::4, ::4] for p in predictions]).ravel().argsort(kind='stable')
    return {'all': shares.mean(), 'by kind of room': {
        str(kind): shares[kinds == kind].mean() for kind in np.unique(kinds)},
        'by decile of depth': [inside[:, ::4, ::4].ravel()[part].mean()
                               for part in np.array_split(order, 10)]}


# The parts ---------------------------------------------------------------------------------------


def measure_robot(bench: Bench, robot_name: str) -> dict[str, Any]:
    """A foreign robot: zero-shot, focal length, calibrated, anchored, and the mean map."""
    robot = ROBOTS[robot_name]
    test = unseen(robot, bench.size.rooms)
    bench.use(focal=False)
    zero_shot = bench.row(test)
    bench.use()
    rows = {'zero-shot': zero_shot, 'focal length': bench.row(test),
            'focal length, anchor': bench.row(test, anchors_of(test))}
    drives, covers = {}, defaultdict(list)
    for *size, several in bench.size.plan:
        name, methods = '{} frames, {} rooms'.format(*size), defaultdict(list)
        for number in range(several):
            frames = drive(robot, number, *size)
            bench.use(frames)
            predictions = bench.predict(test)
            covers[name].append(coverage(test, predictions))
            methods['calibrated'].append(row(test, [p.depth for p in predictions]))
            methods['calibrated, anchor'].append(bench.row(test, anchors_of(test)))
            if not number:  # the control is of one drive of each kind
                mean = np.mean([frame.depth for frame in frames], axis=0)
                methods['mean map'].append(row(test, [mean] * len(test)))
        drives[name] = {method: {key: np.mean([one[key] for one in every]) for key in every[0]}
                        for method, every in methods.items()}
    return {'title': robot.title, 'rows': rows, 'drives': drives, 'coverage': covers}


def lenses(bench: Bench) -> dict[str, Any]:
    """Rmse in metres, calibrated with the training camera's lens and run with others."""
    tests = {degrees: unseen(robot, bench.size.rooms) for degrees, robot in LENSES.items()}
    frames = drive(ROBOTS['A'], 0, *bench.size.usual)
    result: dict[str, Any] = {'{} frames, {} rooms'.format(*bench.size.usual): {}, 'zero-shot': {}}
    for way, (focal, known) in WAYS.items():
        for on, rows in result.items():
            bench.use(() if on == 'zero-shot' else frames, focal=focal)
            rows.update({f'{degrees} degrees, {way}': bench.row(test, known=known)['rmse [m]']
                         for degrees, test in tests.items()})
    return result


def anchors(bench: Bench) -> dict[str, Any]:
    """An anchor that follows a drive: how it steps, and what is lost against an oracle's scale."""
    result: dict[str, Any] = {}
    for name in 'AB':
        frames = drive(ROBOTS[name], 10, 4 * bench.size.run, 4, STEP)
        bench.use(drive(ROBOTS[name], 0, *bench.size.usual))
        plain = [p.depth for p in bench.predict(frames)]
        oracle = row(frames, [
            depth * np.float32(np.median(frame.depth / depth))
            for frame, depth in zip(frames, plain, strict=True)])['rmse [m]']
        cases = {}
        for case, (share, dropouts) in CASES.items():
            predictions = bench.predict(
                frames, anchors_of(frames, ScaleFilter(), share, dropouts=dropouts))
            scales = np.log([p.adjustment.scale for p in predictions])
            rmse = row(frames, [p.depth for p in predictions])['rmse [m]']
            cases[case] = {
                'largest step': np.expm1(np.abs(np.diff(scales)).max()), 'rmse [m]': rmse,
                'of the oracle scale': rmse / oracle}
        result[name] = {
            'frames': len(frames), 'frames in a room': bench.size.run,
            'rmse without an anchor [m]': row(frames, plain)['rmse [m]'],
            'rmse with the oracle scale [m]': oracle, 'cases': cases}
    return result


def cameras(bench: Bench) -> dict[str, Any]:
    """Rmse in metres of other cameras, zero-shot: without and with focal length, best scale."""
    result = {}
    for name, camera in CAMERAS.items():
        test = unseen(Robot(name, camera), bench.size.rooms)
        bench.use(focal=False)
        without = bench.row(test)['rmse [m]']
        bench.use()
        depth = [p.depth for p in bench.predict(test)]
        scaled = [row(test, [scale * p for p in depth])['rmse [m]'] for scale in (1.0, *SCALES)]
        result[name] = {'without': without, 'with': scaled[0], 'best scale': min(scaled)}
    return result


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    **{f'robot {name}': partial(measure_robot, robot_name=name) for name in ROBOTS},
    'lenses': lenses, 'anchors': anchors, 'cameras': cameras}

# The pages ---------------------------------------------------------------------------------------

FIVE, TEN, ALL = '60 frames, 5 rooms', '60 frames, 10 rooms', '200 frames, 200 rooms'
COLUMNS = {  # of the table of robots, beside those of `rows`: calibrated on, and the method
    'calibrated: 5 rooms': (FIVE, 'calibrated'), '10 rooms': (TEN, 'calibrated'),
    '200 rooms': (ALL, 'calibrated'), '10 rooms, anchor': (TEN, 'calibrated, anchor'),
    'mean map': (TEN, 'mean map')}
SCALE_COLUMNS = 'without', 'with', 'best scale'
DECILES = [f'{place}.' for place in range(1, 11)]


def tables(results: Results) -> dict[str, list[list[str]]]:
    """Cells by the names of their marks, the head first."""
    measured = {name: part['measured'] for name, part in results.items()}
    robots = {name[-1]: part for name, part in measured.items() if name.startswith('robot ')}
    return {
        'robots': [['robot', 'words', 'focal length', 'focal length, anchor', *COLUMNS,
                    'coverage'], *([
                        name, *map(_rmse, robot['rows'].values()),
                        *(_rmse(robot['drives'].get(on, {}).get(method))
                          for on, method in COLUMNS.values()),
                        *_shares(robot['coverage'].get(TEN))[:1]]
            for name, robot in robots.items())],
        'coverage': [['robot', 'calibrated on', 'all', *sorted(sim.KINDS), *DECILES], *(
            [name, on, *_shares(parts)]
            for name, robot in robots.items() for on, parts in robot['coverage'].items())],
        'lenses': [['calibrated on', 'focal length', *(f'{d}°' for d in LENSES)], *(
            [on, way, *(f'{rows[f"{d} degrees, {way}"]:.3f}' for d in LENSES)]
            for on, rows in measured.get('lenses', {}).items() for way in WAYS)],
        'anchors': [['robot', 'no anchor', *CASES], *([name, *(f'{ratio:.3f}' for ratio in (
            rows['rmse without an anchor [m]'] / rows['rmse with the oracle scale [m]'],
            *(rows['cases'][case]['of the oracle scale'] for case in CASES)))]
            for name, rows in measured.get('anchors', {}).items())],
        'cameras': [['camera', *SCALE_COLUMNS], *(
            [name, *(f'{rows[column]:.3f}' for column in SCALE_COLUMNS)]
            for name, rows in measured.get('cameras', {}).items())]}


def _rmse(values: Mapping[str, float] | None) -> str:
    return f'{values["rmse [m]"]:.3f}' if values else ''


def _shares(parts: Sequence[Results] | None) -> list[str]:
    """Means over drives: of all pixels, by kind of room, by decile of depth."""
    return [f'{100 * mean:.0f} %' for mean in np.mean([
        [part['all'], *part['by kind of room'].values(), *part['by decile of depth']]
        for part in parts], axis=0)] if parts else ['']


def filled(page: str, results: Results) -> str:
    """A page with its tables made anew, where it has marks for them."""
    for name, (head, *rows) in tables(results).items():
        begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        if begin in page:
            before, rest = page.split(begin)
            lines = [f'| {" | ".join(cells)} |' for cells in (head, ['---'] * len(head), *rows)]
            page = '\n'.join((before + begin, *lines, end)) + rest.split(end)[1]
    return page


def main() -> None:
    """Measure, record, show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='*', choices=PARTS, default=list(PARTS), metavar='PART',
                        help=f'of {", ".join(PARTS)}; none: the tables alone')
    parser.add_argument('--tiny', action='store_true', help='a few rooms, to try the script')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='instead of docs/')
    options = parser.parse_args()
    record = options.out / 'robots.json'
    results = json.loads(record.read_text(encoding='utf-8')) if record.exists() else {}
    bench = Bench(TINY if options.tiny else FULL)
    for name in options.only:
        about, begin = machine.describe(), time.perf_counter()
        measured = PARTS[name](bench)
        results[name] = machine.plain({
            **about, 'seconds': time.perf_counter() - begin, 'size': vars(bench.size),
            'measured': measured})
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n', 'utf-8')
    for page in ('robots.md', 'notes/robots.md', 'scale.md'):
        text = (ROOT / 'docs' / page).read_text(encoding='utf-8')
        (options.out / page).parent.mkdir(parents=True, exist_ok=True)
        (options.out / page).write_text(filled(text, results), encoding='utf-8')


if __name__ == '__main__':
    main()
