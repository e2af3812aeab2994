# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
# (rclpy's Node is typed in part only)
"""Publish files, a video, a webcam, or rendered pictures as a camera does.

Publishers (relative names):
    image (sensor_msgs/Image): bgr8
    camera_info (sensor_msgs/CameraInfo): from a calibration file, or a pinhole camera

Both have the same stamp (now) and are reliable with a short history, so that reliable and
sensor-data subscribers match.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from ..arguments import positive, whole
from ..core.errors import ImageError
from ..core.files import printable
from ..messages.image_io import image_fields
from ..node.process import end_process
from .camera_info import BUILTIN_HFOV, Intrinsics, intrinsics_of
from .pictures import (
    Notes,
    builtin_frames,
    file_frames,
    picture_files,
    video_frames,
    webcam_frames,
)
from .process import run, split_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from threading import Event

    from ..drawing.color import Picture

# During discovery an image can be lost: it is sent again after this time.
ANSWER_TIMEOUT = 5.0
FRAME = 'camera_color_optical_frame'
QOS = QoSProfile(depth=2)  # reliable


class ImageSource(Node):
    """Publishes pictures with their camera_info."""

    def __init__(self, options: argparse.Namespace, stop: Event) -> None:
        """Create the publishers.

        Args:
            options: of `parser()`.
            stop: ends every wait when it is set.

        Raises:
            CameraInfoError: the calibration file cannot be used.

        """
        super().__init__('image_source')
        self._options, self._stop = options, stop
        # NYU's by default: another guess would change the scale of depth.
        fov = BUILTIN_HFOV if options.fov is None else options.fov
        self._camera = Intrinsics.from_yaml(options.camera_info) \
            if options.camera_info else fov
        is_file = options.images or options.video or options.webcam is not None
        if is_file and not options.camera_info and options.fov is None:
            self.get_logger().warning(
                f'camera_info is a GUESS: {BUILTIN_HFOV:g} degrees horizontal field of view, no '
                'distortion. Give --fov DEGREES or --camera-info FILE for depth of true scale and '
                'a cloud of true shape.')
        self._images = self.create_publisher(Image, 'image', QOS)
        self._infos = self.create_publisher(CameraInfo, 'camera_info', QOS)
        self._info = CameraInfo()
        self._is_answered = False
        if options.answer:
            self.create_subscription(Image, options.answer, self._on_answer, QOS)
        self.published = 0

    def publish(self, picture: Picture) -> None:
        """Publish a picture (H, W, 3), BGR, and its camera_info, stamped now.

        With --answer it is sent again, with the same stamp, until an answer has that stamp.

        Raises:
            CameraInfoError: the calibration file is for pictures of another size.

        """
        height, width = picture.shape[:2]
        if (self._info.width, self._info.height) != (width, height):
            intrinsics_of(self._camera, width, height).fill(self._info)
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=FRAME)
        self._info.header, self._is_answered = header, False
        image = Image(**image_fields(picture, 'bgr8', header))
        self.published += 1
        while True:
            self._infos.publish(self._info)
            self._images.publish(image)
            if not self._options.answer:
                return
            end = time.monotonic() + ANSWER_TIMEOUT
            while time.monotonic() < end and not self._is_answered and not self._stop.is_set():
                rclpy.spin_once(self, timeout_sec=0.1)
            if self._is_answered or self._stop.is_set():
                return
            self.get_logger().warning(
                f'No answer in {ANSWER_TIMEOUT:g} s; sending the picture again.')

    def wait_for_subscribers(self, count: int) -> None:
        """Wait until the images have `count` subscribers."""
        while self._images.get_subscription_count() < count and not self._stop.is_set():
            self.spin_for(0.05)

    def spin_for(self, seconds: float) -> None:
        """Spin for a time in seconds, or until `stop` is set."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stop.is_set():
            rclpy.spin_once(self, timeout_sec=min(left, 0.1))

    def _on_answer(self, message: Image) -> None:
        self._is_answered |= message.header.stamp == self._info.header.stamp


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='image_source', description='Publish pictures as a camera would, on image and '
        'camera_info. Without a source: rendered rooms, endlessly.')
    source = parser.add_mutually_exclusive_group()
    source.add_argument('images', nargs='*', default=[], metavar='FILE_OR_FOLDER',
                        help='pictures, in this order; folders by name')
    source.add_argument('--video', metavar='FILE', help='frames of a video')
    source.add_argument('--webcam', type=whole, metavar='N', help='live pictures of /dev/videoN')
    add = parser.add_argument
    add('--rate', type=positive, default=10.0, metavar='HZ',
        help='pictures a second, at most (default %(default)s)')
    calibration = parser.add_mutually_exclusive_group()
    calibration.add_argument(
        '--fov', type=positive, metavar='DEGREES', help='horizontal field of view; without it and '
        f'without --camera-info {BUILTIN_HFOV:g} is guessed, which leaves depth as it is')
    calibration.add_argument('--camera-info', metavar='YAML',
                             help='calibration as the ROS tool camera_calibration writes it')
    add('--wait', type=whole, nargs='?', const=1, default=0, metavar='N',
        help='send nothing before N subscribers listen (default 1)')
    add('--answer', metavar='TOPIC', help='send the next picture only after an Image with the '
        'stamp of the last one came on TOPIC')
    return parser


def open_source(
    options: argparse.Namespace, skip: Callable[[ImageError], None], notes: Notes,
) -> Iterator[Picture]:
    """Open the pictures of the command line; `skip` receives the errors of unreadable files.

    `notes` receives notices on peculiar pictures.

    Raises:
        ImageError: a file or folder is missing.

    """
    if options.images:
        return file_frames(picture_files(options.images), skip, notes)
    if options.video:
        return video_frames(options.video, notes)
    if options.webcam is not None:
        return webcam_frames(options.webcam)
    return builtin_frames(lambda text: print(f'image_source: {text}', flush=True),
                          BUILTIN_HFOV if options.fov is None else options.fov)


def main(args: Sequence[str] | None = None) -> int:
    """Run the executable `image_source`; returns its exit code."""
    arguments, ros_arguments = split_arguments(sys.argv[1:] if args is None else args)
    # FFmpeg's messages on damaged frames are cryptic; files that are no video raise ImageError.
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    return run('image_source', lambda stop: _publish(arguments, stop), ros_arguments)


def _publish(arguments: list[str], stop: Event) -> int:
    options = parser().parse_args(arguments)
    skipped: list[ImageError] = []

    def skip(error: ImageError) -> None:
        skipped.append(error)
        print(f'image_source: left out: {error}', file=sys.stderr)

    notes = Notes(lambda text: source.get_logger().warning(printable(text)))
    frames, source = open_source(options, skip, notes), ImageSource(options, stop)
    start = time.monotonic()
    try:
        source.wait_for_subscribers(options.wait)
        start = due = time.monotonic()
        for picture in frames:
            source.spin_for(due - time.monotonic())
            if stop.is_set():
                break
            source.publish(picture)
            # A late source continues from now, without a burst to catch up.
            due = max(due + 1 / options.rate, time.monotonic())
        # The last messages are still on their way to slow subscribers.
        source.spin_for(0.5)
        notes.close()
    finally:
        source.destroy_node()
        seconds = max(time.monotonic() - start, 1e-9)
        print(f'image_source: published {source.published} pictures in {seconds:.1f} s'
              + (f', {len(skipped)} files are no images' if skipped else ''), flush=True)
    return 1 if skipped else 0


if __name__ == '__main__':
    end_process(main())
