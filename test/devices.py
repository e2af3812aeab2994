# SPDX-License-Identifier: Apache-2.0
"""The devices that a test runs on: the GPU where there is one, the CPU everywhere."""

from __future__ import annotations

import pytest
import torch


def gpu(*values):
    """Parameters of a test that needs a GPU."""
    return pytest.param(*values, marks=[pytest.mark.gpu, pytest.mark.skipif(
        not torch.cuda.is_available(), reason='no GPU on this machine')])


DEVICES = ['cpu', gpu('cuda')]
