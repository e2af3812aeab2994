# SPDX-License-Identifier: Apache-2.0
"""Whole evaluations of the miniature world with a tiny network."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import clip_standin
import cv2
import numpy as np
import pytest
import torch
from eval_results import write_world

from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.core.engine import one_thread
from depthclip_ros.node.config import read_config
from depthclip_ros.resources import config_path
from depthclip_ros.sim.formats import make_samples, split
from offline_eval import cli, evaluate, metrics
from offline_eval.contenders import FOCAL
from offline_eval.datasets.kitti import LIST as KITTI_LIST
from offline_eval.datasets.nyu import FOCAL as NYU_FOCAL
from offline_eval.evaluate import scored
from offline_eval.metrics import METRICS, metrics_of
from offline_eval.paper import BIN_PARTITIONS, METHOD, PAPER_ROWS, PROMPTS
from offline_eval.protocol import PROTOCOLS
from offline_eval.results import load
from offline_eval.scoring import layout, load_records, save_record

pytest.importorskip('h5py', reason='h5py, which reads the .mat, is missing')

ROOT = Path(__file__).resolve().parents[1]
COUNT = 22
REPORT = 'with a report'
FEW = ('--limit', 11, '--no-mean-map')
BLIND = 3  # Position in the .mat of a test image without any depth.
# Depth that is computed twice in float32 agrees to about 1e-5: 30 um of 3 m in rmse, and within
# that distance of a threshold lie about 1e-5 of the pixels.
ROUNDING = 1e-4


@pytest.fixture(scope='module')
def samples():
    made = make_samples(COUNT, seed=5)
    made[BLIND].raw_depth[...] = 0
    return made


@pytest.fixture(scope='module')
def world(samples, tmp_path_factory, tiny_weights):
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, samples)
    (folder / 'tiny.yaml').write_text(paper_with(
        ("'RN50'", "'auto'"), ('temperature: 0.1', 'temperature: 2.0'),
        ('input_height: 416', 'input_height: 96'), ('input_width: 544', 'input_width: 128')))
    (folder / 'tiny.pt').write_bytes(tiny_weights.read_bytes())
    return folder


def paper_with(*changes):
    """The paper's settings, changed."""
    text = config_path('nyu_paper').read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def arguments(world, output, *more, data=None):
    return [str(a) for a in (
        '--data', data or world, '--config', world / 'tiny.yaml', '--weights', world / 'tiny.pt',
        '--own-input', '--device', 'cpu', '--output', output,
        *([] if REPORT in more else ['--no-report']), *(m for m in more if m != REPORT))]


def run(world, output, *more, data=None):
    assert cli.main(arguments(world, output, *more, data=data)) == 0
    return load(output / 'latest').summary


@pytest.fixture(scope='module')
def finished(world, tmp_path_factory):
    """Results folder of a run with all tables."""
    output = tmp_path_factory.mktemp('results')
    run(world, output, '--table', 1, '--table', 2, '--table', 3)
    return (output / 'latest').resolve()


@pytest.fixture(scope='module')
def summary(finished):
    return load(finished).summary


@pytest.fixture(scope='module')
def undisturbed(world, tmp_path_factory):
    """Output folder of a run of few images, Table 1 only."""
    output = tmp_path_factory.mktemp('plain')
    run(world, output, *FEW)
    return output


@pytest.fixture(scope='module')
def plain(undisturbed):
    return load(undisturbed / 'latest').summary


@pytest.fixture
def to_resume(undisturbed, tmp_path):
    """A copy of that run's folder."""
    return shutil.copytree((undisturbed / 'latest').resolve(), tmp_path / 'run')


def digits(summary):
    """Everything that must not depend on how the work was cut up."""
    return summary.rows, summary.verdict, summary.data.digest, summary.gate


# What comes out ------------------------------------------------------------------------------


