# SPDX-License-Identifier: Apache-2.0
"""`depthclip bag`: a bag, and its images' depth beside them in another one, without ROS."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..bags import Options, Progress, Report, convert, is_done
from ..bags.options import ON_REQUEST, PROJECTED
from ..core.errors import ConfigError
from ..node.process import keep_freed_memory
from .model import load_estimator, settings, to_stderr

if TYPE_CHECKING:
    import argparse

    from ..node.config import NodeConfig


def convert_bag(options: argparse.Namespace) -> int:
    """Convert one bag, and say what came of it.

    Args:
        options: of the command line, see `depthclip_ros.cli.main`.

    Returns:
        Exit code: 1 if no image of the bag has depth.

    Raises:
        DepthClipError: settings, weights, bag or output cannot be used.

    """
    keep_freed_memory()
    depth, node = settings(options.config, options.weights, options.device)
    wanted = bag_options(options, node)
    source, output = Path(options.bag), Path(options.output)
    if options.resume and is_done(source, output, depth, wanted):
        print(f'{output} is done already.')
        return 0
    with closing(_Bar(options.output)) as bar:
        report = convert(
            source, output, lambda: load_estimator(depth, node), wanted,
            resume=options.resume, progress=bar.show, log=bar.say)
    for line in lines(report):
        print(line)
    return 0 if report.answered else 1


def bag_options(options: argparse.Namespace, node: NodeConfig) -> Options:
    """What the command line asks of a conversion.

    Raises:
        ConfigError: its parts do not fit each other.

    """
    if options.cameras:
        node = node.replace(cameras=_split(options.cameras))
    if options.depth_encoding:
        node = node.replace(depth_encoding=options.depth_encoding.removesuffix('-png'))
    outputs = PROJECTED + tuple(
        name for name in ON_REQUEST if getattr(options, name.rpartition('/')[2]))
    return Options(
        node=node, images=_split(options.image), camera_infos=_split(options.camera_info),
        anchor_topic=options.anchor_topic, namespace=options.namespace, outputs=outputs,
        compressed_depth=options.depth_encoding == '16UC1-png', rate=options.rate,
        every=options.every, start=options.start,
        end=float('inf') if options.end is None else options.end, storage=options.storage,
        compression=options.compression)


def lines(report: Report) -> list[str]:
    """What came of a conversion, in sentences."""
    text = [f'{report.output}: {report.answered} of {report.images} images have depth'
            + (f', {report.left_out} were to have none' if report.left_out else '')
            + f' ({report.seconds:.1f} s, {report.network_seconds:.1f} s of them the network).']
    for what, account in (('without depth', report.rejected),
                          ('without camera_info and points', report.unprojected)):
        for camera, causes in sorted(account.items()):
            text += [f'{camera + ": " if camera else ""}{count} images {what}: {cause}.'
                     for cause, count in sorted(causes.items())]
    if report.beyond:
        text.append(f'{report.beyond} pixels have a depth that 16UC1 cannot hold; they are 0.')
    lost = {name: count.lost for name, count in report.topics.items() if count.lost}
    text += [f'{name}: {count} messages are lost.' for name, count in sorted(lost.items())]
    return text + [f'lost: {sentence}' for sentence in report.lost]


class _Bar:
    """Progress in seconds of the bag, with the time left; sentences go above it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: tqdm[None] | None = None

    def show(self, progress: Progress) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=progress.duration, desc=Path(self._name).name, unit='s',
                bar_format='{desc}: {percentage:3.0f} % of {total:.1f} s |{bar}| '
                           '{remaining} left{postfix}')
        self._bar.set_postfix_str(f'{progress.images} images', refresh=False)
        self._bar.update(min(progress.seconds, progress.duration) - self._bar.n)

    def say(self, text: str) -> None:
        if self._bar is None:
            to_stderr(text)
        else:
            self._bar.clear()
            to_stderr(text)
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _split(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(',')) if text else ()
    if '' in parts:
        raise ConfigError(f'{text!r} holds an empty name.')
    return parts
