# SPDX-License-Identifier: Apache-2.0
"""Files of named float32 arrays in the safetensors format, read with every number checked.

The format is eight bytes with the header's length, a header in JSON, and the arrays. Its own
package has no rosdep key on all supported distributions, and of the format only this is needed.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import atomic, open_regular

Arrays = dict[str, NDArray[np.float32]]

LARGEST_FILE = 64 << 20  # bytes; a calibration of the largest CLIP has 0.2 MB
LARGEST_HEADER = 1 << 20
MOST_ARRAYS = 100
MOST_DIMENSIONS = 4
_LENGTH = struct.Struct('<Q')


class TensorFileError(ValueError):
    """A file is not what it should be; the message says how, without the file's name."""


def write(path: Path, arrays: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str],
          ) -> None:
    """Write arrays, whole or not at all.

    Raises:
        OSError: it cannot be written.

    """
    with atomic(path) as file:
        file.write(encode(arrays, metadata))


def encode(arrays: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> bytes:
    """Give the bytes of a file; the same arrays and metadata, the same bytes."""
    header: dict[str, Any] = {'__metadata__': dict(metadata)}
    parts, offset = [], 0
    for name in sorted(arrays):
        data = np.ascontiguousarray(arrays[name], '<f4').tobytes()
        header[name] = {'dtype': 'F32', 'shape': list(arrays[name].shape),
                        'data_offsets': [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(',', ':'), sort_keys=True).encode()
    text += b' ' * (-len(text) % 8)  # so that the arrays are aligned
    return b''.join([_LENGTH.pack(len(text)), text, *parts])


def read_bytes(path: Path) -> bytes:
    """Read a file of at most 64 MiB.

    Raises:
        OSError: it is not there, is no regular file, or may not be read.
        TensorFileError: it is larger.

    """
    with open_regular(path) as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise TensorFileError(f'it is larger than {LARGEST_FILE >> 20} MiB')
    return content


def digest(content: bytes) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def decode(content: bytes) -> tuple[Arrays, dict[str, str]]:
    """Read the bytes of a file; nothing is allocated but copies of what is in them.

    Raises:
        TensorFileError: it is damaged, or holds other things than float32 arrays.

    """
    header, data = _split(content)
    metadata = header.pop('__metadata__', {})
    if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()):
        raise TensorFileError('its metadata are not texts')
    if len(header) > MOST_ARRAYS:
        raise TensorFileError(f'it holds {len(header)} arrays, more than {MOST_ARRAYS}')
    spans: list[tuple[int, int]] = []
    arrays = {name: _array(name, entry, data, spans) for name, entry in header.items()}
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise TensorFileError('its arrays overlap, or leave gaps')
        position = end
    if position != len(data):
        raise TensorFileError(
            f'its arrays have {position} bytes, but {len(data)} are there: it is cut off, or '
            'something was added')
    return arrays, metadata


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    if len(content) < _LENGTH.size:
        raise TensorFileError(f'it has {len(content)} bytes, too few for the format')
    length = _LENGTH.unpack_from(content)[0]
    if length > min(LARGEST_HEADER, len(content) - _LENGTH.size):
        raise TensorFileError(f'its header claims {length} bytes')
    end = _LENGTH.size + length
    try:
        header = json.loads(content[_LENGTH.size:end].decode())
    except (ValueError, RecursionError) as error:  # so are a wrong encoding and a huge integer
        raise TensorFileError('its header is not JSON') from error
    if not isinstance(header, dict):
        raise TensorFileError('its header is no table')
    return header, content[end:]


def _array(
    name: str, entry: Any, data: bytes, spans: list[tuple[int, int]],
) -> NDArray[np.float32]:
    where = f'its array {name[:40]!r}'
    if not isinstance(entry, dict) or entry.get('dtype') != 'F32':
        raise TensorFileError(f'{where} is not of float32')
    shape, offsets = _counts(entry.get('shape')), _counts(entry.get('data_offsets'))
    if shape is None or len(shape) > MOST_DIMENSIONS:
        raise TensorFileError(f'{where} has no shape')
    if offsets is None or len(offsets) != 2 or not offsets[0] <= offsets[1] <= len(data):
        raise TensorFileError(f'{where} lies outside of the file: it is cut off')
    start, end = offsets
    if math.prod(shape) * 4 != end - start:
        raise TensorFileError(f'{where} has another size than its shape says')
    spans.append((start, end))
    array = np.frombuffer(data[start:end], '<f4').astype(np.float32).reshape(shape)
    if not np.isfinite(array).all():
        raise TensorFileError(f'{where} holds numbers that are not finite')
    return array


def _counts(values: Any) -> list[int] | None:
    """What is a list of whole numbers from 0 to the largest file's size, or None."""
    if isinstance(values, list) and all(
            isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_FILE
            for value in values):
        return values
    return None