def headline(config, world, samples, camera=None):
    """The method's row, worked out here once more, by `predict` and plain NumPy."""
    estimator = DepthEstimator(config, world / 'tiny.pt', 'cpu')
    rows = []
    for number in split(COUNT)[1]:
        if number == BLIND:
            continue
        rgb = np.ascontiguousarray(samples[number].frame.rgb[56:472, 60:604])
        p = estimator.predict(rgb, intrinsics=camera).depth[:415, :541].astype(np.float64)
        y = samples[number].raw_depth[56:471, 60:601].astype(np.float64)
        valid = (y > 1e-3) & (y < 10)
        p, y = p[valid], y[valid]
        ratio = np.maximum(p / y, y / p)
        rows.append([*((ratio < 1.25 ** k).mean() for k in (1, 2, 3)), (abs(p - y) / y).mean(),
                     abs(np.log10(p / y)).mean(), np.sqrt(((p - y) ** 2).mean())])
    return np.mean(rows, axis=0)


def test_rows_are_the_node_s_own_predictions(world, samples, summary):
    """The method's, two of the tables' configured by themselves, and one with the camera."""
    config = DepthConfig.from_yaml(world / 'tiny.yaml')
    assert summary.config['reference_focal'] == 0.0  # the method's row knows no camera
    camera = CameraModel.pinhole(544, 416, NYU_FOCAL)
    for name, own, of in (
            (METHOD, {'reference_focal': 0.0}, None),
            ('Class-dependent 1', {'bins': BIN_PARTITIONS['Class-dependent 1']}, None),
            ('Prompt 1', {'tokens': PROMPTS['Prompt 1']}, None),
            (FOCAL, {'reference_focal': 0.811}, camera)):
        found = [summary.row(name).metrics[m] for m in METRICS[:6]]
        np.testing.assert_allclose(found, headline(
            config.replace(**own), world, samples, of), atol=ROUNDING, err_msg=name)
        assert (summary.row(name).metrics == summary.row(METHOD).metrics) == (name == METHOD)
    assert (summary.row(FOCAL).group, summary.row(FOCAL).images) == (
        'camera', summary.row(METHOD).images)
    for name in ('Original bin', 'Original prompt'):
        assert summary.row(name).metrics == summary.row(METHOD).metrics


def test_read_out_and_smoothing_are_the_node_s_own(world, samples, tmp_path):
    text = (world / 'tiny.yaml').read_text()
    other = tmp_path / 'other.yaml'
    other.write_text(text.replace(
        'flip_average:', "read_out: 'argmax'\n    smoothing: 0.7\n    flip_average:"))
    config = DepthConfig.from_yaml(other)
    assert (config.read_out, config.smoothing) == ('argmax', 0.7)
    summary = run(world, tmp_path / 'results', '--config', other, '--no-mean-map')
    found = [summary.rows[0].metrics[m] for m in METRICS[:6]]
    np.testing.assert_allclose(found, headline(config, world, samples), atol=ROUNDING)
    for changed in ({'read_out': 'mean'}, {'smoothing': 0.0}):
        other_depth = headline(config.replace(**changed), world, samples)
        assert abs(other_depth - found).max() > 1e-3, changed


def test_every_row_is_there(summary):
    names = {row.name for row in summary.rows}
    assert {METHOD, FOCAL, *BIN_PARTITIONS, *PROMPTS, 'mean of the bins', 'constant 2.4 m',
            'mean of the training split', 'mean map', 'median of each image', 'random per pixel',
            'random per patch', 'shuffled words', 'random words', 'shuffled images',
            'best constant'} <= names
    for row in summary.rows:
        assert set(row.metrics) == set(METRICS)
        assert np.isfinite(list(row.metrics.values())).all(), row.name
    for name in BIN_PARTITIONS:
        assert {r.scene for r in summary.rows if r.name == name} == {
            'all', 'bathroom', 'classroom'}
    scenes = {r.scene for r in summary.rows if r.name == METHOD}
    assert scenes == {'all', 'bathroom', 'bedroom', 'office', 'classroom', 'corridor'}
    per_class = [r for r in summary.rows if r.name == METHOD and r.scene != 'all']
    assert sum(r.images for r in per_class) == summary.row(METHOD).images
    assert len(summary.paper) == len(PAPER_ROWS)


