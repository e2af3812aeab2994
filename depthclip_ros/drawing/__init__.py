# SPDX-License-Identifier: Apache-2.0
"""Colours of depth, and depth drawn on an image. Needs NumPy and OpenCV only."""
