"""Worker processes that end when their parent does, and are not struck by its Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from chunkcast.simulation.ray_workers import RayWorkers
from chunkcast.training.errors import TrainingError


@contextmanager
def worker_processes(workers: int, ray_address: str = "") -> Iterator[Executor]:
    """A pool of processes; what is pending is cancelled at the block's end.

    Args:
        workers: processes on this machine.
        ray_address: of a Ray cluster whose processors take their place.

    Raises:
        NoCluster: there is none at ``ray_address``.
        TrainingError: one was ended from outside.
    """
    if ray_address:
        cluster = RayWorkers(ray_address)
        try:
            yield cluster
        finally:
            cluster.shutdown(cancel_futures=True)
        return
    # spawn: a forked process inherits locks that other threads hold.
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield executor
    except BrokenProcessPool:
        raise TrainingError(
            "a worker process was ended from outside, perhaps for want of memory; lower --workers"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Around the first submissions, which start the workers: these inherit what is blocked meanwhile. Ctrl-C goes to
    the whole group of processes: it then interrupts neither a worker that just begins nor this one in the middle of it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which cancels what is pending; end with the parent, however it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()
