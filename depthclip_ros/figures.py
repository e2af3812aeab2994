# SPDX-License-Identifier: Apache-2.0
"""Figures of depth by words, in one style: for reports, and for commands on one's own pictures.

Nothing is placed by hand but the order of the panels: matplotlib's constrained layout finds the
room that labels need.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from .color import color_range, colorize
from .core.errors import DepthClipError
from .core.files import atomic
from .core.opencv import cv2
from .document import Picture
from .overlay import chart_patches

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from .core.config import DepthConfig
    from .core.estimator import DepthPrediction

    Float32 = NDArray[np.float32]
    Place = tuple[int, int]  # row and column of a patch

WIDTH = 6.9  # inches, the text width of a two-column paper
TRUTH, PREDICTED = '#0072b2', '#d55e00'  # told apart by everyone
# One colour per patch, in the order of LETTERS; all stand out from wood, walls and floors.
PATCHES = ('#d55e00', '#cc3fa0', '#0072b2', '#009e73')
LETTERS = 'ABCD'
NO_TRUTH = (0xd0, 0xd0, 0xd0)
ERROR_MAP = 'RdBu_r'
QUANTILES = (0.05, 0.35, 0.65, 0.95)  # of the depth, where patches are taken
_WIDEST = 480  # pixels of a picture that is kept
_COLUMNS = 5  # maps in a row
_LEGEND = 4  # columns
_NUMBERS = 16  # words, beyond which cosines are colours only
_STYLE = {
    'font.family': 'DejaVu Sans', 'font.size': 7.5, 'axes.titlesize': 7.5, 'axes.labelsize': 7.5,
    'axes.linewidth': 0.6, 'xtick.labelsize': 6.5, 'ytick.labelsize': 6.5, 'legend.fontsize': 6.5,
    'xtick.major.width': 0.6, 'ytick.major.width': 0.6, 'xtick.major.size': 2.5,
    'ytick.major.size': 2.5, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.titlepad': 3, 'legend.frameon': False, 'lines.linewidth': 1.2,
    'svg.fonttype': 'path', 'svg.hashsalt': 'depthclip_ros', 'savefig.dpi': 170}


class FiguresMissingError(DepthClipError):
    """Matplotlib is not there."""


class Sample(Struct, frozen=True, eq=False, kw_only=True):
    """One image for the figures.

    Attributes:
        index: the image's index in its data set.
        name, scene: its name, and class ('' where unknown).
        role: what it is an example of, as 'best', 'median' or 'worst'.
        rgb: (H, W, 3) uint8.
        depth: (H, W) float32 metres, predicted, NaN where there is none.
        truth: (H, W) float32 metres, NaN where it does not count.
        weights: (K, h, w) float32, response of every bin in every patch; patch (i, j) covers
            pixels [i H/h, (i+1) H/h) x [j W/w, (j+1) W/w).
        patch_depth: (h, w) float32 metres.
        tokens, bins: (K,) the words and their depth in metres.
        metrics: by name, of this image.

    """

    index: int = 0
    name: str
    scene: str = ''
    role: str = 'example'
    rgb: NDArray[np.uint8]
    depth: Float32
    truth: Float32
    weights: Float32
    patch_depth: Float32
    tokens: list[str]
    bins: list[float]
    metrics: dict[str, float] = {}

    @property
    def label(self) -> str:
        """Index, and scene class where it is known."""
        return f'image {self.index}' + (f', {self.scene}' if self.scene else '')


def sample_of(
    rgb: NDArray[np.uint8], prediction: DepthPrediction, config: DepthConfig, name: str = '', *,
    measured: Float32 | None = None, index: int = 0,
) -> Sample:
    """What words say of a picture, as a sample for the figures.

    Args:
        rgb: (H, W, 3) of the picture; at most 480 columns are kept.
        prediction: of it.
        config: with its words.
        name: of the picture.
        measured: (H, W) metres, NaN where there is none; None: nowhere.
        index: of the picture.

    """
    height, width = prediction.image_size
    scale = min(1.0, _WIDEST / width)
    size = round(width * scale), round(height * scale)

    def small(depth: Float32) -> Float32:
        return np.asarray(cv2.resize(
            _known(depth), size, interpolation=cv2.INTER_NEAREST), np.float32)
    depth = small(prediction.depth)
    return Sample(
        index=index, name=name,
        rgb=np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8),
        depth=depth, truth=np.full_like(depth, np.nan) if measured is None else small(measured),
        weights=prediction.weights, patch_depth=_known(prediction.patch_depth),
        tokens=list(config.tokens), bins=prediction.word_depths(config))


def _known(depth: Float32) -> Float32:
    return np.where(np.isfinite(depth), depth, np.float32(np.nan))


def require(afterwards: str = '') -> None:
    """Refuse to go on without matplotlib.

    Args:
        afterwards: what to do when it is there.

    Raises:
        FiguresMissingError: with the remedy.

    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise FiguresMissingError(
            f'The figures need matplotlib 3.5 or newer ({error}): '
            '`python3 -m pip install matplotlib`, or `apt install python3-matplotlib`'
            f'{afterwards}.') from error


