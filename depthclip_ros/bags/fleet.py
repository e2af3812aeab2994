# SPDX-License-Identifier: Apache-2.0
"""Many bags, each converted by itself; OUTPUT/manifest.jsonl says what became of each."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.errors import BagError, ConfigError, DepthClipError, quoted
from ..core.estimator import DepthEstimator
from ..core.files import user_path
from ..fleet import Cluster, share_out
from ..sources.bag import SUFFIXES, is_bag
from .convert import convert, is_done

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..core.config import DepthConfig
    from ..messages.config import NodeConfig
    from .options import Options, Report

MANIFEST = 'manifest.jsonl'
DONE, SKIPPED, FAILED = 'done', 'skipped', 'failed'
_FILES = (*SUFFIXES, '.bag')


class BagFile(NamedTuple):
    """A bag of the input; `name` is that of its output, below the output folder."""

    name: str
    source: Path


def convert_all(
    bags: list[BagFile], output: Path, depth: DepthConfig, options: Options,
    cluster: Cluster | None, *, resume: bool, log: Callable[[str], None],
) -> Counter[str]:
    """Convert bags; one that fails stops no other.

    Args:
        bags: what to convert.
        output: folder for the converted ones; new or empty.
        depth: settings of the estimator.
        options: of every conversion.
        cluster: where; None: in this process.
        resume: leave what is done, and make the rest.
        log: told about every bag, in a sentence.

    Returns:
        How many are done, were done before (skipped), and failed.

    Raises:
        DepthClipError: the output cannot be used, or there is no worker.

    """
    if not resume and output.exists() and any(output.iterdir()):
        raise ConfigError(f'{output} is not empty, and nothing is overwritten. Choose another '
                          'folder with -o, or go on in it with --resume.')
    result: Counter[str] = Counter()

    def note(bag: BagFile, status: str, error: str = '', report: Report | None = None) -> None:
        result[status] += 1
        said = f'{report.answered} of {report.images} images have depth' if report else error
        log(f'{bag.name} {status}{": " * bool(said)}{said}')
        line: dict[str, Any] = {'bag': bag.name, 'source': str(bag.source), 'status': status}
        line |= {'error': error} if error else {}
        line |= {'report': dataclasses.asdict(report)} if report else {}
        output.mkdir(parents=True, exist_ok=True)
        with (output / MANIFEST).open('a', encoding='utf-8') as file:
            file.write(json.dumps(line, ensure_ascii=False) + '\n')

    tasks = []
    for bag in bags:
        try:
            if is_done(bag.source, output / bag.name, depth, options):
                note(bag, SKIPPED)
            else:
                tasks.append((bag, (bag.source, output / bag.name, options)))
        except (DepthClipError, OSError) as error:  # noqa: PERF203 (one that fails stops none)
            note(bag, FAILED, str(error))
    threads = options.node.num_threads if cluster is None else max(1, int(cluster.cpus))
    make = partial(_worker, depth, options.node, threads)
    for bag, report, reason in share_out(make, tasks, cluster) if tasks else ():
        note(bag, FAILED if reason else DONE, reason, report)
    return result


def _worker(depth: DepthConfig, node: NodeConfig, threads: int) -> Callable[..., Report | None]:
    """Load the model; what it gives converts one bag after the other."""
    estimator = DepthEstimator(depth, node.weights, node.device, cache_dir=node.cache_dir,
                               offline=node.offline, num_threads=threads)

    def work(source: Path, output: Path, options: Options) -> Report | None:
        if is_done(source, output, depth, options):  # by a worker that died before it said so
            return None
        # What is unfinished here is of a worker that died, or of an earlier run.
        return convert(source, output, estimator, options, resume=True)
    return work


def find_bags(given: str) -> list[BagFile]:
    """Bags in a folder, or named in a list.

    Args:
        given: a folder, in which a bag is every folder with a metadata.yaml, and every other
            .mcap, .db3 (also with .zstd) or .bag file; one bag; or a text file with the path of a
            bag on every line (# begins a comment).

    Raises:
        BagError: there is none.

    """
    try:
        path = user_path(given).absolute()
        if is_bag(path):
            bags, root = [path], path.parent
        elif path.is_dir():
            folders = {file.parent for file in path.rglob('metadata.yaml')}
            files = (file for file in path.rglob('*') if file.name.endswith(_FILES))
            bags, root = sorted(folders | {f for f in files if f.parent not in folders}), path
        else:
            bags, root = [path.parent / line.strip() for line in path.read_text().splitlines()
                          if line.strip() and not line.startswith('#')], None
    except (OSError, ValueError) as error:
        raise BagError(f'{quoted(given, 200)}: {error}. Give a folder with bags, or a text file '
                       'with the path of one on every line.') from error
    if not bags:
        raise BagError(f'{path} holds or names no bags: no folder with metadata.yaml, no .mcap, '
                       'no .db3.')
    found, taken = [], Counter[str]()
    for bag in bags:
        name = bag.name if root is None else str(bag.relative_to(root))
        name = name.removesuffix(next((end for end in _FILES if name.endswith(end)), ''))
        taken[name] += 1  # what has the name of another one gets a number
        found.append(BagFile(name if taken[name] == 1 else f'{name}_{taken[name]}', bag))
    return found
