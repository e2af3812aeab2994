# SPDX-License-Identifier: Apache-2.0
"""A correction of language depth, fitted to one camera, with error bars.

Depth of a patch is depth by words (eq. 5) x focal ratio x exp(correction), by kernel ridge
regression with the Nyström approximation:

    correction = bias + sum of kernel[m] exp(-|p - landmarks[m]|^2 / 2) over m, at most 3 in size

where p is the embedding of a patch and its neighbours above and below (`embed_patches`). The
logarithm of the relative standard deviation is linear in `stddev_predictors`, plus a conformal
factor that depends on depth. `depthclip_ros.calibrate` fits both.
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
from .config import REMOVED_SETTINGS, DepthConfig, Size
from .errors import CalibrationError, quoted
from .file_formats import kind_of
from .files import atomic, open_regular, user_path
from .readout import float32

FORMAT = 'depthclip_ros calibration 3'
SUFFIX = '.safetensors'
HASH_DIGITS = 16  # hex digits of the SHA-256 in the file's name, before the suffix

# Settings that change the inputs of the correction, and so must be those of the fit.
FITTED_SETTINGS = (
    'tokens', 'bins', 'templates', 'temperature', 'features', 'input_height', 'input_width',
    'flip_average', 'upsampling', 'normalization', 'reference_focal',
)
STDDEV_PREDICTORS = 9
LARGEST_CORRECTION = 3.0  # of log depth
STDDEV_RATIO_LIMITS = 0.01, 2.0  # smallest and largest relative standard deviation
# Number of scalars in a patch's embedding: log d, its mean over the image, the ray's x and y.
SCALARS = 4
# Weights in a patch's embedding of its neighbours, by the number of rows above and below it.
NEIGHBOUR_WEIGHTS = {1: 0.7, 2: 0.5, 3: 0.5}


@dataclass(frozen=True)
class CalibrationOrigin:
    """Origin of a calibration: recording, model and settings of the fit.

    Attributes:
        source: name of the recording, in words.
        variant: 'full', 'scale', or 'none'.
        frames: number of frames.
        blocks: number of sequences, or blocks of time.
        weights: SHA-256 of the network's weights.
        weights_name: as `WeightsInfo.name`.
        focal_ratio: focal ratio of its camera, by which depth was multiplied before the fit.
        config: `FITTED_SETTINGS`, as plain values; in older files `REMOVED_SETTINGS`, too.
        split: training split of a data set, in words; '' for any other recording.
        images: `image_digest` of every image of the fit.
        camera_known: whether any frame had a camera; if not, `rays` ignores cameras.
        precision: number format of the network; '' in older files.

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
    """A correction and error bars for one camera, validated, on the host.

    Attributes:
        origin: recording, model and settings of the fit.
        arrays: float32, by their names in the file:
            bias ();
            spread (STDDEV_PREDICTORS,): coefficients of `stddev_predictors`;
            knots (2, Q): log depth, and the log of the conformal factor there;
            rays (h, w, 2): x and y at z = 1 of the camera's rays at the patches' centres, or 0;
            bounds (2, 2): smallest and largest x and y of the rays of all cameras in the fit;
            projection (D, C'), offset (D,): principal components of the trunk's map, the
                strongest last, see `project`;
            scales (SCALARS,): weights of the scalars in `embed_patches`;
            landmarks (M, E): Nyström landmarks, embeddings of patches;
            kernel (M,): dual coefficients of the landmarks (kernel ridge regression).

    Raises:
        CalibrationError: an array is missing, of a wrong shape, or not finite.

    """

    origin: CalibrationOrigin
    arrays: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        """Check that all arrays are present and finite, and that their shapes agree."""
        arrays = {name: np.array(values, np.float32, order='C')
                  for name, values in self.arrays.items()}
        object.__setattr__(self, 'arrays', arrays)
        try:
            directions, landmarks = arrays['offset'].size, arrays['kernel'].size
            shapes = {
                'bias': (), 'spread': (STDDEV_PREDICTORS,), 'bounds': (2, 2), 'scales': (SCALARS,),
                'knots': (2, max(2, arrays['knots'].shape[-1])),
                'rays': (*arrays['rays'].shape[:2], 2), 'offset': (directions,),
                'projection': (directions, arrays['projection'].shape[-1]),
                'kernel': (landmarks,), 'landmarks': (landmarks, embedding_size(directions))}
            misfits = [f'{name} {arrays[name].shape}' for name, shape in shapes.items()
                     if arrays[name].shape != shape or not np.isfinite(arrays[name]).all()]
            ascend = (np.diff(arrays['knots'][0]) > 0).all()
            if set(arrays) != set(shapes) or misfits or not ascend:
                raise ValueError(f'its arrays do not fit each other: {quoted(misfits, 200)}')
            if set(self.origin.config) - set(REMOVED_SETTINGS) != set(FITTED_SETTINGS):
                raise ValueError('its settings are not those that it needs')
        except (KeyError, IndexError, ValueError) as error:
            raise _damaged_error('what was fitted', error) from error

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
            # The library gives no metadata of bytes: they are in the header, after its length.
            header = json.loads(content[8:8 + int.from_bytes(content[:8], 'little')])
            values = json.loads(header['__metadata__']['about'])
            if values.get('format') != FORMAT:
                raise ValueError(f"its format is {quoted(values.get('format'))}, not {FORMAT!r}")
            _check_digest(Path(path), content)
            return cls(msgspec.convert(values, CalibrationOrigin), arrays)
        except OSError as error:
            raise CalibrationError(
                f'calibration: {quoted(str(path), 200)} cannot be read: '
                f'{error.strerror or error}. Give the .safetensors file that `depthclip '
                "calibrate` wrote, or '' for none.") from error
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError,
                msgspec.ValidationError, CalibrationError) as error:
            raise _damaged_error(str(path), error) from error

    def save(self, folder: Path, stem: str) -> Path:
        """Write `stem.HASH.safetensors` into a folder and return its path; may raise OSError."""
        path = folder / f'{stem}.{self.digest[:HASH_DIGITS]}{SUFFIX}'
        with atomic(path) as file:
            file.write(self._content)
        return path

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, in hex."""
        return hashlib.sha256(self._content).hexdigest()

    @property
    def _content(self) -> bytes:
        """The bytes of the file, reproducible for equal calibrations."""
        from safetensors.numpy import save
        content: bytes = save(
            {name: self.arrays[name] for name in sorted(self.arrays)},
            # One entry, since the library orders several arbitrarily, which changes the hash.
            {'about': json.dumps({'format': FORMAT, **vars(self.origin)}, sort_keys=True)})
        return content

    @property
    def label(self) -> str:
        """The notice that must accompany calibrated depth."""
        return f'calibrated on {self.origin.source}, no longer zero-shot'

    def check(
        self, config: DepthConfig, weights: str, precision: str, grid: Size, width: int,
    ) -> None:
        """Check that the calibration was fitted to a model and a configuration.

        Args:
            config: the settings.
            weights: SHA-256 of the weights.
            precision: number format of the network. int8 changes features by 2 to 5 %; the other
                formats by some thousandths, which is harmless.
            grid: (h, w), number of patches.
            width: C' of the trunk's map.

        Raises:
            CalibrationError: it was not; the message names every difference.

        """
        about, settings = self.origin, config.to_dict()
        pairs = {
            'SHA-256 of the weights': (weights, about.weights),
            **{name: (settings[name], about.config[name]) for name in FITTED_SETTINGS},
            **{f'{name}, which is no setting any more,': (value, about.config.get(name, value))
               for name, value in REMOVED_SETTINGS.items()},
            'grid of patches': (grid, self.arrays['rays'].shape[:2]),
            'channels of the trunk': (width, self.arrays['projection'].shape[1]),
            'scenes': (settings['scenes'], [''])}  # it has bins of its own
        if about.precision and (precision == 'int8') != (about.precision == 'int8'):
            pairs['precision'] = precision, about.precision
        differences = [f'{name} is {quoted(current)}, it was {quoted(fitted)}'
                       for name, (current, fitted) in pairs.items() if current != fitted]
        if differences:
            raise CalibrationError(
                'calibration: it was fitted to another model or configuration (weights '
                f'{about.weights_name}): {"; ".join(differences)}. Set these back, calibrate '
                "again, or give calibration: ''.")

    def rays(
        self, cameras: Sequence[CameraModel | None], *, flip: bool = False,
    ) -> NDArray[np.float32]:
        """Compute the rays of the patches' centres, clipped to the range of the fit; cached.

        Args:
            cameras: camera of each image; None stands for the camera of the fit.
            flip: the mirrored images follow, with mirrored cameras.

        Returns:
            (N, 2, h, w), x and y at z = 1.

        """
        has_camera = self.origin.camera_known
        rays = np.stack([_patch_rays(self, camera if has_camera else None) for camera in cameras])
        if flip:
            rays = np.concatenate([rays, mirrored_rays(rays)])
        return np.moveaxis(rays, -1, 1)

    def principal_components(self, trunk: Tensor) -> Tensor | None:
        """Project the trunk (N, C', h, w) to (N, h, w, D); None without a kernel."""
        if not self.arrays['kernel'].size:
            return None
        arrays = _arrays_on(self, trunk.device)
        return project(trunk, arrays['projection'], arrays['offset'])

    def correct(
        self, weights: Tensor, depth: Tensor, spread: Tensor, components: Tensor | None,
        rays: NDArray[np.float32], ratios: Sequence[float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Correct the depth of patches.

        Args:
            weights: (N, K, h, w), eq. 4.
            depth: (N, h, w) metres by words, eq. 5, without the focal ratio.
            spread: (N, h, w) metres, standard deviation of the bins, likewise.
            components: (N, h, w, D), result of `principal_components`.
            rays: (N, 2, h, w), result of `rays`.
            ratios: N focal ratios.

        Returns:
            (N, h, w) each: depth and spread in metres, with the focal ratio; and the standard
            deviation of depth, relative to depth.

        """
        arrays, ray_tensor = _arrays_on(self, depth.device), torch.from_numpy(rays)
        ratio = float32(ratios)[:, None, None]
        log_language = depth.log()
        correction = arrays['bias'].expand_as(depth)
        if components is not None:
            embeddings = embed_patches(components, log_language, ray_tensor, arrays['scales'])
            correction = correction + (
                gaussian_kernel(embeddings, arrays['landmarks']) @ arrays['kernel']).view_as(depth)
        correction = correction.clamp(-LARGEST_CORRECTION, LARGEST_CORRECTION)
        log_depth = log_language + ratio.log() + correction
        spread_ratio = spread / depth
        terms = stddev_predictors(log_depth, correction, weights, spread_ratio, ray_tensor)
        log_stddev_ratio = torch.einsum(
            't,nthw->nhw', arrays['spread'], terms) + log_conformal_factor(
                arrays['knots'], log_depth)
        metres = log_depth.exp()
        return metres, spread_ratio * metres, log_stddev_ratio.exp().clamp(*STDDEV_RATIO_LIMITS)


@lru_cache(maxsize=8)
def _arrays_on(calibration: Calibration, device: torch.device) -> dict[str, Tensor]:
    """Copy the arrays to a device."""
    return {name: torch.tensor(values, device=device)
            for name, values in calibration.arrays.items()}


@lru_cache(maxsize=64)  # undistorting a lens takes milliseconds
def _patch_rays(calibration: Calibration, camera: CameraModel | None) -> NDArray[np.float32]:
    """Compute x and y of the rays of one image's patches: (h, w, 2)."""
    fitted_rays = calibration.arrays['rays']
    if camera is None:
        return fitted_rays
    rays = camera.patch_rays(*fitted_rays.shape[:2])[..., :2]
    rays = np.where(np.isfinite(rays), rays, fitted_rays)
    return rays.clip(*calibration.arrays['bounds']).astype(np.float32)


def image_digest(rgb: NDArray[np.uint8]) -> str:
    """Compute the fingerprint of a recording's image: the beginning of its SHA-256, in hex."""
    return hashlib.sha256(np.ascontiguousarray(rgb).data).hexdigest()[:HASH_DIGITS]


def mirrored_rays(rays: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mirror rays (..., h, w, 2) as their image is mirrored."""
    return rays[..., ::-1, :] * np.array([-1, 1], np.float32)


def project(trunk: Tensor, projection: Tensor, offset: Tensor) -> Tensor:
    """Project the trunk's vectors on D directions: (N, C', h, w) -> (N, h, w, D)."""
    return torch.einsum('nchw,dc->nhwd', trunk, projection) + offset


def embed_patches(
    components: Tensor, log_language: Tensor, rays: Tensor, scales: Tensor,
) -> Tensor:
    """Embed patches in the space of the Gaussian kernel, in units of its width: (N h w, E).

    An embedding concatenates the patch's components (N, h, w, D) from `project`; the last half of
    them, the strongest, of the neighbours above and below (`NEIGHBOUR_WEIGHTS`; at the border the
    outermost row); and log d (N, h, w), its mean over the image, and the ray's x and y
    (N, 2, h, w).
    """
    h, count = components.shape[1], components.shape[3]
    strongest, rows = components[..., count - count // 2:], torch.arange(h)
    neighbours = [weight * strongest[:, (rows + sign * distance).clamp(0, h - 1)]
                  for distance, weight in NEIGHBOUR_WEIGHTS.items() for sign in (-1, 1)]
    # nanmean: a patch without features has no depth, and must not take the others'.
    mean = log_language.nanmean(dim=(1, 2), keepdim=True).expand_as(log_language)
    scalars = torch.stack([log_language, mean, rays[:, 0], rays[:, 1]], dim=-1) * scales
    return torch.cat([components, *neighbours, scalars], dim=-1).flatten(0, 2)


def gaussian_kernel(embeddings: Tensor, landmarks: Tensor) -> Tensor:
    """Evaluate the Gaussian kernel of width one between (N, E) and (M, E): (N, M)."""
    half_squares = 0.5 * landmarks.square().sum(dim=1)
    exponent = torch.addmm(-half_squares[None], embeddings, landmarks.T)
    exponent -= 0.5 * embeddings.square().sum(dim=1, keepdim=True)
    return exponent.clamp_(max=0.0).exp_()


def stddev_predictors(
    log_depth: Tensor, correction: Tensor, weights: Tensor, spread_ratio: Tensor, rays: Tensor,
) -> Tensor:
    """Compute the predictors of the log relative standard deviation: (N, STDDEV_PREDICTORS, h, w).

    1; log depth and its square; the spread of the bins over their mean; the entropy of their
    weights; the range of log depth among the neighbours (at edges, a pixel may have the depth of
    either side); the size of the correction; the ray's y, and its squared distance from the axis.
    """
    entropy = torch.special.entr(weights).sum(dim=1)
    depths = log_depth[:, None]
    highest, minus_lowest = (max_pool2d(values.nan_to_num(-math.inf), 3, 1, 1)
                       for values in (depths, -depths))
    depth_range = highest + minus_lowest
    x, y = rays[:, 0], rays[:, 1]
    return torch.stack([
        torch.ones_like(log_depth), log_depth, log_depth.square(), spread_ratio, entropy,
        depth_range[:, 0],
        correction.abs(), y, x.square() + y.square()], dim=1)


def empty_kernel(channels: int) -> dict[str, NDArray[np.float32]]:
    """Make the empty arrays of a calibration without a kernel; `channels` is C' of the trunk."""
    shapes = {'projection': (0, channels), 'offset': (0,), 'scales': (SCALARS,),
              'landmarks': (0, embedding_size(0)), 'kernel': (0,)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def embedding_size(directions: int) -> int:
    """Compute E, the length of the embeddings of `embed_patches`, from D."""
    return directions + 2 * len(NEIGHBOUR_WEIGHTS) * (directions // 2) + SCALARS


def log_conformal_factor(knots: Tensor, log_depth: Tensor) -> Tensor:
    """Interpolate the log conformal factor: linear between knots (2, Q), constant beyond them."""
    positions, values = knots
    widths = positions.diff()
    slopes = values.diff() / widths
    inside = torch.minimum((log_depth[..., None] - positions[:-1]).clamp_min(0), widths)
    interpolated: Tensor = values[0] + torch.matmul(inside, slopes)
    return interpolated


def _check_digest(path: Path, content: bytes) -> None:
    """Verify the content of a file by the SHA-256 in its name, if it has one."""
    named = re.search(rf'\.([0-9a-f]{{{HASH_DIGITS}}})$', path.stem)
    digest = hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
    if named is not None and digest != named[1]:
        raise ValueError(f'its SHA-256 begins with {digest}, its name says {named[1]}')


def _damaged_error(name: str, error: Exception) -> CalibrationError:
    return CalibrationError(
        f'calibration: {quoted(name, 200)} is damaged or no calibration: {error}. Copy it once '
        'more, or calibrate again.')
