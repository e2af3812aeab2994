# SPDX-License-Identifier: Apache-2.0
"""A trunk that runs in OpenVINO (https://docs.openvino.ai), to compare with."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

_HINTS = {torch.float32: 'f32', torch.bfloat16: 'bf16'}


class OpenVinoTrunk(nn.Module):
    """One compiled model for every batch size that comes; input and output in float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Convert a network.

        Args:
            network: in float32 on the CPU.
            dtype: in which OpenVINO shall compute.

        """
        super().__init__()
        import openvino
        self._openvino = openvino
        self._network: nn.Module | None = network
        self._model: Any = None
        self._settings = {
            'INFERENCE_PRECISION_HINT': _HINTS[dtype], 'PERFORMANCE_HINT': 'LATENCY',
            'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        }
        self._requests: dict[tuple[int, ...], Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        array = images.float().contiguous().numpy()
        if array.shape not in self._requests:
            self._requests[array.shape] = self._compile(array.shape)
        request = self._requests[array.shape]
        request.infer([array], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor().data.copy())

    def _compile(self, shape: tuple[int, ...]) -> Any:
        if self._network is not None:
            with warnings.catch_warnings():  # it traces with what torch has deprecated
                warnings.simplefilter('ignore')
                self._model = self._openvino.convert_model(
                    self._network, example_input=torch.zeros(shape))
            self._network = None
        self._model.reshape(shape)
        compiled = self._openvino.Core().compile_model(self._model, 'CPU', self._settings)
        return compiled.create_infer_request()
