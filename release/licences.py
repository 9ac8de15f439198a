"""Refuses licences that nobody agreed to: ``python -m release.licences [EXTRA]``.

Every package that ``chunkcast[all]`` brings along must have a licence of release/licences.toml, or an exception there
with its reason; so must programs and libraries in its wheel whose names tell that they are under another licence. One
line for each that does not; exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.utils import canonicalize_name

from release.closure import closure
from release.common import FAILED, ReleaseError, module, one_line_errors, run

POLICY = Path(__file__).with_name("licences.toml")

# Modules that are named after a library which they only call.
PYTHON = {".py", ".pyc", ".pyi"}


@dataclass(frozen=True)
class Package:
    """An installed package: its version, what its metadata says of its licence, and the files of its wheel."""

    version: str
    licence: str
    files: tuple[str, ...]


def read_packages(names: set[str]) -> dict[str, Package]:
    """The installed packages by canonical name.

    Raises:
        ReleaseError: pip-licenses does not know one of them.
    """
    # setuptools is one of the packages that are left out without --with-system.
    command = [*module("piplicenses", "pip-licenses"), "--from=mixed", "--format=json", "--with-system"]
    rows = {canonicalize_name(row["Name"]): row for row in json.loads(run(command))}
    missing = sorted(name for name in names if name not in rows)
    if missing:
        raise ReleaseError(f"pip-licenses does not list {', '.join(missing)}")
    packages = {}
    for name in sorted(names):
        files = tuple(str(file) for file in distribution(name).files or ())
        row = rows[canonicalize_name(name)]
        packages[name] = Package(row["Version"], row["License"], files)
    return packages


def accepts(licence: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression is within ``allowed``: all parts of an AND, one of an OR.

    What is no expression of known ids is not.
    """
    from license_expression import ExpressionError

    spdx = _spdx()
    try:
        tree = spdx.parse(licence, validate=True)
    except ExpressionError:
        return False

    def holds(node: Any) -> bool:
        if isinstance(node, spdx.AND):
            return all(map(holds, node.args))
        if isinstance(node, spdx.OR):
            return any(map(holds, node.args))
        return str(node) in allowed

    return tree is not None and holds(tree)


@cache
def _spdx() -> Any:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def normalised(licence: str, names: Mapping[str, str]) -> str:
    """The licence with classifiers replaced by SPDX ids; of several classifiers all must be allowed."""
    one_line = " ".join(licence.split())
    return " AND ".join(names.get(part, part) for part in one_line.split("; "))


def problems(packages: Mapping[str, Package], policy: Mapping[str, Any]) -> Iterator[str]:
    """One line for each licence that ``policy`` does not accept."""
    allowed = set(policy["allowed"])
    carried = {(entry["package"], entry["licence"]) for entry in policy["carried"]}
    for name, package in packages.items():
        licence = normalised(package.licence, policy["names"])
        exceptions = [entry for pattern, entry in policy["exceptions"].items() if fnmatchcase(name, pattern)]
        if not accepts(licence, allowed) and not any(licence in entry["licences"] for entry in exceptions):
            yield f"{name} {package.version}: {licence[:80]} is not on the list"
        for file in package.files:
            path = PurePosixPath(file)
            if path.suffix in PYTHON:
                continue
            for pattern, file_licence in policy["watched"].items():
                if fnmatchcase(path.name, pattern) and (name, file_licence) not in carried:
                    yield f"{name} {package.version}: carries {file}, which is under {file_licence}"


def misplaced(policy: Mapping[str, Any]) -> Iterator[str]:
    """One line for each package that an extra brings along and that the policy keeps out of it."""
    for extra in sorted({extra for entry in policy["carried"] for extra in entry.get("not_in", ())}):
        brought = closure(extra or None)
        label = f"chunkcast[{extra}]" if extra else "chunkcast"
        for entry in policy["carried"]:
            if extra in entry.get("not_in", ()) and entry["package"] in brought:
                yield f"{entry['package']}: {entry['licence']}, and {label} brings it along"


def main(arguments: list[str] | None = None) -> None:
    """Check, print, exit."""
    parser = argparse.ArgumentParser(prog="python -m release.licences", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("extra", nargs="?", default="all", help="the extra whose packages are read")
    parser.add_argument("--policy", type=Path, default=POLICY, help="the allow-list")
    options = parser.parse_args(arguments)
    with one_line_errors():
        policy = tomllib.loads(options.policy.read_text())
        packages = read_packages(closure(options.extra))
        found = list(dict.fromkeys([*problems(packages, policy), *misplaced(policy)]))
    for line in found:
        print(line, file=sys.stderr)
    if found:
        raise SystemExit(FAILED)
    print(f"licences: {len(packages)} packages of chunkcast[{options.extra}] within {options.policy.name}")


if __name__ == "__main__":
    main()
