# SPDX-License-Identifier: Apache-2.0
"""Depth as files, to and from other programs, and calibrated depth, in the same table."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from calibrations import calibration_for, random_arrays
from eval_results import plain_metrics, write_kitti, write_world

from depthclip_ros.cli.main import main as depthclip
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.calibration import Calibration, image_digest
from depthclip_ros.evaluation.datasets import open_dataset
from depthclip_ros.evaluation.datasets.kitti import LIST as KITTI_LIST
from depthclip_ros.evaluation.errors import PredictionError
from depthclip_ros.evaluation.metrics import METRICS, PAPER_METRICS
from depthclip_ros.evaluation.protocol import PROTOCOLS
from depthclip_ros.messages.node_config import read_config
from depthclip_ros.sim.datasets import make_samples, split
from offline_eval import cli, export, prediction_files
from offline_eval import evaluate as evaluation
from offline_eval.published import METHOD, PAPER_METHOD
from offline_eval.report import __main__ as report

pytest.importorskip('h5py', reason='h5py, which reads the .mat, is missing')

ROOT = Path(__file__).resolve().parents[1]
COUNT = 20  # ten test images, ten training images
# Of sums of the same float32 numbers; no pixel is on another side of a threshold.
ROUNDING = 2e-5


@pytest.fixture(scope='module')
def samples():
    return make_samples(COUNT, seed=3)


@pytest.fixture(scope='module')
def world(samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, samples)
    return folder


@pytest.fixture(scope='module')
def dataset(world):
    return open_dataset(world)


def given(world, *more, data=None):
    return [str(a) for a in ('--data', data or world, '--weights', 'demo', '--device', 'cpu',
                             *more)]


def evaluate(world, output, *more, data=None):
    """All but the report."""
    return evaluation.evaluate(cli.options(
        given(world, '--output', output, *more, data=data)))[1].summary


def fails(capsys, arguments):
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 1
    message = capsys.readouterr().err
    assert 'Traceback' not in message
    return message


def answer(dataset, position, path, protocol='bts', scale=0.0, align='none'):
    """Depth of one image of other predictions, as it is scored."""
    pair, chosen = dataset.read(position), PROTOCOLS[protocol]
    opened = prediction_files.open_predictions('a', path, dataset, chosen, scale, align)
    return opened.pixels(SimpleNamespace(
        position=position, pair=pair, truth=chosen.truth(pair.depth),
        protocol=chosen, estimator=SimpleNamespace(device='cpu'))).numpy()


@pytest.fixture(scope='module')
def written(world, tmp_path_factory):
    """The method's predictions by each protocol of NYU."""
    folders = {}
    for protocol in ('depthclip', 'bts'):
        folders[protocol] = tmp_path_factory.mktemp(protocol) / 'witness'
        assert cli.main(['export', *given(world, '-o', folders[protocol], '--protocol',
                                           protocol)]) == 0
    return folders


def write_png(path, depth, scale=1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.rint(depth * scale).astype(np.uint16))


@pytest.fixture(scope='module')
def rivals(samples, tmp_path_factory):
    """Other programs' predictions, made of the truth, each in another layout."""
    folder = tmp_path_factory.mktemp('rivals')
    for name in ('affine', 'inverse'):
        (folder / name).mkdir()
    for number in split(COUNT)[1]:
        true, scene = samples[number].frame.depth, samples[number].frame.kind
        write_png(folder / 'oracle' / 'raw' / f'{scene}_rgb_{number:05d}.png', true)
        write_png(folder / 'thrice' / f'rgb_{number:05d}.png', 3 * true, 500)
        half = cv2.resize(true, (320, 240), interpolation=cv2.INTER_AREA)
        write_png(folder / 'half' / f'{number:05d}.png', half)
        if number:
            write_png(folder / 'less' / f'{number:05d}.png', half)
        np.save(folder / 'affine' / f'rgb_{number:05d}.npy', 0.3 * true - 2)
        np.save(folder / 'inverse' / f'{number:05d}.npy', 7 / true + 1)
    return folder


@pytest.fixture(scope='module')
def calibrated(world, tmp_path_factory):
    """A calibration that uses all of its terms, in a file, as if fitted to the training split."""
    config, _ = read_config(ROOT / 'config/demo.yaml')
    estimator = DepthEstimator(config, 'demo', 'cpu')
    focal = 518.8579 / 544  # of what protocol depthclip crops
    arrays = random_arrays(estimator)
    rays = arrays['rays']
    rays[...] *= 1 / (focal * (rays[0, -1, 0] - rays[0, 0, 0]) * rays.shape[1]
                      / (rays.shape[1] - 1))
    test = open_dataset(world)
    digests = {entry.index: image_digest(part.read(i).rgb) for part in (test, test.training())
               for i, entry in enumerate(part.entries)}
    train = split(COUNT)[0]
    return {name: calibration_for(estimator, {
        'images': [digests[n] for n in images], 'frames': 9 + bool(images),
        'split': 'a training split',
        'focal_ratio': 1.1}, **arrays).save(tmp_path_factory.mktemp('calibrations'), name)
        for name, images in (
            ('train', train), ('test', [*train, split(COUNT)[1][3]]), ('old', []))}