def test_baselines_are_ordered_as_they_must_be(summary):
    value = {row.name: row.metrics for row in summary.rows if row.scene == 'all'}
    for constant in ('mean of the bins', 'constant 2.4 m', 'mean of the training split'):
        assert value['best constant']['d1'] >= value[constant]['d1'] - 0.02  # grid of 5 cm
        assert value['best constant']['rmse'] <= value[constant]['rmse'] + 0.01
    assert value['median of each image']['rel'] < value['best constant']['rel'] + 0.02
    assert value['random per pixel']['rmse'] > value['random per patch']['rmse'] > 2
    assert abs(value['shuffled images']['rmse'] - value[METHOD]['rmse']) > 1e-6


def test_gate_says_why_not(summary):
    assert summary.gate.status == 'not reproduced'
    reasons = ' '.join(summary.gate.reasons)
    for said in ('official test split', 'temperature is 2.0, in the paper 0.1',
                 "not OpenAI's RN50", 'limit 0.005'):
        assert said in reasons


def test_verdict_is_about_scenes_and_needs_some(summary):
    assert (summary.verdict.units, summary.verdict.unit) == (7, 'scenes')
    assert 'of 7 scenes: too few for a verdict' in summary.verdict.text
    comparison = summary.verdict.comparisons[0]
    assert (comparison.name, comparison.intervals) == ('best constant', {})
    for metric in METRICS:
        best = summary.row('best constant').metrics[metric]
        sign = 1 if metric in ('d1', 'd2', 'd3') else -1
        assert comparison.gains[metric] == pytest.approx(
            sign * (summary.row(METHOD).metrics[metric] - best), abs=1e-12)


def test_blind_image_is_counted(summary):
    assert summary.data.skipped == [f'{BLIND:05d}']
    assert summary.data.evaluated == summary.data.images - 1 == summary.row(METHOD).images


def test_files_of_the_folder(finished, summary):
    assert finished.parent.joinpath('latest').is_symlink()
    config, node = read_config(finished / 'config.yaml')
    assert config.to_dict() == summary.config
    assert node.weights.endswith('tiny.pt')
    lines = list(csv.DictReader((finished / 'per_image.csv').open()))
    assert len(lines) == summary.data.evaluated
    for metric in METRICS:
        assert np.mean([float(line[metric]) for line in lines]) == pytest.approx(
            summary.row(METHOD).metrics[metric], abs=2e-6)
    assert sum(summary.histograms.counts['all']) == sum(int(line['pixels']) for line in lines)
    assert not list(finished.rglob('*.part'))
    assert len(summary.weights.digest) == len(summary.data.digest) == 64
    assert 'torch' in summary.versions


def test_samples_are_the_best_median_and_worst(finished, summary):
    d1 = {int(line['index']): float(line['d1'])
          for line in csv.DictReader((finished / 'per_image.csv').open())}
    order = sorted(d1, key=lambda i: -d1[i])
    assert summary.ranks['best'] == order[:3]
    assert summary.ranks['worst'] == order[::-1][:3]
    samples = {s.index: s for s in load(finished).samples}
    assert set(samples) == {index for role in summary.ranks.values() for index in role}
    for sample in samples.values():
        sums = metrics.score(torch.from_numpy(sample.truth),
                             torch.from_numpy(sample.depth)[None], 10.0)
        assert metrics_of(sums.numpy())[0, 0] == pytest.approx(d1[sample.index], abs=1e-3)
        assert sample.rgb.shape == (416, 544, 3)
        assert sample.weights.shape == (7, 3, 4)


# Ways of running -----------------------------------------------------------------------------


