# SPDX-License-Identifier: Apache-2.0
"""docs/navigation.md: its YAML is what Nav2 and others read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from depthclip_ros.core.config import DepthConfig
from depthclip_ros.node.config import NodeConfig, read_config

ROOT = Path(__file__).resolve().parents[1]
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
