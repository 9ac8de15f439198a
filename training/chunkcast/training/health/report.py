"""A run's report: ``report.html`` for people, in one file that needs nothing else, and ``report.json`` for machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from chunkcast.training.files import write_json, write_text
from chunkcast.training.health.findings import Finding
from chunkcast.training.health.loss_curve import EpochLosses, LossCurve
from chunkcast.training.health.seed_table import band_of
from chunkcast.training.history import EpochRecord

HTML_NAME = "report.html"
JSON_NAME = "report.json"
TEMPLATE_NAME = "report.html.j2"
FORMAT = "chunkcast-health-report"
FORMAT_VERSION = 1

SOURCES = {
    "measured": "measured: played through the server",
    "calibrated": "calibrated: fitted on other checkpoints that were played",
    "seed_table": "the seed's table: read off the loss, no evidence",
}
"""What stands behind an expected success, in words; the best evidence first."""
EVIDENCE = ("measured", "calibrated")
"""Sources that may stand at the head of the page; the seed's table may not."""
LOSS_ROWS = (
    ("Validation objective", "validation_loss"),
    ("Training objective", "train_loss"),
    ("Validation noise MSE", "validation_noise_mse"),
    ("Training noise MSE", "train_noise_mse"),
    ("Validation action MSE, sampled", "action_mse"),
    ("Action variance within tasks", "action_variance"),
    ("Gradient norm", "gradient_norm"),
)
RECORD_ROWS = (
    ("Learning rate", "learning_rate"),
    ("Training windows per second", "samples_per_second"),
    ("Seconds", "seconds"),
)


def write_report(
    folder: Path,
    curve: LossCurve,
    records: list[EpochRecord] | None,
    findings: list[Finding],
    facts: dict[str, str],
    calibration: dict[str, Any] | None,
) -> tuple[Path, Path]:
    """Write both files aside, then rename them.

    Args:
        folder: where to; its name is the run's, unless ``facts`` has a ``run`` or a ``history``.
        curve: at least one epoch.
        records: the same epochs as chunkcast-train wrote them; None for another trainer's history.
        findings: the gravest first.
        facts: what is known of the run, name to value, in the order in which it is shown.
        calibration: what ``chunkcast-health calibrate`` wrote, with what it expects of this run; None without one.

    Returns:
        ``report.html`` and ``report.json``.
    """
    run = facts.get("run") or facts.get("history") or folder.resolve().name
    page = _page(run, curve, records, findings, facts, calibration)
    data = _as_json(run, curve, findings, facts, calibration)
    write_text(folder / HTML_NAME, page)
    write_json(folder / JSON_NAME, data)
    return folder / HTML_NAME, folder / JSON_NAME


def verdict_of(findings: Sequence[Finding]) -> tuple[str, str]:
    """The gravest severity, ``ok`` without errors and warnings, and the verdict in words."""
    errors, warnings = (sum(finding.severity == severity for finding in findings) for severity in ("error", "warning"))
    counts = [
        f"{count} {word}{'s' * (count > 1)}" for count, word in ((errors, "error"), (warnings, "warning")) if count
    ]
    if errors:
        return "error", f"{' and '.join(counts)}: do not serve this policy"
    if warnings:
        return "warning", f"{counts[0]}: look before you serve this policy"
    return "ok", "no errors, no warnings: these losses look sound"


def best_epoch(curve: LossCurve) -> EpochLosses | None:
    """The first epoch with the lowest finite judged loss, as chunkcast-train keeps it; None where none is finite.

    Where some epochs were validated, only those compare: a training loss is lower than a held-out one.
    """
    comparable = [epoch for epoch in curve if epoch.validation_loss is not None] or curve
    finite = [epoch for epoch in comparable if math.isfinite(epoch.judged_loss)]
    return min(finite, key=lambda epoch: epoch.judged_loss, default=None)


