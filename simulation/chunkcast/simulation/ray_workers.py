"""Workers on a Ray cluster, where a pool of local processes would stand: an executor like any other.

What runs there is imported there: every node needs chunkcast, of the same version. Needs the extra ray.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from chunkcast.simulation.errors import SimulationError

P = ParamSpec("P")
T = TypeVar("T")

_begun: list[str] = []
"""In a worker: whose initializer ran last."""


class NoCluster(SimulationError):
    """There is no Ray cluster at the address, or Ray is not installed."""


class WorkerLost(SimulationError):
    """A worker ended, several times over: its node is gone or has no memory."""


class RayWorkers(Executor):
    """Runs functions on a cluster, one a processor.

    Args:
        address: of the cluster, such as ``auto`` or ``ray://HOST:10001``.
        initializer: run in a process before its first function.
        initargs: its arguments.

    Raises:
        NoCluster: there is none.
    """

    def __init__(self, address: str, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()):
        try:
            import ray
        except ModuleNotFoundError:
            raise NoCluster("ray is not installed; run pip install 'chunkcast[ray]'") from None
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            try:
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = (str(error).splitlines() or ["it does not answer"])[0]
                raise NoCluster(f"no Ray cluster at {address!r} ({reason}); start one with ray start --head") from None
        options = {"num_cpus": 1, "max_retries": 2, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
        self._task = ray.remote(**options)(_call)
        self._setup = (uuid.uuid4().hex, initializer, initargs)
        self._pending: set[Any] = set()

    @property
    def processors(self) -> int:
        """Of the whole cluster."""
        return int(self._ray.cluster_resources().get("CPU", 1))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As ``Executor``'s; the future may raise ``WorkerLost``."""
        reference = self._task.remote(self._setup, fn, args, kwargs)
        self._pending.add(reference)
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def pass_on(done: Future[T]) -> None:
            self._pending.discard(reference)
            error = done.exception()
            if error is None:
                future.set_result(done.result())
            else:
                future.set_exception(self._said(error))

        reference.future().add_done_callback(pass_on)
        return future

    def _said(self, error: BaseException) -> BaseException:
        """What Ray says of its own in one line; what the function raised as it is."""
        own = self._ray.exceptions
        if isinstance(error, own.RayTaskError | own.TaskCancelledError) or not isinstance(error, own.RayError):
            return error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return WorkerLost(f"a worker on the Ray cluster is lost ({reason}); see to its node, and start again")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As ``Executor``'s; what runs is ended where ``cancel_futures`` says so."""
        if cancel_futures:
            for reference in tuple(self._pending):
                self._ray.cancel(reference, force=True)
        elif wait:
            self._ray.wait(list(self._pending), num_returns=len(self._pending)) if self._pending else None
        if self._own:
            self._ray.shutdown()


def _call(
    setup: tuple[str, Callable[..., None] | None, tuple[Any, ...]],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """On a worker. Ray keeps its process for further calls of this driver."""
    name, initializer, initargs = setup
    if initializer and name not in _begun:
        initializer(*initargs)
        _begun.clear()  # what the one before left behind is gone
        _begun.append(name)
    return function(*args, **kwargs)
