# SPDX-License-Identifier: Apache-2.0
"""depth/words and clicked points: what is drawn, what is said, and what cannot be used."""

from __future__ import annotations

import math
import re
import time

import pytest

pytest.importorskip('rclpy')

import numpy as np
from clip_standin import synthetic_rgb
from geometry_msgs.msg import Point, PointStamped
from lifecycle_msgs.msg import State
from rclpy.serialization import serialize_message
from ros_harness import (
    FRAME,
    PATIENCE,
    Peer,
    camera_info,
    image,
    running,
    tiny_arguments,
)
from std_msgs.msg import Header

from depthclip_ros.core.errors import CameraInfoError
from depthclip_ros.core.geometry import CameraModel
from depthclip_ros.node.clicks import ClickedPatch, Clicks
from depthclip_ros.node.diagnostic_keys import STATUSES
from depthclip_ros.node.messages import TF, of_rclpy
from depthclip_ros.overlay import draw

HEIGHT, WIDTH = 120, 200
RGB = synthetic_rgb(5, HEIGHT, WIDTH)
MODEL = CameraModel.from_info(camera_info(Header(), WIDTH, HEIGHT))
ROW, COLUMN = 1, 3


@pytest.fixture(scope='module')
def prediction(estimator):
    return estimator.predict(RGB, intrinsics=MODEL)


def in_patch(prediction, row=ROW, column=COLUMN, metres=2.0):
    """A point in the middle of a patch, in the camera's frame."""
    return metres * MODEL.patch_rays(*prediction.patch_depth.shape)[row, column]


def point(xyz, header):
    return PointStamped(header=header, point=Point(**{
        axis: float(value) for axis, value in zip('xyz', xyz, strict=True)}))


# The node ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def running_peer(domain, cache, tiny_weights):
    with running(tiny_arguments(tiny_weights), domain=domain, cache=cache) as node, \
            Peer(domain, node=node) as peer:
        peer.ready('depth/image')
        yield peer


@pytest.fixture
def peer(running_peer):
    """Nobody looks at depth/words, and nobody has clicked."""
    running_peer.bring(State.PRIMARY_STATE_UNCONFIGURED)
    running_peer.bring(State.PRIMARY_STATE_ACTIVE)
    yield running_peer
    if 'depth/words' in running_peer._subscriptions:
        running_peer.forget('depth/words')
    nobody_listens_to_clicks(running_peer)


@pytest.fixture
def looking(peer):
    """We look at depth/words, and the node listens to clicks."""
    peer.listen('depth/words', matched=True)
    peer.wait(lambda: peer.node.count_subscribers('/clicked_point'), 'a listener to clicks')
    return peer


def nobody_listens_to_clicks(peer):
    peer.wait(lambda: not peer.node.count_subscribers('/clicked_point'), 'its end')


def ask(peer, topic='depth/words'):
    return peer.ask(image(peer.header(), RGB, 'rgb8'), topic,
                    info=camera_info(peer.header(), WIDTH, HEIGHT))


def pixels(message):
    assert message.encoding == 'bgr8'
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


def click(peer, message, said):
    """Publish a click, and images until the node has said what came of it; give the last.

    A click that the node's new subscription has missed is published again: after ten images have
    been answered it is not on its way any more.
    """
    before = len(peer.process.output)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        peer.publisher('/clicked_point', PointStamped).publish(message)
        for _ in range(10):
            words = ask(peer)
            if said in peer.process.output[before:]:
                return words
    raise AssertionError(f'{said!r} was never said:\n{peer.process.output}')


def same(picture, expected):
    """Equal but for a bar that is rounded otherwise."""
    assert picture.shape == expected.shape
    return (np.abs(picture.astype(int) - expected).max(axis=2) > 8).mean() < 0.01


