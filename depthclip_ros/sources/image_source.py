# SPDX-License-Identifier: Apache-2.0
"""A camera without a camera: publishes files, a video, a webcam, or built-in pictures.

Publishers (relative names):
    image (sensor_msgs/Image, bgr8), or image/compressed (sensor_msgs/CompressedImage, JPEG)
    camera_info (sensor_msgs/CameraInfo): from a calibration file, or a pinhole camera

Both have the same stamp (now) and are reliable with a short history, so that reliable and
sensor-data subscribers match; `qos_overrides` apply.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

import rclpy
from rclpy.exceptions import NameValidationException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from ..arguments import positive, whole
from ..core.errors import DepthClipError, ImageError
from ..core.opencv import cv2
from ..node.image_io import image_fields
from ..node.process import explain_arguments
from ..resources import large_images_profile
from .camera_info import BUILTIN_HFOV, CameraCalibration, calibration_of
from .pictures import (
    builtin_frames,
    file_frames,
    picture_files,
    video_frames,
    webcam_frames,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from builtin_interfaces.msg import Time

    from ..color import Picture

JPEG_QUALITY = 90
# An image can be lost while discovery is still going on: it is sent again after this time.
ANSWER_TIMEOUT = 5.0
QOS = QoSProfile(
    history=QoSHistoryPolicy.KEEP_LAST, depth=2, reliability=QoSReliabilityPolicy.RELIABLE)


class ImageSource(Node):
    """Publishes pictures with their camera_info."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Create the publishers.

        Args:
            options: of `parser()`.

        Raises:
            CameraInfoError: the calibration file cannot be used.

        """
        super().__init__('image_source')
        self._frame_id: str = options.frame_id
        self._compressed: bool = options.compressed
        self._given = CameraCalibration.from_yaml(options.camera_info) \
            if options.camera_info else _field_of_view(options)
        if not options.camera_info and options.fov is None and not _is_builtin(options):
            self.get_logger().warning(  # type: ignore[no-untyped-call]
                f'camera_info is a GUESS: {BUILTIN_HFOV:g} degrees horizontal field of view, no '
                'distortion. Give --fov DEGREES or --camera-info FILE for depth of true scale and '
                'a cloud of true shape.')
        overrides = QoSOverridingOptions.with_default_policies()
        kind, topic = (CompressedImage, 'image/compressed') if self._compressed \
            else (Image, 'image')
        self._image_publisher = self.create_publisher(
            kind, topic, QOS, qos_overriding_options=overrides)
        self._info_publisher = self.create_publisher(
            CameraInfo, 'camera_info', QOS, qos_overriding_options=overrides)
        self._info = CameraInfo()
        self._answered = False
        self._awaited: list[Time] = []  # stamps under which the picture was sent
        if options.answer:
            self.create_subscription(Image, options.answer, self._on_answer, QOS)
        self.published = 0

    def publish(self, picture: Picture, *, again: bool = False) -> None:
        """Send one picture and its camera_info, stamped now.

        Args:
            picture: (H, W, 3) BGR.
            again: it is the same as before: an answer to what was sent then counts, too.

        Raises:
            CameraInfoError: the calibration file is for pictures of another size.

        """
        height, width = picture.shape[:2]
        if (self._info.width, self._info.height) != (width, height):
            calibration_of(self._given, width, height).fill(self._info)
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._frame_id)
        self._info.header = header
        if self._compressed:
            _, data = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            image = CompressedImage(header=header, format='bgr8; jpeg compressed bgr8',
                                    data=array('B', data.tobytes()))
        else:
            image = Image(**image_fields(picture, 'bgr8', header))
        self._answered &= again
        self._awaited = [*(self._awaited if again else ()), header.stamp]
        self._info_publisher.publish(self._info)
        self._image_publisher.publish(image)
        self.published += 1

    def wait_for_subscribers(self, count: int) -> None:
        """Wait until that many subscribe to the images."""
        while self._image_publisher.get_subscription_count() < count:
            self.spin_for(0.05)

    def wait_for_answer(self, timeout: float) -> bool:
        """Wait for a message on the answering topic; False when none came in `timeout` s."""
        end = time.monotonic() + timeout
        while not self._answered and time.monotonic() < end:
            rclpy.spin_once(self, timeout_sec=max(0.0, min(0.1, end - time.monotonic())))
        return self._answered

    def spin_for(self, seconds: float) -> None:
        """Serve callbacks for a while; ends early only by an interrupt."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=min(left, 0.1))

    def _on_answer(self, message: Image) -> None:
        self._answered |= message.header.stamp in self._awaited


