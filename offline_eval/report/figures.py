# SPDX-License-Identifier: Apache-2.0
"""The report's figures, in one style: charts as SVG and PDF, photographs as PNG.

Nothing is placed by hand but the order of the panels: matplotlib's constrained layout finds the
room that labels need.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depthclip_ros.color import colorize
from depthclip_ros.core.errors import DepthClipError
from depthclip_ros.document import Picture
from offline_eval.names import SYMBOLS, heading, number, unit
from offline_eval.report.source import ROLES, Source
from offline_eval.results import ALL, PAPER_METRICS, Histograms, Sample, Summary, atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from depthclip_ros.core.config import DepthConfig
    from depthclip_ros.core.estimator import DepthPrediction

Float32 = NDArray[np.float32]
Place = tuple[int, int]  # row and column of a patch

FOLDER = 'figures'
WIDTH = 6.9  # inches, the text width of a two-column paper
PHOTO_DPI = 170  # of photographs: a report's folder stays small, and print shows them well
TRUTH, PREDICTED = '#0072b2', '#d55e00'  # told apart by everyone
# One colour per patch, in the order of LETTERS; all stand out from wood, walls and floors.
PATCHES = ('#d55e00', '#cc3fa0', '#0072b2', '#009e73')
LETTERS = 'ABCD'
NO_TRUTH = (0xd0, 0xd0, 0xd0)
ERROR_MAP = 'RdBu_r'
QUANTILES = (0.05, 0.35, 0.65, 0.95)  # of the depth, where patches are taken
_WIDEST = 480  # pixels of a picture that is kept
_LEAST_SHARE = 1e-3  # of the pixels, for a bin of true depth to have its error drawn
_STYLE = {
    'font.family': 'DejaVu Sans', 'font.size': 7.5, 'axes.titlesize': 7.5, 'axes.labelsize': 7.5,
    'axes.linewidth': 0.6, 'xtick.labelsize': 6.5, 'ytick.labelsize': 6.5, 'legend.fontsize': 6.5,
    'xtick.major.width': 0.6, 'ytick.major.width': 0.6, 'xtick.major.size': 2.5,
    'ytick.major.size': 2.5, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.titlepad': 3, 'legend.frameon': False, 'lines.linewidth': 1.2,
    # Outlines on the page look alike everywhere; letters in the PDF can be searched.
    'svg.fonttype': 'path', 'pdf.fonttype': 42, 'svg.hashsalt': 'depthclip_ros'}


class FiguresMissingError(DepthClipError):
    """Matplotlib is not there."""


def write(folder: Path, source: Source) -> dict[str, list[Picture]]:
    """Draw what there is the data for.

    Args:
        folder: of the report; the files go into `figures/` there.
        source: what was measured.

    Raises:
        FiguresMissingError: with the remedy.

    """
    require('; then `python3 -m offline_eval.report FOLDER` writes the report again')
    summary, histograms = source.summary, source.histograms
    found: dict[str, list[Picture]] = {}

    def add(
        section: str, drawn: Figure, title: str, caption: str, *, name: str = '',
    ) -> None:
        found.setdefault(section, []).append(
            save(folder, name or section, drawn, title, caption, photo=bool(name)))
    with look():
        add('standing', standing(summary), 'Where the method stands',
            'The method (filled) among baselines and others (hollow), all measured in this run '
            'on the same pixels. The line through the method: bootstrap 95 % interval. An oracle '
            'is chosen with the ground truth in hand, and cannot be had in practice.')
        if histograms is not None and any(map(sum, histograms.joint)):
            add('depths', depths(histograms, summary), 'Predicted against true depth',
                'All counted pixels. Left: how many there are of every pair of true and predicted '
                'depth; the dashed line is the truth, the dotted ones are the first and the last '
                'depth bin, beyond which no word can say anything. Right: prediction minus truth, '
                'its median and the middle 80 % at every true depth; grey: what the one constant '
                'of the best rmse errs by.')
        if histograms is not None and any(map(sum, histograms.counts.values())):
            bins = _bins(summary)
            add('distributions', distributions(histograms, bins, {
                r.scene: r.images for r in summary.rows
                if r.group == 'method' and r.scene != ALL}),
                'Depth distributions of the scene classes',
                'True depth of all counted pixels, per scene class, from the nearest class to the '
                'farthest, as in the paper’s Figure 3. In brackets: number of images. Grey '
                'outline: all classes. Dashed: the class’s median. Orange marks below: the '
                f'{len(bins)} depth bins; no prediction is nearer than the first or farther than '
                'the last.')
        for rank, samples in enumerate(zip_longest(*map(source.of_role, ROLES)), 1):
            add('predictions', predictions([s for s in samples if s is not None]),
                f'Predictions beside the ground truth{f", continued ({rank})" * (rank > 1)}',
                'RGB, prediction, ground truth, and error (prediction minus ground truth) of the '
                f'best, the median and the worst of {summary.data.evaluated} images by δ1, as in '
                'the paper’s Figure 5, cropped to what the network sees. Prediction and ground '
                'truth of a row share one colour scale, near is red; it spans the whole '
                'prediction and 98 % of the ground truth. The error’s scale is symmetric and '
                'spans 98 % of its sizes, red is too far. An arrow on a scale: there are values '
                'beyond it. Grey: no ground truth, not counted.', name=f'predictions_{rank}')
        for role in ('median', 'best', 'worst'):  # The median image is the typical one.
            for sample in source.of_role(role)[:1]:
                add('responses', responses(sample, at_quantiles(patch_truth(sample)),
                                           image_label(sample)),
                    f'Responses of the words, {role} image', responses_caption(sample),
                    name=f'responses_{role}')
    return found


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


@contextmanager
def look() -> Iterator[None]:
    """One look, whatever the user's settings are; drawing and writing both read them."""
    from matplotlib import style
    with style.context(['default', _STYLE], after_reset=True):
        yield