def look() -> AbstractContextManager[None]:
    """One look, whatever the user's settings are; drawing and writing both read them."""
    from matplotlib import style
    return style.context(['default', _STYLE], after_reset=True)


def new_figure(height: float) -> Figure:
    """Empty page of the text's width and this height in inches."""
    from matplotlib.figure import Figure
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
    width, height = figure.get_size_inches()
    return Picture(title, caption, f'figures/{name}', (float(width), float(height)))


# Depth in colours --------------------------------------------------------------------------------


def predictions(samples: Sequence[Sample], symbols: Mapping[str, str]) -> Figure:
    """One row per image: RGB, prediction, ground truth, error, and its numbers above.

    Args:
        samples: the images.
        symbols: of the metrics whose numbers are shown.

    """
    height = sum(1.32 * s.rgb.shape[0] / s.rgb.shape[1] + 0.42 for s in samples)
    figure = new_figure(height)
    parts: Any = figure.subfigures(len(samples), 1, squeeze=False)
    for part, sample in zip(parts[:, 0], samples, strict=True):
        error = sample.depth - sample.truth
        low, high = depth_limits(sample)
        sizes = np.abs(error[np.isfinite(error)])
        limit = _up(np.percentile(sizes, 98)) if sizes.size else 1.0  # of 98 % of the pixels
        panels = part.subplots(1, 4)
        for axes, title, rgb in zip(panels, ('RGB', 'Prediction', 'Ground truth', 'Error'), (
                sample.rgb, paint_depth(sample.depth, low, high),
                paint_depth(sample.truth, low, high), paint_error(error, limit)), strict=True):
            show(axes, rgb, title)
        both = np.concatenate([sample.depth.ravel(), sample.truth.ravel()])
        add_scale(part, panels[:3], 'turbo_r', (low, high), 'depth (m)', both)
        add_scale(part, panels[3:], ERROR_MAP, (-limit, limit), 'error (m)', error)
        numbers = '   '.join(f'{symbol} {sample.metrics[m]:.3f}'
                             for m, symbol in symbols.items() if m in sample.metrics)
        part.suptitle(f'{sample.role.capitalize()}: {sample.label}    {numbers}', x=0.01,
                      ha='left', size=7.5, weight='bold')
    return figure


def depths(
    pictures: Sequence[Sequence[Sample]], labels: Sequence[str],
    spans: Sequence[tuple[float, float]],
) -> Figure:
    """One row a picture: the picture, and its depth by every set of words on one scale."""
    low = min(color_range(span)[0] for span in spans)
    high = max(span[1] for span in spans)
    panel = (WIDTH - 0.7) / (1 + len(labels))
    heights = [panel * answers[0].rgb.shape[0] / answers[0].rgb.shape[1] + 0.08
               for answers in pictures]
    figure = new_figure(sum(heights) + 0.35)
    panels = figure.subplots(len(pictures), 1 + len(labels), squeeze=False,
                             gridspec_kw={'height_ratios': heights})
    for place, (row, answers) in enumerate(zip(panels, pictures, strict=True)):
        show(row[0], answers[0].rgb, short(answers[0].name))
        for axes, answer, label in zip(row[1:], answers, labels, strict=True):
            show(axes, paint_depth(answer.depth, low, high), '' if place else label)
    values = np.concatenate([a.patch_depth.ravel() for answers in pictures for a in answers])
    add_scale(figure, panels.ravel().tolist(), 'turbo_r', (low, high), 'depth (m)', values)
    return figure


