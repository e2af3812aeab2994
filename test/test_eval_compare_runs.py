# SPDX-License-Identifier: Apache-2.0
"""`offline_eval compare`: two runs on the same images."""

import msgspec
import numpy as np
import pytest
from eval_results import make_results
from scipy.stats import t

from offline_eval import cli
from offline_eval.records import RECORDS, Run, layout, save_record, save_run
from offline_eval.results import save


def write_run(folder, near, rel, scenes, **data):
    """Results of images of 100 pixels, with their δ1 and rel."""
    results = make_results(3, size=(52, 68))
    about = msgspec.structs.replace(results.summary.data, **{'evaluated': len(near), **data})
    save(folder, msgspec.structs.replace(
        results, samples=[], summary=msgspec.structs.replace(results.summary, data=about)))
    save_run(folder, Run(
        version='', format='', depth='', images=len(near), data='', protocol='', config={},
        weights='', precision='', device='', rows=[], sequences=scenes))
    for i, record in enumerate(np.zeros((len(near), 1), layout(2, (1, 1)))):
        record['position'], record['pixels'] = i, 100
        record['sums'][0, 0, [0, 1, 4]] = 100, 100 * near[i], 100 * rel[i]
        save_record(folder / RECORDS, record)


@pytest.mark.parametrize('each', [1, 2])  # images of a scene, which are one
def test_difference_and_interval_are_of_pairs(tmp_path, capsys, each):
    rng = np.random.default_rng(0)
    hard, change = (np.repeat(values, each) for values in (
        rng.uniform(0.2, 0.8, 40), rng.normal(0.03, 0.02, 40)))
    scenes = [str(i // each) for i in range(40 * each)]
    write_run(tmp_path / 'a', hard, 1 - hard, scenes)
    write_run(tmp_path / 'b', hard + change, 1 - hard + change, scenes)
    assert cli.main(['compare', str(tmp_path / 'a'), str(tmp_path / 'b')]) == 0
    lines = capsys.readouterr().out.replace('−', '-').replace('±', '').splitlines()
    half = t.ppf(1 - 0.05 / 6 / 2, 39) * change[::each].std(ddof=1) / np.sqrt(40)
    for metric, value, reading in (('δ1 ↑', hard, 'better'), ('rel ↓', 1 - hard, 'worse')):
        line, = (line for line in lines if line.startswith(metric))
        assert line.endswith(f'B is {reading}')
        np.testing.assert_allclose(
            [float(word) for word in line.replace(' to ', ' ').split()[2:7]],
            [value.mean(), (value + change).mean(), *(change.mean() + np.array([0, -half, half]))],
            atol=0.002)
    assert next(line for line in lines if 'rmse' in line).endswith('B is not distinguishable')


def test_what_cannot_be_paired_is_refused(tmp_path, capsys):
    few, a, b = np.full(3, 0.5), tmp_path / 'a', tmp_path / 'b'
    write_run(a, few, few, [''] * 3)
    assert cli.main(['compare', str(a), str(a)]) == 0
    assert 'Too few' in capsys.readouterr().out
    write_run(b, few, few, [''] * 3, digest='e' * 64, depth='in-painted')
    assert cli.main(['compare', str(a), str(b)]) == 1
    text = capsys.readouterr().err
    assert 'depth: raw and in-painted' in text
    assert 'e' * 64 in text
    assert 'protocol name' not in text
    next((a / RECORDS).glob('*1.npz')).write_bytes(b'')
    assert cli.main(['compare', str(a), str(a)]) == 1
    assert 'holds 2 of 3' in capsys.readouterr().err
