# SPDX-License-Identifier: Apache-2.0
"""Many bags, each converted by itself, a long one in windows of time, with a manifest of all.

The output folder holds a bag for every one of the input, and `manifest.jsonl`: first what the
conversion is, then a line for every bag that was tried; the last line of a bag counts. What is
done there is not done again; what failed is. What is not complete yet lies in `.work`: each window
of a bag with its report, none of which is done again either.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..core.config import DepthConfig
from ..core.errors import ConfigError, quoted
from ..core.estimator import DepthEstimator
from ..core.files import atomic, open_regular, user_path
from ..fleet import Outcome, Task, Workers
from ..node.config import NodeConfig
from ..sources.bag import NANOSECONDS, BagError
from .conversion import convert, is_continuous, join, windows
from .journal import SUFFIX
from .options import BagCamera, Options, Report, TopicCount
from .source import METADATA, SUFFIXES_OF_FILES, Source

MANIFEST, WORK, FORMAT = 'manifest.jsonl', '.work', 1
REPORT, WHOLE = 'report.json', 'whole'
DONE, FAILED, BEFORE = 'done', 'failed', 'before'
_SUFFIXES = (*SUFFIXES_OF_FILES, '.bag')


class Bag(NamedTuple):
    """A bag of the input; `name` is that of its output, below the output folder."""

    name: str
    source: Path


class Part(NamedTuple):
    """A window of a bag; None: all of it. In `folder` lie what it becomes, and its report."""

    bag: Bag
    window: tuple[int, int] | None
    folder: Path

    @property
    def output(self) -> Path:
        """Of the name that the bag will have: those of its files are made of it."""
        return self.folder / Path(self.bag.name).name


@dataclass(frozen=True)
class Model:
    """What makes the worker of a process: `fleet.Workers` call it there."""

    depth: DepthConfig
    node: NodeConfig
    threads: int = 0

    def __call__(self) -> Worker:
        """Load the weights.

        Raises:
            DepthClipError: as `DepthEstimator`.

        """
        node = self.node
        return Worker(DepthEstimator(
            self.depth, node.weights, node.device, cache_dir=node.cache_dir,
            offline=node.offline, num_threads=self.threads or node.num_threads))


class Worker:
    """Converts bags with one model."""

    def __init__(self, estimator: DepthEstimator) -> None:
        self._estimator = estimator

    def plan(self, source: Path, options: Options, seconds: float) -> list[tuple[int, int]]:
        """Windows of at most about `seconds` each (0: one); none where a bag is not cut."""
        with closing(Source(source)) as bag:
            duration = (bag.end - bag.begin) / NANOSECONDS
        count = math.ceil(duration / seconds) if seconds else 1
        if count < 2 or is_continuous(self._estimator.config, options.node):
            return []
        return windows(source, options, count)

    def convert(self, part: Part, options: Options) -> Report:
        """Convert a bag, or a window of it; goes on where a worker was that died."""
        part.folder.mkdir(parents=True, exist_ok=True)
        if part.output.exists():  # it died before the report was written
            shutil.rmtree(part.output)
        report = convert(part.bag.source, part.output, self._estimator,
                         dataclasses.replace(options, window=part.window), resume=True)
        write_report(part.folder, report)
        return report

    def join(self, parts: Sequence[Part], whole: Part) -> Report:
        """Put the windows of a bag together."""
        whole.folder.mkdir(parents=True, exist_ok=True)
        for left in (whole.output, whole.output.with_name(whole.output.name + SUFFIX)):
            if left.exists():
                shutil.rmtree(left)
        report = join([read_report(part.folder) for part in parts], whole.output)
        write_report(whole.folder, report)
        return report


def write_report(folder: Path, report: Report) -> None:
    """Keep a report beside its bag; with it the bag is complete."""
    with atomic(folder / REPORT) as file:
        file.write(json.dumps(dataclasses.asdict(report)).encode())


def read_report(folder: Path) -> Report:
    """Read what `write_report` wrote.

    Raises:
        OSError: there is none.

    """
    stored = json.loads((folder / REPORT).read_bytes())
    stored['cameras'] = [BagCamera(*camera) for camera in stored['cameras']]
    stored['topics'] = {name: TopicCount(**count) for name, count in stored['topics'].items()}
    return Report(**stored)


def find_bags(given: str) -> list[Bag]:
    """Bags in a folder, or named in a list.

    Args:
        given: a folder, in which a bag is what holds metadata.yaml, what holds the files of one
            bag without it (`NAME/NAME_0.mcap`), and every other .mcap, .db3 or .bag file; one
            bag; or a text file with the path of a bag on every line (# begins a comment).

    Raises:
        BagError: there is none.

    """
    try:
        path = user_path(given)
        path.stat()
    except OSError as error:
        raise BagError(f'{quoted(given, 200)}: {error.strerror}. Give a folder with bags, or a '
                       'text file with the path of one on every line.') from error
    if path.is_file() and not path.name.endswith(_SUFFIXES):
        return _distinct(_listed(path))
    root = path if path.is_dir() and not _is_bag(path) else path.parent
    found = [path] if root != path else sorted(_inside(path))
    if not found:
        raise BagError(f'{path} holds no bags: no folder with metadata.yaml, no .mcap, no .db3.')
    return _distinct([(str(_stem(bag).relative_to(root)), bag) for bag in found])


def _listed(path: Path) -> list[tuple[str, Path]]:
    try:
        with open_regular(path) as file:
            lines = file.read().decode().splitlines()
    except (OSError, ValueError) as error:
        raise BagError(f'{path} is neither a bag nor a list of bags, one path on every line: '
                       f'{quoted(str(error))}.') from error
    bags = [path.parent / line.strip() for line in lines
            if line.strip() and not line.startswith('#')]
    if not bags:
        raise BagError(f'{path} names no bag.')
    return [(_stem(bag).name, bag) for bag in bags]


def _distinct(named: Iterable[tuple[str, Path]]) -> list[Bag]:
    """Give a number to what has the name of another one."""
    taken: Counter[str] = Counter()
    bags = []
    for name, path in named:
        taken[name] += 1
        bags.append(Bag(name if taken[name] == 1 else f'{name}_{taken[name]}', path))
    return bags


def _inside(folder: Path) -> Iterator[Path]:
    if _is_bag(folder):
        yield folder
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith('.'):
            yield from _inside(path)
        elif path.name.endswith(_SUFFIXES):
            yield path


def _is_bag(folder: Path) -> bool:
    return (folder / METADATA).exists() or any(
        path.name.startswith(f'{folder.name}_') and path.name.endswith(_SUFFIXES)
        for path in folder.iterdir())


def _stem(path: Path) -> Path:
    """Path of a bag without the ending of a file."""
    suffix = next((s for s in sorted(_SUFFIXES, key=len, reverse=True)
                   if path.name.endswith(s)), '')
    return path.with_name(path.name.removesuffix(suffix) or path.name)


def fingerprint(source: Path) -> str:
    """What tells a bag from another one at the same path: names, sizes and times of its files."""
    try:
        files = sorted(p for p in source.rglob('*') if p.is_file()) if source.is_dir() else \
            [source]
        told = [(p.name, s.st_size, s.st_mtime_ns) for p, s in ((p, p.stat()) for p in files)]
    except OSError as error:
        raise BagError(f'{source}: {error.strerror}.') from error
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def header_of(depth: DepthConfig, options: Options, seconds: float) -> dict[str, Any]:
    """What a manifest begins with: the settings that the bags' bytes follow from."""
    machine = ('cache_dir', 'offline', 'num_threads', 'device')  # may differ between workers
    node = {name: value for name, value in options.node.to_dict().items() if name not in machine}
    others = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)
              if f.name not in ('node', 'window')}
    others['end'] = None if math.isinf(options.end) else options.end  # JSON has no infinity
    header = {'format': FORMAT, 'depth': depth.to_dict(), 'node': node,
              'options': others, 'window_seconds': seconds}
    plain: dict[str, Any] = json.loads(json.dumps(header, default=str))
    return plain


