# SPDX-License-Identifier: Apache-2.0
"""Conversion of bags to bags with depth. Needs no ROS."""

from ..core.errors import BagError
from .conversion_options import BagCamera, Options, Report
from .convert import convert, is_done

__all__ = ['BagCamera', 'BagError', 'Options', 'Report', 'convert', 'is_done']
