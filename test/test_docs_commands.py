# SPDX-License-Identifier: Apache-2.0
"""Every command of README and docs: run here, or understood by what would run it, or a reason.

A command that is not run here is given to the parser of its program, or compared with the
arguments that a launch file declares; ELSEWHERE says which test runs such commands, or why none
can. What cannot even be understood here has its reason in REASONS. Commands and options within a
sentence are looked up.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from lesser_cpu import KINDS
from test_agreement import LIVE, SETTINGS, launch_arguments, topic_table

from depthclip_ros.cli import main as cli
from depthclip_ros.core.errors import DepthClipError
from depthclip_ros.launching import _from_text
from depthclip_ros.sim.world import SimConfig
from depthclip_ros.sources import bag_player, image_source
from offline_eval import cli as evaluation
from run import WORKERS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'benchmarks/README.md')),
             *sorted(ROOT.glob('docs/*.md'))]

# How a command begins that can neither be run nor checked here.
REASONS = {
    'git clone': 'the repository has no public address yet',
    'curl': 'the data and weights cannot be had where this is built',
    'pip install': 'run.py does it, and CI in a fresh environment',
    'python3 -m venv': 'likewise',
    'rosdep': 'needs a ROS installation; CI does it',
    'colcon': 'likewise',
    'python -m colcon': 'likewise',
    'ros2 topic pub': 'needs a ROS installation; such a message is sent by test_node_words.py',
    'rviz2': 'neither it nor Foxglove is at hand; test_viewers.py reads its configuration',
    'ros2 run rqt_image_view': 'needs a ROS installation',
    'ros2 run foxglove_bridge': 'likewise',
    'ros2 bag record': 'needs a ROS installation and a camera',
    'ros2 security': 'needs a ROS installation; the policy is compared with the node',
    'ros2 launch realsense2_camera': 'needs a RealSense and its driver',
    'mkdocs serve': 'serves until it is ended; test_docs_site.py builds the same pages',
    'ray start': 'makes several machines a cluster; there is one here',
    'python eval_with_pngs.py': "another project's script, which is not here",
    'pixi shell': 'pixi and its channels cannot be had where this is built',
    'source': 'changes the shell', 'export': 'likewise', 'cd': 'likewise', 'mkdir': 'likewise',
    'ln': 'likewise', 'touch': 'likewise', 'policy=': 'likewise',
}

# How a command begins that is understood here, and where its like is run; or why it cannot be.
NO_ROS2 = 'there is no ros2 in the wheels; '
ELSEWHERE = {
    'depthclip bag': 'test_bags.py', 'depthclip bags': 'test_fleet.py',
    'depthclip calibrate': 'test_cli_calibrate.py', 'depthclip compare': 'test_compare.py',
    'depthclip demo': 'test_demo.py', 'depthclip doctor': 'test_cli.py',
    'depthclip fetch': 'test_cli.py', 'depthclip predict': 'test_cli.py',
    'depthclip quantize': 'test_int8.py', 'depthclip stats': 'test_stats.py',
    'depthclip view': 'test_view.py', 'depthclip words': 'test_words.py',
    'offline_eval': 'test_eval_run.py', 'python3 -m offline_eval --data': 'test_eval_run.py',
    'python3 -m offline_eval witness': 'test_eval_witness.py',
    'bag_player': 'test_bag_player.py', 'image_source': 'test_image_source.py',
    'sim_camera': 'test_sim_camera.py', 'depth_node': 'test_node_start.py',
    'python3 run.py': 'test_run.py',
    'python tools/soak.py': 'test_soak.py', 'python tools/fuzz_decoder.py': 'test_fuzz_decoder.py',
    'python tools/foreign_robots.py': 'test_foreign_robots.py',
    'python tools/write_demo_data.py': 'test_docs_commands.py',
    'python tools/mutants.py': 'runs the tests anew for each fault that it plants: hours',
    'pytest': 'runs this', 'ruff': 'run.py test runs it', 'mypy': 'likewise',
    'ros2 launch depthclip_ros': NO_ROS2 + 'test_launch.py runs launch files where there is one',
    'ros2 run depthclip_ros': NO_ROS2 + 'the executables are run by their names',
    'ros2 param': NO_ROS2 + 'test_parameter_services.py calls the services behind it',
    'pixi run': 'neither pixi nor its channels can be had where this is built',
}

# Options in sentences that other programs have.
FOREIGN = {'--symlink-install', '--system-site-packages', '--shm-size', '--params-file',
           '--show-args', '--cov'}

# Run one after the other, in a folder that looks like a clone in which the demo has been. What is
# smaller here than in the document stands behind it.
RUN = {
    'depthclip predict demo_output/input.png --weights demo -o predicted': {},
    'cp demo_output/depth_node.yaml words.yaml': {},
    'depthclip predict demo_output/input.png --config demo_output/depth_node.yaml -o before': {},
    'depthclip predict demo_output/input.png --config words.yaml -o after': {},
    "depthclip words 'very close, close, far, very far' --against 'giant, large, small, tiny' "
    '--image demo_output/input.png --weights demo -o words_output': {},
    'depthclip view demo_output/input.png --weights demo -o view_output': {},
    'python tools/write_demo_data.py --out build/data --images 40 --frames 60':
        {'40': '4', '60': '4'},
    'depthclip compare build/data/room_bag --weights demo -o build/compared': {},
}


def commands():
    """(document, words) of every command in a block of bash; `a && b` are two."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding='utf-8')
        for block in re.findall(r'^ *```bash\n(.*?)^ *```', text, re.DOTALL | re.MULTILINE):
            for line in block.replace('\\\n', ' ').splitlines():
                words = shlex.split(line, comments=True)
                while words:
                    end = words.index('&&') if '&&' in words else len(words)
                    command = [word for word in words[:end] if word != '&']
                    while re.match(r'[A-Z_]+=', command[0]):  # an environment variable before it
                        command = command[1:]
                    found.append((document.relative_to(ROOT).as_posix(), command))
                    words = words[end + 1:]
    return found


