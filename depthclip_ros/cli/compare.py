# SPDX-License-Identifier: Apache-2.0
"""`depthclip compare`: depth against what a sensor measured beside it: how good on my robot?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from offline_eval.metrics import METRICS, SYMBOLS

from ..calibrate.bags import open_recording, written_depth
from ..calibrate.recordings import Options, RecordingError, gather, resample, spread_evenly
from ..color import UNTRAINED, color_bar, colorize, known_range, png, write_note
from ..core.errors import ConfigError, quoted
from ..core.files import user_path
from ..core.opencv import cv2
from ..document import Block, Heading, Picture, Strong, Table, Text, to_terminal
from ..figures import Sample, distributions, look, predictions, require, responses, sample_of
from ..figures import save as save_figure
from ..fleet import cluster_of, share_out
from ..sources.bag import BagError, is_bag
from .calibrate import reading, with_progress
from .model import (
    check_new,
    load_estimator,
    output_folder,
    print_untrained,
    save,
    save_page,
    settings,
    to_stderr,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from offline_eval.recorded import Comparison, Distance, Line, Scores

    from ..calibrate.recordings import Frame, Recording
    from ..core.estimator import DepthEstimator, DepthPrediction
    from ..node.config import NodeConfig

    Float32 = NDArray[np.float32]
    Answers = Iterator[tuple[int, Frame, Float32 | DepthPrediction]]

EXAMPLES = 6  # pictures of one recording, fewer where several are compared
FIGURES = 3  # images of the paper's figures
# Of the distribution of measured depth, metres.
DEPTHS = np.concatenate([np.arange(0, 20, 0.1), np.geomspace(20, 200, 47)])
FORMAT = 1
ENDINGS = ('json', 'md', 'html', 'png')
_ROWS, _COLUMNS = 120, 160  # of the pictures
_SHOWN = {**{m: SYMBOLS[m] for m in METRICS[:5]}, 'rmse': 'rmse [m]'}


@dataclass(frozen=True, eq=False)
class Compared:
    """One recording."""

    scores: Scores
    examples: list[Sample]
    refused: dict[str, int]  # of the recording's messages, by cause
    about: dict[str, Any]  # of the model; empty where depth was in the recording
    depths: NDArray[np.int64]  # measured pixels between two of `DEPTHS`


def compare(options: argparse.Namespace) -> int:
    """Compare depth with recordings, and write or print what came out.

    Args:
        options: of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 1 if a recording could not be compared; the others are all the same.

    Raises:
        DepthClipError: settings, weights or output cannot be used, or no recording can.

    """
    if options.figures:
        require()
        if not options.output:
            raise ConfigError('--figures: they need a folder; give -o, too.')
    folder = output_folder(options.output) if options.output else None
    if folder is not None:
        check_new(_file(folder, ending) for ending in ENDINGS)
    cluster = cluster_of(options.ray, cpus=options.cpus, gpus=options.gpus,
                         retries=options.retries)
    sources = list(dict.fromkeys(options.sources))
    pictures = max(1, EXAMPLES // len(sources))
    if cluster is None and len(sources) == 1:
        comparer = Comparer(options)
        finish([comparer.compare(sources[0], pictures)], {}, folder, figures=options.figures)
        return 0
    options.run = None  # it belongs to the command line, and is not sent to anybody
    done: dict[str, Compared] = {}
    failed: dict[str, str] = {}
    tasks = [(source, (source, pictures)) for source in sources]
    for outcome in share_out(lambda: Comparer(options).compare, tasks, cluster):
        if outcome.error:
            failed[outcome.key] = outcome.error
            to_stderr(f'{outcome.key}: not compared: {outcome.error}')
        else:
            done[outcome.key] = outcome.value
    finish([done[source] for source in sources if source in done], failed, folder,
           figures=options.figures)
    return 1 if failed else 0


class Comparer:
    """Compares recordings with one model, which is loaded when the first of them needs it."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Read the settings.

        Raises:
            DepthClipError: they are wrong.

        """
        self.options = options
        self._depth, self.node = settings(options.config, options.weights, options.device)

    @cached_property
    def estimator(self) -> DepthEstimator:
        """Load it.

        Raises:
            DepthClipError: as `DepthEstimator`; or the settings have an anchor.

        """
        if self.node.anchor:
            raise ConfigError(
                f'anchor: {quoted(self.node.anchor)} follows a recording from its beginning, '
                "which this command does not. Convert the bag with 'depthclip bag', and compare "
                "what that wrote; or set anchor: ''.")
        return load_estimator(self._depth, self.node)

    @property
    def about(self) -> dict[str, Any]:
        """What depth is made with."""
        estimator = self.estimator
        weights = estimator.weights
        return {'weights': weights.name, 'digest': weights.digest, 'trained': weights.trained,
                'device': str(estimator.device), 'precision': estimator.precision,
                'calibration': estimator.label, 'settings': self._depth.to_dict()}

    def compare(self, source: str, pictures: int) -> Compared:
        """Score one recording, and keep so many pictures of it.

        Raises:
            DepthClipError: it cannot be read, or nothing of it can be scored.

        """
        from offline_eval.recorded import MAX_DEPTH, Scores
        options = self.options
        recording, answered = _open(source, options, self.node)
        every = range(0, len(recording), options.every)
        positions = [every[i] for i in spread_evenly(len(every), options.max_frames)]
        shown = {positions[i] for i in spread_evenly(len(positions), pictures)}
        described = recording.described + (
            f'; {answered.topics[1]} is compared with it' if answered is not None else '')
        scores = Scores(recording.source, described)
        to_stderr(f'{recording.source}: {described}, {len(positions)} of {len(recording)} '
                  'images')
        examples, depths = [], np.zeros(len(DEPTHS) - 1, np.int64)
        answers: Answers = _held(recording, answered, positions) if answered is not None else (
            (position, frame, self.estimator.predict(frame.rgb, intrinsics=frame.camera))
            for position, frame in recording.read(positions))
        most = options.max_depth or MAX_DEPTH
        for position, frame, answer in with_progress('comparing', answers, len(positions)):
            depth = answer if isinstance(answer, np.ndarray) else answer.depth
            scores.add(frame.moment.name, depth, frame.depth, most)
            depths += np.histogram(frame.depth[frame.depth < most], DEPTHS)[0]
            if position in shown:
                examples.append(_sample(position, frame, answer, self))
        if answered is not None:
            recording.left_out.update(answered.left_out)
        refused = dict(sorted(recording.left_out.items()))
        if not scores.names:
            causes = {**refused, **scores.left_out}
            said = '; '.join(f'{n} times: {cause}' for cause, n in causes.items()) or 'none'
            raise RecordingError(f'{source}: no image could be compared. Left out: {said}.')
        return Compared(
            scores, examples, refused, {} if answered is not None else self.about, depths)


def _open(
    source: str, options: argparse.Namespace, node: NodeConfig,
) -> tuple[Recording, Recording | None]:
    """Open a recording, and again for the depth that it holds already, if it does."""
    said = _said(source, options)
    recording = open_recording(source, reading(options, node, said))
    if not said:
        return recording, None
    if not recording.topics[0]:
        raise RecordingError(f'{source}: --said {quoted(said)} is a topic, and this is no bag.')
    return recording, open_recording(source, Options(
        image=recording.topics[0], depth=said, tolerance=options.tolerance,
        rectified=node.rectified))


def _said(source: str, options: argparse.Namespace) -> str:
    """Topic of depth to compare that is in the recording; '' for the network's."""
    if options.said:
        return f'/{options.said.lstrip("/")}'
    try:
        path = user_path(source)
        return written_depth(path) if is_bag(path) else ''
    except (OSError, BagError):
        return ''  # who opens it says what is wrong


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


