"""What the scripts of a release share: the checkout, one-line errors, and how other programs are run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
NAME = "chunkcast"

FAILED = 1
REFUSED = 2


class ReleaseError(Exception):
    """One clear line for the person who releases.

    Attributes:
        code: the exit code; 1 for a check that failed, 2 for a request that makes no sense.
    """

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a ``ReleaseError`` into ``error: ...`` on stderr and its exit code."""
    try:
        yield
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.code) from None


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    umask: int = -1,
    timeout: float = 600.0,
) -> str:
    """What ``command`` printed.

    Raises:
        ReleaseError: it failed, or took longer than ``timeout`` seconds; with the last of what it said.
    """
    name = " ".join(Path(part).name for part in command[:4])
    try:
        result = subprocess.run(
            command, cwd=cwd, env=env, umask=umask, timeout=timeout, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        raise ReleaseError(f"{name} ... took longer than {timeout:.0f} s") from None
    if result.returncode:
        said = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        # pip's warnings about its configuration are not why it failed.
        reasons = [line for line in said if not line.startswith("WARNING")] or said or ["it said nothing"]
        print("\n".join(said[-30:]), file=sys.stderr)
        raise ReleaseError(f"{name} ... ended with exit code {result.returncode}: {reasons[-1].strip()}")
    return result.stdout


def module(name: str, package: str) -> list[str]:
    """The command that runs a tool of the extra ``release`` with this interpreter.

    Raises:
        ReleaseError: it is not installed.
    """
    if find_spec(name) is None:
        raise ReleaseError(f"{package} is not installed; run pip install -c constraints.txt -e '.[release]'", REFUSED)
    return [sys.executable, "-m", name]


def git(*arguments: str) -> str:
    """What git prints about the checkout.

    Raises:
        ReleaseError: there is no git, or this is no checkout.
    """
    program = shutil.which("git")
    if program is None:
        raise ReleaseError("git is not installed; a release is made from a checkout", REFUSED)
    return run([program, "-C", str(ROOT), *arguments])


def checkout_files() -> set[str]:
    """The checkout's files as git sees them, new ones that it does not ignore too; '/' between folders."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return {name for name in listed if name and (ROOT / name).is_file()}


def version() -> str:
    """The version in pyproject.toml."""
    project: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return project


def commit_time() -> str:
    """SOURCE_DATE_EPOCH: when the last commit was made, in seconds since 1970."""
    return git("log", "-1", "--format=%ct").strip()


def build_environment(**more: str) -> dict[str, str]:
    """This environment with SOURCE_DATE_EPOCH set, and what else is given."""
    return {**os.environ, "SOURCE_DATE_EPOCH": commit_time(), **more}
