# SPDX-License-Identifier: Apache-2.0
"""depth/words: what is drawn, and that it costs nothing while nobody looks."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy')

import numpy as np
from clip_standin import synthetic_rgb
from ros_harness import FRAME, Peer, camera_info, image, running, tiny_arguments
from std_msgs.msg import Header

from depthclip_ros.core.camera import CameraModel
from depthclip_ros.overlay import draw

HEIGHT, WIDTH = 120, 200
RGB = synthetic_rgb(5, HEIGHT, WIDTH)


def ask(peer, topic):
    return peer.ask(image(peer.header(), RGB, 'rgb8'), topic,
                    info=camera_info(peer.header(), WIDTH, HEIGHT))


def test_words_are_drawn_while_somebody_looks(domain, cache, tiny_weights, estimator):
    model = CameraModel.from_info(camera_info(Header(), WIDTH, HEIGHT))
    prediction = estimator.predict(RGB, intrinsics=model)
    with running(tiny_arguments(tiny_weights), domain=domain, cache=cache) as node, \
            Peer(domain, node=node) as peer:
        ask(peer, 'depth/image')
        _, values = peer.diagnostics('depth_node: frames')
        assert 'publish depth/image p50 [ms]' in values
        assert 'publish depth/words p50 [ms]' not in values
        peer.listen('depth/words', matched=True)
        words = ask(peer, 'depth/words')
        peer.diagnostics('depth_node: frames', lambda v: 'publish depth/words p50 [ms]' in v)
    assert (words.header.frame_id, words.encoding) == (FRAME, 'bgr8')
    picture = np.frombuffer(words.data, np.uint8).reshape(words.height, words.width, 3)
    expected = draw(RGB, prediction, estimator.config)
    assert picture.shape == expected.shape
    # Equal but for a bar that is rounded otherwise.
    assert (np.abs(picture.astype(int) - expected).max(axis=2) > 8).mean() < 0.01