def _sample(
    position: int, frame: Frame, answer: Float32 | DepthPrediction, comparer: Comparer,
) -> Sample:
    """One image for the pictures; without a network's answer it has no words."""
    name = frame.moment.name
    if not isinstance(answer, np.ndarray):
        return sample_of(frame.rgb, answer, comparer.estimator.config, name,
                         measured=frame.depth, index=position)
    depth = np.where(np.isfinite(answer), answer, np.float32(np.nan))
    return Sample(
        index=position, name=name, rgb=frame.rgb, depth=depth, truth=frame.depth,
        weights=np.zeros((0, 1, 1), np.float32), patch_depth=depth[:1, :1], tokens=[], bins=[])


def finish(
    done: Sequence[Compared], failed: Mapping[str, str], folder: Path | None, *,
    figures: bool = False,
) -> None:
    """Pool what was compared, print it, and write the files.

    Args:
        done: at least one, else there is nothing to pool.
        failed: recordings that could not be compared, and why.
        folder: to write to; None to print only.
        figures: draw the paper's, too.

    Raises:
        DepthClipError: all recordings failed, or the files cannot be written.

    """
    from offline_eval.recorded import compare as pool
    if not done:
        raise RecordingError(f'none of {len(failed)} recordings could be compared.')
    about = next((one.about for one in done if one.about), {})
    each = [pool([one.scores]) for one in done]
    pooled = pool([one.scores for one in done]) if len(done) > 1 else each[0]
    parts = contents(done, each, pooled, failed, about)
    print(to_terminal(parts), end='')
    if folder is not None:
        examples = [example for one in done for example in one.examples][:4 * EXAMPLES]
        if examples:
            save(_file(folder, 'png'), _pictures(examples))
            parts += [Heading('Pictures'), Picture(
                'Examples',
                'From left to right: image, depth, measured depth (near is red, far is blue), and '
                'where depth is farther than measured (red) or nearer (blue), full colour from '
                'twice as far or half on; black is unknown.', _file(folder, 'png').name)]
        if figures:
            parts += _figures(folder, done, examples)
        save_page(_file(folder, 'html'), parts)
        numbers = {
            'format': FORMAT, 'model': dict(about), 'pooled': pooled,
            'recordings': [
                {'source': one.scores.source, 'described': one.scores.described,
                 'unreadable': one.refused, **msgspec.to_builtins(comparison)}
                for one, comparison in zip(done, each, strict=True)],
            'failed': dict(failed)}
        save(_file(folder, 'json'),
             msgspec.json.format(msgspec.json.encode(numbers), indent=1) + b'\n')
        print(f'\nreport: {", ".join(str(_file(folder, e)) for e in ("html", "md", "json"))}')
    if about and not about['trained']:
        print_untrained()


