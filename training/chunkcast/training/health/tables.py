"""Findings, calibrations and expectations as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chunkcast.training.health.findings import Finding
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import signal_name


def print_findings(findings: list[Finding]) -> None:
    """A table, the gravest first, and a verdict."""
    table = Table(show_lines=True)
    for heading in ("", "finding", "epoch", "evidence", "advice"):
        table.add_column(heading)
    styles = {"error": "bold red", "warning": "yellow", "info": "dim"}
    for finding in findings:
        epoch = "-" if finding.epoch is None else str(finding.epoch)
        severity = f"[{styles[finding.severity]}]{finding.severity}[/]"
        table.add_row(severity, finding.code, epoch, escape(finding.evidence), escape(finding.advice))
    console = _console()
    if findings:
        console.print(table)
    count = {severity: sum(each.severity == severity for each in findings) for severity in ("error", "warning")}
    console.print(
        f"errors: {count['error']}, warnings: {count['warning']}. Success is measured with chunkcast-sim; losses are "
        "hypotheses.",
        highlight=False,
    )


def print_calibration(facts: dict[str, Any]) -> None:
    """Expected beside measured success of every checkpoint, and how far off each way to expect it is."""
    table = Table(title="expected of held-out runs, and measured through the server", title_justify="left")
    table.add_column("run")
    for heading in ("epoch", "measured", "expected", "95 % interval", "seed's table"):
        table.add_column(heading, justify="right")
    for each in facts["checkpoints"]:
        held_out = each.get("held_out")
        cells = (
            (f"{held_out['expected']:.1%}", f"{held_out['low']:.0%} - {held_out['high']:.0%}")
            if held_out
            else ("-", "-")
        )
        table.add_row(each["run"], str(each["epoch"]), f"{each['measured']:.1%}", *cells, f"{each['seed_table']:.1%}")
    console = _console()
    console.print(table)
    if held_out := facts["held_out"]:
        summary = Table(title="on held-out runs", title_justify="left")
        summary.add_column("expectation from")
        summary.add_column("mean absolute error", justify="right")
        summary.add_column("Spearman", justify="right")
        rows = {
            "metric chosen on the other runs": held_out,
            **held_out["by_metric"],
            "seed's table, training loss": held_out["seed_table"],
            "seed's table, validation loss": held_out["seed_table_on_validation"],
        }
        for name, agreement in rows.items():
            error, rank = agreement["mean_absolute_error"], agreement["spearman"]
            summary.add_row(name, f"{error * 100:.1f} points", f"{rank:.3f}")
        console.print(summary)
        console.print(
            f"{held_out['interval_coverage']:.0%} of the 95 % intervals hold what was measured; by task the mean "
            f"absolute error is {held_out['mean_absolute_error_by_task'] * 100:.1f} points",
            highlight=False,
        )
        if not held_out["mean_absolute_error"] < held_out["seed_table"]["mean_absolute_error"]:
            console.print("warning: no better than the seed's table; calibrate on more runs, or play more episodes")
    else:
        console.print("fewer than three runs: the error on held-out runs cannot be told", highlight=False)
    if facts["expected"]:
        print_expectations(facts["expected"])


def print_expectations(expected: list[dict[str, Any]]) -> None:
    """What a bundle's specification now says."""
    table = Table(title="expected success in the bundle", title_justify="left")
    for heading in ("task", "source"):
        table.add_column(heading)
    for heading in ("expected", "95 % interval"):
        table.add_column(heading, justify="right")
    for each in expected:
        interval = f"{each['low']:.1%} - {each['high']:.1%}"
        table.add_row(escape(each["task"] or "all"), each["source"], f"{each['ratio']:.1%}", interval)
    _console().print(table)


def print_thresholds(health: pb.ServingHealth) -> None:
    """What a bundle's episodes will be judged by."""
    tasks = list(dict.fromkeys(each.task for each in health.thresholds))
    thresholds = {(each.signal, each.task): each.threshold for each in health.thresholds}
    table = Table(title="thresholds of the health signals", title_justify="left")
    table.add_column("signal")
    for task in tasks:
        table.add_column(escape(task or "all"), justify="right")
    for signal in sorted({each.signal for each in health.thresholds}):
        table.add_row(
            signal_name(signal),
            *(f"{thresholds[signal, task]:.3g}" if (signal, task) in thresholds else "" for task in tasks),
        )
    console = _console()
    console.print(table)
    console.print(
        f"{health.reference_episodes} successful episodes to be like, {health.episodes} others to tell how unlike "
        f"healthy ones may be; at most {health.false_alarm_rate:.0%} of healthy episodes will be called unhealthy",
        highlight=False,
    )


def _console() -> Console:
    """Standard output; lines are not broken for a file or a pipe, where no one sees 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=160)
