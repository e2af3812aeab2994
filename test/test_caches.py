# SPDX-License-Identifier: Apache-2.0
"""Caches under attack: processes killed while they write, and several that write at once.

The processes are forked from one (this file, run as a script), so that torch is imported once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from depthclip_ros.core import DepthConfig
from depthclip_ros.core import weights as weights_module
from depthclip_ros.core.weights import RELEASES, fetch, file_digest
from depthclip_ros.core.words import TextFeatureCache

PATIENCE = 60.0  # seconds, of processes for one another on a busy machine
ROOT = Path(__file__).resolve().parents[1]
KILLS = 12
PROCESSES = 2
ROUNDS = 20
WIDTH = 50_000  # so that writing takes long enough to be hit
WORDS = DepthConfig(tokens=['near', 'far'], bins=[1.0, 3.0])
CONTENT = random.Random(0).randbytes(2_000_000)


def features(seed):
    numbers = np.random.default_rng(seed).standard_normal((2, WIDTH)).astype(np.float32)
    return numbers / np.linalg.norm(numbers, axis=1, keepdims=True)


def encode(folder, seed, log):
    """Features from a cache in which they may be missing, and whether they were there."""
    return TextFeatureCache(folder, log, 'RN50').get(
        WORDS, f'weights {seed}', WIDTH, lambda: features(seed))


def in_a_process(action):
    """Run in a forked process; gives its number. It exits with 1 where `action` raises."""
    number = os.fork()
    if number == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return number


def kill_after(number, begun, seconds):
    """Kill -9 a process some time after `begun()`; give whether it still ran."""
    end = time.monotonic() + PATIENCE
    while not begun():
        assert time.monotonic() < end
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(number, signal.SIGKILL)
    return os.waitpid(number, 0)[1] == signal.SIGKILL


def kill_while_encoding(folder, _server):
    """Give how many processes were killed; raise if one left what is not complete."""
    lines = []
    chance = random.Random(1)

    def write():
        cache = TextFeatureCache(folder, lambda _: None, 'RN50')
        for seed in [0, 1, 2] * 10_000:
            cache.path(WORDS, f'weights {seed}').unlink(missing_ok=True)
            encode(folder, seed, lambda _: None)

    killed, found = 0, 0
    for _ in range(KILLS):
        for path in folder.glob('*.npz'):
            path.unlink()
        killed += kill_after(in_a_process(write), lambda: any(folder.glob('*.npz')),
                             chance.uniform(0, 0.06))
        for seed in range(3):  # the next start writes what is missing, and tidies up
            given, was_there = encode(folder, seed, lines.append)
            found += was_there
            np.testing.assert_array_equal(given, features(seed))
    assert lines == []
    assert len(list(folder.glob('*.npz'))) == 3, list(folder.iterdir())
    return f'{killed} killed, {found} complete'


def kill_while_fetching(folder, server):
    """Killed while the server keeps the rest back; then, about the end, where it sends all."""
    release = dataclasses.replace(RELEASES['RN50'], sha256=hashlib.sha256(CONTENT).hexdigest())
    weights_module.RELEASES = {'RN50': release}
    importlib.import_module('tqdm')  # not in each process
    chance = random.Random(2)
    killed, found, left = 0, 0, 0
    for size in [*range(0, len(CONTENT), len(CONTENT) // KILLS), *[len(CONTENT)] * KILLS]:
        before, path = set(folder.rglob('*.part')), folder / 'weights/RN50.pt'
        killed += kill_after(
            in_a_process(lambda: fetch(
                'RN50', folder, lambda _: None, f'{server}/{size}')),  # noqa: B023
            lambda: path.exists() or set(folder.rglob('*.part')) - before,  # noqa: B023
            chance.uniform(0, 0.02))
        left += len(list(folder.rglob('*.part')))
        if path.exists():
            found += 1
            assert file_digest(path) == release.sha256
            path.unlink()
    fetch('RN50', folder, lambda _: None, server)
    assert file_digest(folder / 'weights/RN50.pt') == release.sha256
    assert left > 0
    return f'{killed} killed, {found} complete'


def write_at_once(folder, server):
    """Several processes want the same at the same time; all get it, and none complains."""
    release = dataclasses.replace(RELEASES['RN50'], sha256=hashlib.sha256(CONTENT).hexdigest())
    weights_module.RELEASES = {'RN50': release}
    barrier = multiprocessing.get_context('fork').Barrier(PROCESSES)

    def work():
        lines = []
        barrier.wait(PATIENCE)
        for seed in range(ROUNDS):
            given, _ = encode(folder / 'text', seed, lines.append)
            np.testing.assert_array_equal(given, features(seed))
        assert file_digest(fetch('RN50', folder, lambda _: None, server)) == release.sha256
        assert lines == []

    numbers = [in_a_process(work) for _ in range(PROCESSES)]
    assert [os.waitpid(number, 0)[1] for number in numbers] == [0] * PROCESSES
    names = sorted(path.suffix for path in folder.rglob('*') if path.is_file())
    assert names == ['.npz'] * ROUNDS + ['.pt']
    return 'all complete'


@pytest.fixture(scope='module')
def server():
    """Send as much of the weights as the address says first; without a number, all.

    A part is held back from the rest until the receiver is gone.
    """
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            size = re.match(r'/(\d+)/', self.path)
            content = CONTENT[:int(size[1])] if size else CONTENT
            self.send_response(200)
            self.send_header('Content-Length', str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(content)
            if len(content) < len(CONTENT):
                self.connection.recv(1)  # nothing ever comes but the end

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    http.handle_error = lambda *_: None  # receivers are killed
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{http.server_port}'
    http.shutdown()


@pytest.fixture(scope='module')
def ask(server):
    """Have this file, as a script, do one of its actions; gives what that has said."""
    process = subprocess.Popen(
        [sys.executable, __file__, server], cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(action, folder):
        process.stdin.write(f'{action} {folder}\n')
        process.stdin.flush()
        return process.stdout.readline()
    yield ask
    process.communicate(timeout=PATIENCE)


def test_killed_while_text_features_are_written(tmp_path, ask):
    said = ask('kill_while_encoding', tmp_path)
    assert 'complete' in said, said
    killed, complete = map(int, re.findall(r'\d+', said))
    assert killed == KILLS
    assert complete > 0


def test_killed_while_weights_are_fetched(tmp_path, ask):
    said = ask('kill_while_fetching', tmp_path)
    assert 'complete' in said, said
    assert int(said.split()[0]) >= KILLS, said  # of those that waited for the rest


def test_two_processes_on_one_cache(tmp_path, ask):
    assert ask('write_at_once', tmp_path) == 'all complete\n'


def serve(server):
    """Do what standard input names; torch is imported once, and every answer is one line."""
    actions = {action.__name__: action for action in (
        kill_while_encoding, kill_while_fetching, write_at_once)}
    for line in sys.stdin:
        name, _, folder = line.strip().partition(' ')
        try:
            said = actions[name](Path(folder), server)
        except Exception:  # noqa: BLE001 - told to the test
            said = traceback.format_exc()
        print(said if '\n' not in said else repr(said), flush=True)


if __name__ == '__main__':
    serve(sys.argv[1])
