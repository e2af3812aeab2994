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


@pytest.mark.parametrize('mutant', [m for every in mutants.PACKAGES.values() for m in every],
                         ids=lambda mutant: mutant.old[:40])
def test_every_mutant_still_applies(mutant):
    text = (ROOT / mutant.file).read_text(encoding='utf-8')
    compile(mutants.planted(mutant, text), mutant.file, 'exec')
    for test in mutant.tests.split():
        file, _, name = test.partition('::')
        assert f'def {name}(' in (ROOT / file).read_text(encoding='utf-8') or not name


def test_at_least_thirty_in_the_evaluation_with_those_that_once_passed_every_test():
    planted = {mutant.new for mutant in mutants.EVALUATION}
    assert len(planted) >= 30
    for words in ("if reasons or offsets else 'reproduced'", '.mean(axis=1)', 'np.ones_like(drawn',
                  'float(3 * total.sum()'):
        assert any(words in new for new in planted), words


def test_mutants_are_counted_by_file():
    every = [mutants.Mutant(f'a/{file}.py', old, '', '') for file, old in (
        ('x', '1'), ('y', '2'), ('x', '3'))]
    assert mutants.by_file(every, every[2:]) == {
        'planted': 3, 'caught': 2, 'x': '1 of 2', 'y': '1 of 1'}


def test_a_mutant_that_no_longer_applies_says_so():
    mutant = mutants.Mutant('a.py', 'old', 'new', 'test/test_a.py')
    with pytest.raises(ValueError, match='correct this entry'):
        mutants.planted(mutant, 'other')
    with pytest.raises(ValueError, match='is there 2 times'):
        mutants.planted(mutant, 'old old')
