# SPDX-License-Identifier: Apache-2.0
"""The package: package.xml, setup.py and data files agree, and a release installs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from depthclip_ros import __version__, resources
from depthclip_ros.core.errors import DepthClipError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'depthclip_ros'

# Import name of what apt provides, by rosdep key.
ROSDEP_KEYS = {
    'cv2': 'python3-opencv',
    'h5py': 'python3-h5py',
    'jinja2': 'python3-jinja2',
    'markupsafe': 'python3-jinja2',
    'matplotlib': 'python3-matplotlib',
    'numpy': 'python3-numpy',
    'packaging': 'python3-packaging',
    'scipy': 'python3-scipy',
    'yaml': 'python3-yaml',
}
# What only pip provides (docs/install.md), or comes with that; pkg_resources is tried only.
PIP_ONLY = {'clip', 'ftfy', 'huggingface_hub', 'lz4', 'mcap', 'msgspec', 'onnx', 'onnxruntime',
            'pkg_resources', 'ray', 'regex', 'rosbags', 'safetensors', 'torch', 'torchvision',
            'tqdm', 'zstandard'}


def setup_arguments(monkeypatch, command):
    """Arguments that setup.py gives to setup() when run with a command."""
    setuptools = pytest.importorskip('setuptools', reason='setuptools is not installed')
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, 'setup', lambda **arguments: given.update(arguments))
    monkeypatch.setattr(sys, 'argv', ['setup.py', command])
    runpy.run_path(str(ROOT / 'setup.py'), run_name='__main__')
    return given


def executables(arguments):
    """Name to 'module:function'."""
    return dict(entry.split(' = ') for entry in arguments['entry_points']['console_scripts'])


@pytest.fixture
def manifest():
    return ET.parse(ROOT / 'package.xml').getroot()


def sources():
    folders = [ROOT / folder for folder in (PACKAGE, 'offline_eval', 'launch')]
    return [file for folder in folders for file in sorted(folder.rglob('*.py'))]


# package.xml and setup.py --------------------------------------------------------------------


def test_manifest_and_setup_say_the_same(manifest, monkeypatch):
    arguments = setup_arguments(monkeypatch, 'install')
    maintainer = manifest.find('maintainer')
    assert manifest.get('format') == '3'
    assert manifest.findtext('name') == arguments['name'] == PACKAGE
    assert manifest.findtext('version') == arguments['version'] == __version__
    assert manifest.findtext('license') == arguments['license'] == 'Apache-2.0'
    assert maintainer.text == arguments['maintainer']
    assert maintainer.get('email') == arguments['maintainer_email']
    assert manifest.findtext('export/build_type') == 'ament_python'
    # It is no rosdep key: `rosdep install` would stop there.
    assert manifest.find('buildtool_depend') is None


def test_manifest_is_what_colcon_accepts(manifest):
    # colcon takes a package with an invalid manifest for plain Python, and says nothing.
    email = manifest.find('maintainer').get('email')
    assert re.fullmatch(
        r'[-a-zA-Z0-9_%+]+(\.[-a-zA-Z0-9_%+]+)*@[-a-zA-Z0-9%]+(\.[-a-zA-Z0-9%]+)*'
        r'\.[a-zA-Z]{2,}',
        email,
    )
    assert (ROOT / manifest.find('license').get('file')).is_file()
    catkin_pkg = pytest.importorskip('catkin_pkg.package', reason='catkin_pkg is not installed')
    package = catkin_pkg.parse_package(str(ROOT / 'package.xml'), warnings=(warnings := []))
    assert package.get_build_type() == 'ament_python'
    assert not warnings


def imported(file):
    """Modules that a file imports at run time, as far as their names tell what is a module."""
    package = file.relative_to(ROOT).parent.parts
    nodes = [ast.parse(file.read_text(encoding='utf-8'))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and getattr(node.test, 'id', '') == 'TYPE_CHECKING':
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else ()
            module = '.'.join([*above, *filter(None, [node.module])])
            yield module
            yield from (f'{module}.{alias.name}' for alias in node.names)
        nodes += ast.iter_child_nodes(node)


def imports(file):
    """Top-level names of what a file imports at run time."""
    return {name.partition('.')[0] for name in imported(file)}


def test_no_module_imports_itself_by_way_of_others():
    modules = {'.'.join(file.relative_to(ROOT).with_suffix('').parts): set(imported(file))
               for file in sources() if file.name != '__init__.py'}
    # One that is meant, within a function: whoever loads weights need not know whose they are.
    modules['depthclip_ros.core.weights'].remove('depthclip_ros.core.open_clip')
    while leaves := [name for name, needs in modules.items() if needs.isdisjoint(modules)]:
        for name in leaves:
            del modules[name]
    assert not sorted(modules), 'these import one another in a circle, or need such ones'


def test_the_core_imports_nobody():
    for file in (ROOT / PACKAGE / 'core').rglob('*.py'):
        assert not {name for name in imported(file) if name.startswith((PACKAGE, 'offline_eval'))
                    and not f'{name}.'.startswith(f'{PACKAGE}.core.')} - {PACKAGE}, file


def test_the_rendered_world_knows_no_ros():
    for file in (ROOT / PACKAGE / 'sim').glob('*.py'):
        assert imports(file) <= sys.stdlib_module_names | {
            PACKAGE, 'cv2', 'h5py', 'numpy', 'rosbags', 'scipy', 'torch'}, file


def test_manifest_lists_every_import(manifest):
    depends = {element.text for element in manifest.findall('exec_depend')}
    elsewhere = sys.stdlib_module_names | PIP_ONLY | {PACKAGE, 'offline_eval'}
    missing = {}
    for file in sources():
        for name in imports(file) - elsewhere:
            if ROSDEP_KEYS.get(name, name) not in depends:
                missing.setdefault(name, []).append(str(file.relative_to(ROOT)))
    assert not missing, 'add <exec_depend> to package.xml'


def test_every_folder_of_code_is_installed(monkeypatch):
    packages = setup_arguments(monkeypatch, 'install')['packages']
    for folder in {file.parent for file in sources()} - {ROOT / 'launch'}:
        assert '.'.join(folder.relative_to(ROOT).parts) in packages


def test_every_file_beside_the_code_is_installed(monkeypatch):
    for package, patterns in setup_arguments(monkeypatch, 'install')['package_data'].items():
        folder = ROOT / package
        matched = {file for pattern in patterns for file in folder.glob(pattern)}
        beside = {file for file in folder.rglob('*')
                  if file.is_file() and file.suffix != '.py' and '__pycache__' not in file.parts}
        assert beside <= matched


def test_data_files_exist_and_none_is_forgotten(monkeypatch):
    arguments = setup_arguments(monkeypatch, 'install')
    files = [file for _, folder in arguments['data_files'] for file in folder]
    assert all((ROOT / file).is_file() for file in files)
    assert {
        'package.xml',
        f'resource/{PACKAGE}',
        'launch/depth.launch.py',
        'rviz/depth.rviz',
        'config/depth.yaml',
        'config/nyu_paper.yaml',
    } <= set(files)
    for folder in ('config', 'launch', 'rviz', 'foxglove'):
        on_disk = {
            str(file.relative_to(ROOT))
            for file in (ROOT / folder).rglob('*')
            if file.is_file() and '__pycache__' not in file.parts
        }
        assert on_disk <= set(files)


def test_executables_are_importable(monkeypatch):
    found = executables(setup_arguments(monkeypatch, 'install'))
    assert {'depth_node', 'depthclip', 'image_source', 'bag_player', 'offline_eval'} <= set(found)
    for target in found.values():
        module, _, function = target.partition(':')
        if importlib.util.find_spec('rclpy') is None and '.node.' in module:
            continue
        assert callable(getattr(importlib.import_module(module), function)), target


def test_ros2_run_finds_the_executables_of_a_pip_installation(monkeypatch):
    by_pip = setup_arguments(monkeypatch, 'bdist_wheel')
    by_colcon = setup_arguments(monkeypatch, 'install')
    folder = f'lib/{PACKAGE}'
    scripts = dict(by_pip['data_files'])[folder]
    assert scripts == [f'scripts/{name}' for name in executables(by_pip)]
    assert {ROOT / script for script in scripts} == {
        file for file in (ROOT / 'scripts').iterdir() if file.is_file()}
    for script in scripts:
        assert (ROOT / script).stat().st_mode & stat.S_IXUSR, script
    # colcon makes its own there, and must not get them twice.
    assert folder not in dict(by_colcon['data_files'])


def test_colcon_gets_no_requirement_that_apt_cannot_meet(monkeypatch):
    assert setup_arguments(monkeypatch, 'install')['install_requires'] == ['setuptools']
    required = setup_arguments(monkeypatch, 'dist_info')['install_requires']
    assert any(requirement.startswith('torch>') for requirement in required)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A fresh environment with what sdist -> wheel -> pip put there; packages are this one's."""
    for module in ('setuptools', 'pip'):
        pytest.importorskip(module, reason=f'{module} is not installed')
    # setuptools has this command since 70.1; before, it was the package wheel's.
    if not any(map(importlib.util.find_spec, ('setuptools.command.bdist_wheel', 'wheel'))):
        pytest.skip('setuptools is older than 70.1, and wheel is not installed')
    folder = tmp_path_factory.mktemp('release')

    def run(*words, cwd=folder):
        done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True,
                              check=False, env={**os.environ, 'PYTHONPATH': ''})
        assert done.returncode == 0, done.stderr
        return done.stdout

    ignore = shutil.ignore_patterns('.*', '__pycache__', 'build', 'install', 'log', 'docs',
                                    'benchmarks', '*.egg-info')
    shutil.copytree(ROOT, folder / 'tree', ignore=ignore)
    run(sys.executable, 'setup.py', '--quiet', 'sdist', '--dist-dir', folder, cwd=folder / 'tree')
    archive, = folder.glob('*.tar.gz')
    shutil.unpack_archive(archive, folder / 'unpacked')
    source, = (folder / 'unpacked').iterdir()
    run(sys.executable, 'setup.py', '--quiet', 'bdist_wheel', '--dist-dir', folder, cwd=source)
    wheel, = folder.glob('*.whl')
    environment = folder / 'environment'
    run(sys.executable, '-m', 'venv', '--without-pip', environment)
    python = environment / 'bin/python'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps',
        '--no-index', wheel)
    packages = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))')
                    .strip())
    (packages / 'others.pth').write_text(sysconfig.get_path('purelib'))
    return environment, run


