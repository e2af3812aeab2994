# SPDX-License-Identifier: Apache-2.0
"""CLIP weights: where they come from, what they are, and whether they are what they should be."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import os
import pickle
import re
import stat
import urllib.request
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files
from .errors import ConfigError, WeightsError, quoted

if TYPE_CHECKING:
    from torch import Tensor

    from .backbone import ImageEncoder

UNTRAINED = 'untrained'
# The small CLIP that comes with this package (docs/demo_model.md).
DEMO = 'demo'
# What a backbone begins with that is one of open_clip's models.
OPEN_CLIP = 'open_clip:'
DEMO_FILE = Path(__file__).parents[1] / 'models' / 'demo.pt'
DOWNLOAD_SERVER = 'https://openaipublic.azureedge.net/clip/models'
# Bytes that no CLIP of these architectures has: the largest, RN50x64, has 2.5 GB in float32.
LARGEST = 8 << 30
Log = Callable[[str], None]
TextEncoder = tuple[
    Callable[[list[str]], 'Tensor'], Callable[['Tensor'], 'Tensor'], int]


@dataclass(frozen=True)
class Architecture:
    """Shape of a CLIP model.

    `patch` is None for a ResNet, whose `layers` are four numbers; 0 where only the network knows.
    """

    embed_dim: int
    resolution: int
    layers: tuple[int, int, int, int] | int
    width: int
    patch: int | None
    context: int
    vocabulary: int
    text_width: int
    text_layers: int


@dataclass(frozen=True)
class Release:
    """One of OpenAI's released models."""

    file: str
    sha256: str
    architecture: Architecture


def _release(file: str, sha256: str, embed: int, resolution: int,
             layers: tuple[int, int, int, int] | int, width: int, patch: int | None,
             text_width: int) -> Release:
    return Release(file, sha256, Architecture(
        embed, resolution, layers, width, patch, 77, 49408, text_width, 12))


RELEASES: Mapping[str, Release] = {
    'RN50': _release(
        'RN50.pt', 'afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762',
        1024, 224, (3, 4, 6, 3), 64, None, 512),
    'RN101': _release(
        'RN101.pt', '8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599',
        512, 224, (3, 4, 23, 3), 64, None, 512),
    'RN50x4': _release(
        'RN50x4.pt', '7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd',
        640, 288, (4, 6, 10, 6), 80, None, 640),
    'RN50x16': _release(
        'RN50x16.pt', '52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa',
        768, 384, (6, 8, 18, 8), 96, None, 768),
    'RN50x64': _release(
        'RN50x64.pt', 'be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c',
        1024, 448, (3, 15, 36, 10), 128, None, 1024),
    'ViT-B/32': _release(
        'ViT-B-32.pt', '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af',
        512, 224, 12, 768, 32, 512),
    'ViT-B/16': _release(
        'ViT-B-16.pt', '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f',
        512, 224, 12, 768, 16, 512),
    'ViT-L/14': _release(
        'ViT-L-14.pt', 'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836',
        768, 224, 24, 1024, 14, 768),
    'ViT-L/14@336px': _release(
        'ViT-L-14-336px.pt', '3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02',
        768, 336, 24, 1024, 14, 768),
}


@dataclass(frozen=True)
class WeightsInfo:
    """What the estimator runs on.

    Attributes:
        name: official name, 'demo', file name, 'untrained', or 'state dict'.
        source: where it came from, in words.
        digest: SHA-256 (hex) of the file, or of the tensors of a state dict.
        trained: False when the numbers are random, and with them the depth.

    """

    name: str
    source: str
    digest: str
    trained: bool = True


Loaded = tuple[WeightsInfo, dict[str, 'Tensor']]


