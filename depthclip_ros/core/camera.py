# SPDX-License-Identifier: Apache-2.0
"""Cameras as ``sensor_msgs/CameraInfo`` describes them: from pixels to rays and back.

Everything is in the camera's optical frame of REP-103 (x right, y down, z forward). Pixel centres
are at integer coordinates. A ray has z = 1, so that a point is its ray times its depth along the
optical axis (REP-118).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import CameraInfoError, quoted
from .lens import distort, resolve_lens, undistort

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from .config import Size

    Float64 = NDArray[np.float64]

_RECALIBRATE = 'Calibrate the camera again (ros2 run camera_calibration cameracalibrator).'
_MIN_FOCAL_LENGTH, _LARGEST_NUMBER = 1e-3, 1e9  # pixels, in a plausible camera_info
# Largest |x| and |y| of a ray: a millionth of a degree from 90; its product with any depth is
# finite in float32.
_MAX_TANGENT = 1e8
_LENS_GRID = 12, 16  # rows and columns of points that sample a lens
_FINE_GRID = 48, 64  # likewise, to count pixels without a ray
# Fraction of the pixels; 0.56 for a fisheye whose 180 degrees are a circle in an image of 16:9.
_MAX_WITHOUT_RAY = 0.8
# Distance of the principal point from the middle, in image widths and heights. Mounting moves it
# by up to 0.05, stereo rectification by 0.1; K of another image size, such as of 640x480 for
# 848x480, is beyond.
_MAX_OFF_MIDDLE = 0.12
# Mean factor by which a lens changes distances from the middle: 0.6 for a fisheye of 180 degrees,
# at most 1.2 for a telephoto lens.
_LENS_FACTORS = 0.25, 2.0
_FOCAL_RATIOS = 0.05, 20.0  # plausible range
_MAX_STRETCH = 0.02  # relative change of the aspect ratio without a notice


class Notice(NamedTuple):
    """Peculiarity of a usable camera, to be logged once.

    Attributes:
        condition: short stable key, for throttling.
        sentence: the peculiarity, with numbers, and the remedy.

    """

    condition: str
    sentence: str


@dataclass(frozen=True, eq=False)
class CameraModel:
    """A pinhole camera with lens distortion, for images of one size.

    Attributes:
        width: Image width in pixels.
        height: Image height in pixels.
        K: (3, 3) intrinsic matrix in pixels.
        D: Distortion coefficients, empty where there is no distortion.
        distortion_model: 'plumb_bob', 'rational_polynomial', 'equidistant', or '' for none: ROS's
            name for the length of `D`.
        R: (3, 3) rectification rotation. It is not applied: rays are in the frame of the camera
            that took the image, as ``CameraInfo`` defines K (raw) and P (rectified images).
        P: (3, 4) projection matrix of the rectified image. Its fourth column (the baseline of a
            right stereo camera) is not used: rays start at this camera's centre.
        notices: Peculiarities of its ``CameraInfo``.

    """

    width: int
    height: int
    K: Float64
    D: Float64
    distortion_model: str
    R: Float64
    P: Float64
    notices: tuple[Notice, ...] = ()

    @classmethod
    def from_info(cls, msg: Any, rectified: bool = False) -> CameraModel:
        """Read a ``sensor_msgs/CameraInfo``, or anything with its fields.

        Binning and region of interest are applied as in ``image_geometry``: the result is the
        camera of the images that the driver publishes, not of the whole sensor. If the principal
        point shows that K is of the published images already, they are not applied, with a
        notice. All zeros stand for the identity in R, and for K in P, with a notice.

        Args:
            msg: The message, which stays unchanged.
            rectified: The images are rectified: use P and no distortion. Otherwise use K and D.

        Raises:
            CameraInfoError: This is no calibrated camera. The condition is one of 'zero size',
                'all zeros', 'not finite', 'wrong matrix', 'unknown distortion model', 'wrong roi',
                'impossible lens'.

        """
        K, D, R, P = _numbers(msg)
        notices = _fill_in(K, R, P)
        intrinsics = P[:, :3] if rectified else K
        _check_matrix('p' if rectified else 'k', intrinsics)
        model, D = ('', D[:0]) if rectified else resolve_lens(str(msg.distortion_model), D)
        window = _region_of_interest(msg, rectified=rectified)
        binning = max(1, int(msg.binning_x)), max(1, int(msg.binning_y))
        size = window[2] // binning[0], window[3] // binning[1]
        if min(size) < 1:
            raise _camera_info_error('zero size', (
                f'size {msg.width}x{msg.height} and binning {binning[0]}x{binning[1]}, which '
                'leave no pixel'), 'Fill them in in the camera driver (binning 0: none).')
        windowed = _of_window(intrinsics, window, binning)
        if _off_middle(windowed, size) > _MAX_OFF_MIDDLE:
            is_windowed = _off_middle(intrinsics, size) <= _MAX_OFF_MIDDLE
            notices.append(_off_middle_notice(
                intrinsics if is_windowed else windowed, size, is_windowed))
            if is_windowed:
                window, binning = (0, 0, *window[2:]), (1, 1)
        K, P = (_of_window(matrix, window, binning) for matrix in (K, P))
        intrinsics = P[:, :3] if rectified else K
        intrinsics, D, R, P = map(_read_only, (intrinsics, D, R, P))
        camera = cls(*size, intrinsics, D, model, R, P)
        return replace(camera, notices=(*notices, *camera._check_lens()))

    @classmethod
    def pinhole(
        cls, width: int, height: int, fx: float, fy: float | None = None,
        cx: float | None = None, cy: float | None = None,
    ) -> CameraModel:
        """Make a camera without distortion.

        Args:
            width: width of the image in pixels.
            height: height of the image in pixels.
            fx: horizontal focal length in pixels.
            fy: vertical focal length in pixels; None: `fx`.
            cx: column of the principal point; None: the middle.
            cy: row of the principal point; None: the middle.

        Raises:
            CameraInfoError: a focal length is not positive.

        """
        cx = (width - 1) / 2 if cx is None else cx
        cy = (height - 1) / 2 if cy is None else cy
        K = np.array([[fx, 0.0, cx], [0.0, fx if fy is None else fy, cy], [0.0, 0.0, 1.0]])
        _check_matrix('k', K)
        return cls(width, height, _read_only(K), _read_only(np.empty(0)), '',
                   _read_only(np.eye(3)), _read_only(np.column_stack([K, np.zeros(3)])))

    def check_size(self, width: int, height: int) -> None:
        """Check that images of this size belong to this camera.

        Raises:
            CameraInfoError: They do not ('size mismatch').

        """
        if (width, height) == (self.width, self.height):
            return
        times = width // self.width
        remedy = ("remap camera_info to the image topic's own, or resize both together "
                  '(image_proc does).')
        if (height, width) == (self.width, self.height):
            remedy = 'its width and height are exchanged: correct them in the camera driver.'
        elif times > 1 and (width, height) == (times * self.width, times * self.height):
            remedy = f'if calibrated with a binning of {times}, set binning to 0; else {remedy}'
        raise CameraInfoError('size mismatch', (
            f'camera_info is for images of {self.width}x{self.height} pixels (binning and roi '
            f'applied), but the image has {width}x{height}: {remedy}'))

    def scaled(self, width: int, height: int) -> CameraModel:
        """Make the camera of the same view, resized to `width` x `height` pixels.

        K and P are multiplied by the ratio of the sizes, without a half-pixel term, and D and R
        stay, as in image_proc's ResizeNode.
        """
        ratios = np.array([[width / self.width], [height / self.height], [1.0]])
        return replace(self, width=width, height=height, K=_read_only(self.K * ratios),
                       P=_read_only(self.P * ratios))

    def rays(self, u: ArrayLike, v: ArrayLike) -> Float64:
        """Compute the rays through pixels, without distortion.

        Args:
            u: Columns in pixels, any shape.
            v: Rows in pixels, of a shape that broadcasts with that of `u`.

        Returns:
            (..., 3) with z = 1. NaN if no ray in front of the camera ends in that pixel.

        """
        u, v = np.broadcast_arrays(np.asarray(u, np.float64), np.asarray(v, np.float64))
        (fx, skew, cx), (_, fy, cy), _ = self.K
        y = (v - cy) / fy
        x = (u - cx - skew * y) / fx
        rays = np.ones((u.size, 3))
        rays[:, :2] = undistort(
            self.distortion_model, self.D, np.stack([x, y], axis=-1).reshape(-1, 2))
        rays[~(np.abs(rays).max(axis=1) < _MAX_TANGENT)] = np.nan
        return rays.reshape(*u.shape, 3)

    def project(self, points: ArrayLike) -> Float64:
        """Project points into the image, with distortion.

        Args:
            points: (..., 3) in the optical frame.

        Returns:
            (..., 2) columns and rows in pixels, which may lie outside the image. NaN for a point
            behind the camera, or at a larger angle than the distortion model covers.

        """
        points = np.asarray(points, np.float64)
        z = np.where(points[..., 2:] > 0.0, points[..., 2:], np.nan)
        ideal = (points[..., :2] / z).reshape(-1, 2)
        pixels = np.ones((len(ideal), 3))
        pixels[:, :2] = distort(self.distortion_model, self.D, ideal)
        return (pixels @ self.K.T)[:, :2].reshape(*points.shape[:-1], 2)

    def focal_length(self) -> float:
        """Compute the focal length of the image, in image widths.

        With distortion it varies over the image. Its mean is fy / width times the mean, over the
        image, of a pixel's distance from the middle over the distance of its ray without
        distortion.

        Returns:
            fy / width for a camera without distortion; NaN if no pixel has a ray.

        """
        focal = self.K[1, 1] / self.width
        if not self.distortion_model:
            return float(focal)
        distances, pinhole_distances = (
            np.linalg.norm(camera.rays(*self.centres(*_LENS_GRID))[..., :2], axis=-1)
            for camera in (self, replace(self, D=self.D[:0], distortion_model='')))
        valid = distances > 0.0  # so no NaN either
        if not valid.any():
            return math.nan
        return float(focal * np.mean(pinhole_distances[valid] / distances[valid]))

    def _check_lens(self) -> list[Notice]:
        """Notice pixels without a ray; CameraInfoError 'impossible lens' if too many have none."""
        factor = self.focal_length() * self.width / self.K[1, 1]
        fraction = float(np.mean(np.isnan(self.rays(*self.centres(*_FINE_GRID))[..., 0]))) \
            if self.distortion_model else 0.0
        model = f'd = {quoted(self.D.tolist())} ({self.distortion_model}), which'
        if fraction > _MAX_WITHOUT_RAY:
            raise _camera_info_error('impossible lens', (
                f'{model} leaves {100 * fraction:.3g} % of the pixels without a ray; that of a '
                f'lens leaves at most {100 * _MAX_WITHOUT_RAY:g} %'))
        if not _LENS_FACTORS[0] <= factor <= _LENS_FACTORS[1]:  # nor is NaN, without any ray
            raise _camera_info_error('impossible lens', (
                f'{model} makes distances from the middle of the image {factor:.3g} times as '
                f'long; lenses make them {_LENS_FACTORS[0]:g} to {_LENS_FACTORS[1]:g} times as '
                'long'))
        return [Notice('pixels without a ray', (
            f'camera_info has {model} ends or folds back inside the image: {100 * fraction:.2g} % '
            'of the pixels have no ray, and points have holes there. If the image shows something '
            'there, calibrate with the board near its borders, too.'))] if fraction else []

    def patch_rays(self, h: int, w: int) -> NDArray[np.float32]:
        """Compute the rays through the centres of `h` x `w` patches that tile the image.

        Patch j of w covers j*W/w to (j+1)*W/w from the image's left border, which is half a pixel
        left of the first pixel's centre. So its centre is at column (j+0.5)*W/w - 0.5, up to half
        a patch from that by the K of `scaled(w, h)`.

        Returns:
            (h, w, 3) float32 with z = 1. NaN as in `rays`.

        """
        return self.rays(*self.centres(h, w)).astype(np.float32)

    def centres(self, h: int, w: int) -> tuple[Float64, Float64]:
        """Compute the centres of `h` x `w` patches in pixels: columns (1, w) and rows (h, 1)."""
        u, v = ((np.arange(count) + 0.5) * length / count - 0.5
                for count, length in ((w, self.width), (h, self.height)))
        return u[None, :], v[:, None]


def notices_of(*cameras: CameraModel | None) -> list[str]:
    """List the sentences of the cameras' notices, without repetitions."""
    return list(dict.fromkeys(
        notice.sentence for camera in cameras if camera for notice in camera.notices))


