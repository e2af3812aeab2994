# SPDX-License-Identifier: Apache-2.0
"""The door for messages: what node, bags, calibrations and anchors read and answer alike.

Settings, frames, anchors and answers are here, too: nothing of it needs ROS.
"""