class OpenClipWeights(dict[str, 'Tensor'], ABC):
    """State dict in open_clip's layout, with what its tensors do not tell, and all made of them.

    Attributes:
        model: name of the architecture in open_clip.
        normalization: (mean, standard deviation) of RGB in [0, 1] that the model is used to.

    """

    def __init__(
        self, tensors: Mapping[str, Tensor], model: str,
        normalization: tuple[tuple[float, ...], tuple[float, ...]],
    ) -> None:
        """Take tensors by their names."""
        super().__init__(tensors)
        self.model = model
        self.normalization = normalization

    @abstractmethod
    def architecture(self) -> Architecture:
        """Its shape; of timm's networks width and patch are not known (0)."""

    @abstractmethod
    def visual(self) -> Any:
        """Its image encoder, in float32, on the CPU."""

    @abstractmethod
    def image_encoder(self, visual: Any) -> ImageEncoder:
        """Make a dense encoder of an image encoder that is not a ResNet of CLIP's."""

    @abstractmethod
    def text_encoder(self) -> TextEncoder:
        """Give tokenizer, text encoder, and how many tokens a sentence may have."""


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Folder of weights and text features: the one given, else the default.

    Raises:
        ConfigError: it can be no folder.

    """
    return _folder('cache_dir', cache_dir) if cache_dir else default_cache_dir()


def default_cache_dir() -> Path:
    """$DEPTHCLIP_CACHE, else depthclip_ros in $XDG_CACHE_HOME, else in ~/.cache.

    Raises:
        ConfigError: it can be no folder.

    """
    for variable, below in (('DEPTHCLIP_CACHE', ''), ('XDG_CACHE_HOME', 'depthclip_ros')):
        chosen = os.environ.get(variable)
        if chosen:
            if not chosen.startswith(('/', '~')):
                raise ConfigError(f'${variable}: {quoted(chosen)} is relative to wherever the '
                                  'process was started; give the whole path.')
            return _folder(f'${variable}', chosen) / below
    return _folder('the home folder', '~/.cache') / 'depthclip_ros'


def _folder(name: str, text: str | Path) -> Path:
    """Path of a folder, which need not be there yet."""
    try:
        path = files.user_path(text).absolute()
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return path  # it may be made, or never needed
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, 'it is a file, not a folder')
    except OSError as error:
        raise ConfigError(f'{name}: {quoted(str(text))} cannot be the folder of the cache: '
                          f'{error.strerror}. Set cache_dir or $DEPTHCLIP_CACHE to a folder that '
                          'can be read.') from error
    return path


def find(name: str, cache_dir: Path) -> Path | None:
    """Path of an official model on this machine: our cache, then that of OpenAI's own loader.

    Raises:
        WeightsError: the cache may not be looked into.

    """
    file = RELEASES[name].file
    ours = cache_dir / 'weights' / file
    try:
        if stat.S_ISREG(ours.stat().st_mode):
            return ours
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise WeightsError(_unreadable(ours, error)) from error
    with suppress(OSError):  # without a home, or where it is another user's
        theirs = files.user_path('~/.cache/clip') / file
        if stat.S_ISREG(theirs.stat().st_mode):
            return theirs
    return None


def _unreadable(path: Path, error: OSError) -> str:
    """Say why a file cannot be read, and what helps."""
    remedy = 'Give a file.'
    if isinstance(error, PermissionError):
        remedy = (f'Let user {os.geteuid()} read it: chmod a+r on the file, a+rx on its folders; '
                  'or set cache_dir to another folder.')
    return f'{quoted(str(path), 200)}: cannot be read: {error.strerror or error}. {remedy}'


def fetch(name: str, cache_dir: Path | None = None, log: Log = print,
          server: str = DOWNLOAD_SERVER) -> Path:
    """Make an official model available on this machine, downloading it once.

    Args:
        name: one of `RELEASES`.
        cache_dir: the cache; None for the default.
        log: told what happens, in sentences.
        server: base address; the file lies at SERVER/SHA256/FILE.

    Returns:
        Path of the file, its SHA-256 verified.

    Raises:
        WeightsError: unknown name, no network, no space, or a wrong checksum.
        ConfigError: the default cache can be no folder.

    """
    if name not in RELEASES:
        raise WeightsError(f'{quoted(name)} is no CLIP model; there are {", ".join(RELEASES)}.')
    cache_dir = cache_dir or default_cache_dir()
    found = find(name, cache_dir)
    if found is not None:
        _verify(found, file_digest(found), RELEASES[name])
        log(f'{name} is at {found}, checksum verified.')
        return found
    release = RELEASES[name]
    url = f'{server}/{release.sha256}/{release.file}'
    target = cache_dir / 'weights' / release.file
    log(f'Downloading {name} from {url}')
    digest = hashlib.sha256()
    try:
        with files.atomic(target) as file:
            for chunk in _download(url, name):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != release.sha256:
                raise WeightsError(
                    f'{name}: what {url} sent has SHA-256 {digest.hexdigest()}, expected '
                    f'{release.sha256}; it was thrown away. Try again, or copy a verified '
                    f'{release.file} to {target.parent}.')
    except OSError as error:
        raise WeightsError(f'{name}: cannot write to the cache {target.parent}: '
                           f'{error.strerror or error}. Set cache_dir or $DEPTHCLIP_CACHE to a '
                           'folder that can be written and has room.') from error
    log(f'{name} is at {target}, checksum verified.')
    return target


def _download(url: str, name: str) -> Iterator[bytes]:
    """Content of a URL in pieces, with a progress bar on a terminal."""
    from tqdm import tqdm  # only needed here; comes with clip
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 (user's server)
            total = int(response.headers.get('Content-Length') or 0)
            with tqdm(total=total or None, unit='B', unit_scale=True, desc=name,
                      disable=None) as bar:
                done = 0
                while chunk := response.read(1 << 20):
                    done += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
        if total and done != total:
            raise ConnectionError(f'it broke off after {done} of {total} bytes')
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise WeightsError(
            f'{name}: download from {url} failed ({getattr(error, "reason", None) or error}). On '
            f"a machine with a network run 'depthclip fetch {name}' and copy the file to this "
            "machine's cache, or give weights: PATH.") from error


def _read_whole(path: Path) -> bytes:
    """Content of a file.

    Raises:
        WeightsError: it is no file, may not be read, or is larger than any CLIP.

    """
    try:
        with files.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST:
                raise WeightsError(f'{path}: has {size} bytes, more than any CLIP of these '
                                   f'architectures ({LARGEST >> 30} GiB). Give another file.')
            return file.read()
    except OSError as error:
        raise WeightsError(_unreadable(path, error)) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        WeightsError: as `read_file`.

    """
    return hashlib.sha256(_read_whole(path)).hexdigest()


