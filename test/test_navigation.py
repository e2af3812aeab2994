# SPDX-License-Identifier: Apache-2.0
"""docs/navigation.md: its YAML is what Nav2 and others read.

And the costmap that its figures come from, on worlds small enough to check by hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from depthclip_ros.core.config import DepthConfig
from depthclip_ros.node.config import NodeConfig, read_config

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import occupancy  # noqa: E402

PAGE = (ROOT / 'docs/navigation.md').read_text(encoding='utf-8')
BLOCKS = [yaml.safe_load(block) for block in re.findall(r'```yaml\n(.*?)```', PAGE, re.DOTALL)]
OWN, VOXEL, STVL, ELEVATION = BLOCKS

# What these declare or read: docs.nav2.org/configuration (Jazzy), the layers' sources, STVL's
# onInitialize, and elevation_mapping's StructuredLightSensorProcessor.
COSTMAP = {
    'always_send_full_costmap', 'filters', 'footprint', 'footprint_padding', 'global_frame',
    'height', 'initial_transform_timeout', 'lethal_cost_threshold', 'map_topic', 'origin_x',
    'origin_y', 'plugins', 'publish_frequency', 'resolution', 'robot_base_frame', 'robot_radius',
    'rolling_window', 'track_unknown_space', 'transform_tolerance', 'trinary_costmap',
    'unknown_cost_value', 'update_frequency', 'use_maximum', 'use_sim_time', 'width'}
LAYERS = {
    'nav2_costmap_2d::VoxelLayer': {
        'plugin', 'enabled', 'footprint_clearing_enabled', 'min_obstacle_height',
        'max_obstacle_height', 'z_voxels', 'origin_z', 'z_resolution', 'unknown_threshold',
        'mark_threshold', 'combination_method', 'publish_voxel_map', 'observation_sources',
        'tf_filter_tolerance'},
    'nav2_costmap_2d::InflationLayer': {
        'plugin', 'enabled', 'inflation_radius', 'cost_scaling_factor', 'inflate_unknown',
        'inflate_around_unknown'},
    'spatio_temporal_voxel_layer/SpatioTemporalVoxelLayer': {
        'plugin', 'enabled', 'voxel_decay', 'voxel_distance_decay', 'decay_model', 'voxel_size',
        'track_unknown_space', 'mark_threshold', 'update_footprint_enabled',
        'combination_method', 'origin_z', 'publish_voxel_map', 'transform_tolerance',
        'mapping_mode', 'map_save_duration', 'observation_sources'},
}
SOURCES = {
    'nav2_costmap_2d::VoxelLayer': {
        'topic', 'sensor_frame', 'observation_persistence', 'expected_update_rate', 'data_type',
        'min_obstacle_height', 'max_obstacle_height', 'inf_is_valid', 'marking', 'clearing',
        'obstacle_max_range', 'obstacle_min_range', 'raytrace_max_range', 'raytrace_min_range'},
    'spatio_temporal_voxel_layer/SpatioTemporalVoxelLayer': {
        'topic', 'sensor_frame', 'observation_persistence', 'expected_update_rate', 'data_type',
        'transport_type', 'min_obstacle_height', 'max_obstacle_height', 'inf_is_valid',
        'marking', 'clearing', 'obstacle_range', 'min_z', 'max_z', 'vertical_fov_angle',
        'vertical_fov_padding', 'horizontal_fov_angle', 'decay_acceleration', 'filter',
        'voxel_min_points', 'clear_after_reading', 'enabled', 'model_type'},
}
SENSOR_MODEL = {'type', 'cutoff_min_depth', 'cutoff_max_depth', 'lateral_factor',
                *(f'normal_factor_{letter}' for letter in 'abcde')}


# The page --------------------------------------------------------------------------------------


def layers(block):
    """The costmap of a block, and its layers by the name of their plugin."""
    costmap = block['local_costmap']['local_costmap']['ros__parameters']
    named = {name: costmap[name] for name in costmap['plugins']}
    return costmap, {layer['plugin']: layer for layer in named.values()}


def source(layer):
    """The one source of a layer's observations."""
    names = layer['observation_sources'].split()
    assert len(names) == 1
    return layer[names[0]]


