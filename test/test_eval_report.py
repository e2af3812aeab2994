# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: tables, figures, and a page that needs nothing else."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from eval_results import HOSTILE, make_results, make_sample
from msgspec import structs

from depthclip_ros.core import DepthConfig
from depthclip_ros.evaluation.bootstrap import Interval
from depthclip_ros.evaluation.datasets.base import KITTI, NYU, RENDERED
from depthclip_ros.evaluation.errors import ResultsError
from depthclip_ros.evaluation.metrics import PAPER_METRICS, heading, number
from depthclip_ros.report import document, figures
from depthclip_ros.report.document import Heading, Quiet, Strong, Table, Text
from offline_eval import cli, report
from offline_eval.published import PAPER_ROWS
from offline_eval.report import __main__ as command
from offline_eval.report import charts, contents
from offline_eval.report.tables import badge
from offline_eval.results import ALL, SUMMARY, Comparison, Results, Row, load, save

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
    return path / 'report'


@pytest.fixture
def html(written):
    return (written / 'report.html').read_text(encoding='utf-8')


@pytest.fixture
def markdown(written):
    return (written / 'report.md').read_text(encoding='utf-8')


@pytest.fixture
def summary(source):
    return source.summary


def of(summary, origin, *, official=False):
    """The same, as if its images were others."""
    return structs.replace(summary, data=structs.replace(
        summary.data, origin=origin, official=official))


@pytest.fixture
def nyu(summary):
    """The same, as if it were of the paper's images."""
    return of(summary, NYU, official=True)


def tables(summary):
    return [block for block in contents(summary, {}) if isinstance(block, Table)]


def table(summary, start):
    """The one whose title starts so."""
    found, = (one for one in tables(summary) if one.title.startswith(start))
    return found


def row(found, name):
    """Its numbers and notes in the row of that name."""
    return next([*cells[1:]] for cells in found.rows if cells[0] == name)


# The page ------------------------------------------------------------------------------------


def test_every_result_is_in_the_tables(summary, nyu):
    """No row of the summary is left out, nor of the paper where the images are its own."""
    def digits(metrics):
        return [number(metrics.get(m)) for m in PAPER_METRICS]
    for given in (summary, nyu):
        rows = [cells for one in tables(given) for cells in one.rows]
        for result in summary.rows:
            assert any([c for c in cells if c in digits(result.metrics)] == digits(
                result.metrics) for cells in rows), result
    for paper in PAPER_ROWS:
        assert any([c for c in cells if isinstance(c, Quiet)][1:7] == digits(paper.metrics)
                   for cells in rows), paper


