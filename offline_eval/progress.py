# SPDX-License-Identifier: Apache-2.0
"""A progress bar with rate and remaining time."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress(total: int, what: str) -> Any:
    """Make a bar on stderr, in images; without a terminal a line now and then."""
    return tqdm(total=total, desc=what, unit='image', mininterval=0.5, dynamic_ncols=True)
