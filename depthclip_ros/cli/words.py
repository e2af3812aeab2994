# SPDX-License-Identifier: Apache-2.0
"""`depthclip words`: similarity of words, and their weights and depth on pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..calibrate.recordings import evenly_spaced
from ..core.camera import stretch_notice
from ..core.errors import ConfigError, quoted
from ..core.files import check_new, output_folder
from ..core.text_features import ALIKE, phrases_of, word_warnings
from ..core.weights import cache_folder, load_weights
from ..drawing.color import UNTRAINED, bins_scale
from ..report import figures
from ..report.document import Block, Heading, Strong, Table, Text, to_terminal
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

PICTURES = 3  # drawn in figures; the tables count all
FILES = ('words.html', 'words.md')


@dataclass
class WordSet:
    """One set of words, and its depth of every picture."""

    name: str  # 'A' or 'B'
    config: DepthConfig  # with these words and their bins
    origin: str  # of the bins, in words
    features: Float32  # (K, C) unit vectors
    samples: list[figures.Sample] = field(default_factory=list)  # of every picture

    @property
    def label(self) -> str:
        """Name and words."""
        return figures.short(f'{self.name}: {", ".join(self.config.tokens)}', 44)

    @property
    def depth(self) -> Float32:
        """Depth of all patches of all pictures, (n h w,) metres, NaN where there is none."""
        return np.concatenate([sample.patch_depth.ravel() for sample in self.samples])


def words(options: argparse.Namespace) -> int:
    """Show how similar words are to a model, and their weights and depth on pictures.

    Returns:
        Exit code: 1 if any picture could not be read; the others count.

    Raises:
        DepthClipError: settings, words, weights, output or all pictures cannot be used.

    """
    folder = output_folder(options.output) if options.output else None
    if folder:
        check_new(folder / name for name in (*FILES, 'figures'))
    depth, node = settings(options.config, options.weights, options.device)
    base = depth.replace(calibration='', max_stddev=0.0, scenes=('',), scene_bins=(0.0,))
    warnings = [f'The {name} of the settings belong to their own words, and are left out.'
                for name, is_set in (('numbers of the calibration', depth.calibration),
                                     ('scenes', depth.has_scenes)) if is_set]
    texts = [options.words, *([options.against] if options.against else [])]
    configs = _configs(base, [_split(text) for text in texts], options.bins)
    failures: list[str] = []
    notes = Notes(warnings.append)
    frames = named_frames(options.image, options.max_images, lambda error: (
        failures.append(str(error))), notes, options.topic)
    loaded = load_weights(node.weights, base.backbone, cache_folder(node.cache_dir), to_stderr,
                  offline=node.offline)
    estimator = load_estimator(configs[0][0], node, loaded)
    sets = [WordSet(name, config, origin, estimator.prepare(config).text.cpu().numpy())
            for name, (config, origin) in zip('AB', configs, strict=False)]
    warnings += [f'{word_set.name}: {doubt}' for word_set in sets for doubt in word_warnings(
        phrases_of(word_set.config)[0], word_set.features, lambda: loaded[1], thorough=True)]
    for name, rgb, _ in frames:
        notes.add(name, 'stretched', stretch_notice(rgb.shape, base.input_size))
        for word_set in sets:
            estimator.reconfigure(word_set.config)
            word_set.samples.append(figures.sample_of(
                rgb, estimator.predict(rgb), word_set.config, name))
    notes.close()
    count, trained = len(sets[0].samples), estimator.weights.trained
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
    for word_set in sets:
        parts += [Heading(f'Words {word_set.name}'), Text(f'Bins: {word_set.origin}.'),
                  _word_table(word_set)]
    parts += _depth_table(sets) if count else []
    parts += [Text(f'Not read: {failure}', warning=True) for failure in failures]
    print(to_terminal(parts), end='')
    if folder:
        save_page(folder / 'words.html', [
            *parts, *_similarity(sets), *(_figures(folder, sets) if count else ())])
        print(f'\npage: {", ".join(str(folder / name) for name in FILES)}')
    if not trained:
        print_untrained()
    return 1 if failures else 0


def _split(text: str) -> tuple[str, ...]:
    """Split words at commas; raises ConfigError unless they are two or more different ones."""
    words = tuple(word.strip() for word in text.split(','))
    if len(words) < 2:
        raise ConfigError(f'{quoted(text)} is one word: it would be the whole answer in every '
                          'patch. Give two at least, with commas between them, from near to far.')
    if '' in words:
        raise ConfigError(f'{quoted(text)} holds an empty word: commas stand between words only.')
    lower = [word.lower() for word in words]
    if twice := [word for word in words if lower.count(word.lower()) > 1]:
        raise ConfigError(f'{quoted(text)}: {", ".join(twice)} are one word to CLIP, which stands '
                          'twice; give it once.')
    return words


def _configs(
    base: DepthConfig, lists: Sequence[tuple[str, ...]], bins: tuple[float, ...] | None,
) -> list[tuple[DepthConfig, str]]:
    """Configure each set of words; return the configurations with the origin of their bins.

    Bins are those of --bins, else of the settings. For another number of words they are evenly
    spaced over the same span, so that sets of words stay comparable.
    """
    if bins is not None and len(bins) != len(lists[0]):
        raise ConfigError(f'--bins: {len(bins)} depths for {len(lists[0])} words '
                          f'({", ".join(lists[0])}); give one for each, in metres, ascending.')
    span, origin = (bins, 'given') if bins is not None else (base.bins, "the settings' own")
    configs = []
    for tokens in lists:
        values, reason = span, origin
        if len(span) != len(tokens):
            values = tuple(float(b) for b in np.linspace(span[0], span[-1], len(tokens)))
            reason = (f'evenly spaced from {span[0]:g} to {span[-1]:g} m, since {len(span)} bins '
                      f'are {"given" if bins else "in the settings"} for {len(tokens)} words')
        configs.append((base.replace(tokens=tokens, bins=values), reason))
    return configs


def _word_table(word_set: WordSet) -> Block:
    """Tabulate one word per row; words with equal features share the patches they dominate."""
    tokens, cosines = word_set.config.tokens, word_set.features @ word_set.features.T
    np.fill_diagonal(cosines, -2)
    nearest = cosines.argmax(axis=1)
    answers: list[tuple[str, ...]] = [()] * len(tokens)
    if word_set.samples:
        weights = np.concatenate([s.weights.reshape(len(tokens), -1) for s in word_set.samples], 1)
        weights = weights[:, np.isfinite(weights).all(axis=0)]
        best = np.isclose(weights, weights.max(axis=0), rtol=1e-4, atol=0)
        answers = [(f'{mean:.1%}', f'{strongest:.1%}') for mean, strongest in zip(
            weights.mean(axis=1), (best / best.sum(axis=0)).mean(axis=1), strict=True)]
    return Table(
        ('word', 'bin [m]', *(('answers', 'strongest in') if word_set.samples else ()),
         'most like', 'cosine'),
        [(token, f'{metres:.2f}', *answers[i], tokens[nearest[i]],
          f'{cosines[i, nearest[i]]:.4f}')
         for i, (token, metres) in enumerate(zip(tokens, word_set.config.bins, strict=True))])


def _depth_table(sets: Sequence[WordSet]) -> list[Block]:
    """Tabulate quantiles and standard deviation of the depth by each set."""
    rows = []
    for word_set in sets:
        depth, valid = word_set.depth, word_set.depth[np.isfinite(word_set.depth)]
        values = [*np.percentile(valid, (0, 50, 100)), valid.std()] if valid.size else [np.nan] * 4
        rows.append((word_set.name, *(f'{value:.2f}' for value in values),
                     f'{1 - valid.size / depth.size:.0%}'))
    return [Heading('Depth'), Table(
        ('set', 'least [m]', 'median [m]', 'greatest [m]', 'deviation [m]', 'unknown'), rows)]


def _similarity(sets: Sequence[WordSet]) -> list[Block]:
    """Tabulate the cosines of all pairs of words; bold where the model cannot tell them apart."""
    features = np.concatenate([word_set.features for word_set in sets])
    tokens = [token for word_set in sets for token in word_set.config.tokens]
    return [Heading('How alike the words are'), Table(
        ('', *tokens), [
            [token, *((Strong if cosine > ALIKE else str)(f'{cosine:.3f}') for cosine in row)]
            for token, row in zip(tokens, features @ features.T, strict=True)],
        'Cosines of the words’ text features',
        'In their sentences, as the model compares them with the patches: 1 is the same. CLIP’s '
        'texts are all rather alike, so that differences count, not the level.')]


def _figures(folder: Path, sets: Sequence[WordSet]) -> list[Block]:
    """Draw all figures into `figures/`."""
    parts: list[Block] = []

    def add(name: str, figure: Figure, title: str, caption: str) -> None:
        parts.append(figures.save(folder, name, figure, title, caption))
    labels = [word_set.label for word_set in sets]
    pictures = list(zip(*(word_set.samples for word_set in sets), strict=True))
    examples = [pictures[i] for i in evenly_spaced(len(pictures), PICTURES)]
    with figures.figure_style():
        parts.append(Heading('Depth with the words'))
        spans = zip(*(word_set.config.depth_span for word_set in sets), strict=True)
        scale = bins_scale((min(next(spans)), max(next(spans))))
        if len(pictures) > 1:
            depths = [depth[np.isfinite(depth)] for depth in (s.depth for s in sets)]
            bins = [word_set.config.bins for word_set in sets]
            values = np.concatenate([*depths, *bins])
            edges = np.linspace(values.min(), values.max() + 1e-3, 61)
            add('distribution.png', figures.distributions(
                    edges.tolist(), {label: np.histogram(depth, edges)[0].tolist()
                                     for label, depth in zip(labels, depths, strict=True)},
                    bins, 'language depth (m)'),
                'Distribution of language depth, after the paper’s Figure 3',
                f'All patches of {len(pictures)} pictures. The paper’s shows true depth, which '
                'nobody has measured here. Marks below: the bins.')
        for number, samples in enumerate(examples, 1):
            patches = figures.at_quantiles(samples[0].patch_depth)
            for word_set, sample in zip(sets, samples, strict=True):
                stem = f'{number}_{word_set.name.lower()}'
                add(f'bars_{stem}.png', figures.responses(
                        sample, figures.short(sample.name), figures.spots_of(sample, patches),
                        scale),
                    f'Words {word_set.name} in {"" if word_set is sets[0] else "the same "}four '
                    f'patches of {sample.name}',
                    f'Depth by all sets is on one scale. {figures.RESPONSES}')
                add(f'maps_{stem}.png', figures.maps(sample, word_set.label),
                    f'Answer of each of words {word_set.name} on {sample.name}',
                    'Weight of the word in every patch, all on one scale.')
    return parts