def prose(text):
    """A document without its blocks of code."""
    return re.sub(r'^( *)```.*?^\1```', '', text, flags=re.DOTALL | re.MULTILINE)


def mentions():
    """(document, words) of every command and option that stands within a sentence."""
    found = []
    for document in DOCUMENTS:
        for code in re.findall(r'`([^`]+)`', prose(document.read_text(encoding='utf-8'))):
            words = code.replace('…', ' ').replace('"', '').split()
            if words and (words[0] in (*PARSERS, 'depthclip') or words[0].startswith('--')
                          or words[:2] == ['python3', 'run.py']
                          or re.match(r'python3? (tools|benchmarks)/', code)):
                found.append((document.relative_to(ROOT).as_posix(), words))
    return found


def reason(words):
    line = shlex.join(words)
    return next((REASONS[start] for start in REASONS
                 if line == start or line.startswith((start + ' ', "'" + start))), '')


# Checks ----------------------------------------------------------------------------------------


def parsed(parser, words):
    """Options that argparse accepts; a message of it is the failure's."""
    try:
        return parser.parse_args(words)
    except SystemExit as error:
        raise AssertionError(f'not understood: {words}') from error


def check(words):
    """Raise AssertionError for what its program would refuse."""
    name, rest = words[0], words[1:]
    if name == 'depthclip':
        parsed(cli._parser(), rest)
    elif name == 'offline_eval':
        if not rest[0].startswith('-'):
            options = '\n'.join(path.read_text(encoding='utf-8') for path in
                                (ROOT / 'offline_eval').rglob('*.py'))
            assert f"'{rest[0]}'" in options, rest[0]
            for word in rest[1:]:
                assert not word.startswith('-') or f"'{word}'" in options, word
        else:
            parsed(evaluation._parser(), rest)
    elif name in ('image_source', 'bag_player'):
        parsed({'image_source': image_source, 'bag_player': bag_player}[name].parser(), rest)
    elif name == 'depth_node':
        check_ros_arguments(rest, SETTINGS)
    elif name == 'sim_camera':
        check_ros_arguments(rest, {setting.name: setting
                                   for setting in dataclasses.fields(SimConfig)})
    elif words[:3] == ['python3', '-m', 'offline_eval']:
        check(['offline_eval', *words[3:]])
    elif words[:2] == ['python3', 'run.py']:
        if rest[1] != 'test':
            check(rest[1:] if (ROOT / 'scripts' / rest[1]).is_file() else
                  ['depthclip', *rest[1:]])
    elif name == 'python' and rest[0].endswith('.py'):
        text = (ROOT / rest[0]).read_text(encoding='utf-8')
        for option in rest[1:]:
            assert not option.startswith('-') or f"'{option}'" in text, option
    elif words[:3] == ['ros2', 'run', 'depthclip_ros']:
        check(words[3:])
    elif words[:3] == ['ros2', 'launch', 'depthclip_ros']:
        check_launch(words[3], words[4:])
    elif words[:2] == ['ros2', 'param']:
        assert rest[2] == '/depth_node'
        assert rest[3] in (LIVE if rest[1] == 'set' else SETTINGS)
        if rest[1] == 'set':
            value(SETTINGS[rest[3]], rest[4])
    elif name in ('ruff', 'mypy'):
        assert not rest or str(words) in (ROOT / 'run.py').read_text(encoding='utf-8'), words
    elif name == 'pytest':
        check_pytest(rest)
    elif words[:2] == ['pixi', 'run']:
        tasks = (ROOT / 'pixi.toml').read_text(encoding='utf-8').partition('[tasks]')[2]
        assert re.search(rf'^{rest[1]} = ', tasks, re.MULTILINE)
    else:
        raise AssertionError(f'no reason why it is not checked: {shlex.join(words)}')


