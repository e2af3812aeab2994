# SPDX-License-Identifier: Apache-2.0
"""Tasks for workers that each hold a model: this process, or several on Ray.

Ray (`pip install ray`) starts the workers, places them on CPUs and GPUs, restarts a dead one and
repeats its task. This file only distributes the tasks.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.errors import DepthClipError, quoted, reason

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    # Creates a worker's function, which is called with the arguments of every task.
    WorkFactory = Callable[[], Callable[..., Any]]
    Task = tuple[Any, tuple[Any, ...]]

LOCAL, AUTO = 'local', 'auto'
_STORE_BYTES = 128 << 20  # of Ray's store of objects: tasks and reports are small


class FleetError(DepthClipError):
    """Ray is missing, cannot be reached, or is too small for a worker."""


class Outcome(NamedTuple):
    """Result of a task: its value, or the error ('' for none)."""

    key: Any
    value: Any
    error: str


class Cluster(NamedTuple):
    """Where workers run.

    Attributes:
        address: 'local': Ray is started on this machine, and stopped at the end. 'auto': this
            machine's cluster, or else as 'local'. Otherwise Ray's address of a cluster.
        cpus: CPUs of each worker.
        gpus: GPUs of each worker, which may be a fraction.
        retries: how often a task is repeated whose worker died.

    """

    address: str = LOCAL
    cpus: float = 1
    gpus: float = 0
    retries: int = 2


def cluster_of(options: argparse.Namespace) -> Cluster | None:
    """Build the cluster of the command line; None without --ray."""
    return None if options.ray is None else Cluster(
        options.ray, options.cpus, options.gpus, options.retries)


def run_tasks(create_work: WorkFactory, tasks: Iterable[Task],
              cluster: Cluster | None) -> Iterator[Outcome]:
    """Run all tasks; the failure of one stops no other.

    Args:
        create_work: creates a worker's function, once in every worker; it is sent to Ray's.
        tasks: key of each task's outcome, and its arguments.
        cluster: where the workers run; None: one task after the other in this process.

    Yields:
        Outcomes in the order in which the tasks end.

    Raises:
        FleetError: Ray is missing, there is no such cluster, or it is too small for a worker.
        DepthClipError: of `create_work`, in this process; on Ray it is the outcome of every task.

    """
    if cluster is None:
        work = create_work()
        for key, arguments in tasks:
            yield Outcome(key, *_run_task(partial(work, *arguments)))
        return
    ray = _connect(cluster)
    try:
        yield from _run_on_ray(ray, create_work, deque(tasks), cluster)
    finally:
        ray.shutdown()


def _run_on_ray(ray: Any, create_work: WorkFactory, queue: deque[Task],
                cluster: Cluster) -> Iterator[Outcome]:
    """Start as many workers as the cluster can hold; give each a task whenever it is idle."""
    resource, required = ('GPU', cluster.gpus) if cluster.gpus else ('CPU', cluster.cpus)
    available = ray.cluster_resources().get(resource, 0)
    if available < required:
        raise FleetError(f'A worker needs {required:g} {resource}, and Ray has {available:g}.')
    actor = ray.remote(_Worker).options(
        num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=-1,
        max_task_retries=cluster.retries)
    idle = [actor.remote(create_work) for _ in range(min(int(available / required), len(queue)))]
    working: dict[Any, tuple[Any, Any]] = {}  # worker and key, by what ray.wait waits for
    while queue or working:
        while queue and idle:
            worker, (key, arguments) = idle.pop(), queue.popleft()
            working[worker.call.remote(arguments)] = worker, key
        result_ref = ray.wait(list(working), num_returns=1)[0][0]
        worker, key = working.pop(result_ref)
        idle.append(worker)
        try:
            value, error = ray.get(result_ref)
        except ray.exceptions.RayError as failure:
            value, error = None, (
                'Its worker died more often than --retries allows (was it short of memory?): '
                f'{reason(failure)}')
        yield Outcome(key, value, error)


class _Worker:
    """A process of Ray. It creates its function for the first task, and again after a restart."""

    def __init__(self, create_work: WorkFactory) -> None:
        self._create_work = create_work
        self._work: Callable[..., Any] | None = None

    def call(self, arguments: tuple[Any, ...]) -> tuple[Any, str]:
        def work() -> Any:
            self._work = self._work or self._create_work()
            return self._work(*arguments)
        return _run_task(work)


def _connect(cluster: Cluster) -> Any:
    """Connect to Ray or start it, by default without usage reports and dashboard."""
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    try:
        import ray
    except ImportError as error:
        raise FleetError("--ray needs the Python package ray: run 'pip install ray', or leave "
                         '--ray away.') from error
    local_options = {'include_dashboard': False, 'object_store_memory': _STORE_BYTES}
    try:
        ray.init(None if cluster.address == AUTO else cluster.address, log_to_driver=False,
                 logging_level='WARNING', **(local_options if cluster.address == LOCAL else {}))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise FleetError(f'--ray {quoted(cluster.address)}: Ray cannot be reached or started '
                         f'there: {quoted(str(error), 300)}. "--ray local" needs no cluster.'
                         ) from error
    return ray


def _run_task(work: Callable[[], Any]) -> tuple[Any, str]:
    """Run a task; return value and error, with the type of errors of other packages."""
    try:
        return work(), ''
    except DepthClipError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 (one task must not stop the others)
        return None, reason(error)
