# SPDX-License-Identifier: Apache-2.0
"""Matplotlib figures of predicted depth in one style, for reports and commands.

Matplotlib's constrained layout places panels and labels.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, rcParams, style
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from msgspec import Struct

from ..core.errors import DepthClipError
from ..core.files import atomic, printable
from ..core.opencv import cv2
from ..drawing.color import UNKNOWN, Scale, depth_scale, median_of
from .document import Picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from ..core.config import DepthConfig
    from ..core.prediction import DepthPrediction

    Float32 = NDArray[np.float32]
    Place = tuple[int, int]  # row and column of a patch

WIDTH = 6.9  # inches, the text width of a two-column paper
TRUTH, PREDICTED = '#0072b2', '#d55e00'  # safe for colour-blind readers
# One colour per patch, in the order of LETTERS; all stand out from wood, walls and floors.
PATCHES = ('#d55e00', '#cc3fa0', '#0072b2', '#009e73')
LETTERS = 'ABCD'
QUANTILES = (0.05, 0.35, 0.65, 0.95)  # of the depth, of the selected patches
#: Captions of `predictions` and of `responses` at `spots_of`.
PREDICTIONS = (
    'As in the paper’s Figure 5, cropped to what the network sees. One colour scale of depth for '
    'all rows, even in its logarithm, near is bright; it spans 96 % of all that is shown, and is '
    'labelled at the median of the row’s truth. The error is prediction minus ground truth; its '
    'scale spans 98 % of its sizes, red is too far. An arrow on a scale: there are values '
    'beyond it. Grey: not known, not counted.')
RESPONSES = (
    'As in the paper’s Figure 4. The patches are not picked by hand: they are at 5, 35, 65 and '
    '95 % of the true depth, of those where half of the pixels have one, else of the predicted. '
    'Bars: weight of each word, they sum to 1; dotted: the weight of a network that knows '
    'nothing. GT: median true depth of the patch. Pred: its depth; with flip_average that is the '
    'mean of the plain and the mirrored pass, and the bars are those of the plain one.')
_INVALID_COLOR = '#' + bytes(UNKNOWN).hex()
_MAX_COLUMNS = 480  # pixels of a picture in a sample
_MAPS_PER_ROW = 5
_STYLE = {
    'font.family': 'DejaVu Sans', 'font.size': 7.5, 'axes.titlesize': 7.5, 'axes.labelsize': 7.5,
    'axes.linewidth': 0.6, 'xtick.labelsize': 6.5, 'ytick.labelsize': 6.5, 'legend.fontsize': 6.5,
    'xtick.major.width': 0.6, 'ytick.major.width': 0.6, 'xtick.major.size': 2.5,
    'ytick.major.size': 2.5, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.titlepad': 3, 'axes.titlelocation': 'left', 'legend.frameon': False,
    'lines.linewidth': 1.2, 'figure.titlesize': 7.5, 'figure.titleweight': 'bold',
    'svg.fonttype': 'path', 'svg.hashsalt': 'depthclip_ros', 'savefig.dpi': 170,
    # Names of files and words are no formulas (matplotlib 3.5 always takes $…$ for one).
    **({'text.parse_math': False} if 'text.parse_math' in rcParams else {})}


class Sample(Struct, frozen=True, eq=False, kw_only=True):
    """One image for the figures; depth is in metres, NaN where there is none.

    Patch (i, j) of (h, w) covers the pixels [i H/h, (i+1) H/h) x [j W/w, (j+1) W/w).
    """

    index: int = 0  # of the image in its data set
    name: str
    scene: str = ''  # scene class, if known
    role: str = 'example'  # such as 'best', 'median' or 'worst'
    rgb: NDArray[np.uint8]  # (H, W, 3)
    depth: Float32  # (H, W), predicted
    truth: Float32  # (H, W), NaN where no pixel is scored
    weights: Float32 = np.zeros((0, 1, 1), np.float32)  # (K, h, w), of every word
    patch_depth: Float32 = np.full((1, 1), np.nan, np.float32)  # (h, w)
    tokens: list[str] = []  # the K words
    bins: list[float] = []  # their depth, metres
    metrics: dict[str, float] = {}  # of this image, by name

    @property
    def label(self) -> str:
        """Index, and scene class if known."""
        return f'image {self.index}' + (f', {self.scene}' if self.scene else '')


def sample_of(
    rgb: NDArray[np.uint8], prediction: DepthPrediction, config: DepthConfig, name: str = '',
) -> Sample:
    """Make a sample of a picture without measured depth.

    Args:
        rgb: (H, W, 3); reduced to at most 480 columns.
        prediction: of the picture.
        config: of the prediction.
        name: of the picture.

    """
    height, width = prediction.image_size
    scale = min(1.0, _MAX_COLUMNS / width)
    size = round(width * scale), round(height * scale)
    depth = np.asarray(cv2.resize(
        finite_or_nan(prediction.depth), size, interpolation=cv2.INTER_NEAREST), np.float32)
    return Sample(
        name=name, rgb=np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8),
        depth=depth, truth=np.full_like(depth, np.nan), weights=prediction.weights,
        patch_depth=finite_or_nan(prediction.patch_depth), tokens=list(config.tokens),
        bins=prediction.word_depths(config))


def finite_or_nan(metres: Float32) -> Float32:
    """Replace infinite depth (out of range) by NaN."""
    return np.where(np.isfinite(metres), metres, np.float32(np.nan))


def figure_style() -> AbstractContextManager[None]:
    """Set one style, regardless of the user's; use it for drawing and for saving."""
    return style.context(['default', _STYLE], after_reset=True)


