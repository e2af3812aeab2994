# SPDX-License-Identifier: Apache-2.0
"""Several cameras, one model: four images a batch, and none disturbs another."""

from __future__ import annotations

import time
from typing import NamedTuple

import pytest

pytest.importorskip('rclpy')

import cv2
import faulty_node
import numpy as np
from clip_standin import synthetic_rgb
from ros_harness import (
    PATIENCE,
    NodeProcess,
    Peer,
    adds_up,
    camera_info,
    counters,
    depth_array,
    image,
    own_domain,
    running,
    tiny_arguments,
    values_of,
)

from depthclip_ros.messages.image_io import to_rgb

CAMERAS = ('', 'left/front', 'rear', 'side')
TOPICS = ('depth/image', 'depth/camera_info', 'points')
ANSWERS = 15
SLOW = '0.2'  # seconds that a batch takes at least: the pictures below come much faster
PICTURES = {
    '': (synthetic_rgb(1, 60, 80), 'rgb8'),
    'left/front': (np.ascontiguousarray(synthetic_rgb(2, 120, 200)[..., ::-1]), 'bgr8'),
    'rear': (cv2.cvtColor(synthetic_rgb(3, 61, 47), cv2.COLOR_RGB2GRAY), 'mono8'),
    'side': (cv2.cvtColor(synthetic_rgb(4, 90, 90), cv2.COLOR_RGB2GRAY), 'bayer_rggb8'),
}


SILENT = ('/left/front/image', '/rear/image_raw')  # whose silence a test looks at


def prefix(camera):
    return f'{camera}/' if camera else ''


def status(camera):
    return f'depth_node: frames of {camera}' if camera else 'depth_node: frames'


def stamp(message):
    return message.header.stamp.sec, message.header.stamp.nanosec


def frame(camera):
    return f'{camera or "plain"}_optical_frame'


def picture(peer, camera):
    """The camera's picture with a stamp of its own; only those of 'rear' are of now."""
    message = image(peer.header(frame(camera)), *PICTURES[camera])
    if camera == 'rear':
        message.header.stamp = peer.node.get_clock().now().to_msg()
    return message


def depths(peer, camera):
    return peer.messages[f'{prefix(camera)}depth/image']


def overload(peer, answers, waited_for, sending=CAMERAS, make=picture):
    """Send pictures, three times as many of the first camera, until all have so many answers.

    Gives the stamps that were sent, by camera.
    """
    first, *others = sending
    turns = [turn for other in others for turn in (first, other)] * 2 + [first] * len(others)
    before = {camera: len(depths(peer, camera)) for camera in waited_for}
    sent = {camera: [] for camera in sending}
    end = time.monotonic() + PATIENCE
    while any(len(depths(peer, camera)) < before[camera] + answers for camera in waited_for):
        assert time.monotonic() < end, {c: len(depths(peer, c)) for c in waited_for}
        for camera in turns:
            message = make(peer, camera)
            sent[camera].append(stamp(message))
            peer.send(message, prefix=prefix(camera))
            time.sleep(0.001)  # the source's rate, not a wait
    return sent


def quiet(peer):
    """The accounts of all cameras when no image is on its way."""
    told = peer.quiet(*map(status, CAMERAS))
    return {camera: told[status(camera)] for camera in CAMERAS}


def all_accounts(peer):
    """Every account of a camera since the node was configured."""
    names = [status(camera) for camera in CAMERAS]
    return [values_of(entry) for array in list(peer.messages['/diagnostics'])
            for entry in array.status if entry.name in names]


def gain(before, after):
    """How the counters of every camera have changed."""
    return {camera: {key: value - counters(before[camera])[key]
                     for key, value in counters(after[camera]).items()} for camera in CAMERAS}


