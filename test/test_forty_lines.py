# SPDX-License-Identifier: Apache-2.0
"""docs/forty_lines.md: the method with torch and clip alone says what the estimator says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import clip_standin
import numpy as np
import pytest

from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.clip_package import import_clip
from depthclip_ros.core.words import _text_encoder

cv2 = pytest.importorskip('cv2')
ROOT = Path(__file__).resolve().parents[1]


def run(lines, folder, monkeypatch):
    """Depth by the page's first block; clip's weights are the stand-in's."""
    weights = clip_standin.state_dict(0)
    rgb = clip_standin.synthetic_rgb(0)[56:472, 60:604]
    cv2.imwrite(str(folder / 'image.png'), rgb[..., ::-1])
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, 'clip', SimpleNamespace(
        load=lambda *_: (import_clip().model.build_model(dict(weights)), None),
        tokenize=_text_encoder(weights)[0]))
    names = {}
    exec(lines, names)
    estimator = DepthEstimator(DepthConfig.from_yaml(ROOT / 'config/nyu_paper.yaml'), weights,
                               'cpu', cache_dir=folder)
    return names['depth'].numpy(), estimator.predict(rgb).depth


def test_the_lines_say_what_the_estimator_says(tmp_path, monkeypatch, capsys):
    page = (ROOT / 'docs/forty_lines.md').read_text(encoding='utf-8')
    lines = re.search(r'```python\n(.*?)```', page, re.DOTALL)[1]
    assert sum(bool(line.strip()) for line in lines.splitlines()) <= 40
    own, ours = run(lines, tmp_path, monkeypatch)
    np.testing.assert_allclose(own, ours, rtol=0, atol=1e-4)
    assert np.ptp(ours) > 0.1
    assert ' m' in capsys.readouterr().out
    # And would notice a difference.
    other, _ = run(lines.replace('TEMPERATURE = 0.1', 'TEMPERATURE = 0.2'), tmp_path, monkeypatch)
    assert np.abs(other - ours).max() > 1e-3
