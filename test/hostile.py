# SPDX-License-Identifier: Apache-2.0
"""Messages that a node must survive, of many kinds, made from good ones by a seeded generator.

A kind says what it is, on which topic it goes, and what the node must do with it: count it as
rejected, or answer it although it looks odd. Where both are right (a bit that fell over may hit a
pixel or a length), either will do, but never silence.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import cv2
import numpy as np
from clip_standin import synthetic_rgb
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rclpy.serialization import serialize_message
from ros_harness import camera_info, image
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu

RAW, JPEG, INFO, PARAMETER = 'image', 'image/compressed', 'camera_info', 'parameter'
REJECTED, ANSWERED, EITHER = 'rejected', 'answered', 'either'

HEIGHT, WIDTH = 60, 80
RGB = synthetic_rgb(3, HEIGHT, WIDTH)
TOP = 2**32 - 1
MEGABYTE = 10**6


class Kind(NamedTuple):
    """One way to attack.

    Attributes:
        topic: where it goes.
        make: from a generator of random numbers and a header with a stamp of its own; a message
            or its bytes, for `PARAMETER` a list of parameters.
        outcome: what must become of it.

    """

    topic: str
    make: Callable[[Random, Any], Any]
    outcome: str = REJECTED


def changed(message, **changes):
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def good_image(_random, header):
    return image(header, RGB, 'rgb8')


def good_jpeg(_random, header):
    return compressed(header, encoded('.jpg', RGB[..., ::-1]), 'rgb8; jpeg compressed bgr8')


def good_info(_random, header):
    return camera_info(header, WIDTH, HEIGHT)


def compressed(header, data, described='jpeg'):
    message = CompressedImage(header=header, format=described)
    message.data.frombytes(bytes(data))
    return message


def encoded(extension, pixels, *options):
    done, data = cv2.imencode(extension, np.ascontiguousarray(pixels), *options)
    assert done
    return data.tobytes()


# Image -----------------------------------------------------------------------------------------

def with_fields(**changes):
    """A good image but for these fields; a function gets the generator and the image."""
    def make(random, header):
        message = good_image(random, header)
        return changed(message, **{name: value(random, message) if callable(value) else value
                                   for name, value in changes.items()})
    return make


def with_data(size):
    def make(random, header):
        message = good_image(random, header)
        wanted = size(random, len(message.data))
        if wanted < len(message.data):
            del message.data[wanted:]
        else:
            message.data.extend(bytes(wanted - len(message.data)))
        return message
    return make


def with_header(**changes):
    """A good image whose header is odd."""
    def make(random, header):
        for name, value in changes.items():
            setattr(header if name == 'frame_id' else header.stamp, name,
                    value(random) if callable(value) else value)
        return good_image(random, header)
    return make


def pixels_of(encoding, channels, dtype=np.uint8, even=False):
    """A picture of any size in this encoding."""
    def make(random, header):
        height, width = random.randint(3, 70), random.randint(3, 70)
        if even:
            height, width = 2 * height, 2 * width
        generator = np.random.default_rng(random.getrandbits(32))
        shape = (height, width) if channels == 1 else (height, width, channels)
        pixels = generator.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
        return image(header, pixels, encoding)
    return make


def strip(height, width):
    return lambda random, header: image(header, RGB[:1, :1].repeat(height, 0).repeat(width, 1),
                                        'rgb8')


def planar(_random, header):
    message = image(header, np.full((90, 80), 120, np.uint8), 'nv12')
    return changed(message, height=60)


IMAGES = {
    'no data': Kind(RAW, with_data(lambda *_: 0)),
    'one byte of data': Kind(RAW, with_data(lambda *_: 1)),
    'data cut off': Kind(RAW, with_data(lambda random, size: random.randint(2, size - 1))),
    'data too long': Kind(RAW, with_data(lambda random, size: size + random.randint(1, 5000))),
    'width 0': Kind(RAW, with_fields(width=0)),
    'height 0': Kind(RAW, with_fields(height=0)),
    'width and height 0': Kind(RAW, with_fields(width=0, height=0, step=0)),
    'width 2^32-1': Kind(RAW, with_fields(width=TOP)),
    'height 2^32-1': Kind(RAW, with_fields(height=TOP)),
    'both 2^32-1': Kind(RAW, with_fields(width=TOP, height=TOP, step=TOP)),
    'row that wraps at 32 bits': Kind(RAW, with_fields(width=0x55555556, step=240)),
    'size that wraps at 32 bits': Kind(RAW, with_fields(height=2**31, step=2**31)),
    'another width': Kind(RAW, with_fields(width=lambda r, m: r.randint(81, 5000))),
    'another height': Kind(RAW, with_fields(height=lambda r, m: r.choice([*range(1, 60), 61]))),
    'step 0': Kind(RAW, with_fields(step=0)),
    'step too small': Kind(RAW, with_fields(step=lambda r, m: r.randint(1, m.step - 1))),
    'step too large': Kind(RAW, with_fields(step=lambda r, m: r.randint(m.step + 1, 10**6))),
    'step 2^32-1': Kind(RAW, with_fields(step=TOP)),
    'no encoding': Kind(RAW, with_fields(encoding='')),
    'unknown encoding': Kind(RAW, with_fields(encoding=lambda r, m: f'rgb{r.randint(9, 99)}')),
    'encoding in capitals': Kind(RAW, with_fields(encoding='RGB8')),
    'encoding of 1 MB': Kind(RAW, with_fields(encoding='x' * MEGABYTE)),
    'encoding with control characters': Kind(RAW, with_fields(encoding='\x1b[2J\r\n[FATAL] x')),
    'encoding of a depth image': Kind(RAW, with_fields(encoding='32FC1')),
    'encoding of 64-bit numbers': Kind(RAW, with_fields(encoding='64FC4')),
    'encoding of more channels': Kind(RAW, with_fields(encoding='rgba16')),
    'encoding of fewer channels': Kind(RAW, with_fields(encoding='mono8'), EITHER),
    'nv12 of odd size': Kind(RAW, with_fields(encoding='nv12', width=79, height=59)),
    'yuv422 of odd width': Kind(RAW, with_fields(encoding='yuv422', width=79, step=158)),
    'bayer of 2x2': Kind(RAW, lambda r, h: image(h, RGB[:2, :2, 0], 'bayer_rggb8')),
    'byte order 255': Kind(RAW, with_fields(is_bigendian=255), ANSWERED),
    'big-endian 16 bits': Kind(RAW, lambda r, h: changed(
        pixels_of('mono16', 1, np.uint16)(r, h), is_bigendian=1), ANSWERED),
    'padded rows': Kind(RAW, lambda r, h: changed(
        image(h, np.dstack([RGB] * 2).reshape(HEIGHT, -1), 'rgb8'), width=WIDTH), ANSWERED),
    'size changes: rgb8': Kind(RAW, pixels_of('rgb8', 3), ANSWERED),
    'encoding changes: bgra8': Kind(RAW, pixels_of('bgra8', 4), ANSWERED),
    'encoding changes: rgb16': Kind(RAW, pixels_of('rgb16', 3, np.uint16), ANSWERED),
    'encoding changes: mono8': Kind(RAW, pixels_of('mono8', 1), ANSWERED),
    'encoding changes: bayer_grbg16': Kind(
        RAW, pixels_of('bayer_grbg16', 1, np.uint16, even=True), ANSWERED),
    'encoding changes: yuyv': Kind(RAW, pixels_of('yuyv', 2, even=True), ANSWERED),
    'encoding changes: nv12': Kind(RAW, planar, ANSWERED),
    'one pixel': Kind(RAW, strip(1, 1), ANSWERED),
    'one row of 4000': Kind(RAW, strip(1, 4000), ANSWERED),
    'one column of 4000': Kind(RAW, strip(4000, 1), ANSWERED),
    'stamp below zero': Kind(RAW, with_header(sec=lambda r: -r.randint(1, 2**31)), EITHER),
    'stamp at the end of time': Kind(RAW, with_header(
        sec=2**31 - 1, nanosec=lambda r: r.randrange(10**9)), EITHER),
    'nanoseconds above a second': Kind(RAW, with_header(
        nanosec=lambda r: r.randint(10**9, TOP)), EITHER),
    'stamp zero': Kind(RAW, with_header(sec=0, nanosec=0), EITHER),
    'stamp goes back': Kind(RAW, with_header(
        sec=lambda r: r.randint(0, 900), nanosec=lambda r: r.randrange(10**9)), ANSWERED),
    'stamp jumps ahead': Kind(RAW, with_header(
        sec=lambda r: r.randint(10**9, 2 * 10**9)), ANSWERED),
    'no frame_id': Kind(RAW, with_header(frame_id=''), ANSWERED),
    'frame_id of 100 kB': Kind(RAW, with_header(frame_id='f' * 100_000), EITHER),
    'frame_id with control characters': Kind(RAW, with_header(
        frame_id='\x1b[2J\n[FATAL] [0] [x]: y'), EITHER),
}


# Serialised garbage ----------------------------------------------------------------------------

def raw_bytes(make, spoil):
    """The bytes of a message, spoilt."""
    return lambda random, header: bytes(
        spoil(random, bytearray(serialize_message(make(random, header)))))


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


def filled(value):
    """Every length and number of the first fields has this value."""
    def spoil(random, raw):
        place = 12 + 4 * random.randrange(8)
        raw[place:place + 4] = struct.pack('<I', value)
        return raw
    return spoil


def replaced(found, by):
    """These bytes, as many, stand instead of those."""
    return lambda random, raw: raw.replace(found, by)


def encapsulation(by):
    return lambda random, raw: by + raw[4:]


GARBAGE = {
    'image message cut off': Kind(RAW, raw_bytes(good_image, cut)),
    'image message of noise': Kind(RAW, raw_bytes(good_image, noise)),
    'image message with bits flipped': Kind(RAW, raw_bytes(good_image, flipped), EITHER),
    'image message with more behind': Kind(RAW, raw_bytes(good_image, longer), EITHER),
    'image message with a length of 2^32-1': Kind(RAW, raw_bytes(good_image, filled(TOP)), EITHER),
    'image message with a length of 2^31': Kind(RAW, raw_bytes(good_image, filled(2**31)), EITHER),
    'image message with a length of 0': Kind(RAW, raw_bytes(good_image, filled(0)), EITHER),
    'image message of another encapsulation': Kind(
        RAW, raw_bytes(good_image, encapsulation(b'\x00\x07\x00\x00')), EITHER),
    'image message in big endian that is little': Kind(
        RAW, raw_bytes(good_image, encapsulation(b'\x00\x00\x00\x00'))),
    'image message of 4 bytes': Kind(RAW, lambda r, h: b'\x00\x01\x00\x00'),
    'image message with a frame_id that is no text': Kind(RAW, raw_bytes(
        lambda r, h: image(changed(h, frame_id='camera'), RGB, 'rgb8'),
        replaced(b'camera', b'\xff\xfe\xfd\xc3\x28\x80')), EITHER),
    'image message with an encoding that is no text': Kind(
        RAW, raw_bytes(good_image, replaced(b'rgb8', b'\xff\xfe\xc3\x28'))),
    'a camera_info as image': Kind(RAW, raw_bytes(good_info, lambda r, raw: raw)),
    'an Imu as image': Kind(RAW, lambda r, h: serialize_message(Imu(header=h))),
    'compressed message cut off': Kind(JPEG, raw_bytes(good_jpeg, cut)),
    'compressed message of noise': Kind(JPEG, raw_bytes(good_jpeg, noise), EITHER),
    'compressed message with bits flipped': Kind(JPEG, raw_bytes(good_jpeg, flipped), EITHER),
    'compressed message with a length of 2^32-1': Kind(
        JPEG, raw_bytes(good_jpeg, filled(TOP)), EITHER),
    'camera_info message cut off': Kind(INFO, raw_bytes(good_info, cut)),
    'camera_info message of noise': Kind(INFO, raw_bytes(good_info, noise)),
    'camera_info message with bits flipped': Kind(INFO, raw_bytes(good_info, flipped), EITHER),
    'camera_info message with a length of 2^32-1': Kind(
        INFO, raw_bytes(good_info, filled(TOP)), EITHER),
    'an image as camera_info': Kind(INFO, raw_bytes(good_image, lambda r, raw: raw)),
}


# CompressedImage -------------------------------------------------------------------------------

def file_of(data, described='jpeg'):
    """A compressed image of these bytes; a function gets the generator."""
    return lambda random, header: compressed(
        header, data(random) if callable(data) else data, described)


def png(width, height, depth=8, color=2, rows=b''):
    """PNG file that claims a size, with whatever rows."""
    def chunk(kind, data):
        body = kind + data
        return struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack(
        '>IIBBBBB', width, height, depth, color, 0, 0, 0)) + chunk(
            b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def blank_png(side):
    """A real PNG of one bit a pixel: few bytes, many pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + -(-side // 8))
    body = b''.join([packer.compress(row * 100) for _ in range(side // 100)]) + packer.flush()
    whole = png(side, side, 1, 0)
    start = whole.index(b'IDAT') - 4
    chunk = b'IDAT' + body
    end = b'\x00\x00\x00\x00IEND' + struct.pack('>I', zlib.crc32(b'IEND'))
    return whole[:start] + struct.pack('>I', len(body)) + chunk \
        + struct.pack('>I', zlib.crc32(chunk)) + end


def resized_jpeg(width, height):
    """A JPEG whose header claims another size."""
    data = bytearray(encoded('.jpg', RGB))
    for marker in (b'\xff\xc0', b'\xff\xc2'):
        place = data.find(marker)
        if place > 0:
            data[place + 5:place + 9] = struct.pack('>HH', height, width)
    return bytes(data)


def damaged(extension, first, last):
    """A file with a byte in that part of it (from 0 to 1) replaced."""
    def make(random):
        data = bytearray(encoded(extension, RGB))
        data[random.randrange(int(first * len(data)), int(last * len(data)))] = random.randrange(
            256)
        return bytes(data)
    return make


def shorter(extension):
    def make(random):
        data = encoded(extension, RGB)
        return data[:random.randint(9, len(data) - 13)]
    return make


HUGE = blank_png(20000)
LARGE = blank_png(6000)
PAM = (b'P7\nWIDTH 4\nHEIGHT 4\nDEPTH 2\nMAXVAL 255\nTUPLTYPE GRAYSCALE_ALPHA\nENDHDR\n'
       + bytes(range(32)))
BMP = encoded('.bmp', RGB)
COMPRESSED = {
    'no compressed data': Kind(JPEG, file_of(b'')),
    'jpeg cut off': Kind(JPEG, file_of(shorter('.jpg'))),
    'png cut off': Kind(JPEG, file_of(shorter('.png'))),
    'jpeg with a damaged header': Kind(JPEG, file_of(damaged('.jpg', 0.0, 0.2)), EITHER),
    'jpeg with damaged data': Kind(JPEG, file_of(damaged('.jpg', 0.5, 0.9)), EITHER),
    'png with a damaged header': Kind(JPEG, file_of(damaged('.png', 0.0, 0.005)), EITHER),
    'png with damaged data': Kind(JPEG, file_of(damaged('.png', 0.2, 0.9)), EITHER),
    'noise as compressed data': Kind(JPEG, file_of(lambda r: r.randbytes(r.randint(1, 5000)))),
    'noise behind a jpeg start': Kind(JPEG, file_of(
        lambda r: b'\xff\xd8\xff\xe0' + r.randbytes(500)), EITHER),
    'jpeg that claims 60000x17000': Kind(JPEG, file_of(resized_jpeg(60000, 17000))),
    'jpeg that claims 65535x65535': Kind(JPEG, file_of(resized_jpeg(65535, 65535))),
    'jpeg that claims 0x0': Kind(JPEG, file_of(resized_jpeg(0, 0))),
    'png that claims 2^31-1 squared': Kind(JPEG, file_of(png(2**31 - 1, 2**31 - 1))),
    'png that claims 0x0': Kind(JPEG, file_of(png(0, 0))),
    'png without rows': Kind(JPEG, file_of(png(64, 64)), EITHER),
    'png with too many rows': Kind(JPEG, file_of(png(4, 4, rows=bytes(10**6))), EITHER),
    'png of 20000x20000': Kind(JPEG, file_of(HUGE)),
    'pam of 2 channels': Kind(JPEG, file_of(PAM)),
    'pam that claims 10^9 rows': Kind(JPEG, file_of(
        PAM.replace(b'HEIGHT 4', b'HEIGHT 1000000000'))),
    'pgm that claims 50000x50000': Kind(JPEG, file_of(b'P5\n50000 50000\n255\n' + bytes(100))),
    'bmp that claims 2^31-1 squared': Kind(JPEG, file_of(
        BMP[:18] + struct.pack('<ii', 2**31 - 1, 2**31 - 1) + BMP[26:])),
    'floats in a tiff': Kind(JPEG, file_of(encoded('.tiff', RGB.astype(np.float32)))),
    'radiance picture': Kind(JPEG, file_of(encoded('.hdr', RGB.astype(np.float32)))),
    'depth as compressed image': Kind(JPEG, file_of(
        encoded('.png', RGB[..., 0].astype(np.uint16)), '16UC1; compressedDepth png')),
    'format of 1 MB': Kind(JPEG, file_of(b'nothing', 'x' * MEGABYTE)),
    'format with control characters': Kind(JPEG, file_of(b'nothing', '\x1b[2J\r\n[FATAL] x')),
    'format says rgb8, data is grey': Kind(JPEG, file_of(
        encoded('.jpg', RGB[..., 0]), 'rgb8; jpeg compressed rgb8'), EITHER),
    'format says rgb8, data has 16 bits and alpha': Kind(JPEG, file_of(
        encoded('.png', np.dstack([RGB, RGB[..., :1]]).astype(np.uint16) * 257),
        'rgb8; png compressed rgb8'), EITHER),
    'format says rgb8, data is a pam of 2 channels': Kind(JPEG, file_of(
        PAM, 'rgb8; jpeg compressed rgb8')),
    'format says bayer, data is in colour': Kind(JPEG, file_of(
        encoded('.png', RGB), 'bayer_rggb8; png compressed'), EITHER),
    'format says nothing': Kind(JPEG, file_of(encoded('.jpg', RGB), ''), ANSWERED),
    'format changes: png': Kind(JPEG, file_of(encoded('.png', RGB), 'rgb8; png compressed bgr8'),
                                ANSWERED),
    'format changes: webp': Kind(JPEG, file_of(encoded('.webp', RGB), 'webp'), EITHER),
    'format changes: bmp': Kind(JPEG, file_of(encoded('.bmp', RGB), 'bmp'), EITHER),
    'format changes: grey jpeg': Kind(JPEG, file_of(encoded('.jpg', RGB[..., 0]), 'mono8; jpeg'),
                                      ANSWERED),
    'size changes: jpeg of one pixel': Kind(JPEG, file_of(encoded('.jpg', RGB[:1, :1])), ANSWERED),
}


# CameraInfo ------------------------------------------------------------------------------------

def info_with(**changes):
    def make(random, header):
        message = good_info(random, header)
        return changed(message, **{name: value(random) if callable(value) else value
                                   for name, value in changes.items()})
    return make


def roi_with(**changes):
    def make(random, header):
        message = good_info(random, header)
        changed(message.roi, **changes)
        return message
    return make


def matrix(*values):
    return [float(value) for value in values]


def lens(model, *coefficients):
    return info_with(distortion_model=model, d=matrix(*coefficients))


CAMERA_INFOS = {
    'K of zeros': Kind(INFO, info_with(k=[0.0] * 9)),
    'K with NaN': Kind(INFO, info_with(k=matrix(math.nan, 0, 40, 0, 60, 30, 0, 0, 1))),
    'K with infinity': Kind(INFO, info_with(k=matrix(60, 0, math.inf, 0, 60, 30, 0, 0, 1))),
    'K with a negative fx': Kind(INFO, info_with(k=matrix(-60, 0, 40, 0, 60, 30, 0, 0, 1))),
    'K with fy 0': Kind(INFO, info_with(k=matrix(60, 0, 40, 0, 0, 30, 0, 0, 1))),
    'K with K[1,0]': Kind(INFO, info_with(k=matrix(60, 0, 40, 60, 60, 30, 0, 0, 1))),
    'K that is singular by its skew': Kind(INFO, info_with(k=matrix(1, 1, 0, 1, 1, 0, 0, 0, 1))),
    'K with another last row': Kind(INFO, info_with(k=matrix(60, 0, 40, 0, 60, 30, 0, 0, 2))),
    'K of 1e-310': Kind(INFO, info_with(
        k=matrix(1e-310, 0, 40, 0, 1e-310, 30, 0, 0, 1)), EITHER),
    'K of 1e308': Kind(INFO, info_with(k=matrix(1e308, 0, 1e308, 0, 1e308, 1e308, 0, 0, 1)),
                       EITHER),
    'K with skew': Kind(INFO, info_with(k=matrix(60, 5, 40, 0, 60, 30, 0, 0, 1)), EITHER),
    'D with NaN': Kind(INFO, lens('plumb_bob', 0, math.nan, 0, 0, 0)),
    'D with infinity': Kind(INFO, lens('plumb_bob', 0, math.inf, 0, 0, 0)),
    'D of 3 coefficients': Kind(INFO, lens('plumb_bob', 0.1, 0.1, 0.1)),
    'D of 100,000 coefficients': Kind(INFO, lens('plumb_bob', *[0.1] * 100_000)),
    'D of 1e300': Kind(INFO, lens('plumb_bob', *[1e300] * 5), EITHER),
    'D of -1e300': Kind(INFO, lens('plumb_bob', *[-1e300] * 5), EITHER),
    'D of 1e154': Kind(INFO, lens('rational_polynomial', *[1e154, -1e154] * 4), EITHER),
    'D of 1e-320': Kind(INFO, lens('plumb_bob', *[1e-320] * 5), EITHER),
    'D at random, rational': Kind(INFO, lambda r, h: lens(
        'rational_polynomial', *[r.gauss(0, 10.0 ** r.randint(-3, 40)) for _ in range(8)])(r, h),
        EITHER),
    'D at random, equidistant': Kind(INFO, lambda r, h: lens(
        'equidistant', *[r.gauss(0, 10.0 ** r.randint(-3, 40)) for _ in range(4)])(r, h), EITHER),
    'D with a tilt of 1e9': Kind(INFO, lens('rational_polynomial', *[0] * 12, 1e9, -1e9), EITHER),
    'unknown lens': Kind(INFO, lens('fisheye62', *[0.1] * 5)),
    'lens of 1 MB': Kind(INFO, lens('x' * MEGABYTE, *[0.1] * 5)),
    'lens with control characters': Kind(INFO, lens('\x1b[2J\r\n[FATAL] x', *[0.1] * 5)),
    'camera_info of size 0': Kind(INFO, info_with(width=0, height=0)),
    'camera_info of another size': Kind(INFO, info_with(width=lambda r: r.randint(81, 4000))),
    'camera_info of size 2^32-1': Kind(INFO, info_with(width=TOP, height=TOP)),
    'R with NaN': Kind(INFO, info_with(r=[math.nan] * 9)),
    'R of zeros': Kind(INFO, info_with(r=[0.0] * 9), EITHER),
    'P with NaN': Kind(INFO, info_with(p=[math.nan] * 12)),
    'P of zeros': Kind(INFO, info_with(p=[0.0] * 12), EITHER),
    'P of 1e308': Kind(INFO, info_with(p=[1e308] * 12), EITHER),
    'binning 2^32-1': Kind(INFO, info_with(binning_x=TOP, binning_y=TOP)),
    'binning of another size': Kind(INFO, info_with(binning_x=2, binning_y=3)),
    'roi outside': Kind(INFO, roi_with(x_offset=70, width=20, height=20)),
    'roi that wraps at 32 bits': Kind(INFO, roi_with(x_offset=TOP, width=80, height=60)),
    'roi without height': Kind(INFO, roi_with(width=20)),
    'camera_info below zero seconds': Kind(INFO, lambda r, h: changed(
        good_info(r, h), header=changed(h, stamp=changed(h.stamp, sec=-5))), EITHER),
}


# Parameters: every one must be refused, with a reason --------------------------------------------

def parameter(name, **value):
    return Parameter(name=name, value=ParameterValue(**value))


def setting(name, kind, **value):
    return Kind(PARAMETER, lambda random, header: [parameter(name, type=kind, **value)])


DOUBLE, DOUBLES = ParameterType.PARAMETER_DOUBLE, ParameterType.PARAMETER_DOUBLE_ARRAY
TEXT, TEXTS = ParameterType.PARAMETER_STRING, ParameterType.PARAMETER_STRING_ARRAY
PARAMETERS = {
    'parameter of type 77': setting('temperature', 77, double_value=1.0),
    'parameter of type 255': setting('bins', 255),
    'temperature 0': setting('temperature', DOUBLE, double_value=0.0),
    'temperature NaN': setting('temperature', DOUBLE, double_value=math.nan),
    'temperature infinite': setting('temperature', DOUBLE, double_value=math.inf),
    'temperature 1e-45': setting('temperature', DOUBLE, double_value=1e-45),
    'temperature of text': setting('temperature', TEXT, string_value='hot'),
    'temperature not set': setting('temperature', ParameterType.PARAMETER_NOT_SET),
    'bins empty': setting('bins', DOUBLES, double_array_value=[]),
    'bins of another number': setting('bins', DOUBLES, double_array_value=[1.0, 2.0]),
    'bins with NaN': setting('bins', DOUBLES, double_array_value=[1.0, math.nan, *range(2, 7)]),
    'bins of 1e39': setting('bins', DOUBLES, double_array_value=[
        1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1e39]),
    'bins descending': setting('bins', DOUBLES, double_array_value=[
        7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]),
    'bins below zero': setting('bins', DOUBLES, double_array_value=[
        -1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]),
    'bins of 100,000': setting('bins', DOUBLES, double_array_value=[
        1.0 + i for i in range(100_000)]),
    'tokens of another number': setting('tokens', TEXTS, string_array_value=['near', 'far']),
    'tokens empty': setting('tokens', TEXTS, string_array_value=[]),
    'token of 1 MB': setting('tokens', TEXTS, string_array_value=['x' * MEGABYTE] * 7),
    'template without a place': setting('templates', TEXTS, string_array_value=['This is far']),
    'template with a stray bracket': setting('templates', TEXTS, string_array_value=['a {} }']),
    'upsampling unknown': setting('upsampling', TEXT, string_value='x' * MEGABYTE),
    'weights while loaded': setting('weights', TEXT, string_value='/dev/zero'),
    'cameras while loaded': setting('cameras', TEXTS, string_array_value=['a', 'b']),
    'input size of 10^9': setting(
        'input_height', ParameterType.PARAMETER_INTEGER, integer_value=10**9),
    'autostart': setting('autostart', ParameterType.PARAMETER_BOOL, bool_value=False),
    'unknown parameter': setting('no_such', DOUBLE, double_value=1.0),
    'parameter without a name': setting('', DOUBLE, double_value=1.0),
    'parameter name of 1 MB': setting('x' * MEGABYTE, DOUBLE, double_value=1.0),
    'tokens and bins that do not fit': Kind(PARAMETER, lambda random, header: [
        parameter('tokens', type=TEXTS, string_array_value=['a', 'b']),
        parameter('bins', type=DOUBLES, double_array_value=[1.0, 2.0, 3.0])]),
}

KINDS = {**IMAGES, **GARBAGE, **COMPRESSED, **CAMERA_INFOS, **PARAMETERS}
TYPES = {RAW: Image, JPEG: CompressedImage, INFO: CameraInfo}
