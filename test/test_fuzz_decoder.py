# SPDX-License-Identifier: Apache-2.0
"""The search for bytes that the message decoder cannot answer: short here, long at night."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy')

TOOLS = Path(__file__).resolve().parents[1] / 'tools'
sys.path.insert(0, str(TOOLS))

import fuzz_decoder  # noqa: E402


@pytest.mark.filterwarnings('error::RuntimeWarning')  # an overflow is a finding too
def test_nothing_is_found_in_the_first_messages(tmp_path):
    """Always the same messages, so that they give the same tomorrow."""
    assert fuzz_decoder.search(tmp_path, seed=0, messages=20_000) == 0


@pytest.mark.nightly
def test_nothing_is_found_in_minutes(tmp_path):
    """Other messages every time, in a process of its own: a decoder may end it."""
    seed = int.from_bytes(os.urandom(4), 'big')
    done = subprocess.run(
        [sys.executable, TOOLS / 'fuzz_decoder.py', '--seconds', '120', '--seed', str(seed),
         '--folder', tmp_path], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f'seed {seed}\n{done.stdout}{done.stderr}'
    assert not list(tmp_path.glob('finding-*'))


def test_what_was_found_is_written_down_and_can_be_looked_at_again(tmp_path, monkeypatch, capsys):
    def check(data):
        assert len(data) < 5000, 'on purpose'
        return ''
    with monkeypatch.context() as patch:
        patch.setattr(fuzz_decoder, 'seeds', lambda: [b'\0' * 4999])
        patch.setattr(fuzz_decoder, 'check', check)
        assert fuzz_decoder.search(tmp_path, seed=0, messages=100) == 1
    assert 'on purpose' in capsys.readouterr().out
    finding, = tmp_path.glob('finding-*')
    assert len(finding.read_bytes()) >= 5000
    monkeypatch.setattr(sys, 'argv', ['fuzz_decoder.py', str(finding)])
    assert fuzz_decoder.main() == 0
    assert f'{finding}: check_image: ' in capsys.readouterr().out
