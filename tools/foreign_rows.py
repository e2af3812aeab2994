# SPDX-License-Identifier: Apache-2.0
"""The measurements of `foreign_robots.py`, a function for each part of its page."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from foreign_bench import Bench, Drive, following, one_image, range_points
from foreign_scores import Coverage, Sheet, mean_of, rmse_of, sums_of
from foreign_worlds import LENSES, ROBOTS, Frames
from numpy.typing import NDArray

from depthclip_ros.core.anchor import ScaleFilter
from depthclip_ros.core.estimator import DepthPrediction
from depthclip_ros.core.projection import upsample

LOWER = ROBOTS['C']
BASE, FOCAL, CALIBRATED = 'zero-shot', 'focal length', 'calibrated'
ANCHORED, ORACLE = 'calibrated, anchor', 'calibrated, best scale'
FITTED_CONTROLS: dict[str, dict[str, Any]] = {
    'one scale': {'variant': 'scale'},
    'calibrated on shuffled depth': {'variant': 'full', 'shuffled': True}}
MAX_STEP = 0.1  # seconds between the frames of a drive that an anchor follows
ROOMS_FOLLOWED = 4
DROPOUT_PERIOD, DROPOUT = 60, 15  # frames: the last of each period have no points
SHARES = (0.0, 0.2, 0.4)  # of outliers
BLOCK = 10  # predictions one way, before as many the other way; the first two do not count
ADDED = 'focal length, calibration and stddev [ms]'
BEFORE, AFTER, PART = 100, 300, 50  # frames before and after a change, and averaged


def robot(bench: Bench, which: str) -> dict[str, Any]:
    """A foreign robot: zero-shot, focal length, calibrated, anchored, and their controls."""
    test, drives = bench.unseen(ROBOTS[which]), bench.drives(ROBOTS[which])
    sheet = Sheet(test.depth)
    bench.use(focal=False)
    sheet.add(BASE, _depth(bench.predict(test)))
    bench.use()
    own, anchored, _ = _both(bench, test)
    for name, depth in {
            FOCAL: own, 'focal length, picture of another room': np.roll(own, len(own) // 2, 0),
            'focal length, best scale': _best_scale(own, test.depth),
            'focal length, anchor': anchored}.items():
        sheet.add(name, depth)
    rows = {name: sheet.row(name, BASE) for name in sheet.sums}
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    verdicts: dict[str, list[Any]] = defaultdict(list)
    coverage: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for drive in drives:
        calibration, said = bench.calibrate(drive.frames)
        verdicts[drive.name].append(said)
        bench.use(calibration)
        depth, anchored, covered = _both(bench, test)
        coverage[drive.name].append(covered.summary())
        maps = {CALIBRATED: depth, ANCHORED: anchored}
        if drive.name not in found:  # of one drive of each kind
            maps |= {ORACLE: _best_scale(depth, test.depth), **_controls(drive, test)}
            for name, options in FITTED_CONTROLS.items():
                if drive.name == bench.usual_name:
                    bench.use(bench.calibrate(drive.frames, **options)[0])
                    maps[name] = _depth(bench.predict(test))
        for name, of_all in maps.items():
            sheet.add(name, of_all)
            found[drive.name][name].append(sheet.row(name, BASE))
    return {
        'title': ROBOTS[which].title, 'rows': rows,
        'drives': {drive: {method: mean_of(rows) for method, rows in methods.items()}
                   for drive, methods in found.items()},
        'verdicts': dict(verdicts),
        'coverage': {name: [part for part in parts if part] for name, parts in coverage.items()}}


def _both(
    bench: Bench, test: Frames,
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], Coverage]:
    """Depth without and with an anchor, and coverage without."""
    plain, covered = [], Coverage(test.kinds)
    for truth, prediction in zip(test.depth, bench.predict(test), strict=True):
        plain.append(prediction.depth)
        covered.add(prediction.depth, prediction.stddev(), truth)
    return plain, _depth(bench.predict(test, one_image(test))), covered


def _controls(drive: Drive, test: Frames) -> dict[str, Iterable[NDArray[np.float32]]]:
    """What never looks at an image."""
    mean_map = drive.frames.depth.mean(axis=0)
    return {'mean map': [mean_map] * len(test), 'mean map, anchor': _anchored_map(mean_map, test)}


def _depth(predictions: Iterable[DepthPrediction]) -> list[NDArray[np.float32]]:
    return [prediction.depth for prediction in predictions]


def _best_scale(
    depth: Sequence[NDArray[np.float32]], truth: NDArray[np.float32],
) -> list[NDArray[np.float32]]:
    """Every image times the scale with the least rmse: no scale can do better."""
    return [image * np.float32(best_scale(image, true))
            for image, true in zip(depth, truth, strict=True)]


def best_scale(depth: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """The scale of an image with the least rmse."""
    flat, true = depth.ravel().astype(np.float64), truth.ravel().astype(np.float64)
    return float(flat @ true / (flat @ flat))


def _anchored_map(
    mean_map: NDArray[np.float32], test: Frames,
) -> Iterable[NDArray[np.float32]]:
    """The mean map times what the points of each image say of it."""
    height, width = mean_map.shape
    patches = mean_map.reshape(6, height // 6, 8, width // 8).mean(axis=(1, 3))
    for number, truth in enumerate(test.depth):
        factor = ScaleFilter().adjust(
            0.0, range_points(truth, number), patches, None, (height, width)).factor
        whole = torch.from_numpy(np.broadcast_to(np.float32(factor), patches.shape).copy())
        yield mean_map * upsample(whole[None], (height, width), 'centered')[0].numpy()


def lenses(bench: Bench) -> dict[str, Any]:
    """Calibrated with the training camera's lens and run with others."""
    result: dict[str, Any] = {}
    own = bench.unseen(ROBOTS['A'])
    tests = {degrees: bench.unseen(robot) for degrees, robot in LENSES.items()}
    ways = {'with': {'focal': True}, 'without': {'focal': False},
            'camera unknown': {'focal': True, 'known': False}}
    scores: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for drive in bench.drives(ROBOTS['A']):
        if drive.name != bench.usual_name:
            continue
        files = {focal: bench.calibrate(drive.frames, focal=focal)[0] for focal in (True, False)}
        row: dict[str, Any] = {}
        for way, options in ways.items():
            bench.use(files[options['focal']], focal=options['focal'])
            for degrees, test in {63: own, **tests}.items():
                sums = sums_of(test.depth, _depth(bench.predict(
                    test, known=options.get('known', True))))
                row[f'{degrees} degrees, {way}'] = float(rmse_of(sums).mean())
        scores[drive.name].append(row)
    for name, rows in scores.items():
        result[name] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    for degrees, test in {63: own, **tests}.items():
        for way in ('with', 'without'):
            bench.use(focal=way == 'with')
            sums = sums_of(test.depth, _depth(bench.predict(test)))
            result.setdefault('zero-shot', {})[f'{degrees} degrees, {way}'] = float(
                rmse_of(sums).mean())
    return result


