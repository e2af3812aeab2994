# SPDX-License-Identifier: Apache-2.0
"""What a calibration found, in the order of its report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from ..color import UNTRAINED, color_bar, colorize, known_range, png
from ..document import Block, Heading, Picture, Strong, Table, Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from .fit import Fitted
    from .recordings import Recording

#: Of the variants, what they are; the controls last.
ROWS = {
    'none': 'words alone (with the focal length), before',
    'scale': 'words times one fitted scale',
    'full': 'words corrected by features',
    'mean map': 'control: the mean depth of every pixel, no image',
}


class Example(NamedTuple):
    """One frame for the pictures: uint8 RGB, and depth in metres of any size."""

    rgb: NDArray[np.uint8]
    truth: NDArray[np.float32]
    before: NDArray[np.float32]
    after: NDArray[np.float32]


def contents(
    fitted: Fitted, recording: Recording, about_it: Mapping[str, str], warnings: Sequence[str],
    written: str, picture: str, *, trained: bool,
) -> list[Block]:
    """Put the report together.

    Args:
        fitted: what came out.
        recording: what it was made of, read.
        about_it: what the table of the recording says besides.
        warnings: what is doubtful about the recording, and why it should have been refused where
            it was used all the same.
        written: the parameter file.
        picture: name of the file of `draw_examples`, beside the report.
        trained: whether the weights are.

    """
    about = fitted.calibration.about
    rows = []
    for name, what in ROWS.items():
        metrics, style = fitted.held_out[name], Strong if name == fitted.variant else str
        rows.append([style(text) for text in (what, *(
            _number(value) for value in (metrics.rmse, metrics.delta1, metrics.abs_rel)))])
    names = list(fitted.folds[0])
    parts: list[Block] = [Heading(f'Calibration on {recording.source}', 1)]
    if not trained:
        parts.append(Text(f'{UNTRAINED}; so is everything below.', warning=True))
    parts += [
        *(Text(warning, warning=True) for warning in warnings),
        Text(fitted.verdict, warning=not fitted.improved),
        Text(f'Written: {written}. Depth with it is no longer zero-shot.'),
        Heading('Before and after, on blocks held out'),
        Text(f'{about.frames} frames in {about.blocks} blocks (sequences, or pieces of time). '
             'Every number is of frames in blocks that the fit did not see; by them the share of '
             f'the correction was chosen, {fitted.share:.0%}. Taken: {fitted.variant}.'),
        Table(('what', 'rmse [m]', 'δ1', 'rel'), rows),
        Table(('held out, rmse [m]', *names), [
            (str(i), *(_number(fold[name]) for name in names))
            for i, fold in enumerate(fitted.folds, 1)]),
        Heading('Error bars'),
        Text(f'{fitted.coverage:.1%} of held-out depths lie within 1.645 standard deviations '
             '(90 % are meant to).'),
        Text("elevation_mapping's sensor model, sigma = a + b (z - c)² + d zᵉ in metres:"),
        Table('abcde', [[f'{v:.5g}' for v in fitted.sensor_model]]),
        Heading('The recording'),
        Table(('what', 'value'), [
            ('images and depth', recording.described), *about_it.items(),
            ('frames with depth', str(len(recording))),
            ('frames calibrated from', str(about.frames))], texts=frozenset({0, 1}))]
    if recording.left_out:
        parts.append(Table(('left out', 'times'), [
            (cause, str(count)) for cause, count in sorted(recording.left_out.items())]))
    return [*parts, Heading('Pictures'), Picture(
        'Examples',
        'From left to right: image, depth before, after, and measured; near is red, far is '
        'blue, no depth is black. These frames were among those fitted to, unlike the '
        'numbers above.', picture)]


def _number(value: float) -> str:
    return f'{value:.3f}' if math.isfinite(value) else '–'


def draw_examples(examples: Sequence[Example], width: int = 240) -> bytes:
    """PNG with one row an example: image, before, after, measured, and the scale."""
    low, high = known_range(np.concatenate([e.truth.ravel() for e in examples]))
    rows = []
    for example in examples:
        height = max(1, round(width * example.rgb.shape[0] / example.rgb.shape[1]))
        size = width, height
        cells = [cv2.resize(np.ascontiguousarray(example.rgb[..., ::-1]), size,
                            interpolation=cv2.INTER_AREA)]
        cells += [
            cv2.resize(colorize(depth, low, high), size, interpolation=cv2.INTER_NEAREST)
            for depth in (example.before, example.after, example.truth)]
        rows.append(np.hstack([*cells, color_bar(low, high, height)]))
    return png(np.vstack(rows))
