# SPDX-License-Identifier: Apache-2.0
"""Conversion of many bags, each by itself; OUTPUT/manifest.jsonl lists their results."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.errors import BagError, ConfigError, DepthClipError, quoted
from ..core.estimator import DepthEstimator
from ..core.files import user_path
from ..sources.bag import SUFFIXES, is_bag
from .convert import convert, is_done
from .ray_workers import Cluster, run_tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..core.config import DepthConfig
    from ..messages.node_config import NodeConfig
    from .conversion_options import Options, Report

MANIFEST = 'manifest.jsonl'
DONE, SKIPPED, FAILED = 'done', 'skipped', 'failed'
_BAG_SUFFIXES = (*SUFFIXES, '.bag')


class BagFile(NamedTuple):
    """A bag to convert; `name` is the path of its output in the output folder."""

    name: str
    source: Path


def convert_all(
    bags: list[BagFile], output: Path, depth: DepthConfig, options: Options,
    cluster: Cluster | None, *, resume: bool, log: Callable[[str], None],
) -> Counter[str]:
    """Convert bags; the failure of one stops no other.

    Args:
        bags: the bags to convert.
        output: folder of the converted bags; new or empty.
        depth: settings of the estimator.
        options: options of every conversion.
        cluster: where the workers run; None: in this process.
        resume: skip finished bags, and convert the others.
        log: called with a sentence about every bag.

    Returns:
        Numbers of bags that are done, skipped (done before), and failed.

    Raises:
        DepthClipError: the output cannot be used, or no worker can run.

    """
    if not resume and output.exists() and any(output.iterdir()):
        raise ConfigError(f'{output} is not empty, and nothing is overwritten. Choose another '
                          'folder with -o, or go on in it with --resume.')
    result: Counter[str] = Counter()

    def record(bag: BagFile, status: str, error: str = '', report: Report | None = None) -> None:
        result[status] += 1
        message = f'{report.answered} of {report.images} images have depth' if report else error
        log(f'{bag.name} {status}{": " * bool(message)}{message}')
        entry: dict[str, Any] = {'bag': bag.name, 'source': str(bag.source), 'status': status}
        entry |= {'error': error} if error else {}
        entry |= {'report': dataclasses.asdict(report)} if report else {}
        output.mkdir(parents=True, exist_ok=True)
        with (output / MANIFEST).open('a', encoding='utf-8') as file:
            file.write(json.dumps(entry, ensure_ascii=False) + '\n')

    tasks = []
    for bag in bags:
        try:
            if is_done(bag.source, output / bag.name, depth, options):
                record(bag, SKIPPED)
            else:
                tasks.append((bag, (bag.source, output / bag.name, options)))
        except (DepthClipError, OSError) as error:  # noqa: PERF203 (others go on)
            record(bag, FAILED, str(error))
    threads = options.node.num_threads if cluster is None else max(1, int(cluster.cpus))
    load_model = partial(_load_worker, depth, options.node, threads)
    for bag, report, reason in run_tasks(load_model, tasks, cluster) if tasks else ():
        record(bag, FAILED if reason else DONE, reason, report)
    return result


def _load_worker(depth: DepthConfig, node: NodeConfig,
                 threads: int) -> Callable[..., Report | None]:
    """Load the model, and return the function that converts one bag by it."""
    estimator = DepthEstimator(depth, node.weights, node.device, cache_dir=node.cache_dir,
                               offline=node.offline, num_threads=threads)

    def work(source: Path, output: Path, options: Options) -> Report | None:
        if is_done(source, output, depth, options):  # by a worker that died before its report
            return None
        # An unfinished output is of a worker that died, or of an earlier run.
        return convert(source, output, estimator, options, resume=True)
    return work


def find_bags(argument: str) -> list[BagFile]:
    """Find the bags in a folder or in a list.

    Args:
        argument: a folder, in which every folder with a metadata.yaml is a bag, and every other
            .mcap, .db3 (also with .zstd) or .bag file; one bag; or a text file with the path of a
            bag on every line (# begins a comment).

    Raises:
        BagError: there is no bag.

    """
    try:
        path = user_path(argument).absolute()
        if is_bag(path):
            bags, root = [path], path.parent
        elif path.is_dir():
            folders = {file.parent for file in path.rglob('metadata.yaml')}
            files = (file for file in path.rglob('*') if file.name.endswith(_BAG_SUFFIXES))
            bags, root = sorted(folders | {f for f in files if f.parent not in folders}), path
        else:
            bags, root = [path.parent / line.strip() for line in path.read_text().splitlines()
                          if line.strip() and not line.startswith('#')], None
    except (OSError, ValueError) as error:
        raise BagError(f'{quoted(argument, 200)}: {error}. Give a folder with bags, or a text '
                       'file with the path of one on every line.') from error
    if not bags:
        raise BagError(f'{path} holds or names no bags: no folder with metadata.yaml, no .mcap, '
                       'no .db3.')
    bag_files, name_counts = [], Counter[str]()
    for bag in bags:
        name = bag.name if root is None else str(bag.relative_to(root))
        name = name.removesuffix(next((end for end in _BAG_SUFFIXES if name.endswith(end)), ''))
        name_counts[name] += 1  # a second output of the same name gets a number
        suffix = '' if name_counts[name] == 1 else f'_{name_counts[name]}'
        bag_files.append(BagFile(name + suffix, bag))
    return bag_files