def new_figure(height: float) -> Figure:
    """Empty page of the text's width and this height in inches."""
    from matplotlib.figure import Figure
    return Figure(figsize=(WIDTH, height), layout='constrained')


def save(
    folder: Path, name: str, figure: Figure, title: str, caption: str, *, photo: bool,
) -> Picture:
    """Write a figure; the same figure gives the same file."""
    metadata = {'svg': {'Date': None, 'Creator': 'depthclip_ros'},
                'pdf': {'CreationDate': None, 'Creator': 'depthclip_ros'},
                'png': {'Software': 'depthclip_ros'}}
    kinds = ['png'] if photo else ['svg', 'pdf']
    for kind in kinds:
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, dpi=PHOTO_DPI, metadata=metadata[kind])
        with atomic(folder / f'{FOLDER}/{name}.{kind}') as file:
            file.write(stream.getvalue())
    width, height = figure.get_size_inches()
    return Picture(title, caption, f'{FOLDER}/{name}.{kinds[0]}', (float(width), float(height)))


# Charts ---------------------------------------------------------------------------------------


def standing(summary: Summary) -> Figure:
    """Method and baselines: three panels with the same rows, sorted by δ1."""
    rows = sorted((r for r in summary.rows if r.group in ('method', 'baseline', 'foreign')
                   and r.scene == ALL), key=lambda r: np.nan_to_num(r.metrics.get('d1', 0.0)))
    figure = new_figure(0.165 * len(rows) + 0.5)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, metric in zip(panels, ('d1', 'rel', 'rmse'), strict=True):
        for place, row in enumerate(rows):
            method = row.group == 'method'
            color = PREDICTED if method else TRUTH
            value = row.metrics.get(metric, float('nan'))
            axes.plot(value, place, 'o', ms=4.5, mec=color, mfc=color if method else 'white',
                      mew=1)
            interval = (row.interval or {}).get(metric)
            if method and interval is not None:
                axes.hlines(place, interval.low, interval.high, color=color, lw=1.2)
            if method:
                axes.axvline(value, color=color, lw=0.5, ls=':')
        axes.set_xlabel(heading(metric))
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.grid(axis='y', lw=0.4, color='#dddddd')
        axes.set_axisbelow(True)
        axes.tick_params(axis='y', length=0)
        axes.margins(x=0.08)
    panels[0].set_yticks(range(len(rows)), [row.name for row in rows])
    for label, row in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight('bold' if row.group == 'method' else 'normal')
    return figure


