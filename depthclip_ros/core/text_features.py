# SPDX-License-Identifier: Apache-2.0
"""Text features of words (paper §3.2) and their cache on disk; scenes, and bins by scene (§5).

The words do not change between images, so the text encoder runs once, and not at all if the cache
has their features.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import files
from .config import DepthConfig
from .errors import ConfigError, WeightsError, first_of, quoted
from .openai_clip import fitting_weights, import_clip, tokenizer_digest
from .releases import OPEN_CLIP
from .state_dict import Log, OpenClipWeights, TextEncoder

ALIKE = 0.999  # cosine above which a model cannot tell words apart
MAX_LISTED = 10  # words, or pairs of them, in a sentence


class Phrases(NamedTuple):
    """Words and the sentences around them, which together determine text features."""

    words: tuple[str, ...]
    templates: tuple[str, ...]
    setting: str = 'tokens'  # name of the setting with the words, for errors


def phrases_of(config: DepthConfig) -> list[Phrases]:
    """List the phrases of the tokens, and those of the scenes if the settings have any."""
    scenes = Phrases(config.scenes, config.scene_templates, 'scenes')
    return [Phrases(config.tokens, config.templates), *[scenes] * config.has_scenes]


def encode(phrases: Phrases, state_dict: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """Encode every word in every template, average over templates, renormalise.

    Args:
        phrases: words and templates.
        state_dict: CLIP weights in OpenAI's layout, or open_clip's.

    Returns:
        (K, C) unit vectors, one per word.

    Raises:
        ConfigError: a sentence is longer than the model's context.
        WeightsError: tensors are missing or misshapen.

    """
    tokenize, encoder, context = text_encoder(state_dict)
    rows = []
    with torch.inference_mode():
        for word in phrases.words:
            try:
                tokens = tokenize([text.replace('{}', word) for text in phrases.templates])
            except RuntimeError as error:
                raise ConfigError(
                    f'{phrases.setting}: {quoted(word)} with templates '
                    f"{quoted(list(phrases.templates))} is longer than the model's {context} text "
                    'tokens; shorten it.') from error
            features = encoder(tokens)
            features = features / features.norm(dim=-1, keepdim=True)
            mean = features.mean(dim=0)
            rows.append(mean / mean.norm())
    encoded: NDArray[np.float32] = torch.stack(rows).numpy()
    return encoded


def words_out_of_vocabulary(texts: Sequence[str], state_dict: Mapping[str, Tensor]) -> list[str]:
    """List the words outside a model's vocabulary, each once, in their order.

    A model with a small vocabulary, as the demo's, has the same token embedding for all words
    outside of it. OpenAI's and open_clip's models have an embedding for every text.
    """
    if isinstance(state_dict, OpenClipWeights):
        return []
    embeddings = state_dict['token_embedding.weight']
    # An embedding that more than half of the tokens share has the commonest first number.
    is_out_of_vocabulary = (embeddings == embeddings[embeddings[:, 0].mode().indices]).all(dim=1)
    if is_out_of_vocabulary.sum() <= len(embeddings) // 2:
        return []
    tokenizer = import_clip().tokenizer
    return [word for word in dict.fromkeys(' '.join(texts).split())
            if is_out_of_vocabulary[tokenizer.encode(word)].any()]


def all_alike(features: NDArray[np.float32]) -> bool:
    """Tell whether (K, C) unit vectors of words are all alike, as outside of the vocabulary."""
    return bool((features @ features.T).min() > ALIKE)


def word_warnings(
    phrases: Phrases, features: NDArray[np.float32], weights: Callable[[], Mapping[str, Tensor]],
    *, thorough: bool,
) -> list[str]:
    """Compose warnings about words, and their (K, C) features, that the model cannot tell apart.

    `weights` returns the tensors. Unless `thorough`, words outside of the vocabulary are searched
    only if two words are alike, so that no tokenizer is loaded otherwise. ConfigError: two words
    have the same tokens. WeightsError: the tokenizer cannot be imported.
    """
    words, sentences = phrases.words, []
    pairs = np.argwhere(np.triu(features @ features.T, 1) > ALIKE)
    if len(pairs):
        _check_tokens(phrases, text_encoder(weights())[0])
    if unlearnt := words_out_of_vocabulary(words, weights()) if thorough or len(pairs) else []:
        names = first_of(map(quoted, unlearnt), MAX_LISTED)
        sentences.append(f'this model has never learnt {names}. All words that it does not know '
                         'are the same to it.')
    if all_alike(features) and len(words) > 1:
        answer = ('its depth is the mean of the bins' if phrases.setting == 'tokens' else
                  'all scenes are as probable as each other')
        sentences.append('this model takes all these words for the same (all cosines above '
                         f'{ALIKE:g}): {answer}, whatever is in the picture.')
    elif len(pairs):
        names = first_of(
            (f'{quoted(words[i])} from {quoted(words[j])}' for i, j in pairs), MAX_LISTED)
        sentences.append(f'this model cannot tell {names} (cosine above {ALIKE:g}): which of them '
                         'answers more says nothing.')
    return sentences


def _check_tokens(phrases: Phrases, tokenize: Callable[[list[str]], Tensor]) -> None:
    """Check that no two words have the same tokens: the tokenizer cleans and lowers text."""
    words_by_tokens: dict[str, str] = {}
    for word in phrases.words:
        tokens = tokenize([template.replace('{}', word) for template in phrases.templates])
        if (same_word := words_by_tokens.setdefault(str(tokens.tolist()), word)) != word:
            raise ConfigError(
                f'{phrases.setting}: {quoted(same_word)} and {quoted(word)} are one and the same '
                'to the model, and so stand twice; give each word once.')


def text_encoder(state_dict: Mapping[str, Tensor]) -> TextEncoder:
    """Build tokenizer and text encoder; with the largest number of tokens of a sentence."""
    if isinstance(state_dict, OpenClipWeights):
        return state_dict.text_encoder()
    clip = import_clip()
    with fitting_weights():
        model = clip.model.build_model(dict(state_dict)).float()
    tokenize = functools.partial(clip.tokenize, context_length=model.context_length)
    return tokenize, model.encode_text, model.context_length


def cache_path(phrases: Phrases, folder: Path, backbone: str, digest: str) -> Path:
    """Path of text features, by a hash of all that they depend on, the tokenizer included."""
    if backbone.startswith(OPEN_CLIP):
        from .open_clip import require
        versions = [f'open_clip {require(backbone).__version__}']
        for package in ('transformers', 'tokenizers'):  # of SigLIP and others; files of their hub
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions.append(f'{package} {metadata.version(package)}')
        tokenizer = ', '.join(versions)
    else:
        tokenizer = tokenizer_digest()
    key = json.dumps([digest, tokenizer, phrases.words, phrases.templates])
    return folder / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy'


def cached_features(
    phrases: Phrases, folder: Path, backbone: str, digest: str,
    weights: Callable[[], Mapping[str, Tensor]], log: Log,
) -> tuple[NDArray[np.float32], bool]:
    """Read text features from the cache on disk, or encode and store them.

    Args:
        phrases: words and templates.
        folder: of the cache, with a file for each combination of phrases, weights and tokenizer.
        backbone: as in `DepthConfig`; it determines the tokenizer.
        digest: SHA-256 of the weights.
        weights: returns the tensors, called only if the cache has no features.
        log: gets warnings about files that cannot be read or written.

    Returns:
        (K, C) unit vectors, and whether they came from the disk.

    Raises:
        ConfigError: a sentence is longer than the model's context.
        WeightsError: the features are not finite, or the tokenizer cannot be imported.

    """
    path = cache_path(phrases, folder, backbone, digest)
    try:
        with files.open_regular(path) as file:
            features = np.lib.format.read_array(file, allow_pickle=False)
        if features.ndim == 2 and len(features) == len(phrases.words) \
                and np.isfinite(features).all():
            return features.astype(np.float32), True
        fault = f'they are {features.dtype} {features.shape}'
    except FileNotFoundError:
        fault = ''
    except (OSError, EOFError, ValueError, TypeError) as error:  # of a damaged file
        fault = str(error)
    if fault:
        log(f'WARNING: the text features in {path} cannot be used ({fault}); the words are '
            'encoded again.')
    features = encode(phrases, weights())
    if not np.isfinite(features).all():
        raise WeightsError("the text features of these weights are not finite; the text "
                           "encoder's weights are damaged. Give other weights.")
    try:
        with files.atomic(path) as file:
            np.save(file, features)
    except OSError as error:
        log(f'WARNING: the text features cannot be kept in {folder} ({error.strerror}); they are '
            'encoded at every start. Set cache_dir or $DEPTHCLIP_CACHE to a folder that can be '
            'written.')
    return features, False
