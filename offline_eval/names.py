# SPDX-License-Identifier: Apache-2.0
"""How metrics are written: symbols, units, digits."""

from __future__ import annotations

import math

from .results import HIGHER_IS_BETTER, UNITS

SYMBOLS = {
    'd1': 'δ1', 'd2': 'δ2', 'd3': 'δ3', 'rel': 'rel', 'log10': 'log10', 'rmse': 'rmse',
    'abs_diff': 'abs_diff', 'sq_rel': 'sq_rel', 'rmse_log': 'rmse_log', 'silog': 'SILog'}

MEANINGS = {
    'd1': 'share of pixels with max(p/t, t/p) < 1.25',
    'd2': 'the same with 1.25²',
    'd3': 'the same with 1.25³',
    'rel': 'mean of |p − t| / t',
    'log10': 'mean of |log10 p − log10 t|',
    'rmse': 'root of the mean of (p − t)²',
    'abs_diff': 'mean of |p − t|',
    'sq_rel': 'mean of (p − t)² / t',
    'rmse_log': 'root of the mean of (ln p − ln t)²',
    'silog': '100 × standard deviation of ln p − ln t',
}


def heading(metric: str) -> str:
    """Symbol, unit, and which way is better."""
    arrow = '↑' if metric in HIGHER_IS_BETTER else '↓'
    shown = f' ({UNITS[metric]})' if metric in UNITS else ''
    return f'{SYMBOLS[metric]}{shown} {arrow}'


def unit(metric: str) -> str:
    """Unit after a number, with a space before it; '' for a ratio."""
    return f' {UNITS[metric]}' if metric in UNITS else ''


def number(value: float | None, *, signed: bool = False) -> str:
    """Three digits, as in the paper; – for what does not exist."""
    if value is None or not math.isfinite(value):
        return '–'
    text = f'{value:+.3f}' if signed else f'{value:.3f}'
    # A rounded zero has no direction.
    return ('±' if signed else '') + '0.000' if float(text) == 0 else text.replace('-', '−')
