# SPDX-License-Identifier: Apache-2.0
"""Write rendered rooms in the formats of real data: NYU Depth v2's files, and a rosbag2 bag.

    python tools/write_demo_data.py --out build/data --images 80

leaves nyu_depth_v2_labeled.mat, splits.mat, official_splits/, the test list, and room_bag/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depthclip_ros.evaluation.datasets.nyu import extract
from depthclip_ros.sim import KINDS, Scene
from depthclip_ros.sim.datasets import make_samples, write_bag, write_labeled_mat, write_splits


def main() -> None:
    """Write everything into --out."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--images', type=int, default=40)
    parser.add_argument('--frames', type=int, default=30, help='of the bag')
    parser.add_argument('--kind', choices=KINDS, default='office', help='room of the bag')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    samples = make_samples(arguments.images, arguments.seed)
    write_labeled_mat(out / 'nyu_depth_v2_labeled.mat', samples)
    write_splits(out / 'splits.mat', len(samples))
    extract(out / 'nyu_depth_v2_labeled.mat', out)
    write_bag(out / 'room_bag', Scene.generate(arguments.kind, arguments.seed),
              frames=arguments.frames, seed=arguments.seed)
    print(f'{out}: {len(samples)} images, a bag of {arguments.frames} frames')


if __name__ == '__main__':
    main()
