# SPDX-License-Identifier: Apache-2.0
"""Winograd's algorithm computes the same convolution, for every size and batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from depthclip_ros.core.resnet import can_fuse
from depthclip_ros.core.winograd import WinogradConvolution, pays

pytestmark = pytest.mark.skipif(
    not can_fuse(torch.float32), reason=can_fuse(torch.float32).why_not)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(('batch', 'size'), [
    (1, (24, 32)),   # what it is made for
    (2, (24, 32)),
    (1, (13, 17)),   # no multiple of a tile, and fewer tiles
    (1, (50, 70)),   # more, and the last step has fewer rows
    (1, (4, 600)),   # one row of tiles alone is more
    (3, (1, 1)),
])
def test_equals_the_direct_sum(batch, size):
    weight, bias = random(128, 96, 3, 3) / 30, random(128)
    convolution = WinogradConvolution(weight, bias, (24, 32))
    x = random(batch, 96, *size, seed=1).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = convolution.relu(x)
        expected = conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
        again = convolution.relu(x)
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert torch.equal(found, again)


def test_pays_where_it_was_measured_to():
    weight = torch.empty(128, 128, 3, 3)
    assert pays(weight, 1, 1, (13, 17))
    assert not pays(weight, 2, 1, (13, 17))
    assert not pays(weight, 1, 1, (6, 8))
    assert not pays(weight[:64], 1, 1, (120, 160))
    assert not pays(weight[..., :1, :1], 1, 0, (120, 160))
    assert not pays(weight.bfloat16(), 1, 1, (120, 160))
    weight = torch.empty(512, 512, 3, 3)
    assert pays(weight, 1, 1, (30, 40))
    assert not pays(weight, 1, 1, (15, 20))
