# SPDX-License-Identifier: Apache-2.0
"""Documents: links lead somewhere, commands run or say why not, and tables are the code's."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import clip_standin
import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip('rosbags')

from drives import BODY_TO_OPTICAL, LIDAR_AT, BagWriter, camera_of_width, drive, seen_by_lidar

from depthclip_ros.cli import main as cli
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.openai_clip import import_clip
from depthclip_ros.core.text_features import text_encoder
from depthclip_ros.messages.node_config import NodeConfig, read_config
from depthclip_ros.sim import SimCamera
from depthclip_ros.sim.datasets import NANOSECONDS, START
from depthclip_ros.sources import bag_player, image_source
from offline_eval import cli as evaluation

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import generate  # noqa: E402

PAGES = {page.relative_to(ROOT).as_posix(): page.read_text(encoding='utf-8') for page in (
    *ROOT.glob('*.md'), ROOT / 'benchmarks/README.md', *sorted(ROOT.glob('docs/**/*.md')))}
PARSERS = {'depthclip': cli._parser, 'offline_eval': evaluation._parser,
           'bag_player': bag_player.parser, 'image_source': image_source.parser}
# What is not run by this file, by how a command begins. The arguments of our own are parsed.
REASONS = {
    'the network is needed': ('curl', 'git clone', 'pip install', 'pixi', 'pre-commit',
                              'depthclip fetch', 'depthclip encode-text'),
    'a ROS installation is needed': ('ros2 ', 'rosdep', 'sudo apt', 'python -m colcon', 'colcon',
                                     'rviz2', 'export ', 'policy='),
    'it changes the shell or the disk': (
        'cd ', 'mkdir ', 'source ', 'python3 -m venv', 'ln ', 'touch '),
    'it goes on until it is ended; tests of the node run it': (
        'depth_node', 'sim_camera', 'image_source', 'bag_player', 'depthclip stats'),
    'it takes minutes; test_run, test_benchmarks, test_train_demo and others run parts of it': (
        'python3 run.py', 'pytest', 'ruff', 'mypy', 'python tools/', 'python benchmarks/'),
    'another test runs it': ('depthclip demo', 'depthclip doctor', 'depthclip bags ',
                             'depthclip quantize', 'offline_eval', 'python3 -m offline_eval'),
    'it needs a screen, a webcam or Rerun; test_view has stand-ins': ('depthclip view',),
    'it needs data that are not ours': (
        'depthclip calibrate nyu', 'depthclip compare with_depth', 'depthclip compare monday'),
    'another program': ('python eval_with_pngs.py', 'ray start'),
}


# Links -----------------------------------------------------------------------------------------


def anchors(text):
    """What hosting sites make of a page's headings."""
    headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r'^( *)```.*?^\1```|`[^`\n]*`', '', PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        file, _, anchor = target.partition('#')
        if re.match(r'\w+:', target):
            continue
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path.read_text(encoding='utf-8')), target


