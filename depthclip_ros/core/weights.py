# SPDX-License-Identifier: Apache-2.0
"""CLIP weights: found, downloaded, read, and checked against their architecture and SHA-256."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from . import files
from .errors import ConfigError, WeightsError, did_you_mean, quoted
from .releases import (
    DEMO,
    OPEN_CLIP,
    RELEASES,
    UNTRAINED,
    Release,
    WeightsInfo,
    file_digest,
    user_file,
)
from .state_dict import (
    Architecture,
    Log,
    architecture,
    digest_of,
    openai_tensors,
    read_data,
)

if TYPE_CHECKING:
    from torch import Tensor

DEMO_FILE = Path(__file__).parents[1] / 'models' / 'demo.pt'
_DEMO_HINT = ('What runs at once is --weights demo (of the node: weights: demo), a small model of '
            'rendered rooms.')
DOWNLOAD_SERVER = 'https://openaipublic.azureedge.net/clip/models'
# Widths of attention heads, as in So400m, ViT-H, -g, -bigG and -e; OpenAI's are 64 wide.
_LARGE_HEAD_WIDTHS = 72, 80, 88, 104, 112

LoadedWeights = tuple[WeightsInfo, dict[str, 'Tensor']]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Choose the folder of weights and text features, which need not exist yet.

    `cache_dir`, else $DEPTHCLIP_CACHE, else depthclip_ros in $XDG_CACHE_HOME or in ~/.cache.
    ConfigError if no folder can have that name.
    """
    folder = cache_dir or os.environ.get('DEPTHCLIP_CACHE') or (
        f'{os.environ.get("XDG_CACHE_HOME") or "~/.cache"}/depthclip_ros')
    try:
        path = files.user_path(folder)
        if not (cache_dir or path.is_absolute()):
            raise NotADirectoryError(0, 'it is relative to wherever the process was started')
    except OSError as error:
        raise ConfigError(
            f'{quoted(str(folder))} cannot be the folder of the cache: {error.strerror}. Set '
            'cache_dir or $DEPTHCLIP_CACHE to the whole path of a folder.') from error
    return path.absolute()


def find_release(name: str, cache_dir: Path) -> Path | None:
    """Find an official model in our cache, then in that of OpenAI's loader; None if in neither."""
    file = RELEASES[name].file
    paths = cache_dir / 'weights' / file, Path(os.path.expanduser('~/.cache/clip')) / file  # noqa: PTH111
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113


def download_release(
    name: str, cache_dir: Path, log: Log = print, server: str = DOWNLOAD_SERVER, *,
    offline: bool = False,
) -> Path:
    """Find an official model, or download and verify it from SERVER/SHA256/FILE.

    WeightsError: unknown name, offline, no network, no space, or a wrong checksum.
    """
    if name not in RELEASES:
        raise WeightsError(f'{quoted(name)} is no CLIP model; there are {", ".join(RELEASES)}.')
    cached, (file_name, sha256, _) = find_release(name, cache_dir), RELEASES[name]
    if cached:
        return cached
    target, url = cache_dir / 'weights' / file_name, f'{server}/{sha256}/{file_name}'
    if offline:
        raise WeightsError(
            f'{name}: not in the cache ({target.parent}) and offline is set. Run '
            f"'depthclip fetch {name}' while there is a network, or give weights: PATH. "
            f'{_DEMO_HINT}')
    from tqdm import tqdm  # only needed here; comes with clip
    log(f'Downloading {name} from {url}')
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=30) as response, files.atomic(target) as file:  # noqa: S310 (user's server)
            total = int(response.headers.get('Content-Length') or 0)
            with tqdm(total=total or None, unit='B', unit_scale=True, disable=None) as bar:
                while chunk := response.read(1 << 20):
                    digest.update(chunk)
                    bar.update(file.write(chunk))
            if digest.hexdigest() != sha256:
                raise ConnectionError(f'{file.tell()} of {total} bytes came, with SHA-256 '
                                      f'{digest.hexdigest()}, expected {sha256}')
    except (http.client.HTTPException, OSError) as error:
        raise WeightsError(
            f'{name}: cannot be fetched from {url} into {target.parent}: {error}. Try again; or '
            f"on a machine with a network run 'depthclip fetch {name}' and copy the file to that "
            'folder, or give weights: PATH; or set cache_dir or $DEPTHCLIP_CACHE to a folder that '
            f'can be written and has room. {_DEMO_HINT}') from error
    return target


def _openai_name(backbone: str) -> str:
    """Convert open_clip's or Hugging Face's name of a model to OpenAI's spelling."""
    name = backbone.lower().rpartition('clip-')[2]
    return name.replace('base-patch', 'b/').replace('large-patch', 'l/')


