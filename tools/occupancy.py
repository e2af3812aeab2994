# SPDX-License-Identifier: Apache-2.0
"""What a costmap makes of `points`: false and missed obstacles, with and without max_stddev.

    python tools/occupancy.py                       measure; write docs/navigation.json and .md
    python tools/occupancy.py --tables              write the table of docs/navigation.md anew

A robot drives through rendered rooms that neither the demo model nor the calibration has seen. Its
points go into a grid as into Nav2's obstacle layer: those within a band of heights mark their
cell, and the cells between them and the camera are free. What is there is known exactly: every
pixel of the renderer's depth marks a grid of its own. A mark is false where no obstacle is within
`TOLERANCE` of it; an obstacle that the camera saw is missed where no mark is within `TOLERANCE` of
it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from depthclip_ros.core.geometry import CameraModel  # noqa: E402
from depthclip_ros.sim import (  # noqa: E402
    KINDS,
    Frame,
    Mount,
    RenderOptions,
    Scene,
    SimCamera,
    render,
    trajectory,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from depthclip_ros.core import DepthPrediction

    Float = NDArray[np.floating[Any]]
    Ask = Callable[[list[NDArray[np.uint8]]], Mapping[str, Sequence[DepthPrediction]]]

FIGURES, PAGE = ROOT / 'docs/navigation.json', ROOT / 'docs/navigation.md'

WIDTH, HEIGHT = 320, 240
FRAMES, SECONDS = 12, 1.9  # of a drive, and between two of them
FIRST_ROOM, FIRST_CALIBRATION_ROOM = 60000, 61000
CALIBRATION_ROOMS, CALIBRATION_FRAMES = 10, 6  # 60 pictures
TOLERANCE = 0.25  # metres; what a costmap's inflation forgives
DISTANCES = (0.5, 1.0, 2.0, 3.0, 4.0)  # metres from the camera; the costmap ends at the last
GATES = (0.5, 0.3)  # metres of standard deviation
LEAST_HEIGHTS = (0.1, 0.2, 0.4, 0.6)  # of an obstacle, metres
UNKNOWN, FREE, OCCUPIED = range(3)
EXACT, PLAIN, CALIBRATED = "exact depth at the patches' centres", 'zero-shot', 'calibrated'


class Robot(NamedTuple):
    """Where its camera is, and what it takes for an obstacle."""

    title: str
    fov: float  # horizontal, degrees
    mount: Mount
    heights: tuple[float, float]  # least and greatest of an obstacle, metres above the floor


ROBOTS = {
    'A': Robot('camera 63° wide, 1.4 m high, looking down a little', 63.33, Mount(), (0.4, 2.0)),
    'D': Robot('camera 90° wide, 0.35 m high, looking up a little', 90.0,
               Mount(height=(0.35, 0.35), pitch=(0.07, 0.27)), (0.2, 2.0)),
}


class Costmap:
    """A grid of cells as that of Nav2's ObstacleLayer: each is unknown, free or occupied.

    Attributes:
        cells: (rows, columns) of UNKNOWN, FREE and OCCUPIED; rows along y.

    """

    def __init__(
        self, size: tuple[float, float], resolution: float, heights: tuple[float, float],
        max_range: float,
    ) -> None:
        """Begin with nothing known of a room, and of as much around it as can be marked.

        Args:
            size: of the room along x and y, metres; it begins at 0, 0.
            resolution: side of a cell, metres.
            heights: least and greatest z of an obstacle; other points count for nothing.
            max_range: points further from the camera count for nothing, metres.

        """
        self.resolution = resolution
        self._low, self._heights, self._max_range = -max_range, heights, max_range
        columns, rows = (math.ceil((side + 2 * max_range) / resolution) for side in size)
        self.cells = np.full((rows, columns), UNKNOWN, np.uint8)

    def blank(self) -> Costmap:
        """Another one of the same cells, of which nothing is known."""
        other = copy.copy(self)
        other.cells = np.full_like(self.cells, UNKNOWN)
        return other

    def observe(self, camera: Float, points: Float, clearing: Float | None = None) -> None:
        """Clear the way to every point, then mark the points.

        Args:
            camera: (3,) where it is, metres.
            points: (n, 3) in the same frame; NaN counts for nothing.
            clearing: the points to which the way is cleared; None for the same.

        """
        ends = self._counting(camera, points if clearing is None else clearing)
        if len(ends):
            reach = np.linalg.norm(ends[:, :2] - camera[:2], axis=1).max()
            way = np.arange(0.0, 1.0, self.resolution / 2 / max(reach, self.resolution))
            self._set(camera[:2] + way[:, None, None] * (ends[:, :2] - camera[:2]), FREE)
        self.mark(camera, points)

    def mark(self, camera: Float, points: Float) -> None:
        """Mark the points, and clear nothing."""
        self._set(self._counting(camera, points)[:, :2], OCCUPIED)

    def distances(self, camera: Float) -> Float:
        """(rows, columns) metres on the floor from a camera to the cells' centres."""
        y, x = (self._low + (np.arange(count) + 0.5) * self.resolution
                for count in self.cells.shape)
        return np.hypot(x - camera[0], (y - camera[1])[:, None])

    def _counting(self, camera: Float, points: Float) -> Float:
        low, high = self._heights
        near = np.linalg.norm(points - camera, axis=1) < self._max_range  # NaN is not
        return points[near & (points[:, 2] >= low) & (points[:, 2] <= high)]

    def _set(self, places: Float, value: int) -> None:
        places = np.floor((places.reshape(-1, 2) - self._low) / self.resolution)
        columns, rows = places.astype(int).T
        inside = (rows >= 0) & (rows < len(self.cells)) & (columns >= 0) & \
            (columns < self.cells.shape[1])
        self.cells[rows[inside], columns[inside]] = value


