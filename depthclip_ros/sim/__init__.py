# SPDX-License-Identifier: Apache-2.0
"""Rendered rooms with exact depth: the package's own world to train, test and measure in.

    scene = Scene.generate('office', seed=3)
    path = trajectory(scene, seed=0)
    frame = render(scene, SimCamera(), path.pose(1.5))     # frame.rgb, frame.depth

Deterministic: the same seeds give the same bytes. No ROS in here.
"""
from depthclip_ros.sim.camera import SimCamera
from depthclip_ros.sim.frame import Frame, RenderOptions, render
from depthclip_ros.sim.rooms import KINDS
from depthclip_ros.sim.scene import Scene
from depthclip_ros.sim.solids import Box, Cylinder, Light, Material, Sphere
from depthclip_ros.sim.trajectory import Mount, Trajectory, camera_pose, trajectory

__all__ = [
    'KINDS', 'Box', 'Cylinder', 'Frame', 'Light', 'Material', 'Mount', 'RenderOptions', 'Scene',
    'SimCamera', 'Sphere', 'Trajectory', 'camera_pose', 'render', 'trajectory']