@lru_cache(maxsize=64)  # with distortion it takes milliseconds, for every image
def focal_ratio(
    reference: float, camera: CameraModel | None, image: Size, network: Size,
) -> float:
    """Compute the focal ratio, the factor between depth by words and depth of a camera.

    An object that appears equally large through twice the focal length is twice as far. If the
    image is stretched, horizontal and vertical focal length differ, and the vertical one counts.

    Args:
        reference: focal length that belongs to the words, in widths of the network's input; 0:
            the ratio is 1.
        camera: camera of the image, or None.
        image: (height, width) of the image.
        network: (height, width) of the network's input, to which the image is stretched.

    Returns:
        The camera's focal length over the reference; 1 if one of them is missing.

    Raises:
        CameraInfoError: the camera is not for images of that size, or has a focal length that
            hardly any lens has.

    """
    if camera is None or not reference:
        return 1.0
    camera.check_size(image[1], image[0])
    stretch = (image[1] / image[0]) / (network[1] / network[0])
    ratio = camera.focal_length() * stretch / reference
    if not _FOCAL_RATIOS[0] <= ratio <= _FOCAL_RATIOS[1]:
        raise _camera_info_error('unlikely focal length', (
            f'a focal length by which depth would be multiplied by {ratio:.3g}; lenses make that '
            f'{_FOCAL_RATIOS[0]:g} to {_FOCAL_RATIOS[1]:g}'),
            'Check k, in pixels, and reference_focal, in image widths.')
    return ratio


