# SPDX-License-Identifier: Apache-2.0
"""`depthclip compare`: depth against what a sensor measured beside it: how good on my robot?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..calibrate.bags import open_recording, written_depth
from ..calibrate.recordings import LeftOut, Options, RecordingError, spread_evenly
from ..calibrate.registration import gather, resample
from ..color import UNTRAINED
from ..core.errors import ConfigError, DepthClipError, quoted
from ..core.files import check_new, output_folder, printable, user_path
from ..core.image import CameraImage
from ..document import Block, Heading, Strong, Table, Text, to_terminal
from ..evaluation.metrics import METRICS, SYMBOLS
from ..evaluation.recorded import MAX_DEPTH, DistanceBin, MetricLine, PooledScores, Scores, pool
from ..figures import (
    PREDICTIONS,
    RESPONSES,
    Sample,
    distributions,
    finite_or_nan,
    look,
    predictions,
    responses,
    spots_of,
)
from ..figures import save as save_figure
from ..progress import progress
from ..sources.bag import is_bag
from .calibrate import reading
from .model import load_estimator, print_untrained, save, save_page, settings, to_stderr

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ..calibrate.recordings import Frame, Recording
    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator
    from ..core.prediction import DepthPrediction
    from ..messages.config import NodeConfig

    Float32 = NDArray[np.float32]
    Answers = Iterator[tuple[int, Frame, Float32 | DepthPrediction]]

EXAMPLES = 6  # pictures of one recording, fewer where several are compared
FIGURES = 3  # of them, whose words are shown
# Of the distribution of measured depth, metres.
DEPTHS = np.concatenate([np.arange(0, 20, 0.1), np.geomspace(20, 200, 47)])
FORMAT = 1
FILES = ('comparison.html', 'comparison.md', 'comparison.json')
_COLUMNS = 160  # of depth in the pictures
_SHOWN = {**{m: SYMBOLS[m] for m in METRICS[:5]}, 'rmse': 'rmse [m]'}


@dataclass(frozen=True, eq=False)
class Compared:
    """One recording."""

    scores: Scores
    examples: list[Sample]
    refused: dict[str, int]  # of the recording's messages, by cause
    notes: list[str]  # what was assumed of all of it
    by_network: bool  # else depth was in the recording
    depths: NDArray[np.int64]  # measured pixels between two of `DEPTHS`


def compare(options: argparse.Namespace) -> int:
    """Compare depth with recordings, and write or print what came out.

    Returns:
        Exit code: 1 if a recording could not be compared; the others are all the same.

    Raises:
        DepthClipError: settings, weights or output cannot be used, or no recording can.

    """
    folder = output_folder(options.output) if options.output else None
    if folder:
        check_new(folder / name for name in (*FILES, 'figures'))
    depth, node = settings(options.config, options.weights, options.device)
    network = cache(lambda: _network(depth, node))
    sources = dict.fromkeys(options.sources)
    given = max(1, EXAMPLES // len(sources)), options, node, network
    found: dict[str, Compared | str] = {
        source: _outcome(source, *given) if len(sources) > 1 else _compare(source, *given)
        for source in sources}
    done = [one for one in found.values() if isinstance(one, Compared)]
    failed = {printable(source): one for source, one in found.items() if isinstance(one, str)}
    if not done:
        raise RecordingError(f'none of {len(failed)} recordings could be compared.')
    about: dict[str, Any] = {}
    if any(one.by_network for one in done):
        estimator = network()
        weights = estimator.weights
        about = {'weights': weights.name, 'digest': weights.digest, 'trained': weights.trained,
                 'device': str(estimator.device), 'precision': estimator.precision,
                 'calibration': estimator.label, 'settings': depth.to_dict()}
    each = [pool([one.scores]) for one in done]
    pooled = pool([one.scores for one in done]) if len(done) > 1 else each[0]
    parts = _contents(done, each, pooled, failed, about)
    print(to_terminal(parts), end='')
    if folder:
        save_page(folder / 'comparison.html', parts + _figures(folder, done))
        save(folder / 'comparison.json', msgspec.json.format(msgspec.json.encode({
            'format': FORMAT, 'model': about, 'pooled': pooled,
            'recordings': [
                {'source': one.scores.source, 'described': one.scores.description,
                 'unreadable': one.refused, **msgspec.to_builtins(comparison)}
                for one, comparison in zip(done, each, strict=True)],
            'failed': failed}), indent=1) + b'\n')
        print(f'\nreport: {", ".join(str(folder / name) for name in FILES)}')
    if about and not about['trained']:
        print_untrained()
    return 1 if failed else 0


def _network(depth: DepthConfig, node: NodeConfig) -> DepthEstimator:
    if node.anchor:
        raise ConfigError(
            f'anchor: {quoted(node.anchor)} follows a recording from its beginning, which this '
            "command does not. Convert the bag with 'depthclip bag', and compare what that "
            "wrote; or set anchor: ''.")
    return load_estimator(depth, node)


def _outcome(source: str, *about: Any) -> Compared | str:
    """Compare one recording; or why it cannot be, which stops no other."""
    try:
        return _compare(source, *about)
    except ConfigError:
        raise
    except DepthClipError as error:
        to_stderr(f'{source}: not compared: {error}')
        return printable(str(error))


def _compare(
    source: str, pictures: int, options: argparse.Namespace, node: NodeConfig,
    network: Callable[[], DepthEstimator],
) -> Compared:
    """Score one recording, and keep so many pictures of it."""
    recording, answered = _open(source, options, node)
    every = range(0, len(recording), options.every)
    positions = [every[i] for i in spread_evenly(len(every), options.max_frames)]
    shown = {positions[i] for i in spread_evenly(len(positions), pictures)}
    described = recording.described + (
        f'; {answered.topics[1]} is compared with it' if answered else '')
    source = printable(recording.source)
    scores = Scores(source, printable(described))
    to_stderr(f'{source}: {described}, {len(positions)} of {len(recording)} images')
    examples, depths = [], np.zeros(len(DEPTHS) - 1, np.int64)
    answers: Answers = _held(recording, answered, positions) if answered else (
        (position, frame, network().predict(CameraImage(frame.rgb, frame.camera)))
        for position, frame in recording.read(positions))
    most = options.max_depth or MAX_DEPTH
    for position, frame, answer in progress(
            answers, 'comparing', len(positions), 'frame'):
        depth = answer if isinstance(answer, np.ndarray) else answer.depth
        name = printable(frame.moment.name)
        scores.add(name, depth, frame.depth, most)
        depths += np.histogram(frame.depth[frame.depth < most], DEPTHS)[0]
        if position in shown:
            size = round(_COLUMNS * frame.rgb.shape[0] / frame.rgb.shape[1]), _COLUMNS
            small = finite_or_nan(resample(depth, *size))
            words: dict[str, Any] = {} if isinstance(answer, np.ndarray) else {
                'weights': answer.weights, 'patch_depth': finite_or_nan(answer.patch_depth),
                'tokens': list(network().config.tokens),
                'bins': answer.word_depths(network().config)}
            examples.append(Sample(
                index=position, name=name, role=source, rgb=frame.rgb,
                depth=small, truth=gather(frame.depth, *size), **words))
    for note in recording.notes:
        to_stderr(f'WARNING: {note}')
    if answered:
        recording.left_out.update(answered.left_out)
    refused = dict(sorted(recording.left_out.items()))
    if not scores.names:
        causes = {**refused, **scores.left_out}
        raise RecordingError(f'{source}: no image could be compared. Left out: '
                             f'{LeftOut(causes)}.')
    return Compared(scores, examples, refused, recording.notes, answered is None, depths)


def _open(
    source: str, options: argparse.Namespace, node: NodeConfig,
) -> tuple[Recording, Recording | None]:
    """Open a recording, and again for the depth that it holds already, if it does."""
    said = f'/{options.said.lstrip("/")}' if options.said else ''
    path = user_path(source)
    if not said and path.exists() and is_bag(path):
        said = written_depth(path)
    recording = open_recording(source, reading(options, node, said))
    if not said:
        return recording, None
    if not recording.topics[0]:
        raise RecordingError(f'{source}: --said {quoted(said)} is a topic, and this is no bag.')
    return recording, open_recording(source, Options(
        image=recording.topics[0], depth=said, tolerance=options.tolerance,
        rectified=node.rectified))


def _held(recording: Recording, answered: Recording, positions: Sequence[int]) -> Answers:
    """Depth that the bag holds, at the same images."""
    places = {moment.name: p for p, moment in enumerate(answered.moments)}
    wanted = [p for p in positions if recording.moments[p].name in places]
    missing = len(positions) - len(wanted)
    if missing:
        recording.left_out['images that the depth to be compared is missing at'] += missing
    others = answered.read([places[recording.moments[p].name] for p in wanted])
    waiting: dict[int, Float32] = {}  # of images whose measured depth comes later, or never
    for position, frame in recording.read(wanted):
        place = places[frame.moment.name]
        while place not in waiting and (other := next(others, None)) is not None:
            waiting[other[0]] = other[1].depth
        if place in waiting:
            yield position, frame, waiting.pop(place)


def _contents(
    done: Sequence[Compared], each: Sequence[PooledScores], pooled: PooledScores,
    failed: Mapping[str, str], about: Mapping[str, Any],
) -> list[Block]:
    """Put the page together, but for its pictures."""
    title = done[0].scores.source if len(done) == 1 else f'{len(done)} recordings'
    warnings = [f'{UNTRAINED}; so is everything below.'] if about and not about['trained'] else []
    warnings += [f'{one.scores.source}: {note}' for one in done for note in one.notes]
    warnings += [f'{source} could not be compared: {reason}' for source, reason in failed.items()]
    depth, filled, scaled, constant = pooled.lines
    best = scaled.chosen['rmse'], constant.chosen['rmse']
    parts: list[Block] = [
        Heading(f'Depth against measured depth: {title}', 1),
        *(Text(warning, warning=True) for warning in warnings), Text(pooled.verdict),
        Table(('what', *_SHOWN.values()), [
            [Strong(text) for text in (depth.name, *_numbers(depth))],
            [filled.name, *_numbers(filled)],
            [f'{scaled.name} (oracle: {best[0]:.2f} for rmse)', *_numbers(scaled)],
            [f'{constant.name} (oracle: {best[1]:.2f} m for rmse)', *_numbers(constant)]]),
        Text(f'{pooled.images} images with {pooled.pixels} measured pixels, of which depth is '
             f'known for {pooled.answered:.1%}. Metrics are means over images. The first and the '
             'third row are of these, the others of all that is measured. The two oracles see '
             'the measured depth, and choose anew for every metric.'),
        Heading('Error by distance'),
        Text('Over all pixels together. Depth over measured depth is a geometric mean: below 1, '
             'things are said to be nearer than they are.'),
        Table(('measured [m]', 'of the pixels', 'depth over measured', 'δ1', 'rel', 'rmse [m]'),
              [(f'{d.low:g} to {d.high:g}', f'{d.share:.1%}', f'{d.ratio:.2f}',
                *_numbers(d, ('d1', 'rel', 'rmse'))) for d in pooled.distances])]
    if len(done) > 1:
        parts += [Heading('Every recording'), Table(
            ('recording', 'images', *_SHOWN.values(), 'best constant δ1',
             'best constant rmse [m]'),
            [(one.scores.source, str(comparison.images), *_numbers(comparison.lines[0]),
              *_numbers(comparison.lines[-1], ('d1', 'rmse')))
             for one, comparison in zip(done, each, strict=True)])]
    network = 'none: depth was in the recording' if not about else ', '.join(filter(None, (
        f'{about["weights"]} on {about["device"]}', about['precision'], about['calibration'])))
    return [*parts, Heading('What was compared'), Table(('what', 'value'), [
        ('network', network), *((one.scores.source, one.scores.description) for one in done),
        *((f'left out of {one.scores.source}: {cause}', f'{count} times') for one in done
          for cause, count in (*one.refused.items(), *one.scores.left_out.items()))],
        texts=frozenset({0, 1}))]


def _figures(folder: Path, done: Sequence[Compared]) -> list[Block]:
    """The paper's Figures 3 to 5 of these recordings, in `figures/`."""
    examples = [example for one in done for example in one.examples]
    examples = [examples[place] for place in spread_evenly(len(examples), EXAMPLES)]
    worded = [example for example in examples if example.tokens]
    worded = [worded[place] for place in spread_evenly(len(worded), FIGURES)]
    counts = {'all recordings': np.sum([one.depths for one in done], axis=0).tolist()}
    if len(done) > 1:
        counts |= {f'{one.scores.source} ({len(one.scores.names)})': one.depths.tolist()
                   for one in done}
    bins = worded[0].bins if worded else []
    parts: list[Block] = [Heading('Pictures')]
    with look():
        parts.append(save_figure(
            folder, 'predictions.png', predictions(examples, {}), 'Depth beside measured depth',
            f'{len(examples)} images; ground truth is measured depth. {PREDICTIONS}'))
        parts += [save_figure(
            folder, f'responses_{number}.png', responses(sample, sample.name, spots_of(sample)),
            f'Answers in four patches of {sample.name}', RESPONSES)
            for number, sample in enumerate(worded, 1)]
        parts.append(save_figure(
            folder, 'distributions.svg', distributions(
                DEPTHS.tolist(), counts, [bins] * len(counts), 'measured depth (m)',
                'all recordings'),
            'Distribution of measured depth',
            'All measured pixels, as in the paper’s Figure 3; a panel there is a scene class, '
            'here a recording. Dashed: the median.' + (
                f' Orange marks below: the metres of the words in {worded[0].name}.'
                if worded else '')))
    return parts


def _numbers(of: MetricLine | DistanceBin, metrics: Iterable[str] = _SHOWN) -> list[str]:
    return [f'{of.metrics[m]:.3f}' for m in metrics]
