# SPDX-License-Identifier: Apache-2.0
"""Models of open_clip as backbones: `backbone: open_clip:ARCHITECTURE/TAG` (docs/variants.md).

Dense features: the model's head, or its last attention, processes every position alone. Softmax
over a single key is 1, so attention returns that position's projected value, as in MaskCLIP; a
mean over one position is that position. The optional package open_clip is imported only for such
a backbone.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import ImageEncoder, PatchTransformer
from .errors import ConfigError, WeightsError, did_you_mean, first_of, quoted, reason
from .releases import OPEN_CLIP, UNTRAINED, WeightsInfo, file_digest, user_file
from .state_dict import (
    Architecture,
    Log,
    OpenClipWeights,
    TextEncoder,
    check_tensors,
    log_left_out,
    read_data,
    tensors_of,
)

# Vision towers of timm whose last attention or head can process one position alone.
_TIMM_TRUNKS = ('VisionTransformer', 'ConvNeXt', 'FastVit')


def require(backbone: str) -> Any:
    """Import the package open_clip; WeightsError if it is missing or fails."""
    try:
        return importlib.import_module('open_clip')
    except Exception as error:  # foreign code raises anything
        raise WeightsError(
            f'backbone: {quoted(backbone)} needs open_clip ({reason(error)}): pip install '
            "open_clip_torch; or use one of OpenAI's models, such as RN50.") from error


def load(
    weights: str | Path | Mapping[str, Tensor], backbone: str, log: Log, *, offline: bool,
) -> tuple[WeightsInfo, OpenClipWeights]:
    """Load weights of one of open_clip's models; see `depthclip_ros.core.weights.load_weights`.

    `weights` is a file (.safetensors or state dict), 'untrained', or '' for the pretrained TAG of
    open_clip:ARCHITECTURE/TAG. The digest covers the architecture's name and the file, since the
    same tensors can be another model (QuickGELU).
    """
    open_clip = require(backbone)
    model, _, tag = backbone.removeprefix(OPEN_CLIP).partition('/')
    config, normalization, is_quick_gelu = _model_properties(open_clip, model, tag)
    log(f"{backbone}: its activation is {'QuickGELU' if is_quick_gelu else 'GELU'}; images are "
        f"normalised by the model's own mean {normalization[0]} and deviation {normalization[1]}; "
        '`normalization` is for the models of OpenAI.')
    if isinstance(weights, Mapping):
        raise WeightsError(f'{backbone}: a state dict in memory cannot be read; save it with '
                           'torch.save(model.state_dict(), PATH), and give weights: PATH.')
    source, path = str(weights), None
    try:
        if source == UNTRAINED:
            name, source = f'{UNTRAINED} {OPEN_CLIP}{model}', 'random numbers (seed 0)'
            digest = f'seed 0 torch {torch.__version__} open_clip {open_clip.__version__}'
        else:
            path = user_file(source) if source else \
                _pretrained_file(open_clip.get_pretrained_cfg(model, tag), offline=offline)
            name, source = path.name if source else backbone, str(path)
            digest = file_digest(path)
        network = _random_network(open_clip, model, quick_gelu=is_quick_gelu)
        if path is not None:
            _load_weights(open_clip, network, read_data(path), source, log)
    except WeightsError:
        raise
    except Exception as error:  # of networks, disks, files, open_clip, timm and torch
        raise WeightsError(
            f'{backbone}: open_clip {open_clip.__version__} cannot make it of '
            f'{source or "its weights"} ({reason(error)}). Give its own weights, as a state dict '
            'or .safetensors: weights: PATH; or start once while there is a network.') from error
    state_dict = OpenClipWeights(network.state_dict())
    vision, state_dict.normalization = config['vision_cfg'], normalization
    layers = vision.get('layers', 0)
    state_dict.architecture = Architecture(
        config['embed_dim'], vision.get('image_size', 224),
        tuple(layers) if isinstance(layers, list) else layers, vision.get('width', 0),
        None if isinstance(layers, list) else vision.get('patch_size', 0),
        config['text_cfg'].get('width', 512))
    state_dict.image_encoder = partial(_image_encoder, network.visual, model)
    state_dict.text_encoder = partial(_text_encoder, network, model)
    kind = f'{model.removesuffix("-quickgelu")}{"-quickgelu" * is_quick_gelu}'
    digest = hashlib.sha256(f'{OPEN_CLIP}{kind} {digest}'.encode()).hexdigest()
    return WeightsInfo(name, source, digest, trained=path is not None), state_dict


def _random_network(open_clip: Any, model: str, *, quick_gelu: bool) -> Any:
    """Make a model of reproducible random numbers, without open_clip's warning about them."""
    def is_relevant(record: logging.LogRecord) -> bool:
        return 'initialized randomly' not in record.getMessage()

    logger = logging.getLogger()
    logger.addFilter(is_relevant)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return open_clip.create_model(
                model, load_weights=False, force_quick_gelu=quick_gelu
            ).eval().requires_grad_(requires_grad=False)
    finally:
        logger.removeFilter(is_relevant)


