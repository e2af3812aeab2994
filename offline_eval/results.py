# SPDX-License-Identifier: Apache-2.0
"""The results folder of an evaluation, and the types of its `summary.json`.

| file | content |
|---|---|
| `summary.json` | `Summary`: everything but pixels |
| `config.yaml` | the effective configuration, a ROS parameter file |
| `per_image.csv` | one line per image: metrics of the method and of the best constant |
| `samples/NNNNN.npz` | images for the figures |
| `report/` | for a browser, as Markdown and as LaTeX, with its figures |
| `records/` | sums of every image, from which an interrupted run resumes |

Files are written under temporary names: a file with its final name is complete.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from depthclip_ros.core import files
from depthclip_ros.core.releases import WeightsInfo
from depthclip_ros.evaluation.bootstrap import Interval
from depthclip_ros.evaluation.errors import ResultsError
from depthclip_ros.report.figures import Sample

FORMAT = 4
SUMMARY, SAMPLES = 'summary.json', 'samples'
ROLES = ('best', 'median', 'worst')
ALL = 'all'  # Row.scene of a row over all images


class Row(Struct, frozen=True):
    """Metrics of one configuration or baseline, or published ones."""

    name: str  # e.g. 'DepthCLIP', 'Class-dependent 2', 'best constant'
    # 'method', 'camera', 'bins' (Table 2), 'prompts' (Table 3), 'baseline', 'calibrated' or
    # 'foreign'; of a published row its table '1', '2', '3', or its source
    group: str
    scene: str  # ALL or a scene class
    metrics: dict[str, float]  # by name, see METRICS; unknown ones are absent
    images: int = 0  # number of images; 0: unknown
    interval: dict[str, Interval] | None = None  # per metric, if computed
    note: str = ''  # begins with 'oracle' if the ground truth was used


class Data(Struct, frozen=True):
    """The evaluated data; other fields as in `Dataset`."""

    path: str
    format: str
    split: str
    images: int  # of the split
    evaluated: int  # images with at least one valid pixel
    depth: str
    digest: str  # SHA-256 (hex) over the SHA-256 of every image and depth as read, in order
    skipped: list[str] = []  # names of images without any valid true depth
    warnings: list[str] = []
    origin: str = ''
    official: bool = False


class ProtocolInfo(Struct, frozen=True):
    """A protocol and its averaging; `average` is 'image' or 'pixel'."""

    name: str
    average: str
    min_depth: float
    max_depth: float
    description: str


class Gate(Struct, frozen=True):
    """Result of the comparison with the paper's headline row."""

    status: str  # 'reproduced' or 'not reproduced'
    differences: dict[str, float]  # measured minus paper, per metric of the paper
    limits: dict[str, float]  # largest absolute differences that count as reproduced
    reasons: list[str] = []  # why not, in sentences


class Comparison(Struct, frozen=True):
    """Paired comparison of the method with one control."""

    name: str  # of the control's row
    gains: dict[str, float]  # per metric: positive is better for the method
    # Of the gains, per metric; empty with too few scenes. The intervals of δ1 and rmse of all
    # comparisons hold together with 95 %.
    intervals: dict[str, Interval]


class Verdict(Struct, frozen=True):
    """Comparisons of the method with all controls."""

    text: str  # in sentences
    constants: dict[str, float]  # the best constant depth in metres, per metric
    comparisons: list[Comparison]  # the best constant first
    units: int  # number of scenes (or images) that are treated as independent
    unit: str  # 'scenes', or 'images' where the data do not name scenes


class Histograms(Struct, frozen=True):
    """Distribution of the valid true depth."""

    edges: list[float]  # n + 1 edges, in metres
    counts: dict[str, list[int]]  # pixels in each bin, per scene class and for ALL
    # Pixels by bins of true depth (rows) and predicted depth, both of equal width from the first
    # edge to the last.
    joint: list[list[int]] = []