def _verify(path: Path, digest: str, release: Release) -> None:
    """Refuse what is not the file that OpenAI published.

    Raises:
        WeightsError: it is not.

    """
    if digest != release.sha256:
        raise WeightsError(f'{path}: SHA-256 is {digest}, expected {release.sha256}; the file is '
                           'damaged or not the official one. Delete it and fetch it again, or '
                           'give it as weights: PATH if it is yours.')


def load(weights: str | Path | Mapping[str, Tensor] | Loaded, backbone: str, cache_dir: Path,
         log: Log = print, *, offline: bool = False) -> Loaded:
    """Load CLIP weights from wherever they are.

    Args:
        weights: official name, 'demo', file (state dict, safetensors, or OpenAI's own archive),
            'untrained', a state dict, '' for the backbone's official weights, or what this has
            returned, which is given back.
        backbone: the architecture they must have; 'auto' takes any of OpenAI's layout.
        cache_dir: where official weights are looked up and kept.
        log: told what happens, in sentences.
        offline: forbid a download.

    Returns:
        What was loaded, and the state dict in OpenAI's layout (or `OpenClipWeights`), on the CPU.
        A state dict that was given is copied: nothing that is done to the result reaches the
        caller's tensors.

    Raises:
        WeightsError: missing, corrupt, of another architecture, wrong checksum, not finite.
        ConfigError: open_clip has no such model.

    """
    if isinstance(weights, tuple):
        return weights[0], copy(weights[1])
    if backbone.startswith(OPEN_CLIP):
        from . import open_clip
        return open_clip.load(weights, backbone, log, offline=offline)
    if isinstance(weights, Mapping):
        import torch
        check_tensors(weights, 'the state dict')
        state_dict = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                      for name, tensor in weights.items()}
        info = WeightsInfo('state dict', 'given in memory', state_dict_digest(state_dict))
    elif str(weights) == UNTRAINED:
        info, state_dict = _untrained('RN50' if backbone == 'auto' else backbone)
    else:
        name, path = _locate(str(weights) or backbone, cache_dir, log, offline=offline)
        digest, state_dict = read_file(path, RELEASES.get(name))
        if name in RELEASES:
            log(f'{name} is read from {path}, checksum verified.')
        info = WeightsInfo(name, str(path), digest)
    _check_backbone(state_dict, backbone, info.source)
    return info, state_dict


