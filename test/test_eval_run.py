# SPDX-License-Identifier: Apache-2.0
"""Whole evaluations of the miniature world with a tiny network."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
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
from eval_results import plain_metrics, write_kitti, write_world

from depthclip_ros.core import CameraImage, DepthConfig, DepthEstimator
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.core.engine import single_thread
from depthclip_ros.evaluation import metrics
from depthclip_ros.evaluation.datasets.nyu import FOCAL as NYU_FOCAL
from depthclip_ros.evaluation.metrics import METRICS, metrics_of
from depthclip_ros.evaluation.protocol import PROTOCOLS
from depthclip_ros.messages.node_config import read_config
from depthclip_ros.resources import config_path
from depthclip_ros.sim.datasets import make_samples, split
from offline_eval import cli, evaluate
from offline_eval.evaluate import config_for_protocol
from offline_eval.predictors import FOCAL
from offline_eval.published import BIN_PARTITIONS, METHOD, PAPER_ROWS, PROMPTS
from offline_eval.records import HEADER, RECORDS, layout, load_records, save_record
from offline_eval.results import load

h5py = pytest.importorskip('h5py', reason='h5py, which reads the .mat, is missing')

ROOT = Path(__file__).resolve().parents[1]
COUNT = 22
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
        '--own-input', '--device', 'cpu', '--output', output, *more)]


def run(world, output, *more, data=None):
    """All but the report."""
    folder, results = evaluate.evaluate(cli.options(arguments(world, output, *more, data=data)))
    assert (output / 'latest').resolve() == folder.resolve() or '--resume' in more
    return results.summary


@pytest.fixture(scope='module')
def finished(world, tmp_path_factory):
    """Results folder of a run with all tables, and with a report."""
    output = tmp_path_factory.mktemp('results')
    assert cli.main(arguments(world, output, '--table', 1, '--table', 2, '--table', 3)) == 0
    return (output / 'latest').resolve()


@pytest.fixture(scope='module')
def summary(finished):
    return load(finished).summary


@pytest.fixture(scope='module')
def undisturbed(world, tmp_path_factory):
    """Results folder of a run with Table 1 only."""
    output = tmp_path_factory.mktemp('plain')
    run(world, output)
    return (output / 'latest').resolve()


def digits(summary):
    """Everything that must not depend on how the work was cut up."""
    return summary.rows, summary.verdict, summary.data.digest, summary.gate


def records(folder):
    return {path.name: path.read_bytes() for path in (folder / 'records').iterdir()
            if path.suffix != '.part'}


# What comes out ------------------------------------------------------------------------------


def headline(config, world, samples, camera=None):
    """The method's row, worked out here once more, by `predict` and plain NumPy."""
    estimator = DepthEstimator(config, world / 'tiny.pt', 'cpu')
    return np.mean([plain_metrics(estimator.predict(CameraImage(
        np.ascontiguousarray(samples[number].frame.rgb[56:472, 60:604]), camera),
    ).depth[:415, :541], samples[number].raw_depth[56:471, 60:601])
        for number in split(COUNT)[1] if number != BLIND], axis=0)


def test_rows_are_the_node_s_own_predictions(world, samples, summary):
    """The method's, two of the tables' configured by themselves, and one with the camera."""
    config = DepthConfig.from_yaml(world / 'tiny.yaml')
    assert summary.config['reference_focal'] == 0.0  # the method's row knows no camera
    for name, own, camera in (
            (METHOD, {'reference_focal': 0.0}, None),
            ('Class-dependent 1', {'bins': BIN_PARTITIONS['Class-dependent 1']}, None),
            ('Prompt 1', {'tokens': PROMPTS['Prompt 1']}, None),
            (FOCAL, {'reference_focal': 0.811}, CameraModel.pinhole(544, 416, NYU_FOCAL))):
        found = [summary.row(name).metrics[m] for m in METRICS[:6]]
        np.testing.assert_allclose(found, headline(
            config.replace(**own), world, samples, camera), atol=ROUNDING, err_msg=name)
        assert (summary.row(name).metrics == summary.row(METHOD).metrics) == (name == METHOD)
    assert summary.row(FOCAL).group == 'camera'
    for name in ('Original bin', 'Original prompt'):
        assert summary.row(name).metrics == summary.row(METHOD).metrics