@pytest.fixture(scope='module')
def summary(world, written, rivals, calibrated, tmp_path_factory):
    """One run with every kind of row."""
    return evaluate(
        world, tmp_path_factory.mktemp('results'),
        *(a for name, folder in (('again', written['depthclip']), ('oracle', rivals / 'oracle'),
                                 ('half', rivals / 'half'), ('thrice', rivals / 'thrice'),
                                 ('thrice as one', rivals / 'thrice'),
                                 ('affine', rivals / 'affine'), ('inverse', rivals / 'inverse'))
          for a in ('--predictions', f'{name}={folder}')),
        '--prediction-scale', 'thrice=500', '--prediction-scale', 'thrice as one=500',
        '--align', 'thrice as one=median', '--align', 'affine=lstsq', '--align',
        'inverse=disparity', '--calibration', calibrated['train'], '--calibration',
        calibrated['old'])


def metrics(summary, name):
    return np.array([summary.row(name).metrics[m] for m in METRICS])


# The method's own, and back --------------------------------------------------------------------


@pytest.mark.parametrize('protocol', ['depthclip', 'bts'])
def test_what_is_written_is_what_the_scripts_of_bts_read(world, samples, written, protocol):
    raw = written[protocol] / 'raw'
    names = {f'{samples[n].frame.kind}_rgb_{n:05d}.png' for n in split(COUNT)[1]}
    assert {path.name for path in raw.iterdir()} == names
    crop, _ = PROTOCOLS[protocol].boxes(480, 640)
    for path in raw.iterdir():
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert (stored.dtype, stored.shape) == (np.uint16, (480, 640))
        assert stored[crop].min() > 0
        stored[crop] = 0
        assert not stored.any()
    about = json.loads((written[protocol] / 'export.json').read_text())
    assert (about['scale'], about['images'], about['protocol']) == (1000, 10, protocol)
    assert len(about['weights']) == 64


def test_a_script_of_its_own_scores_the_same(world, written, tmp_path):
    """As BTS's for PNG files: Eigen's crop of predictions and of the official folder's depth."""
    found = evaluate(world, tmp_path, '--protocol', 'bts', '--predictions',
                     f'bts={written["bts"]}', data=world / 'official')
    every = []
    for file in (written['bts'] / 'raw').iterdir():
        scene, number = re.fullmatch(r'(.*)_rgb_(\d{5})', file.stem).groups()
        truth = world / 'official/official_splits/test' / scene / f'sync_depth_{number}.png'
        every.append(plain_metrics(*(
            cv2.imread(str(path), -1).astype(np.float32)[45:471, 41:601] / 1000
            for path in (file, truth))))
    expected = np.mean(every, axis=0)
    np.testing.assert_allclose(metrics(found, 'bts')[:6], expected, atol=ROUNDING)
    # Predictions of the .mat's images, truth of the folder: not what the method says of JPEG.
    assert abs(metrics(found, METHOD)[:6] - expected).max() > 1e-4


def test_kitti_is_written_as_its_tools_read_it(tmp_path):
    write_kitti(tmp_path, [(375, 1242)] * 2, lambda size: np.full(size, 9))
    assert cli.main(['export', '--data', str(tmp_path), '--weights', 'demo', '--device', 'cpu',
                     '-o', str(tmp_path / 'out')]) == 0
    dataset = open_dataset(tmp_path)
    found = prediction_files.open_predictions(
        'a', tmp_path / 'out', dataset, PROTOCOLS['kitti'], align='median')
    assert '(352 x 1216, 256 a metre)' in found.note
    path = tmp_path / 'out' / 'raw' / '2011_09_26_drive_0002_sync_0000000001.png'
    read = answer(dataset, 1, tmp_path / 'out', scale=256.0, protocol='kitti')
    depth = (cv2.imread(str(path), -1) / 256).astype(np.float32)
    scored = read != 1
    np.testing.assert_array_equal(read[scored], depth[scored])
    assert scored.mean() > 0.5


def test_the_old_name_of_the_command_goes_on_and_says_so(world, tmp_path, capsys):
    assert cli.main(['witness', *given(world, '-o', tmp_path)]) == 0
    assert 'witness is called export' in capsys.readouterr().err
    assert len(list((tmp_path / 'raw').iterdir())) == 10


