# SPDX-License-Identifier: Apache-2.0
"""`depthclip words`: words as an experiment: how alike, and what they say of pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..calibrate.recordings import spread_evenly
from ..color import UNTRAINED
from ..core.errors import ConfigError, DataError, quoted
from ..core.words import unknown_words
from ..document import Block, Heading, Table, Text, to_terminal
from .frames import named_frames
from .model import (
    check_new,
    load_estimator,
    load_weights,
    output_folder,
    print_untrained,
    save_page,
    settings,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

    from offline_eval.results import Sample

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator, DepthPrediction

    Float32 = NDArray[np.float32]

PICTURES = 3  # that figures are drawn of, and the rest counts in the tables
NAMES = 'AB'
FILES = ('html', 'md')


@dataclass
class WordSet:
    """One set of words, and what it says.

    Attributes:
        name: 'A' or 'B'.
        config: with these words and their bins.
        origin: of the bins, in words.
        features: (K, C) unit vectors.
        weights: (K,) sum of the words' weights over all patches.
        strongest: (K,) patches in which each word answers most; words that are the same to the
            model share theirs.
        answers: of every picture.

    """

    name: str
    config: DepthConfig
    origin: str
    features: Float32
    weights: NDArray[np.float64] = field(init=False)
    strongest: NDArray[np.float64] = field(init=False)
    answers: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.config.tokens)
        self.weights, self.strongest = np.zeros(count), np.zeros(count)

    @property
    def label(self) -> str:
        """Its name, and its words."""
        return f'{self.name}: {", ".join(self.config.tokens)}'

    @property
    def said(self) -> Float32:
        """Depth of all patches of all pictures, (n h w,) metres, NaN where there is none."""
        return np.concatenate([answer.patch_depth.ravel() for answer in self.answers])

    def add(self, prediction: DepthPrediction, answer: Sample) -> None:
        """Count one picture; patches that show padding do not count."""
        weights = prediction.weights[:, np.isfinite(prediction.spread)]
        self.weights += weights.sum(axis=1)
        best = np.isclose(weights, weights.max(axis=0), rtol=1e-4, atol=0)
        self.strongest += (best / best.sum(axis=0)).sum(axis=1)
        self.answers.append(answer)


def words(options: argparse.Namespace) -> int:
    """Show what words mean to a model, and what they say of pictures.

    Args:
        options: of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 1 if any picture could not be read; the others count all the same.

    Raises:
        DepthClipError: settings, words, weights or output cannot be used, or no picture can.

    """
    folder = _folder(options.output) if options.output else None
    depth, node = settings(options.config, options.weights, options.device)
    base, notes = _plain(depth)
    texts = [options.words, *([options.against] if options.against else [])]
    configs = _configs(base, [_listed(text) for text in texts], options.bins)
    loaded = load_weights(configs[0][0], node)
    estimator = load_estimator(configs[0][0], node, loaded)
    sets = [WordSet(name, config, origin, estimator.encode(config))
            for name, (config, origin) in zip(NAMES, configs, strict=False)]
    names, failures = _look(estimator, sets, options)
    parts = _contents(sets, names, estimator, [*notes, *_warnings(sets, loaded[1])])
    parts += [Text(f'Not read: {failure}', warning=True) for failure in failures]
    print(to_terminal(parts), end='')
    if folder is not None:
        save_page(folder / 'words.html', parts + _figures(folder, sets))
        print(f'\npage: {", ".join(str(folder / f"words.{ending}") for ending in FILES)}')
    if not estimator.weights.trained:
        print_untrained()
    return 1 if failures else 0


def _folder(output: str) -> Path:
    """Make the folder, and refuse to overwrite."""
    from offline_eval.report.figures import require
    require()
    folder = output_folder(output)
    check_new(folder / f'words.{ending}' for ending in FILES)
    return folder


def _plain(depth: DepthConfig) -> tuple[DepthConfig, list[str]]:
    """Settings without what belongs to their own words; sentences about what is left out."""
    notes = []
    if depth.calibration:
        notes.append('The calibration of the settings belongs to their own words, and is left '
                     'out.')
    if depth.has_scenes:
        notes.append('The scenes of the settings have bins for their own words, and are left out.')
    return depth.replace(
        calibration='', max_stddev=0.0, scenes=('',), scene_bins=(0.0,)), notes


def _listed(text: str) -> tuple[str, ...]:
    found = tuple(word.strip() for word in text.split(','))
    if len(found) < 2:
        said = 'is one word: it would be the whole answer in every patch' if found[0] else \
            'holds no word'
        raise ConfigError(f'{quoted(text)} {said}. Give two at least, with commas between them, '
                          'from near to far.')
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
        if len(known) == len(tokens):
            found.append((base.replace(tokens=tokens, bins=known), origin))
            continue
        even = tuple(float(b) for b in np.linspace(known[0], known[-1], len(tokens)))
        found.append((base.replace(tokens=tokens, bins=even), (
            f'evenly spaced from {known[0]:g} to {known[-1]:g} m, since {len(known)} bins are '
            f'{"given" if given is not None else "in the settings"} for {len(tokens)} words')))
    return found


def _look(
    estimator: DepthEstimator, sets: Sequence[WordSet], options: argparse.Namespace,
) -> tuple[list[str], list[str]]:
    """Show every picture to every set; give names of the pictures, and what was wrong."""
    names: list[str] = []
    failures: list[str] = []

    def skip(error: DataError) -> None:
        failures.append(str(error))

    if not options.image:
        return names, failures
    from offline_eval.report.figures import sample_of
    for name, rgb, _ in named_frames(
            options.image, options.max_images, skip, options.topic):
        for one in sets:
            estimator.reconfigure(one.config)
            prediction = estimator.predict(rgb)
            one.add(prediction, sample_of(rgb, prediction, one.config, name))
        names.append(name)
    if not names:
        raise ConfigError(f'no picture could be read: {"; ".join(failures[:3])}')
    return names, failures


def _warnings(sets: Sequence[WordSet], state_dict: Mapping[str, Tensor]) -> list[str]:
    """What must be known before anything is read into the figures."""
    from offline_eval.contenders import ALIKE, are_alike
    found = []
    for one in sets:
        tokens = one.config.tokens
        unknown = unknown_words(tokens, state_dict)
        if unknown:
            listed = ', '.join(map(quoted, unknown))
            found.append(f'{one.name}: this model has never learnt {listed}. All words '
                         'that it does not know are the same to it.')
        cosines = one.features @ one.features.T
        if are_alike(one.features):
            found.append(f'{one.name}: this model takes all these words for the same (all cosines '
                         f'above {ALIKE:g}): its depth is the mean of the bins, whatever is in '
                         'the picture.')
            continue
        alike = [f'{quoted(tokens[i])} and {quoted(tokens[j])}'
                 for i in range(len(tokens)) for j in range(i + 1, len(tokens))
                 if cosines[i, j] > ALIKE]
        if alike:
            found.append(f'{one.name}: this model cannot tell {"; ".join(alike)} apart (cosine '
                         f'above {ALIKE:g}): which of them answers more says nothing.')
    return found


def _contents(
    sets: Sequence[WordSet], names: Sequence[str], estimator: DepthEstimator,
    warnings: Sequence[str],
) -> list[Block]:
    """Put the page together, but for its figures."""
    weights = estimator.weights
    parts: list[Block] = [Heading('What words say', 1)]
    if not weights.trained:
        parts.append(Text(f'{UNTRAINED}; so is everything below.', warning=True))
    parts += [Text(warning, warning=True) for warning in warnings]
    pictures = f'{len(names)} picture{"s" if len(names) > 1 else ""}' if names else 'no picture'
    parts.append(Text(
        f'{weights.name}, {pictures}. Nothing here was measured: it shows what the words do, not '
        'how right they are. That takes measured depth (depthclip compare, offline_eval).'))
    for one in sets:
        parts += [Heading(f'Words {one.name}'), Text(f'Bins: {one.origin}.'), _table(one)]
    if names:
        parts += [Heading('Depth'), Table(
            ('set', 'least [m]', 'median [m]', 'greatest [m]', 'deviation [m]', 'unknown'),
            [_said(one) for one in sets])]
        if len(sets) > 1:
            parts.append(_difference(*sets))
    return parts


def _table(one: WordSet) -> Block:
    """One row a word."""
    tokens, cosines = one.config.tokens, one.features @ one.features.T
    np.fill_diagonal(cosines, -2)
    nearest = cosines.argmax(axis=1)
    seen = bool(one.answers)
    total, patches = max(float(one.weights.sum()), 1e-12), max(float(one.strongest.sum()), 1.0)
    return Table(
        ('word', 'bin [m]', *(('answers', 'strongest in') if seen else ()), 'most like', 'cosine'),
        [(token, f'{metres:.2f}', *(
            (f'{weight / total:.1%}', f'{strongest / patches:.1%}') if seen else ()),
          tokens[other], f'{cosines[i, other]:.4f}')
         for i, (token, metres, weight, strongest, other) in enumerate(zip(
             tokens, one.config.bins, one.weights, one.strongest, nearest, strict=True))])


def _said(one: WordSet) -> tuple[str, ...]:
    said = one.said
    known = said[np.isfinite(said)]
    if not known.size:
        return one.name, '–', '–', '–', '–', '100%'
    return (one.name, *(f'{v:.2f}' for v in np.percentile(known, (0, 50, 100))),
            f'{known.std():.2f}', f'{1 - known.size / said.size:.0%}')


def _difference(first: WordSet, second: WordSet) -> Block:
    a, b = first.said, second.said
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        return Text('There is no patch of which both sets know the depth.')
    apart = np.abs(a[both] - b[both])
    text = (f'A and B differ by {np.median(apart):.2f} m (median of the patches), at most by '
            f'{apart.max():.2f} m. ')
    if a[both].std() < 1e-4 or b[both].std() < 1e-4:
        return Text(text + 'One of them says the same everywhere.')
    return Text(f'{text}The correlation of their depths is '
                f'{np.corrcoef(a[both], b[both])[0, 1]:.2f}.')


def _figures(folder: Path, sets: Sequence[WordSet]) -> list[Block]:
    """Draw everything into `figures/`."""
    from offline_eval.report import figures
    from offline_eval.report import words as drawn
    labels = [figures.short(one.label, 44) for one in sets]
    features = np.concatenate([one.features for one in sets])
    tokens = [token for one in sets for token in one.config.tokens]
    pictures = list(zip(*(one.answers for one in sets), strict=True))
    shown = [pictures[i] for i in spread_evenly(len(pictures), PICTURES)]

    def save(name: str, drawing: Figure, title: str, caption: str) -> Block:
        return figures.save(folder, name, drawing, title, caption, photo=True)
    with figures.look():
        parts: list[Block] = [Heading('How alike the words are'), save(
            'similarity',
            drawn.similarity(tokens, features @ features.T, len(sets[0].config.tokens)),
            'Cosines of the words’ text features',
            'In their sentences, as the model compares them with the patches: 1 is the same. '
            'CLIP’s texts are all rather alike, so that differences count, not the level.')]
        if not pictures:
            return parts
        parts += [Heading('Depth with the words'), save(
            'depth', drawn.depths(shown, labels, [one.config.depth_span for one in sets]),
            'Depth by words, as in the paper’s Figure 5',
            'All on one scale, near is red. Grey: no depth, or no image.')]
        if len(pictures) > 1:
            parts.append(save(
                'distribution', drawn.distributions(
                    [one.said for one in sets], [one.config.bins for one in sets], labels),
                'Distribution of the depth that is said, after the paper’s Figure 3',
                f'All patches of {len(pictures)} pictures. The paper’s shows true depth, which '
                'nobody has measured here. Marks below: the bins.'))
        parts.append(Heading('What each word answers'))
        for number, answers in enumerate(shown, 1):
            for one, answer, label in zip(sets, answers, labels, strict=True):
                places = figures.at_quantiles(np.where(
                    np.isfinite(answer.patch_depth), answers[0].patch_depth, np.nan))
                stem = f'{number}_{one.name.lower()}'
                mirrored = (' Depth is the mean of the plain and the mirrored pass; the bars are '
                            'those of the plain pass.') if one.config.flip_average else ''
                parts += [
                    save(f'bars_{stem}', figures.responses(answer, places, answer.name),
                         f'Words {one.name} in four patches of {answer.name}, as in the paper’s '
                         'Figure 4',
                         'The patches are not picked by hand: they are at 5, 35, 65 and 95 % of '
                         'the depth that words A say. Bars: weight of each word, they sum to 1; '
                         f'dotted: the weight of a network that knows nothing.{mirrored}'),
                    save(f'maps_{stem}', drawn.maps(answer, label),
                         f'Answer of each of words {one.name} on {answer.name}',
                         'Weight of the word in every patch, all on one scale.')]
    return parts
