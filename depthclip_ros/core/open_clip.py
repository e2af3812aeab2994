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
    read_data,
    say_left_out,
    tensors_of,
)

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

    `weights` is a file (.safetensors or state dict), 'untrained', or '' for those that the tag of
    open_clip:ARCHITECTURE/TAG names. The digest is one of the architecture's name and of the file,
    since the same tensors can be another model (QuickGELU).
    """
    open_clip = require(backbone)
    model, _, tag = backbone.removeprefix(OPEN_CLIP).partition('/')
    config, normalization, quick = _describe(open_clip, model, tag)
    log(f"{backbone}: its activation is {'QuickGELU' if quick else 'GELU'}; images are normalised "
        f"by the model's own mean {normalization[0]} and deviation {normalization[1]}; "
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
                _tagged(open_clip.get_pretrained_cfg(model, tag), offline=offline)
            name, source = path.name if source else backbone, str(path)
            digest = file_digest(path)
        network = _random_network(open_clip, model, quick_gelu=quick)
        if path is not None:
            _fill(open_clip, network, read_data(path), source, log)
    except WeightsError:
        raise
    except Exception as error:  # what networks, disks, files, open_clip, timm and torch raise
        raise WeightsError(
            f'{backbone}: open_clip {open_clip.__version__} cannot make it of '
            f'{source or "its weights"} ({reason(error)}). Give its own weights, as a state dict '
            'or .safetensors: weights: PATH; or start once while there is a network.') from error
    found = OpenClipWeights(network.state_dict())
    vision, found.normalization = config['vision_cfg'], normalization
    layers = vision.get('layers', 0)
    found.architecture = Architecture(
        config['embed_dim'], vision.get('image_size', 224),
        tuple(layers) if isinstance(layers, list) else layers, vision.get('width', 0),
        None if isinstance(layers, list) else vision.get('patch_size', 0),
        config['text_cfg'].get('width', 512))
    found.image_encoder = partial(_image_encoder, network.visual, model)
    found.text_encoder = partial(_text_encoder, network, model)
    kind = f'{model.removesuffix("-quickgelu")}{"-quickgelu" * quick}'
    digest = hashlib.sha256(f'{OPEN_CLIP}{kind} {digest}'.encode()).hexdigest()
    return WeightsInfo(name, source, digest, trained=path is not None), found


def _random_network(open_clip: Any, model: str, *, quick_gelu: bool) -> Any:
    """Make a model of random numbers, always the same, without open_clip's warning that it is."""
    def is_other(record: logging.LogRecord) -> bool:
        return 'initialized randomly' not in record.getMessage()

    logger = logging.getLogger()
    logger.addFilter(is_other)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return open_clip.create_model(
                model, load_weights=False, force_quick_gelu=quick_gelu
            ).eval().requires_grad_(requires_grad=False)
    finally:
        logger.removeFilter(is_other)


def _fill(open_clip: Any, network: nn.Module, loaded: Any, source: str, log: Log) -> None:
    """Give a network its weights, of any layout that open_clip knows; WeightsError if they differ.

    open_clip's own functions convert names and positions. What images and texts are compared by
    (`logit_scale`) is not used here.
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
    say_left_out([name for name in tensors if name not in shapes and not name.startswith(
        ('logit_', 'attn_mask'))], source, log)
    open_clip.model.resize_pos_embed(weights, network)
    open_clip.model.resize_text_pos_embed(weights, network)
    for name, tensor in weights.items():
        if tensor.shape != tensors[name].shape:
            log(f'{source}: {name} is resized from {len(tensors[name])} positions to '
                f'{len(tensor)}.')
    network.load_state_dict(weights, strict=False)


def _describe(open_clip: Any, model: str, tag: str) -> tuple[dict[str, Any], Any, bool]:
    """Configuration, mean and deviation of images, and whether its activation is QuickGELU."""
    config = open_clip.get_model_config(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if config is None or (tag and tag not in tags):
        raise ConfigError(
            f'backbone: open_clip {open_clip.__version__} has no {quoted(model)} with weights '
            f'{quoted(tag)}, but with {tags}; {did_you_mean([model], open_clip.list_models())}see '
            'open_clip.list_pretrained() or docs/variants.md.')
    if 'multimodal_cfg' in config or 'hf_model_name' in config['text_cfg']:
        raise _refusal(model, 'its image embedding is mixed from learned queries, or its text '
                       'encoder is one of the Hugging Face hub')
    released = [open_clip.get_pretrained_cfg(model, each) for each in ([tag] if tag else tags)]
    normalizations = {(tuple(each['mean']), tuple(each['std'])) for each in released} or {
        (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)}
    if len(normalizations) > 1:
        raise ConfigError(
            f'backbone: {OPEN_CLIP}{model}: its weights differ in the mean and deviation of '
            f'their images; name the one that yours are like: {", ".join(tags)}.')
    # A file that goes with a tag has that tag's activation, too.
    quick = any(each.get('quick_gelu') for each in [config, *(released if tag else [])])
    return config, normalizations.pop(), quick


def _refusal(model: str, why: str) -> ConfigError:
    return ConfigError(f'backbone: {OPEN_CLIP}{model} has no dense features here: {why}; '
                       'docs/variants.md lists those that have.')


def _tagged(released: Mapping[str, Any], *, offline: bool) -> Path:
    """File of the weights that a tag names, from the Hugging Face hub or its cache."""
    if not released:
        raise WeightsError('backbone: names an architecture and no weights; give it as '
                           'open_clip:ARCHITECTURE/TAG, or a file as weights.')
    if not offline:
        return Path(require('').download_pretrained(released))
    from huggingface_hub import try_to_load_from_cache  # comes with open_clip
    repository, _, file = released['hf_hub'].rpartition('/')
    for name in ('open_clip_model.safetensors', file or 'open_clip_pytorch_model.bin'):
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    raise WeightsError(f"backbone: the weights of {released['hf_hub']} are not in open_clip's "
                       'cache, and offline is set. Start once while there is a network, or give '
                       'the file as weights: PATH.')


def _image_encoder(visual: Any, model: str) -> ImageEncoder:
    """Dense encoder of a vision tower that is not a ResNet of CLIP's."""
    visual = deepcopy(visual)
    if not hasattr(visual, 'trunk'):
        return ImageEncoder(DenseOpenClipVit(visual), visual.patch_size[0])
    kind = type(visual.trunk).__name__
    if kind not in _KNOWN_TRUNKS:
        raise _refusal(model, f'what {kind} does at its end is not known here')
    trunk = DenseTimm(visual)
    return ImageEncoder(trunk, trunk.stride)


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
    return look(positions.flatten(0, 1)[:, None]).view(*positions.shape[:2], -1)


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
        block = self.block
        if hasattr(block, 'norm1'):  # timm
            return _alone(lambda x: block.ls1(block.attn(block.norm1(x))), x)
        return _alone(lambda x: block.ls_1(block.attention(block.ln_1(x))), x)


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
