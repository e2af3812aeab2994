# SPDX-License-Identifier: Apache-2.0
"""Messages to arrays and back: shared by node, bags and calibrations.

Settings, frames, anchors and outputs are here, too. Only `types` imports ROS, when it is used.
"""
