# SPDX-License-Identifier: Apache-2.0
"""The estimator beside the naive way to run DepthCLIP: milliseconds from RGB to depth.

All that is compared runs on the same weights and in turns, so that a machine which gets slower or
faster in between does so for all; in one process, but for OpenVINO and ONNX Runtime, which would
slow the others down. RN50, random weights: the time is the same.

    python benchmarks/estimator.py                    # writes benchmarks/results/estimator-*.json
    python benchmarks/estimator.py --quick            # two rounds, small input: does it run?
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

from clip_standin import state_dict, synthetic_rgb, tiny_state_dict  # noqa: E402

from benchmarks import machine, report  # noqa: E402
from benchmarks.naive import NaiveDepthClip  # noqa: E402
from depthclip_ros.cli.quantize import rooms  # noqa: E402
from depthclip_ros.core import (  # noqa: E402
    DepthClipError,
    DepthConfig,
    DepthEstimator,
    EngineError,
    device,
)
from depthclip_ros.core.backbone import build_image_encoder  # noqa: E402
from depthclip_ros.core.engine import install  # noqa: E402
from depthclip_ros.node.process import keep_freed_memory  # noqa: E402

_LOG = logging.getLogger(__name__)

RESULTS = ROOT / 'benchmarks' / 'results'
ENGINES = ('package', 'int8')
APART = ('int8',)  # in processes of their own
# Those about 320 and 240 lines whose error docs/readouts.md knows.
SMALLER = ((320, 416), (256, 352), (224, 288))


@dataclass
class Contender:
    """One thing that is timed."""

    name: str
    clock: Callable[[], float]  # runs it once and gives the seconds
    images: int = 1
    seconds: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Median, percentiles and rate."""
        p50, p99 = (1e3 * float(np.percentile(self.seconds, p)) for p in (50, 99))
        return {'name': self.name, 'images': self.images, 'p50 [ms]': p50, 'p99 [ms]': p99,
                'min [ms]': 1e3 * min(self.seconds), 'images/s': 1e3 * self.images / p50}


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """Run something in this process by the clock."""
    def clock() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    return clock


def race(contenders: list[Contender], rounds: int) -> list[dict[str, Any]]:
    """Time every contender once a round.

    Each time it runs twice, and the second run counts: the first finds what its predecessor has
    left in the caches, and that one's threads maybe not yet at rest.
    """
    for _ in range(1 + rounds):
        for contender in contenders:
            contender.clock()
            contender.seconds.append(contender.clock())
    for contender in contenders:
        del contender.seconds[0]
    return [contender.row() for contender in contenders]


