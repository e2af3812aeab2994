# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves behind: the results folder, and the types of its `summary.json`.

| file | what |
|---|---|
| `summary.json` | `Summary`: everything but pixels |
| `config.yaml` | the effective configuration, a ROS parameter file |
| `per_image.csv` | one line per image: metrics of the method and of the best constant |
| `samples/NNNNN.npz` | `Sample`: images for the figures |
| `depth_histograms.json` | `Histograms`: distribution of the true depth, and with the predicted |
| `report/` | for a browser, as Markdown and as LaTeX, with its figures |
| `records/` | raw sums of every image, from which an interrupted run continues |

The folder is written under temporary names; what has its final name is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from depthclip_ros.core import files
from depthclip_ros.core.errors import DepthClipError
from depthclip_ros.core.weights import WeightsInfo

_Type = TypeVar('_Type')

FORMAT = 3
SUMMARY, CONFIG, PER_IMAGE = 'summary.json', 'config.yaml', 'per_image.csv'
SAMPLES, HISTOGRAMS = 'samples', 'depth_histograms.json'

# Names of the metrics, in the paper's order, then the others.
METRICS = ('d1', 'd2', 'd3', 'rel', 'log10', 'rmse', 'abs_diff', 'sq_rel', 'rmse_log', 'silog')
PAPER_METRICS = METRICS[:6]
# Of these, larger is better.
HIGHER_IS_BETTER = frozenset({'d1', 'd2', 'd3'})
UNITS = {'rmse': 'm', 'abs_diff': 'm', 'sq_rel': 'm', 'silog': '%'}
# Row.scene of a row over all images.
ALL = 'all'


class ResultsError(DepthClipError):
    """A results folder cannot be read or written."""


@dataclass(frozen=True)
class Interval:
    """Bootstrap interval over scenes, e.g. of 95 %."""

    low: float
    high: float
    level: float = 0.95

    def name(self) -> str:
        """Such as '95 % interval'."""
        return f'{100 * self.level:.3g} % interval'

    def reading(self) -> str:
        """What it allows to say, if it is of a gain, and no more."""
        if self.low > 0:
            return 'better'
        return 'worse' if self.high < 0 else 'not distinguishable'


@dataclass(frozen=True)
class Row:
    """Metrics of one configuration or baseline.

    Attributes:
        name: e.g. 'DepthCLIP', 'Class-dependent 2', 'best constant'.
        group: 'method', 'camera', 'bins' (Table 2), 'prompts' (Table 3), or 'baseline'.
        scene: 'all' or a scene class.
        metrics: by name, see METRICS; what is not known is absent.
        images: how many images it is a mean of.
        interval: per metric, where computed.
        note: what the reader must know, e.g. 'oracle: chosen on this ground truth'.

    """

    name: str
    group: str
    scene: str
    metrics: dict[str, float]
    images: int
    interval: dict[str, Interval] | None = None
    note: str = ''


@dataclass(frozen=True)
class PaperRow:
    """A published row: `table` is '1', '2', '3', or the source's name."""

    table: str
    name: str
    scene: str
    metrics: dict[str, float]
    note: str = ''


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Data:
    """What was evaluated.

    Attributes:
        path: as given.
        format: e.g. 'NYU Depth v2 labelled .mat'.
        split: e.g. 'official test split'.
        images: number of images of the split.
        evaluated: of these, with at least one valid pixel.
        depth: 'raw', 'in-painted' or 'sparse lidar'.
        digest: SHA-256 (hex) over the SHA-256 of every image and depth as read, in order.
        skipped: images left out.
        warnings: what makes the numbers incomparable.
        origin: what world the images are of, e.g. 'NYU Depth v2' or 'rendered rooms'; '': unknown.
        official: whether they are NYU's official test split with raw depth, as the paper's.

    """

    path: str
    format: str
    split: str
    images: int
    evaluated: int
    depth: str
    digest: str
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    origin: str = ''
    official: bool = False


@dataclass(frozen=True)
class ProtocolInfo:
    """How it was measured; `average` is 'image' or 'pixel'."""

    name: str
    average: str
    min_depth: float
    max_depth: float
    description: str


@dataclass(frozen=True)
class Gate:
    """Whether the paper's row was reproduced.

    Attributes:
        status: 'reproduced' or 'not reproduced'; never anything else.
        differences: measured minus paper, per metric of the paper.
        limits: largest absolute difference that counts as reproduced.
        reasons: why not, in sentences: metrics beyond their limit, other data, other weights.

    """

    status: str
    differences: dict[str, float]
    limits: dict[str, float]
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """How far the method is above one control, on the same images.

    Attributes:
        name: of the control's row.
        gains: per metric: method minus control, positive is better for the method.
        intervals: bootstrap interval of the gain, per metric; those of all comparisons of one
            metric hold together with 95 %. Empty with too few scenes.

    """

    name: str
    gains: dict[str, float]
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Verdict:
    """How far the method is above the controls.

    Attributes:
        text: in sentences.
        constants: the best constant depth in metres, per metric.
        comparisons: the family of comparisons, the best constant first.
        units: number of scenes (or images, where the data do not say which scene) that are taken
            for independent.
        unit: 'scenes' or 'images'.

    """

    text: str
    constants: dict[str, float]
    comparisons: list[Comparison]
    units: int
    unit: str


@dataclass(frozen=True)
class Timing:
    """Wall time of this run in seconds, and of the network within it."""

    images: int
    seconds: float
    network_seconds: float


