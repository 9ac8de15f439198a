"""Known vulnerabilities of what constraints.txt pins: ``python -m release.audit``.

pip-audit asks OSV for each pin. Exit code 1 with a line for each finding that release/audit.toml does not ignore; 0
where there is none, or, with a notice, where the service cannot be reached.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from release.common import CONSTRAINTS, FAILED, ReleaseError, module, one_line_errors

IGNORED = Path(__file__).with_name("audit.toml")
OSV = "https://api.osv.dev/v1/query"

# Asking for a hundred packages takes seconds; a network that swallows packets would take hours.
SECONDS = 300.0

# What pip-audit says when it got no usable answer; anything else that stops it is a failure of the audit.
NO_ANSWER = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Could not connect", "ProxyError", "ServiceError")


def report(requirements: Path, osv_url: str) -> dict[str, Any] | None:
    """pip-audit's JSON, or None where the service cannot be reached.

    Raises:
        ReleaseError: pip-audit failed for another reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "audit.json"
        command = [*module("pip_audit", "pip-audit"), "--requirement", str(requirements), "--disable-pip", "--no-deps"]
        command += ["--vulnerability-service", "osv", "--osv-url", osv_url, "--timeout", "10", "--aliases", "on"]
        command += ["--progress-spinner", "off", "--format", "json", "--output", str(file)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return None
        if file.exists():
            found: dict[str, Any] = json.loads(file.read_text())
            return found
    last = ([line for line in result.stderr.splitlines() if line.strip()] or ["it said nothing"])[-1]
    if any(word in last for word in NO_ANSWER):
        return None
    raise ReleaseError(f"pip-audit ended with exit code {result.returncode}: {last[:200]}")


def findings(found: Mapping[str, Any], ignored: Mapping[str, Any], today: datetime.date) -> Iterator[str]:
    """One line for each vulnerability that is not ignored, or no longer."""
    for dependency in found["dependencies"]:
        for vulnerability in dependency.get("vulns", ()):
            entries = [ignored[name] for name in (vulnerability["id"], *vulnerability["aliases"]) if name in ignored]
            if any(entry["package"] == dependency["name"] and today < entry["until"] for entry in entries):
                continue
            fixed = ", ".join(vulnerability["fix_versions"]) or "no release"
            yield f"{dependency['name']} {dependency['version']}: {vulnerability['id']}, fixed in {fixed}"


def main(arguments: list[str] | None = None) -> None:
    """Ask, print, exit."""
    parser = argparse.ArgumentParser(prog="python -m release.audit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requirements", type=Path, default=CONSTRAINTS, help="pins, one a line")
    parser.add_argument("--ignored", type=Path, default=IGNORED, help="findings that do not concern us")
    parser.add_argument("--osv-url", default=OSV, help="the vulnerability service")
    options = parser.parse_args(arguments)
    with one_line_errors():
        ignored = tomllib.loads(options.ignored.read_text())["ignored"]
        found = report(options.requirements, options.osv_url)
    if found is None:
        print(f"notice: NOT audited: no answer from {options.osv_url}; audit before you publish")
        return
    # A service that does not know a package has not said that it is sound.
    skipped = [dependency["name"] for dependency in found["dependencies"] if "skip_reason" in dependency]
    audited = len(found["dependencies"]) - len(skipped)
    lines = list(findings(found, ignored, datetime.datetime.now(tz=datetime.UTC).date()))
    for line in lines:
        print(line, file=sys.stderr)
    if lines:
        raise SystemExit(FAILED)
    if skipped:
        print(f"notice: not audited, unknown to the service: {', '.join(skipped)}")
    print(f"audit: {audited} pins of {options.requirements.name}, no known vulnerability that is not ignored")


if __name__ == "__main__":
    main()