@pytest.mark.parametrize('block', [VOXEL, STVL], ids=['voxel', 'STVL'])
def test_costmaps_hold_nothing_but_known_parameters(block):
    costmap, of_plugins = layers(block)
    assert {*costmap} <= COSTMAP | {*costmap['plugins']}
    for plugin, layer in of_plugins.items():
        sources = {*layer.get('observation_sources', '').split()}
        assert {*layer} <= LAYERS[plugin] | sources, plugin
        for name in sources:
            assert {*layer[name]} <= SOURCES[plugin], name


@pytest.mark.parametrize('block', [VOXEL, STVL], ids=['voxel', 'STVL'])
def test_costmaps_take_the_cloud_within_what_the_node_gives(block):
    costmap, of_plugins = layers(block)
    plugin, layer = next(iter(of_plugins.items()))
    cloud = source(layer)
    assert cloud['topic'] == '/points'
    assert cloud['data_type'] == 'PointCloud2'
    reach = cloud.get('obstacle_max_range', cloud.get('obstacle_range'))
    config = OWN['/**']['ros__parameters']
    assert reach <= config['range_max']
    assert reach < min(costmap['width'], costmap['height']) / 2
    inflation = of_plugins['nav2_costmap_2d::InflationLayer']['inflation_radius']
    assert inflation >= costmap['robot_radius'] + config['max_stddev']
    if plugin.endswith('VoxelLayer') and 'z_voxels' in layer:
        assert layer['z_voxels'] <= 16
        top = layer['origin_z'] + layer['z_voxels'] * layer['z_resolution']
        assert top > layer['max_obstacle_height']
        assert cloud['raytrace_max_range'] <= reach
        for end in ('min_obstacle_height', 'max_obstacle_height'):
            assert cloud[end] == layer[end]
    else:
        assert not cloud['clearing']


def test_the_nodes_own_settings_are_settings(tmp_path):
    path = tmp_path / 'own.yaml'
    path.write_text(yaml.safe_dump(OWN))
    depth, node = read_config(path)
    assert node == NodeConfig()
    assert depth.out_of_range == 'nan'
    assert depth.max_stddev > 0
    assert {*OWN['/**']['ros__parameters']} <= {*DepthConfig.names()}


def test_the_elevation_maps_sensor_model_has_its_names():
    names = {name.removeprefix('sensor_processor/') for name in ELEVATION}
    assert all(name.startswith('sensor_processor/') for name in ELEVATION)
    assert names == SENSOR_MODEL


# The costmap -----------------------------------------------------------------------------------

CAMERA = np.array([0.55, 0.55, 1.0])


def costmap():
    """Cells of 0.1 m; obstacles are 0.4 to 2 m high and at most 4 m away."""
    return occupancy.Costmap((1.0, 1.0), 0.1, (0.4, 2.0), 4.0)


def cell(grid, x, y):
    return grid.cells[int(np.floor((y + 4.0) / 0.1)), int(np.floor((x + 4.0) / 0.1))]


def test_a_point_marks_its_cell_and_clears_the_way():
    grid = costmap()
    grid.observe(CAMERA, np.array([[2.55, 0.55, 1.0]]))
    assert cell(grid, 2.55, 0.55) == occupancy.OCCUPIED
    assert all(cell(grid, x, 0.55) == occupancy.FREE for x in np.arange(0.65, 2.5, 0.1))
    assert cell(grid, 2.65, 0.55) == cell(grid, 1.55, 0.75) == occupancy.UNKNOWN
    assert np.count_nonzero(grid.cells == occupancy.OCCUPIED) == 1


