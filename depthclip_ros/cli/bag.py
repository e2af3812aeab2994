# SPDX-License-Identifier: Apache-2.0
"""`depthclip bag` and `depthclip bags`: copy bags and add depth of their images, without ROS."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..bags import Options, Report, convert, is_done
from ..bags.conversion_options import ON_REQUEST, PROJECTED
from ..bags.fleet import DONE, FAILED, MANIFEST, SKIPPED, convert_all, find_bags
from ..bags.ray_workers import cluster_of
from ..core.errors import ConfigError
from ..core.files import named_path
from ..node.process import keep_freed_memory
from ..progress import throttled_printer
from .model import load_estimator, settings, to_stderr

if TYPE_CHECKING:
    import argparse

    from ..messages.node_config import NodeConfig


def convert_bag(options: argparse.Namespace) -> int:
    """Convert one bag, and print a summary.

    Args:
        options: of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 1 if no image of the bag has depth.

    Raises:
        DepthClipError: settings, weights, bag or output cannot be used.

    """
    keep_freed_memory()
    depth, node = settings(options.config, options.weights, options.device)
    conversion = _conversion(options, node)
    source, output = named_path(options.bag, options.bag), named_path(options.output)
    if options.resume and is_done(source, output, depth, conversion):
        print(f'{output} is done already.')
        return 0
    with tqdm(desc=output.name, total=1, bar_format='{desc}: {percentage:3.0f} % |{bar}| '
              '{remaining} left{postfix}', disable=None) as bar:
        log = throttled_printer()

        def show(fraction: float, images: int) -> None:
            if bar.disable:  # there is no terminal
                log(f'{output.name}: {fraction:.0%}, {images} images')
                return
            bar.set_postfix_str(f'{images} images', refresh=False)
            bar.update(min(fraction, 1) - bar.n)

        report = convert(
            source, output, lambda: load_estimator(depth, node), conversion, resume=options.resume,
            progress=show, log=lambda text: tqdm.write(text, file=sys.stderr))
    print(*_summary(report), sep='\n')
    return 0 if report.answered else 1


def convert_bags(options: argparse.Namespace) -> int:
    """Convert every bag of a folder or a list, one after the other or on Ray.

    Args:
        options: of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 1 if a bag failed; the others are converted.

    Raises:
        DepthClipError: settings, weights, input or output cannot be used, or there is no worker.

    """
    depth, node = settings(options.config, options.weights, options.device)
    conversion = _conversion(options, node)
    bags = find_bags(options.source)
    output = named_path(options.output).absolute()
    to_stderr(f'{len(bags)} bags')
    result = convert_all(bags, output, depth, conversion, cluster_of(options),
                         resume=options.resume, log=to_stderr)
    print(f'{result[DONE]} bags converted, {result[SKIPPED]} were before, {result[FAILED]} failed:'
          f' {output / MANIFEST}')
    return 1 if result[FAILED] else 0


def _conversion(options: argparse.Namespace, node: NodeConfig) -> Options:
    """Convert the options of the command line to those of a conversion."""
    if options.cameras:
        node = node.replace(cameras=_split(options.cameras))
    if options.depth_encoding:
        node = node.replace(depth_encoding=options.depth_encoding.removesuffix('-png'))
    return Options(
        node, _split(options.image), _split(options.camera_info), options.anchor_topic,
        options.namespace,
        (*PROJECTED, *(n for n in ON_REQUEST if getattr(options, n.rpartition('/')[2]))),
        options.depth_encoding == '16UC1-png', options.rate, options.every, options.start,
        float('inf') if options.end is None else options.end)


def _summary(report: Report) -> list[str]:
    """Summarize a conversion in sentences."""
    text = [f'{report.output}: {report.answered} of {report.images} images have depth'
            + (f', {report.left_out} were to have none' if report.left_out else '')
            + f' ({report.seconds:.1f} s, {report.network_seconds:.1f} s of them the network).']
    text += [f'{count} images {result}: {cause}.' for result, counts in (
        ('without depth', report.rejected), ('without camera_info and points', report.unprojected))
        for cause, count in sorted(counts.items())]
    if report.beyond:
        text.append(f'{report.beyond} pixels have a depth that 16UC1 cannot hold; they are 0.')
    return text


def _split(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(',')) if text else ()
    if '' in parts:
        raise ConfigError(f'{text!r} holds an empty name.')
    return parts
