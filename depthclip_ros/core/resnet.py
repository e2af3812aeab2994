# SPDX-License-Identifier: Apache-2.0
"""CLIP's ResNet for inference: the same map from images to features in fewer, larger steps.

Batch norm is folded into the convolutions, activations lie channels-last, and on a CPU each
convolution, its bias, the addition of the shortcut and the ReLU are one call of oneDNN, with
weights packed once for the input's size. That is as fast as what `torch.compile` and OpenVINO
make of the same graph (docs/performance.md), and needs neither a compiler nor a warm-up. Where
these operators do not work, the same steps are torch's plain ones. In float32 most 3x3
convolutions take `winograd` instead, which is faster than all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from .device import Ability, cpu_has_amx, try_out
from .winograd import WinogradConvolution, pays

if TYPE_CHECKING:
    from collections.abc import Callable

_ONEDNN: Any = torch.ops.mkldnn
_NORM_EPSILON = 1e-5  # of torch's batch norm
Weights = Mapping[str, Tensor]


class Convolution(nn.Module):
    """Convolution with bias, in plain operations that every device and compiler knows."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int) -> None:
        """Keep (out, in, k, k) weights, and a bias for every output channel."""
        super().__init__()
        self.register_buffer('weight', weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer('bias', bias)
        self.stride, self.padding = [stride, stride], [padding, padding]

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
    """The same in one call of oneDNN each: the operators into which torch.compile lowers it."""

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


@functools.cache
def can_fuse(dtype: torch.dtype) -> Ability:
    """Whether oneDNN's fused convolutions are here in a number format.

    They are private to torch: a build may lack them, and they refuse bfloat16 where the processor
    has no instructions for it. Whether they work at the real size `engine` finds out.
    """
    def fuse() -> None:
        weight = torch.zeros(8, 8, 1, 1, dtype=dtype)
        convolution = OneDnnConvolution(Convolution(weight, weight[0, :, 0, 0], 1, 0), (4, 4))
        images = torch.zeros(1, 8, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
        convolution.add_relu(convolution.relu(images), images)
    return try_out(fuse)


def _fastest(convolution: Convolution, size: tuple[int, int]) -> nn.Module:
    """Winograd's algorithm where it is faster than oneDNN's direct sum."""
    weight, stride, padding = convolution.weight, convolution.stride[0], convolution.padding[0]
    if pays(weight, stride, padding, size):
        return WinogradConvolution(weight, convolution.bias, size)
    return OneDnnConvolution(convolution, size)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut; pools by averaging where it strides."""

    def __init__(self, weights: Weights, name: str, inputs: int, stride: int) -> None:
        """Fold one of CLIP's blocks, which takes so many channels."""
        super().__init__()
        self.reduce: Any = fold(weights, f'{name}.conv1', f'{name}.bn1', inputs)
        inner = len(self.reduce.weight)
        self.spatial: Any = fold(weights, f'{name}.conv2', f'{name}.bn2', inner, padding=1)
        self.expand: Any = fold(weights, f'{name}.conv3', f'{name}.bn3', inner)
        self.stride = stride
        self.shortcut: Any = None
        if f'{name}.downsample.0.weight' in weights:
            self.shortcut = fold(weights, f'{name}.downsample.0', f'{name}.downsample.1', inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride); `x` may be overwritten."""
        y = self.spatial.relu(self.reduce.relu(x))
        if self.stride > 1:
            y, x = _pool(y, self.stride), _pool(x, self.stride)
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
        channels, stem = 3, []
        for i in (1, 2, 3):
            convolution = fold(weights, f'conv{i}', f'bn{i}', channels, 2 if i == 1 else 1, 1)
            stem.append(convolution)
            channels = len(convolution.weight)
        self.stem: Any = nn.ModuleList(stem)
        self.blocks: Any = nn.ModuleList()
        for layer in (1, 2, 3, 4):
            for i in range(len({name.split('.')[1] for name in weights
                                if name.startswith(f'layer{layer}.')})):
                stride = 2 if layer > 1 and i == 0 else 1
                block = Bottleneck(weights, f'layer{layer}.{i}', channels, stride)
                self.blocks.append(block)
                channels = len(block.expand.weight)
        self._at_once: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 32, W / 32), in the weights' number format."""
        if self._at_once is None:
            return self._features(images)
        return by_parts(self._features, images, self._at_once)

    def _features(self, x: Tensor) -> Tensor:
        for convolution in self.stem:
            x = convolution.relu(x)
        x = _pool(x, 2)
        for block in self.blocks:
            x = block(x)
        return x

    def fused(self, size: tuple[int, int]) -> FoldedResNet:
        """Give the same with oneDNN doing every convolution and what follows it; for CPUs.

        Args:
            size: (height, width) of the images for which it is to be fast.

        """
        # Modules of its own, on the same tensors.
        network = deepcopy(self, {id(tensor): tensor for tensor in self.buffers()})
        network._at_once = images_at_once(self.stem[0].weight.dtype)  # noqa: SLF001 (our own)
        height, width = size
        for i, convolution in enumerate(self.stem):
            network.stem[i] = OneDnnConvolution(convolution, (height, width))
            height, width = height // convolution.stride[0], width // convolution.stride[1]
        height, width = height // 2, width // 2
        for block in network.blocks:
            block.reduce = OneDnnConvolution(block.reduce, (height, width))
            block.spatial = _fastest(block.spatial, (height, width))
            height, width = height // block.stride, width // block.stride
            block.expand = OneDnnConvolution(block.expand, (height, width))
            if block.shortcut is not None:
                block.shortcut = OneDnnConvolution(block.shortcut, (height, width))
        return network


def by_parts(features: Callable[[Tensor], Tensor], images: Tensor, at_once: int) -> Tensor:
    """Features of (B, ...) images, so many at a time."""
    return torch.cat([features(part) for part in torch.split(images, at_once)])


def images_at_once(dtype: torch.dtype) -> int:
    """Part of a batch that is fastest together on a CPU.

    More images push each other's maps out of the caches: 2 to 7 % slower. But with AMX an image
    takes so little time that the calls' fixed cost counts, and a pair is 7 to 9 % faster.
    """
    return 2 if dtype == torch.bfloat16 and cpu_has_amx() else 1


def _pool(x: Tensor, size: int) -> Tensor:
    return avg_pool2d(x, size, size)  # the second one explicit: `onednn_graph` needs it


def fold(
    weights: Weights, convolution: str, norm: str, inputs: int, stride: int = 1, padding: int = 0,
) -> Convolution:
    """Make one convolution, in float32, of one without bias and the batch norm after it.

    Raises:
        LookupError: a tensor is missing.
        RuntimeError: one has a shape that does not fit.

    """
    weight = weights[f'{convolution}.weight'].float()
    expected = len(weight), inputs, 2 * padding + 1, 2 * padding + 1
    if weight.shape != expected:
        raise RuntimeError(f'{convolution}.weight is {list(weight.shape)}, not {list(expected)}')
    factor, bias, mean, variance = (weights[f'{norm}.{name}'].float() for name in (
        'weight', 'bias', 'running_mean', 'running_var'))
    scale = factor / torch.sqrt(variance + _NORM_EPSILON)
    return Convolution(weight * scale[:, None, None, None], bias - mean * scale, stride, padding)
