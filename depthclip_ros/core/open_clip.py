# SPDX-License-Identifier: Apache-2.0
"""Models of open_clip as backbones: `backbone: open_clip:ARCHITECTURE/TAG` (docs/variants.md).

Dense features have one definition for all of them: the model's own head, or its last attention,
looks at every position alone. Softmax over a single key is 1, so that attention gives that
position's value, projected, as MaskCLIP does with OpenAI's models; and a mean over one position
is that position. open_clip itself (optional) is imported only for such a backbone.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import files
from .backbone import ImageEncoder, PatchTransformer
from .errors import ConfigError, WeightsError, quoted, reason
from .weights import (
    OPEN_CLIP,
    UNTRAINED,
    Architecture,
    Log,
    OpenClipWeights,
    TextEncoder,
    WeightsInfo,
    file_digest,
    refuse_torchscript,
    user_file,
)

# Sequences that go through an attention at once: a GPU's kernels have room for 65535.
MOST_ALONE = 32768
# Vision towers of timm's whose last attention or head can look at one position alone.
_KNOWN_TRUNKS = ('VisionTransformer', 'ConvNeXt', 'FastVit')


def require(backbone: str) -> Any:
    """Give the package open_clip; WeightsError if it is missing, or cannot be imported."""
    try:
        return importlib.import_module('open_clip')
    except Exception as error:  # other people's code raises anything
        raise WeightsError(
            f'backbone: {quoted(backbone)} needs open_clip ({reason(error)}): pip install '
            "open_clip_torch; or use one of OpenAI's models, such as RN50.") from error


def load(
    weights: str | Path | Mapping[str, Tensor], backbone: str, log: Log, *, offline: bool,
) -> tuple[WeightsInfo, OpenClipWeights]:
    """Load weights of one of open_clip's models; see `depthclip_ros.core.weights.load`.

    The digest is one of the architecture's name and of the file, since the same tensors can be
    another model (QuickGELU).

    `weights` is a file (.safetensors or state dict), 'untrained', or '' for the weights that the
    tag of open_clip:ARCHITECTURE/TAG names.

    Raises:
        WeightsError: open_clip is missing; weights are missing, corrupt, or of another shape.
        ConfigError: there is no such architecture or tag, or it has no dense features.

    """
    open_clip = require(backbone)
    model, _, tag = backbone.removeprefix(OPEN_CLIP).partition('/')
    _check(open_clip, model, tag)
    config, released = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(model)
    normalizations = {(tuple(each['mean']), tuple(each['std'])) for each in (
        open_clip.get_pretrained_cfg(model, name) for name in tags)} or {
        (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)}
    if len(normalizations) > 1:
        raise ConfigError(
            f'backbone: {OPEN_CLIP}{model}: its weights differ in the mean and deviation of '
            f'their images; name the one that yours are like: {", ".join(tags)}.')
    mean, deviation = normalization = normalizations.pop()
    log(f"{backbone}: images are normalised by the model's own mean {mean} and deviation "
        f'{deviation}; `normalization` is for the models of OpenAI.')
    if isinstance(weights, Mapping):
        raise WeightsError(f'{backbone}: weights cannot be a state dict in memory; save it with '
                           'torch.save(model.state_dict(), PATH), and give weights: PATH.')
    if str(weights) == UNTRAINED:
        name, source = f'{UNTRAINED} {OPEN_CLIP}{model}', 'random numbers (seed 0)'
        digest, path = f'seed 0 torch {torch.__version__} open_clip {open_clip.__version__}', None
    else:
        path = user_file(weights) if str(weights) else \
            _tagged(open_clip, backbone, released, log, offline=offline)
        name, source = path.name if str(weights) else backbone, str(path)
        digest = file_digest(path)
        refuse_torchscript(path)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = open_clip.create_model(
                model, None if path is None else str(path), load_weights=path is not None,
                weights_only=True).eval().requires_grad_(False)
    except Exception as error:  # what files, open_clip, timm and torch raise
        raise WeightsError(
            f'{backbone}: open_clip {open_clip.__version__} cannot make it of {source} '
            f'({reason(error)}). Give its own weights, as a state dict or .safetensors.'
        ) from error
    found = OpenClipWeights(network.state_dict())
    found.architecture, found.normalization = _architecture(config), normalization
    found.image_encoder = partial(_image_encoder, network.visual, model)
    found.text_encoder = partial(_text_encoder, network, model)
    digest = hashlib.sha256(f'{OPEN_CLIP}{model} {digest}'.encode()).hexdigest()
    return WeightsInfo(name, source, digest, trained=path is not None), found


def _check(open_clip: Any, model: str, tag: str) -> None:
    """Refuse what open_clip does not have, or what has no dense features."""
    if model not in open_clip.list_models():
        raise ConfigError(
            f'backbone: open_clip {open_clip.__version__} has no architecture {quoted(model)}; '
            'see open_clip.list_models() or docs/variants.md.')
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and not open_clip.is_pretrained_cfg(model, tag):
        raise ConfigError(
            f"backbone: open_clip's {model} has no weights with the tag {quoted(tag)}; it has "
            f'{"these: " + ", ".join(tags) if tags else "none: give a file as weights"}.')
    config, released = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
    for refused, why in (
            ('multimodal_cfg' in config, 'its image embedding is mixed from many learned queries'),
            ('hf_model_name' in config['text_cfg'],
             'its text encoder is described by files of the Hugging Face hub, which are not read'),
            (config['vision_cfg'].get('timm_pool') in ('abs_attn', 'rot_attn'),
             'its attention pool asks with the mean of all positions')):
        if refused:
            raise _refusal(model, why)
    # A file that goes with a tag has that tag's activation, too.
    quick = bool(released.get('quick_gelu'))
    if tag and quick != bool(config.get('quick_gelu')):
        other = model.removesuffix('-quickgelu') + '-quickgelu' * quick
        raise ConfigError(f'backbone: {tag} was trained with another activation than {model}; '
                          f'use {OPEN_CLIP}{other}/{tag}.')


def _refusal(model: str, why: str) -> ConfigError:
    return ConfigError(f'backbone: {OPEN_CLIP}{model} has no dense features here: {why}; '
                       'docs/variants.md lists those that have.')


def _tagged(
    open_clip: Any, backbone: str, released: Mapping[str, Any], log: Log, *, offline: bool,
) -> Path:
    """File of the weights that a tag names, from open_clip's own cache or from the network."""
    if not released:
        raise WeightsError(f'backbone: {quoted(backbone)} names an architecture and no weights; '
                           'give it as open_clip:ARCHITECTURE/TAG, or a file as weights.')
    if not offline:
        log(f'{backbone}: open_clip looks for its weights, and downloads them once.')
        try:
            return Path(open_clip.download_pretrained(released))
        except Exception as error:  # networks, disks, and two libraries' own
            raise WeightsError(
                f'{backbone}: the weights cannot be downloaded ({reason(error)}). Start once '
                'while there is a network, or give the file as weights: PATH.') from error
    from huggingface_hub import try_to_load_from_cache  # comes with open_clip
    repository, file = os.path.split(released.get('hf_hub') or '')
    names = (f'{file[:-4]}.safetensors', file) if file else (
        'open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
    found = [try_to_load_from_cache(repository, name) for name in names] if repository else []
    if released.get('url'):
        found.append(str(files.user_path('~/.cache/clip') / Path(released['url']).name))
    for path in found:
        if isinstance(path, str) and Path(path).is_file():
            return Path(path)
    raise WeightsError(f"{backbone}: not in open_clip's cache, and offline is set. Start once "
                       'while there is a network, or give the file as weights: PATH.')


def _architecture(config: Mapping[str, Any]) -> Architecture:
    vision, layers = config['vision_cfg'], config['vision_cfg'].get('layers', 0)
    is_resnet = isinstance(layers, list)
    return Architecture(
        config['embed_dim'], vision.get('image_size', 224),
        tuple(layers) if is_resnet else layers, vision.get('width', 0),
        None if is_resnet else vision.get('patch_size', 0), config['text_cfg'].get('width', 512))


def _image_encoder(visual: Any, model: str) -> ImageEncoder:
    """Dense encoder of a vision tower that is not a ResNet of CLIP's."""
    visual = deepcopy(visual)
    if hasattr(visual, 'trunk'):
        kind = type(visual.trunk).__name__
        if kind not in _KNOWN_TRUNKS:
            raise _refusal(model, f'what {kind} does at its end is not known here')
        trunk = DenseTimm(visual)
        return ImageEncoder(trunk, trunk.stride)
    if visual.attn_pool is not None:
        raise _refusal(model, 'its image embedding is mixed from learned queries')
    return ImageEncoder(DenseOpenClipVit(visual), visual.patch_size[0])


def _text_encoder(network: Any, model: str) -> TextEncoder:
    """Tokenizer, text encoder, and how many tokens a sentence may have.

    The tokenizer raises RuntimeError for a sentence that is too long, where open_clip's own cuts
    it off.
    """
    try:
        tokenizer = require(OPEN_CLIP + model).get_tokenizer(model)
    except Exception as error:
        raise WeightsError(
            f'{OPEN_CLIP}{model}: its tokenizer cannot be had ({reason(error)}). Those of SigLIP '
            'need the package transformers (pip install transformers), and once a network: they '
            'come from the Hugging Face hub.') from error

    def tokenize(sentences: list[str]) -> Tensor:
        tokens: Tensor = tokenizer(sentences)
        context = tokens.shape[1]
        # Not every tokenizer marks the end: what is beyond it must be what an empty text ends in.
        whole = tokenizer(['', *sentences], context_length=4 * context)
        if (whole[1:, context:] != whole[0, -1]).any():
            raise RuntimeError(f'the tokens do not fit into {context}')
        return tokens

    return tokenize, network.encode_text, tokenizer.context_length


def _alone(look: Callable[[Tensor], Tensor], positions: Tensor) -> Tensor:
    """(B, N, C) -> (B, N, C'): `look`, which takes (sequences, 1, C), at every position alone."""
    seen = [look(part[:, None]) for part in torch.split(positions.flatten(0, 1), MOST_ALONE)]
    return torch.cat(seen).view(*positions.shape[:2], -1)


class LastAttention(nn.Module):
    """Only the attention of the last block, of which every position sees itself alone.

    As with MaskCLIP, what was there before it and the perceptron after it are left out.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); nothing is masked in an image."""
        del attn_mask
        return _alone(self._attend, x)

    def _attend(self, x: Tensor) -> Tensor:
        block = self.block
        if hasattr(block, 'norm1'):  # timm
            attended: Tensor = block.ls1(block.attn(block.norm1(x)))
        elif hasattr(block, 'ln_attn'):
            attended = block.ls_1(block.ln_attn(block.attn(block.ln_1(x))))
        else:
            attended = block.ls_1(block.attention(block.ln_1(x)))
        return attended


class DenseOpenClipVit(PatchTransformer):
    """One of open_clip's own.

    Where the class token is the image's, by its last attention; where the mean of the patches is,
    by the patches.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__(vit)
        if vit.pool_type == 'tok':
            vit.transformer.resblocks[-1] = LastAttention(vit.transformer.resblocks[-1])

    def tokens(self, x: Tensor) -> Tensor:
        """See `PatchTransformer`."""
        answers: Tensor = self.vit.transformer(x)
        return answers[:, 1:]


class DenseTimm(nn.Module):
    """What one of timm's networks says of every position, in the joint space.

    Its own head looks at every position alone: an attention pool (SigLIP's) gives that position's
    value, with all that follows, an average that position. Where the class token is the image's,
    it is the last attention that does so. timm resizes the positional embedding itself, to every
    image's grid, bicubically.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        trunk = visual.trunk
        self.stride = trunk.feature_info[-1]['reduction']
        self.special = getattr(trunk, 'num_prefix_tokens', 0)  # tokens that are no positions
        if type(trunk).__name__ == 'VisionTransformer':
            if trunk.global_pool == 'token':
                trunk.blocks[-1] = LastAttention(trunk.blocks[-1])
            trunk.pool_include_prefix = True  # the head sees positions only, and leaves out none
            if trunk.pos_embed is not None:
                # What timm sets for `dynamic_img_size`, which open_clip cannot ask for.
                trunk.dynamic_img_size = True
                trunk.patch_embed.flatten = False
                trunk.patch_embed.output_fmt = type(trunk.patch_embed.output_fmt)('NHWC')
            trunk.patch_embed.strict_img_size = False

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / stride, W / stride), in the joint space."""
        height, width = (side // self.stride for side in images.shape[2:])
        x = self.visual.trunk.forward_features(images)
        is_map = x.dim() == 4

        def look(position: Tensor) -> Tensor:
            alone = position.transpose(1, 2)[..., None] if is_map else position
            seen: Tensor = self.visual.head(self.visual.trunk.forward_head(alone))
            return seen

        positions = x.flatten(2).transpose(1, 2) if is_map else x[:, self.special:]
        features = _alone(look, positions)
        return features.transpose(1, 2).reshape(len(features), -1, height, width)
