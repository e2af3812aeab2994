# SPDX-License-Identifier: Apache-2.0
"""CLIP weights: where they come from, what they are, and whether they are what they should be."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import files
from .errors import ConfigError, WeightsError, quoted, reason

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
Log = Callable[[str], None]
TextEncoder = tuple[
    Callable[[list[str]], 'Tensor'], Callable[['Tensor'], 'Tensor'], int]


class Architecture(NamedTuple):
    """Shape of a CLIP model.

    `patch` is None for a ResNet, whose `layers` are four numbers; 0 where only the network knows.
    """

    embed_dim: int
    resolution: int
    layers: tuple[int, ...] | int
    width: int
    patch: int | None
    text_width: int


class Release(NamedTuple):
    """One of OpenAI's released models."""

    file: str
    sha256: str
    architecture: Architecture


RELEASES: Mapping[str, Release] = {
    name: Release(f'{name.replace("/", "-").replace("@", "-")}.pt', sha256, Architecture(*shape))
    for name, sha256, *shape in (
        ('RN50', 'afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762',
         1024, 224, (3, 4, 6, 3), 64, None, 512),
        ('RN101', '8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599',
         512, 224, (3, 4, 23, 3), 64, None, 512),
        ('RN50x4', '7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd',
         640, 288, (4, 6, 10, 6), 80, None, 640),
        ('RN50x16', '52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa',
         768, 384, (6, 8, 18, 8), 96, None, 768),
        ('RN50x64', 'be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c',
         1024, 448, (3, 15, 36, 10), 128, None, 1024),
        ('ViT-B/32', '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af',
         512, 224, 12, 768, 32, 512),
        ('ViT-B/16', '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f',
         512, 224, 12, 768, 16, 512),
        ('ViT-L/14', 'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836',
         768, 224, 24, 1024, 14, 768),
        ('ViT-L/14@336px', '3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02',
         768, 336, 24, 1024, 14, 768))}


@dataclass(frozen=True)
class WeightsInfo:
    """What the estimator runs on."""

    name: str  # official name, 'demo', file name, 'untrained', or 'state dict'
    source: str  # where it came from, in words
    digest: str  # SHA-256 (hex) of the file, or of the tensors of a state dict
    trained: bool = True  # False when the numbers are random, and with them the depth


Loaded = tuple[WeightsInfo, dict[str, 'Tensor']]


class OpenClipWeights(dict[str, 'Tensor']):
    """State dict of one of open_clip's models, and what its tensors do not tell."""

    architecture: Architecture  # of timm's networks width and patch are not known (0)
    normalization: tuple[tuple[float, ...], tuple[float, ...]]  # mean, deviation of RGB in [0, 1]
    image_encoder: Callable[[], ImageEncoder]  # dense, of a vision tower that is no ResNet
    text_encoder: Callable[[], TextEncoder]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Folder of weights and text features, which need not be there yet.

    The one given, else $DEPTHCLIP_CACHE, else depthclip_ros in $XDG_CACHE_HOME or in ~/.cache.

    Raises:
        ConfigError: it can be no folder.

    """
    name, chosen, below = next(place for place in (
        ('cache_dir', cache_dir, ''),
        ('$DEPTHCLIP_CACHE', os.environ.get('DEPTHCLIP_CACHE'), ''),
        ('$XDG_CACHE_HOME', os.environ.get('XDG_CACHE_HOME'), 'depthclip_ros'),
        ('the home folder', '~/.cache', 'depthclip_ros')) if place[1])
    try:
        path = files.user_path(chosen or '')
        if name.startswith('$') and not path.is_absolute():
            raise NotADirectoryError(0, 'it is relative to wherever the process was started')
        if os.path.isfile(path):  # noqa: PTH113 (which raises where it may not look)
            raise NotADirectoryError(0, 'it is a file, not a folder')
    except OSError as error:
        raise ConfigError(
            f'{name}: {quoted(str(chosen))} cannot be the folder of the cache: {error.strerror}. '
            'Set cache_dir or $DEPTHCLIP_CACHE to the whole path of a folder.') from error
    return path.absolute() / below


def find(name: str, cache_dir: Path) -> Path | None:
    """Path of an official model on this machine: our cache, then that of OpenAI's own loader."""
    file = RELEASES[name].file
    paths = cache_dir / 'weights' / file, Path(os.path.expanduser('~/.cache/clip')) / file  # noqa: PTH111
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113


