# SPDX-License-Identifier: Apache-2.0
"""Hooks of mkdocs (mkdocs.yml): pages that committed results make, and links that hold.

The documents are written to be read in the repository, so README.md and others lie outside of
docs/ and link to code. Here they become pages, and what they link to comes along under files/.
Equations are ```math blocks, which hosting sites draw; here matplotlib does, without a network.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

# Documents outside of docs/, and where they are in the site.
OUTSIDE = {'index.md': 'README.md', 'benchmarks/README.md': 'benchmarks/README.md',
           'CONTRIBUTING.md': 'CONTRIBUTING.md'}
LINK = re.compile(r'(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))')
FENCE = re.compile(r'^( *)```.*?^\1```', re.MULTILINE | re.DOTALL)


# Hooks -----------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put documents that nobody has placed at the end, so that none is missing."""
    placed = json.dumps(config.nav)
    rest = [path.name for path in sorted((ROOT / 'docs').glob('*.md'))
            if f'"{path.name}"' not in placed]
    if rest:
        config.nav = [*(config.nav or []), {'More': rest}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and every file of the repository that a document links to."""
    for uri, path in OUTSIDE.items():
        files.append(File.generated(config, uri, content=_text(path)))
    for uri, content in generated().items():
        files.append(File.generated(config, uri, content=content))
    for file in list(files.documentation_pages()):
        for _, target, _ in LINK.findall(_without_code(file.content_string)):
            path = _repository_path(file.src_uri, target)
            if path is not None and _page_of(path) is None \
                    and files.get_file_from_path(f'files/{path}') is None:
                files.append(File.generated(
                    config, f'files/{path}', abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files,
) -> str:
    """Let links lead to where things are in the site, and draw the equations."""
    del config, files
    here = posixpath.dirname(page.file.src_uri)

    def relink(match: re.Match[str]) -> str:
        path = _repository_path(page.file.src_uri, match[2])
        if path is None:
            return match[0]
        target = _page_of(path) or f'files/{path}'
        return match[1] + posixpath.relpath(target, here or '.') + match[3]

    code: list[str] = []

    def keep(match: re.Match[str]) -> str:
        code.append(_equation(match[0]))
        return f'\0{len(code) - 1}\0'

    text = LINK.sub(relink, FENCE.sub(keep, markdown))
    return re.sub('\0(\\d+)\0', lambda match: code[int(match[1])], text)


# Links -----------------------------------------------------------------------------------------


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding='utf-8')


def _without_code(text: str) -> str:
    return FENCE.sub('', text)


def _repository_path(uri: str, target: str) -> str | None:
    """What a link in a document means, relative to the repository; None if it is in the site."""
    if uri in OUTSIDE:
        folder = posixpath.dirname(OUTSIDE[uri])
    elif (ROOT / 'docs' / uri).is_file():
        folder = posixpath.join('docs', posixpath.dirname(uri))
    else:
        return None
    path = posixpath.normpath(posixpath.join(folder, target))
    return path if (ROOT / path).exists() else None


def _page_of(path: str) -> str | None:
    """Where a file of the repository is in the site; None if it has no place of its own."""
    for uri, document in OUTSIDE.items():
        if path == document:
            return uri
    if (ROOT / path).is_dir():
        return 'benchmarks/tables.md' if path.startswith('benchmarks/') else None
    return path.removeprefix('docs/') if path.startswith('docs/') else None


# Equations -------------------------------------------------------------------------------------


def _equation(block: str) -> str:
    """A ```math block as a picture in the colour of the text; other blocks stay."""
    if not block.lstrip().startswith('```math'):
        return block
    formula = ' '.join(block.strip().splitlines()[1:-1])
    import matplotlib as mpl
    mpl.use('Agg')
    from matplotlib import mathtext
    from matplotlib.font_manager import FontProperties
    with mpl.rc_context({'mathtext.fontset': 'cm', 'svg.hashsalt': 'depthclip_ros'}):
        drawn = io.BytesIO()
        mathtext.math_to_image(f'${formula}$', drawn, FontProperties(size=15), format='svg',
                               color='#010203')
    svg = drawn.getvalue().decode()
    svg = svg[svg.index('<svg'):].replace('#010203', 'currentColor')
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
    label = formula.replace('&', '&amp;').replace('"', '&quot;').replace('<', '&lt;')
    svg = svg.replace('<svg ', f'<svg role="img" aria-label="{label}" ', 1)
    return '<p class="equation">' + re.sub(r'\s*\n\s*', ' ', svg) + '</p>'


# Generated pages -------------------------------------------------------------------------------


def generated() -> dict[str, str]:
    """Pages that committed results make, by their place in the site; others: generate.py."""
    return {'benchmarks/tables.md': _benchmarks(), 'accuracy.md': _accuracy()}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---'] * len(head), *([cell.replace('|', '\\|') for cell in row]
                                         for row in rows)]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines) + '\n'


def _benchmarks() -> str:
    parts = [('# Benchmarks: all tables\n\nMade from the committed JSON. What the goals were, and '
             'how it was measured: [benchmarks](README.md).\n')]
    results = ROOT / 'benchmarks/results'
    for path in sorted(results.rglob('*.json')):
        if not path.with_suffix('.md').is_file():
            continue
        name = path.relative_to(results).with_suffix('')
        result = json.loads(path.read_text(encoding='utf-8'))
        text = re.sub(r'^#+ .*\n', '', path.with_suffix('.md').read_text('utf-8'), count=1)
        parts.append(f'## {name.parent}: {name.name}\n\n{result["what"]}\n{text}')
    return '\n'.join(parts)


def _accuracy() -> str:
    demo = json.loads(_text('docs/demo_model/evaluation.json'))
    rows = [[name, f'{row["d1"]:.3f}', f'{row["rel"]:.3f}', f'{row["rmse"]:.3f}']
            for name, row in demo['table'].items()]
    parts = [
        ('# Accuracy\n\nEverything here is made from committed results. **None of it is on real '
        "images with OpenAI's weights**: neither can be had where this is built. What the paper "
        'and others measured there: [where DepthCLIP stands]'
        '(evaluation.md#where-depthclip-stands).\n'),
        f'## The demo model on {demo["images"]} rooms that it never saw\n',
        _table(['', 'δ1', 'rel', 'rmse (m)'], rows),
        'What the rows are: [the model card](demo_model.md#numbers).\n',
        '## More\n',
        ("- [Features and read-outs](readouts.md), and the size of the network's input\n"
        '- [Other lenses](focal_length.md#measured)\n'
        '- [Bins by scene](scenes.md)\n'
        '- [Calibrated, anchored, on other robots](robots.md)\n'
        '- [In a costmap](navigation.md#what-a-costmap-makes-of-it-measured)\n'),
    ]
    return '\n'.join(parts)
