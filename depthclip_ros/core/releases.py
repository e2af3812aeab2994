# SPDX-License-Identifier: Apache-2.0
"""Names of weights, OpenAI's released models, and the SHA-256 that proves a file is one of them.

Needs no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from . import files
from .errors import WeightsError, did_you_mean, quoted
from .state_dict import Architecture

UNTRAINED = 'untrained'
DEMO = 'demo'  # the small CLIP that comes with this package (docs/demo_model.md)
OPEN_CLIP = 'open_clip:'  # prefix of a backbone that is one of open_clip's models
_SUFFIXES = '.pt', '.pth', '.bin', '.ckpt', '.safetensors'


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
    """Identity of the weights that an estimator runs on."""

    name: str  # official name, 'demo', file name, 'untrained', or 'state dict'
    source: str  # path or origin, in words
    digest: str  # SHA-256 (hex) of the file, or of the tensors of a state dict
    trained: bool = True  # False if the numbers, and so the depth, are random


def user_file(name: str | Path) -> Path:
    """Absolute path of a file that a user named; it need not exist."""
    return Path(os.path.expanduser(name)).absolute()  # noqa: PTH111 (which raises)


def file_digest(path: Path, release: Release | None = None) -> str:
    """Compute the SHA-256 of a file, in hex; WeightsError if it differs from the release's."""
    digest = hashlib.sha256()
    try:
        with files.open_regular(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        candidates = sorted(
            name for name in os.listdir(path) if name.endswith(_SUFFIXES)  # noqa: PTH208
        ) if os.path.isdir(path) else []  # noqa: PTH112 (which raises)
        suggestion = did_you_mean([path.name], list(RELEASES)).replace('did', 'Did')
        remedy = f'one of the files in it ({", ".join(candidates)})' if candidates else (
            f'a file that user {os.geteuid()} can read (chmod a+r FILE, a+rx on its folders)'
            if os.path.exists(path) else 'a file')  # noqa: PTH110 (which raises)
        raise WeightsError(
            f'{quoted(str(path), 200)}: cannot be read: {error.strerror}. {suggestion}Give '
            f'weights: {remedy}, or one of {", ".join(RELEASES)}, {DEMO!r} or {UNTRAINED!r}.'
        ) from error
    sha256 = digest.hexdigest()
    if release is not None and sha256 != release.sha256:
        raise WeightsError(f'{path}: SHA-256 is {sha256}, expected {release.sha256}; the file is '
                           'damaged or not the official one. Delete it and fetch it again, or '
                           'give it as weights: PATH if it is yours.')
    return sha256
