# SPDX-License-Identifier: Apache-2.0
"""Baselines and records in small: what is easily wrong, and seen in no table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from depthclip_ros.core import DepthConfig
from offline_eval import scorer
from offline_eval.contenders import (
    Contender,
    TrainingMean,
    are_alike,
    baselines,
    without_failed_controls,
)
from offline_eval.datasets import Dataset, Entry, Pair
from offline_eval.errors import PredictionError
from offline_eval.protocol import PROTOCOLS
from offline_eval.records import Records, layout
from offline_eval.scorer import partners


class Training(Dataset):
    """Two depth maps: 2 m, and 4 m in the left half of the image."""

    path, format, split, depth = Path(), 'two images', 'train', 'raw'
    entries = (Entry(0, '0'), Entry(1, '1'))

    def read(self, position):
        depth = np.full((480, 640), 2.0, np.float32)
        if position:
            depth[:] = 0
            depth[:, :320] = 4.0
        return Pair(np.zeros((480, 640, 3), np.uint8), depth)


def test_the_mean_of_the_training_split_counts_what_was_measured():
    found = TrainingMean.compute(Training(), PROTOCOLS['bts'])
    left, right = 320 - 41, 601 - 320  # columns that are scored, in the same rows
    assert found.mean == pytest.approx((6 * left + 2 * right) / (2 * left + right), rel=1e-6)
    assert (found.mean_map[45:471, 41:320] == 3.0).all()
    assert (found.mean_map[45:471, 320:601] == 2.0).all()
    np.testing.assert_allclose(found.mean_map[:45], found.mean, rtol=1e-6)


def named(name, config, images=9):
    training = TrainingMean(2.5, np.full((480, 640), 2.5, np.float32))
    return [c for c in baselines(config, training, 10.0, images) if c.name == name]


def test_shuffled_words_are_in_another_order_however_few():
    config = DepthConfig(tokens=('near', 'far'), bins=(1.0, 3.0))
    assert [c.tokens for c in named('shuffled words', config)] == [('far', 'near')] * 5
    config = DepthConfig()
    shuffled = [c.tokens for c in named('shuffled words', config)]
    assert len(set(shuffled)) == 5
    assert all(sorted(tokens) == sorted(config.tokens) for tokens in shuffled)
    assert config.tokens not in shuffled


def test_words_are_alike_only_if_all_are():
    same = np.tile(np.float32([0.6, 0.8]), (3, 1))
    assert are_alike(same)
    assert not are_alike(np.float32([[0.6, 0.8], [0.6, 0.8], [0.8, 0.6]]))


def test_one_set_of_words_that_are_alike_makes_the_row_no_test():
    chosen = baselines(DepthConfig(), None, 10.0, 9)
    other = np.eye(7, dtype=np.float32)
    text = {c.tokens: other for c in chosen if c.tokens}
    assert without_failed_controls(chosen, text) == chosen
    same = np.tile(other[:1], (7, 1))
    text[next(c.tokens for c in chosen if c.name == 'random words')] = same
    marked = without_failed_controls(chosen, text)
    for before, after in zip(chosen, marked, strict=True):
        assert after.is_test == (after.name != 'random words')
        assert (after == before) == after.is_test
        assert after.is_test or '1 of 3 sets' in after.note


def test_an_image_alone_has_no_partner():
    config = DepthConfig()
    assert named('shuffled images', config, images=1) == []
    assert [c.shift for c in named('shuffled images', config, images=3)] == [1, 2]
    assert [c.shift for c in named('shuffled images', config, images=9)] == [1, 2, 3]


@pytest.mark.parametrize('count', [4, 5, 8, 11])
def test_partners_are_others(count):
    for shift in (1, 2, 3):
        order = partners(count, shift)
        assert sorted(order) == list(range(count))
        assert all(own != other for own, other in enumerate(order))
    assert partners(4, 1) == [1, 2, 3, 0]


@pytest.mark.parametrize('value', [0.0, -1.0, 0.0005, float('nan'), float('inf')])
def test_depth_that_cannot_be_scored_ends_the_run(value):
    patches = torch.full((2, 3, 4), 2.0)
    images = [SimpleNamespace(position=7), SimpleNamespace(position=5)]
    contender = Contender('a row', 'method')
    scorer._check(patches, contender, images)
    patches[1, 2, 3] = value
    with pytest.raises(PredictionError, match=r'depth of image 5 is .* in 1 '):
        scorer._check(patches, contender, images)


def test_records_are_read_in_the_data_set_s_order(tmp_path):
    records = Records(tmp_path, 1, (3, 4))
    (tmp_path / 'records').mkdir()
    for positions in ([4, 0], [3, 1], [2]):
        batch = np.zeros(len(positions), layout(1, (3, 4)))
        batch['position'], batch['pixels'] = positions, np.array(positions) + 10
        records.write(batch)
    found = Records(tmp_path, 1, (3, 4)).read()
    assert found['position'].tolist() == [0, 1, 2, 3, 4]
    assert found['pixels'].tolist() == [10, 11, 12, 13, 14]
