"""Fuzzes what others send: ``python -m fuzz TARGET|all [--seconds N] [--corpus DIR]``.

The exit code is 1 if something was found; its input then lies in fuzz/crashes/, and a line names it.
``python -m fuzz TARGET --replay FILE`` shows the traceback.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fuzz.checks import ROOT
from fuzz.registry import CORPUS, CRASHES, TARGETS

ONE_INPUT_SECONDS = 30
"""After which reading one input is a finding."""

MOST_RESIDENT_MB = 2048


@dataclass(frozen=True)
class Outcome:
    """Of one target's run: a line, and whether something was found."""

    line: str
    found: bool


def main(arguments: list[str] | None = None) -> int:
    """Console script; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz what others send.")
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--corpus", type=Path, help="folder for inputs that are found to reach new code")
    parser.add_argument("--seed", type=int, default=0, help="of the search; 0 (the default) takes another each time")
    parser.add_argument("--replay", type=Path, help="read this input alone, without atheris, and show what is raised")
    options = parser.parse_args(arguments)
    if options.seconds < 1:
        parser.error(f"--seconds is {options.seconds}, expected 1 or more")
    if options.replay and (options.target == "all" or not options.replay.is_file()):
        parser.error("--replay needs one target and a file")
    if options.replay:
        TARGETS[options.target].load().run(options.replay.read_bytes())
        print(f"{options.target}: nothing found in {options.replay}")
        return 0
    if find_spec("atheris") is None:
        print("error: atheris is not installed; run make, or pip install -e '.[dev]'", file=sys.stderr)
        return 2
    found = False
    for name in TARGETS if options.target == "all" else (options.target,):
        outcome = search(name, options.seconds, options.seed, options.corpus / name if options.corpus else None)
        print(outcome.line, flush=True)
        found |= outcome.found
    return int(found)


def search(name: str, seconds: int, seed: int, corpus: Path | None) -> Outcome:
    """Fuzz one target in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="chunkcast-fuzz-") as scratch:
        found_inputs = corpus or Path(scratch) / "corpus"
        found_inputs.mkdir(parents=True, exist_ok=True)
        CRASHES.mkdir(parents=True, exist_ok=True)
        arguments = [
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-timeout={ONE_INPUT_SECONDS}",
            f"-rss_limit_mb={MOST_RESIDENT_MB}",
            f"-max_len={TARGETS[name].most_bytes}",
            f"-artifact_prefix={CRASHES}/{name}-",
            "-print_final_stats=1",
            str(found_inputs),
            str(CORPUS / name),
        ]
        run = subprocess.run(
            [sys.executable, "-m", "fuzz.worker", name, *arguments],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": scratch},
            text=True,
            errors="replace",
            capture_output=True,
            check=False,
        )
    log = run.stdout + run.stderr
    if run.returncode == 0:
        return Outcome(f"{name}: {summary(log)}", found=False)
    return Outcome(failure(name, log, run.returncode), found=True)


def summary(log: str) -> str:
    """A run's account by libFuzzer, in a line."""
    began = re.search(r"INITED\s+cov: (\d+) ft: (\d+) corp: (\d+)", log)
    ended = re.search(r"DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)", log)
    runs = re.search(r"number_of_executed_units:\s*(\d+)", log)
    rate = re.search(r"average_exec_per_sec:\s*(\d+)", log)
    peak = re.search(r"peak_rss_mb:\s*(\d+)", log)
    if not (began and ended and runs and rate and peak):
        return "no account of the run"
    return (
        f"{int(runs[1]):,} inputs, {int(rate[1]):,}/s, branches {began[1]} -> {ended[1]}, features {began[2]} -> "
        f"{ended[2]}, corpus {began[3]} -> {ended[3]}, at most {peak[1]} MB; nothing found"
    )


def failure(name: str, log: str, code: int) -> str:
    """What ended a run, in a line."""
    if told := re.search(r"^found: (.*)$", log, re.MULTILINE):
        return told[1]
    written = re.search(r"Test unit written to (\S+)", log)
    reason = re.search(r"ERROR: (.*)$", log, re.MULTILINE)
    last = (log.strip().splitlines() or [""])[-1][:300]
    return f"{name}: {written[1] if written else 'no file'}: exit code {code}: {reason[1] if reason else last}"


if __name__ == "__main__":
    sys.exit(main())