def stretch_notice(image: Sequence[int], network: Size) -> str:
    """Compose the notice about images (height, width, …) of another shape than the network's."""
    (height, width), (rows, columns) = image[:2], network
    if abs(math.log(width * rows / (height * columns))) <= _MAX_STRETCH:
        return ''
    return (f"images of {width}x{height} are stretched to the network's {columns}x{rows}, which "
            'sees everything narrower or lower than it is. Set input_height and input_width to '
            'the shape of the image.')


def _camera_info_error(condition: str, fault: str, remedy: str = _RECALIBRATE) -> CameraInfoError:
    return CameraInfoError(condition, f'camera_info has {fault}. {remedy}')


def _region_of_interest(msg: Any, *, rectified: bool) -> tuple[int, int, int, int]:
    """Read the region of interest, in unbinned pixels: x, y, width, height."""
    roi, width, height = msg.roi, int(msg.width), int(msg.height)
    window = int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)
    if window in ((0, 0, 0, 0), (0, 0, width, height)):
        return 0, 0, width, height
    x, y, roi_width, roi_height = window
    if not (0 < roi_width <= width - x and 0 < roi_height <= height - y):
        raise _camera_info_error('wrong roi', (
            f'a region of interest of {roi_width}x{roi_height} pixels at ({x}, {y}), which is no '
            f'window of its {width}x{height} pixels'),
            'Correct roi in the camera driver (all zeros: the whole image).')
    if rectified and roi.do_rectify:
        raise _camera_info_error('wrong roi', (
            'a region of interest with do_rectify, so the window that the rectified images show '
            'is not in the message'), 'Use the raw images with rectified: false, or set '
            'do_rectify to false in the camera driver.')
    return window


