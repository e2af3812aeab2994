# SPDX-License-Identifier: Apache-2.0
"""Verify the features of the network on this machine, and time it, for `doctor`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..core import engine
from ..core.backbone import build_image_encoder
from ..core.openai_clip import import_clip
from ..core.releases import DEMO
from ..core.weights import load_weights

_SIZE = (480, 640)
_RUNS = 7


def prove() -> list[dict[str, Any]]:
    """Run the demo model's network in every precision that this machine computes.

    Returns:
        For each precision: its name `precision`, the `engine`, the `difference` of the features
        from those of CLIP's modules in float32 (relative norm), the largest difference that
        `rounding` explains, and the median `seconds` per image.

    """
    device = engine.resolve_device('auto')
    _, weights = load_weights(DEMO, 'auto', Path(), lambda _: None)
    exact = build_image_encoder(weights, 'maskclip')
    exact.trunk = clip_trunk(weights)
    reference = engine.encode_probe_image(exact, _SIZE, torch.device('cpu'))
    results = []
    for precision in ('float32', 'float16' if device.type == 'cuda' else 'bfloat16'):
        dtype = engine.resolve_precision(precision, device, lambda _: None)
        if dtype != getattr(torch, precision):
            continue
        encoder = build_image_encoder(weights, 'maskclip')
        name = engine.install(encoder, dtype, device, _SIZE, lambda _: None)
        seconds = []
        for _ in range(_RUNS):
            start = time.perf_counter()
            features = engine.encode_probe_image(encoder, _SIZE, device).cpu()
            seconds.append(time.perf_counter() - start)
        results.append({
            'precision': precision, 'engine': name, 'seconds': median(seconds),
            'difference': engine.relative_error(features, reference),
            'rounding': engine.TOLERANCES[dtype]})
    return results


def clip_trunk(weights: Mapping[str, Tensor]) -> nn.Module:
    """Build the convolutional part of a ResNet from CLIP's modules."""
    network: nn.Module = import_clip().model.build_model(dict(weights)).float().visual
    network.attnpool = nn.Identity()
    return network.eval().requires_grad_(False)
