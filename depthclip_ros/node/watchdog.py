# SPDX-License-Identifier: Apache-2.0
"""Warnings about input that does not come, in words that say where to look."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .camera import topic_prefix

if TYPE_CHECKING:
    from rclpy.node import Node

    from .camera import Camera

MAX_LISTED = 6
MAX_LOST_PART = 0.05  # of all images


def check_inputs(node: Node, camera: Camera) -> str:
    """Warn about a silent image or camera_info topic, each at most every 10 s.

    Time is steady time: simulated time stands still when a replay ends.

    Returns:
        What is missing, in a few words for diagnostics; empty if all is well.

    """
    _check_losses(node, camera)
    now, timeout = time.monotonic(), camera.config.input_timeout
    if now - camera.last_image > timeout:
        if camera.throttle.due('no image'):
            node.get_logger().warning(_no_image(node, camera, now - camera.last_image))
        return 'no image'
    if not camera.calibration.received and now - camera.first_image > timeout:
        if camera.throttle.due('no camera_info'):
            node.get_logger().warning(_no_camera_info(node, camera))
        return 'no camera_info'
    return ''


def _check_losses(node: Node, camera: Camera) -> None:
    """Warn when the middleware loses a noticeable part of the images."""
    counters = camera.counters()
    lost, received = counters.lost - camera.reported_lost, counters.received
    if lost > MAX_LOST_PART * received and camera.throttle.due('lost'):
        camera.reported_lost = counters.lost
        node.get_logger().warning(
            f'{camera.image_topic}: the middleware lost {lost} images before they arrived. '
            "Make the publisher's reliability reliable, or enlarge its middleware's buffers: "
            'config/fastdds_large_images.xml of this package says how for Fast DDS.')


def _no_image(node: Node, camera: Camera, seconds: float) -> str:
    topic, wanted = camera.image_topic, _type_name(camera.image_type)
    found = node.get_publishers_info_by_topic(topic)
    text = f'No image on {topic} for {seconds:.0f} s ({_publishers(len(found))}). '
    others = sorted({info.topic_type for info in found} - {wanted})
    if others:
        return text + f'It is published as {", ".join(others)}, this node wants {wanted}.'
    if found:
        return text + ('Check that the camera or the bag still runs, and the QoS of both sides: '
                       f'ros2 topic info -v {topic}.')
    candidates = _topics_of(node, wanted)
    hint = f'Topics of type {wanted}: {", ".join(candidates)}. ' if candidates else \
        f'There is no topic of type {wanted} at all: start the camera. '
    name = topic_prefix(camera.name) + 'image'
    return text + hint + f'Remap with: --ros-args -r {name}:=/your/image_topic' \
        + (' (without /compressed).' if camera.config.image_transport == 'compressed' else '.')


def _no_camera_info(node: Node, camera: Camera) -> str:
    count = node.count_publishers(camera.info_topic)
    return (
        f'Images arrive, but no camera_info on {camera.info_topic} ({_publishers(count)}): depth '
        'is published, points and depth/camera_info are not. Publish the calibration there, or '
        f'remap with: --ros-args -r {topic_prefix(camera.name)}camera_info:=/your/camera_info.')


def _publishers(count: int) -> str:
    return f'{count or "no"} publisher{"" if count == 1 else "s"}'


def _type_name(kind: type) -> str:
    return f'sensor_msgs/msg/{kind.__name__}'


def _topics_of(node: Node, wanted: str) -> list[str]:
    """Topics of a type that some other node publishes."""
    own = {publisher.topic_name for publisher in node.publishers}
    names = [name for name, types in node.get_topic_names_and_types()
             if wanted in types and name not in own and node.count_publishers(name)]
    return [*names[:MAX_LISTED], '...'] if len(names) > MAX_LISTED else names
