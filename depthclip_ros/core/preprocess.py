# SPDX-License-Identifier: Apache-2.0
"""Input of the network: images stretched in 8 bits (bilinear), and normalised as CLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from . import engine
from .camera_image import Rgb
from .config import Size
from .errors import ImageError
from .readout import float32

# (mean, standard deviation) of RGB in [0, 1]. The official code uses ImageNet's although CLIP was
# trained with its own.
NORMALIZATIONS = {
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


class Preprocessor:
    """Resizes and normalises images of any sizes into a batch.

    Attributes:
        size: (height, width) of the network's input.

    """

    def __init__(
        self, size: Size, mean: Sequence[float], deviation: Sequence[float], device: torch.device,
    ) -> None:
        """Prepare for a device; `mean` and `deviation` are of RGB in [0, 1]."""
        self.size, self._device = size, device
        # Normalised row by row: a row's length suits a processor's vectors, three channels do not.
        self._gain, self._offset = (
            float32(np.tile(values, size[1])).to(device)
            for values in (1 / (255 * np.array(deviation)), -np.array(mean) / deviation))

    def __call__(self, images: Sequence[Rgb], *, flip: bool = False) -> Tensor:
        """Make the batch (N, 3, height, width); with `flip`, the mirrored images follow.

        ImageError: an image has another shape or type.
        """
        count, (height, width) = len(images), self.size
        pixels: Sequence[Tensor] | Tensor = [resize(image, self.size) for image in images]
        if self._device.type == 'cuda':
            pixels = engine.to_device(torch.stack(list(pixels)), self._device)
        rows = torch.empty((1 + flip) * count, height, 3 * width, dtype=torch.float32,
                           device=self._device)
        for image, row in zip(pixels, rows, strict=False):
            torch.addcmul(self._offset, image.reshape(height, -1).float(), self._gain, out=row)
        batch = rows.view(-1, height, width, 3)
        if flip:
            batch[count:] = batch[:count].flip(2)
        return batch.permute(0, 3, 1, 2)


def resize(image: Rgb, size: Size) -> Tensor:
    """Resize to (height, width, 3) uint8 on the CPU, which gives the same bits everywhere."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 \
            or image.shape[2] != 3 or 0 in image.shape:
        raise _wrong_image_error(image)
    pixels = torch.from_numpy(np.require(image, requirements=('C', 'W')))
    if image.shape[:2] == size:
        return pixels
    return interpolate(pixels.permute(2, 0, 1)[None], size, mode='bilinear',
                       antialias=True)[0].permute(1, 2, 0)


def _wrong_image_error(image: Any) -> ImageError:
    kind = '' if isinstance(image, np.ndarray) else type(image).__name__
    if hasattr(image, 'shape') and hasattr(image, 'dtype'):
        kind = f'{kind} {image.dtype} {tuple(image.shape)}'.strip()
    return ImageError('not an RGB image', (
        f'the image is {kind}; expected uint8 (height, width, 3), not empty. Of a file: '
        "np.asarray(PIL.Image.open(path).convert('RGB')); of a tensor (3, height, width): "
        'image.permute(1, 2, 0).cpu().numpy(); of numbers from 0 to 1: (255 * '
        'image).round().astype(np.uint8).'))