def contents(
    done: Sequence[Compared], each: Sequence[Comparison], pooled: Comparison,
    failed: Mapping[str, str], about: Mapping[str, Any],
) -> list[Block]:
    """Put the report together; see `finish`."""
    first = done[0].scores
    title = first.source if len(done) == 1 else f'{len(done)} recordings'
    parts: list[Block] = [
        Heading(f'Depth against measured depth: {title}', 1)]
    if about and not about['trained']:
        parts.append(Text(f'{UNTRAINED}; so is everything below.', warning=True))
    parts += [Text(f'{source} could not be compared: {reason}', warning=True)
              for source, reason in failed.items()]
    depth, filled, scaled, constant = pooled.lines
    others = {
        filled.name: filled,
        f'{scaled.name} (oracle: {scaled.chosen["rmse"]:.2f} for rmse)': scaled,
        f'{constant.name} (oracle: {constant.chosen["rmse"]:.2f} m for rmse)': constant}
    parts += [
        Text(pooled.verdict),
        Table(('what', *_SHOWN.values()), [
            [Strong(text) for text in (depth.name, *_numbers(depth))],
            *([name, *_numbers(line)] for name, line in others.items())]),
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
    parts += [Heading('What was compared'), Table(
        ('what', 'value'), [
            ('network', network), *((one.scores.source, one.scores.described) for one in done)],
        texts=frozenset({0, 1}))]
    left_out = [(f'{one.scores.source}: {cause}', str(count)) for one in done
                for cause, count in (*one.refused.items(), *one.scores.left_out.items())]
    return [*parts, Table(('left out', 'times'), left_out)] if left_out else parts


def _figures(
    folder: Path, done: Sequence[Compared], examples: Sequence[Sample],
) -> list[Block]:
    """The paper's Figures 3 to 5 of these recordings, in `figures/`."""
    samples = [example for example in examples if example.tokens]
    shown = [samples[place] for place in spread_evenly(len(samples), FIGURES)]
    everything, bins = 'all recordings', shown[0].bins if shown else []
    counts = {everything: np.sum([one.depths for one in done], axis=0).tolist()}
    if len(done) > 1:
        counts |= {f'{one.scores.source} ({len(one.scores.names)})': one.depths.tolist()
                   for one in done}
    parts: list[Block] = [Heading('After the paper’s figures')]
    with look():
        parts.append(save_figure(
            folder, 'distributions.svg', distributions(
                DEPTHS.tolist(), counts, dict.fromkeys(counts, bins), 'measured depth (m)',
                everything),
            'Distribution of measured depth',
            'All measured pixels, as in the paper’s Figure 3; a panel there is a scene class, '
            'here a recording. Dashed: the median.' + (
                f' Orange marks below: the metres of the words in {shown[0].name}.'
                if shown else '')))
        parts += [save_figure(
            folder, f'responses_{number}.png', responses(sample, sample.name),
            f'Answers in four patches of {sample.name}',
            'As in the paper’s Figure 4. The patches are not picked by hand: they are at 5, 35, '
            '65 and 95 % of the measured depth, or of depth by words where too little is '
            'measured. Bars: weight of each word, they sum to 1; dotted: the weight of a network '
            'that knows nothing. GT: median measured depth of the patch. Pred: depth of the '
            'patch.') for number, sample in enumerate(shown, 1)]
        if shown:
            parts.append(save_figure(
                folder, 'predictions.png', predictions(shown, {}), 'Depth beside measured depth',
                'RGB, depth by words, measured depth, and error (depth minus measured depth) of '
                f'{len(shown)} images, evenly chosen, as in the paper’s Figure 5, cropped to what '
                'the network sees. The colours of depth are one row’s, near is red; red error is '
                'too far. Grey: not known.'))
    return parts


def _numbers(of: Line | Distance, metrics: Iterable[str] = _SHOWN) -> list[str]:
    return [f'{of.metrics[m]:.3f}' for m in metrics]


def _pictures(examples: Sequence[Sample]) -> bytes:
    """One row an example, each with its own scale.

    At its end white is right, red twice as far, blue half as far.
    """
    rows = []
    for example in examples:
        depth = resample(example.depth, _ROWS, _COLUMNS)
        measured = gather(example.truth, _ROWS, _COLUMNS)
        low, high = known_range(measured)
        small = cv2.resize(example.rgb, (_COLUMNS, _ROWS), interpolation=cv2.INTER_AREA)
        image = np.ascontiguousarray(small[..., ::-1], np.uint8)
        write_note(image, example.name)
        with np.errstate(divide='ignore', invalid='ignore'):
            octaves = np.log2(depth / measured)
        fade = 255 * (1 - np.abs(octaves).clip(0, 1))
        error = np.stack([np.where(octaves > 0, fade, 255), fade,
                          np.where(octaves > 0, 255, fade)], -1)
        error[~np.isfinite(octaves)] = 0
        rows.append(np.hstack([
            image, colorize(depth, low, high), colorize(measured, low, high),
            color_bar(low, high, _ROWS), error.astype(np.uint8)]))
    return png(np.vstack(rows))


def _file(folder: Path, ending: str) -> Path:
    return folder / f'comparison.{ending}'