def value(setting, text):
    """A value that a setting of this type and range accepts; tokens: of the demo model."""
    owner = next(kind for kind in (cli_settings()) if setting.name in kind.names())
    of_demo = setting.name == 'tokens'
    settings = owner.from_yaml(ROOT / 'config/demo.yaml') if of_demo else owner()
    settings.replace(**{setting.name: _from_text(setting, text)})


def options_of(parser):
    """Every option of a parser and of its sub-commands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for sub in action.choices.values() for option in options_of(sub)}
    return found


PARSERS = {'offline_eval': evaluation._parser(), 'bag_player': bag_player.parser(),
           'image_source': image_source.parser(), **next(
               {f'depthclip {name}': sub for name, sub in action.choices.items()}
               for action in cli._parser()._actions
               if isinstance(action, argparse._SubParsersAction))}
OPTIONS = FOREIGN.union(*map(options_of, PARSERS.values()), *(
    re.findall(r"'(--[a-z-]+)'", path.read_text(encoding='utf-8'))
    for folder in ('benchmarks', 'tools') for path in (ROOT / folder).glob('*.py')))


def check_mention(words, document=''):
    """A command of a sentence, of which parts may be left out, or an option alone."""
    if words[:2] == ['python3', 'run.py']:
        words = words[2:] or ['test']
        if words[0] != 'test' and not (ROOT / 'scripts' / words[0]).is_file():
            words = ['depthclip', *words]
    if words[0].startswith('python'):
        assert (ROOT / words[1]).is_file(), words
        text = (ROOT / words[1]).read_text(encoding='utf-8')
        known = {word for word in words if f"'{word}'" in text}
    elif words[0] == 'depthclip':
        assert words[1:2] == [] or f'depthclip {words[1]}' in PARSERS, words
        known = options_of(PARSERS[f'depthclip {words[1]}']) if words[1:] else ()
    else:
        known = options_of(PARSERS[words[0]]) if words[0] in PARSERS else OPTIONS
    for word in words:
        option = word.partition('=')[0].rstrip(',')
        assert not option.startswith('--') or option in known, (document, words)


def cli_settings():
    from depthclip_ros.core import DepthConfig
    from depthclip_ros.node.config import NodeConfig
    return DepthConfig, NodeConfig, SimConfig


def check_ros_arguments(words, settings):
    if not words:
        return
    assert words[0] == '--ros-args', words
    topics = {name for direction in topic_table().values() for name in direction}
    pairs = iter(words[1:])
    for flag in pairs:
        text = next(pairs)
        if flag == '-p':
            name, _, given = text.partition(':=')
            value(settings[name], given)
        elif flag == '-r':
            assert text.partition(':=')[0] in topics, text
        elif flag == '--params-file':
            assert not text.startswith('config/') or (ROOT / text).is_file(), text
        else:
            assert flag == '--enclave', flag


def check_pytest(words):
    settings = (ROOT / 'setup.cfg').read_text(encoding='utf-8')
    markers = re.findall(r'^    (\w+): ', settings, re.MULTILINE)
    words = iter(words)
    for word in words:
        if word == '-m':
            assert set(next(words).split()) <= {'not', 'and', 'or', *markers}
        elif word == '--cpu':
            assert next(words) in KINDS
        elif word.startswith('-'):
            assert next(words) == WORKERS[WORKERS.index(word) + 1]
        else:
            assert (ROOT / word).is_file(), word


def check_launch(file, words):
    declared = {**launch_arguments('depth.launch.py'), **SETTINGS,
                **(launch_arguments(file) if file != 'depth.launch.py' else {})}
    for word in words:
        name, _, given = word.partition(':=')
        assert name in declared, word
        if name in SETTINGS and name not in ('cameras', 'tokens', 'bins'):
            value(SETTINGS[name], given)


# Tests -----------------------------------------------------------------------------------------


def test_every_command_is_understood_or_has_its_reason():
    wrong = []
    for document, words in commands():
        if reason(words) or shlex.join(words) in RUN:
            continue
        try:
            check(words)
        except (AssertionError, DepthClipError, KeyError, OSError, ValueError) as error:
            wrong.append(f'{document}: {shlex.join(words)}: {error}')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('line', [
    'depthclip predict a.png --weight demo', 'depthclip prediction a.png -o b',
    'offline_eval --dta x', 'ros2 launch depthclip_ros depth.launch.py temprature:=1',
    'ros2 launch depthclip_ros depth.launch.py temperature:=hot',
    'depth_node --ros-args -p wieghts:=demo', 'depth_node --ros-args -r imag:=/a',
    'depth_node --ros-args --params-file config/missing.yaml', 'pixi run nothing',
    'python tools/write_demo_data.py --pictures 3', 'python3 run.py dmeo',
    'ros2 param set /depth_node device cpu', 'make all', 'pytest test/test_none.py',
    'pytest -m "not slwo"', 'pytest --cpu sse test/test_run.py', 'ruff chekc .',
])
def test_a_wrong_command_is_noticed(line):
    assert not reason(shlex.split(line))
    with pytest.raises((AssertionError, DepthClipError, KeyError, OSError, ValueError)):
        check(shlex.split(line))


def test_the_missing_address_stands_in_one_command():
    """Nothing after that one may depend on it."""
    assert [(document, words[-1]) for document, words in commands()
            if any('URL-OF' in word for word in words)] == [('README.md', 'depthclip_ros')]


def test_pixi_brings_what_the_demo_needs():
    """Its form was checked against pixi's own schema by hand; pixi itself is not here."""
    tomllib = pytest.importorskip('tomllib', reason='Python 3.10 cannot read TOML')
    pixi = tomllib.loads((ROOT / 'pixi.toml').read_text(encoding='utf-8'))
    assert pixi.keys() == {'workspace', 'dependencies', 'pypi-dependencies', 'tasks'}
    assert pixi['workspace'].keys() == {'name', 'channels', 'platforms'}
    distribution = pixi['workspace']['channels'][0].rpartition('-')[2]
    assert f'ros-{distribution}-desktop' in pixi['dependencies']
    assert pixi['pypi-dependencies'] == {'depthclip_ros': {'path': '.'}}
    for command in pixi['tasks'].values():
        check(shlex.split(command))