def fetch(name: str, cache_dir: Path | None = None, log: Log = print,
          server: str = DOWNLOAD_SERVER) -> Path:
    """Path of an official model, its SHA-256 verified, downloaded if it is not on this machine.

    The server has it at SERVER/SHA256/FILE.

    Raises:
        WeightsError: unknown name, no network, no space, or a wrong checksum.
        ConfigError: the default cache can be no folder.

    """
    if name not in RELEASES:
        raise WeightsError(f'{quoted(name)} is no CLIP model; there are {", ".join(RELEASES)}.')
    cache_dir = cache_dir or cache_folder()
    release, found = RELEASES[name], find(name, cache_dir)
    target = found or cache_dir / 'weights' / release.file
    if found:
        _verify(found, file_digest(found), release)
    else:
        url = f'{server}/{release.sha256}/{release.file}'
        log(f'Downloading {name} from {url}')
        try:
            _download(url, target, release.sha256)
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise WeightsError(
                f'{name}: cannot be fetched from {url} into {target.parent}: {error}. Try again; '
                f"or on a machine with a network run 'depthclip fetch {name}' and copy the file "
                'to that folder, or give weights: PATH; or set cache_dir or $DEPTHCLIP_CACHE to a '
                'folder that can be written and has room.') from error
    log(f'{name} is at {target}, checksum verified.')
    return target


def _download(url: str, target: Path, sha256: str) -> None:
    """Write a file as a whole, with a progress bar on a terminal, or not at all."""
    from tqdm import tqdm  # only needed here; comes with clip
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=30) as response, files.atomic(target) as file:  # noqa: S310 (user's server)
        total = int(response.headers.get('Content-Length') or 0)
        with tqdm(total=total or None, unit='B', unit_scale=True, disable=None) as bar:
            while chunk := response.read(1 << 20):
                digest.update(chunk)
                bar.update(file.write(chunk))
        if digest.hexdigest() != sha256:
            raise ConnectionError(f'{file.tell()} of {total} bytes came, with SHA-256 '
                                  f'{digest.hexdigest()}, expected {sha256}')


def user_file(name: str | Path) -> Path:
    """Whole path of a file as a user named it; whether it is there shows when it is read."""
    return Path(os.path.expanduser(name)).absolute()  # noqa: PTH111 (which raises)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        WeightsError: it cannot be read.

    """
    digest = hashlib.sha256()
    try:
        with files.open_regular(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except (OSError, ValueError) as error:
        why = getattr(error, 'strerror', '') or error
        raise WeightsError(
            f'{quoted(str(path), 200)}: cannot be read: {why}. '
            f'Give weights that user {os.geteuid()} can read (chmod a+r FILE, a+rx on its '
            f'folders), or one of {", ".join(RELEASES)}, {DEMO!r} or {UNTRAINED!r}.') from error
    return digest.hexdigest()


def _verify(path: Path, digest: str, release: Release) -> None:
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
        A state dict that was given is copied.

    Raises:
        WeightsError: missing, corrupt, of another architecture, wrong checksum, not finite.
        ConfigError: open_clip has no such model.

    """
    if isinstance(weights, tuple):
        return weights[0], copy(weights[1])
    if backbone.startswith(OPEN_CLIP):
        from . import open_clip
        return open_clip.load(weights, backbone, log, offline=offline)
    if backbone != 'auto' and backbone not in RELEASES:
        raise WeightsError(f'backbone: {quoted(backbone)} is unknown; use auto, one of '
                           f'{", ".join(RELEASES)}, or {OPEN_CLIP}ARCHITECTURE/TAG.')
    if isinstance(weights, Mapping):
        import torch
        check_tensors(weights, 'the state dict')
        state_dict = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                      for name, tensor in weights.items()}
        info = WeightsInfo('state dict', 'given in memory', state_dict_digest(state_dict))
    elif str(weights) == UNTRAINED:
        info, state_dict = _untrained('RN50' if backbone == 'auto' else backbone)
    else:
        name = str(weights) or backbone
        if name == 'auto':
            raise WeightsError("backbone: 'auto' takes what the weights hold, but weights: '' "
                               f'names none; give a file, or one of {", ".join(RELEASES)}.')
        if name in RELEASES:
            path = find(name, cache_dir)
            if path is None and offline:
                raise WeightsError(
                    f'{name}: not in the cache ({cache_dir / "weights"}) and offline is set. Run '
                    f"'depthclip fetch {name}' while there is a network, or give weights: PATH.")
            path = path or fetch(name, cache_dir, log)
        else:
            path = DEMO_FILE if name == DEMO else user_file(name)
        digest, state_dict = read_file(path, RELEASES.get(name))
        if name in RELEASES:
            log(f'{name} is read from {path}, checksum verified.')
        info = WeightsInfo(name if name in (DEMO, *RELEASES) else path.name, str(path), digest)
    _check_backbone(state_dict, backbone, info.source)
    return info, state_dict