def depths(histograms: Histograms, summary: Summary) -> Figure:
    """Density of true and predicted depth, and the error at every true depth."""
    from matplotlib.colors import LogNorm
    joint = np.asarray(histograms.joint, float)
    edges = np.linspace(histograms.edges[0], histograms.edges[-1], len(joint) + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    bins = _bins(summary)
    last = float(edges[1 + np.flatnonzero(joint.sum(1)).max()])
    figure = new_figure(2.7)
    left, right = figure.subplots(1, 2)
    picture = left.imshow(
        np.where(joint > 0, joint / joint.sum(), np.nan).T, origin='lower', cmap='viridis_r',
        norm=LogNorm(vmin=1e-6), extent=(edges[0], edges[-1], edges[0], edges[-1]),
        interpolation='none')
    left.plot(edges[[0, -1]], edges[[0, -1]], 'k--', lw=0.8)
    for end in ([bins[0], bins[-1]] if bins else []):
        left.axhline(end, color='black', lw=0.8, ls=':')
    left.set(xlim=(0, last), ylim=(0, max([last, *(1.03 * b for b in bins)])),
             xlabel='true depth (m)', ylabel='predicted depth (m)')
    figure.colorbar(picture, ax=left, label='share of the pixels')
    known = np.flatnonzero(joint.sum(1) >= _LEAST_SHARE * joint.sum())
    low, middle, high = (np.array([quantile(edges, density(edges, joint[k]), q) - middles[k]
                                   for k in known]) for q in (0.1, 0.5, 0.9))
    right.fill_between(middles[known], low, high, color=PREDICTED, alpha=0.25, lw=0)
    right.plot(middles[known], middle, color=PREDICTED, label='method')
    constant = summary.verdict.constants.get('rmse')
    if constant is not None:
        right.plot(middles[known], constant - middles[known], color='#777777', ls='--', lw=0.9,
                   label=f'constant {constant:.2f} m')
    right.axhline(0, color='black', lw=0.6)
    right.set(xlim=(0, last), xlabel='true depth (m)', ylabel='prediction − truth (m)')
    right.legend()
    return figure


def distributions(histograms: Histograms, bins: list[float], images: dict[str, int]) -> Figure:
    """One panel per class on common axes; `images` per class go into the titles."""
    edges = np.asarray(histograms.edges, float)
    densities = {scene: density(edges, counts) for scene, counts in histograms.counts.items()
                 if sum(counts)}
    scenes = sorted((s for s in densities if s != ALL),
                    key=lambda s: quantile(edges, densities[s], 0.5)) or [ALL]
    high = max(float(d.max()) for d in densities.values())
    columns = min(len(scenes), 4)
    rows = -(-len(scenes) // columns)
    figure = new_figure(1.15 * rows + 0.3)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, scene in zip(panels.flat, scenes, strict=False):
        axes.stairs(densities[scene], edges, fill=True, color=TRUTH, alpha=0.55, lw=0)
        axes.stairs(densities.get(ALL, densities[scene]), edges, color='#555555', lw=0.7)
        axes.axhline(0, color='black', lw=0.5)
        axes.axvline(quantile(edges, densities[scene], 0.5), color=TRUTH, lw=0.9, ls='--')
        axes.vlines(bins, -0.075 * high, 0, color=PREDICTED, lw=0.9)
        label = scene.replace('_', ' ') or 'no class'
        axes.set_title(f'{label} ({images[scene]})' if scene in images else label, loc='left')
    panels[0, 0].set(xlim=(0, max(quantile(edges, d, 0.995) for d in densities.values())),
                     ylim=(-0.09 * high, 1.05 * high))
    for axes in panels.flat[len(scenes):]:
        axes.set_visible(False)
        panels[-2, list(panels[-1]).index(axes)].tick_params(labelbottom=True)
    figure.supxlabel('true depth (m)', size=7.5)
    figure.supylabel('density (1/m)', size=7.5)
    return figure


def _bins(summary: Summary) -> list[float]:
    return [float(b) for b in summary.config.get('bins', [])]


def density(edges: NDArray[np.float64], counts: Any) -> NDArray[np.float64]:
    """Share of the pixels per metre."""
    numbers = np.asarray(counts, float)
    result: NDArray[np.float64] = numbers / (numbers.sum() * np.diff(edges))
    return result


def quantile(edges: NDArray[np.float64], values: NDArray[np.float64], share: float) -> float:
    """Depth below which a share of the pixels lies [m]."""
    below = np.concatenate([[0.0], np.cumsum(values * np.diff(edges))])
    return float(np.interp(share, below, edges))


# Photographs ----------------------------------------------------------------------------------


def predictions(samples: Sequence[Sample]) -> Figure:
    """One row per image: RGB, prediction, ground truth, error, and its numbers above."""
    height = sum(1.32 * s.rgb.shape[0] / s.rgb.shape[1] + 0.42 for s in samples)
    figure = new_figure(height)
    parts: Any = figure.subfigures(len(samples), 1, squeeze=False)
    for part, sample in zip(parts[:, 0], samples, strict=True):
        error = sample.depth - sample.ground_truth
        low, high = depth_limits(sample)
        sizes = np.abs(error[np.isfinite(error)])
        limit = _up(np.percentile(sizes, 98)) if sizes.size else 1.0  # of 98 % of the pixels
        panels = part.subplots(1, 4)
        for axes, title, rgb in zip(panels, ('RGB', 'Prediction', 'Ground truth', 'Error'), (
                sample.rgb, paint_depth(sample.depth, low, high),
                paint_depth(sample.ground_truth, low, high), paint_error(error, limit)),
                strict=True):
            show(axes, rgb)
            axes.set_title(title)
        both = np.concatenate([sample.depth.ravel(), sample.ground_truth.ravel()])
        add_scale(part, panels[:3], 'turbo_r', (low, high), 'depth (m)', both)
        add_scale(part, panels[3:], ERROR_MAP, (-limit, limit), 'error (m)', error)
        numbers = '   '.join(f'{SYMBOLS[m]} {number(sample.metrics[m])}{unit(m)}'
                             for m in PAPER_METRICS if m in sample.metrics)
        part.suptitle(f'{sample.role.capitalize()}: {image_label(sample)}    {numbers}', x=0.01,
                      ha='left', size=7.5, weight='bold')
    return figure


def show(axes: Axes, rgb: NDArray[np.uint8]) -> None:
    """Put a photograph in, without axes."""
    axes.imshow(rgb, interpolation='antialiased')
    axes.set_axis_off()


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


def image_label(sample: Sample) -> str:
    """Name an image: index, and scene class where it is known."""
    return f'image {sample.index}' + (f', {sample.scene}' if sample.scene else '')


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
    low = float(np.floor(float(min(ends, default=0.0)) * 10) / 10)
    return low, max(_up(max(ends, default=1.0)), low + 0.1)


def _up(metres: Any) -> float:
    """Rounded up to a tenth, and that at least."""
    return max(float(np.ceil(float(metres) * 10) / 10), 0.1)


# Responses of the words -----------------------------------------------------------------------


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
        resized = cv2.resize(_known(depth), size, interpolation=cv2.INTER_NEAREST)
        return np.asarray(resized, np.float32)
    depth = small(prediction.depth)
    return Sample(
        index, name, '', 'example',
        np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8), depth,
        np.full_like(depth, np.nan) if measured is None else small(measured), prediction.weights,
        _known(prediction.patch_depth), list(config.tokens), prediction.word_depths(config), {})


def _known(depth: Float32) -> Float32:
    return np.where(np.isfinite(depth), depth, np.float32(np.nan))


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
    height, width = sample.ground_truth.shape
    rows, columns = sample.patch_depth.shape
    truths = np.full((rows, columns), np.nan)
    for i, j in np.ndindex(rows, columns):
        block = sample.ground_truth[i * height // rows:(i + 1) * height // rows,
                                    j * width // columns:(j + 1) * width // columns]
        valid = block[np.isfinite(block)]
        if valid.size and 2 * valid.size >= block.size:
            truths[i, j] = np.median(valid)
    return truths


def responses_caption(sample: Sample) -> str:
    """Sentences under the figure; with a mirrored pass the bars are not all of the depth."""
    plain = np.tensordot(np.asarray(sample.bins), sample.weights, 1)
    flipped = '' if np.abs(plain - sample.patch_depth).max() <= 1e-3 else (
        ', mean of the plain and the mirrored pass; the bars are those of the plain pass')
    return (
        f'Responses of the {len(sample.bins)} words in four patches of the {sample.role} image '
        f'({image_label(sample)}), as in the paper’s Figure 4. The patches are not picked by '
        'hand: of those with ground truth in at least half of their pixels, they are the ones at '
        '5, 35, 65 and 95 % of the true depth. Bars: weight of each word, they sum to 1; dotted: '
        'the weight of a network that knows nothing. GT: median true depth of the patch. Pred: '
        f'depth of the patch{flipped}.')


def responses(sample: Sample, places: Sequence[Place], label: str) -> Figure:
    """Image with marked patches, and beside it the words' weights in each.

    Args:
        sample: what to show.
        places: of at most four patches.
        label: above the image.

    """
    photo = 2.3 * sample.rgb.shape[0] / sample.rgb.shape[1]
    figure = new_figure(max(photo + 0.3, 0.13 * len(sample.bins) + 0.6))
    left, *charts = figure.subplots(1, 1 + len(places), squeeze=False, gridspec_kw={
        'width_ratios': [3.2, *[1] * len(places)]})[0]
    show(left, sample.rgb)
    left.set_anchor('N')
    left.set_title(label, loc='left')
    truths = patch_truth(sample)
    for axes, place, color, letter in zip(charts, places, PATCHES, LETTERS, strict=False):
        mark(left, sample, place, letter)
        chart(axes, sample.weights[:, place[0], place[1]], color)
        axes.set_yticks([])
        truth = '' if np.isnan(truths[place]) else f'GT {truths[place]:.2f} m\n'
        axes.set_title(f'{truth}Pred {sample.patch_depth[place]:.2f} m', loc='left')
        axes.annotate(letter, (0, 1), xytext=(3, 26 if truth else 16),
                      textcoords='offset points', color='white', xycoords='axes fraction',
                      weight='bold', size=6.5, bbox=_badge(color))
    largest = max((float(sample.weights[:, i, j].max()) for i, j in places), default=1)
    for axes in charts:
        axes.set_xlim(0, largest * 1.06)
    label_words(charts[:1], sample)
    return figure


def short(text: str, most: int = 30) -> str:
    """As much of a text as a label has room for."""
    return text if len(text) <= most else text[:most - 1] + '…'


def word_labels(sample: Sample) -> list[str]:
    """Words with their depths in metres."""
    return [f'{short(word)}   {metres:.2f} m'
            for word, metres in zip(sample.tokens, sample.bins, strict=True)]


def label_words(charts: Sequence[Axes], sample: Sample) -> None:
    """Write the words beside the bars of a chart."""
    for axes in charts:
        axes.set_yticks(range(len(sample.bins)), word_labels(sample))
        axes.tick_params(axis='y', length=0)


def chart(axes: Axes, weights: NDArray[np.float32], color: str) -> None:
    """One bar a word, from near to far; dotted: what a network says that knows nothing."""
    count = len(weights)
    axes.barh(range(count), weights, color=color, height=0.72)
    axes.axvline(1 / count, color='#444444', lw=0.8, ls=':')
    axes.set(ylim=(count - 0.4, -0.6), xlabel='weight')


def mark(axes: Axes, sample: Sample, place: Place, letter: str) -> None:
    """Frame a patch in the photograph, with its letter beside it."""
    from matplotlib.patches import Rectangle
    color = PATCHES[LETTERS.index(letter)]
    rows, columns = sample.patch_depth.shape
    height, width = sample.rgb.shape[0] / rows, sample.rgb.shape[1] / columns
    row, column = place
    x, y = column * width - 0.5, row * height - 0.5
    for edge, line in (('white', 3.0), (color, 1.6)):
        axes.add_patch(Rectangle((x, y), width, height, fill=False, ec=edge, lw=line))
    fits = column + 1 < columns
    axes.text(x + 1.25 * width if fits else x - 0.25 * width, y + height / 2, letter,
              color='white', weight='bold', ha='left' if fits else 'right', va='center',
              size=6.5, bbox=_badge(color))


def _badge(color: str) -> dict[str, Any]:
    return {'boxstyle': 'round,pad=0.2', 'fc': color, 'ec': 'white', 'lw': 0.6}
