# SPDX-License-Identifier: Apache-2.0
"""Tensors in memory that is not torch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Give a tensor on the host, in the array's own memory if it is contiguous. Only read it."""
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        # torch knows no memory that cannot be written, and warns.
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array)


class _Writable:
    """The same memory without its mark."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # which must live as long
        self.__array_interface__ = {
            **array.__array_interface__, 'data': (array.ctypes.data, False)}
