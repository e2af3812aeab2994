# SPDX-License-Identifier: Apache-2.0
"""`depthclip compare`: metrics of predicted depth against a sensor's measured depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..calibrate.bags import language_depth_topic, open_recording
from ..calibrate.recordings import FailureCounts, Options, RecordingError, evenly_spaced
from ..calibrate.registration import downsample, resample
from ..core.camera_image import CameraImage
from ..core.errors import ConfigError, DepthClipError, quoted
from ..core.files import check_new, output_folder, printable, user_path
from ..drawing.color import UNTRAINED
from ..evaluation.metrics import METRICS, SYMBOLS
from ..evaluation.recording_scores import (
    MAX_DEPTH,
    DistanceBin,
    MetricLine,
    PooledScores,
    Scores,
    pool,
)
from ..progress import progress
from ..report.document import Block, Heading, Strong, Table, Text, to_terminal
from ..report.figures import (
    PREDICTIONS,
    RESPONSES,
    Sample,
    distributions,
    figure_style,
    finite_or_nan,
    predictions,
    responses,
    spots_of,
)
from ..report.figures import save as save_figure
from ..sources.bag import is_bag
from .calibrate import recording_options
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
    from ..messages.node_config import NodeConfig

    Float32 = NDArray[np.float32]
    Predictions = Iterator[tuple[int, Frame, Float32 | DepthPrediction]]

MAX_EXAMPLES = 6  # pictures in all; several recordings share them
MAX_RESPONSES = 3  # figures of the words' responses
# Bins of the distribution of measured depth, metres.
DEPTH_EDGES = np.concatenate([np.arange(0, 20, 0.1), np.geomspace(20, 200, 47)])
FORMAT = 1
FILES = ('comparison.html', 'comparison.md', 'comparison.json')
_PICTURE_COLUMNS = 160  # of depth maps in figures
_METRIC_TITLES = {**{m: SYMBOLS[m] for m in METRICS[:5]}, 'rmse': 'rmse [m]'}


@dataclass(frozen=True, eq=False)
class RecordingResult:
    """Scores, example images and notes of one recording."""

    scores: Scores
    examples: list[Sample]
    unreadable: dict[str, int]  # messages, by cause
    notes: list[str]  # assumptions about the whole recording
    by_network: bool  # False if the recording holds the predicted depth
    depths: NDArray[np.int64]  # histogram of measured depth, with `DEPTH_EDGES`


def compare(options: argparse.Namespace) -> int:
    """Compare predicted with measured depth of recordings; print or write the result.

    Returns:
        Exit code: 1 if a recording could not be compared; all others are.

    Raises:
        DepthClipError: settings, weights or output cannot be used, or no recording can.

    """
    folder = output_folder(options.output) if options.output else None
    if folder:
        check_new(folder / name for name in (*FILES, 'figures'))
    depth, node = settings(options.config, options.weights, options.device)
    network = cache(lambda: _network(depth, node))
    sources = dict.fromkeys(options.sources)
    arguments = max(1, MAX_EXAMPLES // len(sources)), options, node, network
    outcomes: dict[str, RecordingResult | str] = {
        source: (_compare_or_reason if len(sources) > 1 else _compare)(source, *arguments)
        for source in sources}
    results = [r for r in outcomes.values() if isinstance(r, RecordingResult)]
    failures = {printable(source): reason for source, reason in outcomes.items()
                if isinstance(reason, str)}
    if not results:
        raise RecordingError(f'none of {len(failures)} recordings could be compared.')
    about: dict[str, Any] = {}
    if any(r.by_network for r in results):
        estimator = network()
        weights = estimator.weights
        about = {'weights': weights.name, 'digest': weights.digest, 'trained': weights.trained,
                 'device': str(estimator.device), 'precision': estimator.precision,
                 'calibration': estimator.label, 'settings': depth.to_dict()}
    scores = [pool([r.scores]) for r in results]
    pooled = pool([r.scores for r in results]) if len(results) > 1 else scores[0]
    blocks = _contents(results, scores, pooled, failures, about)
    print(to_terminal(blocks), end='')
    if folder:
        save_page(folder / 'comparison.html', blocks + _figures(folder, results))
        save(folder / 'comparison.json', msgspec.json.format(msgspec.json.encode({
            'format': FORMAT, 'model': about, 'pooled': pooled,
            'recordings': [
                {'source': r.scores.source, 'described': r.scores.description,
                 'unreadable': r.unreadable, **msgspec.to_builtins(comparison)}
                for r, comparison in zip(results, scores, strict=True)],
            'failed': failures}), indent=1) + b'\n')
        print(f'\nreport: {", ".join(str(folder / name) for name in FILES)}')
    if about and not about['trained']:
        print_untrained()
    return 1 if failures else 0


def _network(depth: DepthConfig, node: NodeConfig) -> DepthEstimator:
    if node.anchor:
        raise ConfigError(
            f'anchor: {quoted(node.anchor)} follows a recording from its beginning, which this '
            "command does not. Convert the bag with 'depthclip bag', and compare what that "
            "wrote; or set anchor: ''.")
    return load_estimator(depth, node)


def _compare_or_reason(source: str, *arguments: Any) -> RecordingResult | str:
    """Compare one recording; returns the reason if it fails, so that others go on."""
    try:
        return _compare(source, *arguments)
    except ConfigError:
        raise
    except DepthClipError as error:
        to_stderr(f'{source}: not compared: {error}')
        return printable(str(error))


def _compare(
    source: str, pictures: int, options: argparse.Namespace, node: NodeConfig,
    network: Callable[[], DepthEstimator],
) -> RecordingResult:
    """Score one recording, and keep a number of example pictures."""
    recording, predicted = _open(source, options, node)
    candidates = range(0, len(recording), options.every)
    positions = [candidates[i] for i in evenly_spaced(len(candidates), options.max_frames)]
    example_positions = {positions[i] for i in evenly_spaced(len(positions), pictures)}
    description = recording.description + (
        f'; {predicted.topics[1]} is compared with it' if predicted else '')
    source = printable(recording.source)
    scores = Scores(source, printable(description))
    to_stderr(f'{source}: {description}, {len(positions)} of {len(recording)} images')
    examples, depths = [], np.zeros(len(DEPTH_EDGES) - 1, np.int64)
    frames: Predictions = _recorded_depth(recording, predicted, positions) if predicted else (
        (position, frame, network().predict(CameraImage(frame.rgb, frame.camera)))
        for position, frame in recording.read(positions))
    max_depth = options.max_depth or MAX_DEPTH
    for position, frame, prediction in progress(
            frames, 'comparing', len(positions), 'frame'):
        depth = prediction if isinstance(prediction, np.ndarray) else prediction.depth
        name = printable(frame.moment.name)
        scores.add(name, depth, frame.depth, max_depth)
        depths += np.histogram(frame.depth[frame.depth < max_depth], DEPTH_EDGES)[0]
        if position in example_positions:
            height, width = frame.rgb.shape[:2]
            size = round(_PICTURE_COLUMNS * height / width), _PICTURE_COLUMNS
            small_depth = finite_or_nan(resample(depth, *size))
            words: dict[str, Any] = {} if isinstance(prediction, np.ndarray) else {
                'weights': prediction.weights,
                'patch_depth': finite_or_nan(prediction.patch_depth),
                'tokens': list(network().config.tokens),
                'bins': prediction.word_depths(network().config)}
            examples.append(Sample(
                index=position, name=name, role=source, rgb=frame.rgb,
                depth=small_depth, truth=downsample(frame.depth, *size), **words))
    for note in recording.notes:
        to_stderr(f'WARNING: {note}')
    if predicted:
        recording.failures.update(predicted.failures)
    unreadable = dict(sorted(recording.failures.items()))
    if not scores.names:
        causes = {**unreadable, **scores.left_out}
        raise RecordingError(f'{source}: no image could be compared. Left out: '
                             f'{FailureCounts(causes)}.')
    return RecordingResult(
        scores, examples, unreadable, recording.notes, predicted is None, depths)


def _open(
    source: str, options: argparse.Namespace, node: NodeConfig,
) -> tuple[Recording, Recording | None]:
    """Open a recording; and a second time to read predicted depth, if it holds any."""
    depth_topic = f'/{options.said.lstrip("/")}' if options.said else ''
    path = user_path(source)
    if not depth_topic and path.exists() and is_bag(path):
        depth_topic = language_depth_topic(path)
    recording = open_recording(source, recording_options(options, node, depth_topic))
    if not depth_topic:
        return recording, None
    if not recording.topics[0]:
        raise RecordingError(
            f'{source}: --said {quoted(depth_topic)} is a topic, and this is no bag.')
    return recording, open_recording(source, Options(
        image=recording.topics[0], depth=depth_topic, tolerance=options.tolerance,
        rectified=node.rectified))


def _recorded_depth(
    recording: Recording, recorded: Recording, positions: Sequence[int],
) -> Predictions:
    """Yield predicted depth of a bag, at the images with measured depth."""
    indices = {moment.name: p for p, moment in enumerate(recorded.moments)}
    common = [p for p in positions if recording.moments[p].name in indices]
    missing = len(positions) - len(common)
    if missing:
        recording.failures['images that the depth to be compared is missing at'] += missing
    predicted_frames = recorded.read([indices[recording.moments[p].name] for p in common])
    depths: dict[int, Float32] = {}  # read ahead of the measured depth
    for position, frame in recording.read(common):
        index = indices[frame.moment.name]
        while index not in depths and (item := next(predicted_frames, None)) is not None:
            depths[item[0]] = item[1].depth
        if index in depths:
            yield position, frame, depths.pop(index)


def _contents(
    results: Sequence[RecordingResult], each_scores: Sequence[PooledScores], pooled: PooledScores,
    failures: Mapping[str, str], about: Mapping[str, Any],
) -> list[Block]:
    """Compose the page without its pictures."""
    title = results[0].scores.source if len(results) == 1 else f'{len(results)} recordings'
    warnings = [f'{UNTRAINED}; so is everything below.'] if about and not about['trained'] else []
    warnings += [f'{r.scores.source}: {note}' for r in results for note in r.notes]
    warnings += [f'{source} could not be compared: {reason}'
                 for source, reason in failures.items()]
    depth, filled, scaled, constant = pooled.lines
    blocks: list[Block] = [
        Heading(f'Depth against measured depth: {title}', 1),
        *(Text(warning, warning=True) for warning in warnings), Text(pooled.verdict),
        Table(('what', *_METRIC_TITLES.values()), [
            [Strong(text) for text in (depth.name, *_numbers(depth))],
            [filled.name, *_numbers(filled)],
            [f'{scaled.name} (oracle: {scaled.chosen["rmse"]:.2f} for rmse)', *_numbers(scaled)],
            [f'{constant.name} (oracle: {constant.chosen["rmse"]:.2f} m for rmse)',
             *_numbers(constant)]]),
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
    if len(results) > 1:
        blocks += [Heading('Every recording'), Table(
            ('recording', 'images', *_METRIC_TITLES.values(), 'best constant δ1',
             'best constant rmse [m]'),
            [(r.scores.source, str(scores_.images), *_numbers(scores_.lines[0]),
              *_numbers(scores_.lines[-1], ('d1', 'rmse')))
             for r, scores_ in zip(results, each_scores, strict=True)])]
    network = 'none: depth was in the recording' if not about else ', '.join(filter(None, (
        f'{about["weights"]} on {about["device"]}', about['precision'], about['calibration'])))
    return [*blocks, Heading('What was compared'), Table(('what', 'value'), [
        ('network', network), *((r.scores.source, r.scores.description) for r in results),
        *((f'left out of {r.scores.source}: {cause}', f'{count} times') for r in results
          for cause, count in (*r.unreadable.items(), *r.scores.left_out.items()))],
        texts=frozenset({0, 1}))]


def _figures(folder: Path, results: Sequence[RecordingResult]) -> list[Block]:
    """Draw the paper's Figures 3 to 5 of these recordings, into `figures/`."""
    examples = [example for r in results for example in r.examples]
    examples = [examples[position] for position in evenly_spaced(len(examples), MAX_EXAMPLES)]
    answers = [example for example in examples if example.tokens]
    answers = [answers[position] for position in evenly_spaced(len(answers), MAX_RESPONSES)]
    counts = {'all recordings': np.sum([r.depths for r in results], axis=0).tolist()}
    if len(results) > 1:
        counts |= {f'{r.scores.source} ({len(r.scores.names)})': r.depths.tolist()
                   for r in results}
    bins = answers[0].bins if answers else []
    blocks: list[Block] = [Heading('Pictures')]
    with figure_style():
        blocks.append(save_figure(
            folder, 'predictions.png', predictions(examples, {}), 'Depth beside measured depth',
            f'{len(examples)} images; ground truth is measured depth. {PREDICTIONS}'))
        blocks += [save_figure(
            folder, f'responses_{number}.png', responses(sample, sample.name, spots_of(sample)),
            f'Answers in four patches of {sample.name}', RESPONSES)
            for number, sample in enumerate(answers, 1)]
        blocks.append(save_figure(
            folder, 'distributions.svg', distributions(
                DEPTH_EDGES.tolist(), counts, [bins] * len(counts), 'measured depth (m)',
                'all recordings'),
            'Distribution of measured depth',
            'All measured pixels, as in the paper’s Figure 3; a panel there is a scene class, '
            'here a recording. Dashed: the median.' + (
                f' Orange marks below: the metres of the words in {answers[0].name}.'
                if answers else '')))
    return blocks


def _numbers(row: MetricLine | DistanceBin, metrics: Iterable[str] = _METRIC_TITLES) -> list[str]:
    return [f'{row.metrics[m]:.3f}' for m in metrics]