def _as_json(
    run: str,
    curve: LossCurve,
    findings: Sequence[Finding],
    facts: dict[str, str],
    calibration: dict[str, Any] | None,
) -> dict[str, Any]:
    best = best_epoch(curve)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "run": run,
        "verdict": verdict_of(findings)[0],
        "facts": facts,
        "findings": [finding.as_json() for finding in findings],
        "last_epoch": asdict(curve[-1]),
        "best_epoch": asdict(best) if best else None,
        "expected": calibration["expected"] if calibration else None,
    }


def _page(
    run: str,
    curve: LossCurve,
    records: list[EpochRecord] | None,
    findings: Sequence[Finding],
    facts: dict[str, str],
    calibration: dict[str, Any] | None,
) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from chunkcast.training.health.calibration_plot import calibration_plot
    from chunkcast.training.health.plots import run_plots

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # What matplotlib wrote is markup, escaped by it; everything else is escaped here.
    environment.filters.update(number=_number, percent=_percent, place=_place, markup=Markup)
    template = resources.files("chunkcast.training.health").joinpath(TEMPLATE_NAME).read_text(encoding="utf-8")
    severity, verdict = verdict_of(findings)
    last, best = curve[-1], best_epoch(curve)
    order = list(SOURCES)
    expected = sorted(calibration["expected"] if calibration else [], key=lambda each: order.index(each["source"]))
    return environment.from_string(template).render(
        run=run,
        severity=severity,
        verdict=verdict,
        findings=findings,
        last=last,
        best=best,
        epochs=len(curve),
        band=band_of(last.noise_mse).name if last.noise_mse is not None and math.isfinite(last.noise_mse) else None,
        explained=_explained(last),
        rows=_epoch_rows(last, best, records),
        plots=run_plots(curve, records, findings),
        calibration=calibration,
        calibration_plot=calibration_plot(calibration) if calibration else None,
        # All tasks first, then by task in the order of the file; each with its best evidence first.
        expected=[
            each
            for task in dict.fromkeys(["", *(e["task"] for e in expected)])
            for each in expected
            if each["task"] == task
        ],
        overall=next((each for each in expected if each["task"] == "" and each["source"] in EVIDENCE), None),
        sources=SOURCES,
        facts={name: value for name, value in facts.items() if name != "run"},
    )


def _explained(epoch: EpochLosses) -> float | None:
    """Share of the actions' variance within tasks that sampled actions explain."""
    if epoch.action_mse is None or not epoch.action_variance:
        return None
    return 1.0 - epoch.action_mse / epoch.action_variance


def _epoch_rows(
    last: EpochLosses, best: EpochLosses | None, records: Sequence[EpochRecord] | None
) -> list[tuple[str, float | None, float | None]]:
    """Name, value in the last epoch and value in the best; rows that hold nothing are left out."""
    rows = [(title, getattr(last, name), getattr(best, name, None)) for title, name in LOSS_ROWS]
    by_epoch = {record.epoch: record for record in records or ()}
    at_last, at_best = by_epoch.get(last.epoch), by_epoch.get(best.epoch) if best else None
    rows += [(title, getattr(at_last, name, None), getattr(at_best, name, None)) for title, name in RECORD_ROWS]
    return [row for row in rows if row[1] is not None or row[2] is not None]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    return f"{value:,.0f}" if abs(value) >= 1000.0 and abs(value) < 1e9 else f"{value:.4g}"


def _percent(ratio: float | None) -> str:
    if ratio is None or not math.isfinite(ratio):
        return "-" if ratio is None else "NaN"
    return f"{100.0 * ratio:.1f} %" if abs(ratio) < 100.0 else f"{100.0 * ratio:.3g} %"


def _place(ratio: float) -> str:
    """Of a scale from 0 to 1, in percent, for a style sheet: nothing but a number ever goes there."""
    return f"{100.0 * min(max(float(ratio), 0.0), 1.0):.1f}" if math.isfinite(ratio) else "0"
