# SPDX-License-Identifier: Apache-2.0
"""What every test may use."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'test'))

# Nothing of a test leaves this machine or reads the user's caches.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

# Workers beside each other (pytest -n), and the processes that they start, share the cores; and
# last bits are those of one thread wherever nobody asks for more.
PARALLEL = 'PYTEST_XDIST_WORKER' in os.environ
os.environ.setdefault('OMP_NUM_THREADS', '1')

# Properties: the same few examples on every machine, so that what is green stays green. Others,
# and many more of them, where HYPOTHESIS_PROFILE=nightly. How long one takes is never an error.
with contextlib.suppress(ImportError):  # the files that need it say so
    from hypothesis import HealthCheck, settings
    PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile('few', PATIENT, derandomize=True, max_examples=40)
    settings.register_profile('nightly', PATIENT, max_examples=1000)
    settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'few'))


def pytest_collection_modifyitems(items):
    """Files that start processes first: they take longest, and no worker should end with one."""
    waiting = {item.path for item in items if 'domain' in item.fixturenames}
    items.sort(key=lambda item: item.path not in waiting)  # stable: within a file nothing changes


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


@pytest.fixture(scope='module', autouse=True)
def _threads_of_torch_come_back():
    """What `num_threads` asks for holds for the process, and last bits depend on it."""
    yield
    if 'depthclip_ros.core.engine' in sys.modules:
        sys.modules['depthclip_ros.core.engine'].use_threads(0)


@pytest.fixture(scope='module')
def one_thread():
    """As a worker of Ray has: with other numbers of threads, last bits differ."""
    import torch

    from depthclip_ros.core.engine import use_threads
    before = torch.get_num_threads()
    use_threads(0)  # forgets what another module asked for, which num_threads: 0 would undo
    torch.set_num_threads(1)
    yield
    use_threads(0)
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Give every test a cache of its own, and no home folder with weights in it."""
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('DEPTHCLIP_CACHE', str(folder))
    monkeypatch.setenv('HOME', str(folder))
    return folder


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
