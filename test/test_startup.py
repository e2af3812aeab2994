# SPDX-License-Identifier: Apache-2.0
"""Starting from filled caches imports only what is used: it decides how long a start takes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import clip_standin
import pytest
import torch

from depthclip_ros import executables
from depthclip_ros.core import DepthConfig, DepthEstimator, weights

ROOT = Path(__file__).resolve().parents[1]
CONFIG = {'backbone': 'auto', 'input_height': 64, 'input_width': 64}

START = f"""
import json, sys
import depthclip_ros.node.depth_node
before = list(sys.modules)
from depthclip_ros import executables
from depthclip_ros.core import DepthConfig, DepthEstimator
estimator = DepthEstimator(DepthConfig().replace(**{CONFIG}), sys.argv[1], 'cpu')
estimator.warm_up()
assert estimator.text_cache_hit
ready = list(sys.modules)

from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image
from depthclip_ros.core import CameraImage
from depthclip_ros.messages import message_types as messages
from depthclip_ros.messages.node_config import NodeConfig
from depthclip_ros.messages.camera_context import CameraContext
from depthclip_ros.messages.image_io import to_rgb
rgb = to_rgb(Image(height=64, width=64, step=192, encoding='rgb8', data=bytes(64 * 192)), 1 << 20)
context = CameraContext(messages.deserialize, NodeConfig())
context.on_camera_info(serialize_message(CameraInfo(
    height=64, width=64, distortion_model='plumb_bob', d=[0.0] * 5,
    k=[50.0, 0.0, 32.0, 0.0, 50.0, 32.0, 0.0, 0.0, 1.0])))
model = context.camera_model(64, 64)
prediction = estimator.predict(CameraImage(rgb, model))
model.patch_rays(*prediction.patch_depth.shape)
print(json.dumps([before, ready, list(sys.modules)]))
"""


@pytest.fixture(scope='module')
def imported(tiny_weights, tmp_path_factory):
    """Modules of the node's modules, those when it can predict, and those with the first depth."""
    pytest.importorskip('rclpy')
    cache = tmp_path_factory.mktemp('cache')
    filled = DepthEstimator(
        DepthConfig().replace(**CONFIG), tiny_weights, 'cpu', cache_dir=cache)
    assert not filled.text_cache_hit
    done = subprocess.run(
        [sys.executable, '-c', START, str(tiny_weights)], cwd=ROOT, check=True, text=True,
        capture_output=True,
        env={**os.environ, 'DEPTHCLIP_CACHE': str(cache), 'PYTHONPATH': os.pathsep.join(
            [str(ROOT), os.environ.get('PYTHONPATH', '')])})
    return [set(names) for names in json.loads(done.stdout.splitlines()[-1])]


def test_parameters_are_checked_before_torch_is_imported(imported):
    assert 'depthclip_ros.node.depth_node' in imported[0]
    assert 'torch' not in imported[0]


@pytest.mark.parametrize('unused', [
    ('clip', 'torchvision', 'ftfy', 'regex', 'PIL'),  # tokenizer
    ('scipy', 'h5py', 'matplotlib', 'offline_eval', 'depthclip_ros.sim', 'rosbags'),
    ('sympy', 'torch._dynamo', 'torch._inductor', 'triton'),  # torch's compiler
])
def test_a_start_from_the_cache_imports_only_what_it_uses(imported, unused):
    assert 'torch' in imported[1]
    assert imported[1].isdisjoint(unused), imported[1].intersection(unused)


def test_depth_of_rgb8_images_needs_no_opencv(imported):
    assert 'depthclip_ros.core.opencv' in imported[2]
    assert 'cv2' not in imported[2]


# How threads wait -------------------------------------------------------------------------------


AS_AN_EXECUTABLE = """
import os, sys
from depthclip_ros import executables
import depthclip_ros.core
assert 'torch' not in sys.modules
before = executables.openmp_settings()
executables.said = lambda: print(f'{before!r} {executables.openmp_settings()!r}') or 0
executables.run('test', 'executables', 'said')
"""


@pytest.mark.parametrize(('chosen', 'expected'), [
    ({}, "'' '{}={}'".format(*next(iter(executables.WAITING.items())))),
    *(({name: value}, f"'{name}={value}' '{name}={value}'") for name, value in [
        ('OMP_WAIT_POLICY', 'active'), ('GOMP_SPINCOUNT', '7'), ('KMP_BLOCKTIME', '3')])])
def test_executables_let_threads_wait_shortly_unless_the_user_chose(chosen, expected):
    """And whoever imports the package as a library finds the environment as it was."""
    plain = {name: value for name, value in os.environ.items()
             if name not in executables.WAITING_BY_USER}
    done = subprocess.run(
        [sys.executable, '-c', AS_AN_EXECUTABLE], cwd=ROOT, check=True, text=True,
        capture_output=True, env={**plain, **chosen, 'PYTHONPATH': str(ROOT)})
    assert done.stdout.strip() == expected


# Memory -----------------------------------------------------------------------------------------


@pytest.fixture
def no_collector():
    """What is freed is freed because nobody holds it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures('no_collector')
def test_what_only_loading_needs_is_freed_at_once(tmp_path, monkeypatch):
    path = tmp_path / 'weights.pt'
    torch.save(clip_standin.tiny_state_dict(), path)
    held, read = [], weights.read_file

    def kept(*arguments):
        digest, tensors = read(*arguments)
        held.extend(map(weakref.ref, tensors.values()))
        return digest, tensors

    monkeypatch.setattr(weights, 'read_file', kept)
    made = DepthEstimator(DepthConfig().replace(**CONFIG), path, 'cpu', cache_dir=tmp_path)
    assert made.engine in ('oneDNN', 'torch')
    assert len(held) > 10
    assert [reference() for reference in held if reference() is not None] == []
