# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 node: it subscribes to images and publishes the core's predictions."""
