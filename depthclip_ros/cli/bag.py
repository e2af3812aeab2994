# SPDX-License-Identifier: Apache-2.0
"""`depthclip bag` and `depthclip bags`: images' depth beside them in new bags, without ROS."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..bags import Options, Report, convert, is_done
from ..bags.fleet import DONE, FAILED, MANIFEST, SKIPPED, convert_all, find_bags
from ..bags.options import ON_REQUEST, PROJECTED
from ..core.errors import ConfigError
from ..core.files import named_path
from ..fleet import cluster_of
from ..node.process import keep_freed_memory
from ..progress import now_and_then
from .model import load_estimator, settings, to_stderr

if TYPE_CHECKING:
    import argparse

    from ..messages.config import NodeConfig


def convert_bag(given: argparse.Namespace) -> int:
    """Convert one bag, and say what came of it.

    Args:
        given: options of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 1 if no image of the bag has depth.

    Raises:
        DepthClipError: settings, weights, bag or output cannot be used.

    """
    keep_freed_memory()
    depth, node = settings(given.config, given.weights, given.device)
    options = _options(given, node)
    source, output = named_path(given.bag, given.bag), named_path(given.output)
    if given.resume and is_done(source, output, depth, options):
        print(f'{output} is done already.')
        return 0
    with tqdm(desc=output.name, total=1, bar_format='{desc}: {percentage:3.0f} % |{bar}| '
              '{remaining} left{postfix}', disable=None) as bar:
        say = now_and_then()

        def show(share: float, images: int) -> None:
            if bar.disable:  # there is no terminal
                say(f'{output.name}: {share:.0%}, {images} images')
                return
            bar.set_postfix_str(f'{images} images', refresh=False)
            bar.update(min(share, 1) - bar.n)

        report = convert(
            source, output, lambda: load_estimator(depth, node), options, resume=given.resume,
            progress=show, log=lambda text: tqdm.write(text, file=sys.stderr))
    print(*_account(report), sep='\n')
    return 0 if report.answered else 1


def convert_bags(given: argparse.Namespace) -> int:
    """Convert every bag of a folder or a list, one after the other or on Ray.

    Args:
        given: options of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 1 if a bag failed; the others are converted all the same.

    Raises:
        DepthClipError: settings, weights, input or output cannot be used, or there is no worker.

    """
    depth, node = settings(given.config, given.weights, given.device)
    options = _options(given, node)
    bags = find_bags(given.source)
    output = named_path(given.output).absolute()
    to_stderr(f'{len(bags)} bags')
    result = convert_all(
        bags, output, depth, options, cluster_of(given), resume=given.resume, log=to_stderr)
    print(f'{result[DONE]} bags converted, {result[SKIPPED]} were before, {result[FAILED]} failed:'
          f' {output / MANIFEST}')
    return 1 if result[FAILED] else 0


def _options(given: argparse.Namespace, node: NodeConfig) -> Options:
    """What the command line asks of a conversion."""
    if given.cameras:
        node = node.replace(cameras=_split(given.cameras))
    if given.depth_encoding:
        node = node.replace(depth_encoding=given.depth_encoding.removesuffix('-png'))
    return Options(
        node, _split(given.image), _split(given.camera_info), given.anchor_topic, given.namespace,
        (*PROJECTED, *(n for n in ON_REQUEST if getattr(given, n.rpartition('/')[2]))),
        given.depth_encoding == '16UC1-png', given.rate, given.every, given.start,
        float('inf') if given.end is None else given.end)


def _account(report: Report) -> list[str]:
    """What came of a conversion, in sentences."""
    text = [f'{report.output}: {report.answered} of {report.images} images have depth'
            + (f', {report.left_out} were to have none' if report.left_out else '')
            + f' ({report.seconds:.1f} s, {report.network_seconds:.1f} s of them the network).']
    text += [f'{count} images {what}: {cause}.' for what, account in (
        ('without depth', report.rejected), ('without camera_info and points', report.unprojected))
        for cause, count in sorted(account.items())]
    if report.beyond:
        text.append(f'{report.beyond} pixels have a depth that 16UC1 cannot hold; they are 0.')
    return text


def _split(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(',')) if text else ()
    if '' in parts:
        raise ConfigError(f'{text!r} holds an empty name.')
    return parts