def main(args: Sequence[str] | None = None) -> int:
    """Run the executable `image_source`; returns its exit code."""
    arguments = list(sys.argv if args is None else ['image_source', *args])
    os.environ.update(large_images_profile(os.environ))
    try:
        options = parser().parse_args(remove_ros_args(arguments)[1:])
        rclpy.init(args=arguments)
    except (RuntimeError, ValueError) as error:
        print(f'image_source: {explain_arguments(arguments, error)}', file=sys.stderr)
        return 1
    try:
        return _run(options)
    except (DepthClipError, NameValidationException) as error:
        print(f'image_source: {error}', file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except RuntimeError:
        if rclpy.ok():
            raise
        return 0  # an interrupt has ended the context before a picture was published
    finally:
        with suppress(KeyboardInterrupt):
            rclpy.try_shutdown()


def parser() -> argparse.ArgumentParser:
    """Command line of the executable."""
    parser = argparse.ArgumentParser(
        prog='image_source', description='Publish pictures as a camera would, on image and '
        'camera_info. Without a source: rendered rooms, endlessly.')
    parser.add_argument('images', nargs='*', metavar='FILE_OR_FOLDER',
                        help='pictures, in this order; folders by name')
    parser.add_argument('--video', metavar='FILE', help='frames of a video')
    parser.add_argument('--webcam', type=whole, metavar='N', help='live pictures of /dev/videoN')
    parser.add_argument('--rate', type=positive, default=10.0, metavar='HZ',
                        help='pictures a second, at most (default %(default)s)')
    parser.add_argument('--loop', action='store_true', help='begin again at the end')
    parser.add_argument('--compressed', action='store_true',
                        help='publish JPEG on image/compressed')
    calibration = parser.add_mutually_exclusive_group()
    calibration.add_argument(
        '--fov', type=positive, metavar='DEGREES', help='horizontal field of view; without it and '
        f'without --camera-info {BUILTIN_HFOV:g} is guessed, which leaves depth as it is')
    calibration.add_argument('--camera-info', metavar='YAML',
                             help='calibration as the ROS tool camera_calibration writes it')
    parser.add_argument('--frame-id', default='camera_color_optical_frame', metavar='FRAME',
                        help='frame of the headers (default %(default)s)')
    parser.add_argument('--wait', type=whole, nargs='?', const=1, default=0, metavar='N',
                        help='send nothing before N subscribers listen (default 1)')
    parser.add_argument('--answer', metavar='TOPIC', help='send the next picture only after an '
                        'Image with the stamp of the last one came on TOPIC')
    return parser


def open_source(
    options: argparse.Namespace, skip: Callable[[ImageError], None],
) -> Iterator[Picture]:
    """Pictures that the command line asks for; `skip` is told of unreadable files.

    Raises:
        ImageError: more than one source, or a missing one.

    """
    chosen = [name for name in ('images', 'video', 'webcam')
              if getattr(options, name) not in (None, [])]
    if len(chosen) > 1:
        raise ImageError('several sources', f'Give one source, not {" and ".join(chosen)}.')
    if options.images:
        return file_frames(picture_files(options.images, _say), skip, loop=options.loop)
    if options.video:
        return video_frames(options.video, loop=options.loop)
    if options.webcam is not None:
        return webcam_frames(options.webcam)
    if options.camera_info:
        raise ImageError('several sources', 'The built-in rooms have a camera of their own: leave '
                         '--camera-info away, or give pictures.')
    return builtin_frames(_say, _field_of_view(options))


def _say(text: str) -> None:
    print(f'image_source: {text}', flush=True)


def _run(options: argparse.Namespace) -> int:
    skipped: list[ImageError] = []

    def skip(error: ImageError) -> None:
        skipped.append(error)
        print(f'image_source: left out: {error}', file=sys.stderr)

    frames = open_source(options, skip)
    source = ImageSource(options)
    start = time.monotonic()
    try:
        source.wait_for_subscribers(options.wait)
        start = due = time.monotonic()
        for picture in frames:
            source.spin_for(due - time.monotonic())
            _publish(source, picture, answer=bool(options.answer))
            # A late source goes on from now: it does not send a burst to catch up.
            due = max(due + 1 / options.rate, time.monotonic())
        # What was sent last is still on its way to slow subscribers.
        source.spin_for(0.5)
    finally:
        seconds = max(time.monotonic() - start, 1e-9)
        print(f'image_source: published {source.published} pictures in {seconds:.1f} s'
              + (f', {len(skipped)} files are no images' if skipped else ''), flush=True)
    return 1 if skipped else 0


def _publish(source: ImageSource, picture: Picture, *, answer: bool) -> None:
    source.publish(picture)
    while answer and not source.wait_for_answer(ANSWER_TIMEOUT):
        source.get_logger().warning(  # type: ignore[no-untyped-call]
            f'No answer in {ANSWER_TIMEOUT:g} s; sending the picture again.')
        source.publish(picture, again=True)


def _is_builtin(options: argparse.Namespace) -> bool:
    return not options.images and options.video is None and options.webcam is None


def _field_of_view(options: argparse.Namespace) -> float:
    # NYU's where nobody says: a guess that changes the scale of depth would be worse than none.
    return BUILTIN_HFOV if options.fov is None else float(options.fov)


if __name__ == '__main__':
    sys.exit(main())
