# SPDX-License-Identifier: Apache-2.0
"""DepthCLIP: RGB images in, depth out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from .backbone import build_image_encoder
from .config import DepthConfig
from .device import resolve_device, resolve_precision
from .errors import ConfigError, ImageError
from .projection import bin_spread, bin_weights, combine_bins, similarity_logits, upsample
from .prompts import TextFeatureCache, encode_tokens
from .weights import Log, default_cache_dir, load

# (mean, standard deviation) of RGB in [0, 1]. The official code uses ImageNet's although CLIP was
# trained with its own.
NORMALIZATIONS = {
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class DepthPrediction:
    """Depth of one image, as NumPy arrays in float32.

    Attributes:
        depth: (H, W) metres along the optical axis. NaN where the network's features vanish.
        patch_depth: (h, w) metres, one per patch (eq. 5), before upsampling.
        weights: (K, h, w) weight of every bin (eq. 4), sums to 1 over K.
        logits: (K, h, w) scaled similarity with every token (eq. 3).
        spread: (h, w) metres, standard deviation of the bins under the weights: a relative score
            of how undecided a patch is, not an error bar.

    With `flip_average`, `depth` and `patch_depth` are the mean of both passes; the others are
    those of the plain pass.
    """

    depth: NDArray[np.float32]
    patch_depth: NDArray[np.float32]
    weights: NDArray[np.float32]
    logits: NDArray[np.float32]
    spread: NDArray[np.float32]


@dataclass(frozen=True)
class ReadOut:
    """Depth of a batch in patches, as tensors on the device; see `DepthPrediction`."""

    patch_depth: Tensor  # (B, h, w) metres
    weights: Tensor  # (B, K, h, w)
    logits: Tensor  # (B, K, h, w)
    spread: Tensor  # (B, h, w) metres


class DepthEstimator:
    """DepthCLIP as configured, ready to predict.

    Attributes:
        config: the configuration in force.
        weights: what it runs on (`WeightsInfo`); `weights.trained` is False for random weights,
            whose depth is meaningless.
        device: where the network runs.
        precision: the backbone's number format, e.g. 'float32'.
        grid: (h, w), number of patches.
        text_features: (K, C) unit vectors, one per token.
        text_cache_hit: whether they came from the cache.

    """

    def __init__(
        self, config: DepthConfig, weights: str | Path | Mapping[str, Tensor] | None = None,
        device: str = 'auto', *, cache_dir: str | Path | None = None, offline: bool = False,
        num_threads: int = 0, log: Log = _LOGGER.info,
    ) -> None:
        """Load weights and text features.

        Args:
            config: what to compute.
            weights: official name, 'demo', file, 'untrained', or state dict; None or '' for the
                official weights of `config.backbone`.
            device: auto, cpu, cuda, or cuda:N.
            cache_dir: folder of weights and text features; None or '' for the default.
            offline: forbid downloads.
            num_threads: CPU threads of torch, for the whole process; 0 leaves its choice.
            log: told what happens, in sentences; those that begin with 'WARNING' matter.

        Raises:
            ConfigError: the configuration does not fit the architecture.
            WeightsError: weights are missing, corrupt, or of another architecture.
            DeviceError: the device does not exist.

        """
        if num_threads:
            torch.set_num_threads(num_threads)
        self.device = resolve_device(device)
        self._dtype = resolve_precision(config.precision, self.device)
        self.precision = str(self._dtype).removeprefix('torch.')
        folder = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.weights, state_dict = load(
            '' if weights is None else weights, config.backbone, folder, log, offline=offline)
        encoder = build_image_encoder(state_dict, config.features)
        self.grid = _grid(config, encoder.stride)
        self.text_features, self.text_cache_hit = TextFeatureCache(folder / 'text', log).get(
            config, self.weights.digest, lambda: encode_tokens(config, state_dict))
        self._encoder = encoder.to(self.device)
        # Only the trunk runs in the backbone's format; the similarity head stays in float32.
        encoder.trunk.to(self._dtype)
        self._text = torch.from_numpy(self.text_features).to(self.device)
        mean, deviation = NORMALIZATIONS[config.normalization]
        self._mean = torch.tensor(mean, device=self.device)[:, None, None]
        self._deviation = torch.tensor(deviation, device=self.device)[:, None, None]
        self._apply(config)

    def reconfigure(self, config: DepthConfig) -> None:
        """Change bins, temperature, flip averaging or upsampling without loading anything.

        Raises:
            ConfigError: a setting differs that needs a new estimator.

        """
        changed = [f.name for f in fields(config) if f.metadata['reload']
                   and getattr(config, f.name) != getattr(self.config, f.name)]
        if changed:
            raise ConfigError(f'{", ".join(changed)}: cannot change on a loaded model; build a '
                              'new estimator.')
        self._apply(config)

    def _apply(self, config: DepthConfig) -> None:
        self.config = config
        self._bins = torch.tensor(config.bins, device=self.device)

    def warm_up(self) -> None:
        """Run once on a black image, so that the first real one is not the slow one."""
        self.predict(np.zeros((self.config.input_height, self.config.input_width, 3), np.uint8))

    @overload
    def predict(
        self, rgb: NDArray[np.uint8], size: tuple[int, int] | None = None,
    ) -> DepthPrediction: ...

    @overload
    def predict(
        self, rgb: Sequence[NDArray[np.uint8]], size: tuple[int, int] | None = None,
    ) -> list[DepthPrediction]: ...

    def predict(
        self, rgb: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
        size: tuple[int, int] | None = None,
    ) -> DepthPrediction | list[DepthPrediction]:
        """Estimate depth.

        Args:
            rgb: (H, W, 3) uint8, or several of any sizes, which go through the network as one
                batch. An image that is not of the network's size is resized to it.
            size: (height, width) of `depth`; None for each image's own.

        Returns:
            One prediction, or a list in the order of the images.

        Raises:
            ImageError: an image has another shape or type.

        """
        if isinstance(rgb, np.ndarray):
            return self._predict_batch([rgb], size)[0]
        return self._predict_batch(list(rgb), size) if len(rgb) else []

    @torch.inference_mode()
    def _predict_batch(
        self, images: list[NDArray[np.uint8]], size: tuple[int, int] | None,
    ) -> list[DepthPrediction]:
        read_out = self.read_out(self.features(images))
        return [
            DepthPrediction(
                depth=_numpy(upsample(
                    read_out.patch_depth[i:i + 1], size or image.shape[:2],
                    self.config.upsampling)[0]),
                patch_depth=_numpy(read_out.patch_depth[i]), weights=_numpy(read_out.weights[i]),
                logits=_numpy(read_out.logits[i]), spread=_numpy(read_out.spread[i]))
            for i, image in enumerate(images)
        ]

    @torch.inference_mode()
    def features(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Run the image encoder (section 3.1 of the paper).

        Args:
            images: each (H, W, 3) uint8 RGB, at least one.

        Returns:
            (passes, B, C, h, w) on the device. With `flip_average` there are two passes, the
            second over the mirrored images and itself mirrored, else one.

        Raises:
            ImageError: an image has another shape or type.

        """
        batch = torch.cat([self._network_input(image) for image in images])
        # The mirrored pass rides in the same batch.
        passes = [batch, batch.flip(3)] if self.config.flip_average else [batch]
        features: Tensor = self._encoder(torch.cat(passes))
        return features.reshape(len(passes), len(batch), *features.shape[1:])

    @torch.inference_mode()
    def read_out(
        self, features: Tensor, text_features: Tensor | None = None, bins: Tensor | None = None,
        temperature: float | None = None,
    ) -> ReadOut:
        """Turn features into depth (section 3.3 of the paper).

        Args:
            features: (passes, B, C, h, w), from `features`.
            text_features: (K, C) unit vectors; None for the configured tokens (section 3.2).
            bins: (K,) metres; None for the configured ones.
            temperature: None for the configured one.

        """
        text = self._text if text_features is None else text_features
        bins = self._bins if bins is None else bins
        logits = similarity_logits(
            features.flatten(0, 1), text,
            self.config.temperature if temperature is None else temperature)
        weights = bin_weights(logits)
        patch_depth = combine_bins(weights, bins)
        spread = bin_spread(weights, bins)
        count = features.shape[1]
        if len(features) == 2:
            # Averaged before upsampling, as the official code does.
            patch_depth = 0.5 * (patch_depth[:count] + patch_depth[count:].flip(2))
        return ReadOut(patch_depth, weights[:count], logits[:count], spread[:count])

    def _network_input(self, image: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, input_height, input_width), normalised, on the device."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ImageError('not an RGB image', f'the image is {image.dtype} {image.shape}; '
                             'expected uint8 (height, width, 3), not empty.')
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device)
        scaled = pixels.permute(2, 0, 1)[None].float()
        wanted = (self.config.input_height, self.config.input_width)
        if scaled.shape[2:] != wanted:
            scaled = interpolate(scaled, wanted, mode='bilinear', antialias=True)
        return (scaled / 255.0 - self._mean) / self._deviation


def _grid(config: DepthConfig, stride: int) -> tuple[int, int]:
    """Number of patches; the input must be a multiple of the network's stride."""
    for name in ('input_height', 'input_width'):
        value = getattr(config, name)
        if value % stride:
            below = value // stride * stride
            raise ConfigError(f"{name}: {value} is not a multiple of {config.backbone}'s stride "
                              f'{stride}; use {below} or {below + stride}.')
    return config.input_height // stride, config.input_width // stride


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array
