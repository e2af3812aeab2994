# SPDX-License-Identifier: Apache-2.0
"""The package: package.xml, setup.py and data files agree, rooms import as they may, and a
release installs.
"""

from __future__ import annotations

import ast
import functools
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

setuptools = pytest.importorskip('setuptools', reason='setuptools is not installed')
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'depthclip_ros'
MANIFEST = ET.parse(ROOT / 'package.xml').getroot()
SOURCES = [file for folder in (PACKAGE, 'offline_eval', 'launch')
           for file in sorted((ROOT / folder).rglob('*.py'))]

# rosdep key of what apt provides under another name than it is imported by.
KEYS = {'cv2': 'python3-opencv', 'markupsafe': 'python3-jinja2', 'yaml': 'python3-yaml', **{
    name: f'python3-{name}' for name in (
        'h5py', 'jinja2', 'matplotlib', 'numpy', 'packaging', 'scipy')}}
# What only pip provides (docs/install.md), or comes with that; pkg_resources is tried only.
PIP_ONLY = {'clip', 'ftfy', 'huggingface_hub', 'lz4', 'mcap', 'msgspec', 'onnx', 'onnxruntime',
            'pkg_resources', 'ray', 'regex', 'rosbags', 'safetensors', 'torch', 'torchvision',
            'tqdm', 'zstandard'}


@pytest.fixture
def setup_py(monkeypatch):
    """What setup.py gives to setup() when it is run with a command."""
    def run(command):
        given = {}
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(setuptools, 'setup', lambda **arguments: given.update(arguments))
        monkeypatch.setattr(sys, 'argv', ['setup.py', command])
        runpy.run_path(str(ROOT / 'setup.py'), run_name='__main__')
        return given
    return run


def executables(arguments):
    """Name to 'module:function'."""
    return dict(entry.split(' = ') for entry in arguments['entry_points']['console_scripts'])


# package.xml and setup.py ----------------------------------------------------------------------


def test_manifest_and_setup_say_the_same_and_colcon_takes_it(setup_py):
    arguments = setup_py('install')
    maintainer = MANIFEST.find('maintainer')
    assert MANIFEST.findtext('name') == arguments['name'] == PACKAGE
    assert MANIFEST.findtext('version') == arguments['version'] == __version__
    assert MANIFEST.findtext('license') == arguments['license'] == 'Apache-2.0'
    assert maintainer.text == arguments['maintainer']
    assert maintainer.get('email') == arguments['maintainer_email']
    for file, form in (('CITATION.cff', f'version: {__version__}\n'),
                       ('CHANGELOG.rst', f'\n{__version__} (')):
        assert form in (ROOT / file).read_text(encoding='utf-8')
    # colcon takes a package with an invalid manifest for plain Python, and says nothing.
    assert re.fullmatch(r'[-\w%+]+@[-\w%]+(\.[-\w%]+)*\.[a-zA-Z]{2,}', maintainer.get('email'))
    assert (ROOT / MANIFEST.find('license').get('file')).is_file()
    assert MANIFEST.findtext('export/build_type') == 'ament_python'
    assert MANIFEST.find('buildtool_depend') is None  # it is no rosdep key


def test_everything_is_installed(setup_py):
    arguments = setup_py('install')
    for folder in {file.parent for file in SOURCES} - {ROOT / 'launch'}:
        assert '.'.join(folder.relative_to(ROOT).parts) in arguments['packages']
    installed = {ROOT / file for _, files in arguments['data_files'] for file in files}
    for package, patterns in arguments['package_data'].items():
        installed |= {file for pattern in patterns for file in (ROOT / package).glob(pattern)}
    on_disk = {file for folder in ('config', 'launch', 'rviz', 'foxglove', PACKAGE, 'offline_eval')
               for file in (ROOT / folder).rglob('*') if file.is_file()
               and '__pycache__' not in file.parts
               and (file.suffix != '.py' or folder == 'launch')}
    assert on_disk <= installed
    assert all(file.is_file() for file in installed)
    for target in executables(arguments).values():
        module, _, function = target.partition(':')
        assert callable(getattr(importlib.import_module(module), function)), target


