"""What the server's health notices of a robot's faults while the arm moves, and how often it cries wolf.

``python -m benchmarks.health_faults`` (``make faults``) plays healthy episodes and episodes with each fault through a
server that judges every chunk. Of interest are the faulty episodes that fail (found before their end, and when) and the
healthy ones that succeed (left alone). A faulty episode that succeeds anyway is neither; it is listed.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from chunkcast.client.sim.faults import faults_for
from chunkcast.training.export.bundle_writer import read_spec
from chunkcast.training.files import write_json
from chunkcast.training.health.monitor import EVERY_CHUNK
from chunkcast.training.health.rollouts import Rollouts
from chunkcast.v1.contract import signal_name


@dataclass(frozen=True)
class FaultsConfig:
    """Play healthy and faulty episodes and count what health found."""

    bundle: Path = Path("policies/metaworld-six")
    """The policy, with thresholds (chunkcast-health monitor)."""
    faults: tuple[str, ...] = ()
    """As chunkcast-sim --fault takes them; by default all that the policy could notice."""
    healthy: int = 50
    """Healthy episodes of each task."""
    episodes: int = 20
    """Episodes of each task and fault."""
    seed: int = 1_000_000
    """First episode seed."""
    json: Path = Path("docs/results/health-faults.json")
    """File for everything measured."""


def play(config: FaultsConfig, episodes: int, fault: str) -> list[dict[str, Any]]:
    """Each episode, as ``chunkcast-sim --json`` has it."""
    rollouts = Rollouts(episodes, config.seed, os.cpu_count() or 1)
    arguments = ("--fault", fault) if fault else ()
    played: list[dict[str, Any]] = rollouts.play_bundle(config.bundle, *EVERY_CHUNK, *arguments)["each_episode"]
    return played


def over_threshold(episode: dict[str, Any], thresholds: dict[tuple[str, str], float]) -> set[str]:
    """The signals that exceeded their threshold at some chunk. Not of episodes that were told another task."""
    return {
        signal
        for signal, score in episode["health"]["highest"].items()
        if score > thresholds.get((episode["instruction"], signal), float("inf"))
    }


def judged(fault: str, episodes: list[dict[str, Any]], thresholds: dict[tuple[str, str], float]) -> dict[str, Any]:
    """What health made of a fault's episodes."""
    failed = [each for each in episodes if not each["success"]]
    found = [each for each in failed if each["health"]["flagged_at"] is not None]
    solved = [each for each in episodes if each["success"]]
    # One that was not found by its end was found at its end.
    times = [
        each["health"]["flagged_at"] / each["steps"] if each["health"]["flagged_at"] is not None else 1.0
        for each in failed
    ]
    by_signal = {}
    if not fault.startswith("wrong-task"):
        over = [over_threshold(each, thresholds) for each in failed]
        for signal in sorted({signal for _, signal in thresholds}):
            by_signal[signal] = round(sum(signal in each for each in over) / max(len(failed), 1), 3)
        by_signal["all but response"] = round(sum(bool(each - {"response"}) for each in over) / max(len(failed), 1), 3)
    return {
        "fault": fault,
        "episodes": len(episodes),
        "failed": len(failed),
        "found": len(found),
        "found_rate": round(len(found) / len(failed), 4) if failed else None,
        "median_time": round(statistics.median(times), 4) if times else None,
        "times": [round(time, 4) for time in times],
        "flagged_though_solved": sum(each["health"]["flagged_at"] is not None for each in solved),
        "first_signal": {
            signal: sum(each["health"]["flagged_by"] == signal for each in found)
            for signal in sorted({each["health"]["flagged_by"] for each in found})
        },
        "found_rate_by_signal": by_signal,
    }


def main(config: FaultsConfig) -> None:
    """Play, print, record."""
    spec = read_spec(config.bundle)
    if not spec.HasField("serving_health"):
        raise SystemExit(f"error: {config.bundle} has no health thresholds; run chunkcast-health monitor first")
    thresholds = {(each.task, signal_name(each.signal)): each.threshold for each in spec.serving_health.thresholds}
    console = Console(width=160)
    healthy = [each for each in play(config, config.healthy, "") if each["success"]]
    alarms = [each for each in healthy if each["health"]["flagged_at"] is not None]
    quiet = 1.0 - len(alarms) / len(healthy)
    rows = []
    for fault in config.faults or faults_for(spec):
        rows.append(judged(fault, play(config, config.episodes, fault), thresholds))
        console.print(f"{fault}: {rows[-1]['found']} of {rows[-1]['failed']} failed episodes found", highlight=False)
    failing = [row for row in rows if row["failed"]]
    failed, found = sum(row["failed"] for row in rows), sum(row["found"] for row in rows)
    times = [time for row in rows for time in row["times"]]
    facts = {
        "policy": spec.name,
        "policy_version": spec.version,
        "first_seed": config.seed,
        "healthy": {
            "successes": len(healthy),
            "flagged": len(alarms),
            "false_alarm_rate": round(1.0 - quiet, 4),
            "flagged_episodes": alarms,
        },
        "faults": rows,
        "all": {
            "failed": failed,
            "found": found,
            "found_rate": round(found / failed, 4),
            "balanced_accuracy": round((found / failed + quiet) / 2.0, 4),
            "balanced_accuracy_mean_of_faults": round(
                statistics.mean((row["found_rate"] + quiet) / 2.0 for row in failing), 4
            ),
            "median_time": round(statistics.median(times), 4),
        },
    }
    print_table(console, facts, quiet)
    write_json(config.json, facts)


def print_table(console: Console, facts: dict[str, Any], quiet: float) -> None:
    """For people."""
    table = Table(title=f"{facts['policy']} {facts['policy_version']}", title_justify="left")
    headings = ("fault", "episodes", "failed", "found", "balanced accuracy", "median time", "flagged though solved")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    for row in facts["faults"]:
        accuracy = f"{(row['found_rate'] + quiet) / 2.0:.2f}" if row["failed"] else "-"
        time = f"{row['median_time']:.1%}" if row["failed"] else "-"
        solved = f"{row['flagged_though_solved']} of {row['episodes'] - row['failed']}"
        counts = (str(row["episodes"]), str(row["failed"]), str(row["found"]))
        table.add_row(row["fault"], *counts, accuracy, time, solved)
    every = facts["all"]
    table.add_section()
    totals = (str(every["failed"]), str(every["found"]), f"{every['balanced_accuracy']:.2f}")
    table.add_row("all", "", *totals, f"{every['median_time']:.1%}", "")
    console.print(table)
    healthy = facts["healthy"]
    console.print(
        f"false alarms: {healthy['flagged']} of {healthy['successes']} healthy successes; times: shares of an episode",
        highlight=False,
    )


if __name__ == "__main__":
    main(tyro.cli(FaultsConfig))
