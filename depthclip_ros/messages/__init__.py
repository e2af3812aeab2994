# SPDX-License-Identifier: Apache-2.0
"""Messages to arrays and back: shared by node, bags and calibrations.

Settings, anchors and outputs are here, too. Only `message_types` imports ROS, when it is used.
"""
