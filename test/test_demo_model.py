# SPDX-License-Identifier: Apache-2.0
"""The committed demo model: what it promises on rooms and with words that it never saw.

With six rooms. Every bound is far from what is found there (a quarter and more), and what
processors differ by in float32 is a hundred-thousandth: the committed evaluation has the numbers.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import demo_sentences as language  # noqa: E402
import evaluate_demo  # noqa: E402
import train_demo  # noqa: E402

from benchmarks import rooms  # noqa: E402
from depthclip_ros.core import DepthEstimator  # noqa: E402
from depthclip_ros.core.openai_clip import import_clip  # noqa: E402
from depthclip_ros.messages.node_config import read_config  # noqa: E402

WEIGHTS = ROOT / 'depthclip_ros' / 'models' / 'demo.pt'
FIRST_SEED = 5000  # rooms that neither training nor the committed evaluation saw


@pytest.fixture(scope='module')
def config():
    return read_config(ROOT / 'config' / 'demo.yaml')[0]


@pytest.fixture(scope='module')
def views():
    return list(rooms.one_each(FIRST_SEED, 6))


@pytest.fixture
def depths(config, views):
    """Depth of all views with some settings changed: (N, 480, 640)."""
    def predict(**changes):
        estimator = DepthEstimator(config.replace(**changes), WEIGHTS, 'cpu')
        if estimator.precision != changes.get('precision', 'float32'):
            pytest.skip(f'it runs in {estimator.precision} here')
        return np.stack([estimator.predict(view.rgb).depth for view in views])
    return predict


def relative_error(depth, views):
    truth = np.stack([view.depth for view in views])
    return float((np.abs(depth - truth) / truth).mean())


def test_file_is_small_and_openais_code_builds_it():
    assert WEIGHTS.stat().st_size <= 8e6
    state = torch.load(WEIGHTS, weights_only=True)
    model = import_clip().model.build_model(state)  # rounds to half precision
    image = torch.zeros(2, 3, model.visual.input_resolution, model.visual.input_resolution)
    with torch.no_grad():
        per_image, per_text = model.float()(image, import_clip().tokenize(['far', 'near', 'a']))
    assert per_image.shape == (2, 3)
    assert per_text.isfinite().all()


def test_depth_of_unseen_rooms(depths, views):
    depth = depths()
    truth = np.stack([view.depth for view in views])
    ratio = np.maximum(depth / truth, truth / depth)
    assert (ratio < 1.25).mean() > 0.7
    assert relative_error(depth, views) < 0.18


def test_the_image_has_the_depth_of_the_cloud_where_its_points_are(config, views):
    """A point is at the centre of its patch, which is between four pixels."""
    estimator = DepthEstimator(config, WEIGHTS, 'cpu')
    for view in views:
        prediction = estimator.predict(view.rgb)
        points = prediction.patch_depth
        height, width = (of_image // of_points for of_image, of_points in zip(
            prediction.depth.shape, points.shape, strict=True))
        around = [prediction.depth[height // 2 - up::height, width // 2 - left::width]
                  for up in (0, 1) for left in (0, 1)]
        assert np.abs(np.mean(around, axis=0) - points).max() < 0.03  # 1.3 m by aligned corners


def test_bfloat16_costs_next_to_no_accuracy(depths, views):
    """Where it runs: not on a processor that is slower in it.

    Its numbers have 8 bits, so each is off by 0.2 % at most, which is random: rounding may add
    far less to an error of 13 % than a tenth of it.
    """
    exact, rough = depths(), depths(precision='bfloat16')
    assert (exact != rough).any()
    assert relative_error(rough, views) < 1.1 * relative_error(exact, views)


def test_controls_are_clearly_worse(config, views):
    table = evaluate_demo.evaluate(config, WEIGHTS, views)['table']
    for control in ('best constant, by metric', 'mean of the bins', 'shuffled images',
                    'shuffled words', 'random words'):
        assert table[control]['rel'] > 1.8 * table['model']['rel'], control


def test_swapped_words_swap_the_depth(config, depths):
    """What was far becomes near where the sentence says so."""
    tokens = list(config.tokens)
    near, far = tokens.index('quite close'), tokens.index('quite far')
    tokens[near], tokens[far] = tokens[far], tokens[near]
    before, after = depths(), depths(tokens=tokens)
    close = np.abs(np.log(before / 0.9)) < 0.1
    distant = np.abs(np.log(before / 5.2)) < 0.1
    assert min(close.sum(), distant.sum()) > 1000
    assert np.median(after[close]) > 2 * np.median(before[close])
    assert np.median(after[distant]) < 0.7 * np.median(before[distant])


@pytest.mark.parametrize('synonyms', [
    {'very close': 'very near', 'very far': 'very distant'},
    {'quite close': 'quite close by', 'quite far': 'pretty far'},
    {'very close': 'really close', 'very far': 'really far away'},
])
def test_phrases_that_training_never_saw_mean_what_their_words_do(
        config, depths, views, synonyms):
    assert set(synonyms.values()) <= set(language.HELD_OUT_PHRASES)
    said = depths()
    also = depths(tokens=[synonyms.get(token, token) for token in config.tokens])
    assert np.median(np.abs(np.log(also / said))) < 0.05
    assert relative_error(also, views) < 1.15 * relative_error(said, views)


def test_numbers_that_training_never_saw(depths, views):
    """Other words, other bins, another number of them: the depth stays."""
    tenths = (5, 7, 10, 13, 17, 23, 34, 47, 68, 90)
    assert len(set(tenths) & set(language.HELD_OUT_TENTHS)) == 7
    depth = depths(tokens=[f'{t / 10:g} meters away' for t in tenths],
                   bins=[t / 10 for t in tenths], templates=['The thing is {}'])
    assert relative_error(depth, views) < 0.2


def test_held_out_sentences_are_understood():
    model = train_demo.build(train_demo.Plan())
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    plan = train_demo.Plan()
    result = train_demo.check_text(model.float(), language.TextTargets(plan.embed))
    assert result['held_out_median'] < 0.05
    assert result['held_out_90'] < 0.2


def test_held_out_wordings_are_not_in_training():
    trained = {s.text for s in language.training_sentences()}
    assert not trained & {s.text for s in language.held_out_sentences()}
    assert len(trained) > 10000
    assert all(sentence.metres > 0 for sentence in language.held_out_sentences())
