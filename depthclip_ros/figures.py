# SPDX-License-Identifier: Apache-2.0
"""Figures of depth by words, in one style: for reports, and for commands on one's own pictures.

Nothing is placed by hand but the order of the panels: matplotlib's constrained layout finds the
room that labels need.
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

from .color import UNKNOWN, Scale, depth_scale, median_of
from .core.errors import DepthClipError
from .core.files import atomic, printable
from .core.opencv import cv2
from .document import Picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from .core.config import DepthConfig
    from .core.prediction import DepthPrediction

    Float32 = NDArray[np.float32]
    Place = tuple[int, int]  # row and column of a patch

WIDTH = 6.9  # inches, the text width of a two-column paper
TRUTH, PREDICTED = '#0072b2', '#d55e00'  # told apart by everyone
# One colour per patch, in the order of LETTERS; all stand out from wood, walls and floors.
PATCHES = ('#d55e00', '#cc3fa0', '#0072b2', '#009e73')
LETTERS = 'ABCD'
QUANTILES = (0.05, 0.35, 0.65, 0.95)  # of the depth, where patches are taken
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
_GREY = '#' + bytes(UNKNOWN).hex()  # no value
_WIDEST = 480  # pixels of a picture that is kept
_COLUMNS = 5  # maps in a row
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
    scene: str = ''  # its class, where it is known
    role: str = 'example'  # what it is an example of, as 'best', 'median' or 'worst'
    rgb: NDArray[np.uint8]  # (H, W, 3)
    depth: Float32  # (H, W), predicted
    truth: Float32  # (H, W), NaN where it does not count
    weights: Float32 = np.zeros((0, 1, 1), np.float32)  # (K, h, w), of every word
    patch_depth: Float32 = np.full((1, 1), np.nan, np.float32)  # (h, w)
    tokens: list[str] = []  # the K words
    bins: list[float] = []  # and their depth
    metrics: dict[str, float] = {}  # of this image, by name

    @property
    def label(self) -> str:
        """Index, and scene class where it is known."""
        return f'image {self.index}' + (f', {self.scene}' if self.scene else '')


def sample_of(
    rgb: NDArray[np.uint8], prediction: DepthPrediction, config: DepthConfig, name: str = '',
) -> Sample:
    """What words say of a picture, of which nothing was measured.

    Args:
        rgb: (H, W, 3) of the picture; at most 480 columns are kept.
        prediction: of it.
        config: with its words.
        name: of the picture.

    """
    height, width = prediction.image_size
    scale = min(1.0, _WIDEST / width)
    size = round(width * scale), round(height * scale)
    depth = np.asarray(cv2.resize(
        finite_or_nan(prediction.depth), size, interpolation=cv2.INTER_NEAREST), np.float32)
    return Sample(
        name=name, rgb=np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8),
        depth=depth, truth=np.full_like(depth, np.nan), weights=prediction.weights,
        patch_depth=finite_or_nan(prediction.patch_depth), tokens=list(config.tokens),
        bins=prediction.word_depths(config))


def finite_or_nan(metres: Float32) -> Float32:
    """NaN for what is too near or too far as well."""
    return np.where(np.isfinite(metres), metres, np.float32(np.nan))


def look() -> AbstractContextManager[None]:
    """One look, whatever the user's settings are; drawing and writing both read them."""
    return style.context(['default', _STYLE], after_reset=True)


def new_figure(height: float) -> Figure:
    """Empty page of the text's width and this height in inches."""
    return Figure(figsize=(WIDTH, height), layout='constrained')


