# SPDX-License-Identifier: Apache-2.0
"""What a calibration found, in the order of its report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..color import UNTRAINED, color_bar, colorize, known_range, png
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
                'From left to right: image, depth before, after, and measured; near is red, far '
                'is blue, no depth is black. These frames were among those fitted to, unlike the '
                'numbers above.', picture)]


def _number(value: float) -> str:
    return f'{value:.3f}' if math.isfinite(value) else '–'


def draw_examples(
    examples: Sequence[tuple[NDArray[np.uint8], Sequence[NDArray[np.float32]]]], width: int = 240,
) -> bytes:
    """PNG with one row an example: its image, its depths (the last is measured), and the scale."""
    low, high = known_range(np.concatenate([depths[-1].ravel() for _, depths in examples]))
    rows = []
    for rgb, depths in examples:
        size = width, max(1, round(width * rgb.shape[0] / rgb.shape[1]))
        rows.append(np.hstack([
            cv2.resize(np.ascontiguousarray(rgb[..., ::-1]), size, interpolation=cv2.INTER_AREA),
            *(cv2.resize(colorize(depth, low, high), size, interpolation=cv2.INTER_NEAREST)
              for depth in depths), color_bar(low, high, size[1])]))
    return png(np.vstack(rows))
