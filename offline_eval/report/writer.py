# SPDX-License-Identifier: Apache-2.0
"""From a results folder to `tables.md`, `report.html` and `figures/*.pdf`."""

from __future__ import annotations

import csv
import io
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offline_eval import results
from offline_eval.report.contents import Source, contents
from offline_eval.report.figures import Figures
from offline_eval.report.markdown import to_markdown
from offline_eval.report.page import to_html
from offline_eval.report.plot import FiguresMissingError, require

HTML, MARKDOWN = 'report.html', 'tables.md'

_LOGGER = logging.getLogger(__name__)


def write(folder: Path) -> None:
    """Write the report beside the results. Needs nothing but that folder.

    Without matplotlib the report has no figures, and says so, as does the log.

    Args:
        folder: with summary.json; per_image.csv, samples/ and depth_histograms.json are used
            where they are.

    Raises:
        ResultsError: the folder holds no finished evaluation, or cannot be written to.

    """
    source = read(folder)
    figures: Figures | None = None
    missing = ''
    try:
        require()
        figures = Figures(folder, source)
    except FiguresMissingError as error:
        missing = str(error)
        _LOGGER.warning('%s', missing)
    blocks = contents(source, figures, missing)
    results.write_text(folder / MARKDOWN, to_markdown(blocks))
    versions = source.summary.versions
    results.write_text(folder / HTML, to_html(
        blocks, f'Written by depthclip_ros {versions.get("depthclip_ros", "")} from '
        f'{results.SUMMARY} and what lies beside it.'))


def read(folder: Path) -> Source:
    """Read a results folder.

    Raises:
        ResultsError: there is no summary, or a file is damaged.

    """
    summary = results.Summary.read(folder)
    per_image, histograms = [], None
    if (folder / results.PER_IMAGE).exists():
        text = results.read_text(folder / results.PER_IMAGE)
        per_image = list(csv.DictReader(io.StringIO(text)))
    if (folder / results.HISTOGRAMS).exists():
        with _naming(folder / results.HISTOGRAMS):
            histograms = results.Histograms.read(folder)
    samples = []
    for path in sorted((folder / results.SAMPLES).glob('*.npz')):
        with _naming(path):
            samples.append(results.Sample.read(path))
    return Source(summary, per_image, samples, histograms)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise results.ResultsError(f'{path}: damaged ({error}). Remove it to have the report '
                                   'without it, or evaluate again.') from error
