# SPDX-License-Identifier: Apache-2.0
"""`python3 -m offline_eval.report FOLDER`: write the report of a results folder again."""

import argparse
import sys

from depthclip_ros.arguments import path
from depthclip_ros.executables import command
from offline_eval.report import write
from offline_eval.results import load


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code, see `executables.command`."""
    return command('python3 -m offline_eval.report', _run, arguments)


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='python3 -m offline_eval.report', description='Write the report of a finished '
        'evaluation again, from its results folder alone.')
    parser.add_argument('folder', type=path, help='results folder, e.g. results/latest')
    folder = parser.parse_args(arguments).folder
    print(*write(folder, load(folder)), sep='\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
