# SPDX-License-Identifier: Apache-2.0
"""The folded network through oneDNN's graph compiler: the same sums, prepared once per shape.

PyTorch's operators describe every convolution to oneDNN anew in every call; that takes 40 to 60
us, and 55 calls an image. Where AMX does the rest in 40 ms, it counts (docs/performance.md).
TorchScript is the only way from PyTorch to that compiler. It is deprecated; where it is gone or
does not do it, `engine` goes on with the operators, whose features are the same.
"""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .resnet import by_parts, images_at_once

if TYPE_CHECKING:
    from .resnet import FoldedResNet

_JIT: Any = torch.jit
_FUSED = 'oneDNNFusionGroup'  # what is compiled, as TorchScript names it
# TorchScript looks at the first run, and compiles in the second.
_RUNS_UNTIL_COMPILED = 2
# The fusion is switched on and off for the whole process.
_SWITCH = threading.Lock()


class GraphedResNet(nn.Module):
    """A `FoldedResNet` on a CPU, compiled for every shape of images that comes."""

    def __init__(self, network: FoldedResNet) -> None:
        """Take over a network that is not fused, in its number format."""
        super().__init__()
        self._network = network.eval()
        self._at_once = images_at_once(network.stem[0].weight.dtype)
        self._compiled: dict[torch.Size, Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 32, W / 32), in the weights' number format."""
        return by_parts(self._features, images, self._at_once)

    def _features(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        if images.shape not in self._compiled:
            with _SWITCH:
                if images.shape not in self._compiled:
                    self._compiled[images.shape] = _compile(self._network, images)
        features: Tensor = self._compiled[images.shape](images)
        return features


def _compile(network: nn.Module, images: Tensor) -> Any:
    """Compile for images of this shape.

    Raises:
        Exception: of any type, where this PyTorch does not.

    """
    before = torch._C._jit_llga_enabled()  # noqa: SLF001
    _JIT.enable_onednn_fusion(True)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that TorchScript is deprecated
            compiled = _JIT.freeze(_JIT.trace(network, images, check_trace=False))
            for _ in range(_RUNS_UNTIL_COMPILED):
                compiled(images)
    finally:
        _JIT.enable_onednn_fusion(before)
    if _FUSED not in str(_JIT.last_executed_optimized_graph()):
        raise RuntimeError('TorchScript made no oneDNN graph of the network')
    return compiled
