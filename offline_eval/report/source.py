# SPDX-License-Identifier: Apache-2.0
"""What a report is made of, in memory or read from a results folder."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from offline_eval import results
from offline_eval.results import Histograms, Sample, Summary

ROLES = ('best', 'median', 'worst')


@dataclass(frozen=True)
class Source:
    """Results of an evaluation; without samples or histograms their figures are left out."""

    summary: Summary
    samples: list[Sample]
    histograms: Histograms | None

    @classmethod
    def read(cls, folder: Path) -> Source:
        """Read a results folder.

        Raises:
            ResultsError: there is no summary, or a file is damaged.

        """
        summary, samples, histograms = Summary.read(folder), [], None
        path = folder / results.HISTOGRAMS
        try:
            if path.exists():
                histograms = Histograms.read(folder)
            for path in sorted((folder / results.SAMPLES).glob('*.npz')):
                samples.append(Sample.read(path))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile,
                results.ResultsError) as error:
            raise results.ResultsError(f'{path}: damaged ({error}). Remove it to have the report '
                                       'without it, or evaluate again.') from error
        return cls(summary, samples, histograms)

    def of_role(self, role: str) -> list[Sample]:
        """Samples of 'best', 'median' or 'worst', in the summary's order."""
        known = {sample.index: sample for sample in self.samples if sample.role == role}
        return [known[index] for index in getattr(self.summary, role) if index in known]