def test_pip_and_colcon_get_what_each_needs(setup_py):
    by_pip, by_colcon = setup_py('bdist_wheel'), setup_py('install')
    folder = f'lib/{PACKAGE}'  # where ros2 run looks; colcon makes its own there
    scripts = dict(by_pip['data_files'])[folder]
    assert scripts == [f'scripts/{name}' for name in executables(by_pip)]
    assert {ROOT / name for name in scripts} == {
        file for file in (ROOT / 'scripts').iterdir() if file.is_file()}
    assert folder not in dict(by_colcon['data_files'])
    # A requirement that apt cannot meet by pip's name would stop the executables.
    assert by_colcon['install_requires'] == ['setuptools']
    assert any(requirement.startswith('torch>') for requirement in by_pip['install_requires'])


# Imports ---------------------------------------------------------------------------------------


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


@functools.cache
def rows():
    """The table of docs/architecture.md: room, places, what it may import, and whether ROS."""
    page = (ROOT / 'docs/architecture.md').read_text(encoding='utf-8')
    return [(name, re.findall(r'`(.+?)(?:/|\.py)`', places), set(re.findall(r'\w+', may)), ros)
            for name, places, may, ros in re.findall(
                r'^\| (\w+) \| (`.*`) \|.*\| ?(.*?) \| (yes|no) \|$', page, re.MULTILINE)]


def room_of(path):
    """The room of a file or module, by the most particular place; '' of other packages."""
    return max(((place, name) for name, places, _, _ in rows() for place in places
                if f'{path}/'.startswith(f'{place}/')), default=('', ''))[1]


def test_every_room_imports_what_the_table_of_the_architecture_allows():
    ros = {depend.text for depend in MANIFEST.findall('exec_depend')
           if not depend.text.startswith('python3-')}
    allowed = {name: (may | {name}, ros if knows_ros == 'yes' else set())
               for name, _, may, knows_ros in rows()}
    for file in SOURCES:
        path = file.relative_to(ROOT).with_suffix('').as_posix()
        others, packages = allowed[room_of(path)]
        modules = set(imported(file))
        assert {room_of(module.replace('.', '/')) for module in modules
                if module.startswith((PACKAGE, 'offline_eval'))} <= others, file
        assert {module.partition('.')[0] for module in modules} & ros <= packages, file
    assert {room_of(file.relative_to(ROOT).with_suffix('').as_posix())
            for file in SOURCES} == allowed.keys()


def test_no_module_imports_itself_by_way_of_others():
    modules = {'.'.join(file.relative_to(ROOT).with_suffix('').parts): set(imported(file))
               for file in SOURCES if file.name != '__init__.py'}
    while leaves := [name for name, needs in modules.items() if needs.isdisjoint(modules)]:
        for name in leaves:
            del modules[name]
    assert not sorted(modules), 'these import one another in a circle, or need such ones'


def test_documented_attributes_exist():
    """Of every class: what a docstring lists is a field, a property or set on an instance."""
    members, documented = {}, []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.ClassDef):
                continue
            names = {getattr(part, 'name', None) or getattr(
                getattr(part, 'target', None), 'id', None) for part in node.body}
            names |= {target.id for part in node.body if isinstance(part, ast.Assign)
                      for target in ast.walk(part) if isinstance(target, ast.Name)}
            names |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)
                      and isinstance(part.ctx, ast.Store)}
            members[node.name] = names | members.get(node.name, set())
            bases = {getattr(base, 'id', '') for base in node.bases}
            _, _, section = (ast.get_docstring(node) or '').partition('Attributes:\n')
            section = re.split(r'\n(?=\S)', section)[0]
            documented += [(file.name, node.name, names, bases, name) for line in re.findall(
                r'(?m)^ {4}(\w+(?:, \w+)*)(?: \(.*?\))?:', section)
                for name in line.split(', ')]
    assert len(documented) > 100
    assert not [(file, owner, name) for file, owner, names, bases, name in documented
                if name not in names.union(*(members.get(base, set()) for base in bases))]


def test_manifest_lists_every_import():
    depends = {element.text for element in MANIFEST.findall('exec_depend')}
    known = sys.stdlib_module_names | PIP_ONLY | {PACKAGE, 'offline_eval'}
    missing = {(name, file.name) for file in SOURCES for name in {
        module.partition('.')[0] for module in imported(file)} - known
        if KEYS.get(name, name) not in depends}
    assert not missing, 'add <exec_depend> to package.xml'


# A release -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A fresh environment with what sdist -> wheel -> pip put there; packages are this one's."""
    pytest.importorskip('pip', reason='pip is not installed')
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


