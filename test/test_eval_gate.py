# SPDX-License-Identifier: Apache-2.0
"""What counts as the paper's experiment, and as its numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from depthclip_ros.core import DepthConfig
from depthclip_ros.core.weights import RELEASES
from offline_eval.gate import Experiment, judge
from offline_eval.names import SYMBOLS
from offline_eval.paper import GATE_LIMITS, PAPER_CONFIG, PAPER_METHOD
from offline_eval.runner import scored

PAPER = Experiment(PAPER_CONFIG, 'RN50', 'float32', 'RN50', RELEASES['RN50'].sha256, True, 654,
                   'depthclip', 'image')
NUMBERS = dict(PAPER_METHOD.metrics)


def test_the_paper_s_experiment_with_its_numbers_is_reproduced():
    gate = judge(NUMBERS, PAPER)
    assert (gate.status, gate.reasons) == ('reproduced', [])
    near = {name: value + 0.99 * GATE_LIMITS[name] for name, value in NUMBERS.items()}
    assert judge(near, PAPER).status == 'reproduced'


def test_the_configuration_for_nyu_is_the_paper_s():
    path = Path(__file__).resolve().parents[1] / 'config/nyu_paper.yaml'
    assert scored(DepthConfig.from_yaml(path)) == (PAPER_CONFIG, [])


@pytest.mark.parametrize('metric', GATE_LIMITS)
@pytest.mark.parametrize('offset', [1.01, -1.01, float('nan')])
def test_a_number_beyond_its_limit_is_not(metric, offset):
    numbers = {**NUMBERS, metric: NUMBERS[metric] + offset * GATE_LIMITS[metric]}
    gate = judge(numbers, PAPER)
    assert gate.status == 'not reproduced'
    reason, = gate.reasons
    assert reason.startswith(f'{SYMBOLS[metric]} is ')


OTHER = {
    'tokens': ['apple', 'guitar', 'purple', 'senate', 'whisper', 'velvet', 'october'],
    'bins': [1.0, 2.0, 2.25, 2.5, 2.75, 3.0, 4.0], 'templates': ['a photo of a {} thing'],
    'temperature': 5.0, 'features': 'maskclip', 'input_height': 480, 'input_width': 640,
    'flip_average': False, 'upsampling': 'centered', 'normalization': 'clip',
    'reference_focal': 0.811, 'range_max': 2.9}


@pytest.mark.parametrize('name', OTHER)
def test_another_setting_is_another_experiment(name):
    run = dataclasses.replace(PAPER, config=PAPER_CONFIG.replace(**{name: OTHER[name]}))
    gate = judge(NUMBERS, run)
    assert gate.status == 'not reproduced'
    reason, = gate.reasons
    assert reason.startswith(f'{name} is ')
    assert 'in the paper' in reason


def test_no_setting_is_forgotten():
    """Only what stands for what is not limited, and of scenes that are none, may differ."""
    assert set(DepthConfig.names()) - set(OTHER) >= {'out_of_range'}
    run = dataclasses.replace(PAPER, config=PAPER_CONFIG.replace(out_of_range='clamp'))
    assert judge(NUMBERS, run).status == 'reproduced'


@pytest.mark.parametrize(('change', 'words'), [
    ({'backbone': 'RN101'}, ["backbone is 'RN101'", "'RN50'"]),
    ({'precision': 'bfloat16'}, ["precision is 'bfloat16'", "'float32'"]),
    ({'weights': 'mine.pt', 'weights_digest': '0' * 64}, ['the weights are mine.pt']),
    ({'weights_digest': '0' * 64}, ["the weights are RN50, not OpenAI's"]),
    ({'images': 655}, ['655 images']),
    ({'official': False}, ['official test split']), ({'images': 653}, ['653 images', '654']),
    ({'protocol': 'bts'}, ['protocol is bts']), ({'average': 'pixel'}, ['per pixel'])])
def test_other_circumstances_are_named(change, words):
    gate = judge(NUMBERS, dataclasses.replace(PAPER, **change))
    assert gate.status == 'not reproduced'
    reason, = gate.reasons
    for word in words:
        assert word in reason


def test_every_difference_is_named():
    run = dataclasses.replace(
        PAPER, config=PAPER_CONFIG.replace(**{k: OTHER[k] for k in ('tokens', 'temperature',
                                                                    'features')}),
        precision='bfloat16')
    assert len(judge({**NUMBERS, 'd1': 0.9}, run).reasons) == 5