def test_what_was_interrupted_is_continued_by_the_same_command_and_nothing_overwritten(
        world, tmp_path, monkeypatch, capsys):
    command = ['export', *map(str, given(world, '-o', tmp_path))]
    stored, done = export.png, []

    def interrupted(depth):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(depth)
        return stored(depth)
    monkeypatch.setattr(export, 'png', interrupted)
    assert cli.main(command) == 130
    assert 'the same command continues' in capsys.readouterr().err
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / 'raw').iterdir()}
    assert len(first) == 3
    monkeypatch.undo()
    assert 'not overwritten' in fails(capsys, [*command, '--protocol', 'bts'])
    assert cli.main(command) == 0
    every = {path: path.stat().st_mtime_ns for path in (tmp_path / 'raw').iterdir()}
    assert len(every) == 10
    assert first.items() <= every.items()


def test_depth_that_does_not_fit_into_the_files():
    assert (export.to_16_bits(np.float32([[3.0, 2.9996]]), 1000.0, 'a') == 3000).all()
    for wrong in (65.6, 0.0005, np.nan, np.inf):
        with pytest.raises(PredictionError, match='does not fit into 16 bits'):
            export.to_16_bits(np.float32([[3, wrong]]), 1000.0, 'a')


# Other programs' -------------------------------------------------------------------------------


def test_rows_of_other_programs(summary):
    """The round trip loses half a millimetre; the truth itself, in its forms, scores as such."""
    np.testing.assert_allclose(metrics(summary, 'again'), metrics(summary, METHOD), rtol=1e-3)
    assert (metrics(summary, 'again') != metrics(summary, METHOD)).any()  # it was read
    oracle, half, thrice = (summary.row(n).metrics for n in ('oracle', 'half', 'thrice'))
    assert oracle['d1'] == pytest.approx(1, abs=1e-4)
    assert oracle['rmse'] < 0.001 < half['rmse'] < 0.3  # blurred at edges
    assert thrice['d1'] == 0
    assert 1.5 < thrice['rel'] < 2  # 2, but depth beyond 10 m counts as 10 m
    for name in ('thrice as one, median-aligned', 'affine, lstsq-aligned',
                 'inverse, disparity-aligned'):  # alignment is said in the row's name
        row = summary.row(name)
        assert row.metrics['d1'] > 0.999
        assert row.metrics['rmse'] < 0.02
        assert 'no metric depth' in row.note
    assert summary.row('thrice as one') is None
    assert '(240 x 320, 1000 a metre); as predicted, in metres' in summary.row('half').note
    # They stand beside the verdict and never in the gate.
    own = summary.row(METHOD).metrics
    assert summary.gate.differences == {
        metric: own[metric] - PAPER_METHOD.metrics[metric] for metric in PAPER_METRICS}
    rows = {row.name for row in summary.rows if row.group == 'foreign'}
    gain = {c.name: c.gains['d1'] for c in summary.verdict.comparisons if c.name in rows}
    assert list(gain) == ['again', 'oracle', 'half', 'thrice']  # what is aligned knows the truth
    assert gain['again'] == pytest.approx(0, abs=1e-3)
    assert gain['oracle'] < 0 < gain['thrice']


def test_alignments():
    """The median knows no outliers, and least squares find what was done to the truth."""
    y = np.linspace(1, 5, 101)
    p = 3 * y
    p[-1] = 1000.0
    np.testing.assert_allclose(prediction_files.align_to_truth(p, y, 'median', 10.0)[:-1], y[:-1])
    np.testing.assert_allclose(prediction_files.align_to_truth(2 + 0.5 * y, y, 'lstsq', 10.0), y)
    # What falls where it should rise is not turned round: it is no better than a constant.
    np.testing.assert_allclose(
        prediction_files.align_to_truth(2 - 0.5 * y, y, 'lstsq', 10.0), y.mean())
    np.testing.assert_allclose(
        prediction_files.align_to_truth(y, y, 'disparity', 10.0), 1 / np.mean(1 / y))
    np.testing.assert_allclose(prediction_files.align_to_truth(8 / y - 3, y, 'disparity', 10.0), y)
    np.testing.assert_array_equal(prediction_files.align_to_truth(p, y, 'none', 10.0), p)
    # What comes out beyond infinity is as far as counts.
    far = prediction_files.align_to_truth(
        np.array([1.0, 0.5, 0.0]), np.array([1.0, 2.0, 9.0]), 'disparity', 9.5)
    assert 0 < far.max() <= 9.5


@pytest.mark.parametrize(('name', 'how', 'message'), [
    ('less', {}, r'1 of 10 files are missing(.|\n)*and 6 more(.|\n)*\n  0{5}$'),
    ('nowhere', {}, '10 of 10 files are missing'),
    ('oracle', {'scale': 1.0}, '1e.03 times the true one.*--prediction-scale 1000'),
    ('affine', {'align': 'disparity'}, r'rises with the true depth(.|\n)*--align lstsq'),
    ('inverse', {'align': 'lstsq'}, r'falls with the true depth(.|\n)*--align disparity')])
def test_predictions_that_are_refused(dataset, rivals, name, how, message):
    """Files that are missing, of a wrong unit, or of a wrong sign."""
    with pytest.raises(PredictionError, match=message):
        prediction_files.open_predictions('a', rivals / name, dataset, PROTOCOLS['bts'], **how)


