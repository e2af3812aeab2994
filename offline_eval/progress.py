# SPDX-License-Identifier: Apache-2.0
"""A progress bar with rate and remaining time."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress(total: int, what: str, *, initial: int = 0, show: bool = True) -> Any:
    """Make a bar on stderr, in images; without a terminal a line now and then."""
    return tqdm(total=total, desc=what, initial=initial, unit='image', disable=not show,
                mininterval=0.5, dynamic_ncols=True)
