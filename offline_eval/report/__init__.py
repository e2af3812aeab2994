# SPDX-License-Identifier: Apache-2.0
"""Report of an evaluation: for a browser, as Markdown, and its tables for a paper."""

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

__all__ = ['FOLDER', 'HTML', 'LATEX', 'MARKDOWN', 'Source', 'write']


def write(folder: Path, source: Source) -> None:
    """Write the report into the results folder.

    Without matplotlib the report has no figures, and says so, as does the log.

    Args:
        folder: of the results.
        source: what was measured.

    Raises:
        ResultsError: the folder cannot be written to.

    """
    pictures, missing = {}, ''
    try:
        pictures = figures.write(folder / FOLDER, source)
    except figures.FiguresMissingError as error:
        missing = str(error)
        _LOGGER.warning('%s', missing)
    blocks = contents(source, pictures, missing)
    footer = (f'Written by depthclip_ros {source.summary.versions.get("depthclip_ros", "")} from '
              f'{results.SUMMARY} and what lies beside it.')
    results.write_text(folder / HTML, document.to_html(blocks, footer))
    results.write_text(folder / MARKDOWN, document.to_markdown(blocks))
    results.write_text(folder / LATEX, document.to_latex(blocks, footer))
