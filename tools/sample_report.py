# SPDX-License-Identifier: Apache-2.0
"""Make docs/sample_report.html: the evaluation of the demo model on rooms that it never saw.

    python tools/sample_report.py

A few minutes on two cores. The numbers are of rendered rooms and of a small model that knows
nothing else: the report shows what yours will look like, and not how good the method is.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from depthclip_ros.sim.datasets import make_samples, write_labeled_mat, write_splits  # noqa: E402
from offline_eval import cli  # noqa: E402

COUNT, SEED = 80, 30000  # 40 of them are tested on, two in each of 20 rooms
OUTPUT = ROOT / 'docs/sample_report.html'


def main() -> int:
    """Render, evaluate, and keep the report as one file."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the report names its data by the path that was given
        write_labeled_mat('rendered_rooms.mat', make_samples(COUNT, SEED))
        write_splits('splits.mat', COUNT)
        if code := cli.main(['--data', 'rendered_rooms.mat', '--weights', 'demo',
                             '--table', '1', '--table', '2', '--table', '3']):
            return code
        page = next(Path('results/latest').resolve().rglob('report.html'))
        text = page.read_text(encoding='utf-8').replace(f'{ROOT}/', '')
        text = re.sub(r'src="([^":]+\.(?:png|svg))"',
                      lambda match: f'src="{_embedded(page.parent / match[1])}"', text)
    OUTPUT.write_text(text, encoding='utf-8')
    print(f'{OUTPUT}: {OUTPUT.stat().st_size / 1e6:.2f} MB')
    return 0


def _embedded(path: Path) -> str:
    """A picture as an address that holds it; photographs with 256 colours, for their size."""
    data, kind = path.read_bytes(), 'svg+xml'
    if path.suffix == '.png':
        small, kind = io.BytesIO(), 'png'
        Image.open(path).convert('RGB').quantize(256).save(small, 'png', optimize=True)
        data = small.getvalue()
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


if __name__ == '__main__':
    sys.exit(main())
