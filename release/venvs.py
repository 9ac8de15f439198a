"""Empty virtual environments, out of the checkout's reach."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.utils import canonicalize_name

from release.common import CONSTRAINTS, NAME, ReleaseError, run
from release.lock import LOCK

# Variables by which Python would find the checkout, or this environment, from a program of another.
LEAKS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class Venv:
    """An environment in a folder of its own, which is also where its programs run.

    Attributes:
        folder: the programs' working directory.
        bin: the folder of python and of the console scripts.
        environment: what the programs see.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        self.environment = {name: value for name, value in os.environ.items() if name not in LEAKS}
        # Nor the packages that the user installed for all of their environments.
        self.environment["PYTHONNOUSERSITE"] = "1"
        # Without pip: only what is installed is in it. This interpreter's pip installs into it from outside.
        run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], cwd=folder, env=self.environment)

    def install(self, *arguments: str | Path) -> None:
        """``pip install`` in it.

        Raises:
            ReleaseError: pip failed.
        """
        pip = (sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check")
        # Compiling everything takes longer than importing what is used.
        self.run(*pip, "install", "--quiet", "--no-compile", *arguments)

    def python(self, program: str) -> str:
        """What a program printed that its interpreter ran."""
        return self.run(self.bin / "python", "-c", program)

    def run(self, *command: str | Path) -> str:
        """What a command printed."""
        return run(command, cwd=self.folder, env=self.environment)

    def installed(self) -> set[str]:
        """Canonical names of the packages in it."""
        names = self.python("from importlib.metadata import distributions as d; print(*(one.name for one in d()))")
        return {str(canonicalize_name(name)) for name in names.split()}


@contextmanager
def venv() -> Iterator[Venv]:
    """An empty environment for the length of a block."""
    with TemporaryDirectory(prefix="chunkcast-release-") as folder:
        yield Venv(Path(folder))


def install_server(environment: Venv, file: Path) -> None:
    """Install ``file[server]`` in an empty environment with the packages of the lock file, their hashes checked.

    Raises:
        ReleaseError: pip failed, or the lock file lacks a package.
    """
    environment.install("--require-hashes", "-r", LOCK.file)
    locked = environment.installed()
    environment.install("-c", CONSTRAINTS, f"{file.resolve()}[server]")
    unlocked = environment.installed() - locked - {NAME}
    if unlocked:
        raise ReleaseError(f"{LOCK.file.name} lacks {', '.join(sorted(unlocked))}; run python -m release.lock")