def test_folder_gives_the_same_numbers_but_for_jpeg(world, summary, tmp_path):
    folder = run(world, tmp_path, data=world / 'official')
    assert folder.data.evaluated == summary.data.evaluated
    for name in ('median of each image', 'best constant', 'mean of the training split'):
        for metric in METRICS[:6]:  # Depth alone: truncated to millimetres.
            assert folder.row(name).metrics[metric] == pytest.approx(
                summary.row(name).metrics[metric], abs=5e-3), (name, metric)
    for metric in METRICS[:6]:
        assert folder.row(METHOD).metrics[metric] == pytest.approx(
            summary.row(METHOD).metrics[metric], abs=0.03)


def test_bts_protocol_and_pixel_average(world, summary, tmp_path):
    other = run(world, tmp_path, '--protocol', 'bts', '--average', 'pixel', '--limit', 6)
    assert other.protocol.name == 'bts'
    assert other.protocol.average == 'pixel'
    assert other.data.images == 6
    assert other.row(METHOD).metrics != summary.row(METHOD).metrics
    assert 'protocol is bts, averaged per pixel' in ' '.join(other.gate.reasons)


@pytest.mark.parametrize('name', PROTOCOLS)
def test_the_protocol_decides_what_the_network_sees(name):
    for given in ('nyu_paper', 'depth'):
        config, protocol = DepthConfig.from_yaml(config_path(given)), PROTOCOLS[name]
        found, notes = scored(config, protocol, own_input=False)
        assert found.input_size == protocol.size
        assert any(name in note for note in notes) == (config.input_size != protocol.size)
        kept, notes = scored(config, protocol, own_input=True)
        assert kept.input_size == config.input_size
        assert any('resized' in note for note in notes) == (config.input_size != protocol.size)


def test_every_pixel_is_scored_in_spite_of_a_range():
    paper, protocol = DepthConfig.from_yaml(config_path('nyu_paper')), PROTOCOLS['depthclip']
    robot = paper.replace(range_min=1.5, range_max=2.5, out_of_range='inf', reference_focal=0.811)
    found, (note,) = scored(robot, protocol, own_input=False)
    assert found == paper
    assert 'range_min: 1.5, range_max: 2.5, reference_focal: 0.811 does not count' in note


def test_number_of_threads_makes_no_difference(world, tmp_path, monkeypatch):
    """Layers so large that convolutions are cut up among threads, by three not evenly."""
    before = torch.get_num_threads()
    torch.save(clip_standin.state_dict(0, layers=(1, 1, 1, 1), width=32, text_width=64,
                                       text_layers=1), tmp_path / 'large.pt')
    found = []
    for threads in (1, 3):
        # Not the text features that the other one has left.
        monkeypatch.setenv('DEPTHCLIP_CACHE', str(tmp_path / f'cache of {threads}'))
        config = tmp_path / f'{threads}.yaml'
        config.write_text(paper_with(("'RN50'", "'auto'"), ('height: 416', 'height: 224'),
                                ('width: 544', 'width: 288'))
                          + f'    num_threads: {threads}\n')
        found.append(digits(run(
            world, tmp_path / str(threads), '--config', config, '--no-mean-map', '--limit', 2,
            '--weights', tmp_path / 'large.pt')))
    torch.set_num_threads(before)
    assert found[0] == found[1]


def test_a_run_ends_with_the_report(world, tmp_path):
    """Of its own results: nothing is missing that the figures and tables want."""
    pytest.importorskip('matplotlib', reason='matplotlib, which draws the figures, is missing')
    run(world, tmp_path, '--limit', 3, '--no-mean-map', '--table', 3, REPORT)
    folder = tmp_path / 'latest/report'
    page = (folder / 'report.html').read_text()
    assert 'on rendered rooms' in page
    assert 'reproduced' not in page
    assert all(name in page for name in (*PROMPTS, 'shuffled words', 'best constant'))
    assert {path.stem for path in (folder / 'figures').iterdir()} >= {
        'standing', 'depths', 'distributions', 'predictions_1', 'responses_best'}