@pytest.fixture(scope='module')
def node(domain, cache, tiny_weights):
    arguments = tiny_arguments(
        tiny_weights, cameras=list(CAMERAS), input_timeout=1.0,
        **{'qos_overrides./side/depth/spread.publisher.reliability': 'best_effort',
           'qos_overrides./side/camera_info.subscription.reliability': 'best_effort'})
    arguments += ['-r', 'rear/image:=/rear/image_raw']
    with running(arguments, domain=domain, cache=cache, module=faulty_node.__file__,
                 environment={'FAULT_SLOW': SLOW}) as node:
        for name in SILENT:
            node.wait_for(f'No image on {name}')  # and nobody has published any
        yield node


@pytest.fixture(scope='module')
def peer(node, domain):
    outputs = [prefix(camera) + topic for camera in CAMERAS
               for topic in TOPICS]
    with Peer(domain, listen=outputs, node=node) as peer:
        # As a driver: what is remapped is published under its own name.
        peer.send_image, peer.send = peer.send, lambda message, prefix='': peer.send_image(
            message, '/rear/image_raw' if prefix == 'rear/' and hasattr(message, 'encoding')
            else None, prefix=prefix)
        yield peer


class Load(NamedTuple):
    """What is known of a run beyond capacity; by camera or by topic."""

    sent: dict  # stamps
    gained: dict  # change of the account
    after: dict  # values of diagnostics
    messages: dict
    accounts: list  # all that were told


@pytest.fixture(scope='module')
def load(node, peer):
    for camera in CAMERAS:
        message = picture(peer, camera)
        info = camera_info(message.header, message.width, message.height)
        peer.ask(message, 'points', info=info, prefix=prefix(camera))
        for topic in ('depth/image', 'depth/camera_info'):
            peer.wait_stamp(prefix(camera) + topic, message.header.stamp)
    before = quiet(peer)
    for topic in peer.messages:
        peer.messages[topic].clear()
    sent = overload(peer, ANSWERS, CAMERAS)
    after = quiet(peer)
    gained = gain(before, after)
    peer.wait(lambda: all(
        len(peer.messages[prefix(camera) + topic]) >= gained[camera]['published']
        for camera in CAMERAS for topic in TOPICS), 'every counted output')
    return Load(sent, gained, after, {topic: list(found) for topic, found in
                                      peer.messages.items()},
                all_accounts(peer))


def test_silence_names_the_camera_and_its_remedy(node):
    front, rear = (node.wait_for(f'No image on {name}') for name in SILENT)
    assert '-r left/front/image:=' in front
    assert '-r rear/image:=' in rear
    for topics in ('/image and /camera_info in, /depth/image out',
                   '/rear/image_raw and /rear/camera_info in, /rear/depth/image out'):
        node.wait_for(f'Active: {topics}')


def test_cameras_are_served_alike(load):
    """One sends four times as many pictures as the others, and all more than can be answered."""
    published = [load.gained[camera]['published'] for camera in CAMERAS]
    assert min(published) >= ANSWERS
    assert max(published) <= 1.5 * min(published), published
    for camera in CAMERAS:
        account = load.gained[camera]
        assert account['dropped'] > 0, 'the node was not overloaded'
        assert account['received'] == account['published'] + account['dropped'], account
        assert len(load.messages[f'{prefix(camera)}depth/image']) == account['published']


def test_accounts_are_exact_at_any_moment(load):
    assert all(map(adds_up, load.accounts))
    assert any(int(account['pending']) for account in load.accounts), 'no moment under load'


def test_outputs_are_of_their_camera(load):
    for camera in CAMERAS:
        pixels, _ = PICTURES[camera]
        height, width = pixels.shape[:2]
        found = {topic: load.messages[prefix(camera) + topic] for topic in TOPICS}
        answered = [stamp(message) for message in found['depth/image']]
        assert answered == sorted(set(answered)), 'old images were answered after newer ones'
        assert set(answered) <= set(load.sent[camera])
        assert load.sent[camera][-1] in answered, 'the newest image'
        for topic, messages in found.items():
            assert [stamp(message) for message in messages] == answered, topic
            assert {m.header.frame_id for m in messages} == {frame(camera)}
        assert all((m.height, m.width) == (height, width) for m in found['depth/image'])
        expected = camera_info(None, width, height)
        np.testing.assert_allclose(found['depth/camera_info'][-1].k, expected.k)
        age = load.after[camera]['age at publish p50 [ms]']
        assert age.startswith('unknown') != (camera == 'rear'), age


