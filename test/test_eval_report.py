# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: tables, figures, and a page that needs nothing else."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
from eval_results import HOSTILE, make_sample, write_results
from jinja2 import UndefinedError

from depthclip_ros import document
from depthclip_ros.color import colorize
from depthclip_ros.core import DepthConfig
from depthclip_ros.core.weights import RELEASES
from depthclip_ros.document import Cell, Code, Details, Headline, Picture, Table, Text
from offline_eval import cli, report
from offline_eval.datasets.base import KITTI, NYU, RENDERED
from offline_eval.gate import Experiment, judge
from offline_eval.names import heading, number
from offline_eval.paper import PAPER_CONFIG, PAPER_ROWS
from offline_eval.report import __main__ as command
from offline_eval.report import figures, tables
from offline_eval.report.contents import contents
from offline_eval.report.source import Source
from offline_eval.results import (
    ALL,
    PAPER_METRICS,
    SUMMARY,
    Comparison,
    Interval,
    ResultsError,
    Row,
    Summary,
    write_text,
)

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / 'docs/sample_report'
SIZE = (104, 136)  # a fourth of the paper's, for speed


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A results folder, without a report."""
    path = tmp_path_factory.mktemp('results')
    write_results(path, 6, SIZE)
    return path


@pytest.fixture(scope='module')
def written(folder, tmp_path_factory):
    """The same with its report."""
    pytest.importorskip('matplotlib', reason='matplotlib, which draws the figures, is missing')
    path = tmp_path_factory.mktemp('written') / 'results'
    shutil.copytree(folder, path)
    report.write(path)
    return path


@pytest.fixture(scope='module')
def source(folder):
    return Source.read(folder)


@pytest.fixture
def summary(source):
    return source.summary


def of(source, origin, *, official=False):
    """The same, as if its images were others."""
    data = dataclasses.replace(source.summary.data, origin=origin, official=official)
    return dataclasses.replace(source, summary=dataclasses.replace(source.summary, data=data))


@pytest.fixture
def nyu(source):
    """The same, as if it were of the paper's images."""
    return of(source, NYU, official=True)


class Page(HTMLParser):
    """What is in a page: tables as lists of texts, links, balanced tags."""

    VOID = frozenset({'meta', 'link', 'img', 'br'})

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.tables, self.texts = [], [], [], []
        self.seen = set()
        self._open = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        attributes = dict(attributes)
        assert not any(name.startswith('on') for name in attributes), attributes
        self.links += [attributes[k] for k in ('src', 'href', 'action', 'srcset', 'data')
                       if k in attributes]
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == 'table':
            self.tables.append([])
        if tag == 'tr':
            self.tables[-1].append([])
        if tag in ('td', 'th'):
            self.tables[-1][-1].append('')

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self._open and self._open[-1] in ('td', 'th'):
            self.tables[-1][-1][-1] += data


def all_tables(blocks):
    for block in blocks:
        if isinstance(block, Table):
            yield block
        if isinstance(block, Details):
            yield from all_tables(block.blocks)


def cells(table, name):
    """Texts of the row of that name."""
    return next([c.text for c in row[1:]] for row in table.rows if row[0].text == name)


# The page ------------------------------------------------------------------------------------


def test_page_has_every_row_of_every_table(written, source):
    shown = Page((written / report.HTML).read_text(encoding='utf-8')).tables
    expected = list(all_tables(contents(source, {}, '')))
    assert len(shown) == len(expected) >= 10
    for table, found in zip(expected, shown, strict=True):
        body = [[cell.text for cell in row] for row in table.rows]
        assert [row for row in found if row][-len(body):] == body
        if any(table.header):
            assert found[0] == table.header


def test_every_result_is_in_the_tables(source, summary, nyu):
    """No row of the summary is left out."""
    rows = [row for table in all_tables(contents(source, {}, ''))
            for row in table.rows]
    for row in summary.rows:
        digits = [number(row.metrics[m]) for m in PAPER_METRICS]
        assert any([c.text for c in cells if c.text in digits] == digits for cells in rows), row
    rows = [row for table in all_tables(contents(nyu, {}, '')) for row in table.rows]
    for paper in PAPER_ROWS:
        digits = [number(paper.metrics.get(m)) for m in PAPER_METRICS]
        assert any([c.text for c in cells if c.quiet][1:7] == digits for cells in rows), paper