def test_kitti_through_the_same_pipeline(world, tmp_path):
    random = np.random.default_rng(0)
    lines = []
    for i, size in enumerate(((375, 1242), (370, 1226), (376, 1241), (375, 1242))):
        names = (f'2011_09_26/drive/image_02/data/{i}.png', f'drive/image_02/{i}.png')
        sparse = np.where(random.random(size) < 0.05, random.uniform(4, 60, size), 0)
        for name, image in zip(names, (random.integers(0, 255, (*size, 3), np.uint8),
                                       (sparse * 256).astype(np.uint16)), strict=True):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / name), image)
        lines.append(' '.join((*names, '721.5377')))
    (tmp_path / KITTI_LIST).write_text('\n'.join(lines))
    found = run(world, tmp_path / 'out', data=tmp_path)
    # Depth of 1 to 3 m is nearer to 4 to 60 m when multiplied by 1.9, of an input of 128 x 96.
    assert found.row(FOCAL).metrics['rmse'] < found.row(METHOD).metrics['rmse'] - 1.0
    assert found.protocol.name == 'kitti'
    assert found.data.depth == 'sparse lidar'
    assert found.data.evaluated == 4
    assert found.row('constant 2.4 m') is None
    assert found.verdict.constants['rmse'] == pytest.approx(32, abs=2)  # of 4 to 60 m


# Evaluates, and is killed amid the second record.
KILLED = """
import os, signal, sys
import numpy as np
from offline_eval import cli

def first(file, **arrays):
    if 'features' not in arrays:  # those of the words
        np.savez = killed
    whole(file, **arrays)

def killed(file, **arrays):
    file.write(b'PK half of it')
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

whole, np.savez = np.savez, first
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_and_resumed_gives_the_same_digits(world, plain, tmp_path):
    ended = subprocess.run(
        [sys.executable, '-c', KILLED, *arguments(world, tmp_path, *FEW)], cwd=ROOT, check=False,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(
            [str(ROOT), os.environ.get('PYTHONPATH', '')])})
    assert ended.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob('*/summary.json'))
    folder = (tmp_path / 'latest').resolve()
    done = {path: path.stat().st_mtime_ns for path in folder.glob('records/*.npz')}
    assert (len(done), len(list(folder.rglob('*.part')))) == (1, 1)
    resumed = run(world, tmp_path, '--resume', *FEW)
    assert {path: path.stat().st_mtime_ns for path in done} == done  # not done again
    assert (resumed.timing.images, resumed.data.images) == (10, 11)
    assert digits(resumed) == digits(plain)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir() and not p.is_symlink()] == [
        folder.name]


@pytest.mark.parametrize('damage', [
    lambda whole: whole[:len(whole) // 2], lambda _: b'',
    lambda whole: whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]],
    ids=['torn', 'empty', 'one bit'])
def test_a_damaged_record_is_none_and_the_others_are_in_order(tmp_path, damage):
    kind = layout(3, (3, 4))
    for position in (5, 2, 0, 7):
        record = np.zeros(1, kind)
        record['position'], record['sums'] = position, np.random.default_rng(0).random((3, 11))
        save_record(tmp_path, record)
    assert load_records(tmp_path, kind)['position'].tolist() == [0, 2, 5, 7]
    victim = tmp_path / '00005.npz'
    victim.write_bytes(damage(victim.read_bytes()))
    assert load_records(tmp_path, kind)['position'].tolist() == [0, 2, 7]


def test_full_disk_loses_nothing(world, plain, tmp_path, capsys, monkeypatch):
    """A limit on the size of files stands for the full disk: the second record does not fit."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills_the_disk(folder, record):
        save_record(folder, record)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))
    monkeypatch.setattr(evaluate, 'save_record', fills_the_disk)
    try:
        message = fails(capsys, *arguments(world, tmp_path, *FEW))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        monkeypatch.undo()
    assert '--resume' in message
    folder = (tmp_path / 'latest').resolve()
    assert not (folder / 'summary.json').exists()
    assert not list(folder.rglob('*.part'))
    with one_thread():  # As on a machine with fewer cores: the same digits.
        resumed = run(world, tmp_path, '--resume', *FEW)
    assert (resumed.timing.images, resumed.data.images) == (10, 11)
    assert digits(resumed) == digits(plain)


