# SPDX-License-Identifier: Apache-2.0
"""Throw bytes at what reads messages, until something else than an answer or a reason comes out.

    python tools/fuzz_decoder.py --seconds 600          # as long as you like; nightly: 3600
    python tools/fuzz_decoder.py FINDING                # once more what was found

The bytes are serialised sensor_msgs/Image, CompressedImage and CameraInfo, as the middleware hands
them to the node, and go through the node's own functions. Each must give a picture of the size
that the message states, or rays, or a DataError with a short reason; within its memory. What does
not end, or takes ever so long, is left in the file `last` in the folder (atheris says so itself,
after 20 s).

With atheris (`pip install atheris`) coverage guides the search; without it, a seeded loop mutates
what has given new outcomes. Whatever is found is written to a file. Exit code 1 then.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import mmap
import os
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    import atheris
except ImportError:
    atheris = None

import cv2
import numpy as np
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

with atheris.instrument_imports(include=['depthclip_ros']) if atheris else nullcontext():
    from depthclip_ros.core.distortion import COEFFICIENTS
    from depthclip_ros.core.errors import CameraInfoError, DataError, ImageError
    from depthclip_ros.core.geometry import CameraModel
    from depthclip_ros.node import image_io
    from depthclip_ros.node.calibration import Calibration
    from depthclip_ros.node.messages import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, parse, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_PIXELS = 1 << 20
MAX_BYTES = 1 << 16  # of a message that is made here
MEMORY = 1 << 30  # bytes beyond what the start takes
GRID = 15, 20
PNG_START = b'\x89PNG\r\n\x1a\n'


# What must be true ----------------------------------------------------------------------------


def attempt(function: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    """'' and the result, or the condition under which the input was refused in due form."""
    try:
        return '', function(*arguments)
    except DataError as error:
        refusal = error
    text = str(refusal)
    assert 0 < len(refusal.condition) < 50, refusal.condition
    assert 0 < len(text) < 500, text
    assert '\n' not in text, text
    return refusal.condition, None


def check_picture(rgb: np.ndarray, width: int, height: int) -> None:
    """Check a picture against the size that was stated."""
    assert rgb.shape == (height, width, 3), rgb.shape
    assert rgb.dtype == np.uint8
    assert 0 < width * height <= MAX_PIXELS
    rgb.sum()  # every byte can be read


def check_image(raw: bytes) -> str:
    """Check a raw image: a picture or a reason."""
    condition, image = attempt(parse, read, raw, IMAGE, ImageError)
    if image is None:
        return condition
    condition, rgb = attempt(image_io.to_rgb, image, MAX_PIXELS)
    if rgb is not None:
        check_picture(rgb, image.width, image.height)
    return condition or str(image.encoding)


def check_compressed(raw: bytes) -> str:
    """Check a compressed image: a picture or a reason."""
    condition, message = attempt(parse, read, raw, COMPRESSED_IMAGE, ImageError)
    if message is None:
        return condition
    condition, rgb = attempt(image_io.to_rgb, message, MAX_PIXELS)
    if rgb is not None:
        check_picture(rgb, rgb.shape[1], rgb.shape[0])
    return condition or 'picture'


def check_repaired(raw: bytes) -> str:
    """Check a PNG whose checksums are right, whatever is in it."""
    return check_compressed(with_checksums(raw))


def check_camera_info(raw: bytes) -> str:
    """Check a camera_info: rays that end in their pixels and finite numbers, or a reason."""
    condition, message = attempt(parse, read, raw, CAMERA_INFO, CameraInfoError)
    if message is None:
        return condition
    outcomes = []
    for rectified in (False, True):
        condition, model = attempt(CameraModel.from_info, message, rectified)
        outcomes.append(condition)
        if model is None:
            continue
        calibration = Calibration(read, rectified=rectified)
        calibration.update(raw)
        condition, _ = attempt(calibration.select, model.width, model.height)
        assert not condition, condition
        rays = calibration.rays(*GRID)
        valid = np.isfinite(rays).all(axis=-1)
        assert np.isnan(rays[~valid]).all()
        assert (rays[valid][:, 2] == 1.0).all()
        if np.abs(model.K).max() < 1e4 and np.abs(rays[valid]).max(initial=0.0) < 1e4:
            # float32: a millionth of the ray.
            u = (np.arange(GRID[1]) + 0.5) * model.width / GRID[1] - 0.5
            v = (np.arange(GRID[0]) + 0.5) * model.height / GRID[0] - 0.5
            exact = model.rays(u[None, :], v[:, None])[valid]
            pixels = np.stack(np.broadcast_arrays(u[None, :], v[:, None]), axis=-1)[valid]
            np.testing.assert_allclose(model.project(exact), pixels, rtol=1e-6, atol=1e-5)
        scaled = CameraInfo(**calibration.scaled_fields(640, 480))
        assert np.isfinite([*scaled.k, *scaled.p, *scaled.d, *scaled.r]).all()
        serialize_message(scaled)
    return '|'.join(outcomes)


CHECKS = (check_image, check_compressed, check_repaired, check_camera_info)


def check(data: bytes) -> str:
    """Check one input, whose first byte says what the rest is; give its outcome in short."""
    if not data:
        return ''
    function = CHECKS[data[0] % len(CHECKS)]
    return f'{function.__name__}: {function(data[1:])}'


def with_checksums(raw: bytes) -> bytes:
    """Correct the checksums of a PNG that is somewhere in the bytes."""
    start = raw.find(PNG_START)
    fixed, place = bytearray(raw), start + len(PNG_START)
    while start >= 0 and place + 12 <= len(raw):
        end = place + 12 + int.from_bytes(raw[place : place + 4], 'big')
        if end > len(raw):
            break
        fixed[end - 4 : end] = zlib.crc32(raw[place + 4 : end - 4]).to_bytes(4, 'big')
        place = end
    return bytes(fixed)


# What to begin with ---------------------------------------------------------------------------


def images() -> Iterable[Image]:
    """One of every encoding, some with padded rows."""
    pixels = np.arange(4096, dtype=np.uint32).astype(np.uint8).tobytes()
    for number, encoding in enumerate(image_io.ENCODINGS):
        layout = image_io.ENCODINGS[encoding]
        width, height = 6, 4
        step = width * (layout.channels * layout.bits // 8) + number % 3
        rows = {'nv12': 6, 'nv21': 6, 'nv24': 12}.get(encoding, height)
        message = Image(header=Header(frame_id='eye'), width=width, height=height,
                        encoding=encoding, step=step, is_bigendian=number % 2)
        message.data.frombytes(pixels[: step * rows])
        yield message


def files() -> Iterable[tuple[str, bytes]]:
    """JPEGs and PNGs of several kinds, and their formats."""
    rgb = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8), (24, 16))
    grey, deep = rgb[..., 0], rgb.astype(np.uint16) * 257
    alpha = np.dstack([rgb, grey])
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1]
    for form, extension, pixels, options in (
        ('rgb8; jpeg compressed bgr8', '.jpg', rgb, []),
        ('rgb8; jpeg compressed rgb8', '.jpg', rgb, progressive),
        ('bayer_rggb8; jpeg compressed', '.jpg', grey, [cv2.IMWRITE_JPEG_QUALITY, 20]),
        ('png', '.png', rgb, []), ('bgra8; png compressed bgr8', '.png', alpha, []),
        ('bayer_gbrg16; png compressed', '.png', deep[..., 0], []),
        ('rgb16; png', '.png', deep, []),
        ('mono8; png', '.png', grey, [cv2.IMWRITE_PNG_BILEVEL, 1]),
        ('16UC1; compressedDepth png', '.png', deep[..., 0], []),
        ('tiff', '.bmp', grey[:2, :2], []),
    ):
        yield form, cv2.imencode(extension, pixels, options)[1].tobytes()


def camera_infos() -> Iterable[CameraInfo]:
    """One of every distortion model and number of coefficients."""
    for model, counts in {**COEFFICIENTS, '': (0,)}.items():
        for count in counts:
            message = CameraInfo(width=640, height=480, distortion_model=model)
            message.d = [0.01 * (-1) ** i for i in range(count)]
            message.k = [500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0]
            message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
            message.p = [500.0, 0.0, 320.0, 0.0, 0.0, 500.0, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0]
            message.binning_x, message.roi.width, message.roi.height = count % 3, 320, 240
            yield message


def seeds() -> list[bytes]:
    """Inputs to begin with, each of them good or nearly so."""
    found = [b'\0' + serialize_message(message) for message in images()]
    for form, data in files():
        message = CompressedImage(format=form)
        message.data.frombytes(data)
        found += [kind + serialize_message(message) for kind in (b'\1', b'\2')]
    return found + [b'\3' + serialize_message(message) for message in camera_infos()]


# The search -----------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
           0xFFFFFFFF)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-320, 1e-5, 1e5, 1e155, -1e300, 1e300, float('inf'),
          float('-inf'), float('nan'))


def mutated(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """A few random changes of an input."""
    data = bytearray(data)
    for _ in range(1 << rng.randrange(4)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = rng.randrange(256)
        elif kind == 2:
            data[place:place] = rng.randbytes(1 << rng.randrange(6))
        elif kind == 3:
            del data[place : place + (1 << rng.randrange(8))]
        elif kind == 4:  # a number of the message: 4 bytes for the encapsulation, 1 for the kind
            place = 5 + place // 4 * 4
            data[place : place + 4] = struct.pack(rng.choice('<>') + 'I', rng.choice(NUMBERS))
        elif kind == 5:
            place = 5 + place // 8 * 8 + rng.choice((0, 4))
            data[place : place + 8] = struct.pack('<d', rng.choice(FLOATS))
        elif kind == 6:
            other = rng.choice(pool)
            start = rng.randrange(len(other))
            data[place : place + rng.randrange(64)] = other[start : start + rng.randrange(64)]
        else:  # a size within a JPEG or a PNG
            data[place : place + 2] = struct.pack('>H', rng.choice(NUMBERS[:10]))
        if not data:
            data = bytearray(b'\0')
    return bytes(data[:MAX_BYTES])


def search(
    folder: Path, seed: int, *, seconds: float = math.inf, messages: float = math.inf,
) -> int:
    """Mutate at random what has given new outcomes; give the exit code.

    With a number of messages instead of seconds, the same ones are tried on every machine.
    """
    rng = random.Random(seed)
    pool, outcomes, runs = seeds(), Counter(), 0
    for data in pool:
        outcomes[check(data)] += 1
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + seconds
    with (folder / 'last').open('w+b') as file:  # for what ends the process
        file.truncate(8 + MAX_BYTES)
        last = mmap.mmap(file.fileno(), 8 + MAX_BYTES)
        while runs < messages and time.monotonic() < end:
            data = mutated(rng.choice(pool), pool, rng)
            last[: 8 + len(data)] = struct.pack('<Q', len(data)) + data
            try:
                outcome = check(data)
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
                assert grown * 1024 < MEMORY, f'{grown >> 10} MiB more memory'
            except Exception:  # noqa: BLE001 (whatever it is)
                path = folder / f'finding-{hashlib.sha1(data).hexdigest()[:12]}'
                path.write_bytes(data)
                print(f'{traceback.format_exc()}\nFound after {runs} messages: {path}')
                return 1
            runs += 1
            if outcome not in outcomes:
                pool.append(data)
            outcomes[outcome] += 1
    (folder / 'last').unlink()
    print(f'{runs} messages, {len(outcomes)} outcomes, nothing found')
    for outcome, count in sorted(outcomes.items()):
        print(f'{count:9d}  {outcome}')
    return 0


def guided_search(seconds: float, seed: int, folder: Path) -> None:
    """Let atheris search; it ends the process."""
    corpus = folder / 'corpus'
    corpus.mkdir(exist_ok=True)
    for data in seeds():
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    atheris.Setup([
        sys.argv[0], f'-max_total_time={seconds:.0f}', f'-seed={seed + 1}', '-timeout=20',
        f'-max_len={MAX_BYTES}', '-rss_limit_mb=3000', '-close_fd_mask=2', '-print_final_stats=1',
        f'-artifact_prefix={folder}/finding-', str(corpus)], check)
    atheris.Fuzz()


def main() -> int:
    """Search, or check what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('finding', nargs='*', type=Path, help='check these, and do not search')
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path, help='where findings go; default: a new one')
    parser.add_argument('--unguided', action='store_true', help='do not use atheris')
    arguments = parser.parse_args()
    warnings.simplefilter('error', RuntimeWarning)  # an overflow is a finding too
    for path in arguments.finding:
        print(f'{path}: {check(path.read_bytes())}')
    if arguments.finding:
        return 0
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix='fuzz_decoder_'))
    folder.mkdir(parents=True, exist_ok=True)
    if atheris and not arguments.unguided:
        guided_search(arguments.seconds, arguments.seed, folder)
    # The decoders' own lines about every damaged picture.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return search(folder, arguments.seed, seconds=arguments.seconds)


if __name__ == '__main__':
    sys.exit(main())
