# SPDX-License-Identifier: Apache-2.0
"""A correction of the language depth that was fitted to one camera, and its error bars.

Depth of a patch is what the words say (eq. 5) x the focal ratio x exp(correction). The correction
is made of what the network computes anyway, so that it costs a few matrix products:

    correction = bias + kernel . exp(-|p - landmarks|^2 / 2)

with p what a patch and those above and below it look like, see `look`. The logarithm of the
relative standard deviation is linear in the terms of `spread_terms`; a factor by depth is what
conformal prediction found to be missing in each decile. `depthclip_ros.calibrate` fits both.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from .camera import CameraModel
from .config import FORMER, DepthConfig, Size
from .errors import CalibrationError, quoted
from .files import atomic, open_regular, user_path
from .formats import kind_of
from .projection import float32

FORMAT = 'depthclip_ros calibration 3'
SUFFIX = '.safetensors'
HASH_DIGITS = 16  # of the SHA-256 that stand in the file's name, before the suffix

# The settings that the correction belongs to: with others the network's answers mean other things.
BOUND = (
    'tokens', 'bins', 'templates', 'temperature', 'features', 'input_height', 'input_width',
    'flip_average', 'upsampling', 'normalization', 'reference_focal',
)
SPREAD_TERMS = 9
# Corrections of log depth beyond it are none; relative standard deviations end at these.
LARGEST_CORRECTION = 3.0
SPREADS = 0.01, 2.0
# Of what a patch looks like, beside the trunk's map: log d, its mean over the image, and the ray's
# x and y.
TOLD = 4
# Weights, in what a patch looks like, of those so many rows above and below it.
NEIGHBOURS = {1: 0.7, 2: 0.5, 3: 0.5}


@dataclass(frozen=True)
class About:
    """What a calibration was fitted to and how.

    Attributes:
        source: what it was calibrated on, in words.
        variant: 'full', 'scale', or 'none'.
        frames: how many.
        blocks: sequences or blocks of time among them.
        weights: SHA-256 of the network's weights.
        weights_name: as `WeightsInfo.name`.
        focal_ratio: of its camera, by which depth was multiplied before.
        config: the settings in `BOUND`, as plain values; of an older file, `FORMER` ones, too.
        split: the training split of a data set that it was fitted to, in words; '' for any other
            recording.
        images: `image_digest` of every image that it was fitted to.
        camera_known: whether any frame's camera was: else no camera counts afterwards either.
        precision: in which the network ran; '' where that is not known.

    """

    source: str
    variant: str
    frames: int
    blocks: int
    weights: str
    weights_name: str
    focal_ratio: float
    config: dict[str, Any]
    split: str = ''
    images: Sequence[str] = ()
    camera_known: bool = True
    precision: str = ''


@dataclass(frozen=True, eq=False)
class Calibration:
    """A correction and error bars for one camera, checked, on the host.

    Attributes:
        about: where it comes from.
        arrays: float32, by their names in the file:
            bias ();
            spread (SPREAD_TERMS,);
            knots (2, Q): log depth, and the factor there (its logarithm);
            rays (h, w, 2): of its camera at the patches' centres, z = 1; 0 where none is known;
            bounds (2, 2): least and greatest x and y of the rays of all cameras that it saw;
            projection (D, C'), offset (D,), scales (TOLD,): for `look`;
            landmarks (M, E): as `look` gives them;
            kernel (M,): what looking like each landmark adds to the correction.

    Raises:
        CalibrationError: an array is missing, of a wrong shape, or not finite.

    """

    about: About
    arrays: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        """Check that all is there, finite, and of the shapes that follow from each other."""
        arrays = {name: np.array(values, np.float32, order='C')
                  for name, values in self.arrays.items()}
        object.__setattr__(self, 'arrays', arrays)
        try:
            directions, landmarks = arrays['offset'].size, arrays['kernel'].size
            shapes = {
                'bias': (), 'spread': (SPREAD_TERMS,), 'bounds': (2, 2), 'scales': (TOLD,),
                'knots': (2, max(2, arrays['knots'].shape[-1])),
                'rays': (*arrays['rays'].shape[:2], 2), 'offset': (directions,),
                'projection': (directions, arrays['projection'].shape[-1]),
                'kernel': (landmarks,), 'landmarks': (landmarks, look_size(directions))}
            wrong = [f'{name} {arrays[name].shape}' for name, shape in shapes.items()
                     if arrays[name].shape != shape or not np.isfinite(arrays[name]).all()]
            if set(arrays) != set(shapes) or wrong or not (np.diff(arrays['knots'][0]) > 0).all():
                raise ValueError(f'its arrays do not fit each other: {quoted(wrong, 200)}')
            if set(self.about.config) - set(FORMER) != set(BOUND):
                raise ValueError('its settings are not those that it needs')
        except (KeyError, IndexError, ValueError) as error:
            raise _damaged('what was fitted', error) from error

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
            CalibrationError: it is missing, damaged, or something else.

        """
        from safetensors import SafetensorError
        from safetensors.numpy import load
        try:
            with open_regular(user_path(path)) as file:
                content = file.read()
            kind = kind_of(content)
            if kind.name != 'safetensors':
                raise ValueError(f'it is {kind.sentence}')
            arrays = load(content)
            # Of bytes the library gives no metadata: they are in the header, after its length.
            header = json.loads(content[8:8 + int.from_bytes(content[:8], 'little')])
            values = json.loads(header['__metadata__']['about'])
            if values.get('format') != FORMAT:
                raise ValueError(f"its format is {quoted(values.get('format'))}, not {FORMAT!r}")
            _check_digest(Path(path), content)
            return cls(msgspec.convert(values, About), arrays)
        except OSError as error:
            raise CalibrationError(
                f'calibration: {quoted(str(path), 200)} cannot be read: '
                f'{error.strerror or error}. Give the .safetensors file that `depthclip '
                "calibrate` wrote, or '' for none.") from error
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError,
                msgspec.ValidationError, CalibrationError) as error:
            raise _damaged(str(path), error) from error

    def save(self, folder: Path, stem: str) -> Path:
        """Write it as `stem.HASH.safetensors`, and give that path.

        Raises:
            OSError: it cannot be written.

        """
        path = folder / f'{stem}.{self.digest[:HASH_DIGITS]}{SUFFIX}'
        with atomic(path) as file:
            file.write(self._content)
        return path

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its file in hex."""
        return hashlib.sha256(self._content).hexdigest()

    @property
    def _content(self) -> bytes:
        """The bytes of its file; of the same calibration the same."""
        from safetensors.numpy import save
        content: bytes = save(
            {name: self.arrays[name] for name in sorted(self.arrays)},
            # One entry alone: of several the library chooses the order, and so another hash.
            {'about': json.dumps({'format': FORMAT, **vars(self.about)}, sort_keys=True)})
        return content

    @property
    def label(self) -> str:
        """What everything that shows its depth has to say."""
        return f'calibrated on {self.about.source}, no longer zero-shot'

    def check(
        self, config: DepthConfig, weights: str, precision: str, grid: Size, width: int,
    ) -> None:
        """Check that it belongs to a model and a configuration.

        Args:
            config: in force.
            weights: SHA-256 of the weights.
            precision: in which the network runs. Features in 8 bits are those in float32 but for
                2 to 5 %, those in other formats but for some thousandths, which do no harm.
            grid: (h, w), number of patches.
            width: C' of the trunk's map.

        Raises:
            CalibrationError: it does not; every difference is named.

        """
        about, seen = self.about, config.to_dict()
        pairs = {
            'SHA-256 of the weights': (weights, about.weights),
            **{name: (seen[name], about.config[name]) for name in BOUND},
            **{f'{name}, which is no setting any more,': (value, about.config.get(name, value))
               for name, value in FORMER.items()},
            'grid of patches': (grid, self.arrays['rays'].shape[:2]),
            'channels of the trunk': (width, self.arrays['projection'].shape[1]),
            'scenes': (seen['scenes'], [''])}  # it has bins of its own
        if about.precision and (precision == 'int8') != (about.precision == 'int8'):
            pairs['precision'] = precision, about.precision
        differences = [f'{name} is {quoted(now)}, it was {quoted(then)}'
                       for name, (now, then) in pairs.items() if now != then]
        if differences:
            raise CalibrationError(
                'calibration: it was fitted to another model or configuration (weights '
                f'{about.weights_name}): {"; ".join(differences)}. Set these back, calibrate '
                "again, or give calibration: ''.")

    def rays(
        self, cameras: Sequence[CameraModel | None], *, flip: bool = False,
    ) -> NDArray[np.float32]:
        """Rays of the patches' centres, from a store of the last ones.

        Args:
            cameras: None where it is unknown: it counts as the ones that were calibrated. Rays
                beyond those count as their outermost.
            flip: whether the mirrored images follow, which are those of mirrored cameras.

        Returns:
            (N, 2, h, w), x and y at z = 1.

        """
        known = self.about.camera_known
        rays = np.stack([_rays(self, camera if known else None) for camera in cameras])
        if flip:
            rays = np.concatenate([rays, mirrored_rays(rays)])
        return np.moveaxis(rays, -1, 1)

    def view(self, trunk: Tensor) -> Tensor | None:
        """(N, C', h, w) of the trunk -> (N, h, w, D) in the directions that count, if any does."""
        if not self.arrays['kernel'].size:
            return None
        own = _on(self, trunk.device)
        return project(trunk, own['projection'], own['offset'])

    def correct(
        self, weights: Tensor, depth: Tensor, spread: Tensor, view: Tensor | None,
        rays: NDArray[np.float32], ratios: Sequence[float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Correct the depth of patches.

        Args:
            weights: (N, K, h, w), eq. 4.
            depth: (N, h, w) metres by words, eq. 5, without the focal ratio.
            spread: (N, h, w) metres, standard deviation of the bins, likewise.
            view: (N, h, w, D), as `view` gives it.
            rays: (N, 2, h, w), as `rays` gives them.
            ratios: the N focal ratios.

        Returns:
            (N, h, w) each: depth and spread in metres, with the focal ratio; and the standard
            deviation of depth in shares of it.

        """
        own, directions = _on(self, depth.device), torch.from_numpy(rays)
        ratio = float32(ratios)[:, None, None]
        language = depth.log()
        correction = own['bias'].expand_as(depth)
        if view is not None:
            seen = look(view, language, directions, own['scales'])
            correction = correction + (
                likeness(seen, own['landmarks']) @ own['kernel']).view_as(depth)
        correction = correction.clamp(-LARGEST_CORRECTION, LARGEST_CORRECTION)
        log_depth = language + ratio.log() + correction
        relative = spread / depth
        terms = spread_terms(log_depth, correction, weights, relative, directions)
        unsure = torch.einsum('t,nthw->nhw', own['spread'], terms) + factor(
            own['knots'], log_depth)
        metres = log_depth.exp()
        return metres, relative * metres, unsure.exp().clamp(*SPREADS)


@lru_cache(maxsize=8)
def _on(calibration: Calibration, device: torch.device) -> dict[str, Tensor]:
    """Its arrays on a device."""
    return {name: torch.tensor(values, device=device)
            for name, values in calibration.arrays.items()}


@lru_cache(maxsize=64)  # rays through a lens take milliseconds
def _rays(calibration: Calibration, camera: CameraModel | None) -> NDArray[np.float32]:
    """(h, w, 2) of one image."""
    own = calibration.arrays['rays']
    if camera is None:
        return own
    rays = camera.patch_rays(*own.shape[:2])[..., :2]
    rays = np.where(np.isfinite(rays), rays, own)
    return rays.clip(*calibration.arrays['bounds']).astype(np.float32)


def image_digest(rgb: NDArray[np.uint8]) -> str:
    """By what an image of a recording is known again: the beginning of its SHA-256, in hex."""
    return hashlib.sha256(np.ascontiguousarray(rgb).data).hexdigest()[:HASH_DIGITS]


def mirrored_rays(rays: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., h, w, 2) rays of the mirrored camera, which takes the mirrored image."""
    return rays[..., ::-1, :] * np.array([-1, 1], np.float32)


def project(trunk: Tensor, projection: Tensor, offset: Tensor) -> Tensor:
    """(N, C', h, w) of the trunk -> (N, h, w, D), its vectors in D directions."""
    return torch.einsum('nchw,dc->nhwd', trunk, projection) + offset


def look(view: Tensor, language: Tensor, rays: Tensor, scales: Tensor) -> Tensor:
    """What patches look like: a vector for each, whose distances a Gaussian kernel compares.

    It is the patch's view (N, h, w, D), as `project` gives it; half of its directions (the
    main ones) once more of the patches above and below, as far as `NEIGHBOURS` says, and beyond
    the border of its row; and log d (N, h, w), its mean over the image, and the ray's x and y
    (N, 2, h, w). Scaled so that the kernel's width is one: (N h w, E).
    """
    h, directions = view.shape[1], view.shape[3]
    main, rows = view[..., directions - directions // 2:], torch.arange(h)
    near = [weight * main[:, (rows + way * far).clamp(0, h - 1)]
            for far, weight in NEIGHBOURS.items() for way in (-1, 1)]
    # A patch without features has no depth, and costs no other patch its own.
    mean = language.nanmean(dim=(1, 2), keepdim=True).expand_as(language)
    told = torch.stack([language, mean, rays[:, 0], rays[:, 1]], dim=-1) * scales
    return torch.cat([view, *near, told], dim=-1).flatten(0, 2)


def likeness(seen: Tensor, landmarks: Tensor) -> Tensor:
    """(N, E) and (M, E) -> (N, M) of the Gaussian kernel of width one."""
    halves = 0.5 * landmarks.square().sum(dim=1)
    exponent = torch.addmm(-halves[None], seen, landmarks.T)
    exponent -= 0.5 * seen.square().sum(dim=1, keepdim=True)
    return exponent.clamp_(max=0.0).exp_()


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
    highest, lowest = (max_pool2d(side.nan_to_num(-math.inf), 3, 1, 1)
                       for side in (depths, -depths))
    edges = highest + lowest
    x, y = rays[:, 0], rays[:, 1]
    return torch.stack([
        torch.ones_like(log_depth), log_depth, log_depth.square(), spread, entropy, edges[:, 0],
        correction.abs(), y, x.square() + y.square()], dim=1)


def no_kernel(width: int) -> dict[str, NDArray[np.float32]]:
    """The arrays of no kernel, for a trunk's map of so many channels."""
    shapes = {'projection': (0, width), 'offset': (0,), 'scales': (TOLD,),
              'landmarks': (0, look_size(0)), 'kernel': (0,)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def look_size(directions: int) -> int:
    """E, how long a vector `look` gives for so many directions."""
    return directions + 2 * len(NEIGHBOURS) * (directions // 2) + TOLD


def factor(knots: Tensor, log_depth: Tensor) -> Tensor:
    """Linear between knots (2, Q), and constant beyond the outermost."""
    places, values = knots
    widths = places.diff()
    slopes = values.diff() / widths
    inside = torch.minimum((log_depth[..., None] - places[:-1]).clamp_min(0), widths)
    interpolated: Tensor = values[0] + torch.matmul(inside, slopes)
    return interpolated


def _check_digest(path: Path, content: bytes) -> None:
    """Compare what a file holds with the SHA-256 in its name, if there is one."""
    named = re.search(rf'\.([0-9a-f]{{{HASH_DIGITS}}})$', path.stem)
    digest = hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
    if named is not None and digest != named[1]:
        raise ValueError(f'its SHA-256 begins with {digest}, its name says {named[1]}')


def _damaged(name: str, error: Exception) -> CalibrationError:
    return CalibrationError(
        f'calibration: {quoted(name, 200)} is damaged or no calibration: {error}. Copy it once '
        'more, or calibrate again.')
