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

from . import engine, files, int8, steps
from .backbone import AttentionPool, Maps, build_attention_pool, resnet_weights
from .calibration import Calibration
from .config import DepthConfig, Size
from .engine import (
    current,
    release_freed_memory,
    resolve_device,
    resolve_precision,
    use_threads,
)
from .errors import ConfigError, EngineError, ImageError, WeightsError, reason
from .image import CameraImage, Rgb
from .model import load_model
from .prediction import DepthPrediction
from .projection import float32
from .resnet import FoldedResNet
from .state_dict import Log
from .steps import LoadedSettings
from .weights import Loaded, cache_folder, load
from .words import Phrases, cached_features, doubts, phrases_of

KEPT = 16  # sets of words that stay in memory

_LOGGER = logging.getLogger(__name__)


class _Text(NamedTuple):
    """Text features of some words."""

    features: NDArray[np.float32]  # (K, C)
    is_cached: bool  # read from the disk
    doubts: list[str]  # whether the words are known to the model, and apart


class DepthEstimator:
    """DepthCLIP as configured, ready to predict; from several threads, too.

    Attributes:
        weights: what it runs on (`WeightsInfo`); `weights.trained` is False for random weights,
            whose depth is meaningless.
        device: where the network runs.
        precision: the backbone's number format, e.g. 'float32'.
        engine: what the backbone runs on, e.g. 'oneDNN' (see `engine`).
        grid: (h, w), number of patches.
        text_cache_hit: whether the text features came from the cache.

    """

    def __init__(
        self, config: DepthConfig,
        weights: str | Path | Mapping[str, Tensor] | Loaded | None = None, device: str = 'auto', *,
        cache_dir: str | Path | None = None, offline: bool = False, num_threads: int = 0,
        log: Log = _LOGGER.info,
    ) -> None:
        """Load weights and text features.

        Args:
            config: what to compute.
            weights: official name, 'demo', file, 'untrained', or state dict; None or '' for the
                official weights of `config.backbone`; or what `weights.load` has returned, which
                then is not read again for new words, and must stay as it is.
            device: auto, cpu, cuda, or cuda:N.
            cache_dir: folder of weights and text features; None or '' for the default.
            offline: forbid downloads.
            num_threads: CPU threads of torch, for the whole process; 0 for its own choice.
            log: told what happens, in sentences; those that begin with 'WARNING' matter.

        Raises:
            ConfigError: the configuration does not fit the architecture.
            WeightsError: weights are missing, corrupt, of another architecture, or give features
                that are not finite.
            DeviceError: the device does not exist.
            EngineError: the network does not run here, or there is none in 8 bits for
                `precision: int8` (`quantize` makes it).
            CalibrationError: the calibration is unusable, or belongs to something else.

        """
        use_threads(num_threads)
        self.device = resolve_device(device, log)
        dtype = resolve_precision(config.precision, self.device, log)
        self._log, self._folder = log, cache_folder(cache_dir)
        self._load = functools.partial(
            load, '' if weights is None else weights, config.backbone, self._folder, log,
            offline=offline)
        self.weights, state_dict = self._load()
        self._state_dict: Mapping[str, Tensor] | None = state_dict  # until all is built
        self._texts: dict[Phrases, _Text] = {}  # the last ones
        self._calibrations: dict[str, tuple[Any, Calibration]] = {}  # and which file each was
        self._backbone, self._words_in_log = config.backbone, set[Phrases]()
        self._pool: AttentionPool | None = None
        # First, since text encoder and network need not be in memory at once.
        self.text_cache_hit = self._text_of(phrases_of(config)[0]).is_cached
        self.model = load_model(
            config, state_dict, self.device, dtype, None if dtype != torch.int8 else
            self._quantized_path(config), self.weights.source, log)
        self.engine, self.precision = self.model.engine, self.model.precision
        self.grid = self.model.grid
        self._checked_on = threading.get_ident()  # the check's run was this thread's first
        self._put_in_force(self.prepare(config))
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
        """What all that shows calibrated depth has to say; '' for that of words alone."""
        return '' if self.calibration is None else self.calibration.label

    @property
    def text_features(self) -> NDArray[np.float32]:
        """(K, C) unit vectors, one per token."""
        features: NDArray[np.float32] = self._settings.text.cpu().numpy()
        return features

    # Settings that change on a loaded model -------------------------------------------------

    def prepare(self, config: DepthConfig) -> LoadedSettings:
        """Gather what `reconfigure` needs, so that it costs no time; nothing changes by it.

        Any thread may call it, also while another one predicts. The last words and calibrations
        are kept. For words that are not in the cache on disk either, the weights are read once
        more from where they came: to keep the text encoder would cost more memory than all the
        rest.

        Args:
            config: its words, scenes and calibration.

        Raises:
            ConfigError: a sentence is longer than the model's context, or two words are one to it.
            WeightsError: the weights are no longer where they were, or they are others now.
            CalibrationError: the calibration is unusable, or belongs to another model or
                configuration.

        """
        text = [float32(self._text_of(phrases).features) for phrases in phrases_of(config)]
        scenic, calibration = config.has_scenes, None
        if scenic and self._pool is None:  # then it stays: of RN50 it is 59 MB
            with current(self.device):
                self._pool = self.model.encoder.pool or build_attention_pool(
                    self._tensors()).to(self.device)
        if config.calibration:
            calibration = self._calibration_of(config.calibration)
            calibration.check(config, self.weights.digest, self.precision, self.grid,
                              self.model.channels)
        return LoadedSettings(
            config, text[0].to(self.device), float32(config.bins), calibration,
            self._pool if scenic else None, text[-1], float32(config.bins_of_scenes()))

    def _calibration_of(self, path: str) -> Calibration:
        """Read a calibration; one that is in use may be removed, and one that is new counts."""
        try:
            status = files.user_path(path).stat()
            file = status.st_ino, status.st_mtime_ns, status.st_size
        except OSError:
            file = None
        known = self._calibrations.get(path)
        if known is None or file not in (None, known[0]):
            known = self._calibrations[path] = file, Calibration.load(path)
        return known[1]

    def _text_of(self, phrases: Phrases) -> _Text:
        text = self._texts.get(phrases)
        if text is None:
            with current(self.device):
                features, is_cached = cached_features(
                    phrases, self._folder / 'text', self._backbone, self.weights.digest,
                    self._tensors, self._log)
                text = _Text(features, is_cached, doubts(
                    phrases, features, self._tensors, thorough=not is_cached))
        # The last ones are at the end. A dict is replaced as a whole, for any thread to read.
        others = [pair for pair in self._texts.items() if pair[0] != phrases]
        self._texts = dict([*others[1 - KEPT:], (phrases, text)])
        return text

    def _put_in_force(self, settings: LoadedSettings) -> None:
        """Let settings count from now on, and say once what is to be doubted of their words."""
        self._settings = settings
        for phrases in phrases_of(settings.config):
            for doubt in () if phrases in self._words_in_log else self._text_of(phrases).doubts:
                self._log(f'WARNING: {phrases.setting}: {doubt}')
            self._words_in_log.add(phrases)

    def _tensors(self) -> Mapping[str, Tensor]:
        """The weights, read again if they are here no more."""
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
        """Change what needs no loading: all settings without `reload` in their metadata.

        What is being predicted meanwhile, on another thread, keeps the settings it began with.

        Args:
            config: the new settings.

        Raises:
            ConfigError: a setting differs that needs a new estimator, or a sentence is too long.
            WeightsError: as `prepare`.
            CalibrationError: as `prepare`.

        """
        changed = [f.name for f in fields(config) if f.metadata['reload']
                   and getattr(config, f.name) != getattr(self.config, f.name)]
        if changed:
            raise ConfigError(f'{", ".join(changed)}: cannot change on a loaded model; build a '
                              'new estimator.')
        self._put_in_force(self.prepare(config))

    def warm_up(self, largest_batch: int = 1) -> None:
        """Run a known image, so that no real batch is the slow one.

        Call it on the thread that will predict: libraries prepare themselves for each thread. The
        best is to load there too, since loading runs the network at the real size.

        Args:
            largest_batch: up to which every number of images is run, where something is prepared
                for each: a graph on a GPU, or oneDNN's.

        """
        trunk = self.model.encoder.trunk
        graphed = trunk if isinstance(trunk, engine.GraphedTrunk) else None
        if graphed is None and threading.get_ident() == self._checked_on:
            return
        image = (50 * engine.known_image(self.config.input_size)[0] + 128).clamp_(0, 255).byte()
        known = image.permute(1, 2, 0).numpy()
        for count in range(1, (1 if graphed is None else largest_batch) + 1):
            if graphed is not None:
                self._capture(graphed, count * (1 + self.config.flip_average))
            self.predict([known] * count)

    def _capture(self, trunk: engine.GraphedTrunk, count: int) -> None:
        try:
            with current(self.device):
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
            images: (H, W, 3) uint8 RGB, or a `CameraImage` with what else is known of it; or
                several of any sizes, which go through the network as one batch.
            size: (height, width) of `depth`; None for each image's own.

        Returns:
            One prediction, or a list in the order of the images.

        Raises:
            ImageError: an image has another shape or type.
            CameraInfoError: a camera is not for images of that size, or shows nothing.

        """
        if isinstance(images, str) or not isinstance(images, Sequence):
            return self.predict([images], size)[0]
        if not images:
            return []
        batch = [one if isinstance(one, CameraImage) else CameraImage(one) for one in images]
        settings = self._settings  # one read: they change as a whole
        config, calibration = settings.config, settings.calibration
        with current(self.device):
            maps = self.model.maps([image.rgb for image in batch], flip=config.flip_average)
            ratios = steps.focal_ratios(config, calibration, batch)
            answer = steps.answer(settings, maps, [image.scene for image in batch])
            depth, adjustments = steps.anchor(
                steps.correct(answer, calibration, batch, ratios), batch, config.upsampling)
            return steps.finish(config, answer, depth, adjustments, ratios, batch, size)

    @torch.inference_mode()
    def maps(self, images: Sequence[Rgb]) -> Maps:
        """Run the image encoder (section 3.1 of the paper), for those who go on by themselves.

        Args:
            images: each (H, W, 3) uint8 RGB, at least one. With `flip_average`, mirrored ones
                follow.

        Raises:
            ImageError: an image has another shape or type.

        """
        with current(self.device):
            return self.model.maps(images, flip=self.config.flip_average)

    def _quantized_path(self, config: DepthConfig) -> Path:
        """Where the network in 8 bits is kept."""
        return int8.path_of(
            self._folder, self.weights.digest, config.input_size, config.normalization)

    @torch.inference_mode()
    def quantize(self, pictures: Sequence[Rgb]) -> Path:
        """Make the network in 8 bits, and keep it where `precision: int8` looks for it.

        Args:
            pictures: what it is to be right on, each (H, W, 3) uint8 RGB, as the camera gives
                them; two dozen are enough.

        Returns:
            The file.

        Raises:
            EngineError: its features are wrong, or ONNX Runtime is missing.
            ImageError: a picture has another shape or type, or there is none.
            WeightsError: the weights are no longer where they were, or they are others now.
            OSError: the file cannot be written.

        """
        if not pictures:
            raise ImageError('no picture', 'there is no picture to be right on; give two dozen.')
        path = self._quantized_path(self.config)
        network = FoldedResNet(resnet_weights(self._tensors()))
        images = [self.model.preprocess([rgb]).cpu() for rgb in pictures]
        with files.atomic(path) as file:
            file.write(int8.make(network, images))
        return path
