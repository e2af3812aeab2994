# SPDX-License-Identifier: Apache-2.0
"""docs/reliability.md says what was measured, and no more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import mutants  # noqa: E402
import reliability  # noqa: E402


def test_the_page_is_made_of_the_figures():
    page = reliability.PAGE.read_text(encoding='utf-8')
    assert page == reliability.filled(page, reliability.read())


def test_figures_reach_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(reliability, 'FIGURES', tmp_path / 'figures.json')
    monkeypatch.setattr(reliability, 'PAGE', tmp_path / 'page.md')
    page = ('# Title\n<!-- summary -->\nold\n<!-- end of summary -->\n'
            '<!-- kinds -->\n<!-- end of kinds -->\n')
    reliability.PAGE.write_text(page)
    reliability.record('soak', {'frames': 20000, 'growth [MiB]': 1.5})
    reliability.record('kinds', {'a | b': ['rejected', 'wrong step']})
    text = reliability.PAGE.read_text()
    assert '| soak | frames 20,000, growth [MiB] 1.5 |' in text
    assert r'| a \| b | rejected | wrong step |' in text
    assert 'old' not in text
    assert reliability.filled(text, reliability.read()) == text


@pytest.mark.parametrize('mutant', mutants.MUTANTS, ids=lambda mutant: mutant.old[:40])
def test_every_mutant_still_applies(mutant):
    text = (ROOT / mutant.file).read_text(encoding='utf-8')
    compile(mutants.planted(mutant, text), mutant.file, 'exec')
    assert all((ROOT / name).is_file() for name in mutant.tests.split())


def test_a_mutant_that_no_longer_applies_says_so():
    mutant = mutants.Mutant('a.py', 'old', 'new', 'test/test_a.py')
    with pytest.raises(ValueError, match='correct this entry'):
        mutants.planted(mutant, 'other')
    with pytest.raises(ValueError, match='is there 2 times'):
        mutants.planted(mutant, 'old old')