def anchors(bench: Bench) -> dict[str, Any]:
    """An anchor that follows a drive: how it steps, and what is lost against the best scale."""
    result: dict[str, Any] = {}
    for name in ('A', 'B'):
        robot = ROBOTS[name]
        calibration = bench.usual(robot)
        frames = bench.drive(robot, 10, ROOMS_FOLLOWED, ROOMS_FOLLOWED * bench.size.run, MAX_STEP)
        bench.use(calibration)
        plain = _depth(bench.predict(frames))
        best = [best_scale(*of_one) for of_one in zip(plain, frames.depth, strict=True)]
        without = rmse_of(sums_of(frames.depth, plain))
        least = rmse_of(sums_of(frames.depth, _best_scale(plain, frames.depth)))
        medians = [float(np.median(true / depth)) for true, depth in zip(
            frames.depth, plain, strict=True)]
        oracle = rmse_of(sums_of(frames.depth, [
            depth * np.float32(scale) for depth, scale in zip(plain, medians, strict=True)]))
        settled = np.arange(len(frames)) % bench.size.run >= min(10, bench.size.run // 2)
        cases = {f'{share:.0%} outliers': (share, _never) for share in SHARES}
        cases |= {f'{share:.0%} outliers, dropouts': (share, _dropout) for share in SHARES}
        parts: dict[str, Any] = {}
        for case, (share, silent) in cases.items():
            scale = ScaleFilter()
            predictions = list(bench.predict(
                frames, following(frames, scale, MAX_STEP, share, silent)))
            scales = np.array([p.adjustment.scale for p in predictions])
            errors = rmse_of(sums_of(frames.depth, _depth(predictions)))
            steps = np.exp(np.abs(np.diff(np.log(scales)))) - 1
            parts[case] = {
                'largest step': float(steps.max()), 'median step': float(np.median(steps)),
                'rmse [m]': float(errors.mean()),
                'of the oracle scale': float(errors.mean() / oracle.mean()),
                'of the oracle scale, from a second after a new room on':
                    float(errors[settled].mean() / oracle[settled].mean()),
                'of the best scale': float(errors.mean() / least.mean()),
                'scale': scales.tolist()}
        result[name] = {
            'frames': len(frames), 'frames in a room': bench.size.run,
            'best scale': best, 'oracle scale': medians,
            'rmse without an anchor [m]': float(without.mean()),
            'rmse with the oracle scale [m]': float(oracle.mean()),
            'rmse with the best scale [m]': float(least.mean()), 'cases': parts}
    return result


def _never(_: int) -> bool:
    return False


def _dropout(number: int) -> bool:
    return number % DROPOUT_PERIOD >= DROPOUT_PERIOD - DROPOUT


def recovery(bench: Bench) -> dict[str, Any]:
    """Coverage after the camera is mounted lower than where it was calibrated."""
    size = bench.size
    part = min(PART, size.run)
    before, after = (count // PART * part for count in (BEFORE, AFTER))
    bench.use(bench.usual(ROBOTS['A']))
    shares: dict[str, list[list[float]]] = {'with an anchor': [], 'without': []}
    for number in range(20, 20 + size.changes):
        parts = [bench.drive(robot, number, count // part, count, MAX_STEP)
                 for robot, count in ((ROBOTS['A'], before), (LOWER, after))]
        for way, found in shares.items():
            scale, line = ScaleFilter(), list[float]()
            begin = 0
            for frames in parts:
                anchor = following(frames, scale, MAX_STEP, begin=begin) \
                    if way == 'with an anchor' else None
                covered = Coverage(frames.kinds)
                for depth, prediction in zip(
                        frames.depth, bench.predict(frames, anchor), strict=True):
                    covered.add(prediction.depth, prediction.stddev(), depth)
                line += covered.shares
                begin += len(frames)
            found.append(line)
    result: dict[str, Any] = {'drives': size.changes, 'frames before': before,
                              'frames after': after, 'frames averaged': part}
    for way, lines in shares.items():
        if lines[0]:
            means = np.mean(lines, axis=0)
            result[way] = [float(means[i:i + part].mean()) for i in range(0, len(means), part)]
            result[f'{way}, every frame'] = means.tolist()
    return result


def cost(bench: Bench) -> dict[str, Any]:
    """Milliseconds that a frame takes longer, in pairs of blocks that follow each other.

    On one thread the processor's time is work. On several, the others wait for the next parallel
    product in a loop (OpenMP), which the processor's clock counts as well.
    """
    count, rooms = bench.size.usual
    frames = bench.drive(ROBOTS['B'], 0, rooms, count)
    path = bench.calibrate(frames, 'full')[0]
    rounds = max(10, 4 * bench.size.rooms)
    rgb, depth = frames.rgb[0], frames.depth[0]
    camera, points = frames.camera, range_points(depth, 0)

    def predict() -> DepthPrediction:
        return bench.estimator.predict(rgb, intrinsics=camera)

    def block(calibration: str, *, focal: bool) -> NDArray[np.float64]:
        bench.use(calibration, focal=focal)
        return np.array([_milliseconds(predict) for _ in range(BLOCK)][2:])

    usual = torch.get_num_threads()
    result: dict[str, Any] = {'frames': rounds, 'threads': usual}
    try:
        for threads in dict.fromkeys((1, usual)):
            torch.set_num_threads(threads)
            pairs = np.array([(block('', focal=False), block(path, focal=True))
                              for _ in range(max(1, rounds // BLOCK))])
            for i, clock in enumerate(("processor's time", 'clock')):
                plain, more = (pairs[:, j, :, i] for j in (0, 1))
                added = np.median(more, axis=1) - np.median(plain, axis=1)
                if threads == 1 and i == 0:
                    result |= {
                        'predict, zero-shot [ms]': float(np.median(plain)),
                        'predict, focal length, calibration and stddev [ms]':
                            float(np.median(more)),
                        ADDED: float(np.median(added)),
                        'the same, fastest runs [ms]': float(np.min(more) - np.min(plain))}
                elif threads > 1:
                    result[f'the same on {threads} threads, {clock} [ms]'] = float(
                        np.median(added))
        torch.set_num_threads(1)
        prediction, scale = predict(), ScaleFilter()
        anchor = [_milliseconds(lambda i=i: scale.adjust(
            i * MAX_STEP, points, prediction.patch_depth, prediction.patch_stddev,
            prediction.image_size))[0] for i in range(rounds)]
        stddev = [_milliseconds(prediction.stddev)[0] for _ in range(rounds)]
    finally:
        torch.set_num_threads(usual)
    return {
        **result, 'stddev of every pixel, while subscribed [ms]': float(np.median(stddev)),
        f'anchor of {len(points.z)} points [ms]': float(np.median(anchor))}


def _milliseconds(work: Callable[[], Any]) -> tuple[float, float]:
    """By the processor's clock, of all threads, and by the clock on the wall."""
    processor, wall = time.process_time(), time.perf_counter()
    work()
    return 1e3 * (time.process_time() - processor), 1e3 * (time.perf_counter() - wall)
