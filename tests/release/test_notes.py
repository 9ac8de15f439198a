"""Release notes are one version's section of the CHANGELOG."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.common import ROOT, ReleaseError, version
from release.notes import main, notes, sections
from tests.release.conftest import Refused

CHANGELOG = """# Changelog

## [Unreleased]

### Added
- New.

## 1.10.0 - 2026-02-01

### Added

## [1.1.0] - 2026-01-01

### Fixed
- Old, see [the issue](https://example.org/1).

[Unreleased]: https://example.org/compare
[1.1.0]: https://example.org/tag
"""


def test_a_section_begins_after_its_heading_and_ends_before_the_next() -> None:
    assert notes(CHANGELOG, "1.1.0") == "### Fixed\n- Old, see [the issue](https://example.org/1).\n"
    assert list(sections(CHANGELOG)) == ["Unreleased", "1.10.0", "1.1.0"]


def test_unreleased_stands_in_where_the_version_has_none() -> None:
    assert notes(CHANGELOG, "2.0.0", unreleased=True) == "### Added\n- New.\n"
    assert notes(CHANGELOG, "1.1.0", unreleased=True) == notes(CHANGELOG, "1.1.0")


def test_headings_alone_are_no_notes() -> None:
    with pytest.raises(ReleaseError, match=r"section 1\.10\.0 is empty"):
        notes(CHANGELOG, "1.10.0")


def test_the_changelog_has_notes_for_this_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--unreleased"])
    said = capsys.readouterr().out
    assert said.startswith("### ")
    assert said.strip() in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Changelog\n", "error: CHANGELOG has no section {version}; it has none"),
        ("## Unreleased\n- New.\n", "error: CHANGELOG has no section {version}; it has Unreleased"),
        ("## {version} - 2026-01-01\n\n### Added\n", "error: CHANGELOG's section {version} is empty"),
    ],
)
def test_a_missing_or_empty_section_is_one_line(text: str, message: str, tmp_path: Path, refused: Refused) -> None:
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(text.format(version=version()))
    assert refused(main, "--changelog", changelog, code=2) == [message.format(version=version())]
