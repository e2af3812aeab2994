# SPDX-License-Identifier: Apache-2.0
"""DepthCLIP: RGB images in, depth out."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import depth_steps, engine, files, quantization
from .backbone import AttentionPool, EncoderOutput, build_attention_pool, resnet_weights
from .calibration import Calibration
from .camera_image import CameraImage, Rgb
from .config import DepthConfig, Size
from .depth_steps import LoadedSettings
from .engine import (
    compute_on,
    release_freed_memory,
    resolve_device,
    resolve_precision,
    use_threads,
)
from .errors import ConfigError, EngineError, ImageError, WeightsError, reason
from .model import load_model
from .prediction import DepthPrediction
from .readout import float32
from .resnet import FoldedResNet
from .state_dict import Log
from .text_features import Phrases, cached_features, phrases_of, word_warnings
from .weights import LoadedWeights, cache_folder, load_weights

TEXT_CACHE_SIZE = 16  # sets of words in memory

_LOGGER = logging.getLogger(__name__)


class _TextFeatures(NamedTuple):
    """Text features of K words."""

    features: NDArray[np.float32]  # (K, C)
    is_cached: bool  # read from the disk
    word_warnings: list[str]  # warnings about words that the model does not know or tell apart


class DepthEstimator:
    """A loaded DepthCLIP model with its settings; several threads may call it.

    Attributes:
        weights: identity of the weights (`WeightsInfo`); `weights.trained` is False for random
            weights, whose depth is meaningless.
        device: device of the network.
        precision: the backbone's number format, e.g. 'float32'.
        engine: the backbone's runtime, e.g. 'oneDNN' (see `engine`).
        grid: (h, w), number of patches.
        text_cache_hit: whether the text features came from the cache.

    """

    def __init__(
        self, config: DepthConfig,
        weights: str | Path | Mapping[str, Tensor] | LoadedWeights | None = None,
        device: str = 'auto', *,
        cache_dir: str | Path | None = None, offline: bool = False, num_threads: int = 0,
        log: Log = _LOGGER.info,
    ) -> None:
        """Load weights and text features.

        Args:
            config: the settings.
            weights: official name, 'demo', file, 'untrained', or state dict; None or '' for the
                official weights of `config.backbone`; or a result of `weights.load_weights`,
                which is used again for new words and must not change.
            device: auto, cpu, cuda, or cuda:N.
            cache_dir: folder of weights and text features; None or '' for the default.
            offline: forbid downloads.
            num_threads: CPU threads of torch, for the whole process; 0 for torch's default.
            log: gets a sentence about each step; warnings begin with 'WARNING'.

        Raises:
            ConfigError: the configuration does not fit the architecture.
            WeightsError: weights are missing, corrupt, of another architecture, or give features
                that are not finite.
            DeviceError: the device does not exist.
            EngineError: the network does not run here, or the file for `precision: int8` is
                missing (`quantize` makes it).
            CalibrationError: the calibration is unusable, or of another model or configuration.

        """
        use_threads(num_threads)
        self.device = resolve_device(device, log)
        dtype = resolve_precision(config.precision, self.device, log)
        self._log, self._folder = log, cache_folder(cache_dir)
        self._load = functools.partial(
            load_weights, '' if weights is None else weights, config.backbone, self._folder, log,
            offline=offline)
        self.weights, state_dict = self._load()
        self._state_dict: Mapping[str, Tensor] | None = state_dict  # until all is built
        self._texts: dict[Phrases, _TextFeatures] = {}  # the latest TEXT_CACHE_SIZE
        # By path: inode, time and size of the file, and its content.
        self._calibrations: dict[str, tuple[Any, Calibration]] = {}
        self._backbone, self._logged_phrases = config.backbone, set[Phrases]()
        self._pool: AttentionPool | None = None
        # Before the network, so that text encoder and network are not in memory at once.
        self.text_cache_hit = self._text_features(phrases_of(config)[0]).is_cached
        self.model = load_model(
            config, state_dict, self.device, dtype, None if dtype != torch.int8 else
            self._quantized_path(config), self.weights.source, log)
        self.engine, self.precision = self.model.engine, self.model.precision
        self.grid = self.model.grid
        self._warm_thread = threading.get_ident()  # load_model ran the network here
        self._activate(self.prepare(config))
        self._state_dict = None
        del state_dict
        release_freed_memory()

    @property
    def config(self) -> DepthConfig:
        """The configuration in force."""
        return self._settings.config

    @property
    def calibration(self) -> Calibration | None:
        """The calibration in force."""
        return self._settings.calibration

    @property
    def label(self) -> str:
        """The notice that must accompany calibrated depth; '' for depth by words alone."""
        return '' if self.calibration is None else self.calibration.label

    @property
    def text_features(self) -> NDArray[np.float32]:
        """(K, C) unit vectors, one per token."""
        features: NDArray[np.float32] = self._settings.text.cpu().numpy()
        return features

    # Settings that change on a loaded model -------------------------------------------------

    def prepare(self, config: DepthConfig) -> LoadedSettings:
        """Load text features and calibration, so that a later `reconfigure` is quick.

        No setting changes, only caches grow; any thread may call it while another one predicts.
        For words that are cached neither in memory nor on disk it reads the weights again, since
        the text encoder would take more memory than all the rest.

        Args:
            config: gives words, scenes and calibration.

        Raises:
            ConfigError: a sentence is longer than the model's context, or two words have the same
                tokens.
            WeightsError: the weights have moved or changed.
            CalibrationError: the calibration is unusable, or of another model or configuration.

        """
        text = [float32(self._text_features(phrases).features) for phrases in phrases_of(config)]
        scenic, calibration = config.has_scenes, None
        if scenic and self._pool is None:  # kept from now on: 59 MB for RN50
            with compute_on(self.device):
                self._pool = self.model.encoder.pool or build_attention_pool(
                    self._read_tensors()).to(self.device)
        if config.calibration:
            calibration = self._load_calibration(config.calibration)
            calibration.check(config, self.weights.digest, self.precision, self.grid,
                              self.model.channels)
        return LoadedSettings(
            config, text[0].to(self.device), float32(config.bins), calibration,
            self._pool if scenic else None, text[-1], float32(config.bins_of_scenes()))

    def _load_calibration(self, path: str) -> Calibration:
        """Read a calibration if its file is new; a removed file's content stays in use."""
        try:
            status = files.user_path(path).stat()
            file_version = status.st_ino, status.st_mtime_ns, status.st_size
        except OSError:
            file_version = None
        cached = self._calibrations.get(path)
        if cached is None or file_version not in (None, cached[0]):
            cached = self._calibrations[path] = file_version, Calibration.load(path)
        return cached[1]

    def _text_features(self, phrases: Phrases) -> _TextFeatures:
        text = self._texts.get(phrases)
        if text is None:
            with compute_on(self.device):
                features, is_cached = cached_features(
                    phrases, self._folder / 'text', self._backbone, self.weights.digest,
                    self._read_tensors, self._log)
                text = _TextFeatures(features, is_cached, word_warnings(
                    phrases, features, self._read_tensors, thorough=not is_cached))
        # The latest are at the end. The dict is replaced as a whole, for other threads.
        older = [pair for pair in self._texts.items() if pair[0] != phrases]
        self._texts = dict([*older[1 - TEXT_CACHE_SIZE:], (phrases, text)])
        return text

    def _activate(self, settings: LoadedSettings) -> None:
        """Put settings in force, and log the doubts about their words once."""
        self._settings = settings
        for phrases in phrases_of(settings.config):
            if phrases not in self._logged_phrases:
                for doubt in self._text_features(phrases).word_warnings:
                    self._log(f'WARNING: {phrases.setting}: {doubt}')
                self._logged_phrases.add(phrases)

    def _read_tensors(self) -> Mapping[str, Tensor]:
        """Return the weights, read again if they are no longer in memory."""
        if self._state_dict is not None:
            return copy(self._state_dict)
        info, state_dict = self._load()
        if info.digest != self.weights.digest:
            raise WeightsError(
                f'{info.source}: the weights have changed since they were loaded (SHA-256 '
                f'{info.digest[:12]}… instead of {self.weights.digest[:12]}…); put the file back, '
                'or load it as a whole.')
        return state_dict

    def reconfigure(self, config: DepthConfig) -> None:
        """Change the settings that need no loading: those without `reload` in their metadata.

        A prediction that runs on another thread completes with the settings it began with.

        Args:
            config: the new settings.

        Raises:
            ConfigError: a changed setting needs a new estimator, or a sentence is too long.
            WeightsError: as `prepare`.
            CalibrationError: as `prepare`.

        """
        changed = [f.name for f in fields(config) if f.metadata['reload']
                   and getattr(config, f.name) != getattr(self.config, f.name)]
        if changed:
            raise ConfigError(f'{", ".join(changed)}: cannot change on a loaded model; build a '
                              'new estimator.')
        self._activate(self.prepare(config))

    def warm_up(self, largest_batch: int = 1) -> None:
        """Run the known image, so that no real batch pays for the initialisation.

        Call it on the thread that will predict, since libraries initialise for each thread. On
        a CPU the thread that loaded the model has done so, since loading runs the network.

        Args:
            largest_batch: on a GPU, every batch size up to it gets a CUDA graph.

        """
        trunk = self.model.encoder.trunk
        graphed = trunk if isinstance(trunk, engine.GraphedTrunk) else None
        if graphed is None and threading.get_ident() == self._warm_thread:
            return
        image = (50 * engine.probe_image(self.config.input_size)[0] + 128).clamp_(0, 255).byte()
        rgb = image.permute(1, 2, 0).numpy()
        for count in range(1, (1 if graphed is None else largest_batch) + 1):
            if graphed is not None:
                self._capture(graphed, count * (1 + self.config.flip_average))
            self.predict([rgb] * count)

    def _capture(self, trunk: engine.GraphedTrunk, count: int) -> None:
        try:
            with compute_on(self.device):
                trunk.capture(count)
        except (RuntimeError, EngineError) as error:
            self._log(f'WARNING: no CUDA graph of {count} images here ({reason(error)}); such '
                      'batches run without one, which is slower.')

    # From images to depth -------------------------------------------------------------------

    @overload
    def predict(self, images: CameraImage | Rgb, size: Size | None = None) -> DepthPrediction: ...

    @overload
    def predict(
        self, images: Sequence[CameraImage | Rgb], size: Size | None = None,
    ) -> list[DepthPrediction]: ...

    @torch.inference_mode()
    def predict(
        self, images: CameraImage | Rgb | Sequence[CameraImage | Rgb], size: Size | None = None,
    ) -> DepthPrediction | list[DepthPrediction]:
        """Estimate depth.

        Args:
            images: (H, W, 3) uint8 RGB, or a `CameraImage` with camera, anchor and scene; or
                several of any sizes, which go through the network as one batch.
            size: (height, width) of `depth`; None for each image's own.

        Returns:
            One prediction, or a list in the order of the images.

        Raises:
            ImageError: an image has another shape or type.
            CameraInfoError: a camera is for another image size, or its image has no rays.

        """
        if isinstance(images, str) or not isinstance(images, Sequence):
            return self.predict([images], size)[0]
        if not images:
            return []
        batch = [image if isinstance(image, CameraImage) else CameraImage(image)
                 for image in images]
        settings = self._settings  # one read: they change as a whole
        config, calibration = settings.config, settings.calibration
        with compute_on(self.device):
            maps = self.model.encode([image.rgb for image in batch], flip=config.flip_average)
            ratios = depth_steps.focal_ratios(config, calibration, batch)
            language = depth_steps.language_depth(settings, maps, [image.scene for image in batch])
            depth, adjustments = depth_steps.anchor_depth(
                depth_steps.correct_depth(language, calibration, batch, ratios), batch,
                config.upsampling)
            return depth_steps.make_predictions(
                config, language, depth, adjustments, ratios, batch, size)

    @torch.inference_mode()
    def encode(self, images: Sequence[Rgb]) -> EncoderOutput:
        """Run the image encoder alone (section 3.1 of the paper).

        Args:
            images: each (H, W, 3) uint8 RGB, at least one. With `flip_average`, mirrored ones
                follow.

        Raises:
            ImageError: an image has another shape or type.

        """
        with compute_on(self.device):
            return self.model.encode(images, flip=self.config.flip_average)

    def _quantized_path(self, config: DepthConfig) -> Path:
        """Path of the network in 8 bits in the cache."""
        return quantization.cache_path(
            self._folder, self.weights.digest, config.input_size, config.normalization)

    @torch.inference_mode()
    def quantize(self, pictures: Sequence[Rgb]) -> Path:
        """Quantise the network to 8 bits, into the file that `precision: int8` reads.

        Args:
            pictures: images of the camera, each (H, W, 3) uint8 RGB, over which the ranges of the
                network's maps are measured; two dozen are enough.

        Returns:
            Path of the file.

        Raises:
            EngineError: its features differ too much, or ONNX Runtime is missing.
            ImageError: a picture has another shape or type, or the list is empty.
            WeightsError: the weights have moved or changed.
            OSError: the file cannot be written.

        """
        if not pictures:
            raise ImageError('no picture', 'there is no picture to be right on; give two dozen.')
        path = self._quantized_path(self.config)
        network = FoldedResNet(resnet_weights(self._read_tensors()))
        images = [self.model.preprocess([rgb]).cpu() for rgb in pictures]
        with files.atomic(path) as file:
            file.write(quantization.build(network, images))
        return path
