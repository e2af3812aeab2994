# SPDX-License-Identifier: Apache-2.0
"""Offline evaluation: the paper's tables and honest baselines, through the node's own core."""
