# SPDX-License-Identifier: Apache-2.0
"""Calibrate language depth to the camera of one robot, offline; see docs/calibration.md."""
