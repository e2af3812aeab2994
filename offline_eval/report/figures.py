# SPDX-License-Identifier: Apache-2.0
"""The report's figures; what a paper would take also as a PDF in `figures/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from offline_eval.report import distributions, plot, predictions, responses, standing
from offline_eval.report.document import Picture
from offline_eval.results import ALL, Sample, atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from offline_eval.report.contents import Source

ROLES = ('best', 'median', 'worst')


class Figures:
    """Draws what a results folder has the data for."""

    def __init__(self, folder: Path, source: Source) -> None:
        self._folder = folder
        self._source = source

    def standing(self) -> Picture:
        """Method and baselines."""
        figure = standing.draw(self._source.summary)
        return self._picture('standing', 'Where the method stands', standing.CAPTION, figure)

    def predictions(self) -> list[Picture]:
        """Figure 5; the first of best, median and worst, then the second of each, and so on."""
        pictures = []
        for rank, samples in enumerate(self._ranked()):
            caption = predictions.CAPTION.format(images=self._source.summary.data.evaluated)
            ordinal = f', continued ({rank + 1})' if rank else ''
            pictures.append(self._picture(
                '' if rank else 'figure_5',
                f'Figure 5. Predictions beside the ground truth{ordinal}', caption,
                predictions.draw(samples)))
        return pictures

    def responses(self) -> list[Picture]:
        """Figure 4; the median image first, for it is the typical one."""
        first = next(iter(self._ranked()), [])
        order = {'median': 0, 'best': 1, 'worst': 2}
        return [self._picture(
            '' if place else 'figure_4', f'Figure 4. Responses of the words, {sample.role} image',
            responses.caption(sample), responses.draw(sample))
            for place, sample in enumerate(sorted(first, key=lambda s: order[s.role]))]

    def distributions(self) -> Picture | None:
        """Figure 3."""
        histograms, summary = self._source.histograms, self._source.summary
        if histograms is None or not any(sum(c) for c in histograms.counts.values()):
            return None
        bins = [float(b) for b in summary.config.get('bins', [])]
        images = {r.scene: r.images for r in summary.rows
                  if r.group == 'method' and r.scene != ALL}
        return self._picture(
            'figure_3', 'Figure 3. Depth distributions of the scene classes',
            distributions.CAPTION.format(bins=len(bins)),
            distributions.draw(histograms, bins, images))

    def _ranked(self) -> list[list[Sample]]:
        """Samples as [[best, median, worst], [second best, ...], ...], in the summary's order."""
        summary = self._source.summary
        known = {(s.role, s.index): s for s in self._source.samples}
        by_role = [[known[role, index] for index in getattr(summary, role)
                    if (role, index) in known] for role in ROLES]
        depth = max(len(samples) for samples in by_role)
        return [[samples[rank] for samples in by_role if rank < len(samples)]
                for rank in range(depth)]

    def _picture(self, name: str, title: str, caption: str, figure: Figure) -> Picture:
        """Write the PDF, where it has a name, and make the block."""
        file = f'figures/{name}.pdf' if name else ''
        if file:
            with atomic(self._folder / file) as stream:
                stream.write(plot.to_pdf(figure))
        return Picture(title, caption, plot.to_svg(figure), file)
