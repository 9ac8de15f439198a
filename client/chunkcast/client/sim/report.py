"""What a benchmark measured, for people."""

from __future__ import annotations

import urllib.request
from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN_METRICS = (
    "chunkcast_policy_info",
    "chunkcast_chunks_total",
    'stage="inference"',
    "chunkcast_episodes_total",
    "chunkcast_training_noise_mse{",
    'task="all"',
)

SHOWN_REFUSED = 8


def wide_console() -> Console:
    """Standard output; lines are not broken for a file or a pipe, where no one sees 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_report(summary: dict[str, Any]) -> None:
    """A table of success by task, and a line of latency."""
    first, last = summary["first_seed"], summary["last_seed"]
    table = Table(
        title=f"{summary['policy']} {summary['policy_version']}: success through the server, seeds {first}-{last}"
        + (f", with the fault {summary['fault']} ({summary['fault_meaning']})" if summary["fault"] else ""),
        title_justify="left",
    )
    table.add_column("task")
    for heading in ("success", "95 % interval", "episodes", "steps"):
        table.add_column(heading, justify="right")
    expected = summary["expected"]
    if expected:
        table.add_column("expected", justify="right")
    for task, facts in summary["tasks"].items():
        steps = str(facts["mean_steps_of_successes"] or "-")
        table.add_row(task, *_success_cells(facts), steps, *_expected_cells(expected, task))
    table.add_section()
    if difficulty := summary["difficulty"]:
        for group, facts in difficulty["groups"].items():
            table.add_row(f"{group} ({facts['tasks']} tasks)", *_success_cells(facts))
        table.add_row("mean of the four groups", f"{difficulty['mean_of_groups']:.1%}")
    # What is expected over all tasks says nothing of some of them.
    every_task = set(expected) - {"all"} <= set(summary["tasks"])
    table.add_row("all", *_success_cells(summary), "", *(_expected_cells(expected, "all") if every_task else ()))
    console = wide_console()
    console.print(table)
    chunk, inference = summary["chunk_latency_ms"], summary["inference_ms"]
    console.print(
        f"{summary['chunks']} chunks over gRPC: p50 {chunk['p50']:.2f} ms, p90 {chunk['p90']:.2f}, "
        f"p99 {chunk['p99']:.2f}; inference p50 {inference['p50']:.2f} ms; {summary['seconds']:.0f} s in all",
        highlight=False,
    )
    _print_refused(console, summary["refused_instructions"])
    _print_health(console, summary["health"], summary["chunks"])


def _print_refused(console: Console, refused: list[str]) -> None:
    if refused:
        shown = ", ".join(repr(text) for text in refused[:SHOWN_REFUSED]) + (
            ", ..." if len(refused) > SHOWN_REFUSED else ""
        )
        console.print(
            f"refused as none of the policy's instructions, and counted as failures: {shown}", highlight=False
        )


def _print_health(console: Console, health: dict[str, Any] | None, chunks: int) -> None:
    if health is None:
        console.print("the server judged no chunk's health", highlight=False)
        return
    groups = [(name, health[name]) for name in ("successes", "failures") if health[name]["episodes"]]
    parts = [f"{facts['flagged']} of {facts['episodes']} {name}" for name, facts in groups]
    signals = ", ".join(f"{signal} {count}" for signal, count in health["first_signal"].items())
    first = f"; first by {signals}, at tick {health['median_tick']:g} (median)" if signals else ""
    console.print(
        f"called unhealthy by the server while they were played: {', '.join(parts)}{first}; "
        f"{health['judged_chunks']} of {chunks} chunks judged",
        highlight=False,
    )


def print_metrics(address: str) -> None:
    """Some lines of the server's Prometheus page."""
    # Our own server on loopback: no proxy for the web is between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    console = wide_console()
    console.print(f"\nfrom http://{address}/metrics:", highlight=False)
    for line in lines:
        interesting = any(name in line for name in SHOWN_METRICS) and not line.startswith("#")
        if interesting and "_bucket" not in line:
            console.print(f"  {line}", highlight=False, soft_wrap=True)


def _success_cells(facts: dict[str, Any]) -> tuple[str, str, str]:
    low, high = facts["ci95"]
    return f"{facts['success_rate']:.1%}", f"{low:.1%} - {high:.1%}", str(facts["episodes"])


def _expected_cells(expected: dict[str, Any], task: str) -> tuple[str, ...]:
    if task not in expected:
        return ()
    facts = expected[task]
    low, high = facts["ci95"]
    return (f"{facts['success_rate']:.1%} ({low:.0%}-{high:.0%}, {facts['source']})",)
