# SPDX-License-Identifier: Apache-2.0
"""Calibration of depth by words to one robot's own camera, offline; see docs/calibration.md."""