def save(folder: Path, name: str, figure: Figure, title: str, caption: str) -> Picture:
    """Write a figure into `figures/`; the same figure gives the same file.

    Args:
        folder: of the page that shows it.
        name: of the file; it ends in .png (photographs) or .svg (charts).
        figure: to write, within `look`.
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
    """One row per image: RGB, prediction, ground truth, error, and its numbers above.

    Args:
        samples: the images.
        symbols: of the metrics whose numbers are shown, with a place for each: 'rel {:.3f}'.
        scale: of the colours of depth; None: `scale_of` the images.

    """
    scale = scale or scale_of(samples)
    figure = new_figure(sum(1.32 * s.rgb.shape[0] / s.rgb.shape[1] + 0.42 for s in samples))
    parts: Any = figure.subfigures(len(samples), 1, squeeze=False)
    for part, sample in zip(parts[:, 0], samples, strict=True):
        photo, *panels = part.subplots(1, 4)
        _photo(photo, sample, 'RGB')
        error = sample.depth - sample.truth
        sizes = np.abs(error[np.isfinite(error)])
        largest = max(float(np.percentile(sizes, 98)), 1e-3) if sizes.size else 1.0
        _depth(panels[0], sample.depth, scale, 'Prediction')
        truth = _depth(panels[1], sample.truth, scale, 'Ground truth')
        _bar(part, truth, [photo, *panels[:2]], 'depth (m)', sample.truth, scale)
        _bar(part, _map(panels[2], error, 'RdBu_r', Normalize(-largest, largest), 'Error'),
             panels[2:], 'error (m)', error)
        numbers = '   '.join(text.format(sample.metrics[m])
                             for m, text in symbols.items() if m in sample.metrics)
        part.suptitle(f'{sample.role}: {sample.label}, {short(sample.name)}    {numbers}',
                      x=0.01, ha='left')
    return figure


def distributions(
    edges: Sequence[float], counts: Mapping[str, Sequence[int]], bins: Sequence[Sequence[float]],
    label: str, everything: str = '',
) -> Figure:
    """How often each depth occurs: a panel each on common axes, from near to far.

    Args:
        edges: (n + 1,) metres.
        counts: n numbers each, by the panels' titles.
        bins: metres to mark, of each.
        label: of the depth.
        everything: the title of what is drawn in every panel, too, instead of in its own.

    """
    edges_ = np.asarray(edges, float)
    drawn = {title: (density(edges_, numbers), marks)
             for (title, numbers), marks in zip(counts.items(), bins, strict=True) if sum(numbers)}
    titles = sorted((t for t in drawn if t != everything),
                    key=lambda t: quantile(edges_, drawn[t][0], 0.5)) or list(drawn)
    high = max(float(values.max()) for values, _ in drawn.values())
    columns = min(len(titles), 4)
    rows = -(-len(titles) // columns)  # the legend goes where a panel is missing, or above
    is_full = len(titles) == rows * columns
    figure = new_figure(1.15 * rows + 0.3 + 0.4 * (rows == 1) + 0.2 * is_full)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, title in zip(panels.flat, titles, strict=False):
        values, marks = drawn[title]
        axes.stairs(values, edges_, fill=True, color=TRUTH, alpha=0.55, lw=0, label='this one')
        if everything in drawn:
            axes.stairs(drawn[everything][0], edges_, color='#555555', lw=0.7, label=everything)
        axes.axhline(0, color='black', lw=0.5)
        axes.axvline(quantile(edges_, values, 0.5), color=TRUTH, lw=0.9, ls='--', label='median')
        axes.vlines(marks, -0.075 * high, 0, color=PREDICTED, lw=0.9, label='bins')
        axes.set_title(title)
    panels[0, 0].set(xlim=(0, max(quantile(edges_, d, 0.995) for d, _ in drawn.values())),
                     ylim=(-0.09 * high, 1.05 * high))
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
    """Share of the pixels per metre."""
    numbers = np.asarray(counts, float)
    result: NDArray[np.float64] = numbers / (numbers.sum() * np.diff(edges))
    return result


def quantile(edges: NDArray[np.float64], values: NDArray[np.float64], share: float) -> float:
    """Depth below which a share of the pixels lies [m]."""
    below = np.concatenate([[0.0], np.cumsum(values * np.diff(edges))])
    return float(np.interp(share, below, edges))


def scale_of(samples: Sequence[Sample]) -> Scale:
    """One colour scale of a run's images, predictions and ground truth."""
    return depth_scale(depth for sample in samples for depth in (sample.depth, sample.truth))


# Responses of the words --------------------------------------------------------------------------


