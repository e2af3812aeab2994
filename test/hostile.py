# SPDX-License-Identifier: Apache-2.0
"""Messages that a node must survive, of many kinds, made from good ones by a seeded generator.

A kind says what it is, on which topic it goes, and what the node must do with it: count it as
rejected, or answer it although it looks odd. Where both are right (a bit that fell over may hit a
pixel or a length), either will do, but never silence. What the decoder says of each fault is the
matter of test_image_io.py and test_decoder_properties.py; here are those that the middleware, the
log and the account must bear.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import cv2
import numpy as np
from clip_standin import synthetic_rgb
from rclpy.serialization import serialize_message
from ros_harness import camera_info, image
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

RAW, JPEG, INFO = 'image', 'image/compressed', 'camera_info'
REJECTED, ANSWERED, EITHER = 'rejected', 'answered', 'either'
TYPES = {RAW: Image, JPEG: CompressedImage, INFO: CameraInfo}

HEIGHT, WIDTH = 60, 80
RGB = synthetic_rgb(3, HEIGHT, WIDTH)
TOP = 2**32 - 1
MEGABYTE = 10**6
ESCAPES = '\x1b[2J\r\n[FATAL] [0] [x]: y'


class Kind(NamedTuple):
    """One way to attack.

    Attributes:
        topic: where it goes.
        make: from a generator of random numbers and a header with a stamp of its own; a message
            or its bytes.
        outcome: what must become of it.

    """

    topic: str
    make: Callable[[Random, Any], Any]
    outcome: str = REJECTED


def good_image(_random, header):
    return image(header, RGB, 'rgb8')


def good_jpeg(_random, header):
    return file_of(encoded('.jpg', RGB[..., ::-1]), 'rgb8; jpeg compressed bgr8')(None, header)


def good_info(_random, header):
    return camera_info(header, WIDTH, HEIGHT)


def encoded(extension, pixels):
    done, data = cv2.imencode(extension, np.ascontiguousarray(pixels))
    assert done
    return data.tobytes()


def with_fields(make, **changes):
    """A good message but for these fields; a function gets the generator and the message."""
    def changed(random, header):
        message = make(random, header)
        for name, value in changes.items():
            setattr(message, name, value(random, message) if callable(value) else value)
        return message
    return changed


def with_header(**changes):
    """A good image whose header is odd."""
    def make(random, header):
        for name, value in changes.items():
            setattr(header if name == 'frame_id' else header.stamp, name,
                    value(random) if callable(value) else value)
        return good_image(random, header)
    return make


def with_data(size):
    def make(random, header):
        message = good_image(random, header)
        wanted = size(random, len(message.data))
        message.data.extend(bytes(max(0, wanted - len(message.data))))
        del message.data[wanted:]
        return message
    return make


def raw(outcome=REJECTED, **changes):
    return Kind(RAW, with_fields(good_image, **changes), outcome)


def pixels_of(encoding, channels, dtype=np.uint8):
    """A picture of any size in this encoding."""
    def make(random, header):
        shape = (2 * random.randint(2, 70), 2 * random.randint(2, 70), channels)
        pixels = np.random.default_rng(random.getrandbits(32)).integers(
            0, np.iinfo(dtype).max, shape[:2 if channels == 1 else 3], dtype, endpoint=True)
        return image(header, pixels, encoding)
    return Kind(RAW, make, ANSWERED)


def strip(height, width):
    pixels = RGB[:1, :1].repeat(height, 0).repeat(width, 1)
    return Kind(RAW, lambda _random, header: image(header, pixels, 'rgb8'), ANSWERED)


IMAGES = {
    'no data': Kind(RAW, with_data(lambda *_: 0)),
    'data cut off': Kind(RAW, with_data(lambda random, size: random.randint(2, size - 1))),
    'data too long': Kind(RAW, with_data(lambda random, size: size + random.randint(1, 5000))),
    'width and height 0': raw(width=0, height=0, step=0),
    'size that wraps at 32 bits': raw(height=2**31, step=2**31),
    'step too small beside dense rows': raw(
        ANSWERED, step=lambda r, m: r.randint(1, m.step - 1)),
    'encoding of 1 MB': raw(encoding='x' * MEGABYTE),
    'encoding with control characters': raw(encoding=ESCAPES),
    'encoding of fewer channels': raw(EITHER, encoding='mono8'),
    'size changes: rgb8': pixels_of('rgb8', 3),
    'encoding changes: rgb16': pixels_of('rgb16', 3, np.uint16),
    'encoding changes: yuyv': pixels_of('yuyv', 2),
    'one pixel': strip(1, 1),
    'stamp below zero': Kind(RAW, with_header(sec=lambda r: -r.randint(1, 2**31)), EITHER),
    'nanoseconds above a second': Kind(RAW, with_header(
        nanosec=lambda r: r.randint(10**9, TOP)), EITHER),
    'stamp jumps ahead': Kind(RAW, with_header(
        sec=lambda r: r.randint(10**9, 2 * 10**9)), ANSWERED),
    'no frame_id': Kind(RAW, with_header(frame_id=''), ANSWERED),
    'frame_id with control characters': Kind(RAW, with_header(frame_id=ESCAPES), EITHER),
}


# Serialised garbage ----------------------------------------------------------------------------

def cut(random, raw):
    return raw[:random.randint(4, len(raw) - 5)]


def noise(random, raw):
    return raw[:4] + random.randbytes(random.randint(0, 4000))


def flipped(random, raw):
    """Some bits of what is not pixels fall over."""
    for _ in range(random.randint(1, 4)):
        raw[random.randrange(min(len(raw), 90))] ^= 1 << random.randrange(8)
    return raw


def longer(random, raw):
    return raw + random.randbytes(random.randint(8, 500))


def filled(random, raw):
    """One of the first lengths and numbers has another value."""
    place = 12 + 4 * random.randrange(8)
    raw[place:place + 4] = struct.pack('<I', random.choice([0, 2**31, TOP]))
    return raw


def as_it_is(_random, raw):
    return raw


def garbage(topic, make, spoil, outcome=EITHER):
    """The bytes of a message, spoilt."""
    return Kind(topic, lambda random, header: bytes(
        spoil(random, bytearray(serialize_message(make(random, header))))), outcome)


GARBAGE = {
    **{f'{topic} message {spoil.__name__}': garbage(
        topic, make, spoil, REJECTED if spoil is cut or (
            spoil is noise and topic != JPEG) else EITHER)
       for topic, make in ((RAW, good_image), (JPEG, good_jpeg), (INFO, good_info))
       for spoil in (cut, noise, flipped, filled)},
    'image message longer': garbage(RAW, good_image, longer),
    'image message in big endian that is little': garbage(
        RAW, good_image, lambda _, raw: bytes(4) + raw[4:], REJECTED),
    'image message of 4 bytes': Kind(RAW, lambda *_: b'\x00\x01\x00\x00'),
    'image message with an encoding that is no text': garbage(
        RAW, good_image, lambda _, raw: raw.replace(b'rgb8', b'\xff\xfe\xc3\x28'), REJECTED),
    'a camera_info as image': garbage(RAW, good_info, as_it_is, REJECTED),
    'an image as camera_info': garbage(INFO, good_image, as_it_is, REJECTED),
}


# CompressedImage -------------------------------------------------------------------------------

def file_of(data, described='jpeg'):
    """A compressed image of these bytes; a function gets the generator."""
    def make(random, header):
        message = CompressedImage(header=header, format=described)
        message.data.frombytes(data(random) if callable(data) else data)
        return message
    return make


def packed(data, described='jpeg', outcome=REJECTED):
    return Kind(JPEG, file_of(data, described), outcome)


def claiming(extension, width, height):
    """A file whose header claims another size."""
    data = bytearray(encoded(extension, RGB))
    if extension == '.png':
        data[16:24] = struct.pack('>II', width, height)
    else:
        place = data.find(b'\xff\xc0')
        data[place + 5:place + 9] = struct.pack('>HH', height, width)
    return bytes(data)


def damaged(extension, first, last):
    """A file with a byte in that part of it (from 0 to 1) replaced."""
    def make(random):
        data = bytearray(encoded(extension, RGB))
        place = random.randrange(int(first * len(data)), int(last * len(data)))
        data[place] = random.randrange(256)
        return bytes(data)
    return make


def shorter(extension):
    data = encoded(extension, RGB)
    return lambda random: data[:random.randint(9, len(data) - 13)]


COMPRESSED = {
    'no compressed data': packed(b''),
    'jpeg cut off': packed(shorter('.jpg')),
    'png cut off': packed(shorter('.png')),
    'jpeg with damaged data': packed(damaged('.jpg', 0.5, 0.9), outcome=EITHER),
    'png with damaged data': packed(damaged('.png', 0.0, 0.9), outcome=EITHER),
    'noise as compressed data': packed(lambda r: r.randbytes(r.randint(1, 5000))),
    'jpeg that claims 60000x17000': packed(claiming('.jpg', 60000, 17000)),
    'png that claims 2^31-1 squared': packed(claiming('.png', 2**31 - 1, 2**31 - 1)),
    'floats in a tiff': packed(encoded('.tiff', RGB.astype(np.float32))),
    'format with control characters': packed(b'nothing', ESCAPES),
    'format says nothing': packed(encoded('.jpg', RGB), '', ANSWERED),
    'format changes: png': packed(encoded('.png', RGB), 'rgb8; png compressed bgr8', ANSWERED),
    'format changes: grey jpeg': packed(encoded('.jpg', RGB[..., 0]), 'mono8; jpeg', ANSWERED),
}


# CameraInfo ------------------------------------------------------------------------------------

def info(outcome=REJECTED, **changes):
    return Kind(INFO, with_fields(good_info, **changes), outcome)


def matrix(fx, cx=40.0, fy=60.0, cy=30.0):
    return [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]


CAMERA_INFOS = {
    'K of zeros': info(k=[0.0] * 9),
    'K with NaN': info(k=matrix(math.nan)),
    'D with infinity': info(d=[0.0, math.inf, 0.0, 0.0, 0.0]),
    'D of 100,000 coefficients': info(d=[0.1] * 100_000),
    'D at random, rational': info(
        EITHER, distortion_model='rational_polynomial',
        d=lambda r, _: [r.gauss(0, 10.0 ** r.randint(-3, 40)) for _ in range(8)]),
    'lens with control characters': info(distortion_model=ESCAPES, d=[0.1] * 5),
    'camera_info of another size': info(width=lambda r, _: r.randint(81, 4000)),
    'camera_info of size 2^32-1': info(width=TOP, height=TOP),
    'binning 2^32-1': info(binning_x=TOP, binning_y=TOP),
}

KINDS = {**IMAGES, **GARBAGE, **COMPRESSED, **CAMERA_INFOS}