def read_file(path: Path, release: Release | None = None) -> tuple[str, dict[str, Tensor]]:
    """SHA-256 and state dict of a file; nothing in it can run code.

    OpenAI's archives are TorchScript, which is a program; they are known by their SHA-256, and
    loaded as their own loader does. All else is `torch.save` of a state dict, or safetensors.

    Raises:
        WeightsError: it is not the release that is asked for, corrupt, or holds something else.

    """
    import torch  # this module must import without torch, for the doctor
    digest = file_digest(path)
    if release is not None:
        _verify(path, digest, release)
    loaded: Any
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file
            loaded = load_file(path)
        elif digest in {release.sha256 for release in RELEASES.values()}:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # that TorchScript is deprecated
                loaded = torch.jit.load(str(path), 'cpu').state_dict()  # type: ignore[no-untyped-call]
        else:
            refuse_torchscript(path)
            loaded = torch.load(path, map_location='cpu', weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # what a damaged file makes torch, pickle and zipfile raise
        why = '' if isinstance(error, pickle.UnpicklingError) else reason(error)  # bad advice
        raise WeightsError(
            f'{path}: cannot be read as CLIP weights: truncated, corrupt, or more than tensors '
            f'({why or "its pickle"}). Get it anew, or where you trust it save its tensors with '
            'torch.save(model.state_dict(), PATH).') from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get('state_dict'), Mapping):
        loaded = loaded['state_dict']
    if not isinstance(loaded, Mapping):
        raise WeightsError(f'{path}: holds a {type(loaded).__name__}, not a state dict of '
                           'tensors; save it with torch.save(model.state_dict(), PATH).')
    check_tensors(loaded, str(path))
    return digest, {name: tensor.detach().contiguous() for name, tensor in loaded.items()}


def refuse_torchscript(path: Path) -> None:
    """Refuse TorchScript, which older torch runs whatever it is told; WeightsError.

    `torch.save`'s files are zip archives, too, but have no constants.
    """
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if any(name.endswith('/constants.pkl') for name in archive.namelist()):
            raise WeightsError(
                f"{path}: is a TorchScript archive and none of OpenAI's: to load it would run its "
                'code. Where you trust it, save its tensors: '
                'torch.save(torch.jit.load(OLD).state_dict(), NEW).')


