"""The server's packages with hashes: ``python -m release.lock`` writes both lock files, ``--check`` compares them with
constraints.txt.

``pip install --require-hashes -r release/requirements-server.txt`` then installs what was tested and nothing else.
Versions are those of constraints.txt; uv adds the SHA-256 of each release's files. There is no such file for training:
torch comes from whichever build fits the machine, and each has other hashes.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.closure import closure
from release.common import CONSTRAINTS, FAILED, ROOT, module, one_line_errors, run

EXTRA = "server"
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")


@dataclass(frozen=True)
class Lock:
    """One lock file: for whom it is, the platform whose requirements it holds, and which ONNX Runtime that is."""

    file: Path
    meant_for: str
    platform: str
    onnxruntime: str

    def swapped(self, text: str) -> str:
        """Pins or names with this lock's ONNX Runtime: the same release, with CUDA's kernels or without."""
        return re.sub(r"^onnxruntime(-gpu)?(?=\s|=|$)", self.onnxruntime, text, flags=re.MULTILINE)

    @property
    def header(self) -> str:
        """The comment at the file's top."""
        return (
            f"# chunkcast[{EXTRA}], {self.meant_for}: pip install --require-hashes -r release/{self.file.name}\n"
            "# Written by `python -m release.lock` from pyproject.toml and constraints.txt; not edited by hand.\n"
        )


LOCK = Lock(
    Path(__file__).with_name("requirements-server.txt"),
    "Linux on x86-64",
    "x86_64-unknown-linux-gnu",
    "onnxruntime-gpu",
)
# What pyproject.toml asks for on ARM serves on x86-64 too: a release's hashes are those of its files for all platforms.
CPU_LOCK = Lock(
    Path(__file__).with_name("requirements-server-cpu.txt"),
    "Linux on x86-64 without CUDA's kernels (280 MB), or on ARM",
    "aarch64-unknown-linux-gnu",
    "onnxruntime",
)


def resolve(lock: Lock) -> str:
    """The lock file's text.

    Raises:
        ReleaseError: uv is missing, or found no solution.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(lock.swapped(CONSTRAINTS.read_text()))
        constraints.flush()
        command = [*module("uv", "uv"), "pip", "compile", "pyproject.toml", "--extra", EXTRA, "--generate-hashes"]
        command += ["--constraint", constraints.name, "--python-platform", lock.platform, "--python-version", "3.11"]
        # Which index answered is the machine's matter, and has no place in a file that others install from.
        command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--quiet"]
        return lock.header + run(command, cwd=ROOT)


def pins(text: str) -> dict[str, str]:
    """Version by canonical name of a file with ``name==version`` lines; further lines of a pin are left out."""
    lines = (line.split("#")[0].split("--hash")[0].rstrip(" \\") for line in text.splitlines())
    requirements = (Requirement(line) for line in lines if "==" in line)
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in requirements}


def problems(lock: str, constraints: str, wanted: set[str]) -> Iterator[str]:
    """One line for each difference between the lock, the pins that were tested and what the extra needs."""
    locked, tested = pins(lock), pins(constraints)
    for name in sorted(wanted - locked.keys()):
        yield f"{name} is missing, which chunkcast[{EXTRA}] needs"
    for name in sorted(locked.keys() - wanted):
        yield f"{name} is locked, which chunkcast[{EXTRA}] does not need"
    for name, version in locked.items():
        if tested.get(name) != version:
            yield f"{name} is locked at {version}, constraints.txt has {tested.get(name, 'no pin of it')}"
    # A pin's hashes are on the lines that follow it, each but the last ended by a backslash.
    for pin in lock.replace("\\\n", " ").splitlines():
        if "==" in pin and not HASH.search(pin):
            yield f"{pin.split('==')[0]} has no hash"
    if "://" in lock:
        yield "an address is in it; which index to install from is not the lock's matter"


def problems_of(lock: Lock) -> list[str]:
    """One line for each thing that is wrong with a lock file."""
    if not lock.file.exists():
        return [f"{lock.file.name} is missing"]
    wanted = {lock.swapped(name) for name in closure(EXTRA)}
    found = problems(lock.file.read_text(), lock.swapped(CONSTRAINTS.read_text()), wanted)
    return [f"{lock.file.name}: {line}" for line in found]


def main(arguments: list[str] | None = None) -> None:
    """Write the locks, or check them."""
    parser = argparse.ArgumentParser(prog="python -m release.lock", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the files with constraints.txt and the extra")
    options = parser.parse_args(arguments)
    locks = (LOCK, CPU_LOCK)
    with one_line_errors():
        if not options.check:
            for lock, text in [(lock, resolve(lock)) for lock in locks]:
                lock.file.write_text(text)
        found = [line for lock in locks for line in problems_of(lock)]
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("error: run python -m release.lock", file=sys.stderr)
        raise SystemExit(FAILED)
    for lock in locks:
        print(f"lock: {lock.file.name}: {len(pins(lock.file.read_text()))} packages with hashes, as in constraints.txt")


if __name__ == "__main__":
    main()
