# SPDX-License-Identifier: Apache-2.0
"""`depthclip words`: words as an experiment: how alike, and what they say of pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .. import figures
from ..calibrate.recordings import spread_evenly
from ..color import UNTRAINED, bins_scale
from ..core.camera import stretch_notice
from ..core.errors import ConfigError, quoted
from ..core.files import check_new, output_folder
from ..core.weights import cache_folder, load
from ..core.words import ALIKE, doubts, phrases_of
from ..document import Block, Heading, Strong, Table, Text, to_terminal
from ..sources.pictures import Notes
from .model import load_estimator, print_untrained, save_page, settings, to_stderr
from .predict import named_frames

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..core.config import DepthConfig

    Float32 = NDArray[np.float32]

PICTURES = 3  # that figures are drawn of, and the rest counts in the tables
FILES = ('words.html', 'words.md')


@dataclass
class WordSet:
    """One set of words, and what it says."""

    name: str  # 'A' or 'B'
    config: DepthConfig  # with these words and their bins
    origin: str  # of the bins, in words
    features: Float32  # (K, C) unit vectors
    answers: list[figures.Sample] = field(default_factory=list)  # of every picture

    @property
    def label(self) -> str:
        """Its name, and its words."""
        return figures.short(f'{self.name}: {", ".join(self.config.tokens)}', 44)

    @property
    def said(self) -> Float32:
        """Depth of all patches of all pictures, (n h w,) metres, NaN where there is none."""
        return np.concatenate([answer.patch_depth.ravel() for answer in self.answers])


def words(options: argparse.Namespace) -> int:
    """Show what words mean to a model, and what they say of pictures.

    Returns:
        Exit code: 1 if any picture could not be read; the others count all the same.

    Raises:
        DepthClipError: settings, words, weights or output cannot be used, or no picture can.

    """
    folder = output_folder(options.output) if options.output else None
    if folder:
        check_new(folder / name for name in (*FILES, 'figures'))
    depth, node = settings(options.config, options.weights, options.device)
    base = depth.replace(calibration='', max_stddev=0.0, scenes=('',), scene_bins=(0.0,))
    warnings = [f'The {what} of the settings belong to their own words, and are left out.'
                for what, is_there in (('numbers of the calibration', depth.calibration),
                                       ('scenes', depth.has_scenes)) if is_there]
    texts = [options.words, *([options.against] if options.against else [])]
    configs = _configs(base, [_listed(text) for text in texts], options.bins)
    failures: list[str] = []
    notes = Notes(warnings.append)
    frames = named_frames(options.image, options.max_images, lambda error: (
        failures.append(str(error))), notes, options.topic)
    loaded = load(node.weights, base.backbone, cache_folder(node.cache_dir), to_stderr,
                  offline=node.offline)
    estimator = load_estimator(configs[0][0], node, loaded)
    sets = [WordSet(name, config, origin, estimator.prepare(config).text.cpu().numpy())
            for name, (config, origin) in zip('AB', configs, strict=False)]
    warnings += [f'{one.name}: {doubt}' for one in sets for doubt in doubts(
        phrases_of(one.config)[0], one.features, lambda: loaded[1], thorough=True)]
    for name, rgb, _ in frames:
        notes.add(name, 'stretched', stretch_notice(rgb.shape, base.input_size))
        for one in sets:
            estimator.reconfigure(one.config)
            one.answers.append(figures.sample_of(
                rgb, estimator.predict(rgb), one.config, name))
    notes.close()
    count, trained = len(sets[0].answers), estimator.weights.trained
    if options.image and not count:
        raise ConfigError(f'no picture could be read: {"; ".join(failures[:3])}')
    if not trained:
        warnings = [f'{UNTRAINED}; so is everything below.', *warnings]
    pictures = f'{count} picture{"s" if count > 1 else ""}' if count else 'no picture'
    parts: list[Block] = [
        Heading('What words say', 1), *(Text(warning, warning=True) for warning in warnings),
        Text(f'{estimator.weights.name}, {pictures}. Nothing here was measured: it shows what the '
             'words do, not how right they are. That takes measured depth (depthclip compare, '
             'offline_eval).')]
    for one in sets:
        parts += [Heading(f'Words {one.name}'), Text(f'Bins: {one.origin}.'), _table(one)]
    parts += _depths(sets) if count else []
    parts += [Text(f'Not read: {failure}', warning=True) for failure in failures]
    print(to_terminal(parts), end='')
    if folder:
        save_page(folder / 'words.html', [
            *parts, *_similarity(sets), *(_figures(folder, sets) if count else ())])
        print(f'\npage: {", ".join(str(folder / name) for name in FILES)}')
    if not trained:
        print_untrained()
    return 1 if failures else 0


def _listed(text: str) -> tuple[str, ...]:
    found = tuple(word.strip() for word in text.split(','))
    if len(found) < 2:
        raise ConfigError(f'{quoted(text)} is one word: it would be the whole answer in every '
                          'patch. Give two at least, with commas between them, from near to far.')
    if '' in found:
        raise ConfigError(f'{quoted(text)} holds an empty word: commas stand between words only.')
    lower = [word.lower() for word in found]
    if twice := [word for word in found if lower.count(word.lower()) > 1]:
        raise ConfigError(f'{quoted(text)}: {", ".join(twice)} are one word to CLIP, which stands '
                          'twice; give it once.')
    return found


def _configs(
    base: DepthConfig, lists: Sequence[tuple[str, ...]], given: tuple[float, ...] | None,
) -> list[tuple[DepthConfig, str]]:
    """Bins of each set of words, and where they come from.

    Those given, or the settings', where there are as many as words; else as many between the
    first and the last of them, evenly spaced, so that sets of words stay comparable.
    """
    if given is not None and len(given) != len(lists[0]):
        raise ConfigError(f'--bins: {len(given)} depths for {len(lists[0])} words '
                          f'({", ".join(lists[0])}); give one for each, in metres, ascending.')
    known, origin = (given, 'given') if given is not None else (base.bins, "the settings' own")
    found = []
    for tokens in lists:
        bins, said = known, origin
        if len(known) != len(tokens):
            bins = tuple(float(b) for b in np.linspace(known[0], known[-1], len(tokens)))
            said = (f'evenly spaced from {known[0]:g} to {known[-1]:g} m, since {len(known)} bins '
                    f'are {"given" if given else "in the settings"} for {len(tokens)} words')
        found.append((base.replace(tokens=tokens, bins=bins), said))
    return found


def _table(one: WordSet) -> Block:
    """One row a word; words that are the same to the model share the patches they are best in."""
    tokens, cosines = one.config.tokens, one.features @ one.features.T
    np.fill_diagonal(cosines, -2)
    nearest = cosines.argmax(axis=1)
    answers: list[tuple[str, ...]] = [()] * len(tokens)
    if one.answers:
        weights = np.concatenate([a.weights.reshape(len(tokens), -1) for a in one.answers], 1)
        weights = weights[:, np.isfinite(weights).all(axis=0)]  # not of patches without an answer
        best = np.isclose(weights, weights.max(axis=0), rtol=1e-4, atol=0)
        answers = [(f'{share:.1%}', f'{strongest:.1%}') for share, strongest in zip(
            weights.mean(axis=1), (best / best.sum(axis=0)).mean(axis=1), strict=True)]
    return Table(
        ('word', 'bin [m]', *(('answers', 'strongest in') if one.answers else ()), 'most like',
         'cosine'),
        [(token, f'{metres:.2f}', *answers[i], tokens[nearest[i]],
          f'{cosines[i, nearest[i]]:.4f}')
         for i, (token, metres) in enumerate(zip(tokens, one.config.bins, strict=True))])


def _depths(sets: Sequence[WordSet]) -> list[Block]:
    """What each set says."""
    rows = []
    for one in sets:
        known = one.said[np.isfinite(one.said)]
        values = [*np.percentile(known, (0, 50, 100)), known.std()] if known.size else [np.nan] * 4
        rows.append((one.name, *(f'{value:.2f}' for value in values),
                     f'{1 - known.size / one.said.size:.0%}'))
    return [Heading('Depth'), Table(
        ('set', 'least [m]', 'median [m]', 'greatest [m]', 'deviation [m]', 'unknown'), rows)]


def _similarity(sets: Sequence[WordSet]) -> list[Block]:
    """Cosines of all words with all; what the model cannot tell apart is bold."""
    features = np.concatenate([one.features for one in sets])
    tokens = [token for one in sets for token in one.config.tokens]
    return [Heading('How alike the words are'), Table(
        ('', *tokens), [
            [token, *((Strong if cosine > ALIKE else str)(f'{cosine:.3f}') for cosine in row)]
            for token, row in zip(tokens, features @ features.T, strict=True)],
        'Cosines of the words’ text features',
        'In their sentences, as the model compares them with the patches: 1 is the same. CLIP’s '
        'texts are all rather alike, so that differences count, not the level.')]


def _figures(folder: Path, sets: Sequence[WordSet]) -> list[Block]:
    """Draw everything into `figures/`."""
    parts: list[Block] = []

    def add(name: str, figure: Figure, title: str, caption: str) -> None:
        parts.append(figures.save(folder, name, figure, title, caption))
    labels = [one.label for one in sets]
    pictures = list(zip(*(one.answers for one in sets), strict=True))
    shown = [pictures[i] for i in spread_evenly(len(pictures), PICTURES)]
    with figures.look():
        parts.append(Heading('Depth with the words'))
        spans = zip(*(one.config.depth_span for one in sets), strict=True)
        scale = bins_scale((min(next(spans)), max(next(spans))))
        if len(pictures) > 1:
            said = [one.said[np.isfinite(one.said)] for one in sets]
            every = np.concatenate([*said, *(one.config.bins for one in sets)])
            edges = np.linspace(every.min(), every.max() + 1e-3, 61)
            add('distribution.png', figures.distributions(
                    edges.tolist(), {label: np.histogram(values, edges)[0].tolist()
                                     for label, values in zip(labels, said, strict=True)},
                    [one.config.bins for one in sets], 'depth that is said (m)'),
                'Distribution of the depth that is said, after the paper’s Figure 3',
                f'All patches of {len(pictures)} pictures. The paper’s shows true depth, which '
                'nobody has measured here. Marks below: the bins.')
        for number, answers in enumerate(shown, 1):
            places = figures.at_quantiles(answers[0].patch_depth)
            for one, answer in zip(sets, answers, strict=True):
                stem = f'{number}_{one.name.lower()}'
                add(f'bars_{stem}.png', figures.responses(
                        answer, figures.short(answer.name), figures.spots_of(answer, places),
                        scale),
                    f'Words {one.name} in {"" if one is sets[0] else "the same "}four patches of '
                    f'{answer.name}', f'Depth by all sets is on one scale. {figures.RESPONSES}')
                add(f'maps_{stem}.png', figures.maps(answer, one.label),
                    f'Answer of each of words {one.name} on {answer.name}',
                    'Weight of the word in every patch, all on one scale.')
    return parts