def distributions(
    edges: Sequence[float], counts: Mapping[str, Sequence[int]],
    bins: Mapping[str, Sequence[float]], label: str, everything: str = '',
) -> Figure:
    """How often each depth occurs: a panel each on common axes, from near to far.

    Args:
        edges: (n + 1,) metres.
        counts: n numbers each, by the panels' titles.
        bins: metres to mark, by the same titles.
        label: of the depth.
        everything: the title of what is drawn in every panel, too, instead of in its own.

    """
    edges_ = np.asarray(edges, float)
    densities = {title: density(edges_, numbers) for title, numbers in counts.items()
                 if sum(numbers)}
    titles = sorted((t for t in densities if t != everything),
                    key=lambda t: quantile(edges_, densities[t], 0.5)) or list(densities)
    high = max(float(d.max()) for d in densities.values())
    columns = min(len(titles), 4)
    rows = -(-len(titles) // columns)
    figure = new_figure(1.15 * rows + 0.3 + 0.4 * (rows == 1))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, title in zip(panels.flat, titles, strict=False):
        axes.stairs(densities[title], edges_, fill=True, color=TRUTH, alpha=0.55, lw=0)
        if everything in densities:
            axes.stairs(densities[everything], edges_, color='#555555', lw=0.7)
        axes.axhline(0, color='black', lw=0.5)
        axes.axvline(quantile(edges_, densities[title], 0.5), color=TRUTH, lw=0.9, ls='--')
        axes.vlines(bins.get(title, ()), -0.075 * high, 0, color=PREDICTED, lw=0.9)
        axes.set_title(title, loc='left')
    panels[0, 0].set(xlim=(0, max(quantile(edges_, d, 0.995) for d in densities.values())),
                     ylim=(-0.09 * high, 1.05 * high))
    for axes in panels.flat[len(titles):]:
        axes.set_visible(False)
        panels[-2, list(panels[-1]).index(axes)].tick_params(labelbottom=True)
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


def show(axes: Axes, rgb: NDArray[np.uint8], title: str = '') -> None:
    """Put a photograph in, without axes."""
    axes.imshow(rgb, interpolation='antialiased')
    axes.set_axis_off()
    axes.set_title(title, loc='left')


def add_scale(
    figure: Any, panels: Any, color_map: str, limits: tuple[float, float], label: str,
    values: Float32,
) -> None:
    """Draw a scale with its unit beside the panels, with arrows where values are beyond it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator
    known = values[np.isfinite(values)]
    under, over = bool((known < limits[0]).any()), bool((known > limits[1]).any())
    extend = 'both' if under and over else 'min' if under else 'max' if over else 'neither'
    bar = figure.colorbar(
        ScalarMappable(Normalize(*limits), color_map), ax=list(panels), aspect=12, pad=0.02,
        extend=extend, extendfrac=0.05, ticks=MaxNLocator(5), label=label)
    bar.outline.set_linewidth(0.5)


def paint_depth(depth: Float32, low: float, high: float) -> NDArray[np.uint8]:
    """Depth in the node's own colours, RGB; grey where there is none."""
    painted = colorize(depth, low, high)[:, :, ::-1].copy()
    painted[np.isnan(depth)] = NO_TRUTH
    return painted


def paint_error(error: Float32, limit: float) -> NDArray[np.uint8]:
    """Signed error: red where the prediction is too far, blue too near, grey without truth."""
    from matplotlib import colormaps
    level = np.clip(np.nan_to_num(error) / (2 * limit) + 0.5, 0, 1)
    painted: NDArray[np.uint8] = colormaps[ERROR_MAP](level, bytes=True)[:, :, :3].copy()
    painted[np.isnan(error)] = NO_TRUTH
    return painted


def depth_limits(sample: Sample) -> tuple[float, float]:
    """Colour scale of one image: all of the prediction and 98 % of the ground truth [m]."""
    truth = sample.truth[np.isfinite(sample.truth)]
    predicted = sample.depth[np.isfinite(sample.depth)]
    ends = [*np.percentile(truth, [1, 99])] if truth.size else []
    ends += [predicted.min(), predicted.max()] if predicted.size else []
    low = float(np.floor(float(min(ends, default=0.0)) * 10) / 10)
    return low, max(_up(max(ends, default=1.0)), low + 0.1)


def _up(metres: Any) -> float:
    """Rounded up to a tenth, and that at least."""
    return max(float(np.ceil(float(metres) * 10) / 10), 0.1)


# Responses of the words --------------------------------------------------------------------------


class Spot(Struct, frozen=True):
    """A patch that is looked at, and what stands above its bars."""

    row: int
    column: int
    said: str


def view(
    sample: Sample, span: tuple[float, float], title: str, spots: Sequence[Spot],
    stddev: Float32 | None = None,
) -> Figure:
    """Picture, depth, and how much each word answers: the paper's Figure 4 for any patch.

    The first axes are the picture's, the second the depth's, in pixels of `sample.rgb`.

    Args:
        sample: what the words say.
        span: of the colours, metres.
        title: on top.
        spots: up to four patches, whose bars stand below; none: small charts of a grid of
            patches are on the picture.
        stddev: (h, w) standard deviation of the patches' depth in metres, shown beside it.

    """
    height, width = sample.rgb.shape[:2]
    low, high = color_range(span)
    panels = 2 if stddev is None else 3
    photo = (WIDTH - 0.8 * (panels - 1)) / panels * height / width
    count = len(sample.tokens)
    below = 0.16 * count + 0.95 if spots else 0.15 * (-(-count // _LEGEND) + 2)
    figure = new_figure(photo + 0.3 + below)
    parts: Any = figure.subfigures(2, 1, height_ratios=[photo + 0.3, below])
    upper, lower = parts
    left, right, *rest = upper.subplots(1, panels)
    show(left, sample.rgb, title)
    show(right, paint_depth(sample.depth, low, high), 'depth')
    add_scale(upper, [right], 'turbo_r', (low, high), 'depth (m)', sample.patch_depth)
    if stddev is not None:
        _show_stddev(upper, rest[0], stddev, (height, width))
    if spots:
        _bars(left, lower, sample, spots)
    else:
        colors = colorize(np.array([sample.bins], np.float32), low, high)[0, :, ::-1] / 255
        _grid(left, sample, colors)
        _legend(lower, word_labels(sample), colors)
    return figure


def responses(sample: Sample, title: str, places: Sequence[Place] = ()) -> Figure:
    """`view` of patches that are not picked by hand: at fixed quantiles of the true depth.

    Where too little of that is known, at quantiles of the predicted; unless they are given.
    """
    truths = patch_truth(sample)
    spots = [Spot(*place, (f'GT {truths[place]:.2f} m\n' if np.isfinite(truths[place]) else '')
                  + f'Pred {sample.patch_depth[place]:.2f} m')
             for place in places or at_quantiles(truths) or at_quantiles(sample.patch_depth)]
    return view(sample, depth_limits(sample), title, spots)


def at_quantiles(depths: NDArray[np.floating[Any]]) -> list[Place]:
    """Up to four places in a (h, w) map, near to far, at fixed quantiles of what is finite."""
    known = np.argwhere(np.isfinite(depths))
    if not len(known):
        return []
    ranked = known[np.argsort(depths[known[:, 0], known[:, 1]], kind='stable')]
    places = dict.fromkeys(round(q * (len(ranked) - 1)) for q in QUANTILES)
    return [(int(i), int(j)) for i, j in ranked[list(places)]]


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
    panel = (WIDTH - 0.6) / columns
    figure = new_figure(rows * (panel * height / width + 0.22) + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False)
    largest = float(np.nanmax(sample.weights)) if np.isfinite(sample.weights).any() else 1.0
    grey = np.asarray(cv2.cvtColor(sample.rgb, cv2.COLOR_RGB2GRAY))
    for axes, word, metres, weights in zip(
            panels.flat, sample.tokens, sample.bins, sample.weights, strict=False):
        axes.imshow(grey, cmap='gray', vmin=0, vmax=255)
        axes.imshow(weights, cmap='inferno', vmin=0, vmax=largest, alpha=0.7,
                    extent=_over(height, width), interpolation='nearest')
        axes.set_axis_off()
        axes.set_title(f'{short(word)}  {metres:.2f} m', size=6.5)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    figure.suptitle(label, x=0.01, ha='left', size=7.5, weight='bold')
    add_scale(figure, panels.ravel().tolist(), 'inferno', (0, largest), 'weight', sample.weights)
    return figure


def similarity(words: Sequence[str], cosines: Float32, first: int) -> Figure:
    """Cosines of all words with all.

    Args:
        words: of all sets.
        cosines: (K, K).
        first: words of the first set, behind which there is a line.

    """
    count = len(words)
    side = min(WIDTH - 1, 1 + 0.3 * count)
    figure = new_figure(side)
    labels = [short(word) for word in words]
    figure.set_size_inches(min(WIDTH, side + 0.4 + 0.07 * max(map(len, labels))), side)
    axes = figure.subplots()
    low = float(cosines.min())
    picture = axes.imshow(cosines, cmap='viridis', vmin=min(low, 0.999), vmax=1)
    axes.set_xticks(range(count), labels, rotation=40, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(count), labels)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if first < count:
        for line in (axes.axhline, axes.axvline):
            line(first - 0.5, color='white', lw=2)
    for i, j in np.ndindex(count, count) if count <= _NUMBERS else ():
        light = cosines[i, j] > (low + 1) / 2
        axes.text(j, i, f'{cosines[i, j]:.3f}', ha='center', va='center', size=5.5,
                  color='black' if light else 'white')
    figure.colorbar(picture, ax=axes, label='cosine')
    return figure


def short(text: str, most: int = 30) -> str:
    """As much of a text as a label has room for."""
    return text if len(text) <= most else text[:most - 1] + '…'


def word_labels(sample: Sample) -> list[str]:
    """Words with their depths in metres."""
    return [f'{short(word, 24)}   {metres:.2f} m'
            for word, metres in zip(sample.tokens, sample.bins, strict=True)]


def _over(height: int, width: int) -> tuple[float, float, float, float]:
    """Where patches lie that tile a picture."""
    return -0.5, width - 0.5, height - 0.5, -0.5


def _show_stddev(figure: Any, axes: Any, stddev: Float32, size: tuple[int, int]) -> None:
    """One square a patch: what an error bar is made of is not told more finely."""
    known = stddev[np.isfinite(stddev)]
    most = max(float(known.max()), 1e-3) if known.size else 1.0
    axes.imshow(stddev, cmap='magma', vmin=0, vmax=most, interpolation='nearest',
                extent=_over(*size))
    axes.set_facecolor(tuple(level / 255 for level in NO_TRUTH))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title('standard deviation', loc='left')
    add_scale(figure, [axes], 'magma', (0, most), 'σ (m)', np.array([0], np.float32))


def _bars(photo: Any, lower: Any, sample: Sample, spots: Sequence[Spot]) -> None:
    """Framed patches in the photograph, and a chart of each; dotted: weights that know nothing."""
    from matplotlib.patches import Rectangle
    charts = lower.subplots(1, len(spots), sharex=True, sharey=True, squeeze=False)[0]
    rows, columns = sample.patch_depth.shape
    height, width = sample.rgb.shape[0] / rows, sample.rgb.shape[1] / columns
    count = len(sample.bins)
    for axes, spot, color, letter in zip(charts, spots, PATCHES, LETTERS, strict=False):
        x, y = spot.column * width - 0.5, spot.row * height - 0.5
        for edge, line in (('white', 3.0), (color, 1.6)):
            photo.add_patch(Rectangle((x, y), width, height, fill=False, ec=edge, lw=line))
        fits = spot.column + 1 < columns
        photo.text(x + 1.25 * width if fits else x - 0.25 * width, y + height / 2, letter,
                   color='white', weight='bold', ha='left' if fits else 'right', va='center',
                   size=6.5, bbox={'boxstyle': 'round,pad=0.2', 'fc': color, 'ec': 'white',
                                   'lw': 0.6})
        axes.barh(range(count), sample.weights[:, spot.row, spot.column], color=color, height=0.72)
        axes.axvline(1 / count, color='#444444', lw=0.8, ls=':')
        axes.set(ylim=(count - 0.4, -0.6), xlabel='weight')
        axes.locator_params(axis='x', nbins=3)
        axes.set_title(f'{letter}\n{spot.said}', loc='left')
    charts[0].set_yticks(range(count), word_labels(sample))
    charts[0].tick_params(axis='y', length=0)


def _grid(photo: Any, sample: Sample, colors: NDArray[np.float64]) -> None:
    """A chart in each of some patches: one column a word, from near to far, full is weight 1."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle
    height, width = sample.rgb.shape[:2]
    count, rows, columns = sample.weights.shape
    frame = 0.84 * width / columns, 0.84 * height / rows
    boxes, bars, painted = [], [], []
    for row, column in chart_patches(rows, columns):
        weights = sample.weights[:, row, column]
        if not np.isfinite(weights).all():
            continue
        x = (column + 0.08) * width / columns - 0.5
        y = (row + 0.92) * height / rows - 0.5
        boxes.append(Rectangle((x, y - frame[1]), *frame))
        bars += [Rectangle((x + k * frame[0] / count, y), frame[0] / count, -w * frame[1])
                 for k, w in enumerate(weights)]
        painted.append(colors)
    photo.add_collection(PatchCollection(boxes, fc='white', ec='none', alpha=0.7))
    if bars:
        photo.add_collection(PatchCollection(bars, fc=np.concatenate(painted), ec='none'))


def _legend(lower: Any, labels: Sequence[str], colors: NDArray[np.float64]) -> None:
    from matplotlib.patches import Patch
    lower.legend(handles=[Patch(color=tuple(color), label=label)
                          for label, color in zip(labels, colors, strict=True)],
                 ncol=_LEGEND, loc='center', title='columns from left to right')