def load_weights(
    weights: str | Path | Mapping[str, Tensor] | LoadedWeights, backbone: str, cache_dir: Path,
    log: Log = print, *, offline: bool = False,
) -> LoadedWeights:
    """Load CLIP weights by name, from a file or from memory.

    Args:
        weights: official name, 'demo', file (state dict, safetensors, or OpenAI's own archive),
            'untrained', a state dict, '' for the backbone's official weights, or an earlier
            result of this function, which it returns as it is.
        backbone: the architecture they must have; 'auto' takes any in OpenAI's layout.
        cache_dir: folder of official weights.
        log: gets a sentence about each step.
        offline: forbid a download.

    Returns:
        Their identity, and the state dict in OpenAI's layout (or `OpenClipWeights`) on the CPU,
        a copy where `weights` is one.

    Raises:
        WeightsError: missing, corrupt, of another architecture, wrong checksum, not finite.
        ConfigError: open_clip has no such model.

    """
    if isinstance(weights, tuple):
        return weights
    if backbone.startswith(OPEN_CLIP):
        from . import open_clip  # and with it torch, which names and downloads do not need
        return open_clip.load(weights, backbone, log, offline=offline)
    if backbone != 'auto' and backbone not in RELEASES:
        suggestion = did_you_mean([_openai_name(backbone)], list(RELEASES))
        raise WeightsError(f'backbone: {quoted(backbone)} is unknown; {suggestion}use auto, one '
                           f'of {", ".join(RELEASES)}, or {OPEN_CLIP}ARCHITECTURE/TAG.')
    if isinstance(weights, Mapping):
        import torch
        state_dict = {name: tensor.cpu().clone(memory_format=torch.contiguous_format)
                      for name, tensor in openai_tensors(weights, 'the state dict', log).items()}
        info = WeightsInfo('state dict', 'given in memory', digest_of(state_dict))
    elif str(weights) == UNTRAINED:
        info, state_dict = _untrained('RN50' if backbone == 'auto' else backbone)
    else:
        name = str(weights) or backbone
        path = (download_release(name, cache_dir, log, offline=offline) if name in RELEASES else
                DEMO_FILE if name == DEMO else user_file(name))
        digest, state_dict = read_file(path, RELEASES.get(name), log)
        if name in RELEASES:
            log(f'{name} is read from {path}, checksum verified.')
        info = WeightsInfo(name if name in (DEMO, *RELEASES) else path.name, str(path), digest)
    shape = architecture(state_dict, info.source)
    if backbone not in ('auto', *(name for name, release in RELEASES.items()
                                  if release.architecture == shape)):
        raise WeightsError(
            f"{info.source}: the weights' architecture is {shape}, but backbone is '{backbone}'; "
            f'give other weights, or settings that fit (of {DEMO!r}: config/demo.yaml; backbone: '
            'auto takes what the weights hold).')
    if info.name != DEMO and info.trained and not _is_release(info.digest):
        _check_assumptions(shape, info.source, log)
    return info, state_dict


def read_file(
    path: Path, release: Release | None = None, log: Log = print,
) -> tuple[str, dict[str, Tensor]]:
    """Read SHA-256 and state dict of a file in OpenAI's layout; WeightsError if it is not one.

    `log` gets the names of tensors that are left out.
    """
    digest = file_digest(path, release)
    data = read_data(path, is_release=_is_release(digest))
    tensors = openai_tensors(data, str(path), log)
    return digest, {name: tensor.contiguous() for name, tensor in tensors.items()}


def _is_release(digest: str) -> bool:
    return any(digest == release.sha256 for release in RELEASES.values())


def _check_assumptions(shape: Architecture, source: str, log: Log) -> None:
    """Log the assumptions about weights that are no release; refuse an unlikely architecture.

    A state dict tells neither the width of the attention heads nor the activation. All of
    OpenAI's models have heads of 64 channels and QuickGELU, but not all of open_clip's.
    """
    if shape.patch and shape.width not in {
            release.architecture.width for release in RELEASES.values()} and any(
            shape.width % head == 0 for head in _LARGE_HEAD_WIDTHS):
        raise WeightsError(
            f"{source}: its vision transformer is {shape.width} wide, which none of OpenAI's is, "
            'and the width of its attention heads is not in the file: 64, or '
            f'{", ".join(map(str, _LARGE_HEAD_WIDTHS))} as in larger models. Give backbone: '
            f'{OPEN_CLIP}ARCHITECTURE/TAG, the model of open_clip that it is (docs/variants.md).')
    log(f"{source}: heads and activation are not in a state dict, and are taken to be OpenAI's: "
        'heads of 64 channels, QuickGELU. If open_clip trained these weights, give backbone: '
        f'{OPEN_CLIP}ARCHITECTURE/TAG instead.')


def _untrained(backbone: str) -> LoadedWeights:
    """Make random weights of an official architecture, for tests without a download."""
    import torch

    from .openai_clip import import_clip
    shape = RELEASES[backbone].architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = import_clip().model.CLIP(
            *shape[:5], 77, 49408, shape.text_width, shape.text_width // 64, 12)
    name = f'{UNTRAINED} {backbone}'
    digest = hashlib.sha256(f'{name} seed 0 torch {torch.__version__}'.encode()).hexdigest()
    return WeightsInfo(name, 'random numbers (seed 0)', digest, trained=False), model.state_dict()
