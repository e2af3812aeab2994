# SPDX-License-Identifier: Apache-2.0
"""The search for bytes that the message decoder cannot answer, for some seconds, with any tool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy')

SCRIPT = Path(__file__).resolve().parents[1] / 'tools' / 'fuzz_decoder.py'


def run(*arguments):
    # Coverage, if it is measured, costs a fifth of the messages; other tests bring it.
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], check=False,
                          capture_output=True, text=True, timeout=300,
                          env={**os.environ, 'COVERAGE_PROCESS_CONFIG': ''})


@pytest.mark.slow
def test_nothing_is_found_in_some_seconds(tmp_path):
    done = run('--seconds', 12, '--folder', tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.glob('finding-*'))


@pytest.mark.slow
def test_a_finding_can_be_looked_at_again(tmp_path):
    (tmp_path / 'good').write_bytes(b'\0nothing')
    done = run(tmp_path / 'good')
    assert done.returncode == 0, done.stderr
    assert 'check_image: unreadable message' in done.stdout
