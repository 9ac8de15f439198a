"""A release, step by step, into dist/: ``python -m release [--rehearsal]`` (``make release``).

The quick checks come first, what takes long after them; SHA256SUMS is written last, so that a folder with it is
complete. Nothing is published and nothing is tagged: docs/releasing.md says how.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil

from release import audit, licences, lock, smoke
from release.build import build, refuse_uncommitted
from release.common import NAME, ROOT, one_line_errors, version
from release.notes import notes
from release.sbom import write_sbom

DIST = ROOT / "dist"


def main() -> None:
    """Make the release, or end with one line that says why not."""
    parser = argparse.ArgumentParser(prog="python -m release", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rehearsal", action="store_true", help="of the files as they lie here, with the notes of what is unreleased"
    )
    rehearsal = parser.parse_args().rehearsal
    with one_line_errors():
        if not rehearsal:
            refuse_uncommitted()
        text = notes((ROOT / "CHANGELOG.md").read_text(), version(), unreleased=rehearsal)
        lock.main(["--check"])
        licences.main([])
        audit.main([])
        # What an earlier release left would otherwise be taken for a part of this one.
        shutil.rmtree(DIST, ignore_errors=True)
        sdist, wheel = build(DIST)
        print(f"build: {sdist.name}, {wheel.name}, the same bytes twice")
        smoke.main([str(wheel), str(sdist)])
        sbom, packages = write_sbom(wheel)
        print(f"sbom: {sbom.name} names {packages} packages")
        (DIST / f"{NAME}-{version()}-notes.md").write_text(text)
        made = sorted(DIST.iterdir())
        sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in made]
        (DIST / "SHA256SUMS").write_text("".join(sums))
    print(f"release: {NAME} {version()} lies in {DIST.name}/: {', '.join(file.name for file in made)}, SHA256SUMS")


if __name__ == "__main__":
    main()
