# SPDX-License-Identifier: Apache-2.0
"""Report of an evaluation, for a browser, for Markdown and for a paper, from its folder alone."""

from __future__ import annotations

import logging
from pathlib import Path

from depthclip_ros import document
from offline_eval import results
from offline_eval.report import figures
from offline_eval.report.contents import contents
from offline_eval.report.source import Source

FOLDER = 'report'
HTML, MARKDOWN, LATEX = (f'{FOLDER}/report.{suffix}' for suffix in ('html', 'md', 'tex'))

_LOGGER = logging.getLogger(__name__)

__all__ = ['FOLDER', 'HTML', 'LATEX', 'MARKDOWN', 'write']


def write(folder: Path) -> None:
    """Write the report into the results folder. Needs nothing but that folder.

    Without matplotlib the report has no figures, and says so, as does the log.

    Args:
        folder: with summary.json; per_image.csv, samples/ and depth_histograms.json are used
            where they are.

    Raises:
        ResultsError: the folder holds no finished evaluation, or cannot be written to.

    """
    source = Source.read(folder)
    pictures, missing = {}, ''
    try:
        pictures = figures.write(folder / FOLDER, source)
    except figures.FiguresMissingError as error:
        missing = str(error)
        _LOGGER.warning('%s', missing)
    blocks = document.numbered(contents(source, pictures, missing))
    footer = (f'Written by depthclip_ros {source.summary.versions.get("depthclip_ros", "")} from '
              f'{results.SUMMARY} and what lies beside it.')
    for name, text in ((MARKDOWN, document.to_markdown(blocks)),
                       (HTML, document.to_html(blocks, footer)),
                       (LATEX, document.to_latex(blocks, footer))):
        results.write_text(folder / name, text)
