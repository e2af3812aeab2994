# SPDX-License-Identifier: Apache-2.0
"""Sources of images without a camera on the graph: files, videos, webcams, bags, rendering."""
