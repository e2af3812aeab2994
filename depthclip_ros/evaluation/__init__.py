# SPDX-License-Identifier: Apache-2.0
"""Data sets, protocols, metrics of depth and bootstrap intervals. Needs no ROS."""