class Page(HTMLParser):
    """Texts, links, tags and attributes of a page whose tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.links, self.texts, self.seen, self.names, self._open = [], [], set(), set(), []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.names |= {name for name, _ in attributes}
        self.links += [value for name, value in attributes
                       if name in ('src', 'href', 'action', 'srcset', 'data')]
        if tag not in ('meta', 'link', 'img', 'br'):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_page_needs_nothing_but_its_folder(html):
    page = Page(html)
    assert all(link.startswith(('#', 'data:', 'figures/')) for link in page.links)
    assert "default-src 'none'" in html
    assert not page.seen & {'script', 'iframe', 'object', 'embed', 'form', 'base', 'video'}
    assert not any(name.startswith('on') for name in page.names)
    style = html.partition('<style>')[2].partition('</style>')[0]
    assert not re.search(r'url\(|@import', style)
    anchors = re.findall(r'href="#([^"]+)"', html)
    assert anchors
    assert all(f'id="{anchor}"' in html for anchor in anchors)


def test_hostile_names_stay_text(html, markdown):
    assert '<script' not in html
    assert HOSTILE in ''.join(Page(html).texts)
    assert '<script' not in markdown.replace('\\<', '')


def test_pictures_are_files_beside_with_alternative_text(written, html, markdown):
    pictures = re.findall(r'<img src="figures/(\w+\.(?:svg|png))" alt="[^"]+"', html)
    assert len(pictures) == html.count('<img')
    assert {path.name for path in (written / 'figures').iterdir()} == set(pictures) == {
        'gains.svg', 'depths.svg', 'distributions.svg', 'predictions_1.png', 'predictions_2.png',
        'responses_best.png', 'responses_median.png', 'responses_worst.png'}
    for name in pictures:
        path = written / 'figures' / name
        assert f'](figures/{name})' in markdown
        assert cv2.imread(str(path)).std() > 20 if path.suffix == '.png' else \
            path.read_text().count('<path') > 20


def test_every_cell_is_in_every_format(summary):
    blocks = contents(summary, {})
    html, markdown = document.to_html(blocks), document.to_markdown(blocks)
    cells = [cell for one in tables(summary) for cells in one.rows for cell in cells]
    assert len(cells) > 300
    shown = re.findall(r'<t[dh] ?(?:scope="row")? class="(\w+)[^"]*">(.*?)</t[dh]>', html)
    assert [kind for kind, _ in shown] == [type(cell).__name__.lower() for cell in cells]
    assert ''.join(Page(''.join(text for _, text in shown)).texts) == ''.join(cells)
    # With a header and a rule each; in cells there are escaped bars.
    bars = re.findall(r'(?<!\\)\|', re.sub(r'(?m)^(?!\|).*', '', markdown))
    assert len(bars) == sum((len(one.header) + 1) * (len(one.rows) + 2)
                            for one in tables(summary))


def test_formats_show_text_as_it_is():
    """Each in its own way; on a terminal columns are plain."""
    one = Table(['', 'x [m]'], [[Strong('a'), Quiet('1')], ['b|c', '*d*']], 't')
    assert document.to_markdown([Text('a|b *c* _d_ <e>\nf'), one]) == (
        'a\\|b \\*c\\* \\_d\\_ \\<e\\> f\n\n**t**\n\n'
        '|  | x \\[m\\] |\n| --- | ---: |\n| **a** | *1* |\n| b\\|c | \\*d\\* |\n')
    assert document.to_terminal([Heading('H', 1), Text('a_b*', warning=True), one]) == (
        'H\n=\n\nWarning: a_b*\n\n     x [m]\na        1\nb|c    *d*\n')
    latex = document.to_latex(Table(['x'], [
        ['50 % of a_b & {c} #1 $2 ~'], ['\\'], ['[a]'], ['δ1 − ± 远'], [Strong('b')]], 't'))
    for line in (r'50 \% of a\_b \& \{c\} \#1 \$2 \textasciitilde{} \\', r'\textbackslash{} \\',
                 r'{[}a] \\',  # after a row's end, a bracket would be the height of the gap
                 r'$\delta$1 $-$ $\pm$ {[}U+8FDC] \\', r'\textbf{b} \\'):
        assert line in latex.splitlines()


def test_latex_is_the_table_of_a_paper(written, summary, nyu):
    """Of the method, beside baselines, or beside the published rows of the same images."""
    text = (written / 'report.tex').read_text(encoding='utf-8')
    assert 'meaningless' in text
    plain = re.sub(r'\\textbf\{(.*?)\}', r'\1', text)
    assert [line.removesuffix(r' \\').split(' & ')[1:] for line in plain.splitlines()
            if line.endswith(r' \\')][1:] == [
        list(cells[1:7]) for cells in table(summary, 'Baselines').rows]
    report.write(written.parent / 'nyu', Results(nyu))
    text = (written.parent / 'nyu/report/report.tex').read_text(encoding='utf-8')
    assert r'\textit{DORN}' in text
    walker = pytest.importorskip('pylatexenc.latexwalker', reason='pylatexenc is not installed')
    nodes, *_ = walker.LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    assert [n.environmentname for n in nodes
            if n.isNodeType(walker.LatexEnvironmentNode)] == ['table']


# Tables --------------------------------------------------------------------------------------


def test_gate_is_shown_metric_by_metric(nyu, summary):
    paper = next(p for p in PAPER_ROWS if (p.group, p.name) == ('1', 'DepthCLIP'))
    near = dict(zip(PAPER_METRICS, (0.005, -0.0051, 0.0, -0.006, 0.0021, 0.01), strict=True))
    found = table(structs.replace(
        nyu, rows=[structs.replace(summary.row('DepthCLIP'), metrics=paper.metrics)],
        gate=structs.replace(summary.gate, differences=near)), 'The method beside the paper’s')
    assert row(found, 'within') == ['yes', 'no', 'yes', 'yes', 'no', 'yes']
    assert row(found, 'difference') == ['+0.005', '−0.005', '±0.000', '−0.006', '+0.002', '+0.010']
    assert row(found, 'the paper') == ['0.394', '0.683', '0.851', '0.388', '0.156', '1.167']
    assert found.header == ['', 'δ1 ↑', 'δ2 ↑', 'δ3 ↑', 'rel ↓', 'log10 ↓', 'rmse (m) ↓']


def test_partition_gain_is_the_papers(nyu):
    """The paper's own rows give the paper's last row of Table 2."""
    bathroom, classroom, everything = (table(nyu, f'Depth bins, {scene}') for scene in (
        'bathroom', 'classroom', 'all classes'))
    gain = row(bathroom, 'the same, paper')
    assert gain[:6] == ['+0.092', '+0.092', '+0.079', '−0.176', '−0.034', '−0.177']
    assert 'Class-dependent 3' in gain[6]
    # Only the paper's rows: there is no classroom in this run.
    assert 'Class-dependent 4' in row(classroom, 'best partition’s gain')[-1]
    assert 'No image' in classroom.note
    assert not any('gain' in cells[0] for cells in everything.rows)
    assert 'bathroom (6 images, ' in bathroom.title


def test_bold_is_the_best_of_this_run(summary):
    best = {column: cells[0] for cells in table(summary, 'Prompts, all classes').rows
            for column, cell in enumerate(cells) if isinstance(cell, Strong)}
    # Every prompt after the first is a little lower in everything.
    assert best == {1: 'Original prompt', 2: 'Original prompt', 3: 'Original prompt',
                    4: 'Prompt 3', 5: 'Prompt 3', 6: 'Prompt 3'}


def test_verdict_says_only_what_the_interval_allows(summary):
    intervals = {'d1': Interval(0.001, 0.03), 'd2': Interval(-0.01, 0.01),
                 'rel': Interval(-0.03, -0.01), 'rmse': Interval(float('nan'), float('nan'))}
    gains = {'d1': 0.02, 'd2': 0.0, 'rel': -0.02, 'rmse': 0.1}
    method = Row('DepthCLIP', 'method', ALL, {'d1': 0.4, 'd2': 0.7, 'rel': 0.4, 'rmse': 1.0}, 3)
    found = table(structs.replace(summary, rows=[method], verdict=structs.replace(
        summary.verdict, comparisons=[Comparison('best constant', gains, intervals)])),
        'The method against the best constant depth')
    assert found.rows == [
        ['δ1 ↑', '0.400', '0.380', '2.400', '+0.020', '+0.001 … +0.030', 'better'],
        ['δ2 ↑', '0.700', '0.700', '2.400', '±0.000', '−0.010 … +0.010', 'not distinguishable'],
        ['rel ↓', '0.400', '0.380', '2.400', '−0.020', '−0.030 … −0.010', 'worse'],
        ['rmse (m) ↓', '1.000', '1.100', '2.400', '+0.100', '–', '–']]


@pytest.mark.parametrize(('control', 'interval', 'answer'), [
    ('best constant', Interval(0.1, 0.2), 'yes'),
    ('best constant', Interval(-0.1, 0.2), 'open'),
    ('best constant', Interval(-0.2, -0.1), 'no'),
    ('best constant', None, 'open'),  # too few scenes
    ('shuffled words', Interval(-0.2, -0.1), 'yes'),  # which looks at the image
    ('foreign row', Interval(-0.2, -0.1), 'yes')])
def test_the_badge_is_the_least_favourable_reading(summary, control, interval, answer):
    sure = {m: Interval(0.1, 0.2) for m in ('d1', 'rmse')}
    given = structs.replace(summary, verdict=structs.replace(summary.verdict, comparisons=[
        Comparison(name, dict.fromkeys(sure, 0.1), intervals) for name, intervals in (
            ('mean map', sure), (control, {**sure, 'd1': interval} if interval else {}))]))
    blocks = contents(given, {})
    assert blocks.index(found := badge(given)) < blocks.index(tables(given)[0])
    assert found.badge == answer
    assert f'image: {answer.replace("open", "cannot tell")} (' in found.text
    assert (control in found.text) == (answer != 'yes' and interval is not None)
    assert f'class="badge {answer}"' in document.to_html(blocks)


def test_the_terminal_marks_the_method_and_breaks_lines_between_words(summary):
    text = 'word ' * 60
    lines = cli.summary_text(structs.replace(summary, verdict=structs.replace(
        summary.verdict, text=text))).splitlines()
    assert [line.split()[1] for line in lines if line.startswith('>')] == ['DepthCLIP']
    written = [line for line in lines if line.startswith('word')]
    assert {word for line in written for word in line.split()} == {'word'}
    assert len(written) > 1
    assert max(map(len, lines[1:])) < 100
    assert sum(set(line) == {'-'} for line in lines) > 3  # rules


def test_columns_are_straight_whatever_rows_are_called(summary):
    """A letter of East Asia has two columns of a terminal, an accent of its own has none."""
    assert document.to_terminal([Table(['', 'm'], [
        ['深度', '1'], ['abcd', '22'], ['e\u0301', '3']])]) == (
        '       m\n深度   1\nabcd  22\ne\u0301      3\n')
    row = next(r for r in summary.rows if r.group == 'foreign')
    names = ['深度估计', 'Tiefe', 'Me\u0301tre', 'a' * 60]
    lines = cli.summary_text(structs.replace(summary, rows=[
        *summary.rows, *(structs.replace(row, name=name) for name in names)])).splitlines()
    header, = (line for line in lines if line.endswith('rmse'))
    for name, cells in zip(names, (8, 5, 5, 60), strict=True):
        line, = (line for line in lines if line.startswith(f'  {name} '))
        assert len(line) - len(name) + cells == len(header)


def test_legends_are_inside_the_charts(summary):
    def names(figure):
        return {text.get_text() for axes in (*figure.axes, figure) for legend in (
            axes.legends if axes is figure else [axes.get_legend()]) if legend
            for text in legend.get_texts()}
    assert {'first, last bin', 'middle 80 %', 'truth'} < names(charts.depths(summary))
    for titles in ('ab', 'abcde'):  # a row that is full, and one that is not
        counts = {title: [1, 2] for title in (*titles, 'all')}
        assert names(figures.distributions(
            [0.0, 1.0, 2.0], counts, [[1.0]] * len(counts), 'depth', 'all')) == {
            'this one', 'all', 'median', 'bins'}
    left, right = charts.gains(summary).axes
    assert len(left.lines) == len(right.lines) == 1 + 2 * len(summary.verdict.comparisons)


def test_calibrated_rows_stand_beside_published_ones_of_the_same_images_only(summary, nyu):
    calibrated = Row('calibrated on 9 images', 'calibrated', ALL, {'d1': 0.41, 'rmse': 1.1}, 9)
    for given, there in ((nyu, True), (summary, False)):
        found = table(structs.replace(given, rows=[*given.rows, calibrated]),
                      'The method with calibrations')
        assert found.rows[0][0] == 'DepthCLIP'
        assert row(found, 'calibrated on 9 images')[0] == '0.410'
        assert [cells[1] for cells in found.rows if isinstance(cells[0], Quiet)] == [
            '0.428', '0.465', '0.745'] * there
        assert ('Italics' in found.note) == there


@pytest.mark.parametrize(('origin', 'judged'), [
    (RENDERED, False), (KITTI, False), ('', True), (NYU, True)])
def test_no_published_number_stands_beside_other_images(summary, nyu, origin, judged):
    """Not even NYU's own, where they are not the official split; the title names the world.

    Where the images may be the paper's own, it is said that its row is not reproduced.
    """
    def published(given):
        return [cell for one in tables(given) for cells in one.rows for cell in cells
                if isinstance(cell, Quiet)]
    assert published(nyu)
    other = of(summary, origin)
    assert not published(other)
    blocks = contents(other, {})
    for text in (document.to_html(blocks), document.to_markdown(blocks)):
        assert 'DORN' not in text
        assert 'no published number is comparable' in text
        world = origin or 'images of unknown origin'
        assert f'DepthCLIP with the weights invented on {world}' in text
        assert ('reproduced' in text) == judged
    said = cli.summary_text(other)
    assert ("The paper's row: not reproduced" in said) == judged
    assert 'published' not in said
    assert (origin or 'unknown origin') in said
    assert re.search(r'\n  DepthCLIP \(published\) +0\.394 ', cli.summary_text(nyu))


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
    """Of patches that have some in half of their pixels at least."""
    ranks = np.arange(221.0).reshape(13, 17)
    truths = figures.patch_truth(with_truth(
        sample, np.repeat(np.repeat(1 + ranks / 100, 8, 0), 8, 1)))
    places = figures.at_quantiles(truths)
    assert [row * 17 + column for row, column in places] == [11, 77, 143, 209]
    assert [truths[place] for place in places] == pytest.approx([1.11, 1.77, 2.43, 3.09])
    truth = np.full(SIZE, np.nan)
    assert figures.at_quantiles(figures.patch_truth(with_truth(sample, truth))) == []
    truth[:8, :3] = 2.0  # less than half of the first patch
    truth[8:16, 8:16] = np.linspace(3, 4, 64).reshape(8, 8)
    truth[8:11, 8:16] = np.nan
    (place, said), = figures.spots_of(with_truth(sample, truth)).items()
    assert place == (1, 1)
    assert f'GT {np.nanmedian(truth[8:16, 8:16]):.2f} m' in said


@pytest.mark.parametrize('words', ['demo', 33, 'long'])
def test_nothing_of_a_figure_lies_on_another_part(sample, words):
    """With the demo's own ten words, many, and long ones; the bars are those of the patches."""
    tokens = {'demo': DepthConfig.from_yaml(ROOT / 'config/demo.yaml').tokens,
              33: [f'about {n} metres from here' for n in range(33)],
              'long': ['a very long description of how far away something may be ' * 2] * 7}[words]
    count = len(tokens)
    weights = np.random.default_rng(0).random((count, 13, 17), np.float32)
    spots = figures.spots_of(sample)
    with figures.figure_style():
        figure = figures.responses(structs.replace(
            sample, tokens=list(tokens), bins=[1.0] * count, weights=weights), sample.name, spots)
        figure.draw_without_rendering()
        photograph, depth, *charts = [axes.get_tightbbox() for axes in (
            *figure.subfigs[0].axes[:2], *figure.subfigs[1].axes)]
    for (row, column), axes in zip(spots, figure.subfigs[1].axes, strict=True):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(weights[:, row, column])
    assert len(charts) == 4
    assert photograph.x1 <= depth.x0 + 1
    for left, right in pairwise(charts):
        assert left.x1 <= right.x0 + 1
    for box in charts:
        assert 0 <= box.y0 < box.y1 <= photograph.y0 + 1
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert box.width > 40


