# SPDX-License-Identifier: Apache-2.0
"""Depth from a plain camera by language: DepthCLIP (ACM MM 2022) for ROS 2."""

__version__ = '0.1.0'
