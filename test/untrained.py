# SPDX-License-Identifier: Apache-2.0
"""`weights: untrained` on the tiny network, since a whole RN50 takes seconds to be made up."""

from __future__ import annotations

import torch

from depthclip_ros.core import weights


def tiny_untrained(monkeypatch, tiny_weights, folder):
    """Make `weights: untrained` those of the tiny network; give a parameter file with them."""
    monkeypatch.setattr(weights, '_untrained', lambda *_: (
        weights.WeightsInfo('untrained', 'random', 'none', trained=False),
        torch.load(tiny_weights, weights_only=True)))
    path = folder / 'untrained.yaml'
    path.write_text('/**:\n  ros__parameters:\n    backbone: auto\n    input_height: 64\n'
                    '    input_width: 96\n    weights: untrained\n')
    return path