def test_every_page_is_in_the_navigation_or_a_note():
    nav = re.findall(r': (\S+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.MULTILINE)
    assert {page.removeprefix('docs/') for page in PAGES if page.startswith('docs/')
            and '/notes/' not in page} <= {*nav}


def test_pages_that_the_code_names_exist():
    for file in (file for folder in ('depthclip_ros', 'offline_eval', 'config', 'launch')
                 for file in (ROOT / folder).rglob('*') if file.suffix in ('.py', '.yaml')):
        for page in re.findall(r'docs/[\w/]+\.md', file.read_text(encoding='utf-8')):
            assert page in PAGES, file


# Commands --------------------------------------------------------------------------------------


def blocks(text, language):
    return re.findall(rf'^ *```{language}\n(.*?)^ *```', text, re.DOTALL | re.MULTILINE)


def commands():
    """(page, words) of each command in a block of bash, without what starts it."""
    for page, text in PAGES.items():
        for line in '\n'.join(blocks(text, 'bash')).replace('\\\n', ' ').splitlines():
            for part in line.split(' && '):
                words = [word for word in shlex.split(part, comments=True) if word != '&']
                if words[:3] == ['ros2', 'run', 'depthclip_ros']:
                    words = words[3:]
                if words:
                    yield page, words


ALL = [*commands()]


@pytest.mark.parametrize(('page', 'words'), [
    pytest.param(page, words, id=f'{page}-{" ".join(words)[:60]}') for page, words in ALL])
def test_a_command_is_understood(page, words):
    if words[:2] == ['python3', 'run.py'] and words[2:3] != ['test']:
        words = words[2:] if words[2] in PARSERS else ['depthclip', *words[2:]]
    if words[:2] == ['python3', '-m'] and words[2] in PARSERS:
        words = words[2:]
    if words[0] in PARSERS and words[1:2] not in (['extract'], ['export']):
        PARSERS[words[0]]().parse_args(words[1:])  # exits with what is wrong
    if words[0] == 'python' and words[1] != '-m' and words[1] != 'eval_with_pngs.py':
        source = (ROOT / words[1]).read_text(encoding='utf-8')
        assert all(word in source for word in words[2:] if word[:2] == '--'), words


def reason(words):
    """Why a command is not run; '' for those that are."""
    text = ' '.join(words)
    if '--point' in words:
        return ''
    return next((why for why, beginnings in REASONS.items() if text.startswith(beginnings)), '')


def write_bag(path, topics, frames):
    """A rendered drive on the topics that a page names."""
    bag = BagWriter(path)
    color, own, lidar = 'camera_color_optical_frame', 'camera_depth_optical_frame', 'lidar'
    with bag.writer:
        start = START * NANOSECONDS
        for parent, child, where, turn in (
                ('camera_link', color, (0, 0, 0), BODY_TO_OPTICAL.T),
                ('camera_link', lidar, LIDAR_AT, np.eye(3)), (color, own, (0, 0, 0), np.eye(3))):
            bag.write('/tf_static', bag.transform(
                bag.messages.header(0, parent), child, where, turn), start)
        for frame in frames:
            time, model = start + round(frame.moment.time * NANOSECONDS), frame.camera
            camera = SimCamera(model.width, model.height, model.K[0, 0], model.K[1, 1],
                               model.K[0, 2], model.K[1, 2])
            for topic in topics:
                frame_id = own if '/depth/' in topic else lidar if 'lidar' in topic else color
                header = bag.messages.header(time, frame_id)
                if topic.endswith('camera_info'):
                    message = bag.messages.camera_info(header, camera)
                elif 'depth' in topic:
                    message = bag.messages.image(
                        header, '16UC1', np.nan_to_num(1000 * frame.depth).astype(np.uint16))
                elif 'image' in topic:
                    message = bag.messages.image(header, 'rgb8', frame.rgb)
                elif topic == '/lidar/points':
                    message = bag.cloud(header, seen_by_lidar(frame))
                else:
                    assert topic in ('/tf', '/tf_static'), topic
                    continue
                bag.write(topic, message, time)


def test_the_other_commands_run(tmp_path, monkeypatch, capsys):
    """With the demo model in RN50's place; recordings have the topics that the page records."""
    monkeypatch.chdir(tmp_path)
    frames = drive(rooms=5, frames=32, step=0.8, seed=8, camera=camera_of_width(160, 69))
    for _, words in ALL:
        if words[:3] == ['ros2', 'bag', 'record']:
            write_bag(words[4], words[5:], frames)
    write_bag('my_bag', ['/camera/color/image_raw', '/camera/color/camera_info',
                         '/camera/aligned_depth_to_color/image_raw'], frames[:4])
    Path('demo_output').mkdir()
    for name in ('demo_output/input.png', 'image.png'):
        cv2.imwrite(name, cv2.resize(frames[0].rgb[..., ::-1], (640, 480)))
    for folder in ('rgb', 'depth'):
        Path('my_folder', folder).mkdir(parents=True)
    for i in range(64):  # every second one is used
        frame = frames[i // 2]
        cv2.imwrite(f'my_folder/rgb/{i:03}.png', frame.rgb[..., ::-1])
        cv2.imwrite(f'my_folder/depth/{i:03}.png', (1000 * frame.depth).astype(np.uint16))
    Path('kitchen').symlink_to('my_folder')
    run = [words for _, words in ALL if not reason(words)]
    run.sort(key=lambda words: words[1] != 'calibrate')
    assert len(run) > 8
    for words in run:
        assert words[0] == 'depthclip', f'{words} is neither run nor excused in REASONS'
        arguments = ['demo' if word == 'RN50' else word.replace('~/Pictures', 'my_folder/rgb')
                     for word in words[1:]]
        if '--config' not in arguments and '--weights' not in arguments and '--said' not in words:
            arguments += ['--weights', 'demo']
        if arguments[:3] == ['compare', 'my_bag', '--said']:
            arguments[1] = 'my_bag_with_depth'
        assert cli.main(arguments) == 0, (words, capsys.readouterr())
        if '-o' in words:
            assert Path(words[words.index('-o') + 1]).exists(), words
        if words[1:3] == ['calibrate', 'my_d435']:
            shutil.copy('d435.yaml', 'robot.yaml')


# Code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('page', [
    page for page, text in PAGES.items() if blocks(text, 'python')
    and page not in ('docs/reference/api.md', 'docs/forty_lines.md')])
