"""What a wheel and an sdist must hold, and must not: ``python -m release.contents FILE...``."""

from __future__ import annotations

import argparse
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from release.common import FAILED, NAME, REFUSED, ROOT, ReleaseError, checkout_files, one_line_errors, version

# Named one by one, so that a file which left the checkout by mistake is missed too.
ESSENTIAL = (
    *(f"chunkcast/{part}/py.typed" for part in ("v1", "language", "simulation", "client", "server", "training")),
    *(f"chunkcast/v1/{name}_pb2{ending}" for name in ("policy", "admin", "health") for ending in (".py", ".pyi")),
    *(f"chunkcast/v1/{name}_pb2_grpc{ending}" for name in ("policy", "admin") for ending in (".py", ".pyi")),
    *(f"chunkcast/server/status/static/{name}" for name in ("index.html", "status.js", "charts.js", "status.css")),
    "chunkcast/server/status/static/icon.svg",
    "chunkcast/client/__init__.py",
    "chunkcast/training/health/report.html.j2",
)
ESSENTIAL_IN_SDIST = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", "tests/conftest.py")

# Weights, what was measured, and what the workplace runs are no source.
NOT_IN_SDIST = ("policies/", "docs/results/", ".ci/")


def sources() -> dict[str, str]:
    """The package's files: path in the wheel to path in the checkout."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    found: dict[str, str] = {}
    for folder in wheel["only-include"]:
        root = folder.split("/")[0]
        found |= {name.removeprefix(f"{root}/"): name for name in checkout_files() if name.startswith(f"{folder}/")}
    return found


def problems_of_wheel(file: Path) -> Iterator[str]:
    """One line for each file that is missing, or has no business in the wheel."""
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
    information = f"{NAME}-{version()}.dist-info"
    expected = {*sources(), *ESSENTIAL, f"{information}/licenses/LICENSE"}
    expected |= {f"{information}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    yield from (f"{file.name}: {name} is missing" for name in sorted(expected - names))
    yield from (f"{file.name}: {name} should not be in it" for name in sorted(names - expected))


def problems_of_sdist(file: Path) -> Iterator[str]:
    """One line for each file that is missing, or has no business in the sdist."""
    with tarfile.open(file) as archive:
        names = {member.name for member in archive.getmembers() if not member.isdir()}
    folder = f"{NAME}-{version()}/"
    inside = {name.removeprefix(folder) for name in names if name.startswith(folder)}
    yield from (f"{file.name}: {name} is not under {folder}" for name in sorted(names) if not name.startswith(folder))
    package = sources()
    expected = {*package.values(), *(package.get(name, name) for name in ESSENTIAL), *ESSENTIAL_IN_SDIST, "PKG-INFO"}
    yield from (f"{file.name}: {name} is missing" for name in sorted(expected - inside))
    unknown = inside - checkout_files() - {"PKG-INFO"}
    unwanted = {name for name in inside if name.startswith(NOT_IN_SDIST)}
    yield from (f"{file.name}: {name} should not be in it" for name in sorted(unknown | unwanted))


def problems(file: Path) -> list[str]:
    """What is wrong with a wheel or an sdist.

    Raises:
        ReleaseError: it is neither.
    """
    if not file.is_file():
        raise ReleaseError(f"{file} is missing; python -m release.build makes it", REFUSED)
    if file.suffix == ".whl":
        return list(problems_of_wheel(file))
    if file.name.endswith(".tar.gz"):
        return list(problems_of_sdist(file))
    raise ReleaseError(f"{file.name} is neither a wheel nor an sdist", REFUSED)


def main(arguments: list[str] | None = None) -> None:
    """Check, print, exit."""
    parser = argparse.ArgumentParser(prog="python -m release.contents", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="wheels and sdists")
    options = parser.parse_args(arguments)
    with one_line_errors():
        found = [line for file in options.files for line in problems(file)]
    for line in found:
        print(line, file=sys.stderr)
    if found:
        raise SystemExit(FAILED)
    print(f"contents: {', '.join(file.name for file in options.files)} hold what they should")


if __name__ == "__main__":
    main()
