# SPDX-License-Identifier: Apache-2.0
"""What a calibration found, in the order of its report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..color import GAP, UNTRAINED, Scale, canvas, color_bar, colorize, median_of, png, put_text
from ..document import Block, Heading, Picture, Strong, Table, Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .fit import Fitted
    from .recordings import Recording

#: Of the variants, what they are; the control last.
ROWS = {
    'none': 'words alone (with the focal length), before',
    'scale': 'words times one fitted scale',
    'full': 'words corrected by features',
    'mean map': 'control: the mean depth of every pixel, no image',
}


def contents(
    fitted: Fitted, recording: Recording, views: int, network: str, warnings: Sequence[str],
    written: Path, picture: str, *, trained: bool,
) -> list[Block]:
    """Put the report together.

    Args:
        fitted: what came out.
        recording: what it was made of, read.
        views: how many of it are clearly different.
        network: which, and what it ran on.
        warnings: what is doubtful about the recording, and why it should have been refused where
            it was used all the same.
        written: the parameter file.
        picture: name of the file of `draw_examples`, beside the report.
        trained: whether the weights are.

    """
    about, names = fitted.calibration.about, list(fitted.folds[0])
    rows = [[(Strong if name == fitted.variant else str)(text) for text in (
        what, *map(_number, fitted.held_out[name]))] for name, what in ROWS.items()]
    untrained = () if trained else (f'{UNTRAINED}; so is everything below.',)
    return [
        Heading(f'Calibration on {recording.source}', 1),
        *(Text(warning, warning=True) for warning in (*untrained, *warnings)),
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
        Text(f'{fitted.bars.coverage:.1%} of held-out depths lie within 1.645 standard deviations '
             '(90 % are meant to).'),
        Heading('The recording'),
        Table(('what', 'value'), [
            ('images and depth', recording.described), ('network', network),
            ('clearly different views', str(views)), ('frames with depth', str(len(recording))),
            *((f'left out: {cause}', str(count))
              for cause, count in sorted(recording.left_out.items()))], texts=frozenset({0, 1})),
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
    """PNG with one row an example: image, depth before, after and measured, and the scale."""
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
    for place, title in enumerate(('image', 'before', 'after', 'measured')):
        put_text(titles, title, (GAP + place * (width + GAP), 19), 0.5)
    return png(np.vstack([titles, *rows]))