def _locate(weights: str, cache_dir: Path, log: Log, *, offline: bool) -> tuple[str, Path]:
    """Name and path of named weights or of a file; downloaded ones are verified, others not."""
    if weights in RELEASES:
        path = find(weights, cache_dir)
        if path is None and offline:
            raise WeightsError(
                f'{weights}: not in the cache ({cache_dir / "weights"}) and offline is set. Run '
                f"'depthclip fetch {weights}' while there is a network, or give weights: PATH.")
        return weights, path or fetch(weights, cache_dir, log)
    if weights == DEMO:
        return DEMO, DEMO_FILE
    if weights == 'auto':
        raise WeightsError("backbone: 'auto' takes what the weights hold, but weights: '' names "
                           f'none; give a file, or one of {", ".join(RELEASES)}.')
    try:
        file = files.user_path(weights).absolute()
        with files.open_regular(file):
            return file.name, file
    except PermissionError as error:
        raise WeightsError(_unreadable(file, error)) from error
    except OSError as error:
        raise WeightsError(
            f'weights: {quoted(weights, 200)} is neither a file that can be read '
            f'({error.strerror}) nor an official name ({", ".join(RELEASES)}, {DEMO!r}, or '
            f'{UNTRAINED!r}).') from error


def read_file(path: Path, release: Release | None = None) -> tuple[str, dict[str, Tensor]]:
    """SHA-256 and state dict of a file; nothing in it can run code.

    OpenAI's archives are TorchScript, which is a program; they are known by their SHA-256, and
    loaded as their own loader does. All else is `torch.save` of a state dict, or safetensors.

    Args:
        path: the file.
        release: that it must be; None for any file.

    Raises:
        WeightsError: the file is not that release, is corrupt, or holds something else.

    """
    content = _read_whole(path)
    with ThreadPoolExecutor(1) as pool:  # a tenth of a second that reading need not wait for
        hashed = pool.submit(lambda: hashlib.sha256(content).hexdigest())
        if release is not None:
            _verify(path, hashed.result(), release)
        loaded = _decode(path, content, hashed)
        digest = hashed.result()
    if isinstance(loaded, Mapping) and isinstance(loaded.get('state_dict'), Mapping):
        loaded = loaded['state_dict']
    if not isinstance(loaded, Mapping):
        raise WeightsError(f'{path}: holds a {type(loaded).__name__}, not a state dict of '
                           'tensors; save it with torch.save(model.state_dict(), PATH).')
    check_tensors(loaded, str(path))
    return digest, {name: tensor.detach().contiguous() for name, tensor in loaded.items()}


