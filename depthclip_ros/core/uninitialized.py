# SPDX-License-Identifier: Apache-2.0
"""Networks whose numbers are about to be replaced by loaded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_RANDOM = (torch.rand, torch.randn)
_INITIALIZERS = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_)


class Uninitialized(TorchFunctionMode):
    """Within it, modules are made without drawing random numbers for their weights.

    The memory is reserved but never touched. The other usual way, the 'meta' device, draws in
    Python code that imports torch's compiler: a second, where this takes milliseconds.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Leave out initialisers, and random numbers that a module draws by itself."""
        del types
        kwargs = kwargs or {}
        if func in _INITIALIZERS:
            return kwargs['tensor'] if 'tensor' in kwargs else args[0]
        return (torch.empty if func in _RANDOM else func)(*args, **kwargs)
