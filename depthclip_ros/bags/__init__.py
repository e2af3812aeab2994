# SPDX-License-Identifier: Apache-2.0
"""Bags in, bags with depth out. Needs no ROS."""

from ..sources.bag import BagError
from .conversion import convert, join, windows
from .options import BagCamera, Options, Progress, Report, TopicCount

__all__ = ['BagCamera', 'BagError', 'Options', 'Progress', 'Report', 'TopicCount', 'convert',
           'join', 'windows']