def _decode(path: Path, content: bytes, digest: Future[str]) -> Any:
    """What is in a file."""
    import torch  # this module must import without torch, for the doctor
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load as decode
            return decode(content)
        if not _is_torchscript(content):
            return torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
        if digest.result() not in {release.sha256 for release in RELEASES.values()}:
            raise WeightsError(
                f"{path}: is a TorchScript archive and none of OpenAI's: to load it would run its "
                'code. Where you trust it, save its tensors: '
                'torch.save(torch.jit.load(OLD).state_dict(), NEW).')
        with warnings.catch_warnings():
            # OpenAI's archives are TorchScript, deprecated or not.
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter('ignore', category)
            return torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(content), map_location='cpu').state_dict()
    except WeightsError:
        raise
    except Exception as error:  # what a damaged file makes torch, pickle and zipfile raise
        raise WeightsError(f'{path}: cannot be read as CLIP weights: truncated, corrupt, or no '
                           f'state dict ({_reason(error)}). Get it anew, or where you trust it '
                           'save its tensors with torch.save(model.state_dict(), PATH).'
                           ) from error


def _is_torchscript(content: bytes) -> bool:
    """Whether a file is a TorchScript archive, and not `torch.save`'s zip file."""
    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith('/constants.pkl') for name in archive.namelist())


def _reason(error: Exception) -> str:
    """What is wrong with a file, without torch's advice to read it unsafely."""
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r'GLOBAL (\S+) was not|whose module (\S+) is|^([\w.]+)$', text)
        culprit = next(filter(None, found.groups())) if found else ''
        return f'it holds {culprit}, and only tensors are read' if culprit else \
            'its pickle is broken, or holds more than tensors'
    first = text.partition('\n')[0]
    if not first or 'weights_only' in first:
        return type(error).__name__
    return first if len(first) <= 200 else f'{first[:199]}…'


def check_tensors(state_dict: Mapping[str, Tensor], source: str) -> None:
    """Refuse what cannot be the weights of a CLIP, whatever the architecture.

    Raises:
        WeightsError: names the tensor that is none, or that is not of finite numbers.

    """
    import torch
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise WeightsError(
                f'{source}: {quoted(name)} is a {type(tensor).__name__}, but a state dict has '
                'tensors by their names; save it with torch.save(model.state_dict(), PATH).')
        wrong = ''
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            wrong = 'is sparse, quantized or without numbers; convert it to a plain tensor'
        elif tensor.numel() == 0:
            wrong = f'is empty ({list(tensor.shape)}); the file is not a whole model'
        elif tensor.dtype in floats:
            wrong = _wrong_numbers(name, tensor)
        elif tensor.is_complex() or tensor.dtype == torch.bool or tensor.numel() != 1:
            wrong = f'is of {tensor.dtype}, not of floating point; convert it'
        if wrong:
            raise WeightsError(f'{source}: {quoted(name)} {wrong}.')


def _wrong_numbers(name: str, tensor: Tensor) -> str:
    """Say what is wrong with the numbers of a tensor; '' if nothing is."""
    import torch
    # One pass over the memory, which NaN survives: 20 ms for RN50 where isfinite takes 200.
    low, high = (float(number) for number in torch.aminmax(tensor.detach()))
    # Batch norm's statistics stay in float32; all else OpenAI's loader rounds to half precision.
    largest = torch.finfo(
        torch.float32 if '.running_' in name else torch.float16).max
    if not (-largest <= low and high <= largest):
        return (f'holds NaN, infinite numbers or ones beyond {largest:.6g} ({low:g} to {high:g}), '
                'from which no depth can come; the training diverged or the file is damaged')
    if name.endswith('.running_var') and low < 0:
        return f'holds a negative variance ({low:g}); the file is damaged'
    return ''