def predicted(folder, dataset, change, name='rgb_{:05d}.npy', scale=1000):
    """Write the truth, changed, for every image; PNG with so much a metre. Returns the folder."""
    rng = np.random.default_rng(0)
    for position, entry in enumerate(dataset.entries):
        path = folder / name.format(entry.index, position=position)
        depth = change(np.where((true := dataset.read_truth(position)) > 0, true, 2.0), rng)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == '.npy':
            np.save(path, depth.astype(np.float32))
        elif path.suffix == '.npz':
            np.savez(path, depth.astype(np.float32))
        elif path.suffix == '.png':
            write_png(path, depth, scale)
        else:
            cv2.imwrite(str(path), depth.astype(np.float32))
    return folder


def as_it_is(true, _):
    return true


def doubts(dataset, path, scale=0.0, align='none'):
    """Warnings that the report would have of predictions."""
    fresh = replace(dataset, warnings=())
    prediction_files.open_predictions('a', path, fresh, PROTOCOLS['bts'], scale, align)
    return ' '.join(fresh.warnings)


@pytest.mark.parametrize(('stored', 'name', 'taken', 'option'), [
    (256, '{:05d}.png', 0, '256'), (500, '{:05d}.png', 0, '500'), (2000, '{:05d}.png', 0, '2000'),
    (5000, '{:05d}.png', 0, '5000'), (100, '{:05d}.png', 0, '100'), (10, '{:05d}.png', 1000, '10'),
    (0.1, '{:05d}.npy', 0, '0.1'), (1000, '{:05d}.npy', 0, '1000'), (10, '{:05d}.npy', 0, '10'),
    (3.28084, '{:05d}.npy', 0, '3.28084'), (256, '{:05d}.npy', 1000, '256')])
def test_a_unit_that_is_none_is_named(dataset, tmp_path, stored, name, taken, option):
    """Even of a method that is off by 10 %; where the user said so, if nobody can be so wrong."""
    factor = 1.1 if name.endswith('png') else 1.1 * stored
    predicted(tmp_path, dataset, lambda true, _: factor * true, name, stored)
    with pytest.raises(PredictionError, match=rf'--prediction-scale {re.escape(option)}[.,]'):
        doubts(dataset, tmp_path, taken)
    assert not doubts(dataset, tmp_path, stored)


@pytest.mark.parametrize(('change', 'scale', 'doubt'), [
    (as_it_is, 0, ''), (lambda true, _: 1.4 * true, 0, ''), (lambda true, _: 0.7 * true, 0, ''),
    (lambda true, _: 0.3 * true + 1.5, 0, ''),  # hardly more than a constant
    (lambda true, rng: true * rng.lognormal(0, 0.4, true.shape), 0, ''),
    (lambda true, _: 2.4 + 0 * true, 0, 'correlates with the true depth by 0.00'),
    (lambda true, rng: rng.uniform(1, 4, true.shape), 0, 'correlates .* by -?0.0'),
    (lambda true, _: 1.8 * true, 0, '1.8 times the true one'),
    (lambda true, _: 3.3 * true, 1, '3.3 times .* looks like 3.28084'),  # the user says it is so
    # About 3.28 times, and not to be told from feet: noisy, without the nearest or the farthest,
    # of a factor of its own in each image.
    (lambda true, rng: 3.28 * true * rng.lognormal(0, 0.9, true.shape), 0, 'looks like 3.28084'),
    (lambda true, _: 3.28 * (true - 0.9 * true.min()) / (1 - 0.9 * true.min() / np.median(true)),
     0, 'looks like 3.28084'),
    (lambda true, _: 3.28 * (0.3 * true + 0.7 * np.median(true)), 0, 'looks like 3.28084'),
    (lambda true, rng: 3.28 * rng.lognormal(0, 0.3) * true, 0, 'looks like 3.28084'),
    (lambda true, _: (true - true.min() + 0.01) / np.ptp(true), 0, 'is it metric depth')])
def test_a_poor_method_is_not_refused(dataset, tmp_path, change, scale, doubt):
    """It may be wrong by some factor, or relative: that is said where it is much."""
    found = doubts(dataset, predicted(tmp_path, dataset, change), scale)
    assert re.search(doubt, found) if doubt else not found


@pytest.mark.parametrize('align', ['none', 'median', 'lstsq'])
def test_inverse_depth_is_named(dataset, tmp_path, align):
    predicted(tmp_path, dataset, lambda true, _: 6 / true)
    with pytest.raises(PredictionError, match=r'falls with .* Give --align disparity'):
        doubts(dataset, tmp_path, align=align)
    assert not doubts(dataset, tmp_path, align='disparity')


@pytest.mark.parametrize(('order', 'align', 'doubted'), [
    (lambda count: list(range(count)), 'none', False),
    (lambda count: list(range(count)), 'disparity', False),
    (lambda count: list(range(count))[::-1], 'none', True),
    (lambda count: np.roll(range(count), 1), 'none', True),
    (lambda count: np.roll(range(count), 1), 'disparity', True)])
