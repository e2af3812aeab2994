# SPDX-License-Identifier: Apache-2.0
"""What a report is made of: a results folder, read."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from offline_eval import results
from offline_eval.results import Histograms, Sample, Summary

ROLES = ('best', 'median', 'worst')


@dataclass(frozen=True)
class Source:
    """What a results folder holds; lists may be empty."""

    summary: Summary
    per_image: list[dict[str, str]]
    samples: list[Sample]
    histograms: Histograms | None

    @classmethod
    def read(cls, folder: Path) -> Source:
        """Read a results folder.

        Raises:
            ResultsError: there is no summary, or a file is damaged.

        """
        summary = Summary.read(folder)
        per_image, histograms, samples = [], None, []
        if (folder / results.PER_IMAGE).exists():
            text = results.read_text(folder / results.PER_IMAGE)
            per_image = list(csv.DictReader(io.StringIO(text)))
        if (folder / results.HISTOGRAMS).exists():
            with _naming(folder / results.HISTOGRAMS):
                histograms = Histograms.read(folder)
        for path in sorted((folder / results.SAMPLES).glob('*.npz')):
            with _naming(path):
                samples.append(Sample.read(path))
        return cls(summary, per_image, samples, histograms)

    def ranked(self) -> list[list[Sample]]:
        """Samples as [[best, median, worst], [second best, ...], ...], in the summary's order."""
        known = {(s.role, s.index): s for s in self.samples}
        by_role = [[known[role, index] for index in getattr(self.summary, role)
                    if (role, index) in known] for role in ROLES]
        depth = max(len(samples) for samples in by_role)
        return [[samples[rank] for samples in by_role if rank < len(samples)]
                for rank in range(depth)]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise results.ResultsError(f'{path}: damaged ({error}). Remove it to have the report '
                                   'without it, or evaluate again.') from error