def _numbers(msg: Any) -> list[Float64]:
    """Read the arrays K (3, 3), D, R (3, 3) and P (3, 4) of a message."""
    shapes = {'k': (3, 3), 'd': (-1,), 'r': (3, 3), 'p': (3, 4)}
    arrays = [np.array(getattr(msg, name), dtype=np.float64).reshape(shape)
              for name, shape in shapes.items()]
    for name, values in zip(shapes, arrays, strict=True):
        if not (np.abs(values) <= _LARGEST_NUMBER).all():
            raise _camera_info_error('not finite', (
                f'{name} = {quoted(values.reshape(-1).tolist())}, with values that are no '
                f'numbers, or beyond {_LARGEST_NUMBER:g}'))
    return arrays


def _fill_in(K: Float64, R: Float64, P: Float64) -> list[Notice]:
    """Fill an R of zeros with the identity and such a P with K, as many drivers require."""
    zeros = []
    if not R.any():
        R[:] = np.eye(3)
        zeros.append('r')
    if not P[:2].any() and K[0, 0]:
        P[:, :3] = K
        zeros.append('p')
    return [Notice('zeros', (
        f'camera_info has {" and ".join(zeros)} all zeros: taken are r = the identity and p = '
        '[k | 0], which is right for a camera that is not rectified. Fill them in in the camera '
        'driver.'))] if zeros else []


