"""The release notes, cut out of CHANGELOG.md: ``python -m release.notes [--unreleased]``.

Prints the section of the version in pyproject.toml; with ``--unreleased``, the section Unreleased where that version
has none yet. Exit code 2 where there is none, or nothing in it.
"""

from __future__ import annotations

import argparse
import re
from itertools import zip_longest
from pathlib import Path

from release.common import REFUSED, ROOT, ReleaseError, one_line_errors, version

# "## 0.1.0 - 2026-11-28", with or without brackets and date; Keep a Changelog also knows "[YANKED]" behind it.
HEADING = re.compile(r"^## +\[?(?P<name>[^\]\s]+)\]?(?P<rest>.*)$", re.MULTILINE)
UNRELEASED = "Unreleased"


def sections(changelog: str) -> dict[str, str]:
    """The text under each heading of a version, in the file's order."""
    headings = list(HEADING.finditer(changelog))
    found = {}
    for heading, following in zip_longest(headings, headings[1:]):
        text = changelog[heading.end() : following.start() if following else None]
        # Definitions of links close the file and belong to no version.
        found[heading["name"]] = re.sub(r"^\[[^\]]+\]: \S+$", "", text, flags=re.MULTILINE).strip()
    return found


def notes(changelog: str, of: str, *, unreleased: bool = False) -> str:
    """What changed in version ``of``.

    Raises:
        ReleaseError: the section is missing, or nothing in it says what changed.
    """
    found = sections(changelog)
    name = UNRELEASED if unreleased and of not in found else of
    if name not in found:
        raise ReleaseError(f"CHANGELOG has no section {name}; it has {', '.join(found) or 'none'}", REFUSED)
    if not any(line.strip() and not line.startswith("#") for line in found[name].splitlines()):
        raise ReleaseError(f"CHANGELOG's section {name} is empty", REFUSED)
    return found[name] + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Print the notes."""
    parser = argparse.ArgumentParser(prog="python -m release.notes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--unreleased", action="store_true", help="what is unreleased, if the version has no section")
    parser.add_argument("--changelog", type=Path, default=ROOT / "CHANGELOG.md", help="the file")
    options = parser.parse_args(arguments)
    with one_line_errors():
        print(notes(options.changelog.read_text(), version(), unreleased=options.unreleased), end="")


if __name__ == "__main__":
    main()
