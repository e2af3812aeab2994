# SPDX-License-Identifier: Apache-2.0
"""Offline evaluation: the paper's tables beside baselines, with the node's own core."""
