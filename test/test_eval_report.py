# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: tables, figures, and a page that needs nothing else."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
from eval_results import HOSTILE, make_results, make_sample
from msgspec import structs

from depthclip_ros import document, figures
from depthclip_ros.core import DepthConfig
from depthclip_ros.document import Quiet, Strong, Table, Text
from offline_eval import cli, report
from offline_eval.datasets.base import KITTI, NYU, RENDERED
from offline_eval.errors import ResultsError
from offline_eval.metrics import PAPER_METRICS, heading, number
from offline_eval.paper import PAPER_ROWS
from offline_eval.report import __main__ as command
from offline_eval.report import contents
from offline_eval.results import ALL, SUMMARY, Comparison, Interval, Results, Row, load, save

ROOT = Path(__file__).resolve().parents[1]
SIZE = (104, 136)  # a fourth of the paper's, for speed


@pytest.fixture(scope='module')
def source():
    return make_results(6, SIZE)


@pytest.fixture(scope='module')
def written(source, tmp_path_factory):
    """Folder of the report."""
    path = tmp_path_factory.mktemp('written')
    report.write(path, source)
    return path / report.FOLDER


@pytest.fixture
def html(written):
    return (written / 'report.html').read_text(encoding='utf-8')


@pytest.fixture
def markdown(written):
    return (written / 'report.md').read_text(encoding='utf-8')


@pytest.fixture
def summary(source):
    return source.summary


def changed(source, **changes):
    """The same with another summary."""
    return Results(structs.replace(source.summary, **changes), source.samples)


def of(source, origin, *, official=False):
    """The same, as if its images were others."""
    return changed(source, data=structs.replace(
        source.summary.data, origin=origin, official=official))


@pytest.fixture
def nyu(source):
    """The same, as if it were of the paper's images."""
    return of(source, NYU, official=True)


class Cell(str):  # noqa: SLOT000
    """Text of a cell, and how it looks."""

    looks = frozenset()


