# SPDX-License-Identifier: Apache-2.0
"""The training script's parts; and, in its short form, the whole of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import demo_sentences as language  # noqa: E402
import train_demo  # noqa: E402

from depthclip_ros.core.backbone import build_image_encoder  # noqa: E402
from depthclip_ros.core.openai_clip import import_clip  # noqa: E402


@pytest.mark.nightly
def test_smoke_run_learns_and_writes_a_file_that_loads(tmp_path):
    script = ROOT / 'tools' / 'train_demo.py'
    subprocess.run([sys.executable, script, '--out', tmp_path, '--smoke'], check=True)
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    text = [line['loss'] for line in lines if line['stage'] == 'text' and 'loss' in line]
    assert text[-1] < 0.25 * text[0]
    for term in ('words', 'metres', 'rooms'):  # ten pictures are learnt by heart
        loss = [line[term] for line in lines if line['stage'] == 'images']
        assert np.mean(loss[-3:]) < 0.9 * loss[0], (term, loss)
    assert lines[-1]['stage'] == 'done'
    assert lines[-1]['bytes'] < 8e6
    state = torch.load(tmp_path / 'demo.pt', weights_only=True)
    import_clip().model.build_model(state)
    subprocess.run([sys.executable, script, '--out', tmp_path / 'on', '--smoke', '--start',
                    tmp_path / 'demo.pt'], check=True)
    assert '"text"' not in (tmp_path / 'on' / 'log.jsonl').read_text()
    later = torch.load(tmp_path / 'on' / 'demo.pt', weights_only=True)
    assert torch.equal(later['text_projection'], state['text_projection'])
    assert not torch.equal(later['visual.conv1.weight'], state['visual.conv1.weight'])


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return train_demo.build(train_demo.SMOKE).eval()


def test_short_text_encoding_is_clips(model):
    sentences = ['This is 2.3 meters away', 'a photo of a corridor', 'far']
    with torch.no_grad():
        full = model.encode_text(import_clip().tokenize(sentences))
        full = full / full.norm(dim=1, keepdim=True)
        short = train_demo.encode_text(model, train_demo.tokenize(sentences))
    torch.testing.assert_close(short, full, atol=1e-5, rtol=1e-4)


def test_dense_features_are_those_of_the_estimator(model):
    images = torch.rand(2, 3, 64, 96)
    encoder = build_image_encoder(model.state_dict(), 'maskclip')
    with torch.no_grad():
        ours = train_demo.dense_features(model.visual, train_demo.trunk(model.visual, images))
        # The estimator rounds weights to half precision, as OpenAI's code does.
        torch.testing.assert_close(ours, encoder(images), atol=5e-4, rtol=1e-2)


def test_pooled_features_are_clips(model):
    side = model.visual.input_resolution
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        expected = model.encode_image(images)
        expected = expected / expected.norm(dim=1, keepdim=True)
        ours = train_demo.pooled_features(model.visual, train_demo.trunk(model.visual, images))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_soft_target_shares_between_neighbours():
    bins = torch.tensor([0.0, 1.0, 2.0])
    depth = torch.tensor([[[-1.0, 0.0, 0.25, 1.5, 2.0, 5.0]]])
    target = train_demo.soft_target(depth, bins)[0, :, 0].T
    expected = [[1, 0, 0], [1, 0, 0], [0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]]
    torch.testing.assert_close(target, torch.tensor(expected, dtype=torch.float32))


def test_text_targets_are_unit_vectors_that_fall_off_with_distance():
    targets = language.TextTargets(128)
    metres = np.array([0.5, 0.7, 1.0, 2.0, 4.0, 8.0])
    vectors = targets.distance(metres)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    expected = np.exp(-0.5 * (np.log(metres[:, None] / metres) / targets.width) ** 2)
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=0.02)
    rooms = np.stack([targets.room(i) for i in range(5)])
    np.testing.assert_allclose(rooms @ rooms.T, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(rooms @ vectors.T, 0, atol=1e-5)


def test_a_batch_depends_on_seed_and_step_only():
    plan = train_demo.SMOKE
    batches = [train_demo.make_batch(train_demo.Frames(plan), plan, 3, 0) for _ in range(2)]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a, b)
    other = train_demo.make_batch(train_demo.Frames(plan), plan, 3, 1)
    assert not torch.equal(other[1], batches[0][1])
