# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions in a quarter of the multiplications (Lavin and Gray, CVPR 2016, F(4x4, 3x3)).

Exact but for rounding: in float32 2e-6 to 4e-6 of the result's length, against 3e-7 to 7e-7 of
the direct sum. In bfloat16 it would be 0.03, and 0.005 in the smaller F(2x2, 3x3), which hardly
saves time there: so float32 only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ONEDNN: Any = torch.ops.mkldnn

# Tiles of 4 x 4 results from 6 x 6 inputs; the points are 0, 1, -1, 2, -2 and infinity.
_INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
          (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
_WEIGHT = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
           (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_OUT, _IN = 4, 6
_POSITIONS = _IN * _IN
# The product at the point (1, 1) goes into all 16 results with weight 1: so the bias goes there.
_EVERYWHERE = _IN + 1

# Fewer channels or tiles, and moving the tiles takes longer than it saves.
_MIN_CHANNELS, _MIN_TILES = 96, 9
# The weights become four times as large; for fewer tiles than this many of their bytes are worth
# (two layers of RN50 at 640x480: 56 MB for 1 % of the time) they stay as they are.
_MOST_BYTES_A_TILE = 3 << 19


def pays(weight: Tensor, stride: int, padding: int, size: tuple[int, int]) -> bool:
    """Whether it is faster than the direct convolution of inputs of that height and width.

    And by more than the memory that it takes is worth.
    """
    down, across = _tiles(*size)
    outputs, inputs = weight.shape[:2]
    return (weight.dtype == torch.float32 and weight.shape[2:] == (3, 3)
            and stride == padding == 1 and min(outputs, inputs) >= _MIN_CHANNELS
            and down * across >= _MIN_TILES
            and 4 * _POSITIONS * outputs * inputs <= _MOST_BYTES_A_TILE * down * across)


def _tiles(height: int, width: int) -> tuple[int, int]:
    return -(-height // _OUT), -(-width // _OUT)


class WinogradConvolution(nn.Module):
    """3x3 convolution of stride 1 and padding 1, then ReLU; float32, channels-last, on a CPU."""

    def __init__(self, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> None:
        """Transform (out, in, 3, 3) weights; fastest for inputs of `size` (height, width)."""
        super().__init__()
        inputs, weights, outputs = (
            torch.tensor(rows, dtype=torch.float64) for rows in (_INPUT, _WEIGHT, _OUTPUT))
        self._out, self._in = weight.shape[:2]
        self._to_tile = torch.kron(inputs, inputs).float()
        self._from_tile = torch.kron(outputs, outputs).float()
        # As many rows of tiles at a time as stay in the caches, but enough to use the weights.
        down, across = _tiles(*size)
        steps = max(1, round(down * across / max(128, self._in)))
        self._count = -(-down // steps) * across
        # One 1x1 convolution, whose groups are the positions in a tile: oneDNN multiplies by it
        # a fifth to a third faster than torch.bmm.
        products = torch.kron(weights, weights).float() @ weight.permute(2, 3, 0, 1).reshape(9, -1)
        self._place: tuple[Any, ...] = ([0, 0], [1, 1], [1, 1], _POSITIONS)
        self._weight = _ONEDNN._reorder_convolution_weight(  # noqa: SLF001
            products.view(-1, self._in, 1, 1), *self._place,
            [1, _POSITIONS * self._in, self._count, 1])
        bias_at = torch.zeros(_POSITIONS, self._out)
        bias_at[_EVERYWHERE] = bias
        self._bias = bias_at.flatten()

    def relu(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W), not negative."""
        batch, channels, height, width = x.shape
        down, across = _tiles(height, width)
        padded = x.new_zeros(down * _OUT + 2, across * _OUT + 2, channels)
        result = x.new_empty(batch, down * _OUT, across * _OUT, self._out)
        step = min(down, max(1, self._count // across))
        # The packed weights are for `count` tiles at a time, and very slow for fewer.
        tiles = x.new_zeros(max(self._count, step * across), _POSITIONS, channels)
        for image, of_image in zip(x.permute(0, 2, 3, 1), result, strict=True):
            padded[1:height + 1, 1:width + 1] = image
            for start in range(0, down, step):
                rows = min(step, down - start)
                _cut(padded[start * _OUT:], tiles[:rows * across].view(rows, across, _IN, _IN, -1))
                torch.clamp_min(
                    self._convolve(tiles)[:rows * across].view(rows, across, _OUT, _OUT, -1), 0,
                    out=of_image[start * _OUT:(start + rows) * _OUT].view(
                        rows, _OUT, across, _OUT, -1).transpose(1, 2))
        return result[:, :height, :width].permute(0, 3, 1, 2)

    def _convolve(self, tiles: Tensor) -> Tensor:
        """(N, 36, in) -> (N, 16, out)."""
        count = len(tiles)
        transformed = torch.bmm(self._to_tile.expand(count, -1, -1), tiles)
        products = _ONEDNN._convolution_pointwise(  # noqa: SLF001
            transformed.view(1, count, 1, -1).permute(0, 3, 1, 2), self._weight, self._bias,
            *self._place, 'none', [], None)
        products = products.permute(0, 2, 3, 1).view(count, _POSITIONS, -1)
        return torch.bmm(self._from_tile.expand(count, -1, -1), products)


def _cut(padded: Tensor, tiles: Tensor) -> None:
    """Copy (H, W, C) into (rows, across, 6, 6, C) tiles that overlap by 2."""
    row, column, _ = padded.stride()
    tiles.copy_(padded.as_strided(
        tiles.shape, (_OUT * row, _OUT * column, row, column, 1), padded.storage_offset()))
