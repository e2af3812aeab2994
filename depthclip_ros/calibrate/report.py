# SPDX-License-Identifier: Apache-2.0
"""Contents of the report on a calibration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..drawing.color import (
    GAP,
    UNTRAINED,
    Scale,
    canvas,
    color_bar,
    colorize,
    median_of,
    png,
    put_text,
)
from ..report.document import Block, Heading, Picture, Strong, Table, Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .fit import FitResult
    from .recordings import Recording

#: Description of each variant; the control last.
ROWS = {
    'none': 'words alone (with the focal length), before',
    'scale': 'words times one fitted scale',
    'full': 'words corrected by features',
    'mean map': 'control: the mean depth of every patch, no image',
}


def contents(
    result: FitResult, recording: Recording, views: int, network: str, warnings: Sequence[str],
    file: Path, picture: str, *, trained: bool,
) -> list[Block]:
    """Compose the report.

    Args:
        result: of `fit`.
        recording: after `fit` has read its frames.
        views: number of clearly different views.
        network: weights, device and precision.
        warnings: doubts about the recording, and reasons to refuse it that --anyway overruled.
        file: the parameter file.
        picture: name of the file of `draw_examples`, beside the report.
        trained: whether the weights are trained.

    """
    origin, names = result.calibration.origin, list(result.folds[0])
    rows = [[(Strong if name == result.variant else str)(text) for text in (
        description, *map(_number, result.held_out[name]))] for name, description in ROWS.items()]
    untrained = () if trained else (f'{UNTRAINED}; so is everything below.',)
    return [
        Heading(f'Calibration on {recording.source}', 1),
        *(Text(warning, warning=True) for warning in (*untrained, *warnings)),
        Text(result.verdict, warning=not result.improved),
        Text(f'Written: {file}. Depth with it is no longer zero-shot.'),
        Heading('Before and after, on blocks held out'),
        Text(f'{origin.frames} frames in {origin.blocks} blocks (sequences, or pieces of time). '
             'Every number is of frames in blocks that the fit did not see; by them the share of '
             f'the correction was chosen, {result.shrinkage:.0%}. Taken: {result.variant}.'),
        Table(('what', 'rmse [m]', 'δ1', 'rel'), rows),
        Table(('held out, rmse [m]', *names), [
            (str(i), *(_number(fold[name]) for name in names))
            for i, fold in enumerate(result.folds, 1)]),
        Heading('Error bars'),
        Text(f'{result.bars.coverage:.1%} of held-out depths lie within 1.645 standard deviations '
             '(90 % are meant to).'),
        Heading('The recording'),
        Table(('what', 'value'), [
            ('images and depth', recording.description), ('network', network),
            ('clearly different views', str(views)), ('frames with depth', str(len(recording))),
            *((f'left out: {cause}', str(count))
              for cause, count in sorted(recording.failures.items()))], texts=frozenset({0, 1})),
        Heading('Pictures'),
        Picture('Examples',
                'One colour scale for all, even in the logarithm of depth: near is bright, no '
                'depth is light grey, the mark is the median of what was measured. These frames '
                'were among those fitted to, unlike the numbers above.', picture)]


def _number(value: float) -> str:
    return f'{value:.3f}' if math.isfinite(value) else '–'


def draw_examples(
    examples: Sequence[tuple[NDArray[np.uint8], Sequence[NDArray[np.float32]]]], scale: Scale,
    width: int = 240,
) -> bytes:
    """Draw a PNG with one row per example: image; depth before, after and measured; its scale."""
    rows = []
    for rgb, depths in examples:
        size = width, max(1, round(width * rgb.shape[0] / rgb.shape[1]))
        pictures = [cv2.resize(np.ascontiguousarray(rgb[..., ::-1]), size,
                               interpolation=cv2.INTER_AREA),
                    *(cv2.resize(colorize(depth, scale), size, interpolation=cv2.INTER_NEAREST)
                      for depth in depths)]
        gap = canvas(size[1], GAP)
        row = np.hstack([*(part for picture in pictures for part in (gap, picture)), gap,
                         color_bar(scale, size[1], median_of(depths[-1]))])
        rows += [row, canvas(GAP, row.shape[1])]
    titles = canvas(28, rows[0].shape[1])
    for column, title in enumerate(('image', 'before', 'after', 'measured')):
        put_text(titles, title, (GAP + column * (width + GAP), 19), 0.5)
    return png(np.vstack([titles, *rows]))
