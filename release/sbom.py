"""What an installed server consists of: ``python -m release.sbom WHEEL`` writes a CycloneDX SBOM beside the wheel.

Read from an empty environment in which the wheel and the packages of the lock file were installed, not from the lock.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from release.common import NAME, ROOT, ReleaseError, build_environment, module, one_line_errors, run, version
from release.venvs import Venv, install_server, venv


def sbom_of(environment: Venv) -> dict[str, Any]:
    """The CycloneDX document of what is installed in an environment, chunkcast at its root.

    Raises:
        ReleaseError: it does not name what is installed.
    """
    command = [*module("cyclonedx_py", "cyclonedx-bom"), "environment", str(environment.bin / "python")]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-format", "JSON", "--output-reproducible"]
    document: dict[str, Any] = json.loads(run(command, env=build_environment()))
    check(document, environment.installed())
    return document


def check(document: Mapping[str, Any], installed: set[str]) -> None:
    """Compare an SBOM's packages with the installed ones.

    Raises:
        ReleaseError: one names a package that the other lacks.
    """
    components = [document["metadata"]["component"], *document["components"]]
    differing = sorted({str(canonicalize_name(component["name"])) for component in components} ^ installed)
    if differing:
        raise ReleaseError(f"the SBOM and the environment differ in {', '.join(differing)}")


def write_sbom(wheel: Path) -> tuple[Path, int]:
    """The SBOM's file beside ``wheel``, and how many packages it names.

    Raises:
        ReleaseError: the wheel cannot be installed, or the SBOM is wrong.
    """
    file = wheel.with_name(f"{NAME}-{version()}-server.cdx.json")
    with venv() as environment:
        install_server(environment, wheel)
        document = sbom_of(environment)
    file.write_text(json.dumps(document, indent=2) + "\n")
    return file, 1 + len(document["components"])


def main(arguments: list[str] | None = None) -> None:
    """Write the SBOM, say where."""
    parser = argparse.ArgumentParser(prog="python -m release.sbom", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path, help="the wheel")
    options = parser.parse_args(arguments)
    with one_line_errors():
        file, count = write_sbom(options.wheel)
        print(f"sbom: {file.name} names {count} packages")


if __name__ == "__main__":
    main()