def test_every_row_is_there_and_says_what_its_name_says(summary, samples):
    rows = {row.name: row.metrics for row in summary.rows if row.scene == 'all'}
    assert set(rows) == {
        METHOD, FOCAL, *BIN_PARTITIONS, *PROMPTS, 'mean of the bins', 'constant 2.4 m',
        'mean of the training split', 'mean map', 'median of each image', 'best constant',
        'random per pixel', 'random per patch', 'shuffled words', 'random words',
        'shuffled images'}
    depths = [s.raw_depth[56:471, 60:601] for s in samples]
    depths = [depth[(depth > 1e-3) & (depth < 10)].astype(float) for depth in depths]
    train, test = ([depths[n] for n in numbers if n != BLIND] for numbers in split(COUNT))
    for name, of in (('constant 2.4 m', lambda _: 2.4),
                     ('mean of the training split', lambda _: np.concatenate(train).mean()),
                     ('median of each image', np.median)):
        expected = np.mean([np.sqrt(np.mean((y - of(y)) ** 2)) for y in test])
        assert rows[name]['rmse'] == pytest.approx(expected, abs=1e-4), name
    assert rows['median of each image']['rmse'] < rows['best constant']['rmse']
    assert rows['random per pixel']['rmse'] > rows['random per patch']['rmse'] > 2
    for name in ('shuffled words', 'random words', 'shuffled images'):
        assert abs(rows[name]['rmse'] - rows[METHOD]['rmse']) > 1e-6
    for name in ('mean of the bins', 'constant 2.4 m', 'mean of the training split'):
        assert rows['best constant']['d1'] >= rows[name]['d1'] - 0.02  # steps of 5 cm
        assert rows['best constant']['rmse'] <= rows[name]['rmse'] + 0.01
    for name, scenes in ((METHOD, {'bathroom', 'bedroom', 'office', 'classroom', 'corridor'}),
                         ('Class-dependent 2', {'bathroom', 'classroom'})):
        assert {row.scene for row in summary.rows if row.name == name} == {'all', *scenes}
    assert list(summary.paper) == list(PAPER_ROWS)


def test_gate_and_verdict_say_why_not(summary):
    assert summary.gate.status == 'not reproduced'
    reasons = ' '.join(summary.gate.reasons)
    for said in ('official test split', 'temperature is 2.0, in the paper 0.1',
                 "not OpenAI's RN50", 'limit 0.005'):
        assert said in reasons
    assert (summary.verdict.units, summary.verdict.unit) == (7, 'scenes')
    assert 'of 7 scenes: too few for a verdict' in summary.verdict.text


def test_files_of_the_folder(finished, summary):
    """The blind image is counted, and samples are the best, the median and the worst images."""
    assert summary.data.skipped == [f'{BLIND:05d}']
    assert summary.data.evaluated == summary.data.images - 1 == summary.row(METHOD).images
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
    d1 = {int(line['index']): float(line['d1']) for line in lines}
    order = sorted(d1, key=lambda i: -d1[i])
    assert summary.ranks['best'] == order[:3]
    assert summary.ranks['worst'] == order[::-1][:3]
    samples = {s.index: s for s in load(finished).samples}
    assert set(samples) == {index for role in summary.ranks.values() for index in role}
    for sample in samples.values():
        sums = metrics.score(torch.from_numpy(sample.truth),
                             torch.from_numpy(sample.depth)[None], 10.0)
        assert metrics_of(sums.numpy())[0, 0] == pytest.approx(d1[sample.index], abs=1e-3)
        assert (sample.rgb.shape, sample.weights.shape) == ((416, 544, 3), (7, 3, 4))