def test_depth_in_another_order_is_doubted(dataset, tmp_path, order, align, doubted):
    """Rooms are alike, so that depth of another one is only poor, and no error."""
    rng, count = np.random.default_rng(0), len(dataset)
    every = np.stack([np.where(true > 0, true, 2.0) for true in map(
        dataset.read_truth, range(count))])
    every *= np.exp(rng.normal(0, 0.2, every.shape))
    np.save(tmp_path / 'all.npy', (1 / every if align == 'disparity' else every)[order(count)])
    opened = replace(dataset, warnings=())
    with suppress(PredictionError) if doubted else nullcontext():  # a refusal is no silence
        prediction_files.open_predictions(
            'a', tmp_path / 'all.npy', opened, PROTOCOLS['bts'], align=align)
        assert ['in the order' in text or 'in this order' in text
                for text in opened.warnings] == [True] * len(opened.warnings)
        assert bool(opened.warnings) == doubted


def test_a_constant_is_by_half_of_any_order(dataset, tmp_path):
    np.save(tmp_path / 'all.npy', np.full((len(dataset), 480, 640), 2.5, np.float32))
    opened = replace(dataset, warnings=())
    prediction_files.open_predictions('a', tmp_path / 'all.npy', opened, PROTOCOLS['bts'])
    assert 'in 50 % of the cases' in opened.warnings[-1]


def test_equal_views_have_no_order(dataset, tmp_path):
    """A camera on a tripod: all is as like as its own."""
    true, rng = dataset.read_truth(0), np.random.default_rng(0)
    still = replace(dataset, warnings=(), truth=lambda _: true)
    np.save(tmp_path / 'all.npy', np.stack([
        np.where(true > 0, true, 2.0) * np.exp(rng.normal(0, 0.2, true.shape))
        for _ in range(len(dataset))]))
    prediction_files.open_predictions('a', tmp_path / 'all.npy', still, PROTOCOLS['bts'])
    assert not still.warnings


def test_what_is_doubtful_stands_in_the_report(world, dataset, tmp_path, capsys):
    predicted(tmp_path / 'p', dataset, lambda true, _: 1.8 * true)
    found = evaluate(world, tmp_path / 'o', '--predictions', f'a={tmp_path / "p"}')
    assert '1.8 times the true one' in found.data.warnings[-1]
    assert '1.8 times the true one' in capsys.readouterr().err


@pytest.mark.parametrize('name', [
    '{:05d}.npz', 'rgb_{:05d}.pfm', 'rgb_{:05d}.tiff', 'RGB_{:05d}.NPY', '{position}.npy',
    '{position:06d}.npy', 'sync_depth_{:05d}.png', 'rgb_{:05d}.jpg.png', 'raw/rgb_{:05d}_pred.npy',
    'rgb_{:05d}_raw_depth_meter.npy', 'a/rgb_{:05d}.npy', 'rgb_{:05d}/depth.npy'])
def test_names_that_other_programs_give(dataset, tmp_path, name):
    """A picture of depth beside depth, and what macOS writes beside files, are no predictions."""
    predicted(tmp_path, dataset, as_it_is, name)
    place = (tmp_path / name).parent if '{' not in Path(name).parent.name else tmp_path
    for entry in dataset.entries:
        (place / f'._rgb_{entry.index:05d}.npy').write_bytes(b'\0\5\x16\7')
        if name.startswith('rgb') and 'npy' in name:
            cv2.imwrite(str(place / f'rgb_{entry.index:05d}.png'), np.zeros((9, 9, 3), np.uint8))
    for position in (0, 7):
        truth = PROTOCOLS['bts'].truth(dataset.read_truth(position))
        found = answer(dataset, position, tmp_path)
        np.testing.assert_allclose(found[truth > 0], truth[truth > 0], atol=6e-4)


@pytest.mark.parametrize(('name', 'drives'), [
    ('{frame:010d}.npy', 1), ('{frame:010d}_image_02.npy', 1), ('{frame:010d}.npy', 2),
    ('{drive}/{frame:010d}.npy', 2), ('{drive}_{frame:010d}_image_02.npy', 2)])
def test_frames_of_one_drive_need_no_drive_in_their_names(tmp_path, name, drives):
    """Of several they do, unless their folders have it."""
    lists = []
    for drive in ('2011_09_26_drive_0002_sync', '2011_09_26_drive_0009_sync')[:drives]:
        write_kitti(tmp_path, [(375, 1242)] * 2, lambda size: np.full(size, 9), drive)
        lists.append((tmp_path / KITTI_LIST).read_text())
    (tmp_path / KITTI_LIST).write_text('\n'.join(lists))
    dataset = open_dataset(tmp_path)
    for position, entry in enumerate(dataset.entries):
        path = tmp_path / 'p' / name.format(drive=entry.sequence, frame=position % 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((375, 1242), 9.0 + position))
    if drives == 2 and 'drive' not in name:
        with pytest.raises(PredictionError, match='files are missing'):
            answer(dataset, 1, tmp_path / 'p', 'kitti')
        return
    last = len(dataset) - 1
    assert answer(dataset, last, tmp_path / 'p', 'kitti').max() == 9 + last