def responses(
    sample: Sample, title: str, spots: Mapping[Place, str], scale: Scale | None = None,
) -> Figure:
    """Picture, depth, and how much each word answers in patches: the paper's Figure 4.

    Args:
        sample: what the words say.
        title: above the picture.
        spots: up to four patches, and what stands above their bars.
        scale: of the colours of depth; None: `scale_of` the image.

    """
    count, rows, columns = sample.weights.shape
    photo = (WIDTH - 0.8) / 2 * sample.rgb.shape[0] / sample.rgb.shape[1] + 0.3
    below = 0.16 * count + 0.95
    figure = new_figure(photo + below)
    parts: Any = figure.subfigures(2, 1, height_ratios=[photo, below])
    left, right = parts[0].subplots(1, 2)
    _photo(left, sample, title)
    scale = scale or scale_of([sample])
    _bar(parts[0], _depth(right, sample.depth, scale, 'depth'), [right], 'depth (m)', sample.depth,
         scale)
    charts = parts[1].subplots(1, max(1, len(spots)), sharex=True, sharey=True, squeeze=False)[0]
    height, width = sample.rgb.shape[0] / rows, sample.rgb.shape[1] / columns
    for axes, ((row, column), said), color, letter in zip(
            charts, spots.items(), PATCHES, LETTERS, strict=False):
        x, y = column * width - 0.5, row * height - 0.5
        for edge, line in (('white', 3.0), (color, 1.6)):
            left.add_patch(Rectangle((x, y), width, height, fill=False, ec=edge, lw=line))
        fits = column + 1 < columns
        left.text(x + (1.25 if fits else -0.25) * width, y + height / 2, letter, color='white',
                  weight='bold', ha='left' if fits else 'right', va='center', size=6.5,
                  bbox={'boxstyle': 'round,pad=0.2', 'fc': color, 'ec': 'white', 'lw': 0.6})
        axes.barh(range(count), sample.weights[:, row, column], color=color, height=0.72)
        axes.axvline(1 / count, color='#444444', lw=0.8, ls=':')
        axes.set(ylim=(count - 0.4, -0.6), xlabel='weight')
        axes.locator_params(axis='x', nbins=3)
        axes.set_title(f'{letter}: {said}')
    charts[0].set_yticks(range(count), [
        f'{short(word)}   {metres:.2f} m'
        for word, metres in zip(sample.tokens, sample.bins, strict=True)])
    charts[0].tick_params(axis='y', length=0)
    return figure


def spots_of(sample: Sample, places: Sequence[Place] = ()) -> dict[Place, str]:
    """Patches that are not picked by hand, and their depth in words.

    Those at fixed quantiles of the true depth, or of the predicted where too little of that is
    known; unless they are given.
    """
    truths = patch_truth(sample)
    return {place: (f'GT {truths[place]:.2f} m\n' if np.isfinite(truths[place]) else '')
            + f'Pred {sample.patch_depth[place]:.2f} m'
            for place in places or at_quantiles(truths) or at_quantiles(sample.patch_depth)}


def at_quantiles(depths: NDArray[np.floating[Any]]) -> list[Place]:
    """Up to four places in a (h, w) map, near to far, at fixed quantiles of what is finite."""
    places = np.argwhere(np.isfinite(depths))
    if not len(places):
        return []
    ranked = places[np.argsort(depths[places[:, 0], places[:, 1]], kind='stable')]
    wanted = dict.fromkeys(round(q * (len(ranked) - 1)) for q in QUANTILES)
    return [(int(i), int(j)) for i, j in ranked[list(wanted)]]


def patch_truth(sample: Sample) -> NDArray[np.float64]:
    """Median true depth per patch [m], (h, w); NaN where less than half of it is known."""
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
    """One map a word: how much each patch answers to it, over the picture in grey."""
    count = len(sample.tokens)
    columns = min(count, _COLUMNS)
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
        image = _map(axes, weights, 'inferno', Normalize(0, float(weights_.max(initial=1e-3))),
                     f'{short(word)}  {metres:.2f} m', alpha=0.7, interpolation='nearest',
                     extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    figure.suptitle(label, x=0.01, ha='left')
    _bar(figure, image, panels.flat, 'weight', weights_)
    return figure


def short(text: str, most: int = 30) -> str:
    """As much of a text as a label has room for, of what can be drawn."""
    text = printable(text)
    return text if len(text) <= most else text[:most - 1] + '…'


def _photo(axes: Axes, sample: Sample, title: str) -> None:
    axes.imshow(sample.rgb)
    axes.set_axis_off()
    axes.set_title(title)


def _map(
    axes: Axes, values: Float32, colors: str, norm: Normalize, title: str, **about: Any,
) -> Any:
    """Numbers in colours, grey where there is none; what to draw a scale of."""
    axes.set_axis_off()
    axes.set_title(title)
    return axes.imshow(values, colormaps[colors].with_extremes(bad=_GREY), norm=norm,
                       interpolation_stage='rgba', **about)


def _depth(axes: Axes, depth: Float32, scale: Scale, title: str) -> Any:
    """Depth in the colours of `color.colorize`."""
    return _map(axes, depth, f'{scale.colormap}_r', LogNorm(scale.low, scale.high), title)


def _bar(
    figure: Any, image: Any, panels: Any, label: str, values: Float32, scale: Scale | None = None,
) -> None:
    """Draw a scale with its unit beside the panels, with arrows where values are beyond it.

    That of depth is labelled at its ends and at the values' median.
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
