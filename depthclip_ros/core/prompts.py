# SPDX-License-Identifier: Apache-2.0
"""Text features of the distance tokens (paper §3.2), and their cache on disk.

The words never change between images, so the text encoder runs once; with a filled cache it is
not even built.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .clip_package import import_clip, tokenizer_digest
from .config import DepthConfig
from .errors import ConfigError, WeightsError
from .uninitialized import Uninitialized
from .weights import Log

CACHE_FORMAT = 1


def encode_tokens(config: DepthConfig, state_dict: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """Encode every token in every template, average over templates, renormalise.

    Args:
        config: `tokens` and `templates`.
        state_dict: CLIP weights in OpenAI's layout.

    Returns:
        (K, C) unit vectors, one per token.

    Raises:
        ConfigError: a sentence is longer than the model's context.
        WeightsError: tensors are missing or misshapen.

    """
    clip = import_clip()
    try:
        with Uninitialized():
            model = clip.model.build_model(dict(state_dict)).float()
    except (RuntimeError, KeyError) as error:
        raise WeightsError('the weights do not fit their own architecture: '
                           f'{" ".join(str(error).split())[:300]}') from error
    rows = []
    with torch.inference_mode():
        for token in config.tokens:
            sentences = [template.format(token) for template in config.templates]
            try:
                tokenized = clip.tokenize(sentences, context_length=model.context_length)
            except RuntimeError as error:
                raise ConfigError(f"tokens: '{token}' with templates {list(config.templates)} is "
                                  f"longer than the model's {model.context_length} text tokens; "
                                  'shorten it.') from error
            features = model.encode_text(tokenized)
            features = features / features.norm(dim=-1, keepdim=True)
            mean = features.mean(dim=0)
            rows.append(mean / mean.norm())
    encoded: NDArray[np.float32] = torch.stack(rows).numpy()
    return encoded


class TextFeatureCache:
    """Text features on disk: one file per combination of words, weights and tokenizer."""

    def __init__(self, folder: Path, log: Log) -> None:
        """Use a folder; it is made when something is stored."""
        self.folder = folder
        self._log = log

    def path(self, config: DepthConfig, weights_digest: str) -> Path:
        """File for this configuration: its name is a hash of all that changes the features."""
        key = json.dumps([CACHE_FORMAT, weights_digest, tokenizer_digest(), config.tokens,
                          config.templates])
        return self.folder / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz'

    def get(
        self, config: DepthConfig, weights_digest: str,
        encode: Callable[[], NDArray[np.float32]],
    ) -> tuple[NDArray[np.float32], bool]:
        """Features from the cache, else from `encode`, then kept.

        Returns:
            (K, C) unit vectors, and whether they came from the cache.

        """
        path = self.path(config, weights_digest)
        features = self._read(path, len(config.tokens))
        if features is not None:
            return features, True
        features = encode()
        self._write(path, features, config)
        return features, False

    def _read(self, path: Path, rows: int) -> NDArray[np.float32] | None:
        """Read and check a file; None when it is absent or, with a warning, corrupt."""
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                features: NDArray[np.float32] = stored['features']
                digest = str(stored['sha256'])
            if features.dtype != np.float32 or features.ndim != 2 or len(features) != rows:
                raise ValueError(f'{features.dtype} {features.shape} instead of {rows} rows')
            if digest != hashlib.sha256(features.tobytes()).hexdigest():
                raise ValueError('checksum differs')
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            self._log(f'WARNING: the text-feature cache {path} is corrupt ({error}); encoding '
                      'the words again.')
            return None
        return features

    def _write(self, path: Path, features: NDArray[np.float32], config: DepthConfig) -> None:
        """Write under a temporary name, then rename: no reader sees half a file."""
        part = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=self.folder, suffix='.part')
            with os.fdopen(handle, 'wb') as file:
                np.savez(file, features=features,
                         sha256=np.array(hashlib.sha256(features.tobytes()).hexdigest()),
                         tokens=np.array(config.tokens), templates=np.array(config.templates))
            Path(part).replace(path)
        except OSError as error:
            self._log(f'WARNING: cannot keep the text features in {self.folder} '
                      f'({error.strerror}); they are encoded again at every start. Set cache_dir '
                      'or $DEPTHCLIP_CACHE to a folder that can be written.')
            if part is not None:
                Path(part).unlink(missing_ok=True)


