# SPDX-License-Identifier: Apache-2.0
"""Dense features of CLIP's image encoder (paper §3.1): one vector for every patch.

C is the dimension of the text features. What is not needed (attention pool, text encoder) is not
in memory. The trunks here are CLIP's own modules, step by step: `engines` makes them fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, normalize

from .clip_package import fitting_weights, import_clip
from .device import exact_float32
from .errors import ConfigError
from .uninitialized import Uninitialized
from .weights import Architecture, architecture

RESNET_STRIDE = 32


class ImageEncoder(nn.Module):
    """A trunk in any number format, and a head in float32 that makes its map comparable to text.

    Attributes:
        trunk: normalised images (B, 3, H, W) -> (B, C', H / stride, W / stride).
        dtype: number format of the trunk's input.
        stride: pixels a patch is wide and high.

    """

    def __init__(self, trunk: nn.Module, stride: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.dtype = torch.float32
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / stride, W / stride) in float32."""
        return self.maps(images)[0]

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the trunk's own map (B, C', H / stride, W / stride) in float32."""
        with exact_float32(images.device):
            trunk = self.trunk(images.to(self.dtype)).float()
            return self.head(trunk), trunk

    def head(self, features: Tensor) -> Tensor:
        """(B, C', h, w) -> (B, C, h, w): unit vectors, all there is to do for most trunks."""
        return normalize(features, dim=1)


class ReferenceFeatures(ImageEncoder):
    """What the official code compares with the text.

    The last layer's map, as unit vectors over all its channels, then every n-th channel so that
    as many remain as the text has. These are not renormalised, and not in CLIP's joint space: the
    attention pool's projection into it is left out.
    """

    def __init__(self, resnet: nn.Module, shape: Architecture) -> None:
        """Take over the convolutional part of a CLIP ResNet."""
        channels = 32 * shape.width
        if channels % shape.embed_dim:
            raise ConfigError(
                f'features: reference keeps every n-th of {channels} channels, which does not '
                f'fit {shape.embed_dim} text dimensions; use features: maskclip.')
        super().__init__(_without_pool(resnet), RESNET_STRIDE)
        self.channel_step = channels // shape.embed_dim

    def head(self, features: Tensor) -> Tensor:
        """(B, C', h, w) -> (B, C, h, w): every n-th channel of the unit vectors."""
        features = features / features.norm(dim=1, keepdim=True)
        subset: Tensor = features[:, ::self.channel_step]
        return subset


class MaskClipFeatures(ImageEncoder):
    """Every position through the attention pool's value and output projections (MaskCLIP).

    Both are linear, so that they are one matrix here. The result lies in the joint space in which
    the paper's equation 3 speaks of a cosine.
    """

    projection: Tensor
    offset: Tensor

    def __init__(self, resnet: nn.Module) -> None:
        """Fuse `c_proj(v_proj(x))` and take over the convolutional part."""
        pool: Any = resnet.attnpool
        super().__init__(_without_pool(resnet), RESNET_STRIDE)
        output, value = pool.c_proj, pool.v_proj
        self.register_buffer('projection', (output.weight @ value.weight)[:, :, None, None])
        self.register_buffer('offset', output.weight @ value.bias + output.bias)

    def head(self, features: Tensor) -> Tensor:
        """(B, C', h, w) -> (B, C, h, w): unit vectors in the joint space."""
        return super().head(conv2d(features, self.projection, self.offset))


class VitMaskClip(nn.Module):
    """MaskCLIP on a vision transformer: the last block's values, projected, instead of its mixing.

    The positional embedding is resized in two dimensions, bicubically.
    """

    def __init__(self, vit: Any, shape: Architecture) -> None:
        """Take over a CLIP vision transformer."""
        super().__init__()
        self.vit = vit
        self.native_grid = shape.resolution // (shape.patch or 1)
        self.blocks = vit.transformer.resblocks[:-1]
        self.last = vit.transformer.resblocks[-1]
        self._positions: tuple[tuple[Any, ...], Tensor] | None = None

    def positional_embedding(self, height: int, width: int) -> Tensor:
        """(1 + height x width, C): the class token's and those of a grid of that size."""
        learned = self.vit.positional_embedding
        key = (height, width, learned.device, learned.dtype)
        known = self._positions  # once: other threads may come with another size
        if known is None or known[0] != key:
            side = self.native_grid
            grid = learned[1:].float().T.reshape(1, -1, side, side)
            if (height, width) != (side, side):
                grid = interpolate(grid, (height, width), mode='bicubic', align_corners=False)
            known = self._positions = key, torch.cat([learned[:1].float(), grid.flatten(2)[0].T])
        return known[1]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / patch, W / patch), in the joint space."""
        vit = self.vit
        x = vit.conv1(images)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        classes = vit.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([classes, x], dim=1) + self.positional_embedding(height, width).to(x)
        x = self.blocks(vit.ln_pre(x).transpose(0, 1)).transpose(0, 1)
        attention = self.last.attn
        value_weight = attention.in_proj_weight.chunk(3)[2]
        value_bias = attention.in_proj_bias.chunk(3)[2]
        values = nn.functional.linear(self.last.ln_1(x[:, 1:]), value_weight, value_bias)
        features: Tensor = vit.ln_post(attention.out_proj(values)) @ vit.proj
        return features.transpose(1, 2).reshape(len(features), -1, height, width)


def build_image_encoder(state_dict: Mapping[str, Tensor], features: str) -> ImageEncoder:
    """Dense image encoder in float32, on the CPU, from CLIP weights in OpenAI's layout.

    Args:
        state_dict: the whole model's; only the visual part is copied.
        features: 'reference' or 'maskclip'.

    Raises:
        WeightsError: tensors are missing or misshapen.
        ConfigError: this architecture has no such features.

    """
    shape = architecture(state_dict)
    if shape.patch is not None and features != 'maskclip':
        raise ConfigError(f"features: '{features}' exists for ResNets only; with a vision "
                          'transformer use features: maskclip.')
    visual = _load_visual(state_dict, shape)
    with torch.no_grad():
        encoder: ImageEncoder
        if shape.patch is not None:
            encoder = ImageEncoder(VitMaskClip(visual, shape), shape.patch)
        elif features == 'maskclip':
            encoder = MaskClipFeatures(visual)
        else:
            encoder = ReferenceFeatures(visual, shape)
    encoder.eval().requires_grad_(False)
    return encoder


def _without_pool(resnet: nn.Module) -> nn.Module:
    resnet.attnpool = nn.Identity()
    return resnet


def _load_visual(state_dict: Mapping[str, Tensor], shape: Architecture) -> nn.Module:
    """The image encoder of `clip.model`, its weights rounded to half as OpenAI's loader does."""
    model = import_clip().model
    own = {key[len('visual.'):]: value for key, value in state_dict.items()
           if key.startswith('visual.')}
    with fitting_weights():
        with Uninitialized():
            visual: nn.Module
            if shape.patch is not None:
                visual = model.VisionTransformer(
                    shape.resolution, shape.patch, shape.width, shape.layers, shape.width // 64,
                    shape.embed_dim)
            else:
                visual = model.ModifiedResNet(
                    shape.layers, shape.embed_dim, shape.width * 32 // 64, shape.resolution,
                    shape.width)
        visual.load_state_dict(own, assign=True)
    model.convert_weights(visual)
    return visual.float()