class Elsewhere:
    """Contenders in a process of their own.

    Where OpenVINO is loaded, PyTorch is slower: 5 % while OpenVINO rests, 15 % after its turn.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        """Start the process."""
        context = multiprocessing.get_context('spawn')
        self._pipe, end = context.Pipe()
        context.Process(target=_serve, args=(options, end), daemon=True).start()
        end.close()

    def prepare(self, method: str, *arguments: Any) -> tuple[Callable[[], float], Any]:
        """Call a method of the Bench over there; gives its clock and its information.

        Raises:
            EngineError: it cannot be made.

        """
        number, information = self._ask(method, *arguments)
        return partial(self._ask, 'run', number), information

    def _ask(self, *task: Any) -> Any:
        self._pipe.send(task)
        good, answer = self._pipe.recv()
        if not good:
            raise EngineError(answer)
        return answer


def _serve(options: argparse.Namespace, pipe: Connection) -> None:
    keep_freed_memory()
    bench, clocks = Bench(options), []
    while True:
        try:
            task, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            if task == 'run':
                pipe.send((True, clocks[arguments[0]]()))
                continue
            clock, information = getattr(bench, task)(*arguments)
            clocks.append(clock)
            pipe.send((True, (len(clocks) - 1, information)))
        except Exception as error:  # noqa: BLE001 (optional packages of others)
            pipe.send((False, f'{type(error).__name__}: {error}'[:300]))


class Bench:
    """Builds what is compared, all on the same weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._processes: dict[str, Elsewhere] = {}
        self.rounds = options.rounds
        self.device = device.resolve_device(options.device)
        self.weights = tiny_state_dict() if options.quick else state_dict(0)
        self.size = (96, 128) if options.quick else (480, 640)
        self.batches = options.batches
        self.engines = options.engines
        self.skipped: dict[str, str] = {}
        self._cache = tempfile.TemporaryDirectory()
        self.half = 'float16' if self.device.type == 'cuda' else 'bfloat16'
        self.why_bfloat16 = device.resolve_precision('bfloat16', self.device).why
        # Every difference from the reference is compared at a temperature where depth varies.
        self._config = DepthConfig(
            backbone='auto', input_height=self.size[0], input_width=self.size[1],
            upsampling='bilinear')  # the official code's, or depth would differ by it

    def estimator(self, **changes: Any) -> DepthEstimator:
        """Build one, with some settings changed."""
        return DepthEstimator(
            self._config.replace(**changes), self.weights, str(self.device),
            cache_dir=self._cache.name, log=_LOG.debug)

    @cached_property
    def automatic(self) -> dict[str, str]:
        """The engine that auto takes, by precision."""
        return {precision: self.estimator(precision=precision).engine
                for precision in self.precisions('package')}

    def precisions(self, engine: str) -> list[str]:
        """Which an engine has here; what the package would refuse is not measured."""
        if engine == 'int8':
            return ['int8']
        return ['float32'] if self.why_bfloat16 else ['float32', self.half]

    def elsewhere(self, package: str) -> Elsewhere:
        """The process of a package."""
        if package not in self._processes:
            self._processes[package] = Elsewhere(self._options)
        return self._processes[package]

    def naive(self) -> NaiveDepthClip:
        """The official code's way."""
        return NaiveDepthClip(
            self.weights, self.estimator().text_features, self._config, self.device)

    def images(self, count: int, size: tuple[int, int] | None = None) -> list[np.ndarray]:
        """Different ones."""
        return [synthetic_rgb(seed, *(size or self.size)) for seed in range(count)]

    def against_naive(self) -> dict[str, Any]:
        """Engines, precisions and flip averaging, one image at a time."""
        naive, image = self.naive(), self.images(1)
        contenders = [
            Contender('naive, two passes', timed(partial(naive, image, flip=True))),
            Contender('naive, one pass', timed(partial(naive, image, flip=False)))]
        errors = {}
        exact = {flip: naive(image, flip=flip)[0] for flip in (True, False)}
        for engine in self.engines:
            for precision in self.precisions(engine):
                for flip in (True, False):
                    name = f'{engine}, {precision}, {"flip" if flip else "plain"}'
                    try:
                        clock, depth = self._contestant(engine, precision, flip)
                    except DepthClipError as error:
                        self.skipped[name] = str(error)
                        continue
                    difference = abs(depth - exact[flip])
                    errors[name] = {'median [m]': float(np.median(difference)),
                                    'max [m]': float(difference.max())}
                    contenders.append(Contender(name, clock))
        rows = race(contenders, self.rounds)
        # Of each round, in which both ran next to each other; the median of these ratios.
        two, one = contenders[0].seconds, contenders[1].seconds
        for contender, row in zip(contenders, rows, strict=True):
            row['times faster than two naive passes'] = _ratio(two, contender.seconds)
            row['times faster than one naive pass'] = _ratio(one, contender.seconds)
            row['difference from naive'] = errors.get(contender.name)
        return {'input': _named(self.size), 'rows': rows}

    def _contestant(
        self, engine: str, precision: str, flip: bool,
    ) -> tuple[Callable[[], float], np.ndarray]:
        """Clock and depth of an estimator on an engine."""
        if engine in APART:
            return self.elsewhere(engine).prepare(f'{engine}_estimator', precision, flip)
        return self._enter(
            self.estimator(precision=precision, flip_average=flip))

    def int8_estimator(
        self, precision: str, flip: bool,
    ) -> tuple[Callable[[], float], np.ndarray]:
        """The same in 8 bits, made of rendered rooms."""
        return self._enter(self.quantized(precision=precision, flip_average=flip))

    def quantized(self, **changes: Any) -> DepthEstimator:
        """Build one in 8 bits, and first what it needs."""
        size = {name: changes[name] for name in ('input_height', 'input_width') if name in changes}
        self.estimator(**size).quantize(rooms(), 'rendered rooms')
        return self.estimator(**changes)

    def _enter(self, estimator: DepthEstimator) -> tuple[Callable[[], float], np.ndarray]:
        image = self.images(1)
        return timed(partial(estimator.predict, image)), estimator.predict(image)[0].depth

    def trunks(self) -> list[dict[str, Any]]:
        """The convolutional part alone, every engine on the same graph."""
        contenders = []
        for engine in self.engines:
            for precision in self.precisions(engine):
                name = f'{engine}, {precision}'
                try:
                    if engine in APART:
                        clock, _ = self.elsewhere(engine).prepare(f'{engine}_trunk', precision)
                    else:
                        clock = self._trunk(precision)
                except DepthClipError as error:
                    self.skipped[f'trunk, {name}'] = str(error)
                else:
                    contenders.append(Contender(name, clock))
        with torch.inference_mode():
            return race(contenders, self.rounds)

    def _trunk(self, precision: str) -> Callable[[], float]:
        encoder = build_image_encoder(self.weights, 'reference')
        install(encoder, getattr(torch, precision), self.device, self.size, _LOG.warning)
        images = self._normalized().to(self.device, encoder.dtype).contiguous(
            memory_format=torch.channels_last)
        return timed(self._finished(partial(encoder.trunk, images)))

    def int8_trunk(self, precision: str) -> tuple[Callable[[], float], None]:
        """8 bits on ONNX Runtime; call it in a process of its own."""
        estimator = self.quantized(precision=precision)
        return timed(partial(estimator._encoder.trunk, self._normalized())), None  # noqa: SLF001

    def _normalized(self) -> torch.Tensor:
        return torch.randn(1, 3, *self.size)

    def _folded(self) -> nn.Module:
        return build_image_encoder(self.weights, 'reference').trunk

    def _finished(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The same, but over only when the device has finished."""
        if self.device.type == 'cpu':
            return run

        def finished() -> None:
            run()
            torch.cuda.synchronize(self.device)
        return finished

    def batching(self) -> list[dict[str, Any]]:
        """Throughput of the node's way (no flip) over batch sizes."""
        estimator = self.estimator(precision=self.precisions('package')[-1])
        return race([
            Contender(f'batch of {count}',
                      timed(partial(estimator.predict, self.images(count))), count)
            for count in self.batches], self.rounds)

    def sizes(self) -> list[dict[str, Any]]:
        """Smaller inputs of the network in every precision, and an image that must be resized."""
        contenders = []
        for size in (self.size,) if self._options.quick else (self.size, *SMALLER):
            for precision in (*self.precisions('package'), 'int8'):
                name = f'input {_named(size)}, {precision}'
                try:
                    clock = self._sized(size, precision)
                except DepthClipError as error:
                    self.skipped[name] = str(error)
                else:
                    contenders.append(Contender(name, clock))
        usual = self.estimator()
        contenders.append(Contender(
            f'image 1280x720, input {_named(self.size)}, {usual.precision}',
            timed(partial(usual.predict, self.images(1, (720, 1280))))))
        return race(contenders, self.rounds)

    def _sized(self, size: tuple[int, int], precision: str) -> Callable[[], float]:
        if precision == 'int8':
            if 'int8' not in self.engines:
                raise EngineError('int8 is not compared')
            return self.elsewhere('int8').prepare('sized', size, precision)[0]
        return self.sized(size, precision)[0]

    def sized(
        self, size: tuple[int, int], precision: str,
    ) -> tuple[Callable[[], float], None]:
        """Clock of an estimator (no flip) whose input and images have a size."""
        build = self.quantized if precision == 'int8' else self.estimator
        estimator = build(precision=precision, input_height=size[0], input_width=size[1])
        return timed(partial(estimator.predict, self.images(1, size))), None

    def roofline(self, trunks: list[dict[str, Any]]) -> dict[str, Any]:
        """How near the forward pass comes to what matrix products and copies reach here."""
        from torch.utils.flop_counter import FlopCounterMode
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            self._folded()(torch.zeros(1, 3, *self.size))
        flop = counter.get_total_flops()
        result: dict[str, Any] = {'GFLOP a pass': flop / 1e9, 'copy [GB/s]': self._copy_rate()}
        for precision in self.precisions('package'):
            peak = self._matmul_rate(getattr(torch, precision))
            result[f'{precision} matmul [GFLOP/s]'] = peak / 1e9
            for row in trunks:
                if row['name'] == f'package, {precision}':
                    reached = flop / (1e-3 * row['p50 [ms]'])
                    result[f'{precision} forward [GFLOP/s]'] = reached / 1e9
                    result[f'{precision} forward, fraction of matmul'] = reached / peak
        return result

    def _matmul_rate(self, dtype: torch.dtype, n: int = 2048) -> float:
        a, b = (torch.randn(n, n).to(self.device, dtype) for _ in range(2))
        row, = race([Contender('matmul', timed(self._finished(lambda: a @ b)))], 20)
        return 2 * n**3 / (1e-3 * row['p50 [ms]'])

    def _copy_rate(self, mebibytes: int = 256) -> float:
        a = torch.zeros(mebibytes * 2**18, device=self.device)
        b = torch.empty_like(a)
        row, = race([Contender('copy', timed(self._finished(lambda: b.copy_(a))))], 20)
        return 2 * mebibytes * 2**20 / (1e-3 * row['p50 [ms]']) / 1e9


def _ratio(slow: list[float], fast: list[float]) -> float:
    return median(a / b for a, b in zip(slow, fast, strict=True))


def _named(size: tuple[int, int]) -> str:
    return f'{size[1]}x{size[0]}'


def line_to_send(result: dict[str, Any]) -> str:
    """What was found, in one line, for processors that nobody has measured yet."""
    versions = result['versions']
    found = '; '.join(
        f'{row["name"]} {row["p50 [ms]"]:.0f} ms ({row["times faster than two naive passes"]:.2f})'
        for row in result['against naive']['rows'])
    return (f'{platform.machine()}, {result["machine"]}, {result["cores"]} cores, '
            f'{result["threads"]} threads, torch {versions["torch"]}, onnxruntime '
            f'{versions.get("onnxruntime", "-")}, {result["against naive"]["input"]}: {found}')


def main() -> int:
    """Measure everything and write JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--device', default='auto')
    parser.add_argument('--engines', nargs='+', default=ENGINES, choices=ENGINES)
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 2, 4, 8])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--quick', action='store_true', help='a tiny network: does it run?')
    parser.add_argument('--output', type=Path, help='JSON file; default: by the device')
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.batches = 2, [1, 2]
    about = machine.describe()
    keep_freed_memory()  # as the node has it; for every contender
    bench = Bench(options)
    trunks = bench.trunks()
    result = {
        'what': 'RGB (uint8, host) to depth (float32, host), RN50, random weights',
        **about, 'device': str(bench.device), 'threads': torch.get_num_threads(),
        'rounds': bench.rounds, 'engine auto': bench.automatic,
        'precision: bfloat16': bench.why_bfloat16,
        'against naive': bench.against_naive(), 'trunk alone': trunks,
        'batches': bench.batching(), 'sizes': bench.sizes(),
        'roofline': bench.roofline(trunks), 'skipped': bench.skipped,
    }
    output = options.output or RESULTS / f'estimator-{bench.device.type}.json'
    sys.stdout.write(report.write(output, result))
    if platform.machine() not in ('x86_64', 'AMD64'):
        print('\nNo such processor was measured yet. Please send this line to the issues of the '
              f'project:\n{line_to_send(result)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
