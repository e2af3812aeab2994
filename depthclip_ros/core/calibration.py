# SPDX-License-Identifier: Apache-2.0
"""A correction of the language depth that was fitted to one camera, and its error bars.

Depth of a patch is what the words say (eq. 5) x the focal ratio x exp(correction). The correction
is made of what the network computes anyway, so that it costs a few matrix products:

    correction = bias + log(mean of its own bins / d) + kernel . exp(-|p - landmarks|^2 / 2)

with d the depth by words (metres), and p what a patch and those above and below it look like, see
`Look`. The logarithm of the relative standard deviation is linear in the terms of `spread_terms`;
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
    'projection',  # (D, C'): of the trunk's map, for `Look`
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
# Rows of `Views.offsets`: signs of the correction, and in which ones log depth is added.
_SIGNS = np.array([[1], [-1], [1], [-1]], np.float32)
_OF_LANGUAGE = np.array([[1], [1], [0], [0]], np.float32)


class Look(NamedTuple):
    """What a patch looks like: a vector for each, whose distances a Gaussian kernel compares.

    It is the patch's vector in the trunk's map in D directions, half of them (the main ones) once
    more of the patches above and below, and `TOLD`. With `look_scales` the kernel's width is one.
    """

    projection: Tensor  # (1, C', D)
    neighbours: Tensor  # (1, 2 h, h), and (1, P, 1) twice, of `look_grid`
    ones: Tensor
    share: Tensor
    offset: Tensor | None = None  # (1, 1, D); None where the landmarks have it

    def __call__(self, trunk: Tensor, language: Tensor, places: Tensor) -> Tensor:
        """Put it together.

        Args:
            trunk: (N, C', P), its map.
            language: (N, 1, P), log d.
            places: (N, P, 2 or more), the ray's x and y, and what else is to stand there.

        Returns:
            (N, P, E or more).

        """
        own = _product(trunk.transpose(1, 2), self.projection)
        if self.offset is not None:
            own += self.offset
        # As products, since their code is in the processor's caches, and that which moves and adds
        # up is not.
        count, patches, directions = own.shape
        near = own[..., directions - directions // 2:].reshape(
            count, self.neighbours.shape[2], -1)
        near = _product(self.neighbours, near).view(count, 2, patches, -1)
        mean = _product(self.ones, _product(language, self.share))
        return torch.cat([
            own, near[:, 0], near[:, 1], language.view(count, patches, 1), mean, places], dim=2)


def look_grid(h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of a `Look` at `h` x `w` patches.

    Returns:
        (1, 2 h, h), which picks what is above each row of patches, then what is below. Above the
        first row, and below the last, is that row itself. (1, P, 1) twice, which make the mean of
        all patches, at every one.

    """
    rows = torch.arange(h)
    picked = torch.cat([rows - 1, rows + 1]).clamp(0, h - 1)
    ones = torch.ones(1, h * w, 1)
    return torch.eye(h)[picked][None], ones, ones / (h * w)


def look_scales(directions: int, scales: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """(E,) by which a `Look` in so many directions is scaled; `TOLD` by these scales."""
    return np.concatenate([
        np.ones(directions), np.full(2 * (directions // 2), NEIGHBOURS), scales,
    ]).astype(np.float32)


class Terms(NamedTuple):
    """The numbers of a calibration, as tensors on the device of the network (all float32).

    Behind the network every operation on them costs 5 to 20 us, however few patches there are:
    nothing of its code and numbers is in the processor's caches. Even a part of a tensor costs
    2. So scales and offsets are in the landmarks, what is the same in every image is in `Views`,
    what would change nothing is left out, and rows are computed that only a factor of zero awaits
    where that spares taking tensors apart.
    """

    bins: Tensor  # (1, 1, K): the calibration's own; (1, 0, K) if they change nothing
    # (1, 1, 11 + K + Q - 1): of what `correct` observes, and of log depth between pairs of knots.
    observed: Tensor
    begins: Tensor  # (Q - 1, 1): log depth where each of these pairs begins
    ends: Tensor  # (Q - 1, 1): and where it ends
    signs: Tensor  # (1, 4, 1) of the correction in the rows of `Views.offsets`
    both: Tensor  # (4, 1): of log depth by words in these rows
    projection: Tensor  # (1, C', D), of the `Look`
    neighbours: Tensor  # (1, 2 h, h), likewise
    ones: Tensor  # (1, P, 1), likewise
    share: Tensor  # (1, P, 1), likewise
    # (1, E + 1, 1) and (1, E + 1, M): with them, what a patch looks like, and one, become minus
    # half of the squared distances to the landmarks.
    squares: Tensor
    landmarks: Tensor
    kernel: Tensor  # (1, 4, M), each with its sign; (1, 4, 0) if all are zero


class Views(NamedTuple):
    """What `correct` needs to know of the cameras of a batch, on the device of the network.

    The correction is taken four times: with the logarithm of the focal ratio, and that negative;
    and what is positive of it alone, and what is negative, whose sum is how much was corrected.
    """

    steady: Tensor  # (N, 1, P): always added to the logarithm of the standard deviation
    places: Tensor  # (N, P, 3): the ray's x and y, and one
    offsets: Tensor  # (N, 4, P): the correction without the kernel, so taken
    least: Tensor  # (N, 4, 1): between which corrections end
    most: Tensor  # (N, 4, 1)


class Corrected(NamedTuple):
    """Depth of patches after a correction, with the focal ratio."""

    depth: Tensor  # (N, h, w) metres
    spread: Tensor  # (N, h, w) metres, standard deviation of the bins
    unsure: Tensor  # (N, h, w) standard deviation of depth, in shares of it


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

    def terms(self, device: torch.device) -> Terms:
        """Its numbers on a device, without what would change nothing."""
        a, config = self.arrays, self.about.config
        places, slopes = a['knots'][0], _slopes(a['knots'])
        bins = a['bins'][None, None]
        if config['read_out'] == 'mean' and np.array_equal(
                a['bins'], np.float32(config['bins'])):
            bins = bins[:, :0]  # the mean of the bins is d
        kernel = _SIGNS * a['kernel']
        spread = a['spread']
        observed = np.concatenate([
            spread[1:2], np.zeros(1), np.repeat(spread[6], 2), spread[2:4],
            np.repeat(spread[4], a['bins'].size), np.repeat(spread[5], 2), np.zeros(2), slopes,
            np.ones(1)])
        # Landmarks less the offset, which so needs not be added to every patch.
        own = a['offset']
        near = own[own.size - own.size // 2:]
        scales = look_scales(own.size, a['scales'])
        landmarks = a['landmarks'] - scales * np.concatenate([own, near, near, np.zeros(TOLD)])
        halves = -0.5 * np.square(landmarks).sum(axis=1, keepdims=True)
        values = [
            bins, observed[None, None], places[:-1, None], places[1:, None],
            _SIGNS[None], _OF_LANGUAGE * _SIGNS, a['projection'].T[None],
            *look_grid(*a['rays'].shape[:2]),
            np.append(-0.5 * np.square(scales), 0.0)[None, :, None],
            np.concatenate([landmarks * scales, halves], axis=1).T[None],
            kernel[None] if kernel.any() else kernel[None, :, :0]]
        return Terms(*(_tensor(np.asarray(of_one), device) for of_one in values))

    def views(
        self, cameras: Sequence[CameraModel | None], windows: Sequence[Window],
        focal_ratios: Sequence[float], device: torch.device, *, flip: bool = False,
    ) -> Views:
        """What `correct` needs to know of the cameras of a batch, from a store of the last ones.

        Args:
            cameras: None where it is unknown: it counts as the one that was calibrated. Rays
                beyond those that were calibrated count as the outermost of these.
            windows: what the network sees of each image.
            focal_ratios: by which depth is multiplied.
            device: of the network.
            flip: whether the mirrored images follow, which are those of mirrored cameras.

        """
        if not self.about.camera_known:
            cameras = [None] * len(cameras)
        return _views(
            self, tuple(cameras), tuple(windows), tuple(focal_ratios), device, flip)


@lru_cache(maxsize=64)
def _views(
    calibration: Calibration, cameras: tuple[CameraModel | None, ...],
    windows: tuple[Window, ...], focal_ratios: tuple[float, ...], device: torch.device, flip: bool,
) -> Views:
    """See `Calibration.views`."""
    views = [
        _view(calibration, *of_one, mirrored) for mirrored in (False, True)[:1 + flip]
        for of_one in zip(cameras, windows, focal_ratios, strict=True)]
    return Views(*(_tensor(np.stack(values), device) for values in zip(*views, strict=True)))


@lru_cache(maxsize=64)  # cameras come in other batches, and rays through a lens take milliseconds
def _view(
    calibration: Calibration, camera: CameraModel | None, window: Window, focal_ratio: float,
    mirrored: bool,
) -> tuple[NDArray[np.floating[Any]], ...]:
    """`Views` of one image."""
    a = calibration.arrays
    rays = a['rays']
    if camera is not None:
        own, (h, w) = rays, rays.shape[:2]
        rays = camera.patch_rays(h, w, window)[..., :2]
        rays = np.where(np.isfinite(rays), rays, own)
        rays = rays.clip(own.min(axis=(0, 1)), own.max(axis=(0, 1)))
    if mirrored:
        rays = mirrored_rays(rays)
    x, y = rays.reshape(-1, 2).T
    places, values = a['knots']
    steady = (a['spread'][0] + a['spread'][7] * y + a['spread'][8] * (x * x + y * y)
              + values[0] - places[:-1] @ _slopes(a['knots']))
    middle = _OF_LANGUAGE * _SIGNS * math.log(focal_ratio)
    return (steady[None], np.stack([x, y, np.ones_like(x)], axis=1),
            np.repeat(middle + _SIGNS * a['bias'], x.size, axis=1),
            middle - _OF_LANGUAGE * LARGEST_CORRECTION, middle + LARGEST_CORRECTION)


def _tensor(values: NDArray[np.floating[Any]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)


def _slopes(knots: NDArray[np.float32]) -> NDArray[np.float32]:
    """(Q - 1,) between (2, Q) knots."""
    slopes: NDArray[np.float32] = np.diff(knots[1]) / np.diff(knots[0])
    return slopes


def image_digest(rgb: NDArray[np.uint8]) -> str:
    """By what an image of a recording is known again: the beginning of its SHA-256, in hex."""
    return hashlib.sha256(np.ascontiguousarray(rgb).data).hexdigest()[:HASH_DIGITS]


def mirrored_rays(rays: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w, 2) rays of the mirrored camera, which takes the mirrored image."""
    return rays[:, ::-1] * np.array([-1, 1], np.float32)


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


def correct(
    terms: Terms, weights: Tensor, depth: Tensor, spread: Tensor,
    trunk: Tensor, views: Views,
) -> Corrected:
    """Correct the depth of patches; nothing here waits for a GPU, or asks it anything.

    Args:
        terms: of the calibration.
        weights: (N, K, h, w), eq. 4.
        depth: (N, h, w) metres by words, eq. 5, without the focal ratio.
        spread: (N, h, w) metres, standard deviation of the bins, likewise.
        trunk: (N, C', h, w), the trunk's last map; N may be a product of dimensions.
        views: of the N images, from `Calibration.views`.

    """
    count, h, w = depth.shape
    plain, weights = depth.view(count, 1, -1), weights.view(count, -1, h * w)
    language = plain.log()
    correction = views.offsets
    if terms.bins.shape[1]:
        other = torch.matmul(terms.bins, weights).div_(plain).log_()
        correction = _product(terms.signs, other, correction)
    if terms.kernel.shape[2]:
        seen = Look(terms.projection, terms.neighbours, terms.ones, terms.share)(
            trunk.reshape(count, -1, h * w), language, views.places)
        likeness = _product(seen, terms.landmarks, _product(seen * seen, terms.squares)).exp_()
        correction = _product(terms.kernel, likeness.transpose(1, 2), correction)
    # Log depth, minus that, and what was corrected, if it is positive or negative.
    rows = torch.addcmul(correction.clamp(views.least, views.most), language, terms.both)
    log_depth = rows[:, :1]
    # As `spread_terms`, but for what is the same in every image; sums are left to the product.
    edges = torch.max_pool2d(rows.view(count, -1, h, w), 3, 1, 1)
    relative = spread.view_as(plain) / plain
    observed = torch.cat([
        rows, log_depth * log_depth, relative, torch.special.entr(weights),
        edges.view_as(rows), torch.clamp(log_depth, terms.begins, terms.ends), views.steady],
        dim=1)
    unsure = _product(terms.observed, observed).exp_().clamp_(*SPREADS)
    metres = log_depth.exp_()
    return Corrected(metres.view_as(depth), relative.mul_(metres).view_as(depth),
                     unsure.view_as(depth))


def _product(one: Tensor, other: Tensor, offset: Tensor | None = None) -> Tensor:
    """Product of two batches of matrices, of which one may be a single one, and an offset."""
    if len(one) != len(other):
        count = max(len(one), len(other))
        one, other = (factor.expand(count, -1, -1) for factor in (one, other))
    return torch.bmm(one, other) if offset is None else torch.baddbmm(offset, one, other)


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