def new_figure(height: float) -> Figure:
    """Make an empty figure of the text's width, with a height in inches."""
    return Figure(figsize=(WIDTH, height), layout='constrained')


def save(folder: Path, name: str, figure: Figure, title: str, caption: str) -> Picture:
    """Write a figure into `figures/`; equal figures give equal files.

    Args:
        folder: of the page that shows it.
        name: of the file; it ends in .png (photographs) or .svg (charts).
        figure: to write, within `figure_style`.
        title: for the page.
        caption: for the page.

    Raises:
        DepthClipError: it cannot be written.

    """
    stream, path = io.BytesIO(), folder / 'figures' / name
    figure.savefig(stream, format=path.suffix[1:], metadata={
        'Software': 'depthclip_ros'} if path.suffix == '.png' else {
        'Date': None, 'Creator': 'depthclip_ros'})
    try:
        with atomic(path) as file:
            file.write(stream.getvalue())
    except OSError as error:
        raise DepthClipError(f'{path}: cannot be written ({error.strerror or error}). Free space '
                             'or choose another folder.') from error
    return Picture(title, caption, f'figures/{name}')


# Depth in colours --------------------------------------------------------------------------------


def predictions(
    samples: Sequence[Sample], symbols: Mapping[str, str], scale: Scale | None = None,
) -> Figure:
    """Draw one row per image: RGB, prediction, ground truth, error, with metrics above.

    Args:
        samples: the images.
        symbols: format of each metric that is shown, such as 'rel {:.3f}'.
        scale: of the colours of depth; None: `scale_of` the images.

    """
    scale = scale or scale_of(samples)
    figure = new_figure(sum(1.32 * s.rgb.shape[0] / s.rgb.shape[1] + 0.42 for s in samples))
    parts: Any = figure.subfigures(len(samples), 1, squeeze=False)
    for part, sample in zip(parts[:, 0], samples, strict=True):
        photo, *panels = part.subplots(1, 4)
        _draw_photo(photo, sample, 'RGB')
        error = sample.depth - sample.truth
        sizes = np.abs(error[np.isfinite(error)])
        largest = max(float(np.percentile(sizes, 98)), 1e-3) if sizes.size else 1.0
        _draw_depth(panels[0], sample.depth, scale, 'Prediction')
        truth = _draw_depth(panels[1], sample.truth, scale, 'Ground truth')
        _draw_color_bar(part, truth, [photo, *panels[:2]], 'depth (m)', sample.truth, scale)
        difference = _draw_map(
            panels[2], error, 'RdBu_r', Normalize(-largest, largest), 'Error')
        _draw_color_bar(part, difference, panels[2:], 'error (m)', error)
        numbers = '   '.join(text.format(sample.metrics[m])
                             for m, text in symbols.items() if m in sample.metrics)
        part.suptitle(f'{sample.role}: {sample.label}, {short(sample.name)}    {numbers}',
                      x=0.01, ha='left')
    return figure


