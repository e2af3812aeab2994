# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 side: topics in, the core's prediction, topics out."""
