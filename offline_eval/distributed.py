# SPDX-License-Identifier: Apache-2.0
"""One process or several: `torchrun --nproc-per-node N -m offline_eval ...` on one machine.

Processes only agree on where to write and wait for one another; results go through files, so that
every number of processes gives the same digits.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from torch import distributed

# Reading the training split, which one process does for all, may take long.
_PATIENCE = timedelta(hours=12)


class Group:
    """The processes of this run.

    Attributes:
        rank: number of this one, from 0.
        size: how many there are.

    """

    def __init__(self) -> None:
        """Join, when started by torchrun."""
        self.rank = int(os.environ.get('RANK', '0'))
        self.size = int(os.environ.get('WORLD_SIZE', '1'))
        if self.size > 1:
            distributed.init_process_group('gloo', timeout=_PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """A GPU of its own for every process, where there are any and none is named."""
        if self.size == 1 or name not in ('auto', 'cuda') or not torch.cuda.is_available():
            return name
        return f'cuda:{int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()}'

    def share(self, text: str) -> str:
        """What the first process says."""
        if self.size == 1:
            return text
        box = [text]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()

    def largest(self, value: float) -> float:
        """Largest of all processes' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return float(tensor)

    def leave(self) -> None:
        """End the group."""
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
