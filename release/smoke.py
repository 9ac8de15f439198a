"""Installs a wheel or an sdist as a user would, and uses it: ``python -m release.smoke FILE...``.

In an empty environment each, away from the checkout: the client alone, which must be light and import; then the server,
which must serve the shipped policy, play chunks for the installed ``chunkcast-load``, show its pages and stop by
SIGTERM with exit code 0.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from release.common import CONSTRAINTS, FAILED, REFUSED, ROOT, ReleaseError, one_line_errors, version
from release.contents import problems
from release.venvs import Venv, install_server, venv

BUNDLE = ROOT / "policies" / "metaworld-six"

# What the client's users were promised not to get.
HEAVY = {
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "tyro",
    "rich",
    "mujoco",
    "metaworld",
    "pillow",
    "prometheus-client",
}

# What every command says where its extra was not installed.
ONE_LINE = re.compile(r"error: \w+ is not installed; run pip install 'chunkcast\[[a-z,-]+\]'\n")
SCRIPTS = """
from importlib.metadata import entry_points
print(*(script.name for script in entry_points(group="console_scripts") if script.dist.name == "chunkcast"))
"""

READY_SECONDS = 60.0
STOP_SECONDS = 20.0

IMPORT = """
import pathlib, sys, importlib.metadata
from chunkcast.client import ChunkPlayer, PolicyClient, PolicyUnavailable
import chunkcast.client
assert pathlib.Path(chunkcast.client.__file__).is_relative_to(sys.prefix), chunkcast.client.__file__
client = PolicyClient("127.0.0.1:1")
try:
    client.get_policy()
except PolicyUnavailable:
    print(importlib.metadata.version("chunkcast"))
"""


def client(file: Path) -> None:
    """The file without extras: imports, is light, and its commands name the extra that they need.

    Raises:
        ReleaseError: it does not.
    """
    with venv() as environment:
        environment.install("-c", CONSTRAINTS, file.resolve())
        heavy = environment.installed() & HEAVY
        if heavy:
            raise ReleaseError(f"{file.name} brings {', '.join(sorted(heavy))} along without an extra")
        found = environment.python(IMPORT).strip()
        if found != version():
            raise ReleaseError(f"{file.name} installs version {found or 'none'}, pyproject.toml has {version()}")
        for script in environment.python(SCRIPTS).split():
            command = [environment.bin / script]
            refused = subprocess.run(
                command,
                cwd=environment.folder,
                env=environment.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if refused.returncode != REFUSED or not ONE_LINE.fullmatch(refused.stderr):
                said = (refused.stderr.splitlines() or ["nothing"])[-1]
                raise ReleaseError(f"{script} without its extra ended with exit code {refused.returncode}: {said}")


def server(file: Path) -> int:
    """The file with its server, the packages of the lock file, and a fleet that plays against it.

    Returns:
        how many chunks were played.

    Raises:
        ReleaseError: something on the way did not go as it should.
    """
    with venv() as environment:
        install_server(environment, file)
        environment.install("-c", CONSTRAINTS, f"{file.resolve()}[server,load]")
        with serving(environment) as addresses:
            chunks = play(environment, addresses["grpc"])
            for page, expected in (("/", "<!doctype html>"), ("/metrics", "chunkcast_chunks_total")):
                with urllib.request.urlopen(f"http://{addresses['metrics']}{page}", timeout=10) as answer:
                    if expected not in answer.read().decode().lower():
                        raise ReleaseError(f"the page {page} of the installed server holds no {expected}")
    return chunks


@contextmanager
def serving(environment: Venv) -> Iterator[dict[str, str]]:
    """The installed ``chunkcast-serve`` with the shipped policy on free ports: its addresses by name.

    Raises:
        ReleaseError: it did not start, or SIGTERM did not end it with exit code 0.
    """
    log = environment.folder / "server.log"
    command: list[str | Path] = [environment.bin / "chunkcast-serve", "--bundle", BUNDLE, "--listen", "127.0.0.1:0"]
    command += ["--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    out = environment.folder / "server.out"
    with out.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=environment.folder, env=environment.environment, stdout=stdout, stderr=stderr
        )
    try:
        yield _ready(process, out, log)
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_SECONDS)
        if code:
            raise ReleaseError(f"SIGTERM ended chunkcast-serve with exit code {code}: {_last(log)}")
    except subprocess.TimeoutExpired:
        raise ReleaseError(f"chunkcast-serve still ran {STOP_SECONDS:.0f} s after SIGTERM: {_last(log)}") from None
    finally:
        process.kill()
        process.wait()


def _ready(process: subprocess.Popen[bytes], out: Path, log: Path) -> dict[str, str]:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        line = out.read_text()
        if line.startswith("ready ") and line.endswith("\n"):
            return dict(item.split("=", 1) for item in line.splitlines()[0].split()[1:])
        time.sleep(0.05)
    raise ReleaseError(f"chunkcast-serve did not start: {_last(log)}")


def _last(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return (lines or ["its log is empty"])[-1]


def play(environment: Venv, address: str) -> int:
    """Two robots of the installed ``chunkcast-load`` for a second; how many chunks they got.

    Raises:
        ReleaseError: an observation was not answered with a chunk.
    """
    file = environment.folder / "load.json"
    load = environment.bin / "chunkcast-load"
    short = ("--streams", "2", "--seconds", "1", "--warm-up", "0.2")
    environment.run(load, "--server", address, "--json", file, *short)
    summary = json.loads(file.read_text())
    outcomes: dict[str, int] = summary["outcomes"]
    if set(outcomes) != {"chunk"} or outcomes["chunk"] < 2:
        raise ReleaseError(f"two robots for a second were answered with {outcomes}, expected chunks alone")
    return outcomes["chunk"]


def main(arguments: list[str] | None = None) -> None:
    """Smoke all files."""
    parser = argparse.ArgumentParser(prog="python -m release.smoke", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="wheels and sdists")
    parser.add_argument("--only", choices=("client", "server"), help="one part alone")
    options = parser.parse_args(arguments)
    with one_line_errors():
        for file in options.files:
            started = time.monotonic()
            wrong = problems(file)
            if wrong:
                raise ReleaseError("; ".join(wrong[:5]), FAILED)
            done = []
            if options.only != "server":
                client(file)
                done.append("the client alone is light and imports")
            if options.only != "client":
                done.append(f"the server played {server(file)} chunks and stopped")
            print(f"smoke: {file.name}: {'; '.join(done)} ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
