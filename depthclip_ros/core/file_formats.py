# SPDX-License-Identifier: Apache-2.0
"""File formats by their first bytes (signatures), so that errors name the format and a remedy."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import first_of
from .files import open_regular

HEAD = 4096  # bytes that are read


class FileKind(NamedTuple):
    """Format of a file.

    Attributes:
        name: short, for code: 'png', 'safetensors', 'torch', 'web page'; '' if unidentified.
        sentence: for users: format and remedy, as the end of "PATH is …".

    """

    name: str
    sentence: str


_PYTORCH = 'give the weights as PyTorch has them, a state dict or .safetensors'
_UNPACK = 'unpack it, and give the file in it'
_CONVERT = 'convert it to PNG or JPEG'
_ARRAYS = 'save its arrays in a format that is read here'
_TABLE = 'save what is in it as files'
_COPY_AGAIN = 'copy or download it again'
_GIVE_TO_DEMO = 'depthclip demo --video PATH reads it'
_GIVE_TO_BAGS = 'give it to a command that reads bags'
# Name of the format, its description in sentences, the remedy, and the signature of its files.
_FORMATS: tuple[tuple[str, str, str, bytes], ...] = (
    ('png', 'a PNG picture', '', rb'\x89PNG\r\n\x1a\n'),
    ('jpeg', 'a JPEG picture', '', rb'\xff\xd8\xff'),
    ('gif', 'a GIF picture', '', rb'GIF8[79]a'),
    ('webp', 'a WebP picture', '', rb'RIFF.{4}WEBP'),
    ('tiff', 'a TIFF picture', '', rb'II[*+]\0|MM\0[*+]'),
    ('jpeg 2000', 'a JPEG 2000 picture', '', rb'\0\0\0\x0cjP  |\xff\x4f\xff\x51'),
    ('pnm', 'a PNM picture', '', rb'P[1-7]\s'),
    ('bmp', 'a BMP picture', '', rb'BM.{4}\0{4}'),
    ('avif', 'an AVIF picture', _CONVERT, rb'.{4}ftypavi[fs]'),
    ('radiance', 'a Radiance picture (.hdr)', _CONVERT, rb'#\?(RADIANCE|RGBE)'),
    ('openexr', 'an OpenEXR picture', _CONVERT, rb'\x76\x2f\x31\x01'),
    ('heic', 'a HEIC picture, as phones take them', f'{_CONVERT} (heif-convert IN OUT.jpg)',
     rb'.{4}ftyp(hei|hevc|mif1|msf1)'),
    ('raw picture', 'a raw picture of a camera', _CONVERT, rb'.{4}ftypcrx|FUJIFILMCCD-RAW'),
    ('photoshop', 'a drawing of Photoshop', _CONVERT, rb'8BPS'),
    ('icon', 'a Windows icon', _CONVERT, rb'\0\0\x01\0.\0'),
    ('svg', 'an SVG drawing', _CONVERT, rb'\s*(<\?xml.*)?<svg'),
    ('pdf', 'a PDF document', _CONVERT, rb'%PDF-'),
    ('pfm', 'a PFM file of floating point, as depth maps and disparities have', 'give a picture',
     rb'P[Ff]\s'),
    ('video', 'a video', _GIVE_TO_DEMO, rb'.{4}(ftyp|moov|mdat)|\x1a\x45\xdf\xa3|RIFF.{4}AVI '),
    ('npy', "an array of NumPy's (.npy)", _ARRAYS, rb'\x93NUMPY'),
    ('hdf5', 'an HDF5 file', _ARRAYS, rb'\x89HDF\r\n\x1a\n'),
    ('matlab', "a file of MATLAB's", _ARRAYS, rb'MATLAB [57]\.'),
    ('git-lfs pointer', 'a git-lfs pointer, no file', 'run git lfs pull where it came from',
     rb'version https://git-lfs'),
    ('gguf', 'a file of llama.cpp (GGUF)', _PYTORCH, rb'GGUF|ggml|ggjt'),
    ('tensorrt', 'an engine of TensorRT', _PYTORCH, rb'[fp]trt'),
    ('tflite', 'a model of TensorFlow Lite', _PYTORCH, rb'.{4}TFL3'),
    ('onnx', 'an ONNX model', _PYTORCH, rb'\x08[\1-\x14][\x12:].{0,40}(torch|onnx|Graph|graph|:)'),
    ('gzip', 'packed by gzip', _UNPACK, rb'\x1f\x8b'),
    ('bzip2', 'packed by bzip2', _UNPACK, rb'BZh'),
    ('xz', 'packed by xz', _UNPACK, rb'\xfd7zXZ'),
    ('zstd', 'packed by zstd', _UNPACK, rb'\x28\xb5\x2f\xfd'),
    ('7z', 'a 7z archive', _UNPACK, rb"7z\xbc\xaf'\x1c"),
    ('rar', 'a RAR archive', _UNPACK, rb'Rar!\x1a\x07'),
    ('tar', 'a tar archive', _UNPACK, rb'.{257}ustar'),
    ('parquet', 'a Parquet table', _TABLE, rb'PAR1'),
    ('arrow', 'an Arrow table', _TABLE, rb'ARROW1'),
    ('mcap', 'a bag (mcap)', _GIVE_TO_BAGS, rb'\x89MCAP0\r\n'),
    ('sqlite', 'a database of SQLite, as bags are', _GIVE_TO_BAGS, rb'SQLite format 3\0'),
    ('rosbag', 'a bag of ROS 1', 'convert it with rosbags-convert', rb'#ROSBAG V'),
    ('pickle', 'pickled objects of Python', '', rb'\x80[\x02-\x05]'),
    ('web page', 'a web page: its server answered with a page (a login, a licence, an error)',
     'open the address in a browser',
     rb'(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype html|html|head|body)'),
    ('zeros', 'zeros from its beginning', f'it was not written to its end, so {_COPY_AGAIN}',
     rb'\0+$'),
    ('empty', 'empty (0 bytes)', _COPY_AGAIN, rb'$'),
)
_SIGNATURES = tuple(
    (re.compile(start, re.DOTALL | re.IGNORECASE), name, f'{description}: {remedy}'.rstrip(': '))
    for name, description, remedy, start in _FORMATS)


def kind_of(file: BinaryIO | bytes | Path) -> FileKind:
    """Identify the format of a file by its first bytes, or by the list of contents of a zip.

    Args:
        file: path, bytes, or a seekable stream, which is rewound. A path that cannot be opened
            is of the kind 'unreadable'.

    """
    if isinstance(file, Path):
        try:
            with open_regular(file) as stream:
                return kind_of(stream)
        except OSError as error:
            return FileKind('unreadable', f'unreadable: {error.strerror}')
    if isinstance(file, bytes):
        file = io.BytesIO(file)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(HEAD)
    if head.startswith(b'PK\3\4'):
        kind = _zip_kind(file)
    elif head[8:9] == b'{' and not any(head[4:8]):  # after the length of its header
        kind = FileKind('safetensors', 'a .safetensors file')
    else:
        kind = next((FileKind(name, sentence) for start, name, sentence in _SIGNATURES
                     if start.match(head)), None) or _text_kind(head, size)
    if kind.name == 'git-lfs pointer' and (length := re.search(rb'\nsize (\d+)', head)):
        kind = kind._replace(sentence=kind.sentence.replace(
            'no file', f'not the file of {int(length[1]):,} bytes'))
    file.seek(0)
    return kind


def _text_kind(head: bytes, size: int) -> FileKind:
    try:
        text = head[:HEAD - 4].decode('utf-8-sig', 'strict' if size < HEAD else 'ignore').lstrip()
    except UnicodeDecodeError:
        text = ''
    if not text or re.search(r'[\0-\x08\x0e-\x1f]', text) or len(text) < len(head) // 4:
        return FileKind('', f'{size:,} bytes of no format that is known here, beginning with '
                        f'{head[:8]!r}')
    line = json.dumps(text.splitlines()[0][:60], ensure_ascii=False)
    if '"weight_map"' in text:
        return FileKind('json', 'the list of the shards of a model: save all their tensors as one '
                        'state dict')
    return FileKind('json' if text[0] in '{[' else 'text', f'text that begins with {line}')


def _zip_kind(file: BinaryIO) -> FileKind:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return FileKind('broken zip', 'a zip archive (as PyTorch writes) without its end: '
                        f'truncated, so {_COPY_AGAIN}')
    ends = {name.partition('/')[2] for name in names}
    if 'constants.pkl' in ends and any(end.startswith('code/') for end in ends):
        return FileKind('torchscript', 'TorchScript, which is a program: where you trust it, save '
                        'its tensors by torch.save(torch.jit.load(PATH).state_dict(), OTHER)')
    if 'data.pkl' in ends:
        return FileKind('torch', "an archive of PyTorch's")
    if names and all(name.endswith('.npy') for name in names):
        return FileKind('npz', f"a file of NumPy's arrays (.npz): {_ARRAYS}")
    return FileKind('zip', f'a zip archive of {first_of(names) or "nothing"}: {_UNPACK}')