def test_colours_of_depth_and_error(sample):
    """Error is red where too far; nothing is cut off a scale without an arrow; else is grey."""
    height, width = SIZE
    truth = np.array(sample.depth)
    truth[:, :width // 2] -= 0.5
    truth[:, width // 2:] += 0.5
    truth[:height // 2] = np.nan
    truth[-1, -1] = 90.0  # an outlier
    with figures.figure_style():
        figure = figures.predictions([with_truth(sample, truth)], {}).subfigs[0]
        (_, said, true, error), bars = figure.axes[:4], figure.axes[4:]
        image, = error.images
        far, near, grey = (image.to_rgba(image.get_array())[row, column] for row, column in (
            (-1, 0), (-2, -1), (0, 0)))
    assert far[0] > far[2] + 0.2
    assert near[2] > near[0] + 0.2
    assert len(set(grey[:3])) == 1
    low, high = said.images[0].get_clim()
    assert (low, high) == true.images[0].get_clim()
    assert low <= sample.depth.min()
    assert sample.depth.max() <= high < 90.0
    assert [axes._colorbar.extend for axes in bars] == ['both', 'min']


def test_rows_share_one_scale_of_depth_and_are_named(sample):
    other = structs.replace(sample, name='far.png', depth=3 * sample.depth,
                            truth=3 * sample.truth, metrics={'rmse': 0.25})
    with figures.figure_style():
        rows = figures.predictions([sample, other], {'rmse': 'rmse {:.3f} m'}).subfigs
    limits = {image.get_clim() for row in rows for axes in row.axes[1:3] for image in axes.images}
    assert len(limits) == 1
    ticks = [[float(text.get_text()) for text in row.axes[4].get_yticklabels()] for row in rows]
    for row, labels, truth in zip(rows, ticks, (sample.truth, other.truth), strict=True):
        assert [labels[0], labels[-1]] == pytest.approx(next(iter(limits)), abs=0.006)
        marks = [line.get_ydata()[0] for line in row.axes[4].lines]
        assert pytest.approx(np.nanmedian(truth)) in marks
    assert pytest.approx(np.nanmedian(other.truth), abs=0.006) in ticks[1]
    title = rows[1]._suptitle.get_text()
    assert 'far.png' in title
    assert '0.250 m' in title


# Files ---------------------------------------------------------------------------------------


def test_the_report_of_a_folder_the_same_from_the_command_line(source, tmp_path, capsys,
                                                               monkeypatch):
    """Of a summary alone: no samples, no classes, no tables 2 and 3."""
    rows = [r for r in source.summary.rows if r.group in ('method', 'baseline')
            and r.scene == ALL]
    alone = Results(structs.replace(source.summary, rows=rows, tables=['1']))
    save(tmp_path, alone)
    files = report.write(tmp_path, alone)
    text = files[0].read_text(encoding='utf-8')
    assert text.count('<img') == 3
    assert 'Depth bins' not in text
    before = {path.relative_to(tmp_path / 'report'): path.read_bytes()
              for path in (tmp_path / 'report').rglob('*') if path.is_file()}
    monkeypatch.setenv('SOURCE_DATE_EPOCH', '0')  # what matplotlib takes for the time of day
    assert command.main([str(tmp_path)]) == 0
    again = tmp_path / 'report_2'
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob('*')
            if path.is_file()} == before
    assert capsys.readouterr().out.split() == [str(again / file.name) for file in files]


def test_random_weights_are_called_meaningless(summary):
    trained = structs.replace(summary, weights=dataclasses.replace(summary.weights, trained=True))
    for given, said in ((summary, True), (trained, False)):
        text = document.to_markdown(contents(given, {}))
        assert ('meaningless' in text) == said
        assert summary.data.warnings[0] in text


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