@dataclass(frozen=True)
class Summary:
    """The content of `summary.json`.

    Attributes:
        config: settings of `DepthConfig`, as in a parameter file.
        versions: of this package and what it builds on.
        rows: every result; the tables are selections of it.
        paper: the published rows beside which they stand.
        tables: which of the paper's tables this run holds ('1', '2', '3').
        best, median, worst: indices of images by δ1 (best first, worst first).

    """

    created: str
    command: str
    config: dict[str, Any]
    versions: dict[str, str]
    weights: WeightsInfo
    data: Data
    protocol: ProtocolInfo
    rows: list[Row]
    paper: list[PaperRow]
    gate: Gate
    verdict: Verdict
    tables: list[str]
    best: list[int]
    median: list[int]
    worst: list[int]
    timing: Timing
    format: int = FORMAT

    def row(self, name: str, scene: str = ALL) -> Row | None:
        """First row of that name and scene."""
        return next((r for r in self.rows if (r.name, r.scene) == (name, scene)), None)

    def to_json(self) -> str:
        """JSON text."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Summary:
        """Inverse of `to_json`.

        Raises:
            ResultsError: not JSON, of another format, or incomplete.

        """
        found = from_json(text, _Versioned, SUMMARY).format
        if found != FORMAT:
            raise ResultsError(f'{SUMMARY}: format {found}, this version reads {FORMAT}; evaluate '
                               'again.')
        return from_json(text, cls, SUMMARY)

    @classmethod
    def read(cls, folder: Path) -> Summary:
        """Read `summary.json` of a results folder."""
        return cls.from_json(read_text(folder / SUMMARY))


@dataclass(frozen=True)
class _Versioned:
    format: int


@dataclass(frozen=True)
class Sample:
    """One image for the figures, everything cropped to the network's input.

    Attributes:
        index: the image's index in the data set.
        name, scene: its name, and class ('' where unknown).
        role: 'best', 'median' or 'worst'.
        rgb: (H, W, 3) uint8.
        depth: (H, W) float32 metres, predicted.
        ground_truth: (H, W) float32 metres, NaN where it does not count.
        weights: (K, h, w) float32, response of every bin in every patch; patch (i, j) covers
            pixels [i H/h, (i+1) H/h) x [j W/w, (j+1) W/w).
        patch_depth: (h, w) float32 metres.
        tokens, bins: (K,) the words and their depth in metres.
        metrics: by name, of this image.

    """

    index: int
    name: str
    scene: str
    role: str
    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    ground_truth: NDArray[np.float32]
    weights: NDArray[np.float32]
    patch_depth: NDArray[np.float32]
    tokens: list[str]
    bins: list[float]
    metrics: dict[str, float]

    def path(self, folder: Path) -> Path:
        """Where it lies in a results folder."""
        return folder / SAMPLES / f'{self.index:05d}.npz'

    def write(self, folder: Path) -> None:
        """Write to `samples/NNNNN.npz` of a results folder."""
        arrays = {k: getattr(self, k) for k in (
            'rgb', 'depth', 'ground_truth', 'weights', 'patch_depth')}
        about = {k: getattr(self, k) for k in (
            'index', 'name', 'scene', 'role', 'tokens', 'bins', 'metrics')}
        with atomic(self.path(folder)) as file:
            np.savez(file, about=np.array(to_json(about)), **arrays)  # noise packs badly

    @classmethod
    def read(cls, path: Path) -> Sample:
        """Inverse of `write`."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = {k: stored[k] for k in stored.files if k != 'about'}
            about = msgspec.json.decode(str(stored['about']))
        return cls(**arrays, **about)


@dataclass(frozen=True)
class Histograms:
    """Distribution of the valid true depth.

    Attributes:
        edges: n + 1 bin edges in metres.
        counts: n numbers of pixels, per scene class; 'all' for all images.
        joint: numbers of pixels, a row per bin of true depth, in it one per bin of predicted
            depth; both of even width from the first edge to the last.

    """

    edges: list[float]
    counts: dict[str, list[int]]
    joint: list[list[int]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write to a results folder."""
        write_text(folder / HISTOGRAMS, to_json(self))

    @classmethod
    def read(cls, folder: Path) -> Histograms:
        """Read from a results folder."""
        return from_json(read_text(folder / HISTOGRAMS), cls, HISTOGRAMS)


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that gets its name when it is complete, or not at all.

    Raises:
        ResultsError: the file cannot be written, e.g. the disk is full.

    """
    try:
        with files.atomic(path) as file:
            yield file
    except OSError as error:
        raise ResultsError(
            f'{path}: cannot be written ({error.strerror or error}). Free space or choose '
            'another --output; finished images are kept, --resume goes on from there.') from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    with atomic(path) as file:
        file.write(text.encode())


def read_text(path: Path) -> str:
    """Read a file of a results folder.

    Raises:
        ResultsError: it is not there.

    """
    try:
        return path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f'{path}: cannot be read ({error}); is this the folder of a finished '
                           'evaluation?') from error


def to_json(value: object) -> str:
    """JSON text of dataclasses, containers, and NumPy's numbers."""
    text = msgspec.json.encode(value, enc_hook=lambda number: number.item())
    return msgspec.json.format(text, indent=1).decode() + '\n'


def from_json(text: str, kind: type[_Type], name: str) -> _Type:
    """Inverse of `to_json`; `name` is the file's.

    Raises:
        ResultsError: not JSON, or not of that kind; says where.

    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise ResultsError(f'{name}: not of this program ({error}); evaluate again.') from error
