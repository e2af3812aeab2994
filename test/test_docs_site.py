# SPDX-License-Identifier: Apache-2.0
"""The documents as a site: built without a warning, complete, and without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip('material', reason='the extra [docs] is not installed')

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.nightly


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Folder of the built site; a warning, such as of a link that leads nowhere, is an error."""
    folder = tmp_path_factory.mktemp('site')
    built = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', folder],
        cwd=ROOT, check=False, capture_output=True, text=True,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1', 'PYTHONDONTWRITEBYTECODE': '1',
             'COVERAGE_PROCESS_CONFIG': ''})
    assert built.returncode == 0, built.stderr
    assert 'WARNING' not in built.stderr
    return folder


class Loaded(HTMLParser):
    """What a browser loads with a page."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ('script', 'img', 'iframe', 'source'):
            self.addresses.append(attrs.get('src') or '')
        if tag == 'link' and attrs.get('rel') in ('stylesheet', 'icon', 'preload', 'preconnect'):
            self.addresses.append(attrs['href'])


def test_nothing_comes_from_the_network(site):
    pages = [page for page in site.rglob('*.html') if page.name != 'sample_report.html']
    assert len(pages) > 25
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding='utf-8'))
        assert loaded.addresses
        for address in loaded.addresses:
            assert not re.match(r'(https?:)?//', address), (page, address)
            target = page.parent / address.partition('?')[0].partition('#')[0]
            # Of the page for addresses that do not exist, nobody knows where it is shown.
            assert not address or page.name == '404.html' or target.exists(), (page, address)
    for style in site.rglob('*.css'):
        assert not re.search(r'(url\(|@import )["\']?(https?:)?//', style.read_text())


def test_equations_are_drawn_and_the_reference_is_there(site):
    page = (site / 'method.html').read_text(encoding='utf-8')
    assert page.count('class="equation"') == 7
    assert '```' not in page
    for name in ('similarity_logits', 'bin_weights', 'combine_bins'):
        assert f'reference/api.html#{name}"' in page
        assert f'id="{name}"' in (site / 'reference/api.html').read_text(encoding='utf-8')
