# SPDX-License-Identifier: Apache-2.0
"""Tasks for workers that hold a model: one worker in this process, or several on Ray.

Ray (`pip install ray`) starts the workers, places them on CPUs and GPUs, begins a
dead one anew and repeats what it was at. Here is only what hands tasks out.
"""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from .core.errors import ConfigError, DepthClipError, quoted

LOCAL = 'local'
AUTO = 'auto'
# Ray's own store of objects, where this process starts Ray: tasks and reports are small.
_STORE_BYTES = 128 << 20


class FleetError(DepthClipError):
    """There are no workers, or Ray cannot be had; says what to do."""


class Task(NamedTuple):
    """A method of the worker to call; `key` tells whoever asked what it was."""

    key: Any
    method: str
    arguments: tuple[Any, ...]


class Outcome(NamedTuple):
    """What came of a task: its value, or why there is none, and the worker's host and pid."""

    task: Task
    value: Any
    error: str
    worker: str


class Cluster(NamedTuple):
    """Where workers run.

    Attributes:
        address: 'local': Ray is started on this machine, and ended. 'auto': the cluster that this
            machine belongs to, or else as 'local'. Anything else: Ray's address of a cluster.
        workers: how many; 0: as many as the CPUs (GPUs, if they need such) are enough for.
        cpus: of each worker.
        gpus: of each worker; parts of one are possible.
        retries: how often a task is repeated whose worker died.

    """

    address: str = LOCAL
    workers: int = 0
    cpus: float = 1
    gpus: float = 0
    retries: int = 2


class Workers(Protocol):
    """Either kind."""

    def run(self, queue: deque[Task]) -> Iterator[Outcome]:
        """Do all tasks; more may be added to the queue between two outcomes.

        Yields:
            What came of each, in the order in which they end. A task that fails stops no other.

        Raises:
            FleetError: no worker is left.

        """

    def close(self) -> None:
        """End them."""


class Here:
    """One worker, in this process."""

    def __init__(self, make: Callable[[], Any], log: Callable[[str], None] | None = None) -> None:
        """Make it, and say so; whatever that raises is raised here."""
        self._worker = make()
        if log is not None:
            log(f'worker {_name()}')

    def run(self, queue: deque[Task]) -> Iterator[Outcome]:
        """One after the other."""
        while queue:
            task = queue.popleft()
            yield Outcome(task, *_call(self._worker, task), _name())

    def close(self) -> None:
        """Nothing is to be ended."""


