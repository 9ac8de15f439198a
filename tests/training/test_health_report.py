"""The report: one page that needs nothing else, strict JSON, and plots that no history breaks."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from chunkcast.training.health.calibration_plot import calibration_plot
from chunkcast.training.health.drawing import POINTS, numbers, shown_name, thinned
from chunkcast.training.health.findings import Finding, Severity
from chunkcast.training.health.judge import judge
from chunkcast.training.health.loss_curve import EpochLosses, curve_of_records
from chunkcast.training.health.plots import run_plots
from chunkcast.training.health.report import best_epoch, verdict_of, write_report
from chunkcast.training.history import EpochRecord

NAN = float("nan")
FACTS = {"run": "six", "command": "chunkcast-train --data data/six --out runs/six"}
VOID = {"meta", "br", "link", "input"}


class Page(HTMLParser):
    """Elements that close in the order in which they open, their attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.elements: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)


def make_record(epoch: int, loss: float, tasks: tuple[str, ...] = ("door-open-v3", "pick-place-v3")) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        step=10 * epoch,
        train_loss=0.9 * loss,
        train_noise_mse=loss,
        validation_loss=loss,
        validation_noise_mse=1.1 * loss,
        validation_noise_mse_by_timestep={"0-9": 5 * loss, "10-19": loss},
        validation_noise_mse_by_task={task: loss * (1 + place) for place, task in enumerate(tasks)},
        validation_action_mse=loss / 10,
        validation_action_mse_by_task={task: loss * (1 + place) / 10 for place, task in enumerate(tasks)},
        validation_action_variance=0.3,
        gradient_norm=loss,
        learning_rate=1e-3,
        samples_per_second=12_345.0,
        seconds=2.0,
    )


def make_calibration() -> dict[str, Any]:
    checkpoints = [
        {
            "run": run,
            "epoch": epoch,
            "measured": ratio,
            "measured_low": ratio - 0.1,
            "measured_high": min(1.0, ratio + 0.1),
            "metrics": {"action_mse": (1.1 - ratio) / 10},
            "held_out": {"expected": ratio, "low": ratio - 0.2, "high": 1.0},
            "seed_table": 0.85,
        }
        for run, epoch, ratio in (("six", 1, 0.2), ("six", 9, 0.9), ("blind", 9, 0.4), ("_small", 9, 0.7))
    ]
    return {
        "format": "chunkcast-calibration",
        "version": 1,
        "policy": "six",
        "policy_version": "2",
        "metric": "action_mse",
        "episodes_per_task": 50,
        "first_seed": 500_000,
        "checkpoints": checkpoints,
        "held_out": {
            "mean_absolute_error": 0.06,
            "spearman": 0.9,
            "interval_coverage": 0.95,
            "seed_table": {"mean_absolute_error": 0.31, "spearman": 0.4},
        },
        "expected": [
            {"task": "", "source": "seed_table", "ratio": 0.85, "low": 0.8, "high": 0.9},
            {"task": "", "source": "calibrated", "ratio": 0.91, "low": 0.7, "high": 1.0},
            {"task": "door-open-v3", "source": "calibrated", "ratio": 0.95, "low": 0.75, "high": 1.0},
        ],
    }


