# SPDX-License-Identifier: Apache-2.0
"""Words as text features (paper §3.2) and their cache on disk; scenes, and bins by scene (§5).

The words never change between images, so the text encoder runs once; with a filled cache it is
not even built.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from . import files
from .clip_package import fitting_weights, import_clip, tokenizer_digest
from .config import DepthConfig
from .errors import ConfigError, WeightsError, first_of, quoted
from .projection import LOGIT_SCALE
from .releases import OPEN_CLIP
from .state_dict import Log, OpenClipWeights, TextEncoder

ALIKE = 0.999  # cosine of words that a model cannot tell apart
MOST_NAMED = 10  # words, or pairs of them, in a sentence


class Phrases(NamedTuple):
    """What has text features of its own."""

    words: tuple[str, ...]
    templates: tuple[str, ...]
    setting: str = 'tokens'  # which gives them, for errors


def phrases_of(config: DepthConfig) -> list[Phrases]:
    """The tokens, and the scenes if there are any."""
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
                tokenized = tokenize([one.replace('{}', word) for one in phrases.templates])
            except RuntimeError as error:
                raise ConfigError(
                    f'{phrases.setting}: {quoted(word)} with templates '
                    f"{quoted(list(phrases.templates))} is longer than the model's {context} text "
                    'tokens; shorten it.') from error
            features = encoder(tokenized)
            features = features / features.norm(dim=-1, keepdim=True)
            mean = features.mean(dim=0)
            rows.append(mean / mean.norm())
    encoded: NDArray[np.float32] = torch.stack(rows).numpy()
    return encoded


def unknown_words(texts: Sequence[str], state_dict: Mapping[str, Tensor]) -> list[str]:
    """Words that a model has never learnt, each once, in their order.

    A model with a small vocabulary, as the demo's, keeps one and the same row for all words
    outside of it. OpenAI's models have no such row, and know something of every text; so do
    open_clip's, whose rows are not looked at.
    """
    if isinstance(state_dict, OpenClipWeights):
        return []
    rows = state_dict['token_embedding.weight']
    # A row that more than half of all are has the commonest first number.
    unknown = (rows == rows[rows[:, 0].mode().indices]).all(dim=1)
    if unknown.sum() <= len(rows) // 2:
        return []
    tokenizer = import_clip().tokenizer
    return [word for word in dict.fromkeys(' '.join(texts).split())
            if unknown[tokenizer.encode(word)].any()]


def are_alike(features: NDArray[np.float32]) -> bool:
    """Whether (K, C) unit vectors of words are all the same, as of words that it does not know."""
    return bool((features @ features.T).min() > ALIKE)


def doubts(
    phrases: Phrases, features: NDArray[np.float32], weights: Callable[[], Mapping[str, Tensor]],
    *, thorough: bool,
) -> list[str]:
    """What must be known of words and their (K, C) features before depth is believed: sentences.

    `weights` gives the tensors. Unless `thorough`, unknown words are not looked for where no two
    words are alike, so that no tokenizer is loaded.

    Raises:
        ConfigError: two words are one and the same to the tokenizer.
        WeightsError: the tokenizer cannot be imported.

    """
    words, sentences = phrases.words, []
    pairs = np.argwhere(np.triu(features @ features.T, 1) > ALIKE)
    if len(pairs):
        _check_tokens(phrases, text_encoder(weights())[0])
    if unknown := unknown_words(words, weights()) if thorough or len(pairs) else []:
        names = first_of(map(quoted, unknown), MOST_NAMED)
        sentences.append(f'this model has never learnt {names}. All words that it does not know '
                         'are the same to it.')
    if are_alike(features) and len(words) > 1:
        answer = ('its depth is the mean of the bins' if phrases.setting == 'tokens' else
                  'all scenes are as probable as each other')
        sentences.append('this model takes all these words for the same (all cosines above '
                         f'{ALIKE:g}): {answer}, whatever is in the picture.')
    elif len(pairs):
        names = first_of(
            (f'{quoted(words[i])} from {quoted(words[j])}' for i, j in pairs), MOST_NAMED)
        sentences.append(f'this model cannot tell {names} (cosine above {ALIKE:g}): which of them '
                         'answers more says nothing.')
    return sentences


def _check_tokens(phrases: Phrases, tokenize: Callable[[list[str]], Tensor]) -> None:
    """Refuse words that the tokenizer, which cleans and lowers text, gives as the same."""
    words: dict[str, str] = {}
    for word in phrases.words:
        tokens = tokenize([one.replace('{}', word) for one in phrases.templates])
        if (other := words.setdefault(str(tokens.tolist()), word)) != word:
            raise ConfigError(f'{phrases.setting}: {quoted(other)} and {quoted(word)} are one and '
                              'the same to the model, and so stand twice; give each word once.')


def text_encoder(state_dict: Mapping[str, Tensor]) -> TextEncoder:
    """Tokenizer, text encoder, and how many tokens a sentence may have."""
    if isinstance(state_dict, OpenClipWeights):
        return state_dict.text_encoder()
    clip = import_clip()
    with fitting_weights():
        model = clip.model.build_model(dict(state_dict)).float()
    tokenize = functools.partial(clip.tokenize, context_length=model.context_length)
    return tokenize, model.encode_text, model.context_length


def cache_path(phrases: Phrases, folder: Path, backbone: str, digest: str) -> Path:
    """File of text features: its name is a hash of all that changes them.

    Of the tokenizer, too: with another one the same weights see other sentences.
    """
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
    """Text features from the disk, else encoded and then kept there.

    Args:
        phrases: words and templates.
        folder: of the files, one for each combination of phrases, weights and tokenizer.
        backbone: as in `DepthConfig`; it says whose tokenizer is used.
        digest: of the weights.
        weights: gives them where they are needed.
        log: is told what cannot be used or stored.

    Returns:
        (K, C) unit vectors, and whether they came from the disk.

    Raises:
        ConfigError: a sentence is longer than the model's context.
        WeightsError: the weights give something else, or the tokenizer cannot be imported.

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
    except (OSError, EOFError, ValueError, TypeError) as error:  # what a damaged file raises
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