def _of_window(
    matrix: Float64, window: tuple[int, int, int, int], binning: tuple[int, int],
) -> Float64:
    """Convert K or P of the sensor to that of images of a window of it, binned."""
    matrix = matrix.copy()
    matrix[:2, 2] -= window[:2]
    matrix[:2] /= np.reshape(binning, (2, 1))
    return matrix


def _off_middle(matrix: Float64, size: tuple[int, int]) -> float:
    """Compute the distance of the principal point from the middle, in image widths and heights."""
    return math.hypot(*((matrix[:2, 2] + 0.5) / size - 0.5))


def _off_middle_notice(matrix: Float64, size: tuple[int, int], is_windowed: bool) -> Notice:
    (cx, cy), (width, height) = matrix[:2, 2], size
    point = f'The principal point of camera_info, ({cx:.1f}, {cy:.1f}),'
    if is_windowed:
        return Notice('binning or roi applied before', (
            f'{point} is in the middle of the images of {width}x{height} pixels as it is, and '
            'would be far from it with binning and roi applied: they are taken as applied to k '
            'and p already. Set them to zero in the camera driver, or let it publish k and p of '
            'the whole sensor.'))
    return Notice('principal point', (
        f'{point} is far from the middle of the images of {width}x{height} pixels. It is near '
        f'that of images of {2 * cx:.0f}x{2 * cy:.0f}: if k is of another size, focal length, '
        'depth and points are wrong by as much, and the camera has to be calibrated at the size '
        'that it publishes. If the images are cropped, let the driver fill in roi.'))


def _check_matrix(name: str, matrix: Float64) -> None:
    if matrix[0, 0] == 0.0:
        raise _camera_info_error('all zeros', f'{name}[0] = 0: the camera is not calibrated', (
            'Calibrate it (ros2 run camera_calibration cameracalibrator) and give the driver the '
            'file.'))
    if min(matrix[0, 0], matrix[1, 1]) < _MIN_FOCAL_LENGTH or [
            matrix[1, 0], *matrix[2]] != [0.0, 0.0, 0.0, 1.0]:
        raise _camera_info_error('wrong matrix', (
            f'{name} = {quoted(matrix.tolist())}, which is no camera matrix '
            f'[fx 0 cx; 0 fy cy; 0 0 1] with fx and fy of at least {_MIN_FOCAL_LENGTH:g} '
            'pixels'), 'Correct the calibration file.')


def _read_only(matrix: Float64) -> Float64:
    matrix = np.array(matrix, dtype=np.float64)
    matrix.flags.writeable = False
    return matrix
