# SPDX-License-Identifier: Apache-2.0
"""DepthCLIP the way the official code runs it, as the yardstick of every ratio.

CLIP's own modules, eager, channels first; every image is normalised and moved anew; a second,
mirrored pass after the first; float32 on a CPU, float16 on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from depthclip_ros.core import DepthConfig
from depthclip_ros.core.openai_clip import import_clip


class NaiveDepthClip:
    """RGB in, depth out; any size that the network takes."""

    def __init__(
        self, state_dict: Mapping[str, Tensor], text_features: NDArray[np.float32],
        config: DepthConfig, device: torch.device,
    ) -> None:
        self._device = device
        model = import_clip().model.build_model(dict(state_dict))
        self._half = device.type == 'cuda'
        visual = (model if self._half else model.float()).visual.to(device)
        visual.attnpool = torch.nn.Identity()
        self._visual = visual
        self._text = torch.from_numpy(text_features).to(device, self._dtype())
        self._config = config

    def _dtype(self) -> torch.dtype:
        return torch.float16 if self._half else torch.float32

    @torch.no_grad()
    def __call__(self, images: list[NDArray[np.uint8]], *, flip: bool) -> list[NDArray]:
        """(H, W, 3) uint8 each -> (H, W) metres each."""
        batch = torch.stack([self._normalize(image) for image in images])
        depth = self._depth(batch)
        if flip:
            depth = 0.5 * (depth + self._depth(batch.flip(3)).flip(3))
        depth = interpolate(depth, images[0].shape[:2], mode='bilinear', align_corners=True)
        return list(depth[:, 0].cpu().numpy())

    def _normalize(self, image: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        return ((pixels - mean) / deviation).to(self._device)

    def _depth(self, batch: Tensor) -> Tensor:
        features = self._visual(batch)
        shape = features.shape
        features = features.flatten(2).permute(0, 2, 1)
        features = features / features.norm(dim=-1, keepdim=True)
        features = interpolate(features, scale_factor=self._text.shape[1] / shape[1])
        logits = 100.0 * features @ self._text.T
        logits = logits.permute(0, 2, 1).reshape(shape[0], -1, *shape[2:]) \
            / self._config.temperature
        bins = torch.tensor(self._config.bins, device=self._device)[:, None, None]
        return (logits.softmax(dim=1) * bins).sum(dim=1, keepdim=True)