def test_a_batch_of_unlike_images_gives_the_depth_of_each_alone(peer, load, estimator):
    for camera in CAMERAS:
        expected = estimator.predict(to_rgb(picture(peer, camera))).depth
        assert expected.std() > 0.01, 'the picture has no depth to tell apart'
        for message in load.messages[f'{prefix(camera)}depth/image']:
            # Depth up to 10 m in float32, summed in another order: some tens of 10 m x 1.2e-7.
            np.testing.assert_allclose(depth_array(message), expected, atol=1e-4)


def test_a_broken_camera_does_not_disturb_the_others(node, peer, load):
    def spoiled(peer, camera):
        message = picture(peer, camera)
        if camera == 'rear':
            message.width += 1
        return message
    before = quiet(peer)
    good = [camera for camera in CAMERAS if camera != 'rear']
    overload(peer, 5, good, make=spoiled)
    assert 'WARN' in node.wait_for(r'rear: Image rejected \(wrong step\): ')
    after = quiet(peer)
    gained = gain(before, after)
    assert gained['rear']['published'] == 0
    assert gained['rear']['rejected'] == int(after['rear']['rejected: wrong step']) >= 1
    assert [gained[camera]['rejected'] for camera in good] == [0, 0, 0]
    assert all(map(adds_up, after.values()))
    overload(peer, 1, CAMERAS)


def test_silent_and_unwanted_cameras_do_not_hold_up_the_others(node, peer, load):
    for topic in TOPICS:
        peer.forget(f'side/{topic}')

    def side_is_idle():
        overload(peer, 1, ['rear'], ['side', 'rear'])
        account = quiet(peer)
        return int(account['side']['idle']) and account
    before = peer.wait(side_is_idle, 'an image that is left alone since nobody listens')
    overload(peer, 5, ['left/front', 'rear'], ['side', 'left/front', 'rear'])
    gained = gain(before, quiet(peer))
    assert not any(gained[''].values()), 'the silent one'
    assert gained['side']['published'] == 0
    assert gained['side']['idle'] >= 4
    for camera in ('left/front', 'rear'):
        assert gained[camera]['idle'] == 0
        assert gained[camera]['published'] >= 5
    assert all(map(adds_up, all_accounts(peer)))
    for topic in TOPICS:
        peer.listen(f'side/{topic}', matched=True)


def test_a_remapping_that_no_camera_has_is_refused(domain, cache):
    node = NodeProcess(['--ros-args', '-p', "cameras:=['front', 'rear']",
                        '-r', 'image:=/cam/image_raw'], domain=domain, cache=cache)
    assert node.wait() == 1
    line = node.wait_for('Cannot configure')
    assert 'image is remapped to /cam/image_raw' in line
    assert 'remap front/image' in line
    assert 'Traceback' not in node.output


def test_swapped_cameras_answer_for_one_another(cache, tiny_weights):
    """ROS applies a remapping once; twice would swap them back."""
    swap = ['-r', 'front/image:=/rear/image', '-r', 'rear/image:=/front/image']
    arguments = tiny_arguments(tiny_weights, cameras='[front,rear]') + swap
    with own_domain() as domain, running(arguments, domain=domain, cache=cache) as node, \
            Peer(domain, listen=('front/depth/image', 'rear/depth/image'), node=node) as peer:
        node.wait_for('Active: /rear/image .*/front/depth/image out')
        for camera, other in (('front', 'rear'), ('rear', 'front')):
            message = image(peer.header(frame(camera)), *PICTURES['side'])
            message.header.frame_id = f'of {camera}'

            def answered(message=message, camera=camera, other=other):
                peer.send(message, f'/{camera}/image')
                return peer.messages[f'{other}/depth/image']
            assert peer.wait(answered, 'depth')[0].header.frame_id == f'of {camera}'