class OnRay:
    """Actors, each with a worker of its own."""

    def __init__(
        self, make: Callable[[], Any], cluster: Cluster, log: Callable[[str], None],
    ) -> None:
        """Start them; returns when the first has made its worker.

        Args:
            make: gives a worker; it is sent to the actors, and called anew after a restart.
            cluster: where.
            log: told who works, in sentences.

        Raises:
            FleetError: Ray is missing, there is no such cluster, or no worker could be made.

        """
        try:
            import ray
        except ImportError as error:
            raise FleetError("--ray needs the Python package ray: run 'pip install ray', or leave "
                             '--ray away.') from error
        self._ray: Any = ray  # its annotations do not hold what it does
        self._cluster, self._log = cluster, log
        self._idle: list[Any] = []
        self._connect()
        try:
            count = cluster.workers or self._fitting()
            actor = self._ray.remote(_Actor).options(
                num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=-1,
                max_task_retries=cluster.retries)
            self._loading = {a.load.remote(): a for a in (
                actor.remote(make) for _ in range(count))}
            reasons: list[str] = []
            while not self._idle:
                if not self._loading:
                    raise FleetError(f'No worker could be started. {reasons[0]}')
                done, _ = ray.wait(list(self._loading), num_returns=1)
                reasons += self._loaded(done[0])
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        """Nothing is told to anybody, and no dashboard is opened, unless the user wants it."""
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
        usual: dict[str, Any] = {'log_to_driver': False, 'logging_level': 'WARNING',
                                 'configure_logging': True}
        here = {'address': LOCAL, 'include_dashboard': False,
                'object_store_memory': _STORE_BYTES, **usual}
        address = self._cluster.address
        try:
            if address == LOCAL:
                self._ray.init(**here)
            elif address == AUTO:
                try:
                    self._ray.init(address=AUTO, **usual)
                except ConnectionError:
                    self._ray.init(**here)
            else:
                self._ray.init(address=address, **usual)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise FleetError(f'--ray {quoted(address)}: Ray cannot be reached or started there: '
                             f'{quoted(str(error), 300)}. "--ray local" needs no cluster.'
                             ) from error

    def _fitting(self) -> int:
        resources = self._ray.cluster_resources()
        kind, each = ('GPU', self._cluster.gpus) if self._cluster.gpus else (
            'CPU', self._cluster.cpus)
        count = int(resources.get(kind, 0) / each)
        if not count:
            raise FleetError(f'A worker needs {each:g} {kind}, and Ray has '
                             f'{resources.get(kind, 0):g}.')
        return count

    def _loaded(self, ref: Any) -> list[str]:
        """Take in an actor that has made its worker, or could not: why."""
        actor = self._loading.pop(ref)
        try:
            name, error = self._ray.get(ref)
        except self._ray.exceptions.RayError as failure:
            name, error = 'a worker', _in_words(failure)
        if error:
            self._log(f'{name} cannot work: {error}')
            return [error]
        self._log(f'worker {name}')
        self._idle.append(actor)
        return []

    def run(self, queue: deque[Task]) -> Iterator[Outcome]:
        """As they end."""
        running: dict[Any, tuple[Any, Task]] = {}
        while queue or running:
            while queue and self._idle:
                actor, task = self._idle.pop(), queue.popleft()
                running[actor.call.remote(task)] = actor, task
            if not running and not self._loading:
                raise FleetError(f'No worker is left, and {len(queue)} tasks are.')
            done, _ = self._ray.wait([*running, *self._loading], num_returns=1)
            if done[0] in self._loading:
                self._loaded(done[0])
                continue
            actor, task = running.pop(done[0])
            try:
                value, error, name = self._ray.get(done[0])
            except self._ray.exceptions.RayError as failure:
                value, error, name = None, _in_words(failure), 'a worker that died'
            self._idle.append(actor)
            yield Outcome(task, value, error, name)

    def close(self) -> None:
        """End the actors, and Ray where it was started here."""
        self._ray.shutdown()


class _Actor:
    """A worker in a process of Ray's. After a restart it is made anew when it is needed."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._worker: Any = None

    def load(self) -> tuple[str, str]:
        """Make the worker; returns its name, and why it could not be made."""
        try:
            if self._worker is None:
                self._worker = self._make()
        except Exception as error:  # noqa: BLE001 - told to whoever started it
            return _name(), _reason(error)
        return _name(), ''

    def call(self, task: Task) -> tuple[Any, str, str]:
        """Do a task: its value, or why there is none, and who did it."""
        name, error = self.load()
        if error:
            return None, error, name
        return *_call(self._worker, task), name


def _call(worker: Any, task: Task) -> tuple[Any, str]:
    try:
        return getattr(worker, task.method)(*task.arguments), ''
    except Exception as error:  # noqa: BLE001 - one task must not stop the others
        return None, _reason(error)


def _reason(error: Exception) -> str:
    """Errors of this package are complete sentences; others need their type."""
    return str(error) if isinstance(error, DepthClipError) else \
        f'{type(error).__name__}: {quoted(str(error), 300)}'


def _in_words(error: Exception) -> str:
    text = ' '.join(str(error).split())
    return ('Its worker died more often than --retries allows (was it short of memory?): '
            f'{quoted(text, 300)}')


def _name() -> str:
    return f'{platform.node()}:{os.getpid()}'


def cluster_of(address: str | None, **others: Any) -> Cluster | None:
    """Cluster of the command line; None without --ray.

    Raises:
        ConfigError: an option makes no sense without it.

    """
    given = {name: value for name, value in others.items() if value is not None}
    if address is None:
        if given:
            raise ConfigError(f'--{next(iter(given))} counts with --ray only.')
        return None
    return Cluster(address, **given)
