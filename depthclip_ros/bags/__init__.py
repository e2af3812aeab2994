# SPDX-License-Identifier: Apache-2.0
"""Conversion of bags to bags with depth. Needs no ROS."""

from ..core.errors import BagError
from .convert import convert, is_done
from .options import BagCamera, Options, Report

__all__ = ['BagCamera', 'BagError', 'Options', 'Report', 'convert', 'is_done']