def test_a_release_runs_and_has_every_file_in_its_place(installed, setup_py):
    environment, run = installed
    assert run(environment / 'bin/depthclip', '--version').split()[-1] == __version__
    found = run(environment / 'bin/python', '-c', (
        'import depthclip_ros; from depthclip_ros.resources import config_path; '
        'print(depthclip_ros.__file__, config_path())')).split()
    assert all(Path(file).is_relative_to(environment) for file in found)
    for name in executables(setup_py('bdist_wheel')):
        assert (environment / 'lib' / PACKAGE / name).stat().st_mode & stat.S_IXUSR, name
        assert (environment / 'bin' / name).exists()
    share = environment / 'share'
    for file in (f'{PACKAGE}/config/sros2/camera.xml', f'{PACKAGE}/launch/depth.launch.py',
                 f'ament_index/resource_index/packages/{PACKAGE}'):
        assert (share / file).is_file()
    code = next(environment.glob(f'lib/python*/site-packages/{PACKAGE}'))
    assert all((code / file).exists() for file in ('py.typed', 'models', 'report/templates'))


def test_a_workspace_is_built_by_colcon_and_runs(tmp_path, setup_py):
    if any(importlib.util.find_spec(name) is None for name in ('colcon_core', 'colcon_ros')):
        pytest.skip('colcon is not installed (extra nightly)')
    (tmp_path / 'src').mkdir()
    (tmp_path / 'src' / PACKAGE).symlink_to(ROOT)

    def run(*words):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False,
                              env={**os.environ, 'PYTHONPATH': ''})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, '-m', 'colcon', 'build')
    prefix = tmp_path / 'install' / PACKAGE
    # As a package of ROS, and not as one of plain Python.
    assert (prefix / 'share' / PACKAGE / 'hook/ament_prefix_path.sh').is_file()
    assert (prefix / 'share/ament_index/resource_index/packages' / PACKAGE).is_file()
    for name in executables(setup_py('install')):
        assert (prefix / 'lib' / PACKAGE / name).stat().st_mode & stat.S_IXUSR, name
    for folder, files in setup_py('install')['data_files']:
        for file in files:
            assert (prefix / folder / Path(file).name).is_file(), file
    version, code = run('sh', '-c', (
        '. ./install/setup.sh && depthclip --version && '
        f'"{sys.executable}" -c "import {PACKAGE}; print({PACKAGE}.__file__)"')).splitlines()
    assert version.split()[-1] == __version__
    assert Path(code).is_relative_to(prefix)


@pytest.mark.parametrize('name', ['depth_node', 'bag_player'])
def test_script_hands_over_arguments_and_status(tmp_path, name):
    prefix = tmp_path / 'a prefix'
    for folder in ('bin', f'lib/{PACKAGE}'):
        (prefix / folder).mkdir(parents=True)
    (prefix / 'bin' / name).write_text('#!/bin/sh\necho "$#: $2"\nexit 3\n')
    (prefix / 'bin' / name).chmod(0o755)
    script = shutil.copy(ROOT / 'scripts' / name, prefix / 'lib' / PACKAGE)
    run = subprocess.run([script, '--ros-args', 'b c'], capture_output=True, text=True,
                         check=False)
    assert (run.returncode, run.stdout) == (3, '2: b c\n')


# Files of the package, at run time -------------------------------------------------------------


def test_share_folder_of_a_source_tree():
    assert resources.share_dir() == ROOT
    assert resources.config_path('nyu_paper') == ROOT / 'config' / 'nyu_paper.yaml'
    with pytest.raises(DepthClipError, match=r'there are: .*depth\.yaml'):
        resources.config_path('nothing')
    with pytest.raises(DepthClipError, match='No settings'):
        resources.config_path('../package')


def test_share_folder_of_an_installation(tmp_path, monkeypatch):
    code = tmp_path / 'lib/python3/dist-packages' / PACKAGE
    code.mkdir(parents=True)
    monkeypatch.setattr(resources, '__file__', str(code / 'resources.py'))
    with pytest.raises(DepthClipError, match='Install the package again'):
        resources.share_dir()
    share = tmp_path / 'share' / PACKAGE
    (share / 'config').mkdir(parents=True)
    shutil.copy(ROOT / 'package.xml', share)
    assert resources.share_dir() == share
