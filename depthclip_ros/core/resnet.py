# SPDX-License-Identifier: Apache-2.0
"""CLIP's ResNet for inference: the same function in fewer, larger steps.

Batch norm is folded into the convolutions, activations are channels-last, and on a CPU each
convolution, its bias, the addition of the shortcut and the ReLU are one call of oneDNN, with
weights packed for the input's size (`fuse_convolutions`). That is as fast as `torch.compile` and
OpenVINO (docs/performance.md), without a compiler or a warm-up. In float32 most 3x3 convolutions
use Winograd's algorithm, which is faster still.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

_ONEDNN: Any = torch.ops.mkldnn
_NORM_EPSILON = 1e-5  # of torch's batch norm
Weights = Mapping[str, Tensor]


class Convolution(nn.Module):
    """Convolution with bias, shortcut and ReLU, in operations that every device has.

    Attributes:
        reduction: side of this convolution's input pixels, in pixels of the network's input.

    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0, reduction: int = 1,
    ) -> None:
        """Keep (out, in, k, k) weights, and a bias for every output channel."""
        super().__init__()
        self.register_buffer('weight', weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer('bias', bias)
        self.stride, self.padding, self.reduction = [stride] * 2, [padding] * 2, reduction

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, *, relu: bool = True,
    ) -> Tensor:
        """Convolve, add the shortcut, apply the ReLU; `shortcut` may be overwritten."""
        y = conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if shortcut is not None:
            y = y.add_(shortcut)
        return y.relu_() if relu else y


class OneDnnConvolution(nn.Module):
    """A `Convolution` as one call of oneDNN, by the operators that torch.compile uses.

    They are private to torch: a build may lack them, and they refuse bfloat16 if the processor
    has no instructions for it. The weights are packed in the fastest layout for inputs of `size`
    (height, width), and work for every other size and number of images.
    """

    def __init__(self, convolution: Convolution, size: tuple[int, int]) -> None:
        super().__init__()
        self._bias = convolution.bias
        self._place: tuple[Any, ...] = (convolution.padding, convolution.stride, [1, 1], 1)
        weight = convolution.weight
        self._weight = _ONEDNN._reorder_convolution_weight(  # noqa: SLF001
            weight, *self._place, [1, weight.shape[1], *size])

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, *, relu: bool = True,
    ) -> Tensor:
        """Convolve, add in the memory of `shortcut`, apply the ReLU."""
        inputs = x, self._weight, self._bias, *self._place
        result: Tensor = _ONEDNN._convolution_pointwise(  # noqa: SLF001
            *inputs, 'relu' if relu else 'none', [], None,
        ) if shortcut is None else _ONEDNN._convolution_pointwise_.binary(
            shortcut, *inputs, 'add', 1.0, 'relu' if relu else None, [], None)
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with a shortcut; average pooling does the stride."""

    def __init__(
        self, weights: Weights, name: str, inputs: int, stride: int, reduction: int,
    ) -> None:
        """Fold the block `name` of CLIP's, which has `inputs` channels at its input."""
        super().__init__()
        self.reduce: Any = _fold(weights, f'{name}.conv1', inputs, reduction=reduction)
        inner = len(self.reduce.weight)
        self.spatial: Any = _fold(
            weights, f'{name}.conv2', inner, padding=1, reduction=reduction)
        self.expand: Any = _fold(weights, f'{name}.conv3', inner, reduction=stride * reduction)
        self.pool: Any = nn.AvgPool2d(stride) if stride > 1 else None
        self.shortcut: Any = _fold(
            weights, f'{name}.downsample.0', inputs, reduction=stride * reduction,
        ) if f'{name}.downsample.0.weight' in weights else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride); `x` may be overwritten."""
        y = self.spatial(self.reduce(x))
        if self.pool is not None:
            y, x = self.pool(y), self.pool(x)
        if self.shortcut is not None:
            x = self.shortcut(x, relu=False)
        added: Tensor = self.expand(y, x)
        return added


class FoldedResNet(nn.Module):
    """The convolutional part of CLIP's `ModifiedResNet`, from its weights by their names.

    LookupError if a weight is missing, RuntimeError if its shape does not fit the others.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.stem: Any = nn.ModuleList()
        channels, reduction = 3, 1
        for i in (1, 2, 3):
            convolution = _fold(weights, f'conv{i}', channels, 2 if i == 1 else 1, 1, reduction)
            self.stem.append(convolution)
            channels, reduction = len(convolution.weight), 2
        self.pool: Any = nn.AvgPool2d(2)
        self.blocks: Any = nn.ModuleList()
        reduction = 4
        for layer in (1, 2, 3, 4):
            for i in range(len({name.split('.')[1] for name in weights
                                if name.startswith(f'layer{layer}.')})):
                stride = 2 if layer > 1 and i == 0 else 1
                block = Bottleneck(weights, f'layer{layer}.{i}', channels, stride, reduction)
                self.blocks.append(block)
                channels, reduction = len(block.expand.weight), stride * reduction

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 32, W / 32), in the weights' number format."""
        for convolution in self.stem:
            x = convolution(x)
        x = self.pool(x)
        for block in self.blocks:
            x = block(x)
        return x


