# SPDX-License-Identifier: Apache-2.0
"""Deterministic stand-ins for CLIP weights and images: the same numbers on every platform.

`numpy.random.RandomState` is a frozen generator, so that the values depend on the seed, the order
of the keys and the shapes alone. The golden numbers in `test/data` belong to seed 0.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from depthclip_ros.core.openai_clip import import_clip

TINY = {'layers': (1, 1, 1, 1), 'width': 8, 'embed_dim': 64, 'resolution': 64,
        'text_width': 64, 'text_layers': 1}
TINY_VIT = {'vit_layers': 2, 'width': 64, 'patch': 16, 'embed_dim': 64, 'resolution': 64,
            'text_width': 64, 'text_layers': 1}


def _fill(name: str, shape: tuple[int, ...], random: np.random.RandomState):
    z = random.standard_normal(shape).astype(np.float32) if shape else np.float32(0)
    leaf = name.rsplit('.', 1)[-1]
    is_norm = '.bn' in name or '.downsample.1' in name or '.ln_' in name \
        or name.startswith('ln_final')
    if leaf == 'num_batches_tracked':
        return np.int64(0)
    if name == 'logit_scale':
        return np.float32(np.log(100.0))
    if leaf == 'running_var':
        return 1 + 0.1 * np.abs(z)
    if leaf == 'running_mean':
        return 0.1 * z
    if is_norm and leaf == 'weight':
        return (0.5 if '.bn3' in name or '.downsample.1' in name else 1.0) + 0.1 * z
    if leaf in ('bias', 'in_proj_bias'):
        return 0.02 * z
    if len(shape) == 4:
        return z * np.float32(np.sqrt(2.0 / (shape[1] * shape[2] * shape[3])))
    if 'embedding' in name:
        return 0.02 * z
    return z * np.float32(shape[-1] ** -0.5)


def state_dict(
    seed: int = 0, *, layers=(3, 4, 6, 3), vit_layers: int | None = None, width: int = 64,
    patch: int = 32, embed_dim: int = 1024, resolution: int = 224, text_width: int = 512,
    text_layers: int = 12, context: int = 77, vocabulary: int = 49408,
) -> dict[str, torch.Tensor]:
    """Float32 weights in OpenAI's key layout; RN50's shape unless told otherwise."""
    with torch.device('meta'):  # shapes without memory
        model = import_clip().model.CLIP(
            embed_dim, resolution, vit_layers or layers, width, patch if vit_layers else None,
            context, vocabulary, text_width, text_width // 64, text_layers)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    filled = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        random = np.random.RandomState((seed * 1000003 + index) % 2 ** 32)
        filled[name] = torch.from_numpy(np.array(_fill(name, shape, random)))
    return filled


def tiny_state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a ResNet small enough for a test a second (backbone: auto).

    Its batch norms have seen images, so that depth depends on what is in an image.
    """
    filled = state_dict(seed, **TINY)
    model = import_clip().model.build_model(dict(filled)).float()
    for module in model.visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    images = np.stack([synthetic_rgb(i) for i in range(2)])
    model.visual.attnpool = torch.nn.Identity()
    model.visual.train()
    with torch.no_grad():
        model.visual(torch.from_numpy(images).permute(0, 3, 1, 2) / 128.0 - 1)
    statistics = {f'visual.{name}': value for name, value in model.visual.state_dict().items()
                  if 'running' in name}
    return {**filled, **statistics}


def write_tiny_weights(path, seed: int = 0) -> None:
    """Save the tiny weights as a state-dict file."""
    torch.save(tiny_state_dict(seed), path)


def write_release(path, numbers: dict[str, torch.Tensor]) -> None:
    """Save weights as OpenAI releases them: TorchScript, half precision, three extra scalars."""
    class Archive(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    root = Archive()
    model = import_clip().model.build_model(dict(numbers))
    extra = {'input_resolution': model.visual.input_resolution,
             'context_length': model.context_length, 'vocab_size': model.vocab_size}
    for name, value in {**model.state_dict(),
                        **{key: torch.tensor(number) for key, number in extra.items()}}.items():
        *parents, leaf = name.split('.')
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, Archive())
            module = getattr(module, parent)
        module.register_buffer(leaf, value)
    torch.jit.save(torch.jit.trace(root.eval(), torch.zeros(1)), str(path))


def synthetic_rgb(seed: int, height: int = 480, width: int = 640) -> NDArray[np.uint8]:
    """(height, width, 3) RGB: a ramp, thirty flat rectangles and noise, from integer draws."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack(
        [x * 255 // (width - 1), y * 255 // (height - 1), (x + y) % 256], -1).astype(np.int64)
    for _ in range(30):
        top, left = random.randint(0, height - 40), random.randint(0, width - 40)
        tall, wide = random.randint(20, 200), random.randint(20, 200)
        image[top:top + tall, left:left + wide] = random.randint(0, 256, 3)
    image = image + random.randint(-12, 13, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