def report_of_records(
    folder: Path, records: list[EpochRecord], calibration: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    curve = curve_of_records(records)
    page, data = write_report(folder, curve, records, judge(curve), FACTS, calibration)
    return page.read_text(encoding="utf-8"), strict_json(data)


def report_of_curve(folder: Path, curve: list[EpochLosses]) -> tuple[str, dict[str, Any]]:
    page, data = write_report(folder, curve, None, judge(curve), {"history": "losses.csv"}, None)
    return page.read_text(encoding="utf-8"), strict_json(data)


def strict_json(file: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    return data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The report of a run with everything in it."""
    records = [make_record(epoch, 2.0 / epoch) for epoch in range(1, 13)]
    return report_of_records(tmp_path_factory.mktemp("report"), records, make_calibration())


def test_the_page_is_well_formed_and_needs_nothing_else(whole: tuple[str, dict[str, Any]]) -> None:
    text, _ = whole
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "use-credentials"} & set(page.elements)
    for name, value in page.attributes:
        if not name.startswith("xmlns"):
            assert not re.search(r"https?:|//", value), (name, value)
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith("#"), (name, value)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert text.count("<style") == 1  # a style sheet within an SVG would be the whole page's


def test_ids_are_unique_over_all_plots_and_references_resolve(whole: tuple[str, dict[str, Any]]) -> None:
    attributes = Page(whole[0]).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = {value[1:] for name, value in attributes if name.endswith("href")}
    for _, value in attributes:
        references |= set(re.findall(r"url\(#([^)]*)\)", value))
    assert references
    assert references <= set(ids)


def test_every_plot_is_there_and_says_what_to_look_for(whole: tuple[str, dict[str, Any]]) -> None:
    page = Page(whole[0])
    for title in (
        "Expected against measured success",
        "Losses",
        "Noise MSE by timestep",
        "By task, on held-out episodes",
        "Sampled actions",
        "Optimisation",
    ):
        assert title in page.text
    assert page.elements.count("svg") == 14
    assert page.elements.count("figcaption") == 6
    for words in ("predicting no noise", "excellent", "acceptable", "each task's mean action", "the seed's table"):
        assert words in page.text
    assert "no finite value" not in page.text


def test_expected_success_is_listed_with_its_source_and_the_seeds_table_never_leads(
    whole: tuple[str, dict[str, Any]],
) -> None:
    text, data = whole
    page = Page(text).text
    assert "Success 91.0 % 70.0 % to 100.0 %, calibrated" in page
    assert "all tasks 91.0 % 70.0 % to 100.0 % calibrated: fitted on other checkpoints that were played" in page
    assert "all tasks 85.0 % 80.0 % to 90.0 % the seed's table: read off the loss, no evidence" in page
    assert "door-open-v3 95.0 %" in page
    assert "off by 6.0 points on average, rank correlation 0.90" in page
    assert data["expected"] == make_calibration()["expected"]


def test_without_calibration_success_is_unknown_and_the_page_says_how_to_measure_it(tmp_path: Path) -> None:
    text, data = report_of_records(tmp_path, [make_record(1, 0.2)])
    page = Page(text).text
    assert "Success unknown not measured, not calibrated" in page
    assert "A low loss proves no success" in page
    for command in ("chunkcast-export", "chunkcast-sim", "chunkcast-health calibrate"):
        assert command in page
    assert data["expected"] is None


def test_a_calibration_with_the_seeds_table_alone_leaves_success_unknown(tmp_path: Path) -> None:
    calibration = make_calibration()
    calibration["expected"] = calibration["expected"][:1]
    text, _ = report_of_records(tmp_path, [make_record(1, 0.2)], calibration)
    assert "Success unknown" in Page(text).text


def test_a_calibration_of_few_runs_has_nothing_held_out(tmp_path: Path) -> None:
    calibration = make_calibration() | {"held_out": None}
    del calibration["metric"]
    for checkpoint in calibration["checkpoints"]:
        del checkpoint["held_out"]
    assert calibration_plot(calibration) is None
    text, _ = report_of_records(tmp_path, [make_record(1, 0.2)], calibration)
    assert "4 checkpoints were played" in Page(text).text
    chosen = calibration_plot(calibration | {"metric": "action_mse"})
    assert chosen is not None
    assert len(chosen.panels) == 1


def test_checkpoints_without_a_finite_metric_break_no_plot() -> None:
    calibration = make_calibration()
    calibration["checkpoints"][0]["metrics"]["action_mse"] = NAN
    calibration["checkpoints"][1]["metrics"] = {}
    calibration["held_out"]["spearman"] = NAN
    assert calibration_plot(calibration) is not None
    for checkpoint in calibration["checkpoints"]:
        checkpoint["metrics"] = {"action_mse": math.inf}
    plot = calibration_plot(calibration)
    assert plot is not None
    assert "no finite value" in plot.panels[1]


def test_json_carries_format_facts_findings_and_epochs(whole: tuple[str, dict[str, Any]]) -> None:
    _, data = whole
    assert (data["format"], data["version"], data["run"]) == ("chunkcast-health-report", 1, "six")
    assert data["facts"] == FACTS
    assert {"code", "severity", "epoch", "evidence", "advice"} == set(data["findings"][0])
    assert data["last_epoch"]["epoch"] == 12
    assert data["last_epoch"]["validation_loss"] == pytest.approx(2.0 / 12)


def test_the_same_input_gives_the_same_bytes_whatever_style_is_set(tmp_path: Path) -> None:
    records = [make_record(epoch, 1.0 / epoch) for epoch in (1, 2, 3)]
    first = report_of_records(tmp_path / "first", records, make_calibration())
    with mpl.rc_context({"font.size": 30.0, "svg.hashsalt": None, "axes.grid": False, "text.parse_math": True}):
        second = report_of_records(tmp_path / "second", records, make_calibration())
        assert mpl.rcParams["font.size"] == 30.0  # and the style is put back
    assert first == second


def test_what_comes_from_files_is_escaped(tmp_path: Path) -> None:
    hostile = '<script>alert("1")</script>'
    names = (hostile, "$\\frac{$", "_hidden", "ünï 手 \x00\n\ud800", 'id="x" url(#x)', "x" * 300, "")
    records = [make_record(epoch, 0.2, names) for epoch in (1, 2)]
    finding = Finding("code<b>", "error", 2, f"evidence {hostile}", f"advice {hostile}")
    calibration = make_calibration()
    calibration["policy"] = calibration["metric"] = calibration["expected"][2]["task"] = hostile
    calibration["checkpoints"][0]["run"] = hostile
    facts = {"run": hostile, hostile: f"value {hostile}", "odd": "\ud800"}
    file, data = write_report(tmp_path, curve_of_records(records), records, [finding], facts, calibration)
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.elements
    assert "code<b>" in page.text
    assert f"evidence {hostile}" in page.text
    assert f"advice {hostile}" in page.text
    assert f"value {hostile}" in page.text
    assert "$\\frac{$" in page.text
    assert 'id="x" url(#x)' in page.text
    assert strict_json(data)["facts"][hostile] == f"value {hostile}"


def test_nan_and_infinity_are_gaps_and_nulls(tmp_path: Path) -> None:
    records = [make_record(epoch, loss) for epoch, loss in enumerate((0.5, NAN, 0.4, math.inf, 1e300, 0.0), start=1)]
    text, data = report_of_records(tmp_path, records)
    Page(text)
    assert not re.search(
        r"(?<![a-z])nan(?![a-z])", " ".join(value for name, value in Page(text).attributes if name == "d")
    )
    assert data["best_epoch"]["epoch"] == 6
    assert data["verdict"] == "error"


def test_a_last_epoch_of_nan_alone_shows_the_last_finite_breakdowns(tmp_path: Path) -> None:
    records = [make_record(1, 0.5), make_record(2, 0.4), make_record(3, NAN)]
    text, data = report_of_records(tmp_path, records)
    page = Page(text).text
    assert "do not serve this policy" in page
    assert "Action MSE, epoch 2" in page
    assert "Validation objective NaN 0.4" in page
    assert data["last_epoch"]["train_loss"] is None
    assert data["best_epoch"]["epoch"] == 2


def test_a_run_of_nothing_but_nan_has_a_report(tmp_path: Path) -> None:
    text, data = report_of_records(tmp_path, [make_record(1, NAN), make_record(2, NAN)])
    page = Page(text).text
    assert "no finite value" in page
    assert "Best: none is finite" in page
    assert data["best_epoch"] is None


def test_one_epoch_is_drawn_as_dots(tmp_path: Path) -> None:
    text, _ = report_of_records(tmp_path, [make_record(7, 0.3)])
    assert Page(text).text.count("Action MSE over epochs") == 0
    assert "Validation, epoch 7" in Page(text).text


def test_a_bare_history_of_an_unknown_loss_has_no_bands(tmp_path: Path) -> None:
    curve = [EpochLosses(epoch, 1.0 / (1 + epoch), 1.1 / (1 + epoch) if epoch % 2 else None) for epoch in range(9)]
    text, data = report_of_curve(tmp_path, curve)
    page = Page(text)
    assert page.elements.count("svg") == 1
    assert "excellent" not in page.text
    assert "of an unknown kind: only its course is judged" in page.text
    assert data["run"] == "losses.csv"
    assert data["best_epoch"]["epoch"] == 7  # epoch 8 was not validated: its training loss does not compare


def test_a_bare_noise_mse_is_drawn_once_and_needs_no_validation() -> None:
    curve = [EpochLosses(epoch, loss, train_noise_mse=loss) for epoch, loss in enumerate((0.9, NAN, 0.4))]
    (plot,) = run_plots(curve, None, [])
    (panel,) = plot.panels
    assert "excellent" in panel
    assert ">validation<" not in panel


def test_findings_are_marked_on_the_losses_by_their_numbers() -> None:
    curve = [EpochLosses(epoch, 0.3, train_noise_mse=0.3) for epoch in range(1, 101)]

    def found(severity: Severity, epoch: int | None) -> Finding:
        return Finding("code", severity, epoch, "evidence", "advice")

    findings = [found("error", 90), found("warning", 91), found("warning", 30), found("info", 60), found("error", None)]
    (plot,) = run_plots(curve, None, findings)
    assert ">1,2</text>" in plot.panels[0]
    assert ">3</text>" in plot.panels[0]
    assert ">4</text>" not in plot.panels[0]
    assert "by their numbers in the table" in plot.caption


def test_ten_thousand_epochs_keep_their_spike_and_their_gap(tmp_path: Path) -> None:
    losses = np.linspace(1.0, 0.1, 10_000)
    losses[4321], losses[8765] = 50.0, NAN
    kept = thinned(losses)
    assert len(kept) <= POINTS + 2
    assert {0, 4321, 8765, 9999} <= set(kept.tolist())
    text, _ = report_of_curve(tmp_path, [EpochLosses(n, loss) for n, loss in enumerate(losses.tolist(), start=1)])
    assert len(text) < 100_000


def test_what_no_axis_can_hold_is_a_gap() -> None:
    drawn = numbers([1.0, None, NAN, math.inf, -math.inf, 1e300, 0.0, -2.0], positive=True)
    assert np.isfinite(drawn).tolist() == [True] + [False] * 7
    assert shown_name("_a") == " _a"
    assert len(shown_name("x" * 300)) < 30


def test_the_verdict_counts_errors_and_warnings() -> None:
    def found(severity: Severity) -> Finding:
        return Finding("code", severity, 1, "evidence", "advice")

    assert verdict_of([found("error"), found("warning"), found("warning")]) == (
        "error",
        "1 error and 2 warnings: do not serve this policy",
    )
    assert verdict_of([found("warning"), found("info")])[0] == "warning"
    assert verdict_of([found("info")])[0] == "ok"


def test_the_best_epoch_is_the_first_of_the_lowest_finite_loss() -> None:
    curve = [EpochLosses(epoch, loss) for epoch, loss in enumerate((NAN, 0.5, 0.2, 0.2, math.inf))]
    best = best_epoch(curve)
    assert best is not None
    assert best.epoch == 2


def test_a_report_is_replaced_and_nothing_is_left_aside(tmp_path: Path) -> None:
    record = make_record(1, 0.2)
    report_of_records(tmp_path, [record])
    _, data = report_of_records(tmp_path, [record, replace(record, epoch=2)])
    assert data["last_epoch"]["epoch"] == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_drawing_is_imported_late_and_without_a_window() -> None:
    code = (
        "import sys, chunkcast.training.health.report; assert not {'matplotlib', 'jinja2'} & set(sys.modules);"
        "import chunkcast.training.health.plots; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
