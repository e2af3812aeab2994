# SPDX-License-Identifier: Apache-2.0
"""What every test may use."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

START = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
DOOR, ROOM = Path(__file__), pytest.StashKey()  # of tests beside each other, see below
sys.path[:0] = [str(ROOT / 'test'), str(ROOT / 'test/lesser_cpu')]

import lesser_cpu  # noqa: E402

# Nothing of a test leaves this machine or reads the user's caches.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

# Workers beside each other (pytest -n), and the processes that they start, share the cores.
PARALLEL = 'PYTEST_XDIST_WORKER' in os.environ
if PARALLEL:
    os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_addoption(parser):
    """Let the suite run as on a lesser processor, and keep what it measures."""
    parser.addoption('--cpu', choices=lesser_cpu.KINDS, help='pretend to run on such a CPU')
    parser.addoption('--record', action='store_true',
                     help='keep what the tests measure in docs/reliability.json')


def pytest_configure(config):
    """Before anything imports torch."""
    if config.getoption('--cpu'):
        lesser_cpu.pretend_everywhere(config.getoption('--cpu'))


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first, so that no worker ends with a long one alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker('slow'))
    items.sort(key=lambda item: -slow[item.path])  # stable: within a file nothing changes


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """Let a test that is marked `alone` wait until no other worker's test runs, and hold those."""
    if getattr(getattr(item, 'obj', None), 'is_hypothesis_test', False):
        count = item.obj._hypothesis_internal_use_settings.max_examples
        item.user_properties.append(('measured', ['property', {'examples': count}]))
    with contextlib.ExitStack() as held:
        if PARALLEL:
            alone = bool(item.get_closest_marker('alone'))
            door = held.enter_context(_flock(DOOR, exclusive=alone))
            item.stash[ROOM] = held.enter_context(_flock(ROOT / 'test', exclusive=alone))
            if not alone:  # else whoever comes next waits here, and cannot overtake
                fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.fixture
