"""Many episodes in parallel worker processes, and what they amount to."""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from chunkcast.client import Credentials, PlaybackConfig, PolicyUnavailable
from chunkcast.client.sim.difficulty import by_difficulty
from chunkcast.client.sim.episode import EpisodeJob, EpisodeResult, connect_worker, play_episode, start_worker
from chunkcast.client.sim.phrasing import task_of
from chunkcast.simulation.ray_workers import RayWorkers
from chunkcast.simulation.success import success_rate
from chunkcast.v1 import policy_pb2 as pb

INTERRUPTIONS = {signal.SIGINT, signal.SIGTERM}
PERCENTILES = (50, 90, 99)


def play_all(
    jobs: Sequence[EpisodeJob],
    *,
    target: str,
    credentials: Credentials,
    policy: str,
    playback: PlaybackConfig,
    workers: int,
    on_episode: Callable[[EpisodeResult], None],
    ray_address: str = "",
) -> list[EpisodeResult]:
    """Play every job; results in the jobs' order.

    Args:
        workers: processes on this machine.
        ray_address: of a Ray cluster that plays in their place, an episode a processor.
        on_episode: called as each is done.

    Raises:
        ChunkcastError: a worker lost the server, or the server refused it; the rest is cancelled.
        NoCluster: there is none at ``ray_address``.
    """
    setup = (target, policy, playback, credentials)
    executor: Executor
    if ray_address:
        executor = RayWorkers(ray_address, connect_worker, setup)
    else:
        # spawn: gRPC's threads do not survive a fork.
        spawn = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(workers, spawn, initializer=start_worker, initargs=setup)
    try:
        with _uninterrupted():
            futures = [executor.submit(play_episode, job) for job in jobs]
        for future in as_completed(futures):
            on_episode(future.result())
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise PolicyUnavailable(
            f"a worker process ended while it played against {target}: it could not start (then its message stands "
            "above) or was ended from outside, perhaps for want of memory"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Interruptions wait until the block ends.

    The first submission starts the workers, which inherit what is blocked meanwhile. Ctrl-C goes to the whole group of
    processes: it then interrupts neither a worker that just begins nor this one in the middle of it. Blocking alone
    does not keep it from here: another thread may take the signal, and Python's handler runs on the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda got, _: came.append(got)) for number in INTERRUPTIONS}
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTIONS)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def summarize(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Success with Wilson intervals, steps and latency; the JSON's main part."""
    import numpy as np

    def latency(seconds: list[float]) -> dict[str, float]:
        values = np.percentile(np.array(seconds) * 1e3, PERCENTILES)
        return {f"p{p}": round(float(v), 4) for p, v in zip(PERCENTILES, values, strict=True)}

    tasks: dict[str, Any] = {}
    for task in dict.fromkeys(result.task for result in results):
        of_task = [result for result in results if result.task == task]
        solved = [result for result in of_task if result.success]
        tasks[task] = {
            **success_rate(len(solved), len(of_task)),
            "mean_steps_of_successes": round(float(np.mean([r.steps for r in solved])), 1) if solved else None,
            "failed_seeds": [result.seed for result in of_task if not result.success],
        }
    overall = success_rate(sum(result.success for result in results), len(results))
    return {
        **overall,
        "tasks": tasks,
        "difficulty": by_difficulty(tasks),
        "refused_instructions": sorted({result.instruction for result in results if result.refusal}),
        "jump_at_chunk_borders": _jumps([jump for result in results for jump in result.border_jumps]),
        "jump_elsewhere": _jumps([jump for result in results for jump in result.other_jumps]),
        "chunks": sum(len(result.chunk_seconds) for result in results),
        "chunk_latency_ms": latency([second for result in results for second in result.chunk_seconds]),
        "inference_ms": latency([second for result in results for second in result.inference_seconds]),
        "health": _health(results),
        "each_episode": [
            {
                "task": result.task,
                "seed": result.seed,
                "success": result.success,
                "steps": result.steps,
                "instruction": result.instruction,
                "health": result.health._asdict(),
            }
            for result in results
        ],
    }


def _health(results: Sequence[EpisodeResult]) -> dict[str, Any] | None:
    """How many episodes the server called unhealthy, by what came of them; ``None`` if it judged none."""
    judged = sum(result.health.judged for result in results)
    if not judged:
        return None
    flagged = [result.health for result in results if result.health.flagged_at is not None]
    groups = {
        "successes": [result for result in results if result.success],
        "failures": [result for result in results if not result.success],
    }
    return {
        "judged_chunks": judged,
        "first_signal": dict(Counter(health.flagged_by for health in flagged).most_common()),
        "median_tick": statistics.median(health.flagged_at or 0 for health in flagged) if flagged else None,
        **{
            name: {
                "episodes": len(group),
                "flagged": sum(result.health.flagged_at is not None for result in group),
            }
            for name, group in groups.items()
        },
    }


def _jumps(jumps: list[float]) -> dict[str, float] | None:
    """How far actions are apart from one tick to the next, Euclidean, in action units."""
    import numpy as np

    if not jumps:
        return None
    return {
        "mean": round(float(np.mean(jumps)), 4),
        "p50": round(float(np.median(jumps)), 4),
        "p99": round(float(np.percentile(jumps, 99)), 4),
        "max": round(float(np.max(jumps)), 4),
        "n": len(jumps),
    }


def expected_success(spec: pb.PolicySpec) -> dict[str, dict[str, Any]]:
    """What the specification promises, by task and ``all``: measured where it was measured, else calibrated. The seed's
    table promises nothing.
    """
    expected: dict[str, dict[str, Any]] = {}
    task_by_text = {instruction.text: task_of(instruction) for instruction in spec.instructions}
    for source, word in ((pb.SUCCESS_SOURCE_CALIBRATED, "calibrated"), (pb.SUCCESS_SOURCE_MEASURED, "measured")):
        for each in spec.expected_success:
            if each.source == source:
                interval = [round(each.low, 4), round(each.high, 4)]
                expected[task_by_text.get(each.task, each.task) or "all"] = {
                    "source": word,
                    "success_rate": round(each.ratio, 4),
                    "ci95": interval,
                }
    return expected
