"""A load's figures, for people."""

from __future__ import annotations

from typing import Any


def print_report(summary: dict[str, Any]) -> None:
    """Print what ``chunkcast-load`` measured as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    loop = "closed loop" if summary["rate_hz"] is None else f"{summary['rate_hz']:g} Hz each, open loop"
    table = Table(
        title=f"{summary['policy']} {summary['policy_version']}: {summary['streams']} robots, {loop}",
        title_justify="left",
    )
    for heading in ("", "chunks/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms"):
        table.add_column(heading, justify="right" if heading else "left")
    latency = [f"{value:.2f}" for value in summary["latency_ms"].values()]
    table.add_row("over gRPC", f"{summary['chunks_per_second']:.0f}", *latency)
    for size, bare in summary.get("bare", {}).get("by_batch_size", {}).items():
        times = [f"{bare[f'p{p}_ms']:.2f}" for p in (50, 90, 99)]
        table.add_row(f"bare run, batch {size}", f"{bare['chunks_per_second']:.0f}", *times, "")
    console.print(table)
    lines = [
        "of the server's time, p50/p90/p99 ms: "
        + ", ".join(
            f"{stage} {times['p50']:.2f}/{times['p90']:.2f}/{times['p99']:.2f}"
            for stage, times in summary["stages_ms"].items()
        )
    ]
    if ratio := summary.get("ratio"):
        lines.append(f"ratio to the bare run: latency {ratio['latency']:.2f}, throughput {ratio['throughput']:.2f}")
    batch, cpu = summary["batch_size"], summary["cpu_ms_per_chunk"]
    lines.append(f"batch size {batch['mean']:.1f} on average, {batch['max']} at most")
    lines.append("processor time a chunk: " + ", ".join(f"{who} {ms:.3f} ms" for who, ms in cpu.items()))
    if memory := summary.get("server_memory_mb"):
        lines.append(
            f"server memory {memory['after_warm_up']:.0f} MB after warm-up, {memory['at_the_end']:.0f} MB at the end"
        )
    missed = summary["deadline_missed"]
    lines.append(f"no chunk within {summary['deadline_ms']:g} ms: {missed:.2%} of {summary['observations']}")
    others = {kind: count for kind, count in summary["outcomes"].items() if kind != "chunk"}
    if others:
        lines.append("not answered with a chunk: " + ", ".join(f"{kind} {count}" for kind, count in others.items()))
    console.print("\n".join(lines), highlight=False)