class Page(HTMLParser):
    """What is in a page: tables by their captions, texts, links, balanced tags."""

    VOID = frozenset({'meta', 'link', 'img', 'br'})

    def __init__(self, text):
        super().__init__()
        self.links, self.tables, self.texts, self.notes = [], {}, [], {}
        self.seen = set()
        self._open, self._rows = [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        attributes = dict(attributes)
        assert not any(name.startswith('on') for name in attributes), attributes
        self.links += [attributes[k] for k in ('src', 'href', 'action', 'srcset', 'data')
                       if k in attributes]
        if tag not in self.VOID:
            self._open.append((tag, attributes.get('class', '').split()))
        if tag == 'table':
            self._rows = self.tables[f'{len(self.tables)}'] = []
        if tag == 'tr':
            self._rows.append([])
        if tag in ('td', 'th'):
            self._put('')

    def _put(self, text):
        cell = Cell(text)
        cell.looks = frozenset(self._open[-1][1])
        self._rows[-1].append(cell)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append(data)
        tag, looks = self._open[-1] if self._open else ('', [])
        if tag in ('td', 'th'):
            self._put(self._rows[-1].pop() + data)
        if tag == 'caption':
            title = data.partition('. ')[2]
            self._rows = self.tables[title] = self.tables.pop(list(self.tables)[-1])
        if 'note' in looks:
            self.notes[list(self.tables)[-1]] = data

    @property
    def text(self):
        return ' '.join(self.texts)

    def title(self, start):
        """The one title that starts so."""
        found, = (title for title in self.tables if title.startswith(start))
        return found

    def table(self, start):
        """Header and rows of the table whose title starts so."""
        return self.tables[self.title(start)]

    def row(self, start, name):
        """Cells of the row of that name."""
        return next(row[1:] for row in self.table(start) if row[0] == name)


def shown(source):
    """The page without its figures."""
    return Page(document.to_html(contents(source, {})))


# The page ------------------------------------------------------------------------------------


def test_every_result_is_in_the_tables(source, nyu):
    """No row of the summary is left out, nor of the paper where the images are its own."""
    def digits(metrics):
        return [number(metrics.get(m)) for m in PAPER_METRICS]
    for given in (source, nyu):
        page = shown(given)
        rows = [row for table in page.tables.values() for row in table]
        assert len(page.tables) >= 10
        for row in source.summary.rows:
            assert any([c for c in cells if c in digits(row.metrics)] == digits(row.metrics)
                       for cells in rows), row
    for paper in PAPER_ROWS:
        assert any([c for c in cells if 'quiet' in c.looks][1:7] == digits(paper.metrics)
                   for cells in rows), paper


def test_page_needs_nothing_but_its_folder(html):
    parsed = Page(html)
    for link in parsed.links:
        assert link.startswith(('#', 'data:', 'figures/')), link[:80]
    assert "default-src 'none'" in html
    assert not parsed.seen & {'script', 'iframe', 'object', 'embed', 'form', 'base', 'video'}
    style = html.partition('<style>')[2].partition('</style>')[0]
    assert 'url(' not in style
    assert '@import' not in style
    anchors = re.findall(r'href="#([^"]+)"', html)
    assert anchors
    assert all(f'id="{anchor}"' in html for anchor in anchors)


def test_hostile_names_stay_text(html, markdown):
    assert '<script' not in html
    assert HOSTILE in ''.join(Page(html).texts)
    assert '<script' not in markdown.replace('\\<', '')


PICTURES = {'depths.svg', 'distributions.svg', 'predictions_1.png',
            'predictions_2.png', 'responses_best.png', 'responses_median.png',
            'responses_worst.png'}


def test_pictures_are_files_beside_with_alternative_text(written, html, markdown):
    pictures = re.findall(r'<img src="figures/(\w+\.(?:svg|png))" width="(\d+)" height="(\d+)" '
                          r'alt="([^"]+)"', html)
    assert len(pictures) == html.count('<img') == 7
    assert all(int(width) > 300 and int(height) > 100 for _, width, height, _ in pictures)
    assert {path.name for path in (written / 'figures').iterdir()} == {p[0] for p in pictures}
    assert {picture[0] for picture in pictures} == PICTURES
    for name in PICTURES:
        path = written / 'figures' / name
        assert f'](figures/{name})' in markdown
        if path.suffix == '.png':
            assert cv2.imread(str(path)).std() > 20
        else:
            root = ET.parse(path).getroot()
            assert len(list(root.iter('{http://www.w3.org/2000/svg}path'))) > 20


def test_tables_and_figures_are_numbered(html, markdown):
    for what in ('Table', 'Figure'):
        numbers = [int(n) for n in re.findall(rf'(?:<caption>|<strong>){what} (\d+)\. ', html)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= 7
        assert [int(n) for n in re.findall(rf'\*\*{what} (\d+)\. ', markdown)] == numbers


# Markdown ------------------------------------------------------------------------------------


def test_markdown_tables_are_those_of_the_page(html, markdown):
    plain = re.sub(r'\\\|', '¦', markdown)
    tables = [[[re.sub(r'\\(.)|\*', r'\1', cell.strip()) for cell in line.split('|')[1:-1]]
               for line in table.splitlines() if not re.fullmatch(r'\|( -+:? \|)+', line)]
              for table in re.findall(r'(?:^\|.*\n)+', plain, re.MULTILINE)]
    expected = [[[cell.replace('|', '¦') for cell in row] for row in table]
                for table in Page(html).tables.values()]
    assert len(tables) >= 10
    for table, rows in zip(tables, expected, strict=True):
        assert table[-len(rows):] == rows


def test_markdown_shows_text_as_it_is():
    table = Table(['', 'x'], [[Strong('a'), Quiet('1')], ['b|c', '*d*']], 't')
    assert document.to_markdown([Text('a|b *c* _d_ <e>\nf'), table]) == (
        'a\\|b \\*c\\* \\_d\\_ \\<e\\> f\n\n**Table 1. t**\n\n'
        '|  | x |\n| --- | ---: |\n| **a** | *1* |\n| b\\|c | \\*d\\* |\n')


def test_a_terminal_shows_plain_columns():
    table = Table(['name', 'rmse [m]'], [['a_b', '1.0'], [Strong('word'), '12.25']])
    assert document.to_terminal([document.Heading('H', 1), Text('a_b*', warning=True), table]) == (
        'H\n=\n\nWarning: a_b*\n\nname  rmse [m]\na_b        1.0\nword     12.25\n')


# Tables --------------------------------------------------------------------------------------


def test_gate_is_shown_metric_by_metric(nyu, summary):
    paper = next(p for p in PAPER_ROWS if (p.group, p.name) == ('1', 'DepthCLIP'))
    near = dict(zip(PAPER_METRICS, (0.005, -0.0051, 0.0, -0.006, 0.0021, 0.01), strict=True))
    page = shown(changed(
        nyu, rows=[structs.replace(summary.row('DepthCLIP'), metrics=paper.metrics)],
        gate=structs.replace(summary.gate, differences=near)))
    name = 'The method beside the paper’s Table 1'
    assert page.row(name, 'within') == ['yes', 'no', 'yes', 'yes', 'no', 'yes']
    assert page.row(name, 'difference') == ['+0.005', '−0.005', '±0.000', '−0.006', '+0.002',
                                            '+0.010']
    assert page.row(name, 'the paper') == ['0.394', '0.683', '0.851', '0.388', '0.156', '1.167']
    assert page.table(name)[0] == ['', 'δ1 ↑', 'δ2 ↑', 'δ3 ↑', 'rel ↓', 'log10 ↓', 'rmse (m) ↓']


def test_partition_gain_is_the_papers(nyu):
    """The paper's own rows give the paper's last row of Table 2."""
    page, (bathroom, classroom, everything) = shown(nyu), (
        f'Depth bins, {scene}' for scene in ('bathroom', 'classroom', 'all classes'))
    gain = page.row(bathroom, 'the same, paper')
    assert gain[:6] == ['+0.092', '+0.092', '+0.079', '−0.176', '−0.034', '−0.177']
    assert 'Class-dependent 3' in gain[6]
    # Only the paper's rows: there is no classroom in this run.
    assert 'Class-dependent 4' in page.row(classroom, 'best partition’s gain')[-1]
    assert 'No image' in page.notes[page.title(classroom)]
    assert not any('gain' in row[0] for row in page.table(everything) if row)
    assert 'bathroom (6 images, ' in page.title(bathroom)


def test_bold_is_the_best_of_this_run(source):
    best = {column: row[0] for row in shown(source).table('Prompts, all classes') for
            column, cell in enumerate(row) if 'strong' in cell.looks}
    # Every prompt after the first is a little lower in everything.
    assert best == {1: 'Original prompt', 2: 'Original prompt', 3: 'Original prompt',
                    4: 'Prompt 3', 5: 'Prompt 3', 6: 'Prompt 3'}


def test_verdict_says_only_what_the_interval_allows(source, summary):
    intervals = {'d1': Interval(0.001, 0.03), 'd2': Interval(-0.01, 0.01),
                 'rel': Interval(-0.03, -0.01), 'rmse': Interval(float('nan'), float('nan'))}
    gains = {'d1': 0.02, 'd2': 0.0, 'rel': -0.02, 'rmse': 0.1}
    row = Row('DepthCLIP', 'method', ALL, {'d1': 0.4, 'd2': 0.7, 'rel': 0.4, 'rmse': 1.0}, 3)
    page = shown(changed(source, rows=[row], verdict=structs.replace(
        summary.verdict, comparisons=[Comparison('best constant', gains, intervals)])))
    assert page.table('The method against the best constant depth')[1:] == [
        ['δ1 ↑', '0.400', '0.380', '2.400', '+0.020', '+0.001 … +0.030', 'better'],
        ['δ2 ↑', '0.700', '0.700', '2.400', '±0.000', '−0.010 … +0.010', 'not distinguishable'],
        ['rel ↓', '0.400', '0.380', '2.400', '−0.020', '−0.030 … −0.010', 'worse'],
        ['rmse (m) ↓', '1.000', '1.100', '2.400', '+0.100', '–', '–']]


def test_calibrated_rows_stand_beside_published_ones_of_the_same_images_only(source, nyu):
    row = Row('calibrated on 9 images', 'calibrated', ALL, {'d1': 0.41, 'rmse': 1.1}, 9)
    for given, there in ((nyu, True), (source, False)):
        page = shown(changed(given, rows=[*given.summary.rows, row]))
        title = page.title('The method with calibrations')
        names = [line[0] for line in page.table(title)[1:]]
        assert names[0] == 'DepthCLIP'
        assert 'calibrated on 9 images' in names
        assert [line[1] for line in page.table(title) if 'quiet' in line[0].looks] == [
            '0.428', '0.465', '0.745'] * there
        assert ('Italics' in page.notes[title]) == there


# What the numbers are of ---------------------------------------------------------------------


@pytest.mark.parametrize('origin', [RENDERED, KITTI, '', NYU])
def test_no_published_number_stands_beside_other_images(source, nyu, origin):
    """Not even NYU's own, where they are not the official split; the title names the world."""
    def published(page):
        cells = [cell for table in page.tables.values() for row in table for cell in row]
        return [*(cell for cell in cells if 'quiet' in cell.looks),
                *(text for text in page.texts if text.startswith('paper '))]
    assert published(shown(nyu))
    page = shown(of(source, origin))
    assert not published(page)
    blocks = contents(of(source, origin), {})
    for text in (page.text, document.to_markdown(blocks)):
        assert 'DORN' not in text
        assert 'no published number is comparable' in text
        world = origin or 'images of unknown origin'
        assert f'DepthCLIP with the weights invented on {world}' in text


@pytest.mark.parametrize(('origin', 'judged'), [(RENDERED, False), (KITTI, False), (NYU, True),
                                                ('', True)])
def test_the_paper_s_row_is_judged_where_the_images_may_be_its_own(source, origin, judged):
    other = of(source, origin)
    assert ('reproduced' in shown(other).text) == judged
    said = cli.answer(other.summary)
    assert ("The paper's row: not reproduced" in said) == judged
    assert 'published' not in said
    assert (origin or 'unknown origin') in said


def test_the_command_line_shows_published_rows_beside_the_paper_s_images(nyu):
    assert 'DepthCLIP (published)                       0.394' in cli.answer(nyu.summary)


# LaTeX ---------------------------------------------------------------------------------------


def test_latex_is_the_table_of_a_paper(written, html, nyu, tmp_path):
    """Of the method, beside baselines, or beside the published rows of the same images."""
    text = (written / 'report.tex').read_text(encoding='utf-8')
    assert 'meaningless' in text
    rows = [line.removesuffix(r' \\').split(' & ') for line in text.splitlines()
            if line.endswith(r' \\')]
    table = Page(html).table('Baselines on the same pixels')
    plain = [[re.sub(r'\\textbf\{(.*)\}', r'\1', cell) for cell in row] for row in rows]
    assert [row[1:] for row in plain[1:]] == [
        [cell.replace('−', '$-$').replace('–', '--') for cell in row[1:7]] for row in table[1:]]
    report.write(tmp_path, nyu)
    text = (tmp_path / report.LATEX).read_text(encoding='utf-8')
    assert r'\textit{DORN}' in text
    walker = pytest.importorskip('pylatexenc.latexwalker', reason='pylatexenc is not installed')
    nodes, *_ = walker.LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    assert [n.environmentname for n in nodes
            if n.isNodeType(walker.LatexEnvironmentNode)] == ['table']


def test_latex_shows_text_as_it_is():
    text = document.to_latex(Table(['x'], [
        ['50 % of a_b & {c} #1 $2 ~'], ['\\'], ['[a]'], ['δ1 − ± 远'], [Strong('b')]], 't'))
    for line in (r'50 \% of a\_b \& \{c\} \#1 \$2 \textasciitilde{} \\', r'\textbackslash{} \\',
                 r'{[}a] \\',  # after a row's end, a bracket would be the height of the gap
                 r'$\delta$1 $-$ $\pm$ {[}U+8FDC] \\', r'\textbf{b} \\'):
        assert line in text.splitlines()


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
    return structs.replace(sample, truth=np.asarray(truth, np.float32))


def test_patches_are_at_quantiles_of_the_true_depth(sample):
    ranks = np.arange(221.0).reshape(13, 17)
    truths = figures.patch_truth(with_truth(
        sample, np.repeat(np.repeat(1 + ranks / 100, 8, 0), 8, 1)))
    places = figures.at_quantiles(truths)
    assert [row * 17 + column for row, column in places] == [11, 77, 143, 209]
    assert [truths[place] for place in places] == pytest.approx([1.11, 1.77, 2.43, 3.09])


def test_patches_without_truth_are_not_chosen(sample):
    truth = np.full(SIZE, np.nan)
    assert figures.at_quantiles(figures.patch_truth(with_truth(sample, truth))) == []
    truth[:8, :3] = 2.0  # less than half of the first patch
    truth[8:16, 8:16] = np.linspace(3, 4, 64).reshape(8, 8)
    truth[8:11, 8:16] = np.nan
    truths = figures.patch_truth(with_truth(sample, truth))
    assert figures.at_quantiles(truths) == [(1, 1)]
    assert truths[1, 1] == pytest.approx(np.nanmedian(truth[8:16, 8:16]), abs=1e-6)


@pytest.mark.parametrize('words', ['demo', 33, 'long'])
def test_nothing_of_a_figure_lies_on_another_part(sample, words):
    """With the demo's own ten words, many, and long ones."""
    tokens = {'demo': DepthConfig.from_yaml(ROOT / 'config/demo.yaml').tokens,
              33: [f'about {n} metres from here' for n in range(33)],
              'long': ['a very long description of how far away something may be ' * 2] * 7}[words]
    count = len(tokens)
    weights = np.full((count, 13, 17), 1 / count, np.float32)
    with figures.look():
        figure = figures.responses(structs.replace(
            sample, tokens=list(tokens), bins=[1.0] * count, weights=weights), sample.name,
            figures.spots_of(sample))
        figure.draw_without_rendering()
        photograph, depth, *charts = [axes.get_tightbbox() for axes in (
            *figure.subfigs[0].axes[:2], *figure.subfigs[1].axes)]
    assert len(charts) == 4
    assert photograph.x1 <= depth.x0 + 1
    for left, right in pairwise(charts):
        assert left.x1 <= right.x0 + 1
    for box in charts:
        assert 0 <= box.y0 < box.y1 <= photograph.y0 + 1
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert box.width > 40


def test_error_is_red_where_too_far(sample):
    """And grey where there is no truth."""
    height, width = SIZE
    truth = np.array(sample.depth)
    truth[:, :width // 2] -= 0.5
    truth[:, width // 2:] += 0.5
    truth[:height // 2] = np.nan
    with figures.look():
        axes = figures.predictions([with_truth(sample, truth)], {}).subfigs[0].axes[3]
        image, = axes.images
        far, near, grey = (image.to_rgba(image.get_array())[row, column] for row, column in (
            (-1, 0), (-1, -1), (0, 0)))
    assert far[0] > far[2] + 0.2
    assert near[2] > near[0] + 0.2
    assert len(set(grey[:3])) == 1


def test_nothing_is_cut_off_a_colour_scale_without_an_arrow(sample):
    truth = np.full(SIZE, 2.0, np.float32)
    truth[0, 0] = 9.0  # an outlier
    low, high = figures.depth_limits(with_truth(sample, truth))
    assert low <= sample.depth.min()
    assert high >= sample.depth.max()
    assert high < 9.0
    nothing = structs.replace(sample, truth=np.full(SIZE, np.nan, np.float32))
    assert figures.depth_limits(nothing)[0] <= sample.depth.min()


# What may be missing -------------------------------------------------------------------------


def test_the_report_of_a_folder_the_same_from_the_command_line(source, tmp_path, capsys,
                                                               monkeypatch):
    """Of a summary alone: no samples, no classes, no tables 2 and 3."""
    rows = [r for r in source.summary.rows if r.group in ('method', 'baseline')
            and r.scene == ALL]
    alone = Results(structs.replace(source.summary, rows=rows, tables=['1']))
    save(tmp_path, alone)
    report.write(tmp_path, alone)
    text = (tmp_path / report.HTML).read_text(encoding='utf-8')
    assert text.count('<img') == 2
    assert 'Depth bins' not in text
    files = [path for path in (tmp_path / report.FOLDER).rglob('*') if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    monkeypatch.setenv('SOURCE_DATE_EPOCH', '0')  # what matplotlib takes for the time of day
    assert command.main([str(tmp_path)]) == 0
    assert {path: path.read_bytes() for path in files} == before
    assert capsys.readouterr().out.split() == [
        str(tmp_path / file) for file in report.FILES]


def test_random_weights_are_called_meaningless(source, summary):
    trained = changed(source, weights=dataclasses.replace(summary.weights, trained=True))
    for given, said in ((source, True), (trained, False)):
        page = shown(given)
        assert ('meaningless' in page.text) == said
        assert summary.data.warnings[0] in page.texts


def test_results_survive_their_folder_and_what_is_damaged_is_named(source, tmp_path):
    save(tmp_path, source)
    again = load(tmp_path)
    assert again.summary == source.summary
    assert [s.index for s in again.samples] == sorted(s.index for s in source.samples)
    np.testing.assert_array_equal(again.samples[0].truth, next(
        s for s in source.samples if s.index == again.samples[0].index).truth)
    sample = next((tmp_path / 'samples').glob('*.npz'))
    for victim, whole in ((sample, b''), (tmp_path / SUMMARY, b'{"format": 99}')):
        victim.write_bytes(whole or victim.read_bytes()[:100])
        with pytest.raises(ResultsError, match=victim.name):
            load(tmp_path)
