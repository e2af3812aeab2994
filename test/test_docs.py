# SPDX-License-Identifier: Apache-2.0
"""Links lead somewhere, commands are understood, generated tables notice a change of the code."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from depthclip_ros.cli import main as cli
from depthclip_ros.core.config import DepthConfig
from depthclip_ros.node.config import NodeConfig, read_config
from depthclip_ros.sources import bag_player, image_source
from offline_eval import cli as evaluation

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'benchmarks/README.md')),
             *sorted(ROOT.glob('docs/**/*.md'))]
PARSERS = {'depthclip': cli._parser, 'offline_eval': evaluation._parser,
           'bag_player': bag_player.parser, 'image_source': image_source.parser}


def without_code(text):
    return re.sub(r'^( *)```.*?^\1```|`[^`\n]*`', '', text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """What hosting sites make of a page's headings."""
    headings = re.findall(r'^#+ (.*)$', path.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', DOCUMENTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    text = without_code(page.read_text(encoding='utf-8'))
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        file, _, anchor = target.partition('#')
        if re.match(r'\w+:', target):
            continue
        path = page.parent / file if file else page
        assert path.exists(), target
        assert not anchor or path.suffix != '.md' or anchor in anchors(path), target


def commands():
    """(document, words) of each line of a block of bash that begins with a program of ours."""
    for page in DOCUMENTS:
        text = page.read_text(encoding='utf-8')
        for block in re.findall(r'^ *```bash\n(.*?)^ *```', text, re.DOTALL | re.MULTILINE):
            for line in re.split(r'\n|&&', block.replace('\\\n', ' ')):
                words = shlex.split(line, comments=True)
                for start in (['python3', 'run.py'], ['python3', '-m'], ['ros2', 'run',
                                                                         'depthclip_ros']):
                    if words[:len(start)] == start:
                        words = words[len(start):]
                        if start[1] == 'run.py' and words[0] not in PARSERS:
                            words = ['depthclip', *words]
                foreign = words[1:2] in (['test'], ['depth_node']) or (
                    # Its sub-commands have parsers of their own.
                    words[:1] == ['offline_eval'] and words[1:2] and words[1][0] != '-')
                if words and words[0] in PARSERS and not foreign:
                    yield page.relative_to(ROOT).as_posix(), [w for w in words if w != '&']


@pytest.mark.parametrize(('page', 'words'), [
    pytest.param(page, words, id=f'{page}-{" ".join(words)[:60]}') for page, words in commands()])
def test_documented_commands_are_understood(page, words):
    parser = PARSERS[words[0]]()
    parser.parse_args(words[1:])  # exits with what is wrong


def test_the_parameter_file_holds_the_defaults():
    path = ROOT / 'config/depth.yaml'
    assert read_config(path) == (DepthConfig(), NodeConfig())
    text = path.read_text(encoding='utf-8')
    for settings in (DepthConfig, NodeConfig):
        for setting in dataclasses.fields(settings):
            comment = re.search(rf'^ +{setting.name}: [^#\n]*(.*)$', text, re.MULTILINE)[1]
            for choice in setting.metadata['choices'] or ():
                assert choice in comment, f'{setting.name}: {choice} is missing behind it'


def test_a_change_of_the_code_is_noticed(tmp_path):
    """As run_tests.py asks: another default, and a command with another option."""
    for name in ('depthclip_ros', 'offline_eval', 'launch', 'tools', 'docs', 'README.md'):
        (tmp_path / name).symlink_to(ROOT / name)
    node = tmp_path / 'depthclip_ros'
    node.unlink()
    shutil.copytree(ROOT / 'depthclip_ros', node, ignore=shutil.ignore_patterns('*.pt', '*.pyc'))
    config = node / 'core/config.py'
    text = config.read_text(encoding='utf-8')
    changed = text.replace("'Softmax temperature: logits", "'The temperature: logits")
    assert changed != text
    config.write_text(changed, encoding='utf-8')
    (tmp_path / 'tools').unlink()
    shutil.copytree(ROOT / 'tools', tmp_path / 'tools')
    done = subprocess.run(
        [sys.executable, 'tools/generate.py', '--check'], cwd=tmp_path, check=False,
        capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert set(re.findall(r'^\S+', done.stdout, re.MULTILINE)) == {
        'docs/reference/parameters.md'}
    assert 'python tools/generate.py' in done.stdout


def test_python_example_runs(tiny_weights):
    """The README's own lines, on weights that are here."""
    from clip_standin import synthetic_rgb
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    example = re.search(r'```python\n(.*?)```', readme, re.DOTALL)[1]
    example = example.replace('config/nyu_paper.yaml', str(ROOT / 'config/nyu_paper.yaml'))
    example = example.replace("weights='RN50'", f'weights={str(tiny_weights)!r}')
    example = example.replace("nyu_paper.yaml')", "nyu_paper.yaml').replace(backbone='auto')")
    names = {'rgb': synthetic_rgb(0)}
    exec(example, names)
    assert names['prediction'].depth.shape == (480, 640)
