# SPDX-License-Identifier: Apache-2.0
"""Twenty good recordings, and twenty that something is wrong with: which does calibrate refuse?

    python tools/sabotage.py --json docs/calibration_checks.json

All are drives through rendered rooms (`test/drives.py`), judged as `depthclip calibrate` judges
them, with the demo model. The good ones differ in camera, mounting, light, sensor and rate; the
others are one drive each with one fault, and refused only if a cause is named that fits it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

from drives import GOOD, SABOTAGE, drive, sensed  # noqa: E402

from depthclip_ros.calibrate.checks import Thumbnail, check, views  # noqa: E402
from depthclip_ros.calibrate.recordings import spread_evenly  # noqa: E402
from depthclip_ros.cli.calibrate import MOST_COMPARED, compare  # noqa: E402
from depthclip_ros.cli.model import settings  # noqa: E402
from depthclip_ros.core import DepthEstimator  # noqa: E402


def main() -> int:
    """Judge all; exit code 1 if one is judged wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--seed', type=int, default=0, help='added to all: other rooms')
    options = parser.parse_args()
    torch.set_num_threads(1)
    estimator = DepthEstimator(settings(None, 'demo')[0], 'demo')
    rows = []
    for name, (arguments, sensor) in GOOD.items():
        seed = arguments['seed'] + options.seed
        frames = sensed(drive(**{**arguments, 'seed': seed}), sensor)
        rows.append({'recording': name, 'expected': [], **judge(estimator, frames)})
        show(rows[-1])
    for number, (name, (change, causes)) in enumerate(SABOTAGE.items()):
        frames = change(drive(seed=200 + number + options.seed), np.random.default_rng(number))
        rows.append({'recording': name, 'expected': sorted(causes), **judge(estimator, frames)})
        show(rows[-1])
    good, bad = rows[:len(GOOD)], rows[len(GOOD):]
    accepted = sum(not row['refused'] for row in good)
    right = sum(bool(row['refused']) and set(row['refused']) <= set(row['expected'])
                for row in bad)
    print(f'{accepted} of {len(good)} good ones accepted; {right} of {len(bad)} others refused '
          'with their cause')
    if options.json:
        options.json.write_text(json.dumps({
            'seed': options.seed, 'accepted': accepted, 'good': len(good),
            'refused with their cause': right, 'sabotaged': len(bad),
            'recordings': rows}, indent=1) + '\n')
    return int(accepted < len(good) or right < len(bad))


def judge(estimator: DepthEstimator, frames: list) -> dict[str, object]:
    """Causes of refusal, and what else there is to see."""
    thumbnails = [Thumbnail.of(frame) for frame in frames]
    comparison = compare(estimator, [frames[i] for i in spread_evenly(len(frames), MOST_COMPARED)])
    refused = check(thumbnails, comparison)
    return {'refused': [refusal.cause for refusal in refused],
            'messages': [refusal.message for refusal in refused],
            'views': views(thumbnails), 'measured over words': round(comparison.ratio, 3),
            'correlation with words': round(comparison.correlation, 3),
            'certainty by words': round(comparison.certainty, 1)}


def show(row: dict[str, object]) -> None:
    """One line."""
    print(f'{row["recording"]:38} {", ".join(row["refused"]) or "accepted":20} '
          f'views {row["views"]:3}, ratio {row["measured over words"]}, '
          f'correlation {row["correlation with words"]}, '
          f'certainty {row["certainty by words"]}', flush=True)


if __name__ == '__main__':
    sys.exit(main())
