# SPDX-License-Identifier: Apache-2.0
"""The same tensor work again and again on images of the same sizes: a CUDA graph, and its twin."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    # Pixels of every image, (H, W, 3) uint8 on the device, to outputs on the device.
    Compute = Callable[[Sequence[Tensor]], Sequence[Tensor]]

# Recordings kept; each holds its images and, on a GPU, a graph.
CAPACITY = 16
# Runs before a capture, in which libraries choose their algorithms and allocate.
WARM_UP_RUNS = 3


class Recording:
    """One computation with inputs and outputs at fixed places.

    On a GPU it is captured once into a CUDA graph, and each run is one launch between two
    asynchronous copies through pinned memory. On a CPU the same code runs without the graph.
    """

    def __init__(
        self, compute: Compute, shapes: Sequence[tuple[int, ...]], device: torch.device,
        stream: Any = None, pool: Any = None,
    ) -> None:
        """Allocate, and capture on a GPU.

        Args:
            compute: works on tensors of the device only, and depends on nothing that changes,
                except in place.
            shapes: of every image.
            device: where it runs.
            stream: the CUDA stream to run on; None on a CPU.
            pool: memory that the graphs share, since they run one after the other.

        """
        self._compute, self._stream = compute, stream
        on_gpu = device.type == 'cuda'
        self._staging = [torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu)
                         for shape in shapes]
        self._pixels = [image.to(device).zero_() for image in self._staging]
        self._graph: Any = None
        if on_gpu:
            self._capture(pool)

    def run(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        """Give the outputs, in memory of their own on the host."""
        with _on(self._stream):
            for image, staging, pixels in zip(images, self._staging, self._pixels, strict=True):
                staging.numpy()[...] = image
                if pixels is not staging:
                    pixels.copy_(staging, non_blocking=True)
            if self._graph is None:
                outputs = self._compute(self._pixels)
            else:
                self._graph.replay()
                outputs = self._outputs
            return to_host(outputs, self._stream)

    def _capture(self, pool: Any) -> None:
        with _on(self._stream):
            for _ in range(WARM_UP_RUNS):
                self._compute(self._pixels)
            self._stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may ask CUDA for something meanwhile, such as its memory's size.
        with torch.cuda.graph(self._graph, pool=pool, stream=self._stream,
                              capture_error_mode='thread_local'):
            self._outputs = list(self._compute(self._pixels))


class Replayer:
    """Runs computations by key: the first time as they are, from the second on recorded.

    So images that all differ in size are not recorded one by one, at some 0.2 s each on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recordings: OrderedDict[Hashable, Recording | None] = OrderedDict()
        self._stream: Any = None
        self._pool: Any = None
        if device.type == 'cuda':
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    def run(
        self, key: Hashable, compute: Compute, images: Sequence[NDArray[np.uint8]],
    ) -> list[Tensor]:
        """Run `compute` on images.

        Args:
            key: equal for equal shapes and an equal computation.
            compute: see `Recording`.
            images: each (H, W, 3) uint8 on the host.

        Returns:
            The outputs on the host.

        """
        seen = key in self._recordings
        if seen:
            self._recordings.move_to_end(key)
            recording = self._recordings[key]
            if recording is None:
                recording = self._recordings[key] = Recording(
                    compute, [image.shape for image in images], self._device, self._stream,
                    self._pool)
            return recording.run(images)
        self._recordings[key] = None
        if len(self._recordings) > CAPACITY:
            self._recordings.popitem(last=False)
        with _on(self._stream):
            pixels = [torch.tensor(image).to(self._device) for image in images]
            return to_host(compute(pixels), self._stream)

    def synchronize(self) -> None:
        """Wait for what other streams do, before the next run reads what they write."""
        if self._stream is not None:
            torch.cuda.synchronize(self._device)


def to_host(outputs: Sequence[Tensor], stream: Any) -> list[Tensor]:
    """Copy from the device through pinned memory, all at once; on a CPU nothing is copied."""
    if stream is None:
        return list(outputs)
    hosts = [torch.empty(output.shape, dtype=output.dtype, pin_memory=True).copy_(
        output, non_blocking=True) for output in outputs]
    stream.synchronize()
    return hosts


def _on(stream: Any) -> Any:
    return nullcontext() if stream is None else torch.cuda.stream(stream)