def test_a_run_ends_with_the_report(finished):
    """Of its own results: nothing is missing that the figures and tables want."""
    pytest.importorskip('matplotlib', reason='matplotlib, which draws the figures, is missing')
    page = (finished / 'report/report.html').read_text()
    assert 'on rendered rooms' in page
    assert 'reproduced' not in page
    assert all(name in page for name in (*PROMPTS, 'shuffled words', 'best constant'))
    assert {path.stem for path in (finished / 'report/figures').iterdir()} >= {
        'depths', 'distributions', 'predictions_1', 'responses_best'}


# Ways of running -----------------------------------------------------------------------------


def test_folder_gives_the_same_numbers_but_for_jpeg(world, summary, tmp_path):
    folder = run(world, tmp_path, data=world / 'official')
    for name in ('median of each image', 'best constant', 'mean of the training split', METHOD):
        for metric in METRICS[:6]:  # Of depth alone: truncated to millimetres.
            assert folder.row(name).metrics[metric] == pytest.approx(
                summary.row(name).metrics[metric], abs=0.03 if name == METHOD else 5e-3), name


def test_bts_protocol_and_pixel_average(world, summary, tmp_path):
    other = run(world, tmp_path, '--protocol', 'bts', '--average', 'pixel')
    assert (other.protocol.name, other.protocol.average) == ('bts', 'pixel')
    assert other.row(METHOD).metrics != summary.row(METHOD).metrics
    assert 'protocol is bts, averaged per pixel' in ' '.join(other.gate.reasons)