def metres_to(cells: NDArray[np.bool_], resolution: float) -> Float:
    """Metres from every cell to the nearest of `cells`, between their centres."""
    if not cells.any():
        return np.full(cells.shape, np.inf)
    return resolution * np.asarray(cv2.distanceTransform(
        (~cells).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def compare(seen: Costmap, truth: Costmap, camera: Float | None = None) -> Counter[str]:
    """Count marks, false ones, obstacles, missed ones, and missed ones that are called free.

    Args:
        seen: by one way to measure depth.
        truth: what the camera really saw.
        camera: where it is: everything is counted by the distance from it, too.

    """
    marks, obstacles = seen.cells == OCCUPIED, truth.cells == OCCUPIED
    missed = obstacles & (metres_to(marks, seen.resolution) > TOLERANCE)
    found = {
        'marks': marks,
        'false': marks & (metres_to(obstacles, seen.resolution) > TOLERANCE),
        'obstacles': obstacles, 'missed': missed, 'called free': missed & (seen.cells == FREE)}
    counts = Counter({name: int(cells.sum()) for name, cells in found.items()})
    if camera is not None:
        distances = seen.distances(camera)
        for name, cells in found.items():
            for band, count in zip(bands(), np.histogram(distances[cells], DISTANCES)[0],
                                   strict=True):
                counts[f'{name}, {band}'] += int(count)
    return counts


def bands() -> list[str]:
    """Names of the distances that are told apart."""
    return [f'{low:g} to {high:g} m' for low, high in itertools.pairwise(DISTANCES)]


def shares(counts: Mapping[str, int], suffix: str = '') -> dict[str, float | int]:
    """Shares of what was counted: false ones of the marks, missed ones of the obstacles."""
    marks, obstacles = (counts[name + suffix] for name in ('marks', 'obstacles'))
    return {
        'marks': marks, 'false': round(counts['false' + suffix] / max(marks, 1), 4),
        'obstacles': obstacles, 'missed': round(counts['missed' + suffix] / max(obstacles, 1), 4),
        'called free': round(counts['called free' + suffix] / max(obstacles, 1), 4)}


# Drives ----------------------------------------------------------------------------------------


def camera_of(robot: Robot) -> tuple[SimCamera, CameraModel]:
    """The camera for the renderer, and for the estimator."""
    focal = WIDTH / 2 / math.tan(math.radians(robot.fov / 2))
    return (SimCamera(WIDTH, HEIGHT, focal, focal, (WIDTH - 1) / 2, (HEIGHT - 1) / 2),
            CameraModel.pinhole(WIDTH, HEIGHT, focal))


def drives(robot: Robot, first: int, rooms: int, count: int,
           ) -> Iterator[tuple[Scene, list[Frame]]]:
    """Rooms in which the robot finds a place, and pictures of a drive through each."""
    camera, found = camera_of(robot)[0], 0
    for seed in itertools.count(first):
        if found == rooms:
            return
        scene = Scene.generate(KINDS[seed % len(KINDS)], seed)
        with contextlib.suppress(RuntimeError):
            path = trajectory(scene, seed, robot.mount)
            found += 1
            yield scene, [render(scene, camera, path.pose(SECONDS * i),
                                 RenderOptions(noise=0.01, seed=seed)) for i in range(count)]


def in_world(pose: Float, rays: Float, depth: Float) -> Float:
    """(n, 3) points of the world at `depth` along the camera's rays."""
    points = (rays * depth[..., None]).reshape(-1, 3).astype(np.float64)
    return points @ pose[:3, :3].T + pose[:3, 3]


class Picture(NamedTuple):
    """What is kept of one picture of a drive."""

    pose: Float
    truth: Costmap  # of this picture alone
    stddev: Float  # (h, w) metres
    depth: dict[str, Float]  # (h, w) metres by every way to use it
    clearing: dict[str, Float]  # the same, where the points that clear are not those that mark


def measure(robot: Robot, ask: Ask, rooms: int, resolution: float) -> dict[str, Any]:
    """Drive through rooms; make a costmap of them by every way to measure depth.

    Args:
        robot: whose camera.
        ask: predictions for some pictures, by the name of the way; one is `CALIBRATED`.
        rooms: how many.
        resolution: side of a cell, metres.

    """
    camera = camera_of(robot)[1]
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rays = camera.rays(columns, rows)
    driven: list[list[Picture]] = []
    for scene, frames in drives(robot, FIRST_ROOM, rooms, FRAMES):
        answers = ask([frame.rgb for frame in frames])
        driven.append([])
        for i, frame in enumerate(frames):
            truth = Costmap(scene.size[:2], resolution, robot.heights, DISTANCES[-1])
            truth.mark(frame.pose[:3, 3], in_world(frame.pose, rays, frame.depth))
            driven[-1].append(taken(
                frame, truth, {name: of_all[i] for name, of_all in answers.items()}))
    pictures = [picture for of_room in driven for picture in of_room]
    for gate in GATES:
        add_gate(pictures, gate)
    h, w = pictures[0].depth[EXACT].shape
    return {name: score(driven, name, camera.patch_rays(h, w)) for name in pictures[0].depth}


def taken(frame: Frame, truth: Costmap, answers: Mapping[str, DepthPrediction]) -> Picture:
    """What is kept of a frame and of what was predicted of it."""
    stddev = answers[CALIBRATED].patch_stddev
    if stddev is None:
        raise ValueError('the calibration tells no standard deviation')
    rows, columns = (((np.arange(count) + 0.5) * size / count).astype(int)
                     for count, size in zip(stddev.shape, frame.depth.shape, strict=True))
    return Picture(frame.pose, truth, stddev, {
        EXACT: frame.depth[np.ix_(rows, columns)],
        **{name: answer.patch_depth for name, answer in answers.items()}}, {})


def gated(gate: float) -> str:
    """Name of the way with max_stddev."""
    return f'`max_stddev: {gate:g}`'


def add_gate(pictures: Sequence[Picture], gate: float) -> None:
    """Leave out what is unsure: altogether, or only where the way to it would be cleared.

    Beside each stands its control: the range_max that keeps as many points.
    """
    kept = np.mean([np.isfinite(p.depth[CALIBRATED]) & (p.stddev <= gate) for p in pictures])
    limit = float(np.nanquantile([p.depth[CALIBRATED] for p in pictures], kept))
    for picture in pictures:
        depth = picture.depth[CALIBRATED]
        surer = np.where(picture.stddev > gate, np.nan, depth)
        nearer = np.where(depth > limit, np.nan, depth)
        picture.depth[gated(gate)] = surer
        picture.depth[f'control: `range_max: {limit:.2f}`'] = nearer
        for name, clearing in ((f'all mark, `stddev` up to {gate:g} clears', surer),
                               (f'control: all mark, depth up to {limit:.2f} clears', nearer)):
            picture.depth[name], picture.clearing[name] = depth, clearing


def score(driven: Sequence[Sequence[Picture]], name: str, rays: Float) -> dict[str, Any]:
    """Shares for single pictures, by distance, and for the costmaps at the end of the drives."""
    single: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for pictures in driven:
        seen, truth = (pictures[0].truth.blank() for _ in range(2))
        for picture in pictures:
            camera = picture.pose[:3, 3]
            points = in_world(picture.pose, rays, picture.depth[name])
            alone = picture.truth.blank()
            clearing = in_world(picture.pose, rays, picture.clearing[name]) \
                if name in picture.clearing else points
            alone.observe(camera, points, clearing)
            single += compare(alone, picture.truth, camera)
            seen.observe(camera, points, clearing)
            truth.cells = np.maximum(truth.cells, picture.truth.cells)
        whole += compare(seen, truth)
    kept = np.mean([np.isfinite(p.depth[name]).mean() for pictures in driven for p in pictures])
    return {'points kept': round(float(kept), 4),
            'one picture': {**shares(single), **{
                band: shares(single, f', {band}') for band in bands()}},
            'end of the drive': shares(whole)}


# The page --------------------------------------------------------------------------------------


def table(figures: Mapping[str, Any]) -> list[str]:
    """Rows of one robot, in percent."""
    near, far = bands()[1], bands()[2]
    columns = ['depth', 'points', f'false, {near}', f'false, {far}', f'missed, {near}',
               f'missed, {far}', 'false at the end', 'missed at the end', 'called free']
    rows = [f'| {" | ".join(columns)} |', '|---' * len(columns) + '|']
    for name, measured in figures.items():
        one, end = measured['one picture'], measured['end of the drive']
        cells = [measured['points kept'], one[near]['false'], one[far]['false'],
                 one[near]['missed'], one[far]['missed'], end['false'], end['missed'],
                 end['called free']]
        rows.append(' | '.join([f'| {name}', *(f'{100 * cell:.0f} %' for cell in cells)]) + ' |')
    return rows


def heights(robots: Mapping[str, Any]) -> list[str]:
    """Rows of the least heights, a column a robot."""
    columns = ['least height of an obstacle', *(f'{name}: false, missed' for name in robots)]
    rows = [f'| {" | ".join(columns)} |', '|---' * len(columns) + '|']
    for low in (f'{low:g}' for low in LEAST_HEIGHTS):
        cells = [of_robot['least heights [m]'][low] for of_robot in robots.values()]
        rows.append(f'| {low} m | ' + ' | '.join(
            f'{100 * cell["false"]:.0f} %, {100 * cell["missed"]:.0f} %' for cell in cells) + ' |')
    return rows


def filled(page: str, figures: Mapping[str, Any]) -> str:
    """The page with its tables made anew, between their marks."""
    robots = figures['robots']
    tables = {f'occupancy {name}': table(of_robot['ways']) for name, of_robot in robots.items()}
    if robots:
        tables['heights'] = heights(robots)
    for name, rows in tables.items():
        begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        before, rest = page.split(begin)
        page = '\n'.join((before + begin, *rows, end)) + rest.split(end)[1]
    return page


def main() -> None:
    """Measure, or write the tables anew."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--tables', action='store_true', help='only write the tables anew')
    parser.add_argument('--rooms', type=int, default=100)
    parser.add_argument('--resolution', type=float, default=0.1, help='side of a cell, metres')
    given = parser.parse_args()
    if not given.tables:
        figures = {
            'rooms': given.rooms, 'pictures a room': FRAMES, 'cells [m]': given.resolution,
            'tolerance [m]': TOLERANCE, 'range [m]': DISTANCES[-1],
            'robots': {name: {
                'title': robot.title, 'heights of an obstacle [m]': robot.heights,
                **measured(robot, given.rooms, given.resolution),
            } for name, robot in ROBOTS.items()}}
        FIGURES.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + '\n',
                           encoding='utf-8')
    figures = json.loads(FIGURES.read_text(encoding='utf-8'))
    PAGE.write_text(filled(PAGE.read_text(encoding='utf-8'), figures), encoding='utf-8')


def measured(robot: Robot, rooms: int, resolution: float) -> dict[str, Any]:
    """Calibrate to a robot's camera, then measure what its costmaps are worth."""
    from depthclip_ros.calibrate.fit import Options, Sample, fit
    from depthclip_ros.core import DepthConfig, DepthEstimator
    camera = camera_of(robot)[1]
    config = DepthConfig.from_yaml(ROOT / 'config/demo.yaml')
    plain = DepthEstimator(config, 'demo', 'cpu')
    fitted = fit(plain, (
        Sample(frame.rgb, frame.depth, camera, room)
        for room, (_, frames) in enumerate(
            drives(robot, FIRST_CALIBRATION_ROOM, CALIBRATION_ROOMS, CALIBRATION_FRAMES))
        for frame in frames), Options(source='ten rendered rooms'))
    with tempfile.TemporaryDirectory() as folder:
        path = fitted.calibration.save(Path(folder), 'robot')
        calibrated = DepthEstimator(config.replace(calibration=str(path)), 'demo', 'cpu')

    def ask(images: list[NDArray[np.uint8]]) -> Mapping[str, Sequence[DepthPrediction]]:
        return {PLAIN: plain.predict(images, intrinsics=camera),
                CALIBRATED: calibrated.predict(images, intrinsics=camera)}

    return {
        'calibration': fitted.verdict,
        'sensor model a, b, c, d, e': [round(value, 3) for value in fitted.sensor_model],
        'ways': measure(robot, ask, rooms, resolution),
        'least heights [m]': {
            f'{low:g}': measure(robot._replace(heights=(low, robot.heights[1])), ask,
                                max(1, rooms // 6), resolution)[CALIBRATED]['one picture']
            for low in LEAST_HEIGHTS}}


if __name__ == '__main__':
    main()
