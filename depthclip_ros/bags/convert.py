# SPDX-License-Identifier: Apache-2.0
"""A bag, and its images' depth beside them in another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..core.estimator import DepthEstimator
    from .options import Progress, Report


def convert(
    source: Path, output: Path, estimator: DepthEstimator | Callable[[], DepthEstimator],
    options: Options | None = None, *, resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> Report:
    """Write a bag that holds all of another one and its images' depth.

    Args:
        source: bag folder, or a lone .mcap or .db3 file; see docs/bags.md for damaged ones.
        output: folder of the new bag; it gets that name when it is complete.
        estimator: what predicts, or what gives that; it is asked before anything is written.
        options: what to convert.
        resume: go on where an earlier run with the same arguments was stopped; the result is the
            same to the byte.
        progress: told now and then how far it is.
        log: told what is worth a line, in sentences.

    Raises:
        BagError: the source cannot be read, the output is there already, or the options do not
            fit the bag.

    """
    raise NotImplementedError


def windows(source: Path, options: Options, count: int) -> list[tuple[int, int]]:
    """Cut a bag into windows of time, each of which can be converted by itself.

    The converted windows, joined, are the same to the byte as the bag converted as a whole.

    Args:
        source: as of `convert`.
        options: of the conversion; `window` is not used.
        count: most windows to cut it into.

    Returns:
        Windows for `Options.window`, in order; a single one where depth depends on the images
        before (an anchor, scenes with a memory), which cannot be cut.

    Raises:
        BagError: the source cannot be read.

    """
    raise NotImplementedError


def join(converted: Sequence[Path], output: Path) -> Report:
    """Move the files of converted windows, in their order, into one bag.

    Raises:
        BagError: they are not neighbours, of one source and the same options; or the output is
            there already.

    """
    raise NotImplementedError
