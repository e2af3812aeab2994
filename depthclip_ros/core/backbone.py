# SPDX-License-Identifier: Apache-2.0
"""Dense features of CLIP's image encoder (paper §3.1): one vector for every patch.

C is the dimension of the text features. A ResNet is built from its tensors, a vision transformer
is CLIP's own module; `engine` makes them fast. The text encoder is not loaded, and the attention
pool only if `features` or `scenes` need it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    conv2d,
    interpolate,
    linear,
    normalize,
    scaled_dot_product_attention,
)

from .errors import ConfigError
from .openai_clip import fitting_weights, import_clip
from .resnet import FoldedResNet
from .state_dict import OpenClipWeights, architecture

RESNET_STRIDE = 32
_HEAD_WIDTH = 64  # channels of each head of CLIP's attentions


class EncoderOutput(NamedTuple):
    """Outputs of an image encoder for B images, in float32."""

    features: Tensor  # (B, C, h, w) from the head, comparable with the text features
    trunk: Tensor  # (B, C', h, w), input of the head


class ImageEncoder(nn.Module):
    """A trunk in any number format, and a head in float32 that makes its map comparable to text.

    Without a `pool`, `projection` or `channel_step` the trunk's map is in CLIP's joint space
    already, and the head normalises it, so that the paper's equation 3 is a cosine.

    Attributes:
        trunk: normalised images (B, 3, H, W) -> (B, C', H / stride, W / stride).
        dtype: number format of the trunk's input.
        stride: width and height of a patch in pixels.
        pool: a ResNet's attention pool, with every position as the query (DenseCLIP).
        projection: weight and bias of the projection into the joint space (MaskCLIP).
        channel_step: n of the official code, which normalises the trunk's vectors over all
            channels and keeps every n-th, so that C remain. It does not normalise these again, nor
            project them into the joint space.

    """

    def __init__(
        self, trunk: nn.Module, stride: int = RESNET_STRIDE, pool: AttentionPool | None = None,
        projection: Sequence[Tensor] = (), channel_step: int = 0,
    ) -> None:
        super().__init__()
        self.trunk, self.pool, self.stride = trunk, pool, stride
        self.projection, self.channel_step = nn.ParameterList(projection), channel_step
        self.dtype = torch.float32

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / stride, W / stride) in float32."""
        return self.encode(images)[0]

    def encode(self, images: Tensor) -> EncoderOutput:
        """Compute features and trunk of (B, 3, H, W) images."""
        trunk: Tensor = self.trunk(images.to(self.dtype)).float()
        return EncoderOutput(self.head(trunk), trunk)

    def head(self, features: Tensor) -> Tensor:
        """Map the trunk to features: (B, C', h, w) -> (B, C, h, w)."""
        if self.channel_step:
            features = features / features.norm(dim=1, keepdim=True)
            return features[:, ::self.channel_step]
        if self.projection:
            features = conv2d(features, *self.projection)
        elif self.pool is not None:
            features = self.pool.patch_embeddings(features)
        return normalize(features, dim=1)


class PositionResizer:
    """Resizes a learned positional embedding to any grid, and caches the last one."""

    def __init__(self) -> None:
        self._cached: tuple[tuple[Any, ...], Tensor] | None = None

    def resize(self, embedding: Tensor, height: int, width: int) -> Tensor:
        """Interpolate bicubically: (1 + side^2, C) -> (1 + height x width, C) in float32."""
        signature = (height, width, embedding.device, embedding.dtype)
        cached = self._cached  # one read: other threads may ask for another size
        if cached is None or cached[0] != signature:
            side = math.isqrt(len(embedding) - 1)
            grid = embedding[1:].float().T.reshape(1, -1, side, side)
            if (height, width) != (side, side):
                grid = interpolate(grid, (height, width), mode='bicubic', align_corners=False)
            rows = torch.cat([embedding[:1].float(), grid.flatten(2)[0].T])
            cached = self._cached = signature, rows
        return cached[1]


class AttentionPool(nn.Module):
    """The attention pool at the end of a CLIP ResNet, in float32, for maps of any size.

    One token for the map's mean and one for every position attend to each other. CLIP's image
    embedding is the output of the mean's token; the outputs of the positions lie in the same joint
    space (DenseCLIP, arXiv 2112.01518, compares them with the text). The positional embedding is
    resized to the map.
    """

    positional_embedding: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (
            nn.ParameterList(weights[f'attnpool.{name}_proj.{part}'].detach().float()
                             for part in ('weight', 'bias')) for name in 'qkvc')
        self.register_buffer(
            'positional_embedding', weights['attnpool.positional_embedding'].float())
        self.heads = self.query[0].shape[1] // _HEAD_WIDTH
        self._positions = PositionResizer()

    def image_embedding(self, features: Tensor) -> Tensor:
        """Pool maps as CLIP does: (B, C', h, w) -> (B, C), not normalised.

        With a single query, the key matrix multiplies the query, and the value matrix the mean
        under the attention, instead of every position: a fiftieth of the products for RN50.
        """
        tokens = self._tokens(features)
        heads = (self.heads, -1)
        query = linear(tokens[:, 0], *self.query).view(len(tokens), *heads)
        key_query = torch.einsum('bhd,hdc->bhc', query, self.key[0].view(*heads, tokens.shape[2]))
        # The key's bias adds the same to every position, which leaves softmax as it is.
        attention = (key_query @ tokens.transpose(1, 2) * query.shape[2] ** -0.5).softmax(dim=2)
        mixed = torch.einsum(
            'bhc,hdc->bhd', attention @ tokens, self.value[0].view(*heads, tokens.shape[2]))
        return linear(mixed.flatten(1) + self.value[1], *self.output)

    def patch_embeddings(self, features: Tensor) -> Tensor:
        """Pool with every position as the query: (B, C', h, w) -> (B, C, h, w)."""
        tokens = self._tokens(features)
        query, key, value = (
            linear(x, *projection).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for projection, x in (
                (self.query, tokens[:, 1:]), (self.key, tokens), (self.value, tokens)))
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        outputs = linear(mixed, *self.output).transpose(1, 2)
        return outputs.reshape(*outputs.shape[:2], *features.shape[2:])

    def projection(self) -> tuple[Tensor, Tensor]:
        """Combine the linear maps of values and output: weight and bias of a 1x1 convolution."""
        return ((self.output[0] @ self.value[0])[:, :, None, None],
                self.output[0] @ self.value[1] + self.output[1])

    def _tokens(self, features: Tensor) -> Tensor:
        """Make tokens, the mean's first: (B, C', h, w) -> (B, 1 + h x w, C')."""
        x = features.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        return x + self._positions.resize(self.positional_embedding, *features.shape[2:])


class PatchTransformer(nn.Module):
    """Dense features of OpenAI's vision transformers, in the joint space.

    They are the projected values of the last block's attention (MaskCLIP); with `mixing` its full
    output at every patch's token, where CLIP itself takes the class token. The positional
    embedding is resized bicubically.
    """

    def __init__(self, vit: Any, *, mixing: bool = False) -> None:
        super().__init__()
        self.vit, self.mixing = vit, mixing
        self._positions = PositionResizer()

    def tokens(self, x: Tensor) -> Tensor:
        """Run the blocks: (B, 1 + N, C), the class token first, -> (B, N, C) of the patches."""
        *blocks, last = self.vit.transformer.resblocks
        x = x.transpose(0, 1)  # CLIP's blocks want the positions first
        for block in blocks:
            x = block(x)
        if self.mixing:
            mixed: Tensor = last(x).transpose(0, 1)
            return mixed[:, 1:]
        attention = last.attn
        weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
        values = linear(last.ln_1(x.transpose(0, 1)[:, 1:]), weight, bias)
        projected: Tensor = attention.out_proj(values)
        return projected

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / patch, W / patch), in the joint space."""
        vit = self.vit
        x = vit.conv1(images)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        classes = vit.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        positions = self._positions.resize(vit.positional_embedding, height, width)
        x = torch.cat([classes, x], dim=1) + positions.to(x)
        features: Tensor = vit.ln_post(self.tokens(vit.ln_pre(x))) @ vit.proj
        return features.transpose(1, 2).reshape(len(features), -1, height, width)


def build_image_encoder(state_dict: Mapping[str, Tensor], features: str) -> ImageEncoder:
    """Build a dense image encoder in float32 on the CPU, from CLIP weights or `OpenClipWeights`.

    `features` are 'reference', 'maskclip' or 'attnpool'; ConfigError if the architecture has no
    such features, WeightsError if tensors are missing or misshapen.
    """
    shape = architecture(state_dict)
    step, remainder = divmod(32 * shape.width, shape.embed_dim)
    if isinstance(state_dict, OpenClipWeights) and features != 'maskclip':
        raise ConfigError(f"features: '{features}' is for the models of OpenAI; with open_clip's "
                          'use features: maskclip, their own last attention or head.')
    if features == 'reference' and (shape.patch is not None or remainder):
        raise ConfigError(f'features: reference exists for ResNets only, and keeps every n-th of '
                          f'their channels, here {shape.embed_dim} of {32 * shape.width}; with '
                          'this model use features: maskclip.')
    encoder: ImageEncoder
    with torch.no_grad(), fitting_weights():
        if shape.patch is None:
            weights = resnet_weights(state_dict)
            trunk = FoldedResNet(weights)
            if features == 'reference':
                encoder = ImageEncoder(trunk, channel_step=step)
            else:
                pool = AttentionPool(weights)
                encoder = ImageEncoder(trunk, pool=pool) if features == 'attnpool' else \
                    ImageEncoder(trunk, projection=pool.projection())
        elif isinstance(state_dict, OpenClipWeights):
            encoder = state_dict.image_encoder()
        else:
            vit = import_clip().model.VisionTransformer(
                shape.resolution, shape.patch, shape.width, shape.layers,
                shape.width // _HEAD_WIDTH, shape.embed_dim)
            vit.load_state_dict(_visual_weights(state_dict), assign=True)
            import_clip().model.convert_weights(vit)  # rounds to half, as their loader
            encoder = ImageEncoder(
                PatchTransformer(vit, mixing=features == 'attnpool'), shape.patch)
    return encoder.float().eval().requires_grad_(False)


def build_attention_pool(state_dict: Mapping[str, Tensor]) -> AttentionPool:
    """Build the attention pool alone, in float32 on the CPU; ConfigError if there is none."""
    if architecture(state_dict).patch is not None:
        raise ConfigError("scenes: need a ResNet's attention pool, which a vision transformer has "
                          "not; use a ResNet, or scenes: [''].")
    with fitting_weights():
        return AttentionPool(resnet_weights(state_dict)).eval().requires_grad_(False)


def resnet_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the weights of a ResNet's image encoder, rounded as its own loader does.

    OpenAI's loader rounds convolutions and the attention pool's projections to half precision,
    open_clip's does not.
    """
    exact = isinstance(state_dict, OpenClipWeights)
    return {name: value if exact or not (value.dim() == 4 or '_proj.' in name) else value.half()
            for name, value in _visual_weights(state_dict).items()}


def _visual_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix('visual.'): value.detach() for key, value in state_dict.items()
            if key.startswith('visual.')}
