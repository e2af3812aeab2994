# SPDX-License-Identifier: Apache-2.0
"""The executables as a shell starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOW = 'import time; print("importing", flush=True); time.sleep(600)'


@pytest.mark.parametrize('name', ['depth_node', 'image_source', 'sim_camera', 'bag_player'])
def test_an_interrupt_while_it_is_imported_ends_it_without_a_traceback(tmp_path, name):
    package = tmp_path / 'modules' / 'rclpy'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text(SLOW)
    path = os.pathsep.join([str(package.parent), str(ROOT), os.environ.get('PYTHONPATH', '')])
    code = f'import sys; from depthclip_ros.executables import {name}; sys.exit({name}())'
    process = subprocess.Popen(
        [sys.executable, '-c', code, *(['/nowhere'] if name == 'bag_player' else [])],
        env={**os.environ, 'PYTHONPATH': path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,  # a shell's job in the background has interrupts ignored, and hands that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # noqa: PLW1509
    assert process.stdout.readline() == 'importing\n'
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said) == (130, '')
