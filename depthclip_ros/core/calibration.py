# SPDX-License-Identifier: Apache-2.0
"""A correction of the language depth that was fitted to one camera, and its error bars.

Depth of a patch is what the words say (eq. 5) x the focal ratio x exp(correction). The correction
is made of what the network computes anyway, so that it costs a few matrix products:

    correction = bias + log(mean of its own bins / d) + kernel . exp(-|p - landmarks|^2 / 2)

with d the depth by words (metres), and p what a patch and those above and below it look like, see
`look`. The logarithm of the relative standard deviation is linear in the terms of `spread_terms`;
a factor by depth is what conformal prediction found to be missing in each decile.
`depthclip_ros.calibrate` fits both.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from . import tensor_file
from .config import DepthConfig
from .errors import CalibrationError, ConfigError, quoted
from .files import user_path
from .geometry import CameraModel
from .projection import combine_bins
from .window import Window

FORMAT = 'depthclip_ros calibration 2'
SUFFIX = '.safetensors'
# Digits of the SHA-256 that stand in the file's name, before the suffix.
HASH_DIGITS = 16
_LONGEST_TEXT = 200

# The settings that the correction belongs to: with others the network's answers mean other things.
BOUND = (
    'tokens', 'bins', 'templates', 'temperature', 'features', 'input_height', 'input_width',
    'input_fit', 'flip_average', 'read_out', 'smoothing', 'upsampling', 'normalization',
    'reference_focal',
)
SPREAD_TERMS = 9
# Corrections of log depth beyond it are none; relative standard deviations end at these.
LARGEST_CORRECTION = 3.0
SPREADS = 0.01, 2.0


# Numbers of a calibration, by their names in its file (all float32).
ARRAYS = (
    'bias',  # ()
    'bins',  # (K,) metres, instead of the configured ones
    'spread',  # (SPREAD_TERMS,)
    'knots',  # (2, Q): log depth, and the factor there (its logarithm)
    'rays',  # (h, w, 2) of its camera at the patches' centres, z = 1
    'projection',  # (D, C'): of the trunk's map, for `look`
    'offset',  # (D,)
    'scales',  # (TOLD,): of what is told beside it
    'landmarks',  # (M, D + 2 (D // 2) + TOLD)
    'kernel',  # (M,): what looking like each landmark adds to the correction
)
# Of what a patch looks like, beside the trunk's map: log d, its mean over the image, and the ray's
# x and y.
TOLD = 4
# Weight of the patches above and below in what a patch looks like.
NEIGHBOURS = 0.7


class Corrected(NamedTuple):
    """Depth of patches after a correction, with the focal ratio."""

    depth: Tensor  # (N, h, w) metres
    spread: Tensor  # (N, h, w) metres, standard deviation of the bins
    unsure: Tensor  # (N, h, w) standard deviation of depth, in shares of it


@dataclass(frozen=True, eq=False)
class Correction:
    """The numbers of a calibration as tensors on the device of the network; see `ARRAYS`."""

    bias: Tensor
    bins: Tensor
    spread: Tensor
    knots: Tensor
    projection: Tensor
    offset: Tensor
    scales: Tensor
    landmarks: Tensor
    kernel: Tensor

    def __call__(
        self, weights: Tensor, depth: Tensor, spread: Tensor, trunk: Tensor, rays: Tensor,
        ratio: Tensor,
    ) -> Corrected:
        """Correct the depth of patches.

        Args:
            weights: (N, K, h, w), eq. 4.
            depth: (N, h, w) metres by words, eq. 5, without the focal ratio.
            spread: (N, h, w) metres, standard deviation of the bins, likewise.
            trunk: (N, C', h, w), the trunk's map.
            rays: (N, 2, h, w), x and y of the patches' centres at z = 1.
            ratio: (N, 1, 1), the focal ratio.

        """
        language = depth.log()
        correction = self.bias + combine_bins(weights, self.bins).log() - language
        if len(self.kernel):
            seen = look(trunk, language, rays, self.projection, self.offset, self.scales)
            correction = correction + (likeness(seen, self.landmarks) @ self.kernel).view_as(depth)
        correction = correction.clamp(-LARGEST_CORRECTION, LARGEST_CORRECTION)
        log_depth = language + ratio.log() + correction
        relative = spread / depth
        terms = spread_terms(log_depth, correction, weights, relative, rays)
        unsure = torch.einsum('t,nthw->nhw', self.spread, terms) + factor(self.knots, log_depth)
        metres = log_depth.exp()
        return Corrected(metres, relative * metres, unsure.exp().clamp(*SPREADS))


def look(
    trunk: Tensor, language: Tensor, rays: Tensor, projection: Tensor, offset: Tensor,
    scales: Tensor,
) -> Tensor:
    """What patches look like: a vector for each, whose distances a Gaussian kernel compares.

    It is the patch's vector in the trunk's map in D directions; half of them (the main ones) once
    more of the patches above and below, for the first row and the last that row itself; and log
    d, its mean over the image, and the ray's x and y. Scaled so that the kernel's width is one.

    Args:
        trunk: (N, C', h, w), its map.
        language: (N, h, w), log d.
        rays: (N, 2, h, w).
        projection: (D, C').
        offset: (D,).
        scales: (TOLD,), of what is told beside the map.

    Returns:
        (N h w, E).

    """
    own = torch.einsum('nchw,dc->nhwd', trunk, projection) + offset
    near = NEIGHBOURS * own[..., len(offset) - len(offset) // 2:]
    above, below = (near[:, rows] for rows in _neighbours(trunk.shape[2]))
    mean = language.mean(dim=(1, 2), keepdim=True).expand_as(language)
    told = torch.stack([language, mean, rays[:, 0], rays[:, 1]], dim=-1) * scales
    return torch.cat([own, above, below, told], dim=-1).flatten(0, 2)


def _neighbours(h: int) -> tuple[Tensor, Tensor]:
    """(h,) numbers of the rows above each row, and below."""
    rows = torch.arange(h)
    return (rows - 1).clamp(min=0), (rows + 1).clamp(max=h - 1)


def likeness(seen: Tensor, landmarks: Tensor) -> Tensor:
    """(N, E) and (M, E) -> (N, M) of the Gaussian kernel of width one."""
    halves = (0.5 * values.square().sum(dim=1) for values in (seen, landmarks))
    return (seen @ landmarks.T - next(halves)[:, None] - next(halves)).clamp(max=0.0).exp()


@dataclass(frozen=True)
class About:
    """What a calibration was fitted to and how.

    Attributes:
        source: what it was calibrated on, in words.
        variant: 'full', 'monotone' (bins), or 'scale'.
        frames: how many.
        blocks: sequences or blocks of time among them.
        weights: SHA-256 of the network's weights.
        weights_name: as `WeightsInfo.name`.
        focal_ratio: of its camera, by which depth was multiplied before.
        config: the settings in `BOUND`, as plain values.
        split: the training split of a data set that it was fitted to, in words; '' for any other
            recording.
        images: `image_digest` of every image that it was fitted to; empty where the file does
            not say.
        camera_known: whether any frame's camera was: else no camera counts afterwards either.
        precision: in which the network ran; '' where the file does not say.

    """

    source: str
    variant: str
    frames: int
    blocks: int
    weights: str
    weights_name: str
    focal_ratio: float
    config: Mapping[str, Any]
    split: str = ''
    images: Sequence[str] = ()
    camera_known: bool = True
    precision: str = ''


@dataclass(frozen=True, eq=False)
class Calibration:
    """A correction and error bars for one camera, checked, on the host.

    Attributes:
        about: where it comes from.
        arrays: those of `ARRAYS`.
        digest: SHA-256 of the file in hex; of one that is not saved, of what would be in it.

    """

    about: About
    arrays: tensor_file.Arrays
    digest: str

    @classmethod
    def make(cls, about: About, arrays: tensor_file.Arrays) -> Calibration:
        """Put together what was fitted.

        Raises:
            CalibrationError: an array is missing, of a wrong shape, or not finite.

        """
        content = tensor_file.encode(arrays, _metadata(about))
        return cls._decoded('what was fitted', content)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
            CalibrationError: it is missing, damaged, or something else.

        """
        try:
            place = user_path(path)
            content = tensor_file.read_bytes(place)
        except OSError as error:
            raise CalibrationError(
                f'calibration: {quoted(str(path), 200)} cannot be read: '
                f'{error.strerror or error}. Give the .safetensors file that `depthclip '
                "calibrate` wrote, or '' for none.") from error
        except tensor_file.TensorFileError as error:
            raise _damaged(str(path), error) from error
        calibration = cls._decoded(str(path), content)
        named = place.name.removesuffix(SUFFIX).rpartition('.')[2]
        if len(named) == HASH_DIGITS and not set(named) - set('0123456789abcdef') \
                and not calibration.digest.startswith(named):
            raise _damaged(str(path), f'its SHA-256 begins with {calibration.digest[:16]}, not '
                                      'with what its name says')
        return calibration

    def save(self, folder: Path, stem: str) -> Path:
        """Write it as `stem.HASH.safetensors`, and give that path.

        Raises:
            OSError: it cannot be written.

        """
        path = folder / f'{stem}.{self.digest[:HASH_DIGITS]}{SUFFIX}'
        tensor_file.write(path, self.arrays, _metadata(self.about))
        return path

    @classmethod
    def _decoded(cls, name: str, content: bytes) -> Calibration:
        try:
            arrays, metadata = tensor_file.decode(content)
            about = _about(metadata)
            _check_arrays(arrays, len(about.config['tokens']))
        except (tensor_file.TensorFileError, ConfigError, ValueError, TypeError, KeyError,
                RecursionError) as error:
            raise _damaged(name, error) from error
        return cls(about, arrays, tensor_file.digest(content))

    @property
    def label(self) -> str:
        """What everything that shows its depth has to say."""
        return f'calibrated on {self.about.source}, no longer zero-shot'

    def precision_doubt(self, precision: str) -> str:
        """A sentence where its error bars were found in quite other numbers; '' where not.

        Features in float16 and bfloat16 are those in float32 but for some thousandths, in 8 bits
        but for 2 to 5 % (docs/int8.md).

        Args:
            precision: of the network: 'int8' or another.

        """
        fitted = self.about.precision
        if not fitted or (fitted == 'int8') == (precision == 'int8'):
            return ''
        return (f'the calibration was fitted in {fitted}, and the network runs in {precision}: '
                'neither its depth nor its error bars were validated so. Calibrate with '
                f'precision: {precision}, or set precision: {fitted}.')

    def check(
        self, config: DepthConfig, weights: str, grid: tuple[int, int], width: int,
    ) -> None:
        """Check that it belongs to a model and a configuration.

        Args:
            config: in force.
            weights: SHA-256 of the weights.
            grid: (h, w), number of patches.
            width: C' of the trunk's map.

        Raises:
            CalibrationError: it does not; every difference is named.

        """
        seen = config.to_dict()
        differences = [
            f'{name} is {quoted(seen[name])}, it was {quoted(self.about.config[name])}'
            for name in BOUND if not _same(seen[name], self.about.config[name])]
        if weights != self.about.weights:
            differences.insert(0, f'the weights have SHA-256 {weights[:12]}…, they were '
                                  f'{quoted(self.about.weights_name)} with '
                                  f'{self.about.weights[:12]}…')
        shapes = {'grid of patches': (grid, self.arrays['rays'].shape[:2]),
                  'channels of the trunk': (width, self.arrays['projection'].shape[1])}
        differences += [f'the {name}: {found}, it was {fitted}'
                        for name, (found, fitted) in shapes.items() if found != fitted]
        if config.has_scenes:
            differences.append(f'scenes is {quoted(seen["scenes"])}, it was without: a '
                               'calibration has bins of its own')
        if differences:
            raise CalibrationError(
                f'calibration: it was fitted to another model or configuration: '
                f'{"; ".join(differences)}. Set these back, calibrate again, or give '
                "calibration: ''.")

    def on(self, device: torch.device) -> Correction:
        """Its numbers on a device, without a kernel that adds nothing."""
        arrays = dict(self.arrays)
        if not arrays['kernel'].any():
            arrays.update(kernel=arrays['kernel'][:0], landmarks=arrays['landmarks'][:0])
        return Correction(**{name: torch.tensor(arrays[name], device=device)
                             for name in arrays if name != 'rays'})

    def rays(
        self, cameras: Sequence[CameraModel | None], windows: Sequence[Window], *,
        flip: bool = False,
    ) -> NDArray[np.float32]:
        """Rays of the patches' centres, from a store of the last ones.

        Args:
            cameras: None where it is unknown: it counts as the one that was calibrated. Rays
                beyond those that were calibrated count as the outermost of these.
            windows: what the network sees of each image.
            flip: whether the mirrored images follow, which are those of mirrored cameras.

        Returns:
            (N, 2, h, w), x and y at z = 1.

        """
        known = self.about.camera_known
        rays = np.stack([_rays(self, camera if known else None, window)
                         for camera, window in zip(cameras, windows, strict=True)])
        if flip:
            rays = np.concatenate([rays, mirrored_rays(rays)])
        return np.moveaxis(rays, -1, 1)


@lru_cache(maxsize=64)  # rays through a lens take milliseconds
def _rays(
    calibration: Calibration, camera: CameraModel | None, window: Window,
) -> NDArray[np.float32]:
    """(h, w, 2) of one image."""
    own = calibration.arrays['rays']
    if camera is None:
        return own
    h, w = own.shape[:2]
    rays = camera.patch_rays(h, w, window)[..., :2]
    rays = np.where(np.isfinite(rays), rays, own)
    return rays.clip(own.min(axis=(0, 1)), own.max(axis=(0, 1))).astype(np.float32)


def image_digest(rgb: NDArray[np.uint8]) -> str:
    """By what an image of a recording is known again: the beginning of its SHA-256, in hex."""
    return hashlib.sha256(np.ascontiguousarray(rgb).data).hexdigest()[:HASH_DIGITS]


def mirrored_rays(rays: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., h, w, 2) rays of the mirrored camera, which takes the mirrored image."""
    return rays[..., ::-1, :] * np.array([-1, 1], np.float32)


def spread_terms(
    log_depth: Tensor, correction: Tensor, weights: Tensor, spread: Tensor, rays: Tensor,
) -> Tensor:
    """(N, SPREAD_TERMS, h, w): what tells how wrong the depth of a patch may be.

    One; log depth, and its square; the spread of the bins over their mean; the entropy of their
    weights; the range of log depth among the neighbours (at edges, a pixel's depth may be that of
    either side); how much was corrected; the ray's y, and its distance from the axis, squared.
    """
    entropy = torch.special.entr(weights).sum(dim=1)
    depths = log_depth[:, None]
    edges = max_pool2d(depths, 3, 1, 1) + max_pool2d(-depths, 3, 1, 1)
    x, y = rays[:, 0], rays[:, 1]
    return torch.stack([
        torch.ones_like(log_depth), log_depth, log_depth.square(), spread, entropy, edges[:, 0],
        correction.abs(), y, x.square() + y.square()], dim=1)


def no_kernel(width: int) -> dict[str, NDArray[np.float32]]:
    """The arrays of a kernel that adds nothing, for a trunk's map of so many channels."""
    shapes = {'projection': (1, width), 'offset': (1,), 'scales': (TOLD,),
              'landmarks': (1, 1 + TOLD), 'kernel': (1,)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def factor(knots: Tensor, log_depth: Tensor) -> Tensor:
    """Linear between knots (2, Q), and constant beyond the outermost."""
    places, values = knots
    widths = places.diff()
    slopes = values.diff() / widths
    inside = torch.minimum((log_depth[..., None] - places[:-1]).clamp_min(0), widths)
    interpolated: Tensor = values[0] + torch.matmul(inside, slopes)
    return interpolated


def _same(seen: Any, fitted: Any) -> bool:
    if isinstance(seen, float) and isinstance(fitted, (int, float)):
        return math.isclose(seen, fitted, rel_tol=1e-6)  # of ROS's doubles nothing is lost
    if isinstance(seen, list) and isinstance(fitted, list):
        return len(seen) == len(fitted) and all(map(_same, seen, fitted))
    return bool(seen == fitted)


def _damaged(name: str, reason: object) -> CalibrationError:
    return CalibrationError(
        f'calibration: {quoted(name, 200)} is damaged or no calibration: {reason}. Copy it once '
        'more, or calibrate again.')


def _metadata(about: About) -> dict[str, str]:
    values = {name: getattr(about, name) for name in About.__dataclass_fields__}
    return {'format': FORMAT, 'about': json.dumps(values, sort_keys=True)}


def _about(metadata: Mapping[str, str]) -> About:
    """Read what `_metadata` wrote; whatever is wrong raises ValueError, TypeError or KeyError."""
    if metadata.get('format') != FORMAT:
        raise ValueError(f"its format is {quoted(metadata.get('format'))}, not {FORMAT!r}")
    values = json.loads(metadata['about'])
    if not isinstance(values, dict):
        raise TypeError('what it says of itself is no table')
    values = {'split': '', 'images': [], 'camera_known': True, 'precision': '', **values}
    about = About(**{name: values[name] for name in About.__dataclass_fields__})
    for name in ('source', 'variant', 'weights', 'weights_name', 'split', 'precision'):
        text = values[name]
        if not isinstance(text, str) or len(text) > _LONGEST_TEXT or not text.isprintable():
            raise ValueError(f'its {name} is {quoted(text)}')
    if not all(isinstance(values[name], int) and values[name] >= 0
               for name in ('frames', 'blocks')):
        raise ValueError('its numbers of frames and blocks are no counts')
    if not (isinstance(about.focal_ratio, float) and 0 < about.focal_ratio < math.inf):
        raise ValueError(f'its focal ratio is {quoted(about.focal_ratio)}')
    if not isinstance(about.camera_known, bool):
        raise TypeError(f'whether its camera is known is {quoted(about.camera_known)}')
    if not isinstance(about.images, list) or not all(
            isinstance(image, str) and len(image) == HASH_DIGITS for image in about.images):
        raise ValueError('its images are no list of digests')
    if not isinstance(about.config, dict) or set(about.config) != set(BOUND):
        raise ValueError('its settings are not those that it needs')
    DepthConfig.from_dict(about.config)
    return about


def _check_arrays(arrays: tensor_file.Arrays, tokens: int) -> None:
    """Check the shapes that follow from each other; whatever is wrong raises ValueError."""
    names = set(ARRAYS)
    if set(arrays) != names:
        raise ValueError(f'its arrays are {quoted(sorted(arrays), 200)}, not {sorted(names)}')
    knots = arrays['knots'].shape
    rays, projection = arrays['rays'].shape, arrays['projection'].shape
    landmarks, directions = arrays['kernel'].size, arrays['offset'].size
    shapes = {
        'bias': (), 'bins': (tokens,), 'spread': (SPREAD_TERMS,),
        'knots': (2, max(2, knots[-1] if knots else 0)),
        'rays': (*(max(1, side) for side in rays[:2]), 2),
        'projection': (directions, projection[-1] if projection else 0),
        'offset': (directions,), 'scales': (TOLD,), 'kernel': (landmarks,),
        'landmarks': (landmarks, directions + 2 * (directions // 2) + TOLD),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f'its array {name!r} is {arrays[name].shape}, not {shape}')
    if not (arrays['bins'] > 0).all():
        raise ValueError('its bins are not positive')
    if not (np.diff(arrays['knots'][0]) > 0).all():
        raise ValueError('its knots do not ascend')
