"""Expected success: monotone, honest about runs that were not seen, and the same after its way through a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcast.training.errors import TrainingError
from chunkcast.training.files import write_json
from chunkcast.training.health.calibration import (
    Calibration,
    Estimate,
    HeldOut,
    PlayedCheckpoint,
    apply_maps,
    choose_metric,
    common_metrics,
    fit_maps,
    hold_out,
    leave_one_run_out,
    mean_absolute_error,
    require_runs,
)
from chunkcast.training.health.calibration_file import (
    Played,
    calibration_json,
    held_out_summary,
    read_calibration,
    seed_table_estimate,
    spearman,
)
from chunkcast.training.health.findings import Finding
from chunkcast.training.health.messages import (
    calibrated_messages,
    expectation_json,
    finding_message,
    seed_table_expectation,
)
from chunkcast.v1 import policy_pb2 as pb

NAN, INF = float("nan"), float("inf")
TASKS = ("door-open-v3", "pick-place-v3")
EPISODES = 20


def in_each_task(**metrics: float) -> dict[str, dict[str, float]]:
    return dict.fromkeys(TASKS, metrics)


METRICS = in_each_task(action_mse=0.06, noise_mse=0.4)
"""Of a checkpoint between those that were played."""


def checkpoint(run: str, epoch: int, error: float, ratio: float, **others: float) -> PlayedCheckpoint:
    """Played in two tasks with equal success; ``error`` is the action MSE."""
    successes = round(ratio * EPISODES)
    return PlayedCheckpoint(
        run,
        epoch,
        metrics={task: {"action_mse": error, **others} for task in TASKS},
        successes=dict.fromkeys(TASKS, successes),
        episodes=dict.fromkeys(TASKS, EPISODES),
    )


def runs_of(count: int, seed: int = 0) -> list[PlayedCheckpoint]:
    """``count`` runs of four checkpoints: success falls with the action MSE; the noise MSE says nothing."""
    generator = np.random.default_rng(seed)
    return [
        checkpoint(
            f"run-{run}",
            epoch,
            error=0.2 * 0.5**place * float(generator.uniform(0.9, 1.1)),
            ratio=(0.1, 0.4, 0.7, 0.95)[place],
            noise_mse=float(generator.uniform(0.1, 0.9)),
        )
        for run in range(count)
        for place, epoch in enumerate((1, 2, 4, 8))
    ]


def played(points: Sequence[PlayedCheckpoint]) -> list[Played]:
    return [
        Played(point, point.run, Estimate(point.ratio(), 0.0, 1.0), train_noise_mse=0.3, validation_noise_mse=0.5)
        for point in points
    ]


@pytest.fixture(scope="module")
def points() -> list[PlayedCheckpoint]:
    """Three runs."""
    return runs_of(3)


@pytest.fixture(scope="module")
def calibration(points: list[PlayedCheckpoint]) -> Calibration:
    return Calibration(points)


@pytest.fixture(scope="module")
def held_out(points: list[PlayedCheckpoint]) -> list[HeldOut]:
    return hold_out(points)


# Maps.


def test_ratios_are_counted_by_task_and_averaged_over_tasks() -> None:
    point = PlayedCheckpoint("a", 1, {}, successes={"x": 1, "y": 30}, episodes={"x": 4, "y": 40})
    assert (point.ratio("x"), point.ratio("y"), point.ratio()) == (0.25, 0.75, 0.5)
    assert point.tasks == ("x", "y")


def test_the_lower_the_error_the_higher_or_equal_the_success() -> None:
    maps = fit_maps(runs_of(3), "action_mse")
    errors = np.geomspace(1e-6, 1e3, 200)
    for task in ("", *TASKS):
        expected = [
            apply_maps(maps, {each: {"action_mse": float(error)} for each in TASKS}, "action_mse")[task]
            for error in errors
        ]
        assert expected == sorted(expected, reverse=True)
        assert 0.0 <= expected[-1] < expected[0] <= 1.0


def test_a_success_that_rises_with_the_error_is_mapped_to_one_mean() -> None:
    points = [checkpoint("a", epoch, error=0.01 * epoch, ratio=0.1 * epoch) for epoch in (1, 2, 3, 4)]
    maps = fit_maps(points, "action_mse")
    for error in (0.001, 0.02, 9.0):
        expected = apply_maps(maps, in_each_task(action_mse=error), "action_mse")
        assert expected == pytest.approx(dict.fromkeys(("", *TASKS), 0.25))


def test_checkpoints_count_by_their_episodes() -> None:
    few, many = checkpoint("a", 1, 0.1, 1.0), checkpoint("a", 2, 0.1, 0.0)
    few = replace(few, successes=dict.fromkeys(TASKS, 10), episodes=dict.fromkeys(TASKS, 10))
    many = replace(many, episodes=dict.fromkeys(TASKS, 90))
    maps = fit_maps([few, many], "action_mse")
    assert apply_maps(maps, in_each_task(action_mse=0.1), "action_mse")[""] == pytest.approx(0.1)


def test_beyond_what_was_played_the_nearest_checkpoint_stands() -> None:
    maps = fit_maps(runs_of(3), "action_mse")

    def at(error: float) -> float:
        return apply_maps(maps, in_each_task(action_mse=error), "action_mse")[""]

    assert at(0.0) == at(5e-324) == at(1e-9) == pytest.approx(0.95)
    assert at(NAN) == at(INF) == at(1e300) == at(9.0) == pytest.approx(0.1)


def test_tasks_have_maps_of_their_own() -> None:
    points = [
        PlayedCheckpoint("a", epoch, {"x": {"m": error}, "y": {"m": error}}, {"x": x, "y": y}, {"x": 10, "y": 10})
        for epoch, error, x, y in ((1, 1.0, 0, 8), (2, 0.1, 9, 10))
    ]
    expected = apply_maps(fit_maps(points, "m"), {"x": {"m": 0.1}, "y": {"m": 1.0}}, "m")
    assert expected == pytest.approx({"x": 0.9, "y": 0.8, "": 0.85})


def test_only_metrics_that_every_checkpoint_has_in_every_task_are_common() -> None:
    points = [checkpoint("a", 1, 0.1, 0.5, b=1.0, c=1.0), checkpoint("b", 1, 0.1, 0.5, c=1.0, d=1.0)]
    assert common_metrics(points) == ["action_mse", "c"]
    points[0].metrics[TASKS[1]].pop("c")
    assert common_metrics(points) == ["action_mse"]


def test_fitting_changes_no_checkpoint(
    points: list[PlayedCheckpoint], calibration: Calibration, held_out: list[HeldOut]
) -> None:
    assert calibration.checkpoints == [each.checkpoint for each in held_out] == points == runs_of(3)


# Leaving a run out.


def with_successes(point: PlayedCheckpoint, successes: int) -> PlayedCheckpoint:
    return replace(point, successes=dict.fromkeys(point.tasks, successes))


def test_a_runs_own_successes_do_not_change_what_is_expected_of_it() -> None:
    points = runs_of(4)
    changed = [with_successes(point, 0) if point.run == "run-1" else point for point in points]
    for metric in ("action_mse", "noise_mse"):
        before, after = leave_one_run_out(points, metric), leave_one_run_out(changed, metric)
        for point, earlier, later in zip(points, before, after, strict=True):
            if point.run == "run-1":
                assert earlier == later
        assert before != after


def test_what_is_held_out_is_unknown_to_metric_map_and_interval(
    points: list[PlayedCheckpoint], held_out: list[HeldOut]
) -> None:
    # With these, another metric would be the best for all runs together.
    changed = [
        replace(
            with_successes(point, EPISODES - point.successes[TASKS[0]]),
            metrics={task: {**metrics, "noise_mse": 1e3} for task, metrics in point.metrics.items()},
        )
        if point.run == "run-1"
        else point
        for point in points
    ]
    before = [each for each in held_out if each.checkpoint.run == "run-1"]
    after = [each for each in hold_out(changed) if each.checkpoint.run == "run-1"]
    assert len(before) == len(after) == 4
    for earlier, later in zip(before, after, strict=True):
        assert (earlier.metric, earlier.expected) == (later.metric, later.expected)


def test_the_other_runs_do_change_it() -> None:
    points = runs_of(4)
    changed = [with_successes(point, 0) if point.run != "run-1" else point for point in points]
    for point, expected in zip(points, leave_one_run_out(changed, "action_mse"), strict=True):
        if point.run == "run-1":
            assert expected[""] == 0.0
    worse = [
        replace(point, metrics={task: {**metrics, "action_mse": 1e3} for task, metrics in point.metrics.items()})
        if point.run != "run-1"
        else point
        for point in points
    ]
    assert leave_one_run_out(worse, "action_mse") != leave_one_run_out(points, "action_mse")


def test_expectations_come_in_the_order_of_the_checkpoints(points: list[PlayedCheckpoint]) -> None:
    """Also where the runs are mixed: the file puts expected beside measured by this order."""
    mixed = points[::2] + points[1::2]
    assert [each.checkpoint for each in hold_out(mixed)] == mixed


@pytest.mark.parametrize("count", [0, 1])
def test_one_run_is_too_few_to_calibrate(count: int) -> None:
    with pytest.raises(TrainingError, match=f"{count} runs .*expected at least 2"):
        leave_one_run_out(runs_of(count), "action_mse")
    with pytest.raises(TrainingError, match=f"{count} runs .*expected at least 2"):
        Calibration(runs_of(count))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_two_runs_are_too_few_to_hold_one_out(count: int) -> None:
    with pytest.raises(TrainingError, match=f"{count} runs .*expected at least 3"):
        hold_out(runs_of(count))


def test_the_runs_that_are_too_few_are_named() -> None:
    with pytest.raises(TrainingError, match=r"2 runs \(run-0, run-1\), expected at least 3"):
        require_runs(runs_of(2), 3)
    assert require_runs(runs_of(3), 3) == ["run-0", "run-1", "run-2"]


def test_two_runs_suffice_to_calibrate_and_three_to_hold_one_out(held_out: list[HeldOut]) -> None:
    assert Calibration(runs_of(2)).metric == "action_mse"
    assert len(held_out) == 12


def test_checkpoints_without_a_common_metric_are_refused() -> None:
    points = [replace(point, metrics={task: {point.run: 0.1} for task in TASKS}) for point in runs_of(3)]
    with pytest.raises(TrainingError, match="metric"):
        Calibration(points)


def test_checkpoints_of_other_tasks_are_refused() -> None:
    points = runs_of(3)
    points[-1] = replace(
        points[-1],
        metrics={"push-v3": points[-1].metrics[TASKS[0]]},
        successes={"push-v3": 1},
        episodes={"push-v3": 2},
    )
    with pytest.raises(TrainingError, match="push-v3"):
        Calibration(points)


# The choice of the metric.


def renamed(points: Sequence[PlayedCheckpoint], names: dict[str, str]) -> list[PlayedCheckpoint]:
    """The metrics under other names; those that ``names`` lacks are left out."""
    return [
        replace(
            point,
            metrics={
                task: {names[name]: value for name, value in metrics.items() if name in names}
                for task, metrics in point.metrics.items()
            },
        )
        for point in points
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "names",
    [
        pytest.param({"action_mse": "a", "noise_mse": "b"}, id="first"),
        pytest.param({"action_mse": "b", "noise_mse": "a"}, id="last"),
        pytest.param({"action_mse": "noise_mse", "noise_mse": "displacement_mse"}, id="whatever it is called"),
    ],
)
def test_the_informative_metric_is_chosen(seed: int, names: dict[str, str]) -> None:
    assert choose_metric(renamed(runs_of(4, seed), names)) == names["action_mse"]


def test_the_order_of_checkpoints_does_not_change_the_choice(points: list[PlayedCheckpoint]) -> None:
    assert choose_metric(points[::-1]) == choose_metric(points)


@pytest.mark.parametrize("value", [NAN, INF, 0.0, -1.0])
def test_a_metric_that_says_nothing_is_not_chosen_and_breaks_nothing(
    points: list[PlayedCheckpoint], value: float
) -> None:
    broken = [
        replace(each, metrics={task: {**metrics, "displacement_mse": value} for task, metrics in each.metrics.items()})
        for each in points
    ]
    assert choose_metric(broken) == "action_mse"


# Intervals.


def assert_sound(estimate: Estimate) -> None:
    assert 0.0 <= estimate.low <= estimate.ratio <= estimate.high <= 1.0


@pytest.mark.parametrize("error", [0.0, 1e-9, 0.03, 0.1, 0.4, 1e9, INF, NAN])
def test_an_interval_holds_its_ratio_and_lies_in_0_to_1(calibration: Calibration, error: float) -> None:
    expected = calibration.expect(in_each_task(action_mse=error, noise_mse=error))
    assert set(expected) == {"", *TASKS}
    for estimate in expected.values():
        assert_sound(estimate)


def test_intervals_are_the_same_each_time(points: list[PlayedCheckpoint], calibration: Calibration) -> None:
    first = calibration.expect(METRICS)
    assert Calibration(points).expect(METRICS) == first == calibration.expect(METRICS)


def test_a_map_that_was_far_off_has_wide_intervals() -> None:
    """Runs that disagree: where one succeeds, the other fails at the same error."""
    agreeing, disagreeing = runs_of(4), runs_of(4)
    for index, point in enumerate(disagreeing):
        if point.run in ("run-1", "run-3"):
            disagreeing[index] = with_successes(point, 0)

    def width(points: list[PlayedCheckpoint]) -> float:
        estimate = Calibration(points).expect(METRICS)[""]
        return estimate.high - estimate.low

    assert width(agreeing) < 0.5 < width(disagreeing)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_twenty_of_twenty_is_not_certain(ratio: float) -> None:
    alike = [with_successes(point, round(ratio * EPISODES)) for point in runs_of(2)]
    estimate = Calibration(alike).expect(METRICS)[""]
    assert estimate.ratio == ratio
    assert estimate.low < estimate.high


RATIOS = st.floats(min_value=0.0, max_value=1.0)
ERRORS = st.floats(min_value=0.0, max_value=1e12) | st.just(NAN) | st.just(INF)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), ERRORS, RATIOS), min_size=2, max_size=5), ERRORS)
def test_any_runs_give_sound_intervals(points: list[tuple[str, float, float]], error: float) -> None:
    checkpoints = [checkpoint(run, 1, each, ratio) for run, each, ratio in [("a", 0.1, 0.5), ("b", 0.2, 0.4), *points]]
    for estimate in Calibration(checkpoints).expect(in_each_task(action_mse=error)).values():
        assert_sound(estimate)


# How far off, against what is counted by hand.


def hand_counted() -> list[PlayedCheckpoint]:
    """Measured 0.2, 0.4, 0.6 and 0.8."""
    return [checkpoint(run, 1, 0.1, ratio) for run, ratio in (("a", 0.2), ("b", 0.4), ("c", 0.6), ("d", 0.8))]


def test_mean_absolute_error_by_hand() -> None:
    assert mean_absolute_error(hand_counted(), [0.2, 0.5, 0.4, 0.9]) == pytest.approx((0.0 + 0.1 + 0.2 + 0.1) / 4)
    with pytest.raises(ValueError, match="zip"):
        mean_absolute_error(hand_counted(), [0.2])


@pytest.mark.parametrize(
    ("second", "rank"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1.0),
        ([9.0, 8.0, 7.0, 6.0], -1.0),
        ([0.1, 0.3, 0.2, 0.4], 0.8),  # 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
        ([0.3, 0.1, 0.4, 0.2], 0.0),  # 1 - 6 * (4 + 1 + 1 + 4) / (4 * 15)
    ],
)
def test_spearman_by_hand(second: list[float], rank: float) -> None:
    assert spearman([0.2, 0.4, 0.6, 0.8], second) == pytest.approx(rank)


def test_spearman_of_what_does_not_vary_is_no_number() -> None:
    assert math.isnan(spearman([0.5, 0.5], [0.1, 0.2]))
    assert math.isnan(spearman([0.1, 0.2], [0.5, 0.5]))
    assert math.isnan(spearman([0.1], [0.5]))


@pytest.mark.parametrize(
    ("noise_mse", "ratio"), [(0.15, 0.925), (0.3, 0.85), (0.5, 0.7), (0.8, 0.45), (5.0, 0.15), (INF, 0.15), (NAN, 0.15)]
)
def test_the_middle_of_the_seeds_range(noise_mse: float, ratio: float) -> None:
    assert seed_table_estimate(noise_mse) == pytest.approx(ratio)


def test_the_summary_by_hand() -> None:
    points = hand_counted()
    estimates = [Estimate(0.3, 0.1, 0.5), Estimate(0.2, 0.1, 0.3), Estimate(0.6, 0.6, 0.6), Estimate(1.0, 0.9, 1.0)]
    held_out = [
        HeldOut(point, "action_mse", dict.fromkeys(("", *TASKS), estimate))
        for point, estimate in zip(points, estimates, strict=True)
    ]
    all_played = [
        Played(point, point.run, Estimate(point.ratio(), 0.0, 1.0), train, validation)
        for point, train, validation in zip(points, (0.8, 0.5, 0.3, 0.15), (0.15, 0.3, 0.5, NAN), strict=True)
    ]
    summary = held_out_summary(all_played, held_out)
    assert summary["mean_absolute_error"] == pytest.approx((0.1 + 0.2 + 0.0 + 0.2) / 4)
    assert summary["mean_absolute_error_by_task"] == pytest.approx((0.1 + 0.2 + 0.0 + 0.2) / 4)
    assert summary["spearman"] == pytest.approx(0.8)
    assert summary["interval_coverage"] == pytest.approx(0.5)
    assert summary["seed_table"]["mean_absolute_error"] == pytest.approx((0.25 + 0.3 + 0.25 + 0.125) / 4)
    assert summary["seed_table"]["spearman"] == pytest.approx(1.0)
    assert summary["seed_table_on_validation"]["mean_absolute_error"] == pytest.approx((0.725 + 0.45 + 0.1 + 0.65) / 4)
    assert summary["seed_table_on_validation"]["spearman"] == pytest.approx(-1.0)
    # All have the same action MSE: of each is expected the mean of the other three.
    by_hand = [abs(ratio - (2.0 - ratio) / 3) for ratio in (0.2, 0.4, 0.6, 0.8)]
    assert summary["by_metric"]["action_mse"]["mean_absolute_error"] == pytest.approx(sum(by_hand) / 4)


# The file.


def from_file(facts: dict[str, Any], file: Path) -> list[PlayedCheckpoint]:
    write_json(file, facts)
    read, points = read_calibration(file)
    assert read["format"] == "chunkcast-calibration"
    return points


def refuse_constant(text: str) -> None:
    raise AssertionError(f"{text} is no strict JSON")


def test_a_calibration_survives_the_way_through_its_file(
    tmp_path: Path, points: list[PlayedCheckpoint], calibration: Calibration, held_out: list[HeldOut]
) -> None:
    again = from_file(calibration_json(played(points), held_out), tmp_path / "deep" / "calibration.json")
    assert again == points
    after = Calibration(again)
    assert calibration.metric == after.metric
    assert calibration.expect(METRICS) == after.expect(METRICS)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["calibration.json"]


def test_what_the_file_says_of_a_checkpoint(points: list[PlayedCheckpoint], held_out: list[HeldOut]) -> None:
    facts = calibration_json(played(points), held_out)
    first = facts["checkpoints"][0]
    assert (first["run"], first["epoch"], first["measured"]) == ("run-0", 1, 0.1)
    assert first["metrics"]["action_mse"] == pytest.approx(points[0].metrics[TASKS[0]]["action_mse"])
    assert first["tasks"][TASKS[0]]["successes"] == 2
    assert first["tasks"][TASKS[0]]["expected"] == held_out[0].expected[TASKS[0]].ratio
    assert first["held_out"] == {
        "metric": held_out[0].metric,
        "expected": held_out[0].expected[""].ratio,
        "low": held_out[0].expected[""].low,
        "high": held_out[0].expected[""].high,
    }
    assert first["seed_table"] == pytest.approx(0.85)


def test_too_few_runs_to_hold_one_out_are_written_without(tmp_path: Path) -> None:
    points = runs_of(2)
    facts = calibration_json(played(points), None)
    assert facts["held_out"] is None
    assert "held_out" not in facts["checkpoints"][0]
    assert from_file(facts, tmp_path / "calibration.json") == points


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_diverged_checkpoint_survives_the_way_through_its_file(tmp_path: Path, value: float) -> None:
    """Strict JSON has no NaN; what is expected must not change for it."""
    points = [*runs_of(3), checkpoint("run-2", 16, value, 0.0, noise_mse=value)]
    file = tmp_path / "calibration.json"
    again = from_file(calibration_json(played(points), None), file)
    json.loads(file.read_text(), parse_constant=refuse_constant)
    assert Calibration(again).expect(METRICS) == Calibration(points).expect(METRICS)


def test_a_diverged_runs_losses_are_written_as_strict_json(tmp_path: Path) -> None:
    points = runs_of(3)
    diverged = [Played(point, point.run, Estimate(0.5, 0.4, 0.6), NAN, INF) for point in points]
    file = tmp_path / "calibration.json"
    assert from_file(calibration_json(diverged, None), file) == points
    first = json.loads(file.read_text(), parse_constant=refuse_constant)["checkpoints"][0]
    assert first["train_noise_mse"] is None
    assert first["seed_table"] == pytest.approx(0.15)


def test_numbers_of_numpy_are_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": np.float64(0.5), "b": [np.float64(NAN)], "c": (1, 2.0)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 0.5, "b": [None], "c": [1, 2.0]}


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


FOREIGN = {
    "empty": "",
    "no JSON": "calibration",
    "a list": "[]",
    "null": "null",
    "a number": "1",
    "another format": '{"format": "else", "version": 1, "checkpoints": []}',
    "another version": '{"format": "chunkcast-calibration", "version": 2, "checkpoints": []}',
    "no version": '{"checkpoints": []}',
    "a version that is a list": '{"format": "chunkcast-calibration", "version": [1], "checkpoints": []}',
    "no checkpoints": '{"format": "chunkcast-calibration", "version": 1}',
    "checkpoints that are none": '{"format": "chunkcast-calibration", "version": 1, "checkpoints": [1]}',
    "checkpoints that are a number": '{"format": "chunkcast-calibration", "version": 1, "checkpoints": 3}',
    "a checkpoint without tasks": '{"format": "chunkcast-calibration", "version": 1, "checkpoints": [{"run": "a"}]}',
    "deeply nested": "[" * 100_000,
}


@pytest.mark.parametrize("content", list(FOREIGN.values()), ids=list(FOREIGN))
def test_a_foreign_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(content)
    with pytest.raises(TrainingError, match="calibrate") as refused:
        read_calibration(file)
    assert str(file) in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_binary_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    with pytest.raises(TrainingError, match=r"is missing; expected what chunkcast-health calibrate"):
        read_calibration(file)
    file.write_bytes(bytes(range(256)))
    with pytest.raises(TrainingError, match="is not JSON"):
        read_calibration(file)


def test_counts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """More successes than episodes, or none at all, are no ratio."""
    for task in ({"successes": 3, "episodes": 2}, {"successes": 0, "episodes": 0}, {"successes": -1, "episodes": 2}):
        facts = calibration_json(played(runs_of(3)), None)
        facts["checkpoints"][0]["tasks"][TASKS[0]].update(task)
        write_json(tmp_path / "calibration.json", facts)
        with pytest.raises(TrainingError):
            read_calibration(tmp_path / "calibration.json")


# What stands in a bundle.


def test_what_a_bundle_says_of_held_out_runs(
    points: list[PlayedCheckpoint], calibration: Calibration, held_out: list[HeldOut]
) -> None:
    facts = calibration_json(played(points), held_out)
    messages = calibrated_messages(calibration, METRICS, facts["held_out"])
    assert [each.task for each in messages] == [*TASKS, ""]
    for each in messages:
        assert each.source == pb.SUCCESS_SOURCE_CALIBRATED
        assert 0.0 <= each.low <= each.ratio <= each.high <= 1.0
        assert (
            "isotonic map of action_mse from 12 checkpoints of 3 other runs; on held-out runs off by" in each.evidence
        )
    assert expectation_json(messages[-1])["source"] == "calibrated"


def test_a_rank_correlation_that_is_no_number_is_told_after_the_file_as_before(
    tmp_path: Path, points: list[PlayedCheckpoint], calibration: Calibration, held_out: list[HeldOut]
) -> None:
    """Every checkpoint succeeded equally often: there is no rank correlation, and the file has null."""
    equal = [with_successes(point, 10) for point in points]
    facts = calibration_json(played(equal), held_out)
    assert math.isnan(facts["held_out"]["spearman"])
    before = calibrated_messages(calibration, METRICS, facts["held_out"])
    write_json(tmp_path / "calibration.json", facts)
    after = calibrated_messages(calibration, METRICS, read_calibration(tmp_path / "calibration.json")[0]["held_out"])
    assert [each.evidence for each in after] == [each.evidence for each in before]


@pytest.mark.parametrize(
    ("noise_mse", "low", "high"), [(0.3, 0.8, 0.9), (5.0, 0.0, 0.3), (NAN, 0.0, 0.3), (INF, 0.0, 0.3)]
)
def test_what_the_seeds_table_says_is_labelled_as_such(noise_mse: float, low: float, high: float) -> None:
    message = seed_table_expectation(noise_mse)
    assert (message.source, message.task) == (pb.SUCCESS_SOURCE_SEED_TABLE, "")
    assert (message.low, message.high, message.ratio) == pytest.approx((low, high, (low + high) / 2))
    assert "0 times out of 7" in message.evidence
    assert "off by" in seed_table_expectation(noise_mse, "off by 40 points").evidence


def test_a_finding_in_a_bundle_keeps_whether_it_has_an_epoch() -> None:
    about_settings = finding_message(Finding("epochs", "info", None, "evidence", "advice"))
    assert not about_settings.HasField("epoch")
    at_start = finding_message(Finding("plateau", "error", 0, "evidence", "advice"))
    assert at_start.HasField("epoch")
    assert (at_start.epoch, at_start.severity) == (0, pb.FINDING_SEVERITY_ERROR)