def _load_weights(open_clip: Any, network: nn.Module, loaded: Any, source: str, log: Log) -> None:
    """Load weights of any layout that open_clip reads; WeightsError if they are another model's.

    open_clip's functions convert names and positional embeddings. `logit_scale` is not used.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    names = [name for name in shapes if not name.startswith('logit_')]
    tensors = open_clip.convert.convert_state_dict(network, tensors_of(
        loaded, source, log, next(name for name in names if name.startswith('visual.'))))
    if 'positional_embedding' in tensors and not hasattr(network, 'positional_embedding'):
        tensors = open_clip.model.convert_to_custom_text_state_dict(tensors)
    missing = [name for name in names if name not in tensors]
    weights = {name: tensors[name] for name in names if name in tensors}
    check_tensors(weights, source, half=False)
    sizes = [f'{name} is {tuple(tensor.shape)} instead of {shapes[name]}'
             for name, tensor in weights.items()
             if tuple(tensor.shape) != shapes[name] and not name.endswith('positional_embedding')]
    if missing or sizes:
        raise WeightsError(
            f'{source}: is another model: of {len(names)} tensors {len(missing)} are missing '
            f'({first_of(missing) or "none"}), and {len(sizes)} have another size '
            f'({first_of(sizes, 2) or "none"}). Give the ARCHITECTURE that it was trained as.')
    log_left_out([name for name in tensors if name not in shapes and not name.startswith(
        ('logit_', 'attn_mask'))], source, log)
    open_clip.model.resize_pos_embed(weights, network)
    open_clip.model.resize_text_pos_embed(weights, network)
    for name, tensor in weights.items():
        if tensor.shape != tensors[name].shape:
            log(f'{source}: {name} is resized from {len(tensors[name])} positions to '
                f'{len(tensor)}.')
    network.load_state_dict(weights, strict=False)


def _model_properties(open_clip: Any, model: str, tag: str) -> tuple[dict[str, Any], Any, bool]:
    """Look up configuration, mean and deviation of images, and whether it has QuickGELU."""
    config = open_clip.get_model_config(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if config is None or (tag and tag not in tags):
        raise ConfigError(
            f'backbone: open_clip {open_clip.__version__} has no {quoted(model)} with weights '
            f'{quoted(tag)}, but with {tags}; {did_you_mean([model], open_clip.list_models())}see '
            'open_clip.list_pretrained() or docs/variants.md.')
    if 'multimodal_cfg' in config or 'hf_model_name' in config['text_cfg']:
        raise _no_dense_features(model, (
            'its image embedding is mixed from learned queries, or its text encoder is one of the '
            'Hugging Face hub'))
    releases = [open_clip.get_pretrained_cfg(model, name) for name in ([tag] if tag else tags)]
    normalizations = {(tuple(release['mean']), tuple(release['std'])) for release in releases} or {
        (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)}
    if len(normalizations) > 1:
        raise ConfigError(
            f'backbone: {OPEN_CLIP}{model}: its weights differ in the mean and deviation of '
            f'their images; name the one that yours are like: {", ".join(tags)}.')
    # A user's file with a tag has that tag's activation, too.
    is_quick_gelu = any(
        settings.get('quick_gelu') for settings in [config, *(releases if tag else [])])
    return config, normalizations.pop(), is_quick_gelu


def _no_dense_features(model: str, cause: str) -> ConfigError:
    return ConfigError(f'backbone: {OPEN_CLIP}{model} has no dense features here: {cause}; '
                       'docs/variants.md lists those that have.')


def _pretrained_file(released: Mapping[str, Any], *, offline: bool) -> Path:
    """Get the file of a tag's weights from the Hugging Face hub or its cache."""
    if not released:
        raise WeightsError('backbone: names an architecture and no weights; give it as '
                           'open_clip:ARCHITECTURE/TAG, or a file as weights.')
    if not offline:
        return Path(require('').download_pretrained(released))
    from huggingface_hub import try_to_load_from_cache  # comes with open_clip
    repository, _, file = released['hf_hub'].rpartition('/')
    for name in ('open_clip_model.safetensors', file or 'open_clip_pytorch_model.bin'):
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    raise WeightsError(f"backbone: the weights of {released['hf_hub']} are not in open_clip's "
                       'cache, and offline is set. Start once while there is a network, or give '
                       'the file as weights: PATH.')


