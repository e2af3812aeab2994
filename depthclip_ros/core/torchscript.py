# SPDX-License-Identifier: Apache-2.0
"""Tensors of a TorchScript archive, without running the code in it.

An archive is a zip file: `constants.pkl`, the program under `code/`, and `data.pkl` with the
modules' attributes, whose tensors lie in `data/N`. `torch.jit.load` runs the program's
`__setstate__` methods, which can write files; here the program is not even read.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

STORAGES: Mapping[str, torch.dtype] = {
    'HalfStorage': torch.float16, 'BFloat16Storage': torch.bfloat16,
    'FloatStorage': torch.float32, 'DoubleStorage': torch.float64, 'LongStorage': torch.int64,
    'IntStorage': torch.int32, 'BoolStorage': torch.bool, 'CharStorage': torch.int8,
    'ByteStorage': torch.uint8, 'ShortStorage': torch.int16,
}
# Far more than a CLIP has; a file of a few kilobytes can refer to itself without end.
MOST_ATTRIBUTES = 20_000
LONGEST_NAME = 1000
LARGEST_PICKLE = 16 << 20


def is_torchscript(content: bytes) -> bool:
    """Whether a file is a TorchScript archive, and not `torch.save`'s zip file."""
    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith('/constants.pkl') for name in archive.namelist())


def read_tensors(content: bytes) -> dict[str, Tensor]:
    """Tensors of an archive by their names in its modules, as `state_dict()` would give them.

    They lie where the file's bytes do: only read them.

    Raises:
        Exception: of many types, where the archive is damaged or made to do harm.

    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next(n for n in archive.namelist() if n.endswith('/constants.pkl'))
        folder = name.removesuffix('constants.pkl')
        return dict(_named_tensors(_unpickle(archive, folder, content)))


def _bytes_of(record: zipfile.ZipInfo, archive: zipfile.ZipFile, content: bytes,
              ) -> bytes | memoryview:
    """Content of a record with its checksum right, where it lies if that is possible."""
    # The archive's own list has the names' lengths, too, but not those of this place.
    lengths = struct.unpack_from('<HH', content, record.header_offset + 26)
    start = record.header_offset + 30 + sum(lengths)
    data = memoryview(content)[start:start + record.file_size]
    # Else it is compressed, or damaged, which `archive` says.
    return data if zlib.crc32(data) == record.CRC else archive.read(record)


def _module_class() -> type[dict[str, Any]]:
    """Stand-in for the classes of an archive's program.

    Made anew for each file, since a pickle may set attributes of a class that it is given.
    """
    class Module(dict[str, Any]):
        def __setstate__(self, state: Any) -> None:
            if not isinstance(state, dict):
                raise TypeError('one of its modules cannot be read without running its code')
            self.update(state)

    return Module


def _unpickle(archive: zipfile.ZipFile, folder: str, content: bytes) -> Any:
    """Read `data.pkl`: modules as dictionaries of their attributes."""
    record = archive.getinfo(f'{folder}data.pkl')
    if record.file_size > LARGEST_PICKLE:
        raise ValueError(f'data.pkl has {record.file_size} bytes')
    storages: dict[str, Tensor] = {}
    module_class = _module_class()
    allowed = {
        ('collections', 'OrderedDict'): OrderedDict,
        ('torch._utils', '_rebuild_tensor_v2'):
            lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset),
        **{('torch', name): dtype for name, dtype in STORAGES.items()},
    }

    # In Python, not in C: there one opcode can claim any amount of memory.
    class Reader(pickle._Unpickler):  # noqa: SLF001
        def find_class(self, module: str, name: str) -> Any:
            if module.startswith('__torch__'):
                return module_class
            if module == 'torch.jit._pickle':  # marks lists of numbers, and types of containers
                return lambda value, *_: value
            if (module, name) not in allowed:
                raise pickle.UnpicklingError(f'{module}.{name}')
            return allowed[module, name]

        def persistent_load(self, identity: Any) -> Tensor:
            _, dtype, key, _, count = identity
            if key not in storages:
                record = archive.getinfo(f'{folder}data/{key}')
                if record.file_size != count * dtype.itemsize:
                    raise ValueError(f'data/{key} has {record.file_size} bytes')
                numbers = np.frombuffer(_bytes_of(record, archive, content), np.uint8)
                if numbers.ctypes.data % dtype.itemsize:
                    numbers = numbers.copy()
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore')  # that it cannot be written: it is only read
                    storages[key] = torch.from_numpy(numbers).view(dtype)
            return storages[key]

    try:
        return Reader(io.BytesIO(archive.read(record))).load()
    finally:
        storages.clear()  # the class lives on until the garbage collector comes
        content = b''


def _named_tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested modules, by their names joined by dots."""
    seen = 0
    waiting = [('', root)]
    while waiting:
        prefix, module = waiting.pop()
        for key, value in module.items():
            seen += 1
            name = f'{prefix}{key}'
            if seen > MOST_ATTRIBUTES or len(name) > LONGEST_NAME:
                raise ValueError('its modules are nested without end')
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, dict) and type(value) is type(root):
                waiting.append((f'{name}.', value))
