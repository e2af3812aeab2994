# SPDX-License-Identifier: Apache-2.0
"""How depth is measured: data sets, protocols, metrics, intervals. Needs no ROS."""
