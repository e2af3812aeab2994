# SPDX-License-Identifier: Apache-2.0
"""A short soak, for nights; tools/soak.py runs the same for long."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy')

from soaking import LIMIT, soak


@pytest.mark.nightly
def test_nothing_grows_and_nothing_is_lost(domain, cache, tiny_weights):
    figures = soak(1000, 6, 12, domain, cache, tiny_weights)
    assert max(value for key, value in figures.items() if 'growth' in key) < LIMIT, figures
