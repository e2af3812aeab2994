# SPDX-License-Identifier: Apache-2.0
"""The same work again and again on one GPU: CUDA graphs, and copies through pinned memory."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    # From tensors to tensors, all on the device.
    Compute = Callable[..., Sequence[Tensor]]

# Recordings kept; each holds its inputs and a graph. There is one for each number of images, with
# and without flip averaging, and for each number of tokens.
CAPACITY = 16
# Runs before a capture, in which libraries choose their algorithms and allocate.
WARM_UP_RUNS = 3


class Recording:
    """One computation as a CUDA graph, with inputs and outputs at fixed places."""

    def __init__(
        self, compute: Compute, inputs: Sequence[Tensor], cuda: Any, stream: Any, pool: Any,
    ) -> None:
        """Capture, on the current device and stream.

        Args:
            compute: works on tensors of the device only, and depends on nothing but them.
            inputs: like those of every run.
            cuda: `torch.cuda`.
            stream: the current stream.
            pool: memory that the graphs share, since they run one after the other.

        """
        self._inputs = [given.clone() for given in inputs]
        for _ in range(WARM_UP_RUNS):
            compute(*self._inputs)
        stream.synchronize()
        self._graph = cuda.CUDAGraph()
        # Other threads may ask CUDA for something meanwhile, such as its memory's size.
        with cuda.graph(self._graph, pool=pool, stream=stream,
                        capture_error_mode='thread_local'):
            self._outputs = list(compute(*self._inputs))

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Give the outputs, which the next run of any recording overwrites."""
        for place, given in zip(self._inputs, inputs, strict=True):
            place.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs


class Replayer:
    """Does work on one GPU, on a stream of its own, for one thread at a time."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        """Make the stream.

        Args:
            device: the GPU; no other one is touched.
            cuda: `torch.cuda`, or what stands in for it where there is no GPU.

        """
        self._device, self._cuda = device, cuda
        self._busy = threading.Lock()
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        with cuda.device(device):
            self._stream = cuda.Stream(device)
            self._pool = cuda.graph_pool_handle()
        # On the host, for copies that the GPU makes by itself. Callers never see this memory.
        self._staging = torch.empty(0, dtype=torch.uint8)

    def call(
        self, work: Callable[[list[Tensor]], Sequence[Tensor]],
        images: Sequence[NDArray[np.uint8]],
    ) -> list[NDArray[np.float32]]:
        """Do some work with images.

        Args:
            work: from the images on the device to float32 tensors there; may call `replay`.
            images: of any sizes.

        Returns:
            What the work gave, in arrays of the caller's own.

        """
        with self._busy, self._cuda.device(self._device), self._cuda.stream(self._stream):
            return self._download(work(self._upload(images)))

    def replay(
        self, key: Hashable, compute: Compute, inputs: Sequence[Tensor],
    ) -> list[Tensor]:
        """Compute, within `call`; what comes for the first time is captured.

        Args:
            key: equal for an equal computation. Shapes need not be in it.
            compute: see `Recording`.
            inputs: on the device.

        Returns:
            The outputs, which the next call of this overwrites.

        """
        key = (key, *(tuple(given.shape) for given in inputs))
        if key not in self._recordings:
            self._recordings[key] = Recording(
                compute, inputs, self._cuda, self._stream, self._pool)
            if len(self._recordings) > CAPACITY:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(key)
        return self._recordings[key].run(inputs)

    def _upload(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        staged = self._stage([image.shape for image in images], torch.uint8)
        for place, image in zip(staged, images, strict=True):
            place.numpy()[...] = image
        return [torch.empty_like(place, device=self._device).copy_(place, non_blocking=True)
                for place in staged]

    def _download(self, outputs: Sequence[Tensor]) -> list[NDArray[np.float32]]:
        self._stream.synchronize()  # the staging memory may still be on its way to the GPU
        staged = self._stage([output.shape for output in outputs], torch.float32)
        for place, output in zip(staged, outputs, strict=True):
            place.copy_(output, non_blocking=True)
        self._stream.synchronize()
        return [place.numpy().copy() for place in staged]

    def _stage(self, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[Tensor]:
        """Tensors of these shapes side by side in the staging memory, which grows to fit."""
        counts = [math.prod(shape) for shape in shapes]
        size = sum(counts) * torch.empty(0, dtype=dtype).element_size()
        if size > len(self._staging):
            self._staging = torch.empty(
                size, dtype=torch.uint8, pin_memory=self._device.type == 'cuda')
        parts = torch.split(self._staging[:size].view(dtype), counts)
        return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]
