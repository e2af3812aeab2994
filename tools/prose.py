# SPDX-License-Identifier: Apache-2.0
"""Read the documents and docstrings with proselint, and with a list of house words.

    python tools/prose.py [FILE ...]

Prints FILE:LINE: FINDING for each, and ends with 1 if there are any. Code, tables and links of the
documents are left out. The house words are those that readers from outside stumbled over.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from proselint.checks import __register__
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

ROOT = Path(__file__).resolve().parents[1]
ROOMS = 'depthclip_ros', 'offline_eval', 'launch'
# Pattern, and what to write in its place.
HOUSE_WORDS = {
    r'\bhonest(ly)?\b': 'nothing: no page praises itself',
    r'\bwhoever\b': 'a subject: users, subscribers, programs',
    r'\b(is|are|was|were) (said|told)\b': 'reported, logged, counted, or who tells whom',
    r'\band says so\b': 'the message, or nothing',
    r'\bnone does\b': 'a sentence with its object',
    r'\bothers than\b': 'other than',
    r'\bstrangers?\b': 'unknown',
    r'\bwhat is told\b': 'the values, or the report',
}
# Checks that take formulas, code and a loanword for errors, or judge style that is decided here.
OFF = ('typography.', 'dates_times.', 'weasel_words.very', 'hedging', 'misc.but',
       'misc.tense_present', 'lexical_illusions', 'spelling.consistency.color')
Passage = tuple[Path, int, str]


def main(arguments: list[str]) -> int:
    """Print all findings; returns the exit code."""
    CheckRegistry().register_many(__register__)
    paths = [Path(name).resolve() for name in arguments] or [
        ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(
            path for path in (ROOT / 'docs').rglob('*.md') if 'reference' not in path.parts),
        *sorted(path for room in ROOMS for path in (ROOT / room).rglob('*.py'))]
    count = 0
    for file, line, text in (passage for path in paths for passage in passages(path)):
        for below, finding in findings(text) if text.strip() else ():
            count += 1
            print(f'{file.relative_to(ROOT)}:{line + below}: {finding}')
    print(f'{count} findings in the prose of {len(paths)} files')
    return 1 if count else 0


def passages(path: Path) -> Iterator[Passage]:
    """(file, first line, text) of a document, or of every docstring of a module."""
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.md':
        yield path, 1, without_code(text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) \
                and (docstring := ast.get_docstring(node, clean=False)):
            yield path, node.body[0].lineno, without_code(docstring)


def without_code(text: str) -> str:
    """Blank code, tables and the targets of links, line by line, so that numbers of lines stay."""
    for pattern in (r'^ *```.*?^ *```', r'^\|.*?$', r'`[^`\n]*`', r'\]\([^)\s]*\)'):
        text = re.sub(pattern, lambda match: '\n' * match[0].count('\n') or ' ', text,
                      flags=re.DOTALL | re.MULTILINE)
    return text


def findings(text: str) -> Iterator[tuple[int, str]]:
    """Line, counted from 0, and what."""
    for result in LintFile('text', content=text).lint():
        check = result.check_result
        if not check.check_path.startswith(OFF):
            yield result.pos[0] - 1, f'{check.check_path}: {check.message}'
    for pattern, instead in HOUSE_WORDS.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield (text.count('\n', 0, match.start()),
                   f'house words: {match[0]!r}; write {instead}')


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