def test_files_that_could_be_several_methods_are_refused(dataset, tmp_path):
    for name in ('rgb_{:05d}_pred.npy', 'rgb_{:05d}_confidence.npy'):
        predicted(tmp_path, dataset, as_it_is, name)
    with pytest.raises(PredictionError, match=r'several files(.|\n)*confidence(.|\n)*pred.npy'):
        doubts(dataset, tmp_path)


def test_a_number_within_a_number_is_none(dataset, tmp_path):
    predicted(tmp_path, dataset, as_it_is, '16{:05d}.npy')
    with pytest.raises(PredictionError, match='10 of 10 files are missing'):
        doubts(dataset, tmp_path)


def test_files_of_other_names_are_listed(dataset, tmp_path):
    for number in range(1, 11):
        np.save(tmp_path / f'{number}.npy', np.ones((2, 2)))
    with pytest.raises(PredictionError, match=r'holds 1.npy, 10.npy, 2.npy and 7 more; the first '
                                              r'is an array'):
        doubts(dataset, tmp_path)


def test_one_array_of_all_images(dataset, tmp_path):
    stack = np.stack([dataset.read_truth(i) + 1 for i in range(len(dataset))])
    for position, (name, save) in enumerate((
            ('a.npy', lambda path: np.save(path, stack)),
            ('a.npz', lambda path: np.savez(path, stack[:, None])),
            ('b.npy', lambda path: np.save(path, np.rint(stack * 1000).astype(np.uint16))))):
        save(tmp_path / name)
        truth = PROTOCOLS['bts'].truth(dataset.read_truth(position))
        found = answer(dataset, position, tmp_path / name, scale=1000.0 * (name == 'b.npy'))
        np.testing.assert_allclose(found[truth > 0], truth[truth > 0] + 1, atol=6e-4)
    np.savez(tmp_path / 'two.npz', stack, stack)
    np.save(tmp_path / 'less.npy', stack[:7])
    (tmp_path / 'page.npy').write_text('<html>login</html>')
    for name, message in (('less.npy', 'of 7 images, and the data set has 10'),
                          ('b.npy', r'whole numbers \(uint16\); give --prediction-scale'),
                          ('two.npz', '2 arrays'), ('page.npy', 'a web page')):
        with pytest.raises(PredictionError, match=message):
            doubts(dataset, tmp_path / name)


@pytest.mark.parametrize('spread', [(1, 480, 640), (1, 1, 480, 640), (480, 640, 1)])
def test_axes_of_one_are_none(one, spread):
    path, read = one
    np.save(path.with_suffix('.npy'), np.full(spread, 2.0))
    assert read(path=path.with_suffix('.npy')).shape == (480, 640)


def test_a_run_goes_on_with_the_same_predictions_only(world, dataset, tmp_path, capsys):
    rival = predicted(tmp_path / 'rival', dataset, lambda true, _: 1.8 * true)
    command = given(world, '--output', tmp_path / 'out', '--predictions', f'a={rival}')
    assert cli.main(command) == 0
    assert cli.main([*command, '--resume']) == 0
    first = min(rival.iterdir())
    np.save(first, np.load(first) + 0.01)
    assert 'other rows' in fails(capsys, [*command, '--resume'])


def test_names_that_are_no_utf8(world, dataset, tmp_path):
    """Of the data, the results and a method: the run ends as any other, and goes on."""
    data, output, rival = (tmp_path / os.fsdecode(name) for name in (
        b'ny\xe9', b'out\xe9', b'riv\xe9'))
    shutil.copytree(world / 'official', data)
    scene = next((data / 'official_splits/test').iterdir())
    for list_file in data.glob('*.txt'):
        list_file.unlink()
    scene.rename(scene.with_name(os.fsdecode(b'caf\xe9')))
    predicted(rival, dataset, lambda true, _: 1.8 * true)
    arguments = given(world, '--output', output, '--predictions', f'a\udce9={rival}', data=data)
    command = [sys.executable, '-c', 'import sys, offline_eval.cli as cli; sys.exit(cli.main())']
    for more in ([], ['--resume']):
        done = subprocess.run([*command, *arguments, *more], capture_output=True, timeout=120,
                              check=False, env={**os.environ, 'PYTHONIOENCODING': 'utf-8:strict'})
        assert done.returncode == 0, done.stderr.decode(errors='replace')
    results = output / 'latest'
    assert 'ny\ufffd' in (results / 'report/report.html').read_text(encoding='utf-8')
    assert 'a\ufffd' in (results / 'report/report.md').read_text(encoding='utf-8')
    assert report.main([str(results)]) == 0
    assert cli.main(['export', *given(world, '-o', output / 'w', data=data)]) == 0
    assert len(list((output / 'w/raw').iterdir())) == 10