def test_python_examples_run(page, tmp_path, monkeypatch, tiny_weights):
    """Each page's own lines, on weights that are here; launch files are only compiled."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config').symlink_to(ROOT / 'config')
    write_bag('my_bag', ['/camera/color/image_raw', '/camera/color/camera_info'],
              drive(rooms=1, frames=3))
    names = {'rgb': clip_standin.synthetic_rgb(0)}
    for example in blocks(PAGES[page], 'python'):
        if 'LaunchDescription' in example:
            ast.parse(example)
            continue
        lines = example.replace("weights='RN50'", f'weights={str(tiny_weights)!r}')
        exec(re.sub(r"(nyu_paper.yaml'\)|DepthConfig\(\))",
                    r"\1.replace(backbone='auto')", lines), names)
        if 'prediction' in names:
            assert names['prediction'].depth.shape == (480, 640)


def forty_lines(lines, folder, monkeypatch):
    """Depth by the page's first block, clip's weights being the stand-in's; the estimator's."""
    weights = clip_standin.state_dict(0)
    rgb = clip_standin.synthetic_rgb(0)[56:472, 60:604]
    cv2.imwrite(str(folder / 'image.png'), rgb[..., ::-1])
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, 'clip', SimpleNamespace(
        load=lambda *_: (import_clip().model.build_model(dict(weights)), None),
        tokenize=text_encoder(weights)[0]))
    names = {}
    exec(lines, names)
    estimator = DepthEstimator(DepthConfig.from_yaml(ROOT / 'config/nyu_paper.yaml'), weights,
                               'cpu', cache_dir=folder)
    return names['depth'].numpy(), estimator.predict(rgb).depth


def test_the_forty_lines_say_what_the_estimator_says(tmp_path, monkeypatch):
    lines = blocks(PAGES['docs/forty_lines.md'], 'python')[0]
    assert sum(bool(line.strip()) for line in lines.splitlines()) <= 40
    own, ours = forty_lines(lines, tmp_path, monkeypatch)
    np.testing.assert_allclose(own, ours, rtol=0, atol=1e-4)
    assert np.ptp(ours) > 0.1
    other, _ = forty_lines(
        lines.replace('TEMPERATURE = 0.1', 'TEMPERATURE = 0.2'), tmp_path, monkeypatch)
    assert np.abs(other - ours).max() > 1e-3


def test_the_parameter_file_holds_the_defaults():
    path = ROOT / 'config/depth.yaml'
    assert read_config(path) == (DepthConfig(), NodeConfig())
    text = path.read_text(encoding='utf-8')
    for settings in (DepthConfig, NodeConfig):
        for setting in dataclasses.fields(settings):
            comment = re.search(rf'^ +{setting.name}: [^#\n]*(.*)$', text, re.MULTILINE)[1]
            for choice in setting.metadata['choices'] or ():
                assert choice in comment, f'{setting.name}: {choice} is missing behind it'


def test_the_reference_is_the_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['generate.py', '--check'])
    assert generate.main() == 0, capsys.readouterr().out
    monkeypatch.setitem(generate.MEANINGS, 'image', 'something else')
    assert generate.main() == 1
    assert capsys.readouterr().out.split()[0] == 'docs/reference/launch.md'


# Costmaps --------------------------------------------------------------------------------------

OWN, VOXEL, STVL = map(yaml.safe_load, blocks(PAGES['docs/navigation.md'], 'yaml'))


@pytest.mark.parametrize('block', [VOXEL, STVL], ids=['voxel', 'STVL'])
def test_costmaps_take_the_cloud_within_what_the_node_gives(block):
    costmap = block['local_costmap']['local_costmap']['ros__parameters']
    layer, inflation = (costmap[name] for name in costmap['plugins'])
    cloud = layer[layer['observation_sources']]
    assert (cloud['topic'], cloud['data_type']) == ('/points', 'PointCloud2')
    config = OWN['/**']['ros__parameters']
    reach = cloud.get('obstacle_max_range', cloud.get('obstacle_range'))
    assert reach <= min(config['range_max'], costmap['width'] / 2, costmap['height'] / 2)
    assert inflation['inflation_radius'] >= costmap['robot_radius'] + config['max_stddev']
    if layer['plugin'].startswith('nav2'):
        top = layer['origin_z'] + layer['z_voxels'] * layer['z_resolution']
        assert layer['z_voxels'] <= 16
        assert top > layer['max_obstacle_height']
        assert cloud['raytrace_max_range'] <= reach
        assert cloud['min_obstacle_height'] == layer['min_obstacle_height']
    else:
        assert not cloud['clearing']  # what is unknown would become free


def test_settings_in_navigation_are_settings(tmp_path):
    (tmp_path / 'own.yaml').write_text(yaml.safe_dump(OWN))
    depth, node = read_config(tmp_path / 'own.yaml')
    assert node == NodeConfig()
    assert depth.out_of_range == 'nan'