class Manifest:
    """The account of a fleet's conversion, written by one process at a time."""

    def __init__(self, folder: Path, file: BinaryIO, lines: dict[str, dict[str, Any]]) -> None:
        self.folder, self._file, self.lines = folder, file, lines

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, header: dict[str, Any], *, resume: bool,
    ) -> Iterator[Manifest]:
        """Begin a new one in a folder that is empty or not there, or go on with one.

        Raises:
            ConfigError: something else is there, it is of another conversion, another process
                writes it, or the folder cannot be written.

        """
        path = folder / MANIFEST
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not resume and any(folder.iterdir()):
                raise ConfigError(f'{folder} is not empty, and nothing is overwritten. Choose '
                                  'another folder with -o, or go on in it with --resume.')
            if resume and not path.is_file():
                raise ConfigError(f'--resume: {folder} holds no {MANIFEST}, so that nothing was '
                                  'begun there.')
            with path.open('a+b', buffering=0) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ConfigError(f'{path}: another process is at work there.') from error
                yield cls(folder, file, _read(path, header))
        except OSError as error:
            raise ConfigError(f'{folder}: cannot be written: {error.strerror}. Choose another '
                              'folder with -o.') from error

    def append(self, line: dict[str, Any]) -> None:
        """Add what came of a bag; on the disk when this returns."""
        self.lines[line['bag']] = line
        _append(self._file, line)

    def is_done(self, bag: Bag) -> bool:
        """Whether a bag's output is there, of the very source that is there now.

        Raises:
            BagError: the source has changed since, or files of the output are gone.

        """
        line = self.lines.get(bag.name)
        if line is None or line['status'] != DONE:
            return False
        output = self.folder / bag.name
        if line['fingerprint'] != fingerprint(bag.source):
            raise BagError(f'{bag.source} has changed since it was converted. Remove {output} '
                           'and its lines in the manifest, to convert it again.')
        gone = [name for name in line['report']['files'] if not (output / name).is_file()]
        if gone:
            raise BagError(f'{output}: {", ".join(gone)} is in the manifest, but not there. '
                           'Remove the rest and its lines in the manifest, to convert it again.')
        return True