def test_page_needs_nothing_but_its_folder(written):
    text = (written / report.HTML).read_text(encoding='utf-8')
    parsed = Page(text)
    for link in parsed.links:
        assert link.startswith(('#', 'data:', 'figures/')), link[:80]
    assert "default-src 'none'" in text
    assert not parsed.seen & {'script', 'iframe', 'object', 'embed', 'form', 'base', 'video'}
    style = text.partition('<style>')[2].partition('</style>')[0]
    assert 'url(' not in style
    assert '@import' not in style
    anchors = re.findall(r'href="#([^"]+)"', text)
    assert anchors
    assert all(f'id="{anchor}"' in text for anchor in anchors)


def test_hostile_names_stay_text(written):
    text = (written / report.HTML).read_text(encoding='utf-8')
    assert '<script' not in text
    assert HOSTILE in ''.join(Page(text).texts)
    svg_free = document.to_markdown([Text(HOSTILE)])
    assert '<script' not in svg_free.replace('\\<', '')


CHARTS = {'standing', 'depths', 'distributions'}
PHOTOGRAPHS = {'predictions_1', 'predictions_2', 'responses_best', 'responses_median',
               'responses_worst'}


def test_pictures_are_files_beside_with_alternative_text(written):
    text = (written / report.HTML).read_text(encoding='utf-8')
    pictures = re.findall(r'<img src="(figures/\w+\.(?:svg|png))" width="(\d+)" height="(\d+)" '
                          r'alt="([^"]+)"', text)
    assert len(pictures) == text.count('<img') == 8
    assert all(int(width) > 300 and int(height) > 100 for _, width, height, _ in pictures)
    found = {path.name for path in (written / report.FOLDER / 'figures').iterdir()}
    assert found == {f'{name}.{suffix}' for name in CHARTS for suffix in ('svg', 'pdf')} | {
        f'{name}.png' for name in PHOTOGRAPHS}
    for name in PHOTOGRAPHS:
        assert cv2.imread(str(written / report.FOLDER / f'figures/{name}.png')).std() > 20
    for name in CHARTS:
        file = written / report.FOLDER / f'figures/{name}.pdf'
        assert file.read_bytes().startswith(b'%PDF')
        root = ET.parse(file.with_suffix('.svg')).getroot()
        assert len(list(root.iter('{http://www.w3.org/2000/svg}path'))) > 20
        assert f'figures/{name}.pdf' in text
    markdown = (written / report.MARKDOWN).read_text(encoding='utf-8')
    for file, *_ in pictures:
        assert f']({file})' in markdown


