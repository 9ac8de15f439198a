"""What a policy with a camera costs to serve, raw pictures and JPEG: one robot that asks again at once, and eight at 5
Hz.

``python -m benchmarks.pictures --bundles policies/metaworld-six-rgb`` (``make bench-rgb``). Robots and server share the
machine. Every run is repeated in turn with the others, so that a machine whose speed drifts slows all of them; medians
are quoted, and the ratio to the bare run of the same moment.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from chunkcast.training.files import write_json


@dataclass(frozen=True)
class PicturesConfig:
    """Load policies with cameras."""

    bundles: tuple[Path, ...] = (Path("policies/metaworld-six-rgb"),)
    """The policies: such as one in fp32 and one in int8."""
    quality: int = 90
    """Of the JPEGs."""
    robots: int = 8
    """That ask at a rate."""
    rate: float = 5.0
    """Observations a second of each."""
    seconds: float = 8.0
    """Of each run."""
    repeats: int = 5
    """Of each run."""
    json: Path = Path("docs/results/pictures.json")
    """File for everything measured."""


def load(bundle: Path, flags: list[str], seconds: float) -> dict[str, Any]:
    """One run of ``chunkcast-load``: its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "load.json"
        command = [sys.executable, "-m", "chunkcast.client.load.cli", "--bundle", str(bundle)]
        command += ["--seconds", str(seconds), "--json", str(file), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"error: {done.stderr.strip().splitlines()[-1]}")
        summary: dict[str, Any] = json.loads(file.read_text())
    summary["command"] = shlex.join(["chunkcast-load", "--bundle", str(bundle), "--seconds", str(seconds), *flags])
    return summary


def picture_bytes(bundle: Path, quality: int | None) -> int:
    """What the observation's pictures weigh as the robots of a load send them: made-up scenes."""
    from chunkcast.client.load.robots import made_observation
    from chunkcast.training.export.bundle_writer import read_spec

    return made_observation(read_spec(bundle), 0, quality).ByteSize()


def main(config: PicturesConfig) -> None:
    """Measure, print, record."""
    one = ["--streams", "1"]
    deadline_ms = 1e3 / config.rate
    fleet = ["--streams", str(config.robots), "--rate", str(config.rate), "--deadline-ms", str(deadline_ms)]
    ways = [
        (bundle, quality, robots)
        for bundle in config.bundles
        for quality in (None, config.quality)
        for robots in (one, fleet)
    ]
    runs: dict[int, list[dict[str, Any]]] = {index: [] for index in range(len(ways))}
    console = Console(width=140)
    with console.status("") as status:
        for repeat in range(config.repeats):
            for index, (bundle, quality, robots) in enumerate(ways):
                status.update(f"run {repeat + 1} of {config.repeats}, {index + 1} of {len(ways)}")
                flags = [*robots, *(["--image-quality", str(quality)] if quality else [])]
                runs[index].append(load(bundle, flags, config.seconds))
    title = f"medians of {config.repeats} runs; a deadline is missed after {deadline_ms:g} ms"
    table = Table(title=title, title_justify="left")
    for heading in (
        "policy",
        "pictures",
        "KB",
        "robots",
        "p50 ms",
        "p90",
        "p99",
        "queue",
        "decode",
        "inference",
        "bare p50",
    ):
        table.add_column(heading, justify="left" if heading in ("policy", "pictures") else "right")
    table.add_column("missed", justify="right")
    rows = []
    for index, (bundle, quality, robots) in enumerate(ways):
        mine = runs[index]

        def median(*keys: str, mine: list[dict[str, Any]] = mine) -> float:
            values = []
            for run in mine:
                value: Any = run
                for key in keys:
                    value = value[key]
                values.append(float(value))
            return statistics.median(values)

        size = picture_bytes(bundle, quality)
        # All of them: a median of missed deadlines would hide some.
        missed = sum(round(run["deadline_missed"] * run["observations"]) for run in mine)
        asked = sum(run["observations"] for run in mine)
        row = {
            "bundle": bundle.name,
            "policy_version": mine[0]["policy_version"],
            "image_quality": quality,
            "observation_bytes": size,
            "robots": mine[0]["streams"],
            "rate_hz": mine[0]["rate_hz"],
            "latency_ms": {key: median("latency_ms", key) for key in ("p50", "p90", "p99")},
            "stages_ms": {
                stage: {key: median("stages_ms", stage, key) for key in ("p50", "p90", "p99")}
                for stage in mine[0]["stages_ms"]
            },
            "bare_p50_ms": median("bare", "latency_ms"),
            "deadline_ms": deadline_ms if robots is fleet else mine[0]["deadline_ms"],
            "deadlines_missed": missed,
            "observations": asked,
            "runs": mine,
        }
        rows.append(row)
        stages = [f"{row['stages_ms'][stage]['p50']:.2f}" for stage in ("queue", "decode", "inference")]
        table.add_row(
            *(bundle.name, f"JPEG {quality}" if quality else "raw", f"{size / 1e3:.0f}"),
            str(row["robots"]) if row["rate_hz"] is None else f"{row['robots']} at {config.rate:g} Hz",
            *(f"{row['latency_ms'][key]:.2f}" for key in ("p50", "p90", "p99")),
            *stages,
            *(f"{row['bare_p50_ms']:.2f}", f"{missed} of {asked}" if robots is fleet else ""),
        )
    console.print(table)
    write_json(config.json, {"machine": rows[0]["runs"][0]["machine"], "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(PicturesConfig))
