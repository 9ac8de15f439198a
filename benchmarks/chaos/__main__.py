"""Plays every scenario, or those that are named."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.chaos import of_clients, of_servers, of_surroundings
from benchmarks.chaos.lab import SMALL_BUNDLE, Lab, Outcome, Scenario

SCENARIOS: dict[str, Scenario] = {
    "killed": of_servers.killed,
    "killed, set to stop": of_servers.killed_and_set_to_stop,
    "paused": of_servers.paused,
    "network cut": of_surroundings.network_cut,
    "network slow": of_surroundings.network_slow,
    "disk full": of_surroundings.disk_full,
    "corrupt bundle": of_surroundings.corrupt_bundle,
    "clock jumps": of_servers.clock_jumps,
    "out of memory": of_servers.out_of_memory,
    "client stops reading": of_clients.stops_reading,
    "client floods": of_clients.floods,
    "certificate expires": of_surroundings.certificate_expires,
}


@dataclass(frozen=True)
class ChaosConfig:
    """Break a server and its surroundings while a simulated arm plays at 80 Hz; tell what the arm did."""

    scenarios: tuple[str, ...] = ()
    """Names of those to play; by default all."""
    bundle: Path = SMALL_BUNDLE
    """The policy that is played."""
    pause: float = 3.0
    """Seconds that a thing stays broken."""
    json: Path = Path("docs/results/chaos.json")
    """File for everything."""


def play(name: str, bundle: Path, pause: float) -> Outcome:
    """One scenario, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return SCENARIOS[name](Lab(Path(folder), bundle.resolve(), pause))


def main(config: ChaosConfig) -> None:
    """Exit code 1 if something did not hold."""
    console = Console()
    table = Table("scenario", "ticks played / rested / stopped", "chunk again after", "what did not hold")
    outcomes: dict[str, Any] = {}
    good = True
    for name in config.scenarios or SCENARIOS:
        began = time.monotonic()
        with console.status(name):
            outcome = play(name, config.bundle, config.pause)
        outcomes[name] = asdict(outcome) | {"seconds": round(time.monotonic() - began, 1)}
        good = good and outcome.good
        wrong = [what for what, holds in {**outcome.checks, **outcome.in_time}.items() if not holds]
        ticks = outcome.facts.get("ticks", {})
        again = outcome.facts.get("resumed_after_s")
        table.add_row(
            name,
            " / ".join(str(count) for count in ticks.values()),
            "" if again is None else f"{again:.2f} s",
            outcome.skipped or "; ".join(wrong) or "-",
        )
        console.log(f"{name}: {outcome.skipped or ('as it should be' if outcome.good else wrong)}")
    console.print(table)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "command": f"python -m benchmarks.chaos --pause {config.pause:g}",
        "scenarios": outcomes,
    }
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(report, indent=2) + "\n")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main(tyro.cli(ChaosConfig))