def state_dict_digest(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, in order of names."""
    import torch
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def architecture(state_dict: Mapping[str, Tensor], source: str = 'the state dict') -> Architecture:
    """Architecture of CLIP weights, read off their shapes.

    Raises:
        WeightsError: keys are missing, so it is no CLIP model in OpenAI's layout.

    """
    if isinstance(state_dict, OpenClipWeights):
        return state_dict.architecture()

    def shape(key: str) -> tuple[int, ...]:
        if key not in state_dict:
            raise WeightsError(f"{source}: has no '{key}', so it is not a CLIP model in OpenAI's "
                               'key layout.')
        return tuple(state_dict[key].shape)

    def count(prefix: str, part: int) -> int:
        return len({key.split('.')[part] for key in state_dict if key.startswith(prefix)})

    try:
        return _read_off(shape, count, transformer='visual.proj' in state_dict)
    except (ValueError, IndexError) as error:
        raise WeightsError(f"{source}: its tensors have other shapes than a CLIP model's in "
                           f"OpenAI's key layout ({error}).") from error


def _read_off(
    shape: Callable[[str], tuple[int, ...]], count: Callable[[str, int], int], *,
    transformer: bool,
) -> Architecture:
    layers: tuple[int, int, int, int] | int
    if transformer:
        width, _, _, patch_size = shape('visual.conv1.weight')
        grid = round((shape('visual.positional_embedding')[0] - 1) ** 0.5)
        patch: int | None = patch_size
        resolution = patch_size * grid
        layers = count('visual.transformer.resblocks.', 3)
    else:
        width = shape('visual.layer1.0.conv1.weight')[0]
        grid = round((shape('visual.attnpool.positional_embedding')[0] - 1) ** 0.5)
        patch = None
        resolution = 32 * grid
        layers = (count('visual.layer1.', 2), count('visual.layer2.', 2),
                  count('visual.layer3.', 2), count('visual.layer4.', 2))
    return Architecture(
        shape('text_projection')[1], resolution, layers, width, patch,
        shape('positional_embedding')[0], shape('token_embedding.weight')[0],
        shape('ln_final.weight')[0], count('transformer.resblocks.', 2))


def _check_backbone(state_dict: Mapping[str, Tensor], backbone: str, source: str) -> None:
    """The weights must be of the architecture that the configuration names."""
    if backbone != 'auto' and backbone not in RELEASES:
        raise WeightsError(f'backbone: {quoted(backbone)} is unknown; use auto, one of '
                           f'{", ".join(RELEASES)}, or {OPEN_CLIP}ARCHITECTURE/TAG.')
    found = architecture(state_dict, source)
    if backbone == 'auto' or found == RELEASES[backbone].architecture:
        return
    if source == str(DEMO_FILE):
        raise WeightsError(f"weights: '{DEMO}' do not fit backbone: {backbone}; they have "
                           'settings of their own, in config/demo.yaml: start with these.')
    names = [name for name, release in RELEASES.items() if release.architecture == found]
    seen = names[0] if names else f'unknown to OpenAI ({found})'
    remedy = names[0] if names else 'auto'
    raise WeightsError(f"{source}: the weights' architecture is {seen}, but backbone is "
                       f"'{backbone}'; set backbone: {remedy}, or give other weights.")


def _untrained(backbone: str) -> tuple[WeightsInfo, dict[str, Tensor]]:
    """Random weights of an official shape, to try the pipeline where no real ones can be had."""
    import torch

    from .clip_package import import_clip
    if backbone not in RELEASES:
        raise WeightsError(f'backbone: {quoted(backbone)} is unknown; use one of '
                           f'{", ".join(RELEASES)}.')
    shape = RELEASES[backbone].architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = import_clip().model.CLIP(
            shape.embed_dim, shape.resolution, shape.layers, shape.width, shape.patch,
            shape.context, shape.vocabulary, shape.text_width, shape.text_width // 64,
            shape.text_layers)
    name = f'{UNTRAINED} {backbone}'
    digest = hashlib.sha256(f'{name} seed 0 torch {torch.__version__}'.encode()).hexdigest()
    info = WeightsInfo(name, 'random numbers (seed 0)', digest, trained=False)
    return info, model.state_dict()