def _read(path: Path, header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Lines by bag; a line that was not finished, by a process that was killed, is cut off."""
    data = path.read_bytes()
    whole = data[:data.rfind(b'\n') + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    try:
        first, *others = [json.loads(line) for line in whole.splitlines()] or [None]
        lines = {line['bag']: line for line in others}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{path} is no manifest of bags: {quoted(str(error))}.') from error
    if first is None:
        with path.open('ab', buffering=0) as file:
            _append(file, header)
    elif first != header:
        different = sorted(key for key in {*first, *header} if first.get(key) != header.get(key))
        raise ConfigError(f'{path} is of another conversion: {", ".join(different)} differ. Give '
                          'the same settings and options, or another folder with -o.')
    return lines


def _append(file: BinaryIO, line: dict[str, Any]) -> None:
    rest = memoryview(json.dumps(line, ensure_ascii=False, default=str).encode() + b'\n')
    while rest:
        rest = rest[file.write(rest):]
    os.fsync(file.fileno())


@dataclass
class _State:
    """A bag in work."""

    fingerprint: str
    begun: float
    parts: list[Part] = field(default_factory=list)
    missing: int = 0
    workers: set[str] = field(default_factory=set)


class Fleet:
    """One conversion of many bags. `run` reads as its table of contents."""

    def __init__(
        self, manifest: Manifest, workers: Workers, options: Options, seconds: float,
        log: Callable[[str], None],
    ) -> None:
        """Take over what is ready.

        Args:
            manifest: of the output folder.
            workers: of `Worker`.
            options: of the conversion.
            seconds: longest window; 0: bags are not cut.
            log: told about every bag, in a sentence.

        """
        self._manifest, self._workers = manifest, workers
        self._options, self._seconds, self._log = options, seconds, log
        self._states: dict[Bag, _State] = {}
        self._queue: deque[Task] = deque()
        self._result: Counter[str] = Counter()
        self._count = 0

    def run(self, bags: Sequence[Bag]) -> Counter[str]:
        """Convert what is missing; returns how many are done, failed, or were done before."""
        todo = self._missing(bags)
        self._count = len(todo)
        for bag in todo:
            self._begin(bag)
        for outcome in self._workers.run(self._queue):
            self._take(outcome)
        if not self._result[FAILED]:
            shutil.rmtree(self._manifest.folder / WORK, ignore_errors=True)
        return self._result

    def _missing(self, bags: Sequence[Bag]) -> list[Bag]:
        todo = []
        for bag in bags:
            try:
                done = self._manifest.is_done(bag)
            except BagError as error:
                self._result[FAILED] += 1
                self._log(str(error))
                continue
            if done:
                self._result[BEFORE] += 1
            else:
                todo.append(bag)
        return todo

    def _begin(self, bag: Bag) -> None:
        try:
            told = fingerprint(bag.source)
        except BagError:
            told = ''  # whoever reads it says what is wrong
        self._states[bag] = _State(told, time.monotonic())
        if (self._whole(bag).folder / REPORT).exists():  # all but its name and its line is there
            self._name(bag)
        elif self._final(bag).exists():
            self._end(bag, f'{self._final(bag)} is there already, and not in the manifest. Remove '
                           'it, or choose another folder with -o.')
        else:
            self._queue.append(Task(bag, 'plan', (bag.source, self._options, self._seconds)))

    def _take(self, outcome: Outcome) -> None:
        """Go on with a bag."""
        task = outcome.task
        bag: Bag = task.key
        state = self._states.get(bag)
        if state is None:
            return  # another window of it has failed
        state.workers.add(outcome.worker)
        if outcome.error:
            self._end(bag, outcome.error)
        elif task.method == 'plan':
            self._planned(bag, state, outcome.value)
        elif task.method == 'join' or len(state.parts) == 1:
            self._name(bag)
        else:
            state.missing -= 1
            self._join_if_whole(bag, state)

    def _planned(self, bag: Bag, state: _State, cut: list[tuple[int, int]]) -> None:
        """Windows that are not there yet go before all other bags, so that bags end early."""
        state.begun = time.monotonic()
        state.parts = [self._part(bag, window) for window in cut] or [self._whole(bag)]
        missing = [part for part in state.parts if not (part.folder / REPORT).exists()]
        state.missing = len(missing)
        self._queue.extendleft(
            Task(bag, 'convert', (part, self._options)) for part in reversed(missing))
        self._join_if_whole(bag, state)

    def _join_if_whole(self, bag: Bag, state: _State) -> None:
        if not state.missing:
            self._queue.appendleft(Task(bag, 'join', (state.parts, self._whole(bag))))

    def _name(self, bag: Bag) -> None:
        """Give a complete bag its name, and note it."""
        whole, final = self._whole(bag), self._final(bag)
        report = read_report(whole.folder)
        try:
            if whole.output.exists():
                if final.exists():
                    raise BagError(f'{final} is there already, and not in the manifest.')
                final.parent.mkdir(parents=True, exist_ok=True)
                whole.output.rename(final)
        except (BagError, OSError) as error:
            self._end(bag, str(error))
            return
        self._end(bag, '', dataclasses.replace(report, output=str(final)))
        shutil.rmtree(whole.folder.parent, ignore_errors=True)

    def _final(self, bag: Bag) -> Path:
        return self._manifest.folder / bag.name

    def _whole(self, bag: Bag) -> Part:
        return self._part(bag, None)

    def _part(self, bag: Bag, window: tuple[int, int] | None) -> Part:
        name = WHOLE if window is None else '{}-{}'.format(*window)
        return Part(bag, window, self._manifest.folder / WORK / (
            f'{bag.name}-{self._states[bag].fingerprint}') / name)

    def _end(self, bag: Bag, error: str, report: Report | None = None) -> None:
        state = self._states.pop(bag)
        status = FAILED if error else DONE
        self._result[status] += 1
        for task in [task for task in self._queue if task.key == bag]:
            self._queue.remove(task)
        self._manifest.append({
            'bag': bag.name, 'source': str(bag.source), 'fingerprint': state.fingerprint,
            'status': status, 'error': error, 'windows': len(state.parts),
            'elapsed': round(time.monotonic() - state.begun, 3),
            'workers': sorted(state.workers),
            'report': dataclasses.asdict(report) if report is not None else None})
        said = error or (f'{report.answered} of {report.images} images have depth, '
                         f'{report.seconds:.1f} s of work' if report is not None else '')
        self._log(f'{self._count - len(self._states)} of {self._count}: {bag.name} {status}: '
                  f'{said}')