@pytest.mark.parametrize('protocol', PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_pixel_of_the_crop_is_scored_whatever_is_configured(protocol):
    paper = DepthConfig.from_yaml(config_path('nyu_paper'))
    robot = paper.replace(range_min=1.5, range_max=2.5, out_of_range='inf', reference_focal=0.811)
    said = ['range_min 0.0 instead of 1.5', 'range_max 0.0 instead of 2.5',
            'reference_focal 0.0 instead of 0.811']
    height, width = protocol.size
    assert config_for_protocol(robot, protocol, own_input=True) == (paper, said)
    found, others = config_for_protocol(robot, protocol, own_input=False)
    assert found == paper.replace(input_height=height, input_width=width)
    assert others[-3:] == said
    assert (f'input_height {height} instead of 416' in others) == (height != 416)


def test_number_of_threads_makes_no_difference(samples, tmp_path, monkeypatch):
    """Layers so large that convolutions are cut up among threads, by three not evenly."""
    before = torch.get_num_threads()
    write_world(tmp_path, [samples[0], samples[1]])
    torch.save(clip_standin.state_dict(0, layers=(1, 1, 1, 1), width=32, text_width=64,
                                       text_layers=1), tmp_path / 'large.pt')
    found = []
    for threads in (1, 3):
        # Not the text features that the other one has left.
        monkeypatch.setenv('DEPTHCLIP_CACHE', str(tmp_path / f'cache of {threads}'))
        config = tmp_path / 'tiny.yaml'
        config.write_text(paper_with(("'RN50'", "'auto'"), ('height: 416', 'height: 224'),
                                     ('width: 544', 'width: 288'))
                          + f'    num_threads: {threads}\n')
        found.append(digits(run(tmp_path, tmp_path / str(threads),
                                '--weights', tmp_path / 'large.pt')))
    torch.set_num_threads(before)
    assert found[0] == found[1]


def test_kitti_through_the_same_pipeline(world, tmp_path):
    rng = np.random.default_rng(0)
    write_kitti(tmp_path, ((375, 1242), (370, 1226), (376, 1241), (375, 1242)), lambda size: (
        np.where(rng.random(size) < 0.05, rng.uniform(4, 60, size), 0)))
    found = run(world, tmp_path / 'out', data=tmp_path)
    # Depth of 1 to 3 m is nearer to 4 to 60 m when multiplied by 1.9, of an input of 128 x 96.
    assert found.row(FOCAL).metrics['rmse'] < found.row(METHOD).metrics['rmse'] - 1.0
    assert (found.protocol.name, found.data.depth, found.data.evaluated) == (
        'kitti', 'sparse lidar', 4)
    assert found.row('constant 2.4 m') is None
    assert found.verdict.constants['rmse'] == pytest.approx(32, abs=2)  # of 4 to 60 m


# Interrupted ---------------------------------------------------------------------------------

# Evaluates, and is killed amid the second record, which has no name yet.
KILLED = """
import os, signal, sys
from offline_eval import cli

def fsync(number):
    name = os.readlink(f'/proc/self/fd/{number}')
    if '/records/.0' in name:
        written.append(name)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(number)

written, whole, os.fsync = [], os.fsync, fsync
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_and_resumed_gives_the_same_digits_and_bytes(world, undisturbed, tmp_path):
    ended = subprocess.run(
        [sys.executable, '-c', KILLED, *arguments(world, tmp_path)], cwd=ROOT, check=False,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(
            [str(ROOT), os.environ.get('PYTHONPATH', '')])})
    assert ended.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob('*/summary.json'))
    folder = (tmp_path / 'latest').resolve()
    done = {path: path.stat().st_mtime_ns for path in folder.glob('records/*.npz')}
    assert (len(done), len(list(folder.rglob('*.part')))) == (1, 1)
    resumed = run(world, tmp_path, '--resume')
    assert {path: path.stat().st_mtime_ns for path in done} == done  # not done again
    assert resumed.timing.images == resumed.data.images - 1
    assert digits(resumed) == digits(load(undisturbed).summary)
    assert records(folder) == records(undisturbed)
    assert [p for p in tmp_path.iterdir() if p.is_dir() and not p.is_symlink()] == [folder]


def test_full_disk_loses_nothing(world, undisturbed, tmp_path, capsys, monkeypatch):
    """A limit on the size of files stands for the full disk: the second record does not fit."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills_the_disk(folder, record):
        save_record(folder, record)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))
    monkeypatch.setattr(evaluate, 'save_record', fills_the_disk)
    try:
        assert '--resume' in fails(capsys, *arguments(world, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        monkeypatch.undo()
    folder = (tmp_path / 'latest').resolve()
    assert not (folder / 'summary.json').exists()
    assert not list(folder.rglob('*.part'))
    with single_thread():  # As on a machine with fewer cores: the same digits.
        resumed = run(world, tmp_path, '--resume')
    assert resumed.timing.images == resumed.data.images - 1
    assert digits(resumed) == digits(load(undisturbed).summary)


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


def test_copies_of_a_record_count_for_nothing(tmp_path):
    """Those of a synchronised folder; an image that counts twice shifts every mean."""
    kind = layout(3, (3, 4))
    for position in (0, 1):
        record = np.zeros(1, kind)
        record['position'] = position
        save_record(tmp_path, record)
    for name in ('00001 (1).npz', '00001 2.npz', '1.npz', '00001.sync-conflict-7.npz'):
        shutil.copy(tmp_path / '00001.npz', tmp_path / name)
    np.savez(tmp_path / '00002.npz', records=np.zeros(0, kind))
    assert load_records(tmp_path, kind)['position'].tolist() == [0, 1]
    assert load_records(tmp_path)['position'].tolist() == [0, 1]


@pytest.mark.parametrize('content', [
    b'', b'{"version": "0.1"', b'[]', b'{"rows": ["x"]}', b'\xff'], ids=[
    'empty', 'torn', 'a list', 'of an older version', 'no text'])
def test_a_damaged_run_is_refused_before_a_model_is_loaded(
        world, undisturbed, tmp_path, capsys, monkeypatch, content):
    folder = shutil.copytree(undisturbed, tmp_path / 'run')
    (folder / RECORDS / HEADER).write_bytes(content)
    monkeypatch.setattr(evaluate, 'load_model', None)
    assert HEADER in fails(capsys, *arguments(world, tmp_path, '--resume', folder))


def test_resume_of_a_finished_run_and_of_another(world, undisturbed, tmp_path, capsys):
    folder = shutil.copytree(undisturbed, tmp_path / 'run')
    again = run(world, tmp_path, '--resume', folder)
    assert again.timing.images == 0
    assert digits(again) == digits(load(undisturbed).summary)
    message = fails(capsys, *arguments(world, tmp_path, '--resume', folder, '--protocol', 'bts'))
    assert 'protocol: depthclip then, bts now' in message
    message = fails(capsys, *arguments(
        world, tmp_path, '--resume', folder, '--precision', 'bfloat16'))
    assert 'precision: float32 then, bfloat16 now' in message
    assert 'templates' not in message  # nor any other setting
    message = fails(capsys, *arguments(world, tmp_path / 'empty', '--resume'))
    assert 'no folder of an interrupted evaluation' in message


# What may be wrong ---------------------------------------------------------------------------


def fails(capsys, *given):
    assert cli.main([str(a) for a in given]) == 1
    message = capsys.readouterr().err
    assert 'Traceback' not in message
    return message


def test_demo_weights_bring_their_own_settings(capsys):
    own = DepthConfig.from_yaml(config_path('demo'))
    given = ['--data', 'x', '--weights', 'demo']
    chosen = cli.options(given)
    assert (chosen.config, chosen.runtime['weights']) == (
        own.replace(precision='float32'), 'demo')
    assert 'bring their own' in capsys.readouterr().err
    assert cli.options([*given, '--config', str(config_path('nyu_paper'))]).config.flip_average


@pytest.mark.parametrize(('own_input', 'hints'), [(True, 0), (False, 1)])
def test_what_is_otherwise_is_said_each_by_itself(world, own_input, hints, capsys):
    """The input's size has a remedy; the focal length has a row, and is no warning."""
    chosen = cli.options(['--data', str(world), '--weights', 'demo', '--device', 'cpu'])
    evaluate.load_model(dataclasses.replace(chosen, own_input=own_input),
                        PROTOCOLS['depthclip'])
    lines = capsys.readouterr().err.splitlines()
    of_input = [line for line in lines if '--own-input' in line]
    of_focal = [line for line in lines if 'reference_focal' in line]
    assert len(of_input) == hints
    assert len(of_focal) == 1
    assert 'WARNING' not in of_focal[0]
    assert not {*of_input} & {*of_focal}


def test_no_valid_depth_at_all(world, tmp_path, capsys):
    for name in ('nyu_depth_v2_labeled.mat', 'splits.mat'):
        shutil.copy(world / name, tmp_path)
    with h5py.File(tmp_path / 'nyu_depth_v2_labeled.mat', 'r+') as file:
        file['rawDepths'][...] = 0
    message = fails(capsys, *arguments(world, tmp_path / 'out', data=tmp_path))
    assert 'no image has a valid true depth' in message


def test_a_training_split_is_looked_at_as_the_test_split_is(world, tmp_path, capsys):
    """Of another unit, a baseline were as wrong and the method clearly better; of none, NaN."""
    folder = shutil.copytree(world / 'official', tmp_path / 'official')

    def changed(factor):
        for path in folder.glob('official_splits/train/*/sync_depth_*.png'):
            cv2.imwrite(str(path), (cv2.imread(str(path), -1) * factor).astype(np.uint16))
    changed(0.1)
    message = fails(capsys, *arguments(world, tmp_path / 'out', data=folder))
    assert re.search(r'train: the median depth of .* is 0\.\d+ m.*another unit', message)
    changed(0)
    summary = run(world, tmp_path / 'out', data=folder)
    assert 'no image of the training split' in summary.data.warnings[-1]
    assert summary.row('mean map') is summary.row('mean of the training split') is None


@pytest.mark.parametrize(('given', 'message'), [
    (['--data', 'no.mat'], 'no.mat: does not exist'),
    (['--protocol', 'kitti'], 'use depthclip or bts'),
    (['--config', 'scenes.yaml'], 'scenes: only plain bins')])
def test_what_cannot_be_evaluated(world, tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    Path('scenes.yaml').write_text((world / 'tiny.yaml').read_text() + "    scenes: ['hall']\n")
    assert message in fails(capsys, *arguments(world, tmp_path / 'out', *given))
    assert not (tmp_path / 'out').exists()