def test_words_are_drawn_while_somebody_looks(peer, estimator, prediction):
    ask(peer, 'depth/image')
    _, values = peer.diagnostics('depth_node: frames')
    assert 'publish words p50 [ms]' not in values
    assert not peer.node.count_subscribers('/clicked_point')
    peer.listen('depth/words', matched=True)
    words = ask(peer)
    assert words.header.frame_id == FRAME
    assert same(pixels(words), draw(RGB, prediction, estimator.config))
    peer.wait(lambda: peer.node.count_subscribers('/clicked_point'), 'a listener to clicks')
    _, values = peer.diagnostics('depth_node: frames')
    assert float(values['publish words p50 [ms]']) > 0


def test_a_click_shows_its_patch_until_the_next(looking, estimator, prediction):
    peer = looking
    said = f'row {ROW}, column {COLUMN} says {prediction.patch_depth[ROW, COLUMN]:.2f} m'
    click(peer, point(in_patch(prediction), peer.header()), said)
    expected = draw(RGB, prediction, estimator.config, (ROW, COLUMN))
    for _ in range(2):
        assert same(pixels(ask(peer)), expected)
    # Without a stamp it is of now.
    click(peer, point(in_patch(prediction, 0, 0), Header(frame_id=FRAME)), 'row 0, column 0 says')
    assert same(pixels(ask(peer)), draw(RGB, prediction, estimator.config, (0, 0)))


def test_clicks_that_cannot_be_used_are_said_and_counted(looking, estimator, prediction):
    """And the one before stays in the picture."""
    peer, good = looking, in_patch(prediction)
    click(peer, point(in_patch(prediction, 0, 0), peer.header()), 'row 0, column 0 says')

    def old():
        header = peer.header()
        header.stamp.sec -= 100
        return point(good, header)
    hostile = {
        'not finite': lambda: point([1.0, math.nan, 2.0], peer.header()),
        'stale': old,
        'no transform': lambda: point(good, peer.header('nowhere')),
        'behind the camera': lambda: point(-good, peer.header()),
        'outside the image': lambda: point([9.0, 0.0, 1.0], peer.header()),
        'unreadable message': lambda: b'\x00\x01\x00\x00no click'}
    for condition, make in hostile.items():
        said = condition if 'camera' in condition or condition == 'no transform' \
            else f'Click not shown ({condition})'
        words = click(peer, make(), 'is outside of' if 'image' in condition else said)
    shown = draw(RGB, prediction, estimator.config, (0, 0),
                 ['last click not shown: unreadable message'])
    assert same(pixels(words), shown)
    _, values = peer.diagnostics('depth_node: frames', lambda values: (
        values.get('unusable clicks: unreadable message') == '1'))
    assert {key.partition(': ')[2]: value for key, value in values.items()
            if key.startswith('unusable clicks')} == dict.fromkeys(hostile, '1')
    assert values['clicks'] == '1'
    click(peer, point(good, peer.header()), f'row {ROW}, column {COLUMN} says')
    assert same(pixels(ask(peer)), draw(RGB, prediction, estimator.config, (ROW, COLUMN)))


def test_every_key_that_is_published_has_a_meaning(looking):
    """As others see it; the reference among the documents is made of these."""
    peer, start = looking, len(looking.messages['/diagnostics'])
    ask(peer)

    def told():
        seen = {(status.name.rpartition(': ')[2], pair.key)
                for array in peer.messages['/diagnostics'][start:] for status in array.status
                for pair in status.values}
        return {name for name, _ in seen} == {*STATUSES} and seen
    for name, key in peer.wait(told, 'every status'):
        known = [meaning for _, keys in STATUSES[name] for meaning in keys]
        assert any(re.fullmatch(re.escape(one).replace('…', '.+'), key) for one in known), key


def test_nobody_clicks_where_nobody_looks(looking):
    looking.forget('depth/words')
    nobody_listens_to_clicks(looking)


# Where a point is seen --------------------------------------------------------------------------


class Look:
    """A camera that sees what is clicked."""

    def __init__(self, prediction, messages=None, **options):
        self.clicks = Clicks(messages or of_rclpy(), **options)
        self.clicked = ClickedPatch(self.clicks)
        self.prediction = prediction

    def click(self, xyz, frame=FRAME, seconds=0):
        header = Header(frame_id=frame)
        header.stamp.sec = seconds
        self.clicks.on_click(serialize_message(point(xyz, header)))

    def see(self, seconds=100, camera=lambda: MODEL):
        header = Header(frame_id=FRAME)
        header.stamp.sec = seconds
        return self.clicked.look(header, camera, self.prediction)