# What may be wrong ---------------------------------------------------------------------------


def fails(capsys, *given):
    assert cli.main([str(a) for a in given]) == 1
    message = capsys.readouterr().err
    assert 'Traceback' not in message
    return message


def test_demo_weights_bring_their_own_settings(capsys):
    own = DepthConfig.from_yaml(config_path('demo'))
    given = ['--data', 'x', '--weights', 'demo']
    config, runtime = cli.settings(cli._parser().parse_args(given))
    assert (config, runtime['weights']) == (own.replace(precision='float32'), 'demo')
    assert 'bring their own' in capsys.readouterr().out
    paper = ['--config', str(config_path('nyu_paper'))]
    assert cli.settings(cli._parser().parse_args([*given, *paper]))[0].flip_average


def test_resume_of_another_run(world, finished, tmp_path, capsys):
    message = fails(capsys, *arguments(world, tmp_path, '--resume', finished, '--protocol', 'bts'))
    assert 'protocol: depthclip then, bts now' in message
    message = fails(capsys, *arguments(world, tmp_path, '--resume'))
    assert 'no folder of an interrupted evaluation' in message


def test_resume_with_other_images_of_the_same_names(world, to_resume, tmp_path, capsys):
    import h5py
    mat = tmp_path / 'nyu_depth_v2_labeled.mat'
    mat.write_bytes((world / mat.name).read_bytes())
    (tmp_path / 'splits.mat').write_bytes((world / 'splits.mat').read_bytes())
    with h5py.File(mat, 'r+') as file:
        file['rawDepths'][split(COUNT)[1][4], 300, 200] = 1.2345
    message = fails(capsys, *arguments(world, tmp_path, '--resume', to_resume, *FEW, data=mat))
    assert f'{split(COUNT)[1][4]:05d} is not the image that was scored then' in message


def test_resume_of_a_finished_run_changes_nothing(world, plain, to_resume, tmp_path):
    run(world, tmp_path, '--resume', to_resume, *FEW)
    again = load(to_resume).summary
    assert again.timing.images == 0
    assert digits(again) == digits(plain)


def test_no_valid_depth_at_all(world, tmp_path, capsys):
    import h5py
    with h5py.File(world / 'nyu_depth_v2_labeled.mat') as source, \
            h5py.File(tmp_path / 'blind.mat', 'w') as blind:
        for key in ('images', 'sceneTypes', '#refs#'):
            source.copy(key, blind, expand_refs=False)
        blind['rawDepths'] = np.zeros_like(source['rawDepths'])
        scenes = blind['sceneTypes']
        for i in range(COUNT):
            scenes[0, i] = blind[source[source['sceneTypes'][0, i]].name].ref
    message = fails(capsys, *arguments(
        world, tmp_path / 'out', '--splits', world / 'splits.mat', '--no-mean-map', '--limit', 4,
        data=tmp_path / 'blind.mat'))
    assert 'no image has a valid true depth' in message


@pytest.mark.parametrize(('given', 'message'), [
    (['--data', 'no.mat'], 'no.mat: does not exist'),
    (['--protocol', 'kitti'], 'use depthclip or bts'),
    (['--config', 'scenes.yaml'], 'scenes: only plain bins')])
def test_what_cannot_be_evaluated(world, tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    Path('scenes.yaml').write_text((world / 'tiny.yaml').read_text() + "    scenes: ['hall']\n")
    assert message in fails(capsys, *arguments(world, tmp_path / 'out', *given))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('given', [['--batch-size', '0'], ['--table', '4'], ['--protocol', 'x']])
def test_wrong_usage(world, tmp_path, given):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments(world, tmp_path, *given))
    assert error.value.code == 2
