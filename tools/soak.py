# SPDX-License-Identifier: Apache-2.0
"""A node for a long time: does it grow, and does it lose threads, descriptors or subscriptions?

    python tools/soak.py [--frames 20000] [--round-trips 200] [--reconfigurations 100] [--record]

A node process with a tiny network is sent images at full speed over DDS (the next one as soon as
the depth of the last one is there, all outputs subscribed), then goes through its lifecycle again
and again, then gets other words and distances while images stream. What it holds is read from
/proc before and after. A night's tests run a short version of the same (test/soaking.py);
--record writes the figures of this one into docs/reliability.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

from clip_standin import write_tiny_weights  # noqa: E402
from ros_harness import own_domain  # noqa: E402
from soaking import soak  # noqa: E402

LIMIT = 10.0  # MiB


def main() -> int:
    """Run it; 1 if the node grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--frames', type=int, default=20_000)
    parser.add_argument('--round-trips', type=int, default=200)
    parser.add_argument('--reconfigurations', type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, own_domain() as domain:
        folder = Path(name)
        write_tiny_weights(folder / 'tiny.pt')
        figures = soak(arguments.frames, arguments.round_trips, arguments.reconfigurations,
                       domain, folder, folder / 'tiny.pt')
    for key, value in figures.items():
        print(f'{key}: {value}')
    return 0 if max(value for key, value in figures.items() if 'growth' in key) < LIMIT else 1


if __name__ == '__main__':
    sys.exit(main())
