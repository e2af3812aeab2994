# SPDX-License-Identifier: Apache-2.0
"""Where images come from when there is no camera on the graph: files, video, webcam, bags."""