def test_a_release_runs(installed):
    environment, run = installed
    assert run(environment / 'bin/depthclip', '--version').split()[-1] == __version__
    found = run(environment / 'bin/python', '-c', (
        'import depthclip_ros; from depthclip_ros.resources import config_path; '
        'print(depthclip_ros.__file__, config_path())')).split()
    assert all(Path(file).is_relative_to(environment) for file in found)


def test_a_release_has_every_file_in_its_place(installed, monkeypatch):
    environment, _ = installed
    for name in executables(setup_arguments(monkeypatch, 'bdist_wheel')):
        script = environment / 'lib' / PACKAGE / name
        assert script.stat().st_mode & stat.S_IXUSR, f'{name} is not executable'
        assert (environment / 'bin' / name).exists()
    for file in ('package.xml', 'config/depth.yaml', 'config/sros2/camera.xml',
                 'launch/depth.launch.py', 'rviz/depth.rviz'):
        assert (environment / 'share' / PACKAGE / file).is_file()
    assert (environment / 'share/ament_index/resource_index/packages' / PACKAGE).is_file()
    code = next(environment.glob(f'lib/python*/site-packages/{PACKAGE}'))
    for file in ('py.typed', 'models', 'templates'):
        assert (code / file).exists()


@pytest.mark.parametrize('name', ['depth_node', 'bag_player'])
def test_script_hands_over_arguments_and_status(tmp_path, name):
    prefix = tmp_path / 'a prefix'
    for folder in ('bin', f'lib/{PACKAGE}'):
        (prefix / folder).mkdir(parents=True)
    (prefix / 'bin' / name).write_text('#!/bin/sh\necho "$#: $2"\nexit 3\n')
    (prefix / 'bin' / name).chmod(0o755)
    script = shutil.copy(ROOT / 'scripts' / name, prefix / 'lib' / PACKAGE)
    run = subprocess.run(
        [script, '--ros-args', 'b c'], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (3, '2: b c\n')


# Files of the package, at run time -----------------------------------------------------------


def test_share_folder_of_a_source_tree():
    assert resources.share_dir() == ROOT
    assert resources.config_path() == ROOT / 'config' / 'depth.yaml'
    assert resources.config_path('nyu_paper') == ROOT / 'config' / 'nyu_paper.yaml'
    with pytest.raises(DepthClipError, match=r'there are: .*depth\.yaml'):
        resources.config_path('nothing')
    with pytest.raises(DepthClipError, match='No settings'):
        resources.config_path('../package')


@pytest.mark.parametrize('layout', ['lib/python3.12/site-packages', 'lib/python3/dist-packages'])
def test_share_folder_of_an_installation(tmp_path, monkeypatch, layout):
    share = tmp_path / 'share' / PACKAGE
    (share / 'config').mkdir(parents=True)
    shutil.copy(ROOT / 'package.xml', share)
    code = tmp_path / layout / PACKAGE
    code.mkdir(parents=True)
    monkeypatch.setattr(resources, '__file__', str(code / 'resources.py'))
    assert resources.share_dir() == share


def test_share_folder_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, '__file__', str(tmp_path / 'resources.py'))
    with pytest.raises(DepthClipError, match='Install the package again'):
        resources.share_dir()


def test_every_python_file_names_its_licence():
    files = [*sources(), *(ROOT / 'test').glob('*.py'), ROOT / 'setup.py']
    without = [
        str(file)
        for file in files
        if not file.read_text(encoding='utf-8').startswith(
            '# SPDX-License-Identifier: Apache-2.0\n'
        )
    ]
    assert not without