@pytest.mark.parametrize('point', [
    [2.55, 0.55, 0.39], [2.55, 0.55, 2.01], [4.6, 0.55, 1.0], [np.nan] * 3,
], ids=['floor', 'ceiling', 'too far', 'hole'])
def test_other_points_neither_mark_nor_clear(point):
    grid = costmap()
    grid.observe(CAMERA, np.array([point]))
    grid.mark(CAMERA, np.array([point]))
    assert (grid.cells == occupancy.UNKNOWN).all()


def test_marks_of_a_picture_survive_its_own_rays_but_not_the_next_ones():
    grid = costmap()
    near, far = [1.55, 0.55, 1.0], [2.55, 0.55, 1.0]
    grid.observe(CAMERA, np.array([near, far]))
    assert cell(grid, 1.55, 0.55) == cell(grid, 2.55, 0.55) == occupancy.OCCUPIED
    grid.observe(CAMERA, np.array([far]))
    assert cell(grid, 1.55, 0.55) == occupancy.FREE


def test_false_and_missed_are_counted_beyond_the_tolerance():
    truth, seen = costmap(), costmap()
    truth.mark(CAMERA, np.array([[1.55, 0.55, 1.0], [3.65, 0.55, 1.0]]))
    seen.observe(CAMERA, np.array([[1.75, 0.55, 1.0], [2.55, 0.55, 1.0]]))
    counts = occupancy.compare(seen, truth, CAMERA)
    assert {name: counts[name] for name in ('marks', 'false', 'obstacles', 'missed')} == \
        {'marks': 2, 'false': 1, 'obstacles': 2, 'missed': 1}
    assert counts['false, 1 to 2 m'] == counts['missed, 1 to 2 m'] == 0
    assert counts['marks, 1 to 2 m'] == counts['marks, 2 to 3 m'] == 1
    assert (counts['missed, 2 to 3 m'], counts['missed, 3 to 4 m']) == (0, 1)
    assert counts['called free'] == 0
    seen.observe(CAMERA, np.array([[4.15, 0.55, 1.0]]))
    counts = occupancy.compare(seen, truth)  # its way goes through all there was
    assert (counts['false'], counts['missed'], counts['called free']) == (1, 2, 2)


def test_points_of_the_world_are_where_the_renderer_says():
    """A wall that the camera looks at squarely."""
    from depthclip_ros.sim import camera_pose
    pose = camera_pose((1.0, 2.0, 1.2), 0.0)
    rays = np.array([[[0.0, 0.0, 1.0], [0.5, 0.25, 1.0]]])
    points = occupancy.in_world(pose, rays, np.array([[2.0, 2.0]]))
    np.testing.assert_allclose(points, [[3.0, 2.0, 1.2], [3.0, 1.0, 0.7]], atol=1e-12)


def test_a_drive_with_exact_depth_marks_nothing_false(monkeypatch):
    """And an unsure half of the patches is left out, with a control that keeps as many."""
    monkeypatch.setattr(occupancy, 'FRAMES', 3)
    depth = np.full((6, 8), 1.0, np.float32)
    depth[:, 4:] = 3.0
    stddev = np.where(depth > 2.0, np.float32(0.4), np.float32(0.1))
    answer = SimpleNamespace(patch_depth=depth, patch_stddev=stddev)
    found = occupancy.measure(
        occupancy.ROBOTS['A'], lambda images: {
            occupancy.PLAIN: [answer] * len(images), occupancy.CALIBRATED: [answer] * len(images)},
        rooms=1, resolution=0.1)
    exact = found[occupancy.EXACT]
    assert exact['points kept'] == 1.0
    assert exact['one picture']['false'] == exact['end of the drive']['false'] == 0.0
    assert exact['one picture']['marks'] > 20
    assert exact['end of the drive']['missed'] < 0.5
    kept = {name: of_way['points kept'] for name, of_way in found.items()}
    assert kept[occupancy.gated(0.5)] == kept[occupancy.CALIBRATED] == 1.0
    assert kept[occupancy.gated(0.3)] == kept['control: `range_max: 2.00`'] == 0.5
    assert found[occupancy.CALIBRATED]['one picture']['false'] > 0.0