def test_what_is_in_no_patch(prediction):
    look = Look(prediction)
    assert look.see() == (None, False)
    good = in_patch(prediction)
    look.click(good)
    assert look.see() == ((ROW, COLUMN), True)
    assert look.see() == ((ROW, COLUMN), False)

    def absent():
        raise CameraInfoError('absent', 'no camera_info has arrived')
    look.click(good)
    assert look.see(camera=absent) == (None, True)
    assert (look.clicked.condition, look.clicked.usable) == ('camera_info: absent', 1)
    assert look.see() == ((ROW, COLUMN), False)
    for xyz in ([0, 0, 0], [1e300, 0, 1e300], [1e-300, 0, 1e-300], [0, 1e5, 1]):
        look.click(xyz)
        look.see()
    assert sum(look.clicked.conditions.values()) + look.clicked.usable == 6


def test_clicks_that_a_newer_one_replaced_are_counted(prediction):
    look = Look(prediction)
    for row in (0, 0, 1):
        look.click(in_patch(prediction, row, 2))
    assert look.see() == ((1, 2), True)
    assert look.clicked.values() == {'clicks': 1, 'unusable clicks: a newer one came': 2}


def test_how_old_a_click_may_be(prediction):
    look = Look(prediction)
    look.click(in_patch(prediction), seconds=100)
    assert look.see(110)[0] == (ROW, COLUMN)
    look.click(in_patch(prediction, 0, 0), seconds=100)
    assert look.see(111) == ((ROW, COLUMN), True)
    assert look.clicked.condition == 'stale'
    look.click(in_patch(prediction, 0, 0), seconds=2_000_000_000)  # a replay of an old bag
    assert look.see(112) == ((0, 0), True)


def test_a_point_in_another_frame_stays_where_it_is(prediction):
    """tf says where the camera is at each image; the patch follows, and may leave the image."""
    pytest.importorskip('rosbags')
    from depthclip_ros.bags.messages import RosbagsMessages
    messages = RosbagsMessages()

    class Messages:
        """Clicks as rclpy has them, and tf's messages, which rclpy may lack."""

        def read(self, raw, kind):
            return (messages if kind == TF else of_rclpy()).read(raw, kind)

    def transform(seconds, x):
        make = messages.make
        stamp = make('builtin_interfaces/msg/Time', sec=seconds, nanosec=0)
        return messages.write(make(TF, transforms=[make(
            'geometry_msgs/msg/TransformStamped',
            header=make('std_msgs/msg/Header', stamp=stamp, frame_id='map'), child_frame_id=FRAME,
            transform=make(
                'geometry_msgs/msg/Transform',
                translation=make('geometry_msgs/msg/Vector3', x=x, y=0.0, z=0.0),
                rotation=make('geometry_msgs/msg/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0)))]))

    look, good = Look(prediction, Messages()), in_patch(prediction)
    across = in_patch(prediction, ROW, 1)[0] - in_patch(prediction, ROW, 0)[0]
    look.click(good, 'map', 99)
    assert look.see(99) == (None, True)
    assert look.clicked.condition == 'no transform'
    for seconds in range(4):
        look.clicks.on_transforms(transform(100 + seconds, float(seconds * across)))
    look.click(good, 'map', 100)
    assert [look.see(100 + seconds)[0] for seconds in range(4)] == [
        (ROW, COLUMN - seconds) for seconds in range(4)]
    look.clicks.on_transforms(transform(104, float(4 * across)))
    assert look.see(104) == (None, False)
    assert look.see(100)[0] == (ROW, COLUMN)
    assert (look.clicked.usable, look.clicked.condition) == (1, '')
    without = Look(prediction, knows_tf=False)
    without.click(good, 'map')
    assert without.see() == (None, True)
    assert 'tf2_msgs' in without.clicked.reason
