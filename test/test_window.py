# SPDX-License-Identifier: Apache-2.0
"""Which part of an image the network sees."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthclip_ros.core.window import Window, fit_window

NETWORK = (480, 640)


@pytest.mark.parametrize(('fit', 'image', 'expected'), [
    ('stretch', (720, 1280), (0, 0, 1280, 720)),
    ('crop', (720, 1280), (160, 0, 960, 720)),
    ('letterbox', (720, 1280), (0, -120, 1280, 960)),
    ('crop', (1280, 720), (0, 370, 720, 540)),
    ('letterbox', (1280, 720), (-185 / 0.375, 0, 640 / 0.375, 1280)),
    ('crop', (1, 1000), (499, 0, 1, 1)),
    ('letterbox', (1, 1000), (0, -239, 1000, 480)),
])
def test_windows_by_hand(fit, image, expected):
    assert fit_window(fit, image, NETWORK) == pytest.approx(expected)


@pytest.mark.parametrize('image', [(480, 640), (960, 1280), (481, 641), (3, 4)])
def test_the_networks_own_aspect_is_the_whole_image_in_every_mode(image):
    for fit in ('stretch', 'crop', 'letterbox'):
        window = fit_window(fit, image, NETWORK)
        assert window == (0, 0, image[1], image[0])
        assert window.is_whole(image)


def test_pixels_and_cells():
    crop = fit_window('crop', (720, 1280), NETWORK)
    assert crop.pixels((720, 1280)) == (slice(0, 720), slice(160, 1120))
    assert crop.cells((15, 20), (720, 1280)) == (slice(0, 15), slice(0, 20))
    box = fit_window('letterbox', (720, 1280), NETWORK)
    assert box.pixels((720, 1280)) == (slice(0, 720), slice(0, 1280))
    assert box.cells(NETWORK, (720, 1280)) == (slice(60, 420), slice(0, 640))
    # Row 1 of the patches reaches from 32 to 64: it shows more padding than image.
    assert box.cells((15, 20), (720, 1280)) == (slice(2, 13), slice(0, 20))
    assert box.resized((720, 1280), (90, 80)) == (0, -15, 80, 120)


sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
networks = st.tuples(st.integers(1, 20), st.integers(1, 20)).map(
    lambda grid: (32 * grid[0], 32 * grid[1]))


@settings(deadline=None)
@given(sizes, networks)
def test_a_crop_is_the_largest_centred_part_of_the_networks_aspect(image, network):
    x, y, width, height = fit_window('crop', image, network)
    assert x >= 0
    assert y >= 0
    assert abs(x - (image[1] - x - width)) <= 1
    assert abs(y - (image[0] - y - height)) <= 1
    assert width == image[1] or height == image[0]
    # To the pixel.
    assert height == image[0] or abs(height - width * network[0] / network[1]) <= 0.5 \
        or height == 1
    assert width == image[1] or abs(width - height * network[1] / network[0]) <= 0.5 or width == 1


@settings(deadline=None)
@given(sizes, networks)
def test_a_letterbox_holds_the_image_in_the_middle_to_the_networks_pixel(image, network):
    window = fit_window('letterbox', image, network)
    rows, columns = window.cells(network, image)
    for cells, total, start, length, pixels in (
            (rows, network[0], window.y, window.height, image[0]),
            (columns, network[1], window.x, window.width, image[1])):
        assert abs(cells.start - (total - cells.stop)) <= 1
        # The image begins and ends where these pixels do.
        assert start + cells.start * length / total == pytest.approx(0, abs=1e-6 * length)
        assert start + cells.stop * length / total == pytest.approx(pixels, abs=1e-6 * length)
    tall, wide = rows.stop - rows.start, columns.stop - columns.start
    assert tall == network[0] or wide == network[1]
    assert tall == network[0] or abs(tall - wide * image[0] / image[1]) <= 0.5 or tall == 1
    assert wide == network[1] or abs(wide - tall * image[1] / image[0]) <= 0.5 or wide == 1
    assert window.pixels(image) == (slice(0, image[0]), slice(0, image[1]))


@settings(deadline=None)
@given(sizes, networks, st.sampled_from(['stretch', 'crop', 'letterbox']))
def test_cells_are_those_with_their_centre_in_the_image(image, network, fit):
    window = fit_window(fit, image, network)
    grid = network[0] // 32, network[1] // 32
    for cells, count, start, length, pixels in zip(
            window.cells(grid, image), grid, (window.y, window.x), (window.height, window.width),
            image, strict=True):
        for i in range(count):
            centre = Fraction(start) + Fraction(length) * Fraction(2 * i + 1, 2 * count)
            if min(abs(centre), abs(centre - pixels)) > 1e-5 * length:
                assert (cells.start <= i < cells.stop) == (0 < centre < pixels)
    assert fit == 'letterbox' or window.cells(grid, image) == (
        slice(0, grid[0]), slice(0, grid[1]))


@settings(deadline=None)
@given(sizes, sizes)
def test_resizing_there_and_back(image, size):
    window = Window(-3.5, 2.0, 100.0, 7.25)
    assert window.resized(image, size).resized(size, image) == pytest.approx(window)
