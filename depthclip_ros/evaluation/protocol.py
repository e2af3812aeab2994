# SPDX-License-Identifier: Apache-2.0
"""Protocols: which pixels the network gets, and on which pixels depth is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .datasets.base import Metres, Pair, Rgb
from .errors import DatasetError
from .metrics import MIN_DEPTH

Box = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True)
class Protocol:
    """Crop, evaluation mask and depth limits."""

    name: str  # on the command line
    size: tuple[int, int]  # (height, width) of the network's input and of predicted depth
    max_depth: float  # metres; truth from here on is invalid, predictions are clipped
    description: str
    # (height, width) of an image -> the crop, and the box of it that is scored; raises
    # DatasetError for a size that the protocol does not cover
    boxes: Callable[[int, int], tuple[Box, Box]]

    def prepare(self, pair: Pair) -> tuple[Rgb, Metres]:
        """Crop image and truth: (H, W, 3), and (H, W) metres, NaN where no pixel is scored."""
        if pair.rgb.shape != (*pair.depth.shape, 3):
            raise DatasetError(f'the image is {pair.rgb.shape}, its depth {pair.depth.shape}; '
                               'they must be of one size.')
        crop, _ = self.boxes(*pair.depth.shape)
        return np.ascontiguousarray(pair.rgb[crop]), self.truth(pair.depth)

    def truth(self, depth: Metres) -> Metres:
        """Crop true depth: (H, W) metres, NaN where no pixel is scored."""
        crop, evaluation_box = self.boxes(*depth.shape)
        truth = np.full(depth.shape, np.nan, np.float32)
        inside = depth[evaluation_box]
        # The official code clips to the maximum first, and compares with it strictly.
        valid = (inside > np.float32(MIN_DEPTH)) & (inside < np.float32(self.max_depth))
        truth[evaluation_box] = np.where(valid, inside, np.float32(np.nan))
        return np.ascontiguousarray(truth[crop])


def _nyu_boxes(
    name: str, crop: Box, evaluation_box: Box,
) -> Callable[[int, int], tuple[Box, Box]]:
    def boxes(height: int, width: int) -> tuple[Box, Box]:
        if (height, width) != (480, 640):
            raise DatasetError(f'the image is {height} x {width}; protocol {name} is defined '
                               'for 480 x 640 only.')
        return crop, evaluation_box
    return boxes


def _kitti_boxes(height: int, width: int) -> tuple[Box, Box]:
    """Eigen's split as BTS and others evaluate it: KITTI benchmark crop, Garg's crop, 80 m."""
    top, left = height - 352, (width - 1216) // 2
    if top < 0 or left < 0:
        raise DatasetError(f'the image is {height} x {width}; the KITTI benchmark crop needs '
                           'at least 352 x 1216.')
    rows = max(int(0.40810811 * height), top), int(0.99189189 * height)
    columns = max(int(0.03594771 * width), left), min(int(0.96405229 * width), left + 1216)
    return (np.s_[top:height, left:left + 1216],
            np.s_[rows[0]:rows[1], columns[0]:columns[1]])


PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (
    # The official code pastes the prediction to [56:472, 60:604] and masks [45:471, 46:601]. It
    # leaves pixels outside the paste at 0, below the minimum: they are not scored.
    Protocol('depthclip', (416, 544), 10.0,
             'the official code: 416 x 544 crop at row 56, column 60, of which 415 x 541 pixels '
             'are scored; sensor depth of 0.001 to 10 m',
             _nyu_boxes('depthclip', np.s_[56:472, 60:604], np.s_[56:471, 60:601])),
    Protocol('bts', (480, 640), 10.0,
             "whole 480 x 640 image; Eigen's crop, rows 45 to 470, columns 41 to 600; 0.001 to "
             '10 m', _nyu_boxes('bts', np.s_[0:480, 0:640], np.s_[45:471, 41:601])),
    Protocol('kitti', (352, 1216), 80.0,
             "KITTI benchmark crop of 352 x 1216 pixels; Garg's crop; 0.001 to 80 m",
             _kitti_boxes),
)}
