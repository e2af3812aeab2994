# SPDX-License-Identifier: Apache-2.0
"""Report of an evaluation: tables.md, report.html, figures/*.pdf from its folder alone."""

from offline_eval.report.writer import HTML, MARKDOWN, write

__all__ = ['HTML', 'MARKDOWN', 'write']