@pytest.mark.parametrize('line', [
    'depthclip predict IMAGE --outptu DIR', 'depthclip quantise', '--max-imagse',
    'bag_player --rosbug', 'offline_eval --dta PATH', 'python tools/none.py',
    'python3 run.py dmeo', 'python benchmarks/node.py --netwrok tiny'])
def test_a_wrong_mention_is_noticed(line):
    with pytest.raises(AssertionError):
        check_mention(line.split())


def test_commands_and_options_of_sentences_exist():
    found = mentions()
    assert len(found) > 150
    for document, words in found:
        check_mention(words, document)


def test_every_command_stands_in_a_block_of_bash():
    """Where it is found, and not in another block or by itself."""
    begins = re.compile(r' *(?:\$ )?(depthclip|ros2|python3? [\w/]+\.py|pip|pytest|offline_eval|'
                        r'depth_node|sim_camera|bag_player|image_source) [a-z.-]')
    for document in DOCUMENTS:
        text = document.read_text(encoding='utf-8')
        blocks = re.findall(r'^ *```(?!bash)\w*\n(.*?)^ *```', text, re.DOTALL | re.MULTILINE)
        indented = [line for line in prose(text).splitlines() if line.startswith('    ')]
        for line in [*'\n'.join(blocks).splitlines(), *indented]:
            assert not begins.match(line), (document, line)