class Timing(Struct, frozen=True):
    """Wall time of this run in seconds, and of the network within it."""

    images: int
    seconds: float
    network_seconds: float


class Summary(Struct, frozen=True, kw_only=True):
    """The content of `summary.json`."""

    format: int = FORMAT
    created: str
    command: str
    config: dict[str, Any]  # settings of `DepthConfig`, as in a parameter file
    versions: dict[str, str]  # of this package and its dependencies
    weights: WeightsInfo
    data: Data
    protocol: ProtocolInfo
    rows: list[Row]  # of this run
    paper: list[Row]  # published rows
    gate: Gate
    verdict: Verdict
    tables: list[str]  # the paper's tables in this run ('1', '2', '3')
    ranks: dict[str, list[int]]  # indices of the best, median and worst images by δ1
    histograms: Histograms
    timing: Timing

    def row(self, name: str, scene: str = ALL) -> Row | None:
        """Find the first row of a name and scene."""
        return next((r for r in self.rows if (r.name, r.scene) == (name, scene)), None)


class Results(Struct, frozen=True):
    """Input of a report; figures of images need samples."""

    summary: Summary
    samples: list[Sample] = []

    def of_role(self, role: str) -> list[Sample]:
        """Select the samples of 'best', 'median' or 'worst', in the summary's order."""
        samples = {sample.index: sample for sample in self.samples if sample.role == role}
        return [samples[index] for index in self.summary.ranks[role] if index in samples]


def save(folder: Path, results: Results) -> None:
    """Write the samples, and the summary last: a folder with a summary is complete.

    Raises:
        ResultsError: a file cannot be written.

    """
    for sample in results.samples:
        fields = {name: getattr(sample, name) for name in sample.__struct_fields__}
        arrays = {k: v for k, v in fields.items() if isinstance(v, np.ndarray)}
        about = {k: v for k, v in fields.items() if k not in arrays}
        write_arrays(folder / SAMPLES / f'{sample.index:05d}.npz',
                     about=np.array(to_json(about)), **arrays)
    write(folder / SUMMARY, to_json(results.summary))


def load(folder: Path) -> Results:
    """Read the results of a folder.

    Raises:
        ResultsError: there is no summary, or a file is damaged or of another version.

    """
    try:
        path = folder / SUMMARY
        summary = msgspec.json.decode(path.read_bytes(), type=Summary)
        if summary.format != FORMAT:
            raise ValueError(f'format {summary.format}, this version reads {FORMAT}')
        samples = []
        for path in sorted((folder / SAMPLES).glob('*.npz')):
            with np.load(path, allow_pickle=False) as stored:
                arrays = {k: stored[k] for k in stored.files if k != 'about'}
                samples.append(Sample(**arrays, **msgspec.json.decode(str(stored['about']))))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile,
            msgspec.MsgspecError) as error:
        raise ResultsError(f'{path}: is of no finished evaluation, or damaged ({error}); evaluate '
                           'again.') from error
    return Results(summary, samples)


def to_json(value: object) -> str:
    """Encode structs, containers and NumPy numbers as JSON; file names become `printable`."""
    def number(value: Any) -> Any:
        return value.item()
    try:
        text = msgspec.json.encode(value, enc_hook=number)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(value, enc_hook=number)
        text = files.printable(json.dumps(plain, ensure_ascii=False)).encode()
    return msgspec.json.format(text, indent=1).decode() + '\n'


def write(path: Path, content: str | bytes) -> None:
    """Write a file atomically; text becomes `printable`.

    Raises:
        ResultsError: the file cannot be written, e.g. the disk is full.

    """
    try:
        with files.atomic(path) as file:
            file.write(files.printable(content).encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ResultsError(
            f'{path}: cannot be written ({error.strerror or error}). Free space or choose '
            'another --output; finished images are kept, --resume goes on from there.') from error


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays as .npz, atomically as `write`."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # noise does not compress
    write(path, content.getvalue())