def check_tensors(state_dict: Mapping[str, Tensor], source: str) -> None:
    """Refuse what cannot be the weights of a CLIP, whatever the architecture.

    Raises:
        WeightsError: names the tensor that is none, or that is not of finite numbers.

    """
    import torch
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise WeightsError(
                f'{source}: {quoted(name)} is a {type(tensor).__name__}, but a state dict has '
                'tensors by their names; save it with torch.save(model.state_dict(), PATH).')
        if tensor.dtype in (torch.int32, torch.int64) and tensor.numel() == 1:
            continue  # a count
        if (tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
                or tensor.layout is not torch.strided or not tensor.numel()):
            raise WeightsError(
                f'{source}: {quoted(name)} is {tensor.dtype} {list(tensor.shape)}, '
                f'{tensor.layout}, not plain numbers of floating point; convert it.')
        # One pass over the memory, which NaN survives: 20 ms for RN50 where isfinite takes 200.
        low, high = (float(number) for number in torch.aminmax(tensor.detach()))
        # Batch norm's statistics stay in float32; all else OpenAI's loader rounds to half.
        most = torch.finfo(torch.float32 if '.running_' in name else torch.float16).max
        least = 0.0 if name.endswith('.running_var') else -most
        if not (least <= low and high <= most):
            raise WeightsError(
                f'{source}: {quoted(name)} holds NaN or numbers beyond {least:.6g} to {most:.6g} '
                f'({low:g} to {high:g}), from which no depth can come; the training diverged or '
                'the file is damaged. Give other weights.')


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
        return state_dict.architecture

    def shape(key: str) -> tuple[int, ...]:
        return tuple(state_dict[key].shape)

    def count(prefix: str) -> int:
        part = prefix.count('.')
        return len({key.split('.')[part] for key in state_dict if key.startswith(prefix)})

    layers: tuple[int, ...] | int
    patch: int | None
    try:
        if 'visual.proj' in state_dict:
            width, _, _, patch = shape('visual.conv1.weight')
            layers, stride = count('visual.transformer.resblocks.'), patch
            positions = shape('visual.positional_embedding')[0]
        else:
            width, patch, stride = shape('visual.layer1.0.conv1.weight')[0], None, 32
            layers = tuple(count(f'visual.layer{i}.') for i in (1, 2, 3, 4))
            positions = shape('visual.attnpool.positional_embedding')[0]
        return Architecture(
            shape('text_projection')[1], stride * round((positions - 1) ** 0.5), layers, width,
            patch, shape('ln_final.weight')[0])
    except KeyError as error:
        raise WeightsError(f"{source}: has no {error}, so it is not a CLIP model in OpenAI's key "
                           'layout. Give other weights.') from error
    except (ValueError, IndexError) as error:
        raise WeightsError(f"{source}: its tensors have other shapes than a CLIP model's in "
                           f"OpenAI's key layout ({error}). Give other weights.") from error


def _check_backbone(state_dict: Mapping[str, Tensor], backbone: str, source: str) -> None:
    """The weights must be of the architecture that the configuration names."""
    found = architecture(state_dict, source)
    if backbone == 'auto' or found == RELEASES[backbone].architecture:
        return
    if source == str(DEMO_FILE):
        raise WeightsError(f"weights: '{DEMO}' do not fit backbone: {backbone}; they have "
                           'settings of their own, in config/demo.yaml: start with these.')
    names = [name for name, release in RELEASES.items() if release.architecture == found]
    seen = names[0] if names else f'unknown to OpenAI ({found})'
    raise WeightsError(f"{source}: the weights' architecture is {seen}, but backbone is "
                       f"'{backbone}'; set backbone: {names[0] if names else 'auto'}, or give "
                       'other weights.')


def _untrained(backbone: str) -> Loaded:
    """Random weights of an official shape, to try the pipeline where no real ones can be had."""
    import torch

    from .clip_package import import_clip
    shape = RELEASES[backbone].architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = import_clip().model.CLIP(
            *shape[:5], 77, 49408, shape.text_width, shape.text_width // 64, 12)
    name = f'{UNTRAINED} {backbone}'
    digest = hashlib.sha256(f'{name} seed 0 torch {torch.__version__}'.encode()).hexdigest()
    return WeightsInfo(name, 'random numbers (seed 0)', digest, trained=False), model.state_dict()
