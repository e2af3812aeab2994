# SPDX-License-Identifier: Apache-2.0
"""The image encoder with its preprocessing, on a device and in a number format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import engine, quantization
from .backbone import EncoderOutput, ImageEncoder, build_image_encoder
from .camera_image import Rgb
from .config import DepthConfig, Size
from .errors import ConfigError
from .preprocess import NORMALIZATIONS, Preprocessor
from .state_dict import Log, OpenClipWeights, architecture


@dataclass(eq=False)
class Model:
    """An image encoder that is ready to run, and its preprocessing."""

    encoder: ImageEncoder
    preprocess: Preprocessor
    engine: str  # runtime of the trunk, as module `engine` names it
    precision: str  # the trunk's number format, e.g. 'float32'
    grid: Size  # (h, w), number of patches
    channels: int  # C' of the trunk's map

    def encode(self, images: Sequence[Rgb], *, flip: bool) -> EncoderOutput:
        """Encode images (section 3.1 of the paper); with `flip`, the mirrored ones follow."""
        return self.encoder.encode(self.preprocess(images, flip=flip))


def load_model(
    config: DepthConfig, state_dict: Mapping[str, Tensor], device: torch.device,
    dtype: torch.dtype, quantized: Path | None, source: str, log: Log,
) -> Model:
    """Build an image encoder, and install the fastest engine that runs it.

    Args:
        config: gives features, input size, normalisation and flip_average.
        state_dict: weights in OpenAI's layout, or `OpenClipWeights`.
        device: device of the encoder.
        dtype: number format of the trunk.
        quantized: file of the network in 8 bits, for torch.int8; None for other formats.
        source: name of the weights, for errors.
        log: gets a sentence about each step.

    Raises:
        ConfigError: the configuration does not fit the architecture.
        WeightsError: tensors are missing or misshapen, or give features that are not finite.
        EngineError: the network does not run here, or the file in 8 bits is missing.

    """
    encoder, shape = build_image_encoder(state_dict, config.features), architecture(state_dict)
    grid = _grid(config, encoder.stride)
    if quantized is not None and shape.patch is not None:
        raise ConfigError('precision: int8 is for ResNets; use float32 or bfloat16.')
    with engine.compute_on(device):
        if quantized is not None:
            encoder.trunk, engine_name = quantization.load(quantized), 'ONNX Runtime'
            engine.check_finite(engine.encode_probe_image(
                encoder, config.input_size, device), dtype, str(quantized))
            log(f'precision: int8, from {quantized}.')
        else:
            engine_name = engine.install(encoder, dtype, device, config.input_size, log, source,
                                  1 + config.flip_average)
        mean, deviation = state_dict.normalization if isinstance(state_dict, OpenClipWeights) \
            else NORMALIZATIONS[config.normalization]
        return Model(encoder, Preprocessor(config.input_size, mean, deviation, device),
                     engine_name, str(dtype).removeprefix('torch.'), grid,
                     shape.embed_dim if shape.patch is not None else 32 * shape.width)


def _grid(config: DepthConfig, stride: int) -> Size:
    """Compute the number of patches; ConfigError if the stride does not divide the input."""
    for name in ('input_height', 'input_width'):
        value = getattr(config, name)
        if value % stride:
            below = value // stride * stride
            raise ConfigError(f"{name}: {value} is not a multiple of {config.backbone}'s stride "
                              f'{stride}; use {below} or {below + stride}.')
    return config.input_height // stride, config.input_width // stride
