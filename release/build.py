"""Builds the sdist and, from it, the wheel: ``python -m release.build [--out dist]``.

Both are built twice, in other folders, under another umask, time zone and hash seed; files that differ are refused. The
first ones stay. SOURCE_DATE_EPOCH is the time of the last commit.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
import tempfile
from pathlib import Path

from release.common import (
    FAILED,
    REFUSED,
    ROOT,
    ReleaseError,
    build_environment,
    checkout_files,
    git,
    module,
    one_line_errors,
    run,
)

# The environments of the two builds differ in what must not matter.
BUILDS = (
    (0o022, {"TZ": "UTC", "PYTHONHASHSEED": "1"}),
    (0o077, {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "2"}),
)


def build_once(folder: Path, umask: int, variables: dict[str, str]) -> tuple[Path, Path]:
    """A copy of the checkout's files built in ``folder``: the sdist, and the wheel that the sdist alone makes."""
    source = folder / "checkout"
    for name in sorted(checkout_files()):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    out = folder / "out"
    hatchling = [*module("hatchling", "hatchling"), "build", "--directory", str(out)]
    environment = build_environment(**variables)
    run([*hatchling, "--target", "sdist"], cwd=source, env=environment, umask=umask)
    sdist = the_only(out, "*.tar.gz")
    # The wheel of a machine that has the sdist and no checkout.
    unpacked = folder / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    run([*hatchling, "--target", "wheel"], cwd=the_only(unpacked, "*"), env=environment, umask=umask)
    return sdist, the_only(out, "*.whl")


def the_only(folder: Path, pattern: str) -> Path:
    """The one path in ``folder`` that matches.

    Raises:
        ReleaseError: there are more or none.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ReleaseError(f"{folder} holds {len(found)} files {pattern}, expected one")
    return found[0]


def build(out: Path) -> tuple[Path, Path]:
    """The sdist and the wheel in ``out``, proven to be reproducible.

    Raises:
        ReleaseError: a build failed, or the second differs from the first.
    """
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        folders = (Path(first), Path(second))
        built = [build_once(folder, *settings) for folder, settings in zip(folders, BUILDS, strict=True)]
        for one, other in zip(*built, strict=True):
            if one.name != other.name or one.read_bytes() != other.read_bytes():
                raise ReleaseError(f"{one.name} is not reproducible: built twice, its bytes differ", FAILED)
        out.mkdir(parents=True, exist_ok=True)
        sdist, wheel = (Path(shutil.copyfile(path, out / path.name)) for path in built[0])
    return sdist, wheel


def refuse_uncommitted() -> None:
    """A release is of a commit.

    Raises:
        ReleaseError: files were changed or added since.
    """
    changed = git("status", "--porcelain").splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ReleaseError(f"not as committed: {changed[0][3:]}{more}; a release is of a commit", REFUSED)


def main(arguments: list[str] | None = None) -> None:
    """Build, say what."""
    parser = argparse.ArgumentParser(prog="python -m release.build", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for both files")
    options = parser.parse_args(arguments)
    with one_line_errors():
        for path in build(options.out):
            print(f"build: {path.name}, {path.stat().st_size / 1e3:.0f} kB, the same bytes twice")


if __name__ == "__main__":
    main()