@dataclass(frozen=True)
class Scene:
    """What kind of scene an image shows.

    Attributes:
        names: the S kinds that there are.
        probabilities: (S,) float32, with what the camera's images before have left in them.
        plain: part that `bins` have in the image's bins, since the scene is uncertain: 0 to 1.
        name: the most probable scene; '' while `plain` is more than a half.

    """

    names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    plain: float
    name: str


def scene_probabilities(image: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Zero-shot classification as CLIP's own, the mean over the passes.

    (passes, B, C) of the attention pool, of any length, and (S, C) unit vectors -> (B, S), sums
    to 1 over S. All the same where an image has no finite features.
    """
    cosine = normalize(image, dim=2) @ text.T
    probabilities = (LOGIT_SCALE / temperature * cosine).softmax(dim=2).mean(dim=0)
    usable = probabilities.isfinite().all(dim=1, keepdim=True)
    return probabilities.where(usable, 1 / len(text))


def mixed_bins(probabilities: Tensor, plain: Tensor, of_scenes: Tensor, bins: Tensor) -> Tensor:
    """(B, K) bins of every image: the mean of (S, K) metres under (B, S) probabilities.

    A part (B,) of them are the plain ones, (K,) metres.
    """
    mixture = probabilities @ of_scenes
    return mixture + plain[:, None] * (bins - mixture)


def sort_into_scenes(
    config: DepthConfig, probabilities: Tensor, before: Sequence[Scene | None],
) -> tuple[list[Scene], Tensor, Tensor]:
    """Name the scenes of images, with what the cameras' images before have left in them.

    Args:
        config: its scenes, `scene_memory` and `scene_entropy`.
        probabilities: (B, S), of each image by itself.
        before: the scene of the same camera's image before; None for none.

    Returns:
        The scenes, their probabilities (B, S), and the part (B,) of the plain bins: 0 up to an
        entropy of `scene_entropy`, 1 where all are as probable as each other, linear in between.

    """
    names, limit = config.scenes, config.scene_entropy
    for i, scene in enumerate(before):
        if scene is not None and scene.names == names:
            past = torch.from_numpy(scene.probabilities).to(probabilities.device)
            probabilities[i] += config.scene_memory * (past - probabilities[i])
    plain = torch.zeros_like(probabilities[:, 0])
    if len(names) > 1 and limit < 1:
        entropy = torch.special.entr(probabilities).sum(dim=1) / math.log(len(names))
        plain = ((entropy - limit) / (1 - limit)).clamp(0, 1)
    named = [Scene(names, shares, part, names[int(shares.argmax())] if part <= 0.5 else '')
             for shares, part in zip(probabilities.cpu().numpy(), plain.tolist(), strict=True)]
    return named, probabilities, plain
