# SPDX-License-Identifier: Apache-2.0
"""The door for messages: what node, bags, calibrations and anchors read alike. Needs no ROS."""