def test_every_command_is_run_or_says_why_not():
    without = [f'{document}: {line}' for document, words in commands()
               if (line := shlex.join(words)) not in RUN and not reason(words)
               and not elsewhere(line)]
    assert not without, '\n'.join(without)
    for start, where in ELSEWHERE.items():
        test = re.match(r'test_\w+\.py$', where)
        if test:  # which names what it runs
            text = (ROOT / 'test' / where).read_text(encoding='utf-8')
            assert start.split()[-1].rpartition('/')[2].removesuffix('.py') in text, start


def elsewhere(line):
    return next((start for start in ELSEWHERE if line == start or line.startswith(start + ' ')),
                '')


def test_no_reason_is_left_over():
    lines = [shlex.join(words) for _, words in commands()]
    for start in REASONS:
        assert any(line.startswith((start, "'" + start)) for line in lines), start
    used = {elsewhere(line) for line in lines}
    assert used >= ELSEWHERE.keys()


def test_what_is_run_is_what_the_documents_say():
    lines = {shlex.join(words) for _, words in commands()}
    assert not RUN.keys() - lines


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """A folder that looks like a clone in which the demo has been."""
    import cv2

    from depthclip_ros.sim import Scene, SimCamera, render, trajectory
    folder = tmp_path_factory.mktemp('clone')
    for name in ('config', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'demo_output').mkdir()
    shutil.copy(ROOT / 'config/demo.yaml', folder / 'demo_output/depth_node.yaml')
    scene = Scene.generate('office', seed=3)
    frame = render(scene, SimCamera(), trajectory(scene, seed=0).pose(1.5))
    cv2.imwrite(str(folder / 'demo_output/input.png'), frame.rgb[..., ::-1])
    return folder


@pytest.mark.slow
def test_commands_run_as_they_are_written(clone, monkeypatch):
    """In their order, in this process, where torch is loaded already."""
    monkeypatch.chdir(clone)
    for line, smaller in RUN.items():
        for large, small in smaller.items():
            line = line.replace(large, small)  # noqa: PLW2901
        name, *rest = shlex.split(line)
        if name == 'cp':
            shutil.copy(*rest)
            text = Path(rest[1]).read_text(encoding='utf-8')  # as the tutorial says: other words
            values = yaml.safe_load(text)
            values['/**']['ros__parameters'].update(tokens=['very close', 'very far'],
                                                    bins=[0.64, 6.84])
            Path(rest[1]).write_text(yaml.safe_dump(values), encoding='utf-8')
        elif name == 'python':
            monkeypatch.setattr(sys, 'argv', rest)
            runpy.run_path(rest[0], run_name='__main__')
        else:
            assert name == 'depthclip'
            assert cli.main(rest) == 0, line
    for path in ('predicted/input_depth.png', 'before/input_color.png', 'build/data/room_bag',
                 'build/compared/comparison.json', 'words_output/words.html',
                 'view_output/001_input.png'):
        assert Path(path).exists(), path
    before, after = (Path(f'{name}/input_depth.png').read_bytes() for name in ('before', 'after'))
    assert before != after