def test_tables_and_figures_are_numbered(written):
    page = (written / report.HTML).read_text(encoding='utf-8')
    for what in ('Table', 'Figure'):
        numbers = [int(n) for n in re.findall(rf'(?:<caption>|<strong>){what} (\d+)\. ', page)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= 8
        markdown = (written / report.MARKDOWN).read_text(encoding='utf-8')
        assert [int(n) for n in re.findall(rf'\*\*{what} (\d+)\. ', markdown)] == numbers


def test_a_report_of_photographs_is_small(written, tmp_path):
    """Three ranks at the paper's size, with noise in every pixel, which no format can pack."""
    sample = make_sample(0)
    noise = np.random.default_rng(0).integers(-12, 13, sample.rgb.shape)
    sample = dataclasses.replace(sample, rgb=(sample.rgb + noise).clip(0, 255).astype(np.uint8))

    def size_of(name, figure):
        picture = figures.save(tmp_path, name, figure, '', '', photo=True)
        return (tmp_path / picture.file).stat().st_size
    with figures.look():
        photographs = 9 * size_of('predictions', figures.predictions([sample])) + 3 * size_of(
            'responses', figures.responses(sample))
    others = sum(path.stat().st_size for path in (written / report.FOLDER).rglob('*')
                 if path.is_file() and path.suffix != '.png')
    assert 1e5 < photographs < 3e6 - others


# Markdown ------------------------------------------------------------------------------------


def test_markdown_tables_are_tables(written):
    lines = (written / report.MARKDOWN).read_text(encoding='utf-8').splitlines()
    rules = [i for i, line in enumerate(lines) if re.fullmatch(r'\|( -+:? \|)+', line)]
    assert len(rules) >= 10
    for rule in rules:
        columns = lines[rule].count('|')
        start = rule - 1
        while start < len(lines) and lines[start].startswith('|'):
            assert len(re.findall(r'(?<!\\)\|', lines[start])) == columns, lines[start]
            start += 1
        assert start > rule + 1


def test_markdown_shows_text_as_it_is():
    assert document._escape_markdown('a|b *c* _d_ <e>\nf') == r'a\|b \*c\* \_d\_ \<e\> f'
    assert document.to_markdown([Code('a ```` *b*\nc')]) == '    a ```` *b*\n    c\n'
    text = document.to_markdown([Table('t', ['', 'x'], [[Cell('a', strong=True),
                                                         Cell('1', quiet=True)]], frozenset({1}))])
    assert text == '**Table 0. t**\n\n|  | x |\n| --- | ---: |\n| **a** | *1* |\n'


# Tables --------------------------------------------------------------------------------------


def test_gate_is_shown_metric_by_metric(summary):
    paper = next(p for p in PAPER_ROWS if (p.table, p.name) == ('1', 'DepthCLIP'))
    row = tables.headline_row(summary)
    near = dict(zip(PAPER_METRICS, (0.005, -0.0051, 0.0, -0.006, 0.0021, 0.01), strict=True))
    close = dataclasses.replace(
        summary, rows=[dataclasses.replace(row, metrics=paper.metrics)],
        gate=dataclasses.replace(summary.gate, differences=near))
    table = tables.reproduction(close)
    assert cells(table, 'within') == ['yes', 'no', 'yes', 'yes', 'no', 'yes']
    assert cells(table, 'difference') == ['+0.005', '−0.005', '±0.000', '−0.006', '+0.002',
                                          '+0.010']
    assert cells(table, 'the paper') == ['0.394', '0.683', '0.851', '0.388', '0.156',
                                                    '1.167']
    assert table.header == ['', 'δ1 ↑', 'δ2 ↑', 'δ3 ↑', 'rel ↓', 'log10 ↓', 'rmse (m) ↓']


@pytest.mark.parametrize('status', ['reproduced', 'not reproduced'])
def test_gate_is_never_silent(source, summary, status):
    judged = dataclasses.replace(summary, gate=dataclasses.replace(summary.gate, status=status))
    blocks = contents(dataclasses.replace(source, summary=judged), {}, '')
    headline = next(b for b in blocks if isinstance(b, Headline))
    assert headline.numbers[-1][1] == status
    assert any(isinstance(b, Text) and f'is {status} in this run' in b.text for b in blocks)


def test_partition_gain_is_the_papers(nyu):
    """The paper's own rows give the paper's last row of Table 2."""
    bathroom, classroom, everything = tables.bin_partitions(nyu.summary)
    assert cells(bathroom, 'the same, paper')[:6] == ['+0.092', '+0.092', '+0.079', '−0.176',
                                                      '−0.034', '−0.177']
    assert 'Class-dependent 3' in cells(bathroom, 'the same, paper')[6]
    # Only the paper's rows: there is no classroom in this run.
    assert 'Class-dependent 4' in cells(classroom, 'best partition’s gain')[-1]
    assert 'No image' in classroom.note
    assert not any('gain' in row[0].text for row in everything.rows)
    assert 'bathroom (6 images, ' in bathroom.title


def test_bold_is_the_best_of_this_run(summary):
    table = tables.prompt_sets(summary)
    best = {column: row[0].text for row in table.rows for column, cell in enumerate(row)
            if cell.strong}
    # Every prompt after the first is a little lower in everything.
    assert best == {1: 'Original prompt', 2: 'Original prompt', 3: 'Original prompt',
                    4: 'Prompt 3', 5: 'Prompt 3', 6: 'Prompt 3'}


def test_verdict_says_only_what_the_interval_allows(summary):
    intervals = {'d1': Interval(0.001, 0.03), 'd2': Interval(-0.01, 0.01),
                 'rel': Interval(-0.03, -0.01), 'rmse': Interval(float('nan'), float('nan'))}
    gains = {'d1': 0.02, 'd2': 0.0, 'rel': -0.02, 'rmse': 0.1}
    row = Row('DepthCLIP', 'method', ALL, {'d1': 0.4, 'd2': 0.7, 'rel': 0.4, 'rmse': 1.0}, 3)
    table = tables.verdict(dataclasses.replace(summary, rows=[row], verdict=dataclasses.replace(
        summary.verdict, comparisons=[Comparison('best constant', gains, intervals)])))
    assert [[c.text for c in row] for row in table.rows] == [
        ['δ1 ↑', '0.400', '0.380', '2.400', '+0.020', '+0.001 … +0.030', 'better'],
        ['δ2 ↑', '0.700', '0.700', '2.400', '±0.000', '−0.010 … +0.010', 'not distinguishable'],
        ['rel ↓', '0.400', '0.380', '2.400', '−0.020', '−0.030 … −0.010', 'worse'],
        ['rmse (m) ↓', '1.000', '1.100', '2.400', '+0.100', '–', '–']]


def test_intervals_are_in_the_tables_of_bins_and_prompts(summary):
    for table in tables.bin_partitions(summary):
        assert '95 % interval' in [row[0].text for row in table.rows]
    bathroom = tables.bin_partitions(summary)[0]
    row = next(r for r in summary.rows if (r.group, r.scene) == ('bins', 'bathroom'))
    low, high = row.interval['d1'].low, row.interval['d1'].high
    assert cells(bathroom, '95 % interval')[0] == f'{number(low)} … {number(high)}'
    assert 'bootstrap 95 % intervals' in bathroom.note


def test_calibrated_rows_stand_beside_published_ones_of_the_same_images_only(source, nyu):
    for given, there in ((nyu.summary, True), (source.summary, False)):
        row = Row('calibrated on 9 images', 'calibrated', ALL, {'d1': 0.41, 'rmse': 1.1}, 9)
        table = tables.beside(dataclasses.replace(given, rows=[*given.rows, row]), 'calibrated',
                              'Calibrations')
        names = [line[0].text for line in table.rows]
        assert names[0] == 'DepthCLIP'
        assert 'calibrated on 9 images' in names
        published = [line for line in table.rows if line[0].quiet]
        assert [line[1].text for line in published] == ['0.428', '0.465', '0.745'] * there
        assert ('Italics' in table.note) == there


# What the numbers are of ---------------------------------------------------------------------


@pytest.mark.parametrize('origin', [RENDERED, KITTI, '', NYU])
def test_no_published_number_stands_beside_other_images(source, nyu, origin):
    """Not even NYU's own, where they are not the official split."""
    def published(blocks):
        quiet = [c for table in all_tables(blocks) for row in table.rows for c in row if c.quiet]
        remarks = [b.numbers[0][2] for b in blocks if isinstance(b, Headline)]
        return [*quiet, *filter(None, remarks)]
    assert published(contents(nyu, {}, ''))
    blocks = contents(of(source, origin), {}, '')
    assert not published(blocks)
    for write in (document.to_html, document.to_markdown, document.to_latex):
        text = write(document.numbered(blocks))
        assert 'DORN' not in text
        assert 'no published number is comparable' in text


@pytest.mark.parametrize('origin', [RENDERED, KITTI, '', NYU])
def test_the_title_names_weights_and_world(source, origin):
    title = contents(of(source, origin), {}, '')[0].text
    world = origin or 'images of unknown origin'
    assert title == f'DepthCLIP with the weights invented on {world}'


@pytest.mark.parametrize(('origin', 'judged'), [(RENDERED, False), (KITTI, False), (NYU, True),
                                                ('', True)])
def test_the_paper_s_row_is_judged_where_the_images_may_be_its_own(source, tmp_path, capsys,
                                                                   origin, judged):
    changed = of(source, origin)
    text = document.to_markdown(document.numbered(contents(changed, {}, '')))
    assert ('reproduced' in text) == judged
    write_text(tmp_path / SUMMARY, changed.summary.to_json())
    cli._print(tmp_path)
    shown = capsys.readouterr().out
    assert ("The paper's row: not reproduced" in shown) == judged
    assert 'published' not in shown
    assert (origin or 'unknown origin') in shown


def test_the_command_line_shows_published_rows_beside_the_paper_s_images(nyu, tmp_path, capsys):
    write_text(tmp_path / SUMMARY, nyu.summary.to_json())
    cli._print(tmp_path)
    assert 'DepthCLIP (published)                       0.394' in capsys.readouterr().out


def test_the_paper_s_words_with_other_settings_are_said_to_be_that(summary):
    changed = dataclasses.replace(summary, config=PAPER_CONFIG.replace(
        temperature=6.0, tokens=['near', 'far'], bins=[1.0, 2.0]).to_dict())
    for table in (*tables.bin_partitions(changed), tables.prompt_sets(changed)):
        assert table.note.endswith('settings are this run’s: temperature 6.0, in the paper 0.1.')
    paper = dataclasses.replace(summary, config=PAPER_CONFIG.to_dict())
    assert 'settings' not in tables.prompt_sets(paper).note


def test_symbols_are_the_same_everywhere():
    reasons = judge(dict.fromkeys(PAPER_METRICS, 0.25), Experiment(
        PAPER_CONFIG, 'RN50', 'float32', 'RN50', RELEASES['RN50'].sha256, True, 654, 'depthclip',
        'image')).reasons
    assert reasons[0] == 'δ1 is 0.250, in the paper 0.394: −0.144, limit 0.005'


# LaTeX ---------------------------------------------------------------------------------------


def test_latex_parses_and_its_tables_are_whole(written):
    """By a parser: it knows which braces and environments are open, and needs no TeX."""
    walker = pytest.importorskip('pylatexenc.latexwalker', reason='pylatexenc is not installed')
    text = (written / report.LATEX).read_text(encoding='utf-8')
    assert not set(text) - {chr(c) for c in range(0x20, 0x180)} - {'\n'}
    nodes, *_ = walker.LatexWalker(text, tolerant_parsing=False).get_latex_nodes()

    def environments(nodes):
        for node in nodes or ():
            if node.isNodeType(walker.LatexEnvironmentNode):
                yield node
            yield from environments(getattr(node, 'nodelist', None))
    found = list(environments(nodes))
    names = [node.environmentname for node in found]
    assert names.count('figure') == 8
    assert names.count('table') >= 10
    for node in found:
        if node.environmentname not in ('tabular', 'tabularx'):
            continue
        body = node.latex_verbatim()
        columns = len(re.search(r'\{([lrX]+)\}\n', body)[1])
        lines = [line for line in body.splitlines()
                 if not re.match(r' *\\(toprule|midrule|bottomrule|begin|end)', line)]
        assert len(lines) > 1
        for line in lines:
            assert line.endswith(r' \\'), line
            assert len(re.findall(r'(?<!\\)&', line)) == columns - 1, line
        assert body.count(r'\toprule') == body.count(r'\bottomrule') == 1
    for file in re.findall(r'\\includegraphics\[.*\]\{(.*)\}', text):
        assert (written / report.FOLDER / file).is_file()


def test_latex_shows_text_as_it_is():
    assert document._escape_latex('50 % of a_b & {c} #1 $2 ~^\\') == (
        r'50 \% of a\_b \& \{c\} \#1 \$2 \textasciitilde{}\textasciicircum{}'
        r'\textbackslash{}')
    # After a row's end, a bracket would be the height of the gap to the next.
    assert document._escape_latex('[a]') == '{[}a]'
    assert document._escape_latex('δ1 − ± 远') == r'$\delta_1$ $-$ $\pm$ {[}U+8FDC]'


def test_numbers():
    assert [number(v) for v in (0.3944, -0.0001, None, float('nan'), float('inf'))] == [
        '0.394', '0.000', '–', '–', '–']
    assert [number(v, signed=True) for v in (0.1, -0.1, 0.0002)] == ['+0.100', '−0.100', '±0.000']
    assert heading('silog') == 'SILog (%) ↓'


# Figures -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def sample():
    return make_sample(1, 'median', SIZE)


def with_truth(sample, truth):
    return dataclasses.replace(sample, ground_truth=np.asarray(truth, np.float32))


def test_patches_are_at_quantiles_of_the_true_depth(sample):
    ranks = np.arange(221.0).reshape(13, 17)
    truth = np.repeat(np.repeat(1 + ranks / 100, 8, 0), 8, 1)
    patches = figures.choose_patches(with_truth(sample, truth))
    assert [p.row * 17 + p.column for p in patches] == [11, 77, 143, 209]
    assert [p.ground_truth for p in patches] == pytest.approx([1.11, 1.77, 2.43, 3.09])


def test_patches_without_truth_are_not_chosen(sample):
    truth = np.full(SIZE, np.nan)
    assert figures.choose_patches(with_truth(sample, truth)) == []
    truth[:8, :3] = 2.0  # less than half of the first patch
    truth[8:16, 8:16] = np.linspace(3, 4, 64).reshape(8, 8)
    truth[8:11, 8:16] = np.nan
    only = figures.choose_patches(with_truth(sample, truth))
    assert [(p.row, p.column) for p in only] == [(1, 1)]
    assert only[0].ground_truth == pytest.approx(np.nanmedian(truth[8:16, 8:16]), abs=1e-6)


@pytest.mark.parametrize('words', ['demo', 33, 'long'])
def test_labels_lie_beside_the_photograph(sample, words):
    """The demo's own ten, many, and long ones."""
    pytest.importorskip('matplotlib', reason='matplotlib is missing')
    tokens = {'demo': DepthConfig.from_yaml(ROOT / 'config/demo.yaml').tokens,
              33: [f'about {n} metres from here' for n in range(33)],
              'long': ['a very long description of how far away something may be ' * 2] * 7}[words]
    count = len(tokens)
    weights = np.full((count, 13, 17), 1 / count, np.float32)
    with figures.look():
        figure = figures.responses(dataclasses.replace(
            sample, tokens=list(tokens), bins=[1.0] * count, weights=weights))
        figure.draw_without_rendering()
        photograph, *charts = [axes.get_tightbbox() for axes in figure.axes]
    assert len(charts) == 4
    for left, right in zip([photograph, *charts], charts, strict=False):
        assert left.x1 <= right.x0 + 1
    assert photograph.x0 >= 0
    assert charts[-1].x1 <= figure.bbox.x1
    assert all(0 <= box.y0 < box.y1 <= figure.bbox.y1 + 1 for box in [photograph, *charts])
    assert all(axes.get_window_extent().width > 40 for axes in figure.axes)


def test_bars_of_a_flip_average_are_said_to_be_the_plain_pass(sample):
    assert 'mirrored pass' in figures.responses_caption(sample)
    plain = np.tensordot(np.array(sample.bins), sample.weights, 1).astype(np.float32)
    assert 'mirrored pass' not in figures.responses_caption(dataclasses.replace(
        sample, patch_depth=plain))


def test_colours_are_the_nodes_and_grey_without_truth():
    depth = np.array([[1.0, 2.0, np.nan]], np.float32)
    painted = figures.paint_depth(depth, 1.0, 3.0)
    assert (painted[:, :2] == colorize(depth[:, :2], 1.0, 3.0)[:, :, ::-1]).all()
    assert tuple(painted[0, 2]) == figures.NO_TRUTH


def test_error_is_red_where_too_far():
    pytest.importorskip('matplotlib', reason='matplotlib is missing')
    red, white, blue, grey = figures.paint_error(
        np.array([[1.0, 0.0, -1.0, np.nan]], np.float32), 1.0)[0].astype(int)
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert white.min() > 240
    assert tuple(grey) == figures.NO_TRUTH


def test_nothing_is_cut_off_a_colour_scale_without_an_arrow(sample):
    truth = np.full(SIZE, 2.0, np.float32)
    truth[0, 0] = 9.0  # an outlier
    low, high = figures.depth_limits(with_truth(sample, truth))
    assert low <= sample.depth.min()
    assert high >= sample.depth.max()
    assert high < 9.0
    assert figures.beyond(truth, low, high) == 'max'
    assert figures.beyond(sample.depth, low, high) == 'neither'
    nothing = dataclasses.replace(sample, ground_truth=np.full(SIZE, np.nan, np.float32))
    assert figures.depth_limits(nothing)[0] <= sample.depth.min()


def test_density_is_per_metre():
    edges = np.array([0.0, 0.5, 1.0, 3.0])
    values = figures.density(edges, [10, 30, 60])
    assert (values * np.diff(edges)).sum() == pytest.approx(1)
    assert values.tolist() == pytest.approx([0.2, 0.6, 0.3])
    assert figures.quantile(edges, values, 0.4) == pytest.approx(1.0)
    assert figures.quantile(edges, values, 0.7) == pytest.approx(2.0)


# What may be missing -------------------------------------------------------------------------


def test_without_matplotlib_the_tables_are_there_and_the_remedy_too(folder, tmp_path, monkeypatch,
                                                                   caplog):
    for name in [n for n in sys.modules if n.partition('.')[0] == 'matplotlib']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    shutil.copytree(folder, tmp_path / 'r')
    report.write(tmp_path / 'r')
    for file in (report.HTML, report.MARKDOWN):
        text = (tmp_path / 'r' / file).read_text(encoding='utf-8')
        assert 'pip install matplotlib' in text
        assert 'Class-dependent 4' in text
    assert '<img' not in (tmp_path / 'r' / report.HTML).read_text(encoding='utf-8')
    assert not (tmp_path / 'r' / report.FOLDER / 'figures').exists()
    assert 'matplotlib' in caplog.text


@pytest.fixture
def alone(summary, tmp_path):
    """Folder of a summary alone: neither samples nor histograms, no classes, no tables 2 and 3."""
    pytest.importorskip('matplotlib', reason='matplotlib, which draws the figures, is missing')
    few = [r for r in summary.rows if r.group in ('method', 'baseline') and r.scene == ALL]
    write_text(tmp_path / SUMMARY, dataclasses.replace(
        summary, rows=few, tables=['1'], best=[], median=[], worst=[]).to_json())
    return tmp_path


def test_report_of_a_summary_alone_the_same_from_the_command_line(alone, capsys, monkeypatch):
    report.write(alone)
    text = (alone / report.HTML).read_text(encoding='utf-8')
    assert text.count('<img') == 1
    assert 'Depth bins' not in text
    files = [path for path in (alone / report.FOLDER).rglob('*') if path.is_file()]
    assert {path.suffix for path in files} == {'.html', '.md', '.tex', '.svg', '.pdf'}
    before = {path: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    monkeypatch.setenv('SOURCE_DATE_EPOCH', '0')  # what matplotlib takes for the time of day
    assert command.main([str(alone)]) == 0
    assert {path: path.read_bytes() for path in files} == before
    assert capsys.readouterr().out.split() == [
        str(alone / file) for file in (report.HTML, report.MARKDOWN, report.LATEX)]


def test_random_weights_are_called_meaningless(source, summary):
    texts = [b.text for b in contents(source, {}, '') if isinstance(b, Text)]
    assert any('meaningless' in text for text in texts)
    trained = dataclasses.replace(
        summary, weights=dataclasses.replace(summary.weights, trained=True))
    texts = [b.text for b in contents(dataclasses.replace(source, summary=trained), {},
                                               '') if isinstance(b, Text)]
    assert not any('meaningless' in text for text in texts)
    assert summary.data.warnings[0] in texts


def test_folder_without_results(tmp_path, capsys):
    with pytest.raises(ResultsError, match='finished evaluation'):
        report.write(tmp_path)
    assert command.main([str(tmp_path)]) == 1
    assert 'error: ' in capsys.readouterr().err


@pytest.mark.parametrize('file', ['samples/00000.npz', 'depth_histograms.json'])
def test_damaged_file_is_named(folder, tmp_path, file):
    shutil.copytree(folder, tmp_path / 'r')
    victim = tmp_path / 'r' / file
    if not victim.exists():
        victim = next(victim.parent.glob('*.npz'))
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(ResultsError, match=victim.name):
        report.write(tmp_path / 'r')


def test_summary_survives_its_file(folder, summary):
    assert Summary.read(folder).to_json() == summary.to_json()


def test_unknown_blocks_are_an_error():
    for write in (document.to_html, document.to_markdown, document.to_latex):
        with pytest.raises(UndefinedError, match='unknown'):
            write([object()])
    picture = Picture('t', 'c', 'figures/x.svg', 'figures/x.pdf', (6.9, 2.0))
    assert '![t](figures/x.svg)' in document.to_markdown([picture])
    assert r'{figures/x.pdf}' in document.to_latex([picture])
