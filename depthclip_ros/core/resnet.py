# SPDX-License-Identifier: Apache-2.0
"""CLIP's ResNet for inference: the same map from images to features in fewer, larger steps.

Batch norm is folded into the convolutions, activations lie channels-last, and on a CPU each
convolution, its bias, the addition of the shortcut and the ReLU are one call of oneDNN, with
weights packed once for the input's size (`fused`). That is as fast as what `torch.compile` and
OpenVINO make of the same graph (docs/performance.md), and needs neither a compiler nor a warm-up.
In float32 most 3x3 convolutions take `winograd` instead, which is faster than all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from .winograd import WinogradConvolution, pays

_ONEDNN: Any = torch.ops.mkldnn
_NORM_EPSILON = 1e-5  # of torch's batch norm
Weights = Mapping[str, Tensor]


class Convolution(nn.Module):
    """Convolution with bias, in plain operations that every device and compiler knows.

    Attributes:
        reduction: pixels of the network's image in one of this convolution's input.

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

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def relu(self, x: Tensor) -> Tensor:
        """Convolve, then set what is negative to 0."""
        return self.forward(x).relu_()

    def add_relu(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """Convolve, add, then set what is negative to 0; `shortcut` may be overwritten."""
        return self.forward(x).add_(shortcut).relu_()


class OneDnnConvolution(nn.Module):
    """The same in one call of oneDNN each: the operators into which torch.compile lowers it.

    They are private to torch: a build may lack them, and they refuse bfloat16 where the processor
    has no instructions for it.
    """

    def __init__(self, convolution: Convolution, size: tuple[int, int]) -> None:
        """Take over a convolution in its number format.

        The weights are packed in the layout that is best for inputs of `size` (height, width).
        They work for every other size too, only slower; the number of images does not matter.
        """
        super().__init__()
        self._bias = convolution.bias
        self._place: tuple[Any, ...] = (convolution.padding, convolution.stride, [1, 1], 1)
        weight = convolution.weight
        self._weight = _ONEDNN._reorder_convolution_weight(  # noqa: SLF001
            weight, *self._place, [1, weight.shape[1], *size])

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self._pointwise(x, 'none')

    def relu(self, x: Tensor) -> Tensor:
        """Convolve, then set what is negative to 0."""
        return self._pointwise(x, 'relu')

    def add_relu(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """Convolve, add, then set what is negative to 0, in the memory of `shortcut`."""
        result: Tensor = _ONEDNN._convolution_pointwise_.binary(
            shortcut, x, self._weight, self._bias, *self._place, 'add', 1.0, 'relu', [], None)
        return result

    def _pointwise(self, x: Tensor, then: str) -> Tensor:
        result: Tensor = _ONEDNN._convolution_pointwise(  # noqa: SLF001
            x, self._weight, self._bias, *self._place, then, [], None)
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut; pools by averaging where it strides."""

    def __init__(
        self, weights: Weights, name: str, inputs: int, stride: int, reduction: int,
    ) -> None:
        """Fold one of CLIP's blocks, which takes so many channels."""
        super().__init__()
        self.reduce: Any = _fold(weights, f'{name}.conv1', inputs, reduction=reduction)
        inner = len(self.reduce.weight)
        self.spatial: Any = _fold(
            weights, f'{name}.conv2', inner, padding=1, reduction=reduction)
        self.expand: Any = _fold(weights, f'{name}.conv3', inner, reduction=stride * reduction)
        self.pool: Any = nn.AvgPool2d(stride) if stride > 1 else None
        self.shortcut: Any = None
        if f'{name}.downsample.0.weight' in weights:
            self.shortcut = _fold(weights, f'{name}.downsample.0', inputs,
                                  reduction=stride * reduction)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride); `x` may be overwritten."""
        y = self.spatial.relu(self.reduce.relu(x))
        if self.pool is not None:
            y, x = self.pool(y), self.pool(x)
        if self.shortcut is not None:
            x = self.shortcut(x)
        added: Tensor = self.expand.add_relu(y, x)
        return added


class FoldedResNet(nn.Module):
    """The convolutional part of CLIP's `ModifiedResNet`."""

    def __init__(self, weights: Weights) -> None:
        """Fold a network.

        Args:
            weights: of the image encoder, by their names in it.

        Raises:
            LookupError: one is missing.
            RuntimeError: one has a shape that does not fit the others.

        """
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
            x = convolution.relu(x)
        x = self.pool(x)
        for block in self.blocks:
            x = block(x)
        return x


def replaced(network: nn.Module, replace: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The same network, on the same tensors, with others for its convolutions and pools."""
    network = deepcopy(network, {id(tensor): tensor for tensor in network.buffers()})
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (Convolution, nn.AvgPool2d)):
                setattr(parent, name, replace(child))
    return network


def fused(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The same with oneDNN doing every convolution and what follows it; for CPUs.

    Args:
        network: a `FoldedResNet`, in its number format.
        size: (height, width) of the images for which it is to be fast.

    """
    def fuse(operation: nn.Module) -> nn.Module:
        if not isinstance(operation, Convolution):
            return operation
        height, width = (side // operation.reduction for side in size)
        if pays(operation.weight, operation.stride[0], operation.padding[0], (height, width)):
            return WinogradConvolution(operation.weight, operation.bias, (height, width))
        return OneDnnConvolution(operation, (height, width))
    return replaced(network, fuse)


def _fold(
    weights: Weights, name: str, inputs: int, stride: int = 1, padding: int = 0,
    reduction: int = 1,
) -> Convolution:
    """One convolution, in float32, of one without bias and the batch norm after it."""
    weight = weights[f'{name}.weight'].float()
    expected = len(weight), inputs, 2 * padding + 1, 2 * padding + 1
    if weight.shape != expected:
        raise RuntimeError(f'{name}.weight is {list(weight.shape)}, not {list(expected)}')
    norm = f'{name[:-1]}1' if 'downsample' in name else name.replace('conv', 'bn')
    factor, bias, mean, variance = (weights[f'{norm}.{part}'].float() for part in (
        'weight', 'bias', 'running_mean', 'running_var'))
    scale = factor / torch.sqrt(variance + _NORM_EPSILON)
    return Convolution(
        weight * scale[:, None, None, None], bias - mean * scale, stride, padding, reduction)
