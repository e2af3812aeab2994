# SPDX-License-Identifier: Apache-2.0
"""DepthCLIP: RGB images in, depth out."""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from . import engine, files, int8
from .anchor import Adjustment
from .backbone import AttentionPool, build_attention_pool, build_image_encoder, resnet_weights
from .calibration import Calibration
from .camera import CameraModel, focal_ratio
from .config import DepthConfig, Size
from .engine import (
    current,
    release_freed_memory,
    resolve_device,
    resolve_precision,
    use_exact_float32,
    use_threads,
)
from .errors import ConfigError, ImageError, WeightsError
from .projection import (
    limit_range,
    mean_of_passes,
    read_out,
    similarity_logits,
    smooth,
    upsample,
)
from .resnet import FoldedResNet
from .state_dict import Log, OpenClipWeights, architecture
from .weights import Loaded, cache_folder, load
from .words import (
    Phrases,
    Scene,
    cached_features,
    doubts,
    mixed_bins,
    phrases_of,
    scene_probabilities,
    sort_into_scenes,
)

# (mean, standard deviation) of RGB in [0, 1]. The official code uses ImageNet's although CLIP was
# trained with its own.
NORMALIZATIONS = {
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
KEPT = 16  # sets of words and calibrations that stay in memory

_LOGGER = logging.getLogger(__name__)

NOT_ADJUSTED = Adjustment()
Rgb = NDArray[np.uint8]
Metres = NDArray[np.float32]
# (h, w) depth of the patches in metres, (h, w) its standard deviation in metres or None, (H, W) of
# the image, and `upsampling` -> what becomes of it. Called once an image, before limits.
Anchor = Callable[[Metres, 'Metres | None', Size, str], Adjustment]


@dataclass(frozen=True)
class DepthPrediction:
    """Depth of one image, as NumPy arrays in float32.

    Attributes:
        depth: (H, W) metres along the optical axis, for the whole image. NaN where the network's
            features vanish, and where its answer is beyond `range_min` or `range_max`; there also
            -Inf and +Inf, as `out_of_range` says. `upsampling` says where a patch's depth stands.
        patch_depth: (h, w) metres, one per patch (eq. 5, or as `read_out` says), smoothed if
            `smoothing` says so, before upsampling; NaN and infinite as `depth`. The patches tile
            the image; their depth is that at their centres.
        weights: (K, h, w) weight of every bin (eq. 4), sums to 1 over K.
        logits: (K, h, w) scaled similarity with every token (eq. 3).
        spread: (h, w) metres, standard deviation of the bins under the weights: a relative score
            of how undecided a patch is, not an error bar.
        image_size: (H, W) of the image.
        upsampling: from patches to pixels.
        focal_ratio: the camera's focal length over `reference_focal`, by which depth and spread
            are multiplied. Where the camera is unknown, that of the calibration; 1 without one.
        adjustment: what the anchor made of depth; nothing without one.
        patch_stddev: (h, w) metres, standard deviation of `patch_depth`, whatever the range and
            `max_stddev`: in the calibration's own scenes the truth is within 1.645 of `stddev` for
            90 % of the pixels. None without a calibration.
        scene: what kind of scene it is, on which the bins depend; None without `scenes`.

    With `flip_average`, `depth` and `patch_depth` are the mean of both passes; the others are
    those of the plain pass. `weights` and `logits` are the network's own answer, whatever the
    range.
    """

    depth: Metres
    patch_depth: Metres
    weights: NDArray[np.float32]
    logits: NDArray[np.float32]
    spread: Metres
    image_size: Size
    upsampling: str
    focal_ratio: float = 1.0
    adjustment: Adjustment = NOT_ADJUSTED
    patch_stddev: Metres | None = None
    scene: Scene | None = None

    def stddev(self) -> Metres | None:
        """Standard deviation of `depth`: (H, W) metres, NaN where that has none; or None."""
        if self.patch_stddev is None:
            return None
        # The patches that take part in a pixel's depth take part in this, with the same shares.
        known = np.where(np.isfinite(self.patch_depth), self.patch_stddev, np.float32(np.nan))
        height, width = self.depth.shape
        return upsample(torch.from_numpy(known)[None], (height, width), self.upsampling)[0].numpy()

    def patch_at(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of the patch that shows a place in the image.

        Args:
            x: column of the image in pixels, whose centres are at integers.
            y: row, likewise.

        Raises:
            ImageError: none does.

        """
        height, width = self.image_size
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise ImageError('outside the image', f'the point {x:g},{y:g} is outside of its '
                             f'{width} x {height} pixels.')
        rows, columns = self.patch_depth.shape
        return math.floor((y + 0.5) / height * rows), math.floor((x + 0.5) / width * columns)

    def word_depths(self, config: DepthConfig) -> list[float]:
        """Metres that each of the K words stands for in this image, by its scene and camera.

        A calibration corrects what follows from them, not them.

        Args:
            config: with which the image was answered.

        """
        bins, scene = torch.tensor(config.bins), self.scene
        if scene is not None:
            bins = mixed_bins(
                torch.from_numpy(scene.probabilities)[None], torch.tensor([scene.plain]),
                torch.tensor(config.bins_of_scenes()), bins)[0]
        factor = self.focal_ratio * self.adjustment.scale
        return [factor * float(metres) for metres in bins]


class Maps(NamedTuple):
    """What the image encoder sees of N images: with `flip_average` they are followed mirrored."""

    features: Tensor  # (N, C, h, w), what is compared with the text
    trunk: Tensor  # (N, C', h, w), what they are made of


class Settings(NamedTuple):
    """What can be exchanged on a loaded model: always as a whole, so that it fits together."""

    config: DepthConfig
    text: Tensor  # (K, C) unit vectors
    bins: Tensor  # (K,) metres
    calibration: Calibration | None
    pool: AttentionPool | None  # this and the following only with `scenes`
    scene_text: Tensor  # (S, C) unit vectors
    scene_bins: Tensor  # (S, K) metres


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
        self.device = resolve_device(device)
        if self.device.type == 'cuda':
            use_exact_float32()
        dtype = resolve_precision(config.precision, self.device, log)
        self._log, self._folder = log, cache_folder(cache_dir)
        self._load = functools.partial(
            load, '' if weights is None else weights, config.backbone, self._folder, log,
            offline=offline)
        self.weights, state_dict = self._load()
        self._state_dict: Mapping[str, Tensor] | None = state_dict  # until all is built
        self._encoder = build_image_encoder(state_dict, config.features)
        self._size, self._backbone = config.input_size, config.backbone
        self.grid = _grid(config, self._encoder.stride)
        shape = architecture(state_dict)
        # C' of the trunk's map.
        self._channels = shape.embed_dim if shape.patch is not None else 32 * shape.width
        self._text_of = functools.lru_cache(KEPT)(self._encode)
        self._calibration_of = functools.lru_cache(KEPT)(Calibration.load)
        self._pool: AttentionPool | None = None
        self.text_cache_hit = self._text_of(phrases_of(config)[0])[1]
        if dtype == torch.int8 and shape.patch is not None:
            raise ConfigError('precision: int8 is for ResNets; use float32 or bfloat16.')
        with current(self.device):
            if dtype == torch.int8:
                path = self._quantized_path(config)
                self._encoder.trunk = int8.load(path)
                self.engine = 'ONNX Runtime'
                engine.check_finite(engine.try_known_image(
                    self._encoder, self._size, self.device), dtype, str(path))
                log(f'precision: int8, from {path}.')
            else:
                self.engine = engine.install(
                    self._encoder, dtype, self.device, self._size, log, self.weights.source,
                    1 + config.flip_average)
            self.precision = str(dtype).removeprefix('torch.')
            mean, deviation = (np.array(values) for values in (
                state_dict.normalization if isinstance(state_dict, OpenClipWeights)
                else NORMALIZATIONS[config.normalization]))
            # Whole rows at a time are normalised: their length suits a processor's vectors, three
            # channels do not.
            self._scale, self._shift = (
                torch.tensor(np.tile(values, config.input_width), dtype=torch.float32)
                .to(self.device) for values in (1 / (255 * deviation), -mean / deviation))
        self._checked_on = threading.get_ident()  # the check's run was this thread's first
        self._words_in_log: set[Phrases] = set()
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

    def prepare(self, config: DepthConfig) -> Settings:
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
        on_device = functools.partial(torch.tensor, dtype=torch.float32, device=self.device)
        text = [on_device(self._text_of(phrases)[0]) for phrases in phrases_of(config)]
        scenic, calibration = config.has_scenes, None
        if scenic and self._pool is None:  # then it stays: of RN50 it is 59 MB
            with current(self.device):
                self._pool = self._encoder.pool or build_attention_pool(
                    self._tensors()).to(self.device)
        if config.calibration:
            calibration = self._calibration_of(config.calibration)
            calibration.check(config, self.weights.digest, self.precision, self.grid,
                              self._channels)
        return Settings(config, text[0], on_device(config.bins), calibration,
                        self._pool if scenic else None, text[-1],
                        on_device(config.bins_of_scenes()))

    def _encode(self, phrases: Phrases) -> tuple[NDArray[np.float32], bool, list[str]]:
        features, hit = cached_features(phrases, self._folder / 'text', self._backbone,
                                        self.weights.digest, self._tensors, self._log)
        return features, hit, doubts(phrases, features, self._tensors, thorough=not hit)

    def _put_in_force(self, settings: Settings) -> None:
        """Let settings count from now on, and say once what is to be doubted of their words."""
        self._settings = settings
        for phrases in phrases_of(settings.config):
            for doubt in () if phrases in self._words_in_log else self._text_of(phrases)[2]:
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

    def _quantized_path(self, config: DepthConfig) -> Path:
        """Where the network in 8 bits is kept."""
        return int8.path_of(self._folder, self.weights.digest, self._size, config.normalization)

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
            ImageError: a picture has another shape or type.
            WeightsError: the weights are no longer where they were, or they are others now.
            OSError: the file cannot be written.

        """
        path = self._quantized_path(self.config)
        network = FoldedResNet(resnet_weights(self._tensors()))
        images = [self._input([rgb], flip=False) for rgb in pictures]
        with files.atomic(path) as file:
            file.write(int8.make(network, images))
        return path

    def warm_up(self, largest_batch: int = 1) -> None:
        """Run a known image, so that no real batch is the slow one.

        Call it on the thread that will predict: libraries prepare themselves for each thread. The
        best is to load there too, since loading runs the network at the real size.

        Args:
            largest_batch: up to which every number of images is run, where something is prepared
                for each: a graph on a GPU, or oneDNN's.

        """
        prepared = self.engine in ('CUDA graph', 'oneDNN graph')
        if not prepared and threading.get_ident() == self._checked_on:
            return
        image = (50 * engine.known_image(self._size)[0] + 128).clamp_(0, 255).byte()
        known = image.permute(1, 2, 0).numpy()
        for count in range(1, (largest_batch if prepared else 1) + 1):
            self.predict([known] * count)

    # From images to depth -------------------------------------------------------------------

    @overload
    def predict(
        self, rgb: Rgb, size: Size | None = None, intrinsics: CameraModel | None = None,
        anchors: Anchor | None = None, scenes: Scene | None = None,
    ) -> DepthPrediction: ...

    @overload
    def predict(
        self, rgb: Sequence[Rgb], size: Size | None = None,
        intrinsics: Sequence[CameraModel | None] | CameraModel | None = None,
        anchors: Sequence[Anchor | None] | None = None,
        scenes: Sequence[Scene | None] | None = None,
    ) -> list[DepthPrediction]: ...

    @torch.inference_mode()
    def predict(
        self, rgb: Rgb | Sequence[Rgb], size: Size | None = None,
        intrinsics: Sequence[CameraModel | None] | CameraModel | None = None,
        anchors: Sequence[Anchor | None] | Anchor | None = None,
        scenes: Sequence[Scene | None] | Scene | None = None,
    ) -> DepthPrediction | list[DepthPrediction]:
        """Estimate depth.

        Args:
            rgb: (H, W, 3) uint8, or several of any sizes, which go through the network as one
                batch. An image that is not of the network's size is resized to it, whatever its
                aspect ratio.
            size: (height, width) of `depth`; None for each image's own.
            intrinsics: the camera that took the image, or one or None for every image: its focal
                length counts as `reference_focal` says.
            anchors: what knows the scale of the image, of each image, or None.
            scenes: the scene of the same camera's image before, of which `scene_memory` keeps a
                part, of each image, or None: the image by itself.

        Returns:
            One prediction, or a list in the order of the images.

        Raises:
            ImageError: an image has another shape or type.
            CameraInfoError: a camera is not for images of that size, or shows nothing.

        """
        given: list[Any] = [intrinsics, anchors, scenes]
        if isinstance(rgb, (np.ndarray, str)) or not isinstance(rgb, Sequence):
            return self.predict([rgb], size, *([one] for one in given))[0]
        settings, n = self._settings, len(rgb)  # one read: settings change as a whole
        if not n:
            return []
        config, calibration = settings.config, settings.calibration
        given = [[one] * n if one is None or isinstance(one, CameraModel) else one
                 for one in given]
        cameras, asked, before = given
        with current(self.device):
            batch = self._input(rgb, flip=config.flip_average)
            sizes = [(image.shape[0], image.shape[1]) for image in rgb]
            ratios = [
                calibration.about.focal_ratio if calibration is not None and camera is None else
                focal_ratio(config.reference_focal, camera, image, self._size)
                for camera, image in zip(cameras, sizes, strict=True)]
            features, trunk = self._encoder.maps(batch)  # section 3.1
            logits = similarity_logits(features, settings.text, config.temperature)  # eq. 3
            seen, bins = self._sort(settings, trunk, before)  # section 5
            weights, depth, spread = read_out(logits, bins, config.read_out)  # eqs. 4 and 5
            stddev, ratio = None, _on(depth, ratios)
            if calibration is not None:  # which counts the focal ratio itself
                rays = calibration.rays(cameras, flip=config.flip_average)
                depth, spread, unsure = calibration.correct(
                    weights, depth, spread, trunk, rays, ratios * (len(trunk) // n))
            depth, spread = mean_of_passes(depth, n), spread[:n]
            if calibration is None:
                depth, spread = depth * ratio, spread * ratio
            else:
                stddev = unsure[:n] * depth
            adjustments = [
                NOT_ADJUSTED if anchor is None else anchor(
                    depth[i].cpu().numpy(), None if stddev is None else stddev[i].cpu().numpy(),
                    sizes[i], config.upsampling) for i, anchor in enumerate(asked)]
            scale = _on(depth, [a.scale for a in adjustments], [a.around for a in adjustments])
            depth, spread = depth * scale, spread * scale
            if stddev is not None:
                stddev = stddev * scale * _on(
                    depth, [a.inflation for a in adjustments], [a.unsure for a in adjustments])
            depth = limit_range(depth, config.range_min, config.range_max, config.out_of_range)
            if stddev is not None and config.max_stddev:
                depth = depth.masked_fill(stddev > config.max_stddev, math.nan)
            depth = smooth(depth, config.smoothing)
            pixels = [upsample(depth[i, None], size or sizes[i], config.upsampling)[0]
                      for i in range(n)]
            depths, of_bins, similarities, spreads = (
                values[:n].cpu().numpy() for values in (depth, weights, logits, spread))
            stddevs = [None] * n if stddev is None else stddev.cpu().numpy()
            return [DepthPrediction(
                pixels[i].cpu().numpy(), depths[i], of_bins[i], similarities[i], spreads[i],
                sizes[i], config.upsampling, ratios[i], adjustments[i], stddevs[i],
                seen[i]) for i in range(n)]

    def _sort(
        self, settings: Settings, trunk: Tensor, before: Sequence[Scene | None],
    ) -> tuple[Sequence[Scene | None], Tensor]:
        """Scene of every image, if there are any, and its bins: (N, K) metres, or (K,) for all."""
        if settings.pool is None:
            return [None] * len(before), settings.bins
        images = settings.pool.whole(trunk)
        images = images.view(-1, len(before), images.shape[1])
        scenes, probabilities, plain = sort_into_scenes(
            settings.config, scene_probabilities(
                images, settings.scene_text, settings.config.scene_temperature), before)
        bins = mixed_bins(probabilities, plain, settings.scene_bins, settings.bins)
        return scenes, bins.repeat(len(images), 1)

    @torch.inference_mode()
    def maps(self, images: Sequence[Rgb]) -> Maps:
        """Run the image encoder (section 3.1 of the paper), for those who go on by themselves.

        Args:
            images: each (H, W, 3) uint8 RGB, at least one.

        Raises:
            ImageError: an image has another shape or type.

        """
        with current(self.device):
            return Maps(*self._encoder.maps(
                self._input(images, flip=self.config.flip_average)))

    def _input(self, images: Sequence[Rgb], *, flip: bool) -> Tensor:
        """Images -> (N, 3, height, width), resized in 8 bits as CLIP does it, and normalised.

        Mirrored ones ride in the same batch.
        """
        count, (height, width) = len(images), self._size
        rows = torch.empty((1 + flip) * count, height, 3 * width, device=self.device)
        for image, target in zip(images, rows, strict=False):
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 \
                    or image.shape[2] != 3 or 0 in image.shape:
                raise _not_an_image(image)
            pixels = torch.from_numpy(np.require(image, requirements=('C', 'W'))).to(self.device)
            if image.shape[:2] != self._size:
                planes = pixels.permute(2, 0, 1)[None]
                if planes.is_cuda:  # where torch resizes in floating point only
                    planes = planes.float()
                planes = interpolate(planes, self._size, mode='bilinear', antialias=True)
                if planes.is_cuda:
                    planes.round_()
                pixels = planes[0].permute(1, 2, 0)
            torch.addcmul(self._shift, pixels.reshape(height, -1).float(), self._scale, out=target)
        batch = rows.view(-1, height, width, 3)
        if flip:
            batch[count:] = batch[:count].flip(2)
        return batch.permute(0, 3, 1, 2)


def _not_an_image(given: Any) -> ImageError:
    kind = '' if isinstance(given, np.ndarray) else type(given).__name__
    if hasattr(given, 'shape') and hasattr(given, 'dtype'):
        kind = f'{kind} {given.dtype} {tuple(given.shape)}'.strip()
    return ImageError('not an RGB image', (
        f'the image is {kind}; expected uint8 (height, width, 3), not empty. Of a file: '
        "np.asarray(PIL.Image.open(path).convert('RGB')); of a tensor (3, height, width): "
        'image.permute(1, 2, 0).cpu().numpy(); of numbers from 0 to 1: (255 * '
        'image).round().astype(np.uint8).'))


def _on(
    patches: Tensor, numbers: Sequence[float], factors: Sequence[Metres | None] = (),
) -> Tensor:
    """(B, 1, 1) of one number for each image beside (B, h, w); or (B, h, w) with factors."""
    values = torch.tensor(numbers, dtype=torch.float32, device=patches.device)[:, None, None]
    if all(factor is None for factor in factors):
        return values
    return values * torch.from_numpy(np.stack([
        np.ones(patches.shape[1:], np.float32) if factor is None else factor
        for factor in factors])).to(patches.device)


def _grid(config: DepthConfig, stride: int) -> tuple[int, int]:
    """Number of patches; the input must be a multiple of the network's stride."""
    for name in ('input_height', 'input_width'):
        value = getattr(config, name)
        if value % stride:
            below = value // stride * stride
            raise ConfigError(f"{name}: {value} is not a multiple of {config.backbone}'s stride "
                              f'{stride}; use {below} or {below + stride}.')
    return config.input_height // stride, config.input_width // stride
