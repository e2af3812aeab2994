# SPDX-License-Identifier: Apache-2.0
"""What all figures share: matplotlib in one style, panels placed in inches, depth in colours."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depthclip_ros.color import colorize
from depthclip_ros.core.errors import DepthClipError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from offline_eval.results import Sample

WIDTH = 6.9  # inches, the text width of a two-column paper
GROUND_TRUTH, PREDICTION = '#0072b2', '#d55e00'  # told apart by everyone
# One colour per patch of Figure 4; all of them stand out from wood, walls and floors.
PATCHES = ('#d55e00', '#cc3fa0', '#0072b2', '#009e73')
NO_TRUTH = (0xd0, 0xd0, 0xd0)
ERROR_MAP = 'RdBu_r'
PICTURE_DPI = 300

_STYLE = {
    'font.family': 'DejaVu Sans', 'font.size': 7.5,
    'axes.titlesize': 7.5, 'axes.labelsize': 7.5, 'axes.linewidth': 0.6,
    'xtick.labelsize': 6.5, 'ytick.labelsize': 6.5, 'legend.fontsize': 6.5,
    'xtick.major.width': 0.6, 'ytick.major.width': 0.6,
    'xtick.major.size': 2.5, 'ytick.major.size': 2.5, 'xtick.major.pad': 2,
    'ytick.major.pad': 2, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.titlepad': 3, 'legend.frameon': False, 'lines.linewidth': 1.2,
    # Outlines in the report look alike everywhere; letters in the PDF can be searched.
    'svg.fonttype': 'path', 'pdf.fonttype': 42, 'svg.hashsalt': 'depthclip_ros',
}


class FiguresMissingError(DepthClipError):
    """Matplotlib is not there."""


def require() -> None:
    """Import what draws.

    Raises:
        FiguresMissingError: with the remedy.

    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise FiguresMissingError(
            f'The figures need matplotlib 3.5 or newer ({error}): '
            '`python3 -m pip install matplotlib`, or `apt install python3-matplotlib`; then '
            '`python3 -m offline_eval.report FOLDER` writes the report again.') from error


@contextmanager
def _style() -> Iterator[None]:
    """For drawing, and again for writing: each reads settings of its own."""
    from matplotlib import style
    with style.context(['default', _STYLE], after_reset=True):
        yield


@contextmanager
def new_figure(height: float, width: float = WIDTH) -> Iterator[Figure]:
    """Make a figure of a size in inches, in the common style whatever the user's settings are."""
    from matplotlib.figure import Figure
    with _style():
        yield Figure(figsize=(width, height))


def panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, counted from the upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((
        left / across, 1 - (top + height) / down, width / across, height / down))


def write_text(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    """Text at a place in inches, its upper left corner there unless `style` says else."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - top / down, text, **{'va': 'top', 'ha': 'left', **style})


def picture(axes: Axes, rgb: NDArray[np.uint8], width: float) -> None:
    """Show a picture without axes; made smaller where print could not show all its pixels.

    Args:
        axes: where.
        rgb: (H, W, 3).
        width: of the axes, in inches.

    """
    height, columns = rgb.shape[:2]
    fitting = round(width * PICTURE_DPI)
    if columns > fitting:
        size = (fitting, round(height * fitting / columns))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    axes.imshow(rgb, interpolation='none', aspect='auto', extent=(-0.5, columns - 0.5,
                                                                  height - 0.5, -0.5))
    axes.set_axis_off()


def paint_depth(depth: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Depth in the node's own colours, RGB; grey where there is none."""
    painted = colorize(depth, low, high)[:, :, ::-1].copy()
    painted[np.isnan(depth)] = NO_TRUTH
    return painted


def paint_error(error: NDArray[np.float32], limit: float) -> NDArray[np.uint8]:
    """Signed error: red where the prediction is too far, blue too near, grey without truth."""
    from matplotlib import colormaps
    level = np.clip(np.nan_to_num(error) / (2 * limit) + 0.5, 0, 1)
    painted: NDArray[np.uint8] = colormaps[ERROR_MAP](level, bytes=True)[:, :, :3].copy()
    painted[np.isnan(error)] = NO_TRUTH
    return painted


def depth_limits(sample: Sample) -> tuple[float, float]:
    """Colour scale of one image: all of the prediction and 98 % of the ground truth [m]."""
    truth = sample.ground_truth[np.isfinite(sample.ground_truth)]
    predicted = sample.depth[np.isfinite(sample.depth)]
    ends = [*np.percentile(truth, [1, 99])] if truth.size else []
    ends += [predicted.min(), predicted.max()] if predicted.size else []
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    low, high = np.floor(float(low) * 10) / 10, np.ceil(float(high) * 10) / 10
    return float(low), float(max(high, low + 0.1))


def beyond(values: NDArray[np.float32], low: float, high: float) -> str:
    """Ends of a colour bar that get an arrow, because values lie beyond them."""
    under, over = bool(np.nanmin(values) < low), bool(np.nanmax(values) > high)
    return {(False, False): 'neither', (True, False): 'min',
            (False, True): 'max', (True, True): 'both'}[under, over]


def color_bar(
    axes: Axes, color_map: str, low: float, high: float, label: str, arrows: str,
) -> None:
    """Draw a scale with its unit."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator
    bar = axes.figure.colorbar(
        ScalarMappable(Normalize(low, high), color_map), cax=axes, extend=arrows, extendfrac=0.05,
        ticks=MaxNLocator(5))
    bar.outline.set_linewidth(0.5)
    bar.set_label(label, labelpad=2)


def to_svg(figure: Figure) -> str:
    """SVG text; the same figure gives the same text."""
    stream = io.BytesIO()
    with _style():
        figure.savefig(stream, format='svg', dpi=PICTURE_DPI,
                       metadata={'Date': None, 'Creator': 'depthclip_ros'})
    return stream.getvalue().decode()


def to_pdf(figure: Figure) -> bytes:
    """PDF for a paper."""
    stream = io.BytesIO()
    with _style():
        figure.savefig(stream, format='pdf', dpi=PICTURE_DPI, metadata={
            'CreationDate': None, 'Creator': 'depthclip_ros'})
    return stream.getvalue()


def image_label(sample: Sample) -> str:
    """Name an image: index, and scene class where it is known."""
    return f'image {sample.index}' + (f', {sample.scene}' if sample.scene else '')

