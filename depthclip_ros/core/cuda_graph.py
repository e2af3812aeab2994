# SPDX-License-Identifier: Apache-2.0
"""The trunk on a GPU as CUDA graphs: launched as a whole, not one operation after the other."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

# Shapes of a batch that are kept: one for each number of images, with and without flip averaging.
CAPACITY = 16
# Runs before a capture, in which libraries choose their algorithms and allocate.
_WARM_UP_RUNS = 3


class GraphedTrunk(nn.Module):
    """A trunk that is captured for every shape of batch that comes, and then replayed."""

    def __init__(self, trunk: nn.Module, cuda: Any = torch.cuda) -> None:
        """Take over a trunk on a GPU; tests give something that stands in for `torch.cuda`."""
        super().__init__()
        self._trunk, self._cuda = trunk, cuda
        self._graphs: dict[torch.Size, tuple[Any, Tensor, Tensor]] = {}
        self._busy = threading.Lock()  # a graph's input and output are at fixed places

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / stride, W / stride), in memory of the caller's own."""
        with self._busy:
            if images.shape not in self._graphs:
                self._graphs[images.shape] = self._capture(images)
                if len(self._graphs) > CAPACITY:
                    del self._graphs[next(iter(self._graphs))]
            graph, given, found = self._graphs[images.shape]
            given.copy_(images)
            graph.replay()
            return found.clone()

    def _capture(self, images: Tensor) -> tuple[Any, Tensor, Tensor]:
        """See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs."""
        cuda, given = self._cuda, images.clone()
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                self._trunk(given)
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        # Other threads may ask CUDA for something meanwhile, such as its memory's size.
        with cuda.graph(graph, capture_error_mode='thread_local'):
            found: Tensor = self._trunk(given)
        return graph, given, found