def fuse_convolutions(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Copy a network with oneDNN's or Winograd's convolutions; for CPUs.

    It is fastest for images of `size` (height, width), and shares all tensors that stay.
    """
    network = deepcopy(network, {id(tensor): tensor for tensor in network.buffers()})
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Convolution):
                height, width = (side // child.reduction for side in size)
                kind = WinogradConvolution if winograd_pays(child, height, width) \
                    else OneDnnConvolution
                setattr(parent, name, kind(child, (height, width)))
    return network


def _fold(
    weights: Weights, name: str, inputs: int, stride: int = 1, padding: int = 0,
    reduction: int = 1,
) -> Convolution:
    """Fold a convolution without bias and the batch norm after it into one, in float32."""
    weight = weights[f'{name}.weight'].float()
    expected = len(weight), inputs, 2 * padding + 1, 2 * padding + 1
    if weight.shape != expected:
        raise RuntimeError(f'{name}.weight is {list(weight.shape)}, not {list(expected)}')
    norm = f'{name[:-1]}1' if 'downsample' in name else name.replace('conv', 'bn')
    gamma, beta, mean, variance = (weights[f'{norm}.{part}'].float() for part in (
        'weight', 'bias', 'running_mean', 'running_var'))
    gain = gamma / torch.sqrt(variance + _NORM_EPSILON)
    return Convolution(
        weight * gain[:, None, None, None], beta - mean * gain, stride, padding, reduction)


# Winograd's 3x3 convolutions need a quarter of the multiplications: Lavin and Gray, CVPR 2016. In
# float32 their rounding error is 2e-6 to 4e-6 of the result's norm, that of the direct sum 3e-7 to
# 7e-7. In bfloat16 it would be 0.03; with the smaller F(2x2, 3x3) 0.005, and hardly any faster.
# Tiles of 4 x 4 outputs from 6 x 6 inputs; the points are 0, 1, -1, 2, -2 and infinity.
_INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
          (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
_WEIGHT = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
           (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_OUT, _IN = 4, 6
_POSITIONS = _IN * _IN
# The product at the point (1, 1) enters all 16 outputs with weight 1, so the bias goes there.
_EVERYWHERE = _IN + 1

# With fewer channels or tiles, moving the tiles takes longer than it saves.
_MIN_CHANNELS, _MIN_TILES = 96, 9
# Winograd's weights are four times as large. Layers with more bytes per tile keep oneDNN's (two of
# RN50 at 640x480: 56 MB for 1 % of the time).
_MAX_BYTES_PER_TILE = 3 << 19


def winograd_pays(convolution: Convolution, height: int, width: int) -> bool:
    """Tell whether Winograd's algorithm is worth its memory for inputs of that size."""
    weight, tiles = convolution.weight, -(-height // _OUT) * -(-width // _OUT)
    return (weight.dtype == torch.float32 and weight.shape[2:] == (3, 3)
            and convolution.stride == convolution.padding == [1, 1]
            and min(weight.shape[:2]) >= _MIN_CHANNELS and tiles >= _MIN_TILES
            and 4 * _POSITIONS * weight[..., 0, 0].numel() <= _MAX_BYTES_PER_TILE * tiles)


class WinogradConvolution(nn.Module):
    """3x3 convolution of stride 1 and padding 1, then ReLU; float32, channels-last, on a CPU.

    It is fastest for inputs of `size` (height, width).
    """

    def __init__(self, convolution: Convolution, size: tuple[int, int]) -> None:
        super().__init__()
        weight = convolution.weight
        inputs, weights, outputs = (
            torch.tensor(rows, dtype=torch.float64) for rows in (_INPUT, _WEIGHT, _OUTPUT))
        self._out, self._in = weight.shape[:2]
        self._to_tile = torch.kron(inputs, inputs).float()
        self._from_tile = torch.kron(outputs, outputs).float()
        # As many rows of tiles at a time as fit into the caches, but enough to reuse the weights.
        down, across = (-(-side // _OUT) for side in size)
        steps = max(1, round(down * across / max(128, self._in)))
        self._count = -(-down // steps) * across
        # One 1x1 convolution, whose groups are the positions in a tile: oneDNN multiplies by it
        # a fifth to a third faster than torch.bmm.
        products = torch.kron(weights, weights).float() @ weight.permute(2, 3, 0, 1).reshape(9, -1)
        self._place: tuple[Any, ...] = ([0, 0], [1, 1], [1, 1], _POSITIONS)
        self._weight = _ONEDNN._reorder_convolution_weight(  # noqa: SLF001
            products.view(-1, self._in, 1, 1), *self._place,
            [1, _POSITIONS * self._in, self._count, 1])
        bias_at = torch.zeros(_POSITIONS, self._out, dtype=torch.float32)
        bias_at[_EVERYWHERE] = convolution.bias
        self._bias = bias_at.flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and apply the ReLU: (B, in, H, W) -> (B, out, H, W)."""
        batch, channels, height, width = x.shape
        down, across = -(-height // _OUT), -(-width // _OUT)
        padded = x.new_zeros(down * _OUT + 2, across * _OUT + 2, channels)
        result = x.new_empty(batch, down * _OUT, across * _OUT, self._out)
        step = min(down, max(1, self._count // across))
        # The packed weights are for `count` tiles at a time, and very slow for fewer.
        count = max(self._count, step * across)
        tiles = x.new_zeros(count, _POSITIONS, channels)
        for image, of_image in zip(x.permute(0, 2, 3, 1), result, strict=True):
            padded[1:height + 1, 1:width + 1] = image
            for start in range(0, down, step):
                rows, part = min(step, down - start), padded[start * _OUT:]
                row, column, _ = part.stride()
                tiles[:rows * across].view(rows, across, _IN, _IN, -1).copy_(part.as_strided(
                    (rows, across, _IN, _IN, channels),
                    (_OUT * row, _OUT * column, row, column, 1), part.storage_offset()))
                transformed = torch.bmm(self._to_tile.expand(count, -1, -1), tiles)
                products = _ONEDNN._convolution_pointwise(  # noqa: SLF001
                    transformed.view(1, count, 1, -1).permute(0, 3, 1, 2), self._weight,
                    self._bias, *self._place, 'none', [], None).permute(0, 2, 3, 1)
                outputs = torch.bmm(self._from_tile.expand(count, -1, -1),
                                  products.view(count, _POSITIONS, -1))
                torch.clamp_min(
                    outputs[:rows * across].view(rows, across, _OUT, _OUT, -1), 0,
                    out=of_image[start * _OUT:(start + rows) * _OUT].view(
                        rows, _OUT, across, _OUT, -1).transpose(1, 2))
        return result[:, :height, :width].permute(0, 3, 1, 2)