def _image_encoder(visual: Any, model: str) -> ImageEncoder:
    """Build the dense encoder of a vision tower other than CLIP's ResNet."""
    visual = deepcopy(visual)
    if not hasattr(visual, 'trunk'):
        return ImageEncoder(OpenClipTransformer(visual), visual.patch_size[0])
    kind = type(visual.trunk).__name__
    if kind not in _TIMM_TRUNKS:
        raise _no_dense_features(model, f'what {kind} does at its end is not known here')
    trunk = TimmTrunk(visual)
    return ImageEncoder(trunk, trunk.stride)


def _text_encoder(network: Any, model: str) -> TextEncoder:
    """Build tokenizer and text encoder; with the largest number of tokens.

    The tokenizer raises RuntimeError for a sentence that is too long, which open_clip's truncates.
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
        # Not every tokenizer marks the end: beyond the context there must be padding alone, with
        # which an empty text ends.
        whole = tokenizer(['', *sentences], context_length=4 * context)
        if (whole[1:, context:] != whole[0, -1]).any():
            raise RuntimeError(f'the tokens do not fit into {context}')
        return tokens

    return tokenize, network.encode_text, tokenizer.context_length


def _each_alone(embed: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """(B, N, C) -> (B, N, C'): `look`, which takes (sequences, 1, C), at every position alone."""
    return embed(tokens.flatten(0, 1)[:, None]).view(*tokens.shape[:2], -1)


class PositionwiseAttention(nn.Module):
    """The attention of the last block, with every position attending to itself alone.

    Without the residual connection and the perceptron, as in MaskCLIP.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); nothing is masked in an image."""
        del attn_mask
        block = self.block
        if hasattr(block, 'norm1'):  # timm
            return _each_alone(lambda x: block.ls1(block.attn(block.norm1(x))), x)
        return _each_alone(lambda x: block.ls_1(block.attention(block.ln_1(x))), x)


class OpenClipTransformer(PatchTransformer):
    """Dense features of open_clip's own vision transformers.

    If the model pools by the class token, they come from its last attention; if by the mean of
    the patches, from the patches.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__(vit)
        if vit.pool_type == 'tok':
            vit.transformer.resblocks[-1] = PositionwiseAttention(vit.transformer.resblocks[-1])

    def tokens(self, x: Tensor) -> Tensor:
        """See `PatchTransformer`."""
        tokens: Tensor = self.vit.transformer(x)
        return tokens[:, 1:]


class TimmTrunk(nn.Module):
    """Dense features of timm's networks, in the joint space.

    The network's head processes every position alone: an attention pool (SigLIP's) returns that
    position's value and its projection, an average that position. If the model pools by the class
    token, the last attention does so. timm resizes the positional embedding to every image's grid,
    bicubically.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        trunk = visual.trunk
        self.stride = trunk.feature_info[-1]['reduction']
        self.prefix_tokens = getattr(trunk, 'num_prefix_tokens', 0)  # before the patches
        if type(trunk).__name__ == 'VisionTransformer':
            if trunk.global_pool == 'token':
                trunk.blocks[-1] = PositionwiseAttention(trunk.blocks[-1])
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

        def embed(token: Tensor) -> Tensor:
            single = token.transpose(1, 2)[..., None] if is_map else token
            embedding: Tensor = self.visual.head(self.visual.trunk.forward_head(single))
            return embedding

        positions = x.flatten(2).transpose(1, 2) if is_map else x[:, self.prefix_tokens:]
        features = _each_alone(embed, positions)
        return features.transpose(1, 2).reshape(len(features), -1, height, width)
