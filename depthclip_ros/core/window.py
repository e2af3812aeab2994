# SPDX-License-Identifier: Apache-2.0
"""Which part of an image the network sees, where the image has another aspect ratio than it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

# Sizes are (height, width), as everywhere.
Size = tuple[int, int]


class Window(NamedTuple):
    """The rectangle of an image that the network's input shows, and so the grid of its patches.

    In pixels from the image's top left corner: pixel u reaches from u to u + 1, and its centre
    is at u + 0.5. The window reaches beyond the image where the input is padded.
    """

    x: float
    y: float
    width: float
    height: float

    def is_whole(self, image: Size) -> bool:
        """Whether it is exactly the image."""
        return self == (0, 0, image[1], image[0])

    def resized(self, image: Size, size: Size) -> Window:
        """The same window of the image resized from `image` to `size`."""
        vertical, horizontal = size[0] / image[0], size[1] / image[1]
        return Window(self.x * horizontal, self.y * vertical,
                      self.width * horizontal, self.height * vertical)

    def pixels(self, image: Size) -> tuple[slice, slice]:
        """Rows and columns of the image that lie in the window."""
        return (slice(max(0, round(self.y)), min(image[0], round(self.y + self.height))),
                slice(max(0, round(self.x)), min(image[1], round(self.x + self.width))))

    def cells(self, grid: Size, image: Size) -> tuple[slice, slice]:
        """Rows and columns of a grid over the window whose cells have their centre in the image.

        The cells may be patches or pixels of the network's input; the others show more padding
        than image.
        """
        return (_cells(self.y, self.height, grid[0], image[0]),
                _cells(self.x, self.width, grid[1], image[1]))


def fit_window(fit: str, image: Size, network: Size) -> Window:
    """Window of an image that becomes the network's input.

    Args:
        fit: 'stretch': the whole image; 'crop': the largest part in its middle that has the
            network's aspect ratio, in whole pixels; 'letterbox': the whole image and, on two
            sides, as much padding as that takes, in whole pixels of the network's input.
        image: (height, width) of the image.
        network: (height, width) of the network's input.

    """
    height, width = image
    if fit == 'crop':
        inner = (_bounded(width * network[0] / network[1], height),
                 _bounded(height * network[1] / network[0], width))
        return Window((width - inner[1]) // 2, (height - inner[0]) // 2, inner[1], inner[0])
    if fit == 'letterbox':
        # The image's own size in the network's input.
        tall = _bounded(network[1] * height / width, network[0])
        wide = _bounded(network[0] * width / height, network[1])
        top, left = (network[0] - tall) // 2, (network[1] - wide) // 2
        return Window(-left * width / wide, -top * height / tall,
                      network[1] * width / wide, network[0] * height / tall)
    return Window(0, 0, width, height)


def place_among(inside: Any, length: float, patches: int, upsampling: str) -> Any:
    """Where pixels are in a row of patches that tile a window; that of patch i's centre is i.

    Args:
        inside: from the window's border to the pixel's centre; an array or a tensor.
        length: of the window, in pixels.
        patches: in the row.
        upsampling: 'bilinear': with aligned corners; else as the patches truly lie.

    """
    if upsampling == 'bilinear':
        return (inside - 0.5) * ((patches - 1) / max(length - 1, 1))
    return inside * (patches / length) - 0.5


def _bounded(length: float, longest: int) -> int:
    return max(1, min(longest, round(length)))


def _cells(start: float, length: float, count: int, pixels: int) -> slice:
    # In cells from the window's start, so that the centre of cell i is at i + 0.5. A centre on
    # the image's border counts at both ends, whatever rounding makes of it.
    first, last = -start * count / length, (pixels - start) * count / length
    begin = min(count, max(0, math.ceil(first - 0.5 - 1e-6)))
    return slice(begin, max(begin, min(count, math.floor(last - 0.5 + 1e-6) + 1)))
