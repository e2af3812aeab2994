# SPDX-License-Identifier: Apache-2.0
"""`depthclip bags`: many bags with depth, one after the other or on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..bags.fleet import DONE, FAILED, MANIFEST, SKIPPED, convert_all, find_bags
from ..core.errors import ConfigError
from ..core.files import user_path
from ..fleet import cluster_of
from .bag import bag_options
from .model import settings, to_stderr

if TYPE_CHECKING:
    import argparse


def convert_bags(given: argparse.Namespace) -> int:
    """Convert every bag of a folder or a list.

    Args:
        given: options of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 1 if a bag failed; the others are converted all the same.

    Raises:
        DepthClipError: settings, weights, input or output cannot be used, or there is no worker.

    """
    depth, node = settings(given.config, given.weights, given.device)
    options = bag_options(given, node)
    options.check()
    cluster = cluster_of(given.ray, workers=given.workers, cpus=given.cpus, gpus=given.gpus,
                         retries=given.retries)
    bags = find_bags(given.source)
    try:
        output = user_path(given.output).absolute()
    except OSError as error:
        raise ConfigError(f'-o: {error.strerror}.') from error
    to_stderr(f'{len(bags)} bags')
    result = convert_all(bags, output, depth, options, cluster, resume=given.resume, log=to_stderr)
    print(f'{result[DONE]} bags converted, {result[SKIPPED]} were before, {result[FAILED]} failed:'
          f' {output / MANIFEST}')
    return 1 if result[FAILED] else 0
