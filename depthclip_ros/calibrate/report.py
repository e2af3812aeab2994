# SPDX-License-Identifier: Apache-2.0
"""What a calibration found, as one HTML file that needs nothing else, and as Markdown."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from ..color import UNTRAINED, color_bar, colorize
from ..core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from .fit import Fitted

#: Of the variants, what they are; the controls last.
ROWS = {
    'language': 'words alone (with the focal length), before',
    'scale': 'words times one fitted scale',
    'monotone': 'bins fitted, words as they are',
    'full': 'words corrected by features',
    'full, choices seen': 'the same, its strength chosen on the held-out blocks too',
    'mean map': 'control: the mean depth of every pixel, no image',
    'shuffled': 'control: corrected towards the depth of other frames',
}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 60rem; color: #1b1f24;
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid #d5d9df; }
th { background: #f5f6f8; } td + td { text-align: right; }
.warning { border-left: 5px solid #c22f2f; background: #fdf1f0; padding: .7rem 1rem; }
img { max-width: 100%; }
"""


class Heading(NamedTuple):
    """Of a section; of the whole report where it is the first."""

    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str
    warning: bool = False


class Table(NamedTuple):
    """Header and rows of texts."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Image(NamedTuple):
    """A picture, PNG."""

    title: str
    file: str
    data: bytes


@dataclass(frozen=True, eq=False)
class Example:
    """One frame for the pictures: uint8 RGB, and depth in metres of any size."""

    name: str
    rgb: NDArray[np.uint8]
    truth: NDArray[np.float32]
    before: NDArray[np.float32]
    after: NDArray[np.float32] | None


@dataclass(frozen=True)
class Context:
    """What the report says besides the fit.

    Attributes:
        source: recording, as it was given.
        described: image and depth of it, in words.
        model: weights and where they ran.
        trained: whether they are.
        recorded: frames in the recording.
        views: clearly different ones.
        left_out: what could not be used, by cause.
        refused: why the recording should have been refused, where it was used all the same.
        written: the parameter file; '' if none is written.

    """

    source: str
    described: str
    model: str
    trained: bool
    recorded: int
    views: int
    left_out: Mapping[str, int]
    refused: Sequence[str]
    written: str


def contents(
    fitted: Fitted, context: Context, examples: Sequence[Example], picture: str,
) -> list[Heading | Text | Table | Image]:
    """Put the report together.

    Args:
        fitted: what came out.
        context: what it was made of.
        examples: frames to show.
        picture: name of the picture's file, beside the Markdown.

    """
    parts: list[Heading | Text | Table | Image] = [
        Heading(f'Calibration on {context.source}')]
    if not context.trained:
        parts.append(Text(f'{UNTRAINED}; so is everything below.', warning=True))
    parts += [Text(f'The recording should have been refused. {message}', warning=True)
              for message in context.refused]
    parts += [
        Text(fitted.verdict, warning=not fitted.improved),
        Text(f'Written: {context.written}. Depth with it is no longer zero-shot.'
             if context.written else 'No parameter file is written.'),
        *_errors(fitted), *_quality(fitted), *_error_bars(fitted), *_recording(fitted, context)]
    if examples:
        parts += [Heading('Pictures'), Text(
            'From left to right: image, depth before, after, and measured; near is red, far is '
            'blue, no depth is black. These frames were among those fitted to, unlike the '
            'numbers above.'), Image('Examples', picture, _pictures(examples))]
    return parts


def _errors(fitted: Fitted) -> list[Heading | Text | Table]:
    rows = [
        (f'**{ROWS.get(name, name)}**' if name == fitted.variant else ROWS.get(name, name),
         _number(metrics.rmse), _number(metrics.delta1), _number(metrics.abs_rel))
        for name, metrics in sorted(fitted.held_out.items(), key=lambda item: (
            list(ROWS).index(item[0]) if item[0] in ROWS else len(ROWS)))]
    parts: list[Heading | Text | Table] = [
        Heading('Before and after, on blocks held out'),
        Text(f'{fitted.frames} frames in {fitted.blocks} blocks (sequences, or pieces of time). '
             'Every number is of frames in blocks that the fit did not see. Chosen: '
             f'{fitted.variant}.'),
        Table(('what', 'rmse [m]', 'δ1', 'rel'), rows)]
    if fitted.folds:
        names = list(fitted.folds[0])
        parts.append(Table(
            ('held out, rmse [m]', *names),
            [(str(i + 1), *(_number(fold.get(name, math.nan)) for name in names))
             for i, fold in enumerate(fitted.folds)]))
    return parts


def _quality(fitted: Fitted) -> list[Heading | Text | Table]:
    parts: list[Heading | Text | Table] = [
        Heading('The fit'),
        Table(('what', 'value'), [
            ('R², of the logarithm of depth that words leave, held out', _number(fitted.r2)),
            ('condition number of the normal equations', f'{fitted.condition:.3g}'),
            ('temperature of the greatest held-out likelihood', f'{fitted.temperature:.3g}'),
            ('fitted bins [m]', ', '.join(f'{b:.2f}' for b in fitted.monotone_bins)),
            *((str(name), _short(value)) for name, value in fitted.choices.items())])]
    if fitted.learning_curve:
        parts.append(Table(('frames fitted to', 'rmse held out [m]'), [
            (str(count), _number(rmse)) for count, rmse in fitted.learning_curve]))
    return parts


def _error_bars(fitted: Fitted) -> list[Heading | Text | Table]:
    return [
        Heading('Error bars'),
        Text(f'{fitted.coverage:.1%} of held-out depths lie within 1.645 standard deviations '
             '(90 % are meant to).'),
        Text("elevation_mapping's sensor model, sigma = a + b (z - c)² + d zᵉ in metres:"),
        Table(('a', 'b', 'c', 'd', 'e'), [tuple(f'{v:.5g}' for v in fitted.sensor_model)])]


def _recording(fitted: Fitted, context: Context) -> list[Heading | Text | Table]:
    parts: list[Heading | Text | Table] = [
        Heading('The recording'),
        Table(('what', 'value'), [
            ('images and depth', context.described),
            ('network', context.model),
            ('frames with depth', str(context.recorded)),
            ('clearly different views', str(context.views)),
            ('frames calibrated from', str(fitted.frames))])]
    if context.left_out:
        parts.append(Table(('left out', 'times'), [
            (cause, str(count)) for cause, count in sorted(context.left_out.items())]))
    return parts


def _number(value: float) -> str:
    return f'{value:.3f}' if math.isfinite(value) else '–'


def _short(value: object) -> str:
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, dict):
        return ', '.join(f'{key}: {_short(inner)}' for key, inner in value.items())
    return str(value)


def _pictures(examples: Sequence[Example], width: int = 240) -> bytes:
    """One row an example: image, before, after, measured, and the scale."""
    known = np.concatenate([e.truth[np.isfinite(e.truth)] for e in examples])
    low, high = (float(v) for v in np.percentile(known, (2, 98))) if known.size else (0.0, 1.0)
    high = max(high, low + 0.1)
    rows = []
    for example in examples:
        height = max(1, round(width * example.rgb.shape[0] / example.rgb.shape[1]))
        size = width, height
        cells = [cv2.resize(np.ascontiguousarray(example.rgb[..., ::-1]), size,
                            interpolation=cv2.INTER_AREA)]
        cells += [
            np.zeros((height, width, 3), np.uint8) if depth is None else cv2.resize(
                colorize(depth, low, high), size, interpolation=cv2.INTER_NEAREST)
            for depth in (example.before, example.after, example.truth)]
        rows.append(np.hstack([*cells, color_bar(low, high, height)]))
    done, data = cv2.imencode('.png', np.vstack(rows))
    if not done:
        raise ConfigError('the pictures of the report cannot be encoded')
    return bytes(data.tobytes())


def to_markdown(parts: Sequence[Heading | Text | Table | Image]) -> str:
    """Write the parts as Markdown; pictures are named, not held."""
    lines: list[str] = []
    for number, part in enumerate(parts):
        if isinstance(part, Heading):
            lines.append(f'{"##" if number else "#"} {part.text}')
        elif isinstance(part, Text):
            lines.append(f'> **{part.text}**' if part.warning else part.text)
        elif isinstance(part, Image):
            lines.append(f'![{part.title}]({part.file})')
        else:
            rows = [part.header, ('---',) * len(part.header), *part.rows]
            lines.append('\n'.join(
                f'| {" | ".join(cell.replace("|", "/") for cell in row)} |' for row in rows))
    return '\n\n'.join(lines) + '\n'


def to_html(parts: Sequence[Heading | Text | Table | Image]) -> str:
    """Write the parts as one HTML document that loads nothing."""
    body = []
    for number, part in enumerate(parts):
        if isinstance(part, Heading):
            tag = 'h2' if number else 'h1'
            body.append(f'<{tag}>{escape(part.text)}</{tag}>')
        elif isinstance(part, Text):
            kind = ' class="warning"' if part.warning else ''
            body.append(f'<p{kind}>{escape(part.text)}</p>')
        elif isinstance(part, Image):
            data = base64.b64encode(part.data).decode()
            body.append(f'<img alt="{escape(part.title)}" src="data:image/png;base64,{data}">')
        else:
            head = ''.join(f'<th>{escape(cell)}</th>' for cell in part.header)
            rows = ''.join('<tr>' + ''.join(f'<td>{_strong(cell)}</td>' for cell in row) + '</tr>'
                           for row in part.rows)
            body.append(f'<table><tr>{head}</tr>{rows}</table>')
    title = escape(parts[0].text) if isinstance(parts[0], Heading) else 'Calibration'
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        + '\n'.join(body) + '\n</body>\n</html>\n')


def _strong(cell: str) -> str:
    inner = escape(cell)
    return f'<strong>{inner[2:-2]}</strong>' \
        if len(inner) > 4 and inner.startswith('**') and inner.endswith('**') else inner