def distributions(
    edges: Sequence[float], counts: Mapping[str, Sequence[int]], bins: Sequence[Sequence[float]],
    label: str, everything: str = '',
) -> Figure:
    """Draw distributions of depth: a panel each on common axes, from near to far.

    Args:
        edges: (n + 1,) metres.
        counts: n pixel counts of each distribution, by panel title.
        bins: metres to mark in each panel.
        label: of the depth axis.
        everything: title of the distribution that all panels show, instead of an own panel.

    """
    edges_ = np.asarray(edges, float)
    curves = {title: (density(edges_, numbers), marks)
              for (title, numbers), marks in zip(counts.items(), bins, strict=True)
              if sum(numbers)}
    titles = sorted((t for t in curves if t != everything),
                    key=lambda t: quantile(edges_, curves[t][0], 0.5)) or list(curves)
    highest = max(float(values.max()) for values, _ in curves.values())
    columns = min(len(titles), 4)
    rows = -(-len(titles) // columns)  # the legend goes where a panel is missing, or above
    is_full = len(titles) == rows * columns
    figure = new_figure(1.15 * rows + 0.3 + 0.4 * (rows == 1) + 0.2 * is_full)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, title in zip(panels.flat, titles, strict=False):
        values, marks = curves[title]
        axes.stairs(values, edges_, fill=True, color=TRUTH, alpha=0.55, lw=0, label='this one')
        if everything in curves:
            axes.stairs(curves[everything][0], edges_, color='#555555', lw=0.7, label=everything)
        axes.axhline(0, color='black', lw=0.5)
        axes.axvline(quantile(edges_, values, 0.5), color=TRUTH, lw=0.9, ls='--', label='median')
        axes.vlines(marks, -0.075 * highest, 0, color=PREDICTED, lw=0.9, label='bins')
        axes.set_title(title)
    panels[0, 0].set(xlim=(0, max(quantile(edges_, d, 0.995) for d, _ in curves.values())),
                     ylim=(-0.09 * highest, 1.05 * highest))
    for place, axes in enumerate(panels.flat[len(titles):], len(titles) - columns):
        axes.set_axis_off()
        panels.flat[place].tick_params(labelbottom=True)
    handles, names = panels[0, 0].get_legend_handles_labels()
    if is_full:
        figure.legend(handles, names, loc='outside upper right', ncols=4)
    else:
        panels.flat[-1].legend(handles, names, loc='center')
    figure.supxlabel(label, size=7.5)
    figure.supylabel('density (1/m)', size=7.5)
    return figure


def density(edges: NDArray[np.float64], counts: Any) -> NDArray[np.float64]:
    """Convert counts to a density: fraction of the pixels per metre."""
    numbers = np.asarray(counts, float)
    result: NDArray[np.float64] = numbers / (numbers.sum() * np.diff(edges))
    return result


def quantile(edges: NDArray[np.float64], values: NDArray[np.float64], share: float) -> float:
    """Compute a quantile of a density [m]."""
    below = np.concatenate([[0.0], np.cumsum(values * np.diff(edges))])
    return float(np.interp(share, below, edges))


def scale_of(samples: Sequence[Sample]) -> Scale:
    """Make one colour scale for predictions and ground truth of all samples."""
    return depth_scale(depth for sample in samples for depth in (sample.depth, sample.truth))


# Responses of the words --------------------------------------------------------------------------


def responses(
    sample: Sample, title: str, spots: Mapping[Place, str], scale: Scale | None = None,
) -> Figure:
    """Draw picture, depth, and the weights of all words in patches: the paper's Figure 4.

    Args:
        sample: the image and its prediction.
        title: above the picture.
        spots: up to four patches, and the titles of their bars.
        scale: of the colours of depth; None: `scale_of` the image.

    """
    count, rows, columns = sample.weights.shape
    photo = (WIDTH - 0.8) / 2 * sample.rgb.shape[0] / sample.rgb.shape[1] + 0.3
    below = 0.16 * count + 0.95
    figure = new_figure(photo + below)
    parts: Any = figure.subfigures(2, 1, height_ratios=[photo, below])
    left, right = parts[0].subplots(1, 2)
    _draw_photo(left, sample, title)
    scale = scale or scale_of([sample])
    image = _draw_depth(right, sample.depth, scale, 'depth')
    _draw_color_bar(parts[0], image, [right], 'depth (m)', sample.depth, scale)
    charts = parts[1].subplots(1, max(1, len(spots)), sharex=True, sharey=True, squeeze=False)[0]
    height, width = sample.rgb.shape[0] / rows, sample.rgb.shape[1] / columns
    for axes, ((row, column), title_), color, letter in zip(
            charts, spots.items(), PATCHES, LETTERS, strict=False):
        x, y = column * width - 0.5, row * height - 0.5
        for edge, line in (('white', 3.0), (color, 1.6)):
            left.add_patch(Rectangle((x, y), width, height, fill=False, ec=edge, lw=line))
        has_room = column + 1 < columns
        left.text(x + (1.25 if has_room else -0.25) * width, y + height / 2, letter, color='white',
                  weight='bold', ha='left' if has_room else 'right', va='center', size=6.5,
                  bbox={'boxstyle': 'round,pad=0.2', 'fc': color, 'ec': 'white', 'lw': 0.6})
        axes.barh(range(count), sample.weights[:, row, column], color=color, height=0.72)
        axes.axvline(1 / count, color='#444444', lw=0.8, ls=':')
        axes.set(ylim=(count - 0.4, -0.6), xlabel='weight')
        axes.locator_params(axis='x', nbins=3)
        axes.set_title(f'{letter}: {title_}')
    charts[0].set_yticks(range(count), [
        f'{short(word)}   {metres:.2f} m'
        for word, metres in zip(sample.tokens, sample.bins, strict=True)])
    charts[0].tick_params(axis='y', length=0)
    return figure


def spots_of(sample: Sample, places: Sequence[Place] = ()) -> dict[Place, str]:
    """Select patches at fixed quantiles of depth, with their depth as text.

    The quantiles are of the true depth, or of the predicted depth if too little truth is valid;
    `places` overrides the selection.
    """
    truths = patch_truth(sample)
    return {place: (f'GT {truths[place]:.2f} m\n' if np.isfinite(truths[place]) else '')
            + f'Pred {sample.patch_depth[place]:.2f} m'
            for place in places or at_quantiles(truths) or at_quantiles(sample.patch_depth)}


def at_quantiles(depths: NDArray[np.floating[Any]]) -> list[Place]:
    """Find up to four places in a (h, w) map, near to far, at fixed quantiles of finite depth."""
    places = np.argwhere(np.isfinite(depths))
    if not len(places):
        return []
    ranked = places[np.argsort(depths[places[:, 0], places[:, 1]], kind='stable')]
    ranks = dict.fromkeys(round(q * (len(ranked) - 1)) for q in QUANTILES)
    return [(int(i), int(j)) for i, j in ranked[list(ranks)]]


def patch_truth(sample: Sample) -> NDArray[np.float64]:
    """Compute the median true depth per patch, (h, w) [m]; NaN where less than half is valid."""
    height, width = sample.truth.shape
    rows, columns = sample.patch_depth.shape
    truths = np.full((rows, columns), np.nan)
    for i, j in np.ndindex(rows, columns):
        block = sample.truth[i * height // rows:(i + 1) * height // rows,
                             j * width // columns:(j + 1) * width // columns]
        valid = block[np.isfinite(block)]
        if valid.size and 2 * valid.size >= block.size:
            truths[i, j] = np.median(valid)
    return truths


def maps(sample: Sample, label: str) -> Figure:
    """Draw one map per word: the weights of all patches, over the picture in grey."""
    count = len(sample.tokens)
    columns = min(count, _MAPS_PER_ROW)
    rows = -(-count // columns)
    height, width = sample.rgb.shape[:2]
    figure = new_figure(rows * ((WIDTH - 0.6) / columns * height / width + 0.22) + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False)
    weights_ = sample.weights[np.isfinite(sample.weights)]
    grey = np.asarray(cv2.cvtColor(sample.rgb, cv2.COLOR_RGB2GRAY))
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    for axes, word, metres, weights in zip(
            panels.flat, sample.tokens, sample.bins, sample.weights, strict=False):
        axes.imshow(grey, cmap='gray', vmin=0, vmax=255)
        image = _draw_map(
            axes, weights, 'inferno', Normalize(0, float(weights_.max(initial=1e-3))),
            f'{short(word)}  {metres:.2f} m', alpha=0.7, interpolation='nearest',
            extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    figure.suptitle(label, x=0.01, ha='left')
    _draw_color_bar(figure, image, panels.flat, 'weight', weights_)
    return figure


def short(text: str, max_length: int = 30) -> str:
    """Shorten a text to the length of a label; characters become `printable`."""
    text = printable(text)
    return text if len(text) <= max_length else text[:max_length - 1] + '…'


def _draw_photo(axes: Axes, sample: Sample, title: str) -> None:
    axes.imshow(sample.rgb)
    axes.set_axis_off()
    axes.set_title(title)


def _draw_map(
    axes: Axes, values: Float32, colors: str, norm: Normalize, title: str, **options: Any,
) -> Any:
    """Draw a map in colours, grey where invalid; returns the image for a colour bar."""
    axes.set_axis_off()
    axes.set_title(title)
    return axes.imshow(values, colormaps[colors].with_extremes(bad=_INVALID_COLOR), norm=norm,
                       interpolation_stage='rgba', **options)


def _draw_depth(axes: Axes, depth: Float32, scale: Scale, title: str) -> Any:
    """Draw depth in the colours of `color.colorize`."""
    return _draw_map(axes, depth, f'{scale.colormap}_r', LogNorm(scale.low, scale.high), title)


def _draw_color_bar(
    figure: Any, image: Any, panels: Any, label: str, values: Float32, scale: Scale | None = None,
) -> None:
    """Draw a colour bar beside the panels, with arrows if values exceed it.

    With `scale`, labels are at its ends and at the values' median.
    """
    finite, (low, high) = values[np.isfinite(values)], image.get_clim()
    extend = {(False, False): 'neither', (True, False): 'min', (False, True): 'max',
              (True, True): 'both'}[bool((finite < low).any()), bool((finite > high).any())]
    bar = figure.colorbar(image, ax=list(panels), aspect=12, pad=0.02, extend=extend,
                          extendfrac=0.05, ticks=MaxNLocator(5), label=label)
    bar.outline.set_linewidth(0.5)
    if scale:
        ticks = scale.ticks(median := median_of(values))
        bar.ax.axhline(median, color='white', lw=1)
        bar.minorticks_off()
        bar.set_ticks(ticks, labels=[f'{round(tick, 2):g}' for tick in ticks])