def undisturbed(request):
    """`with undisturbed():` is `alone` for a part of a test, which holds no one longer than that.

    The test's own place is given up first: whoever is alone may be waiting for it.
    """
    @contextlib.contextmanager
    def part():
        room = request.node.stash.get(ROOM, None)
        if room is None:
            yield
            return
        fcntl.flock(room, fcntl.LOCK_UN)
        with _flock(DOOR, exclusive=True):
            fcntl.flock(room, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(room, fcntl.LOCK_SH)
    return part


@contextlib.contextmanager
def _flock(path, *, exclusive):
    """Lock a file or folder between processes; only the lock counts, nothing is written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield handle
    finally:
        os.close(handle)


@pytest.fixture
def make_no_file():
    """Put something at a path that is no regular file; of other kinds there is nothing."""
    def make(path, kind):
        if kind == 'folder':
            path.mkdir()
        elif kind == 'pipe':
            os.mkfifo(path)
        elif kind == 'device':
            path.symlink_to('/dev/zero')
        elif kind == 'dangling link':
            path.symlink_to(path.parent / 'nowhere')
    return make


@pytest.fixture(scope='session', autouse=True)
def _apart_from_the_user(tmp_path_factory):
    """What a module's fixtures run sees no file of the user either.

    Text features in the user's cache may come from another processor or another number of
    threads, and differ in their last bits.
    """
    folder = str(tmp_path_factory.mktemp('home'))
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('DEPTHCLIP_CACHE', folder)
        patch.setenv('HOME', folder)
        # In each new home matplotlib would look at all fonts of the machine anew, for seconds.
        patch.setenv('MPLCONFIGDIR', str((base.parent if PARALLEL else base) / 'matplotlib'))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Give every test a cache of its own, and no home folder with weights in it."""
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('DEPTHCLIP_CACHE', str(folder))
    monkeypatch.setenv('HOME', str(folder))
    return folder


@pytest.fixture
def fast_bfloat16(monkeypatch):
    """Let `precision: bfloat16` run also where float32 is faster, and so would run instead."""
    monkeypatch.setattr('depthclip_ros.core.device.bfloat16_speed', lambda: 2.0)


@pytest.fixture(scope='session')
def shared_dir() -> Path:
    """Folder of reference material beside the repository, where there is one."""
    folder = ROOT.parent / 'shared'
    if not (folder / 'goldens').is_dir():
        pytest.skip('the reference material (../shared) is not on this machine')
    return folder


@pytest.fixture(scope='session')
def tiny_weights(tmp_path_factory) -> Path:
    """File with the weights of a tiny CLIP (use with backbone: auto)."""
    from clip_standin import write_tiny_weights
    path = tmp_path_factory.mktemp('weights') / 'tiny.pt'
    write_tiny_weights(path)
    return path


@pytest.fixture(scope='module')
def domain():
    """A ROS domain that no other test run on this machine has."""
    from ros_harness import own_domain
    with own_domain() as domain:
        yield domain


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> Path:
    """Cache that the nodes of a test file share."""
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def estimator(tiny_weights, cache):
    """What a node with `tiny_arguments` computes, in this process."""
    from ros_harness import INPUT_HEIGHT, INPUT_WIDTH, TEMPERATURE

    from depthclip_ros.core import DepthConfig
    from depthclip_ros.core.estimator import DepthEstimator
    config = DepthConfig(backbone='auto', input_height=INPUT_HEIGHT, input_width=INPUT_WIDTH,
                         temperature=TEMPERATURE)
    return DepthEstimator(config, tiny_weights, 'cpu', cache_dir=cache, num_threads=1)


@pytest.fixture(scope='module')
def state_dict():
    """Weights of a tiny CLIP."""
    from clip_standin import tiny_state_dict
    return tiny_state_dict()


@pytest.fixture(scope='session')
def rgb():
    """(120, 160, 3) picture of a room."""
    from depthclip_ros.sim import Scene, SimCamera, render, trajectory
    scene = Scene.generate('office', seed=3)
    camera = SimCamera(160, 120, 130.0, 130.0, 79.5, 59.5)
    return render(scene, camera, trajectory(scene, seed=0).pose(1.5)).rgb


@pytest.fixture
def picture(rgb, tmp_path):
    """File of that picture."""
    import cv2
    path = tmp_path / 'room.png'
    cv2.imwrite(str(path), rgb[..., ::-1])
    return path


@pytest.fixture(scope='module')
def demo_estimator():
    """The demo model with its own settings."""
    from depthclip_ros.core import DepthConfig, DepthEstimator
    from depthclip_ros.resources import config_path
    return DepthEstimator(DepthConfig.from_yaml(config_path('demo')), 'demo', 'cpu', num_threads=1)


@pytest.fixture
def measured(record_property):
    """Keep figures of a test for the table at the end: measured('soak', frames=20000)."""
    def keep(subject, **figures):
        record_property('measured', [subject, figures])
    return keep


def coverage_of_packages(config):
    """Lines and branches of each package that pytest-cov has looked at, in percent."""
    plugin = config.pluginmanager.getplugin('_cov')
    if getattr(plugin, 'cov_total', None) is None:
        return {}
    coverage = plugin.cov_controller.cov
    found = {}
    for package in ('depthclip_ros', 'offline_eval'):
        with contextlib.suppress(Exception):  # of a package that was not looked at
            found[f'{package}, lines and branches [%]'] = round(coverage.report(
                include=[f'*/{package}/*'], file=io.StringIO()), 1)
    return found


def pytest_terminal_summary(terminalreporter, config):
    """Print what the tests have measured, and last which of them failed."""
    summarize_measured(terminalreporter, config)
    # In a line each, also where pytest knows that it runs in CI and would print all of each
    # message: who sees only the end of a log sees every name.
    broken = [(kind, report) for kind in ('failed', 'error')
              for report in terminalreporter.stats.get(kind, ())]
    if broken:
        terminalreporter.section('failures')
    for kind, report in broken:
        crash = getattr(report.longrepr, 'reprcrash', None)
        message = str(crash.message if crash else report.longrepr).strip().splitlines()
        terminalreporter.write_line(
            f'{kind.upper()} {report.nodeid} - {message[0][:200] if message else ""}')


def summarize_measured(terminalreporter, config):
    """Print what the tests have measured as one table, and keep it if asked to."""
    sys.path.insert(0, str(ROOT / 'tools'))
    import reliability
    passed = terminalreporter.stats.get('passed', ())
    found = [value for report in passed for name, value in report.user_properties
             if name == 'measured']
    examples = [figures['examples'] for subject, figures in found if subject == 'property']
    measured = {subject: figures for subject, figures in found if subject != 'property'}
    kinds = measured.pop('kinds', None)
    if not measured:
        return
    if examples:
        measured['property tests'] = {'properties': len(examples), 'examples': sum(examples)}
    measured['suite'] = {'passed': len(passed), 'seconds': round(time.monotonic() - START),
                         'workers': config.getoption('numprocesses', None) or 1}
    covered = coverage_of_packages(config)
    if covered:
        measured['coverage'] = covered
    if config.getoption('--record'):
        for subject, figures in measured.items():
            reliability.record(subject + reliability.EVERY_RUN, figures)
        reliability.record('kinds', kinds or reliability.read().get('kinds', {}))
    by_hand = {subject: figures for subject, figures in reliability.read().items()
               if not subject.endswith(reliability.EVERY_RUN) and subject != 'kinds'}
    terminalreporter.section('reliability')
    for subject, figures in measured.items():
        terminalreporter.write_line(f'{subject:16} {reliability.shown(figures)}')
    for subject, figures in by_hand.items():
        terminalreporter.write_line(f'{subject:16} {reliability.shown(figures)} (kept in docs/)')
