# SPDX-License-Identifier: Apache-2.0
"""A yardstick: every cell of the image cut out and encoded alone, by the whole of CLIP's encoder.

After the usual pseudo-code of the paper. What the cell's surroundings tell is lost, and there are
as many passes as cells. A cell is as large as a patch of the other features, and resized
bilinearly to the size for which CLIP was trained.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from depthclip_ros.core.backbone import ImageEncoder, build_attention_pool, build_image_encoder
from depthclip_ros.core.weights import architecture


class CropFeatures(ImageEncoder):
    """Dense features of a ResNet of CLIP's, with the answer to every cell in its place."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Build it from CLIP weights in OpenAI's layout."""
        resnet = build_image_encoder(weights, 'maskclip')
        super().__init__(_Cells(
            resnet.trunk, build_attention_pool(weights), resnet.stride,
            architecture(weights).resolution), resnet.stride)


class _Cells(nn.Module):
    def __init__(self, trunk: nn.Module, pool: nn.Module, cell: int, resolution: int) -> None:
        super().__init__()
        self._trunk, self._pool, self._cell = trunk, pool, cell
        self._resolution = resolution, resolution

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / cell, W / cell): CLIP's own answers, of any length."""
        cell, (count, channels, height, width) = self._cell, images.shape
        h, w = height // cell, width // cell
        cells = images.reshape(count, channels, h, cell, w, cell).permute(0, 2, 4, 1, 3, 5)
        answers = torch.cat([
            self._pool.whole(self._trunk(interpolate(  # type: ignore[operator]
                of_row, self._resolution, mode='bilinear')))
            for of_row in torch.split(cells.flatten(0, 2), w)])
        return answers.view(count, h, w, -1).permute(0, 3, 1, 2)
