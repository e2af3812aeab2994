# SPDX-License-Identifier: Apache-2.0
"""Work shared out to processes that each hold a model: this one, or several on Ray.

Ray (`pip install ray`) starts the workers, places them on CPUs and GPUs, begins a
dead one anew and repeats what it was at. Here is only what hands the work out.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .core.errors import DepthClipError, quoted, reason

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    # Makes what works: a function that is called with the arguments of every task.
    Make = Callable[[], Callable[..., Any]]
    Task = tuple[Any, tuple[Any, ...]]

LOCAL, AUTO = 'local', 'auto'
_STORE_BYTES = 128 << 20  # of Ray's store of objects: tasks and reports are small


class FleetError(DepthClipError):
    """There are no workers, or Ray cannot be had; says what to do."""


class Outcome(NamedTuple):
    """What came of a task: its value, or why there is none."""

    key: Any
    value: Any
    error: str


class Cluster(NamedTuple):
    """Where workers run.

    Attributes:
        address: 'local': Ray is started on this machine, and ended. 'auto': the cluster that this
            machine belongs to, or else as 'local'. Anything else: Ray's address of a cluster.
        cpus: of each worker.
        gpus: of each worker; parts of one are possible.
        retries: how often a task is repeated whose worker died.

    """

    address: str = LOCAL
    cpus: float = 1
    gpus: float = 0
    retries: int = 2


def cluster_of(options: argparse.Namespace) -> Cluster | None:
    """Cluster of the command line; None without --ray."""
    return None if options.ray is None else Cluster(
        options.ray, options.cpus, options.gpus, options.retries)


def share_out(make: Make, tasks: Iterable[Task], cluster: Cluster | None) -> Iterator[Outcome]:
    """Do all tasks; one that fails stops no other.

    Args:
        make: called once in every worker; it is sent to those on Ray.
        tasks: a key, by which the outcome is known again, and the arguments of each.
        cluster: where; None: one after the other in this process.

    Yields:
        What came of each, in the order in which they end.

    Raises:
        FleetError: Ray is missing, there is no such cluster, or it is too small for a worker.
        DepthClipError: of `make`, in this process; on Ray it is the outcome of every task.

    """
    if cluster is None:
        work = make()
        for key, arguments in tasks:
            yield Outcome(key, *_outcome(partial(work, *arguments)))
        return
    ray = _connected(cluster)
    try:
        yield from _on_ray(ray, make, deque(tasks), cluster)
    finally:
        ray.shutdown()


def _on_ray(ray: Any, make: Make, queue: deque[Task], cluster: Cluster) -> Iterator[Outcome]:
    """As many workers as there is room for; each gets a task whenever it has none."""
    kind, each = ('GPU', cluster.gpus) if cluster.gpus else ('CPU', cluster.cpus)
    there = ray.cluster_resources().get(kind, 0)
    if there < each:
        raise FleetError(f'A worker needs {each:g} {kind}, and Ray has {there:g}.')
    actor = ray.remote(_Worker).options(
        num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=-1,
        max_task_retries=cluster.retries)
    idle = [actor.remote(make) for _ in range(min(int(there / each), len(queue)))]
    working: dict[Any, tuple[Any, Any]] = {}  # worker and key, by what ray.wait waits for
    while queue or working:
        while queue and idle:
            worker, (key, arguments) = idle.pop(), queue.popleft()
            working[worker.call.remote(arguments)] = worker, key
        done = ray.wait(list(working), num_returns=1)[0][0]
        worker, key = working.pop(done)
        idle.append(worker)
        try:
            value, error = ray.get(done)
        except ray.exceptions.RayError as failure:
            value, error = None, (
                'Its worker died more often than --retries allows (was it short of memory?): '
                f'{reason(failure)}')
        yield Outcome(key, value, error)


class _Worker:
    """A process of Ray's. It makes what works when it is needed, after a restart anew."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._work: Callable[..., Any] | None = None

    def call(self, arguments: tuple[Any, ...]) -> tuple[Any, str]:
        def work() -> Any:
            self._work = self._work or self._make()
            return self._work(*arguments)
        return _outcome(work)


def _connected(cluster: Cluster) -> Any:
    """Ray; nothing is told to anybody, and no dashboard is opened, unless the user wants it."""
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    try:
        import ray
    except ImportError as error:
        raise FleetError("--ray needs the Python package ray: run 'pip install ray', or leave "
                         '--ray away.') from error
    here = {'include_dashboard': False, 'object_store_memory': _STORE_BYTES}
    try:
        ray.init(None if cluster.address == AUTO else cluster.address, log_to_driver=False,
                 logging_level='WARNING', **(here if cluster.address == LOCAL else {}))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise FleetError(f'--ray {quoted(cluster.address)}: Ray cannot be reached or started '
                         f'there: {quoted(str(error), 300)}. "--ray local" needs no cluster.'
                         ) from error
    return ray


def _outcome(work: Callable[[], Any]) -> tuple[Any, str]:
    """Value and error; errors of this package are sentences, others need their type."""
    try:
        return work(), ''
    except DepthClipError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 (one task must not stop the others)
        return None, reason(error)