@pytest.fixture(scope='module')
def recordings(samples, tmp_path_factory):
    """Four of somebody's own, of three images each, whose numbers are the same in each."""
    folder, lines = tmp_path_factory.mktemp('recordings'), []
    for place, sample in enumerate(samples[:12]):
        name = f'seq{place // 3}/{10 * (place % 3):06d}'
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f'{name}.png'), sample.frame.rgb[..., ::-1])
        write_png(folder / f'{name}_depth.png', sample.raw_depth)
        lines.append(f'{name}.png {name}_depth.png')
    (folder / 'list.txt').write_text('\n'.join(lines))
    return folder, ('--list', folder / 'list.txt')


def test_recordings_with_equal_numbers_are_kept_apart(recordings, tmp_path):
    """Their scenes, the images that are shown, and what others predicted of them."""
    folder, more = recordings
    dataset = open_dataset(folder, more[1])
    rival = tmp_path / 'rival'
    for place, entry in enumerate(dataset.entries):
        write_png(rival / f'{entry.name[:-4]}_pred.png', np.where(
            (truth := dataset.read_truth(place)) > 0, truth, 2))
    folder, results = evaluation.evaluate(cli.options(given(
        None, '--output', tmp_path / 'out', '--predictions', f'a={rival}', *more, data=folder)))
    assert (results.summary.verdict.units, results.summary.verdict.unit) == (4, 'scenes')
    assert len(list((folder / 'samples').iterdir())) == sum(
        len(indices) for indices in results.summary.ranks.values()) == 9
    assert results.summary.row('a').metrics['rmse'] == pytest.approx(0, abs=1e-3)
    assert results.summary.row('DepthCLIP x focal length') is None


def test_few_files_stand_for_no_more_images(recordings, tmp_path, capsys):
    folder, more = recordings
    for number in (0, 10, 20):
        for name in (f'rgb_{number:05d}', f'{number:06d}'):
            write_png(tmp_path / f'{name}.png', np.full((480, 640), 2.0))
    assert 'files are missing' in fails(capsys, given(
        None, '--output', tmp_path / 'out', '--predictions', f'a={tmp_path}', *more, data=folder))


def test_exported_depth_of_recordings_is_read_again(recordings, tmp_path):
    folder, more = recordings
    assert cli.main(['export', *given(None, '-o', tmp_path / 'own', *more, data=folder)]) == 0
    assert {path.name for path in (tmp_path / 'own/raw').iterdir()} == {
        f'seq{i}_{10 * j:06d}.png' for i in range(4) for j in range(3)}
    summary = evaluate(None, tmp_path / 'out', '--predictions', f'a={tmp_path / "own"}', *more,
                       data=folder)
    assert summary.row('a').metrics['rmse'] == pytest.approx(
        summary.row(METHOD).metrics['rmse'], abs=1e-3)


@pytest.fixture
def one(dataset, tmp_path):
    """A method's file of one image, to be spoilt; how to read it."""
    path, truth = tmp_path / 'a.png', dataset.read_truth(2)
    write_png(path, np.full((480, 640), 2.0))

    def read(protocol='bts', align='none', path=path):
        depth = prediction_files.to_metres(prediction_files.read_numbers(path, 0.0), 1000.0, align)
        return prediction_files.prepare(
            depth, path, align, (480, 640), PROTOCOLS[protocol].truth(truth), PROTOCOLS[protocol])
    return path, read


def test_every_scored_pixel_must_have_depth(one):
    path, read = one
    holes = np.full((480, 640), 2.0)
    holes[:44] = 0  # above the crop that is scored
    write_png(path, holes)
    assert (read() > 0).all()
    holes[100:120, 200:220] = 0
    write_png(path, holes)
    for align in ('none', 'median'):
        with pytest.raises(PredictionError, match=r'pixels that are scored have no depth'):
            read(align=align)
    read(align='disparity')  # there 0 is infinitely far


@pytest.mark.parametrize(('size', 'protocol', 'good'), [
    ((480, 640), 'depthclip', True), ((416, 544), 'depthclip', True), ((240, 320), 'bts', True),
    ((416, 544), 'bts', False), ((480, 480), 'bts', False), ((352, 1216), 'depthclip', False),
    ((228, 304), 'bts', False), ((228, 304), 'depthclip', False)])
