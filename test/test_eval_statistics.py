# SPDX-License-Identifier: Apache-2.0
"""What the evaluation says about its numbers: baselines, intervals, verdict, and the gate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from depthclip_ros.core import DepthConfig
from depthclip_ros.core.releases import RELEASES, WeightsInfo
from depthclip_ros.core.text_features import all_alike
from depthclip_ros.evaluation.bootstrap import (
    MIN_GROUPS,
    Interval,
    draw_groups,
    groups_of,
    percentile_interval,
    resample_count,
)
from depthclip_ros.evaluation.datasets import Dataset, Entry
from depthclip_ros.evaluation.errors import PredictionError
from depthclip_ros.evaluation.metrics import METRICS, SUMS, ScaledScores, average, resampled
from depthclip_ros.evaluation.protocol import PROTOCOLS
from depthclip_ros.resources import config_path
from offline_eval import scoring
from offline_eval.evaluate import config_for_protocol
from offline_eval.predictors import (
    WordDepth,
    baselines,
    mark_failed_controls,
    method_and_variants,
    training_mean,
)
from offline_eval.published import METHOD, PAPER_CONFIG, PAPER_METHOD
from offline_eval.records import constants, layout
from offline_eval.reproduction import GATE_LIMITS, judge
from offline_eval.results import ALL, ProtocolInfo, Row
from offline_eval.scoring import partners
from offline_eval.statistics import RunStatistics, rows, verdict

MAX_DEPTH = 10.0


# Intervals -----------------------------------------------------------------------------------


def covered(count, repeats, by_scene=True):
    """Share of simulated data sets of whose expectation, 0, nothing wrong is said.

    A scene has one to five images, which share in part a skewed value of its own.
    """
    rng = np.random.default_rng(1)
    hits = 0
    for repeat in range(repeats):
        groups = np.repeat(np.arange(count), rng.integers(1, 6, count))
        own = rng.gamma(4.0, size=count) - 4.0
        sample = own[groups] + 0.5 * (rng.gamma(4.0, size=len(groups)) - 4.0)
        counts = draw_groups(count, 400, repeat)[:, groups] if by_scene else draw_groups(
            len(groups), 400, repeat)
        means = counts @ sample / counts.sum(1)
        found = percentile_interval(means, count if by_scene else len(groups))
        hits += found.outcome() == 'not distinguishable'
    return hits / repeats


def test_intervals_hold_what_they_say_and_images_in_place_of_scenes_would_not():
    """The share of 400 is within four standard errors, sqrt(0.95 * 0.05 / 400) each."""
    assert covered(100, 400) == pytest.approx(0.95, abs=0.044)
    assert covered(60, 100, by_scene=False) < 0.85


@pytest.mark.parametrize(('groups', 'comparisons', 'student'), [
    (20, 1, 2.093), (1000, 1, 1.962), (20, 10, 3.174), (1000, 10, 2.813)])
def test_an_interval_is_as_wide_as_student_s_t(groups, comparisons, student):
    """Of quantiles of a normal distribution; of ten that hold together, at 99.5 %."""
    edge = student * math.sqrt(groups / (groups - 1))
    found = percentile_interval(ndtri((np.arange(40000) + 0.5) / 40000), groups, comparisons)
    assert (found.low, found.high) == pytest.approx((-edge, edge), abs=0.01)
    assert found.name() == ('95 % interval' if comparisons == 1 else '99.5 % interval')


@pytest.mark.parametrize('averaging', ['image', 'pixel'])
def test_a_scene_is_drawn_as_a_whole(averaging):
    groups = groups_of(['b', 'a', 'b', '', '', 'a'])
    assert (groups[0], groups[1]) == (groups[2], groups[5])
    assert len(set(groups.tolist())) == 4
    counts = draw_groups(4, 300)
    assert (counts.sum(axis=1) == 4).all()
    assert counts.std(axis=0).min() > 0.5  # it resamples
    truths, _ = world(9, count=6, each=1)
    sums = np.array([score(truth * (1 + i / 9), truth) for i, truth in enumerate(truths)], float)
    found = resampled(sums, groups, counts, averaging)
    for number in range(20):
        images = np.repeat(sums, counts[number][groups], axis=0)
        np.testing.assert_allclose(
            found[number], average(images, averaging), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(('groups', 'comparisons'), [(20, 1), (20, 20), (40, 40), (300, 30)])
def test_the_ends_of_an_interval_are_no_matter_of_chance(groups, comparisons):
    """Other samples give the same, to less than a fifth of the standard error."""
    values = np.random.default_rng(0).normal(size=groups)
    ends = []
    for seed in range(4):
        counts = draw_groups(groups, resample_count(groups, comparisons), seed)
        found = percentile_interval(counts @ values / groups, groups, comparisons)
        ends.append((found.low, found.high))
    assert np.ptp(ends, axis=0).max() < 0.2 * values.std() / np.sqrt(groups)


@pytest.mark.parametrize(('low', 'high', 'words'), [
    (0.1, 0.2, 'better'), (-0.2, -0.1, 'worse'), (-0.1, 0.1, 'not distinguishable'),
    (0.0, 0.1, 'not distinguishable')])
def test_what_an_interval_says(low, high, words):
    assert Interval(low, high).outcome() == words


# Verdict -------------------------------------------------------------------------------------

CHOSEN = [*method_and_variants(PAPER_CONFIG, ('1',)),
          *baselines(PAPER_CONFIG, None, 0.0, MAX_DEPTH, 100)]
NAMES = [contender.name for contender in CHOSEN]


def measured(truths, errors, sequences, averaging='image'):
    """Records of images whose prediction is the truth times exp(error) in every pixel."""
    records = np.zeros(len(truths), layout(len(CHOSEN), (13, 17)))
    for position, (record, truth) in enumerate(zip(records, truths, strict=True)):
        record['position'], record['pixels'] = position, len(truth)
        record['curve'] = ScaledScores(1.0, truth.astype(np.float32)).score(constants(MAX_DEPTH))
        for place, name in enumerate(NAMES):
            record['sums'][place] = score(truth * np.exp(errors(name, position)), truth)
    entries = [Entry(i, str(i), 'office', s) for i, s in enumerate(sequences)]
    return RunStatistics(records, CHOSEN, entries, averaging, MAX_DEPTH)


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
    return truths, [f'scene {i // each}' for i in range(count * each)]


def test_the_gain_is_against_the_best_of_all_constants():
    truths, sequences = world(0)
    data = measured(truths, lambda *_: 0.1, sequences)
    result, first = verdict(data), verdict(data).comparisons[0]
    assert first.name == 'best constant'
    every = np.linspace(0.05, 10, 200)
    for metric, sign, of in (
            ('d1', 1, lambda p, y: (np.maximum(p / y, y / p) < 1.25).mean()),
            ('rmse', -1, lambda p, y: np.sqrt(((p - y) ** 2).mean()))):
        own = np.mean([of(np.exp(0.1) * y, y) for y in truths])
        constant = sign * np.array([np.mean([of(c, y) for y in truths]) for c in every])
        assert first.gains[metric] == pytest.approx(sign * own - constant.max(), abs=2e-6)
        assert result.constants[metric] == pytest.approx(every[constant.argmax()])
        assert first.intervals[metric].low < first.gains[metric] < first.intervals[metric].high
        # The oracle chooses anew in every sample, so the gain in one can only be smaller.
        assert first.intervals[metric].low < first.gains[metric] - 0.002
    # In SILog all constants are the same, so that the depth of the least would be rounding.
    assert set(result.constants) == set(METRICS) - {'silog'}
    found = [row for row in rows(data) if row.name != 'best constant']
    assert {(row.group, row.scene) for row in found} >= {('method', 'office'), ('method', 'all')}
    assert all(set(row.interval) == set(METRICS) for row in found)


def test_every_control_is_compared_on_the_same_images():
    truths, sequences = world(1)
    shared = np.random.default_rng(1).normal(0, 0.3, len(truths))

    def errors(name, position):  # all have the hard images in common, the method is a bit better
        return shared[position] * (1.0 if name == METHOD else 1.15)
    data = measured(truths, errors, sequences)
    result = verdict(data)
    found = {c.name: c.intervals['rmse'] for c in result.comparisons}
    assert list(found) == ['best constant', *dict.fromkeys(
        c.name for c in CHOSEN if c.group == 'baseline')]
    paired = found['shuffled images']
    assert paired.outcome() == 'better'
    # Unpaired, the spread between images would hide it.
    row = rows(data)[0].interval['rmse']
    assert row.high - row.low > 3 * (paired.high - paired.low)
    assert 'clearly better' in result.text
    assert f'{len(found)} comparisons of one family' in result.text
    # Two metrics are spoken of, and 95 % holds for all that is.
    for comparison in result.comparisons:
        for metric in ('d1', 'rmse'):
            assert 1 - comparison.intervals[metric].level == pytest.approx(
                0.05 / (2 * len(found)))


def test_few_scenes_have_no_verdict_and_unknown_ones_are_taken_for_independent():
    truths, sequences = world(2, count=MIN_GROUPS - 1, each=3)
    data = measured(truths, lambda *_: 0.1, sequences)
    result = verdict(data)
    assert (result.units, result.unit) == (MIN_GROUPS - 1, 'scenes')
    assert 'too few for a verdict' in result.text
    assert not any(c.intervals for c in result.comparisons)
    assert rows(data)[0].interval is None
    result = verdict(measured(truths, lambda *_: 0.1, [''] * len(truths)))
    assert (result.units, result.unit) == (len(truths), 'images')
    assert 'taken for independent' in result.text
    # Of some of them it is known.
    assert verdict(measured(truths, lambda *_: 0.1, ['', *sequences[1:]])).unit == 'images'


def test_repetitions_of_a_control_are_averaged():
    truths, sequences = world(4)
    places = [i for i, name in enumerate(NAMES) if name == 'shuffled words']
    data = measured(truths, lambda *_: 0.1, sequences)
    for k, place in enumerate(places):
        for record, truth in zip(data.records, truths, strict=True):
            record['sums'][place] = score(truth * np.exp(0.1 * (k + 1)), truth)
    expected = np.mean([np.mean([np.sqrt(((np.exp(0.1 * (k + 1)) - 1) ** 2 * y ** 2).mean())
                                 for y in truths]) for k in range(len(places))])
    row = next(r for r in rows(data) if r.name == 'shuffled words')
    assert row.metrics['rmse'] == pytest.approx(expected)


def test_the_best_constant_of_all_pixels_is_chosen_anew_in_every_sample():
    truths, sequences = world(6)
    data = measured(truths, lambda _, i: 0.05 * (i % 5), sequences, 'pixel')
    square, pixels = SUMS.index('square'), SUMS.index('pixels')
    own, curve = data.sums(METHOD)[0], data.records['curve']
    family = 2 * len(verdict(data).comparisons)
    counts = draw_groups(24, resample_count(24, family))[:, data.groups].astype(float)
    method = np.sqrt(counts @ own[:, square] / (counts @ own[:, pixels]))
    constant = np.sqrt(np.min(
        counts @ curve[:, :, square] / (counts @ curve[:, :, pixels]), axis=1))
    comparisons = verdict(data).comparisons
    expected = percentile_interval(constant - method, 24, family)
    found = comparisons[0].intervals['rmse']
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert rows(data)[0].metrics['rmse'] == pytest.approx(
        np.sqrt(own[:, square].sum() / own[:, pixels].sum()))


# The gate ------------------------------------------------------------------------------------

PAPER = {'settings': PAPER_CONFIG.to_dict(), 'weights': WeightsInfo('RN50', '', RELEASES[
    'RN50'].sha256), 'protocol': ProtocolInfo('depthclip', 'image', 0.001, 10.0, ''),
    'official': True}
OTHER = {
    'tokens': ['apple', 'guitar', 'purple', 'senate', 'whisper', 'velvet', 'october'],
    'bins': [1.0, 2.0, 2.25, 2.5, 2.75, 3.0, 4.0], 'templates': ['a photo of a {} thing'],
    'temperature': 5.0, 'features': 'maskclip', 'input_height': 480, 'input_width': 640,
    'flip_average': False, 'upsampling': 'centered', 'normalization': 'clip',
    'reference_focal': 0.811, 'range_max': 2.9}


def judged(images=654, numbers=None, settings=None, **changes):
    run = {**PAPER, **changes}
    run['settings'] = {**run['settings'], **(settings or {})}
    gate = judge(Row(METHOD, 'method', ALL, {**PAPER_METHOD.metrics, **(numbers or {})}, images),
                 **run)
    assert gate.status == ('not reproduced' if gate.reasons else 'reproduced')
    return gate.reasons


@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_the_paper_s_experiment_with_its_numbers_is_reproduced(precision):
    """In half precision, too, in which the official code runs on a GPU."""
    assert judged(settings={'precision': precision}) == []
    assert judged(numbers={name: value + 0.99 * GATE_LIMITS[name]
                           for name, value in PAPER_METHOD.metrics.items()}) == []
    assert judged(settings={'out_of_range': 'inf'}) == []  # nothing is out of range
    config = DepthConfig.from_yaml(config_path('nyu_paper'))
    assert config_for_protocol(
        config, PROTOCOLS['depthclip'], own_input=False) == (PAPER_CONFIG, [])


@pytest.mark.parametrize('metric', GATE_LIMITS)
@pytest.mark.parametrize('offset', [1.01, -1.01, float('nan')])
def test_a_number_beyond_its_limit_is_not(metric, offset):
    reason, = judged(numbers={
        metric: PAPER_METHOD.metrics[metric] + offset * GATE_LIMITS[metric]})
    assert 'limit' in reason


@pytest.mark.parametrize(('changes', 'words'), [
    *(({'settings': {name: value}}, [f'{name} is ', 'in the paper'])
      for name, value in OTHER.items()),
    ({'settings': {'backbone': 'RN101'}}, ["backbone is 'RN101'", "'RN50'"]),
    ({'settings': {'precision': 'bfloat16'}}, ["precision is 'bfloat16'", "'float32'"]),
    ({'weights': WeightsInfo('mine.pt', '', '0' * 64)}, ["are mine.pt, not OpenAI's RN50"]),
    ({'images': 653}, ['653 images', '654']), ({'images': 655}, ['655 images']),
    ({'official': False}, ['official test split']),
    ({'protocol': ProtocolInfo('bts', 'image', 0.001, 10.0, '')}, ['protocol is bts']),
    ({'protocol': ProtocolInfo('depthclip', 'pixel', 0.001, 10.0, '')}, ['per pixel'])])
def test_another_experiment_is_named(changes, words):
    reason, = judged(**changes)
    assert all(word in reason for word in words)


# Baselines -----------------------------------------------------------------------------------


def test_the_mean_of_the_training_split_counts_what_was_measured():
    """Of two depth maps: 2 m, and 4 m in the left half of the image."""
    def depth(entry):
        whole = np.full((480, 640), 0.0 if entry.index else 2.0, np.float32)
        whole[:, :320 * entry.index] = 4.0
        return whole
    training = Dataset(Path(), 'two images', 'train', 'raw', [Entry(0, '0'), Entry(1, '1')],
                       None, depth)
    mean_map, mean = training_mean(training, PROTOCOLS['bts'])
    left, right = 320 - 41, 601 - 320  # columns that are scored, in the same rows
    assert mean == pytest.approx((6 * left + 2 * right) / (2 * left + right), rel=1e-6)
    assert (mean_map[45:471, 41:320] == 3.0).all()
    assert (mean_map[45:471, 320:601] == 2.0).all()
    np.testing.assert_allclose(mean_map[:45], mean, rtol=1e-6)


def named(name, config, images=9):
    return [c for c in baselines(config, None, 0.0, 10.0, images) if c.name == name]


def test_shuffled_words_are_in_another_order_however_few():
    config = DepthConfig(tokens=('near', 'far'), bins=(1.0, 3.0))
    assert [c.tokens for c in named('shuffled words', config)] == [('far', 'near')] * 5
    config = DepthConfig()
    shuffled = [c.tokens for c in named('shuffled words', config)]
    assert len({*shuffled, config.tokens}) == 6
    assert all(sorted(tokens) == sorted(config.tokens) for tokens in shuffled)


def test_one_set_of_words_that_are_alike_makes_the_row_no_test():
    chosen = baselines(DepthConfig(), None, 0.0, 10.0, 9)
    other = torch.eye(7)
    text = {c.tokens: other for c in chosen if isinstance(c, WordDepth)}
    assert mark_failed_controls(chosen, text) == chosen
    assert not all_alike(np.float32([[0.6, 0.8], [0.6, 0.8], [0.8, 0.6]]))  # not all of them
    text[next(c.tokens for c in chosen if c.name == 'random words')] = other[:1].repeat(7, 1)
    for before, after in zip(chosen, mark_failed_controls(chosen, text), strict=True):
        assert after.is_test == (after.name != 'random words')
        assert (after == before) == after.is_test
        assert after.is_test or '1 of 3 sets' in after.note


@pytest.mark.parametrize('count', range(1, 14))
def test_nobody_is_scored_on_his_own_truth(count):
    """And on another one's every time."""
    shifts = [c.shift for c in named('shuffled images', DepthConfig(), images=count)]
    assert shifts == list(range(1, min(3, count - 1) + 1))
    found = [partners(count, shift) for shift in shifts]
    assert all(sorted(order) == list(range(count)) for order in found)
    for others in zip(range(count), *found, strict=True):
        assert len(set(others)) == len(found) + 1


@pytest.mark.parametrize('value', [0.0, -1.0, 0.0005, float('nan'), float('inf')])
def test_depth_that_cannot_be_scored_ends_the_run(value):
    patches = torch.full((3, 4), 2.0)
    scoring._check_depth(patches, WordDepth('a row', 'method'), 5)
    patches[2, 3] = value
    with pytest.raises(PredictionError, match=r'depth of image 5 is .* in 1 '):
        scoring._check_depth(patches, WordDepth('a row', 'method'), 5)
