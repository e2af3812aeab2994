# SPDX-License-Identifier: Apache-2.0
"""Figures, and documents that hold them, of commands and of the evaluation."""
