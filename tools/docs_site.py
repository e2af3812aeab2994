# SPDX-License-Identifier: Apache-2.0
"""Hooks of mkdocs (mkdocs.yml): links that hold, and equations.

The documents are written to be read in the repository, so README.md and others lie outside of
docs/ and link to code. Here they become pages, and what they link to comes along under files/.
Equations are ```math blocks, which hosting sites draw; here matplotlib does, without a network.
"""

from __future__ import annotations

import io
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Documents outside of docs/, and where they are in the site.
OUTSIDE = {'index.md': 'README.md', **{name: name for name in (
    'benchmarks/README.md', 'CONTRIBUTING.md', 'SECURITY.md')}}
LINK = re.compile(r'(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))')
FENCE = re.compile(r'^( *)```.*?^\1```', re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents outside, and every file of the repository that a document links to."""
    for uri, path in OUTSIDE.items():
        files.append(File.generated(
            config, uri, content=(ROOT / path).read_text(encoding='utf-8')))
    for file in list(files.documentation_pages()):
        for _, target, _ in LINK.findall(FENCE.sub('', file.content_string)):
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
    return path.removeprefix('docs/') if path.startswith('docs/') else None


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