def test_sizes(one, size, protocol, good):
    path, read = one
    depth = np.full(size, 2.0)
    depth[:, size[1] // 2:] = 4.0
    write_png(path, depth)
    if not good:
        with pytest.raises(PredictionError, match=f'is {size[0]} x {size[1]}[;,] (the image|as)'):
            read(protocol)
        return
    found = read(protocol)
    assert found.shape == PROTOCOLS[protocol].size
    middle = 544 // 2 if size == (416, 544) else 320 - 60 * (protocol == 'depthclip')
    assert set(np.unique(found[200:220, :middle - 2])) <= {1.0, 2.0}  # 1 where nothing is scored
    assert set(np.unique(found[200:220, middle + 2:500])) <= {1.0, 4.0}


def test_what_is_no_prediction(one):
    path, read = one
    array = path.with_suffix('.npy')
    for spoil, message in (
            (lambda: cv2.imwrite(str(path), np.full((480, 640), 200, np.uint8)),
             r'holds uint8 \(480, 640\); expected'),
            (lambda: path.write_bytes(b'no picture'), 'no picture that can be read but text'),
            (lambda: np.save(array, np.ones((480, 640), int)), 'int64.*--prediction-scale'),
            (lambda: np.save(array, np.ones((480, 640, 3), 'f')), r'holds float32 \(480, 640, 3'),
            (lambda: np.save(array, np.ones((480, 640), object)), 'cannot be read as depth'),
            (lambda: array.write_bytes(b'\x93NUMPY'), 'cannot be read as depth')):
        spoil()
        with pytest.raises(PredictionError, match=message):
            read(path=array if array.is_file() else path)


@pytest.mark.parametrize(('more', 'message'), [
    (['--predictions', 'nowhere'], 'NAME=PATH'),
    (['--predictions', 'a=x', '--align', 'b=median'], 'b: is none of --predictions'),
    (['--predictions', 'a=x', '--align', 'most'], 'none, median'),
    (['--predictions', 'a=x', '--prediction-scale', '-1'], 'greater than 0'),
    (['--predictions', 'a=x', '--predictions', 'a=y'], 'every NAME once')])
def test_wrong_usage(world, capsys, more, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(given(world, *more))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


# Calibrated ------------------------------------------------------------------------------------


def test_the_calibrated_row_is_what_the_node_would_say(samples, summary, calibrated):
    """Worked out here once more, by `predict` with the calibration in force."""
    config = DepthConfig.from_dict(summary.config)
    reference = Calibration.load(calibrated['train']).origin.config['reference_focal']
    estimator = DepthEstimator(config.replace(
        calibration=str(calibrated['train']), reference_focal=reference), 'demo', 'cpu')
    ratio = 518.8579 * config.input_height / (416 * config.input_width) / reference
    errors = []
    for number in split(COUNT)[1]:
        said = estimator.predict(np.ascontiguousarray(samples[number].frame.rgb[56:472, 60:604]))
        errors.append(plain_metrics(said.depth[:415, :541] * (ratio / said.focal_ratio),
                                    samples[number].raw_depth[56:471, 60:601])[5])
    row = summary.row('calibrated on 10 training images')
    assert row.metrics['rmse'] == pytest.approx(np.mean(errors), abs=5e-4)
    assert row.metrics['rmse'] != pytest.approx(summary.row(METHOD).metrics['rmse'], abs=0.01)
    assert row.group == 'calibrated'
    assert 'no longer zero-shot' in row.note
    assert 'a training split; none of them is evaluated' in row.note
    assert 'MAY BE AMONG THEM' in summary.row('calibrated on 9 training images').note


@pytest.mark.parametrize(('file', 'more', 'message'), [
    ('test', (), 'it was fitted to image 3 of the data set'),
    ('train', ('--protocol', 'bts'), 'Calibrate with the --protocol'),
    ('train', ('--config', 'temperature: 9.0'), 'another model or configuration'),
    ('old', ('--predictions', f'{METHOD}=HALF'), 'give --predictions another name')])
def test_rows_that_are_refused(world, calibrated, rivals, tmp_path, capsys, file, more, message):
    more = tuple(str(a).replace('HALF', str(rivals / 'half')) for a in more)
    if '--config' in more:
        config = tmp_path / 'other.yaml'
        config.write_text(f'/**:\n  ros__parameters:\n    {more[-1]}\n')
        more = ('--config', config)
    assert message in fails(capsys, given(
        world, '--output', tmp_path, '--calibration', calibrated[file], *more))


def test_the_two_commands_of_the_document(world, tmp_path, capsys):
    """A calibration of the training split is read, as it was fitted to the same view."""
    config = str(ROOT / 'config/demo.yaml')
    assert depthclip(['calibrate', str(world), '-o', str(tmp_path / 'nyu.yaml'), '--config',
                      config, '--weights', 'demo', '--protocol', 'depthclip', '--variant',
                      'scale', '--anyway']) == 0
    assert 'cropped as by protocol depthclip' in capsys.readouterr().err
    file = next(tmp_path.glob('nyu.*.safetensors'))
    about = Calibration.load(file).origin
    assert (about.frames, len(set(about.images))) == (10, 10)
    assert 'train split of splits.mat' in about.split
    found = evaluate(world, tmp_path / 'out', '--calibration', file)
    assert found.row('calibrated on 10 training images').images == 10
