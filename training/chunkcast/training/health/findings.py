"""A finding: what is the matter with a run, since when, by what evidence, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["info", "warning", "error"]
"""An ``error`` means: do not serve this policy. A ``warning``: look. ``info``: known facts, and advice."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""The gravest first."""


@dataclass(frozen=True)
class Finding:
    """One finding about a run.

    Attributes:
        code: names the rule, such as ``explosion``; stable, for machines.
        severity: see ``Severity``.
        epoch: the first epoch that the evidence speaks of; None where it is about the run's settings.
        evidence: one line with the numbers.
        advice: one line on what to do, and on what the finding does not prove.
    """

    code: str
    severity: Severity
    epoch: int | None
    evidence: str
    advice: str

    def as_json(self) -> dict[str, Any]:
        """For reports; the fields by name."""
        return asdict(self)


def gravest_first(findings: list[Finding]) -> list[Finding]:
    """Errors, then warnings, then the rest; each in the order in which they were found."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
