# SPDX-License-Identifier: Apache-2.0
"""Rendered rooms with exact depth, for training, tests and measurements.

    scene = Scene.generate('office', seed=3)
    path = trajectory(scene, seed=0)
    frame = render(scene, SimCamera(), path.pose(1.5))     # frame.rgb, frame.depth

Deterministic: the same seeds give the same bytes. No ROS in here.
"""
from .camera import Mount, SimCamera, Trajectory, camera_pose, trajectory
from .render import Frame, RenderOptions, render
from .rooms import KINDS, Box, Cylinder, Light, Material, Scene, Sphere

__all__ = [
    'KINDS', 'Box', 'Cylinder', 'Frame', 'Light', 'Material', 'Mount', 'RenderOptions', 'Scene',
    'SimCamera', 'Sphere', 'Trajectory', 'camera_pose', 'render', 'trajectory']
