# SPDX-License-Identifier: Apache-2.0
"""What the evaluation says about its numbers: intervals, comparisons, verdict."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtri

from offline_eval.bootstrap import LEAST_GROUPS, draw, groups_of, interval
from offline_eval.contenders import baselines, method_and_variants
from offline_eval.datasets import Entry
from offline_eval.metrics import SUMS, SortedTruth
from offline_eval.paper import METHOD, PAPER_CONFIG
from offline_eval.records import constants, layout
from offline_eval.results import METRICS, Interval
from offline_eval.summarize import Measured, reading, rows, verdict

MAX_DEPTH = 10.0


# Intervals -----------------------------------------------------------------------------------

def scenes(rng, count):
    """Group of every image: a scene has one to five of them."""
    return np.repeat(np.arange(count), rng.integers(1, 6, count))


def values(rng, groups):
    """Skewed values that images of a scene share in part; their expectation is 0."""
    own = rng.gamma(4.0, size=groups.max() + 1) - 4.0
    return own[groups] + 0.5 * (rng.gamma(4.0, size=len(groups)) - 4.0)


def covered(count, repeats, by_scene=True):
    """Share of simulated data sets of whose expectation, 0, nothing wrong is said."""
    rng = np.random.default_rng(1)
    hits = 0
    for repeat in range(repeats):
        groups = scenes(rng, count)
        sample = values(rng, groups)
        counts = draw(groups if by_scene else np.arange(len(groups)), 400, seed=repeat)
        means = counts @ sample / counts.sum(1)
        found = interval(means, groups.max() + 1 if by_scene else len(groups))
        hits += reading(found) == 'not distinguishable'
    return hits / repeats


def test_intervals_hold_what_they_say():
    """The share of 400 is within four standard errors, sqrt(0.95 * 0.05 / 400) each."""
    assert covered(100, 400) == pytest.approx(0.95, abs=0.044)


def test_resampling_images_would_promise_too_much():
    assert covered(60, 100, by_scene=False) < 0.85


@pytest.mark.parametrize(('groups', 'comparisons', 'student'), [
    (20, 1, 2.093), (1000, 1, 1.962), (20, 10, 3.174), (1000, 10, 2.813)])
def test_an_interval_is_as_wide_as_student_s_t(groups, comparisons, student):
    """Of quantiles of a normal distribution; of ten that hold together, at 99.5 %."""
    edge = student * math.sqrt(groups / (groups - 1))
    found = interval(ndtri((np.arange(40000) + 0.5) / 40000), groups, comparisons)
    assert (found.low, found.high) == pytest.approx((-edge, edge), abs=0.01)
    assert found.name() == ('95 % interval' if comparisons == 1 else '99.5 % interval')


def test_a_scene_is_drawn_as_a_whole():
    groups = groups_of(['b', 'a', 'b', '', '', 'a'])
    assert groups[0] == groups[2]
    assert groups[1] == groups[5]
    assert len(set(groups.tolist())) == 4
    counts = draw(groups, 300)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    assert (counts[:, 3] != counts[:, 4]).any()
    weight = sum(counts[:, np.flatnonzero(groups == g)[0]] for g in range(4))
    assert (weight == 4).all()
    assert counts.std(axis=0).min() > 0.5  # it resamples


@pytest.mark.parametrize(('low', 'high', 'words'), [
    (0.1, 0.2, 'clearly better'), (-0.2, -0.1, 'clearly worse'),
    (-0.1, 0.1, 'not distinguishable'), (0.0, 0.1, 'not distinguishable')])
def test_what_an_interval_says(low, high, words):
    assert reading(Interval(low, high)) == words


# Verdict -------------------------------------------------------------------------------------

CHOSEN = [*method_and_variants(PAPER_CONFIG, ('1',)),
          *baselines(PAPER_CONFIG, None, MAX_DEPTH, 100)]
NAMES = [contender.name for contender in CHOSEN]


def measured(truths, errors, sequences, how='image'):
    """Records of images whose prediction is the truth times exp(error) in every pixel."""
    records = np.zeros(len(truths), layout(len(CHOSEN), (13, 17)))
    for position, (record, truth) in enumerate(zip(records, truths, strict=True)):
        ordered = SortedTruth(truth.astype(np.float32))
        record['position'], record['pixels'] = position, len(truth)
        record['median'] = ordered.median()
        record['curve'] = ordered.score(constants(MAX_DEPTH))
        for place, name in enumerate(NAMES):
            depth = truth * np.exp(errors(name, position))
            record['sums'][place] = score(depth, truth)
    entries = [Entry(i, str(i), 'office', s) for i, s in enumerate(sequences)]
    return Measured(records, CHOSEN, entries, how, MAX_DEPTH)


def score(p, y):
    """Sums over pixels, plainly."""
    ratio, log = np.maximum(p / y, y / p), np.log(p / y)
    of = {'pixels': len(y), **{f'd{k}': (ratio < 1.25 ** k).sum() for k in (1, 2, 3)},
          'absolute': np.abs(p - y).sum(), 'square': ((p - y) ** 2).sum(),
          'rel': (np.abs(p - y) / y).sum(), 'sq_rel': ((p - y) ** 2 / y).sum(),
          'signed_log': log.sum(), 'square_log': (log ** 2).sum(), 'log': np.abs(log).sum()}
    return [of[name] for name in SUMS]


def world(seed, count=24, each=2):
    rng = np.random.default_rng(seed)
    truths = [rng.uniform(1.0, 4.0, 40) * rng.uniform(0.7, 1.5) for _ in range(count * each)]
    return rng, truths, [f'scene {i // each}' for i in range(count * each)]


def compared(result, name):
    return next(c for c in result.comparisons if c.name == name)


def test_the_gain_is_against_the_best_of_all_constants():
    _, truths, sequences = world(0)
    result = verdict(measured(truths, lambda *_: 0.1, sequences))
    first = result.comparisons[0]
    assert first.name == 'best constant'
    every = np.linspace(0.05, 10, 200)
    for metric, sign, of in (
            ('d1', 1, lambda p, y: (np.maximum(p / y, y / p) < 1.25).mean()),
            ('rmse', -1, lambda p, y: np.sqrt(((p - y) ** 2).mean()))):
        own = np.mean([of(np.exp(0.1) * y, y) for y in truths])
        constant = [np.mean([of(c, y) for y in truths]) for c in every]
        best = max(constant) if sign > 0 else min(constant)
        assert first.gains[metric] == pytest.approx(sign * (own - best), abs=2e-6)
        chosen = every[np.argmax(constant) if sign > 0 else np.argmin(constant)]
        assert result.constants[metric] == pytest.approx(chosen)
        assert first.intervals[metric].low < first.gains[metric] < first.intervals[metric].high
        # The oracle chooses anew in every sample, so the gain in one can only be smaller.
        assert first.intervals[metric].low < first.gains[metric] - 0.002


def test_no_constant_is_the_best_for_silog():
    """They all have the same, so that the depth of the least would be rounding."""
    _, truths, sequences = world(0)
    result = verdict(measured(truths, lambda *_: 0.1, sequences))
    assert set(result.constants) == set(METRICS) - {'silog'}
    assert 'silog' in result.comparisons[0].gains


def test_every_row_of_enough_scenes_has_intervals():
    _, truths, sequences = world(0)
    data = measured(truths, lambda *_: 0.1, sequences)
    found = rows(data)
    classes = [r for r in found if (r.group, r.scene) == ('method', 'office')]
    assert classes
    for row in [r for r in found if r.name != 'best constant']:
        assert set(row.interval) == set(METRICS)


def test_every_control_is_compared_on_the_same_images():
    rng, truths, sequences = world(1)
    shared = rng.normal(0, 0.3, len(truths))

    def errors(name, position):  # all have the hard images in common, the method is a bit better
        return shared[position] * (1.0 if name == METHOD else 1.15)
    result = verdict(measured(truths, errors, sequences))
    assert [c.name for c in result.comparisons] == ['best constant', *dict.fromkeys(
        c.name for c in CHOSEN if c.group == 'baseline')]
    paired = compared(result, 'shuffled images')
    assert reading(paired.intervals['rmse']) == 'clearly better'
    # Unpaired, the spread between images would hide it.
    row = rows(measured(truths, errors, sequences))[0].interval['rmse']
    assert row.high - row.low > 3 * (paired.intervals['rmse'].high - paired.intervals['rmse'].low)
    assert 'clearly better' in result.text
    assert f'{len(result.comparisons)} comparisons of one family' in result.text


def test_few_scenes_have_no_verdict():
    _, truths, sequences = world(2, count=LEAST_GROUPS - 1, each=3)
    result = verdict(measured(truths, lambda *_: 0.1, sequences))
    assert (result.units, result.unit) == (LEAST_GROUPS - 1, 'scenes')
    assert 'too few for a verdict' in result.text
    assert not any(c.intervals for c in result.comparisons)
    assert rows(measured(truths, lambda *_: 0.1, sequences))[0].interval is None


def test_images_of_unknown_scenes_are_taken_for_independent_and_that_is_said():
    _, truths, _ = world(3, count=22, each=1)
    result = verdict(measured(truths, lambda *_: 0.1, [''] * len(truths)))
    assert (result.units, result.unit) == (22, 'images')
    assert 'taken for independent' in result.text


def test_repetitions_of_a_control_are_averaged():
    _, truths, sequences = world(4)
    places = [i for i, name in enumerate(NAMES) if name == 'shuffled words']
    data = measured(truths, lambda *_: 0.1, sequences)
    for k, place in enumerate(places):
        for record, truth in zip(data.records, truths, strict=True):
            record['sums'][place] = score(truth * np.exp(0.1 * (k + 1)), truth)
    expected = np.mean([np.mean([np.sqrt(((np.exp(0.1 * (k + 1)) - 1) ** 2 * y ** 2).mean())
                                 for y in truths]) for k in range(len(places))])
    row = next(r for r in rows(data) if r.name == 'shuffled words')
    assert row.metrics['rmse'] == pytest.approx(expected)


@pytest.mark.parametrize('how', ['image', 'pixel'])
def test_pooled_and_mean_of_images(how):
    _, truths, sequences = world(5)
    truths = [t[:8 + 3 * i % 30] for i, t in enumerate(truths)]
    data = measured(truths, lambda _, i: 0.05 * (i % 5), sequences, how)
    squares = [((np.exp(0.05 * (i % 5)) - 1) * y) ** 2 for i, y in enumerate(truths)]
    expected = np.mean([np.sqrt(s.mean()) for s in squares]) if how == 'image' else \
        np.sqrt(np.concatenate(squares).mean())
    row = rows(data)[0]
    assert row.metrics['rmse'] == pytest.approx(expected)
    assert row.interval['rmse'].low < expected < row.interval['rmse'].high
    gains = verdict(data).comparisons[0].gains
    assert set(gains) == set(METRICS)


def test_the_best_constant_of_all_pixels_is_chosen_anew_in_every_sample():
    _, truths, sequences = world(6)
    data = measured(truths, lambda _, i: 0.05 * (i % 5), sequences, 'pixel')
    square, pixels = SUMS.index('square'), SUMS.index('pixels')
    own, curve, counts = data.sums(METHOD)[0], data.records['curve'], data.counts
    method = np.sqrt(counts @ own[:, square] / (counts @ own[:, pixels]))
    constant = np.sqrt(np.min(
        counts @ curve[:, :, square] / (counts @ curve[:, :, pixels]), axis=1))
    comparisons = verdict(data).comparisons
    expected = interval(constant - method, 24, len(comparisons))
    found = comparisons[0].intervals['rmse']
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
