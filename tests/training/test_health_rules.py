"""Every warning sign of the seed is found where it shows, and the nearest healthy curve is left alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chunkcast.training.health.findings import Finding, Severity, gravest_first
from chunkcast.training.health.judge import RunSettings, course_findings, judge, run_settings
from chunkcast.training.health.loss_curve import EpochLosses
from chunkcast.training.health.rules import COURSE_RULES, FATAL_CODES
from chunkcast.training.health.seed_table import BANDS, advice_for, band_of, success_of

NAN, INF = float("nan"), float("inf")
HEALTHY = (22.5, 0.66, 0.52, 0.41, 0.36, 0.3, 0.26, 0.22, 0.19, 0.17, 0.16)
"""The course that the seed reported of its own run."""
COURSE_CODES = {rule.__name__ for rule in COURSE_RULES}


def noise_curve(train: Sequence[float], validation: Sequence[float | None] | None = None) -> list[EpochLosses]:
    """A bare history of the noise MSE, from epoch 1 on."""
    return [
        EpochLosses(epoch, loss, held_out, train_noise_mse=loss, validation_noise_mse=held_out)
        for epoch, (loss, held_out) in enumerate(zip(train, validation or [None] * len(train), strict=True), start=1)
    ]


def other_curve(train: Sequence[float], validation: Sequence[float | None] | None = None) -> list[EpochLosses]:
    """A bare history of a loss whose scale is not known."""
    return [
        EpochLosses(epoch, loss, held_out)
        for epoch, (loss, held_out) in enumerate(zip(train, validation or [None] * len(train), strict=True), start=1)
    ]


def codes(findings: Sequence[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def course_codes(curve: list[EpochLosses]) -> set[str]:
    """What the rules about the course find at any epoch."""
    return {finding.code for holding in course_findings(curve) for finding in holding}


def first_epoch(curve: list[EpochLosses], code: str) -> int:
    """The epoch at whose end ``code`` is first found."""
    for epoch, holding in zip(curve, course_findings(curve), strict=True):
        if code in codes(holding):
            return epoch.epoch
    raise AssertionError(f"{code} is never found")


def only(findings: Sequence[Finding], code: str) -> Finding:
    (finding,) = [each for each in findings if each.code == code]
    return finding


# A healthy run.


def test_the_course_that_the_seed_reported_is_healthy() -> None:
    assert course_codes(noise_curve(HEALTHY)) == set()
    assert course_codes(noise_curve(HEALTHY, [1.3 * loss for loss in HEALTHY])) == set()
    assert {finding.severity for finding in judge(noise_curve(HEALTHY))} == {"info"}


@pytest.mark.parametrize("length", range(1, 6))
def test_a_run_that_has_just_begun_is_left_alone(length: int) -> None:
    assert course_codes(noise_curve(HEALTHY[:length], HEALTHY[:length])) == set()


def test_a_single_epoch_of_an_unknown_loss_says_nothing() -> None:
    assert judge(other_curve([0.3])) == []


def test_the_rules_are_the_seeds_and_bear_their_functions_names() -> None:
    assert {
        "non_finite",
        "explosion",
        "oscillation",
        "plateau",
        "no_improvement",
        "validation_gap",
        "validation_rising",
    } == COURSE_CODES
    assert {"non_finite", "explosion"} == FATAL_CODES


# Explosion and non-finite numbers.


def test_a_loss_above_100_is_an_explosion_at_its_epoch() -> None:
    finding = only(judge(noise_curve([0.5, 0.4, 100.1])), "explosion")
    assert (finding.severity, finding.epoch) == ("error", 3)
    assert "100.1" in finding.evidence


def test_a_loss_of_exactly_100_is_not() -> None:
    assert "explosion" not in course_codes(noise_curve([100.0]))
    assert "explosion" in course_codes(noise_curve([math.nextafter(100.0, INF)]))
    assert "explosion" not in course_codes(noise_curve([-1e9]))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "field", [field.name for field in fields(EpochLosses) if field.name not in ("epoch", "denoises")]
)
def test_a_number_that_is_none_is_found_in_every_field(field: str, value: float) -> None:
    healthy = [
        EpochLosses(
            epoch,
            train_loss=loss,
            validation_loss=loss,
            train_noise_mse=loss,
            validation_noise_mse=loss,
            action_mse=0.01,
            action_variance=0.3,
            gradient_norm=0.1,
        )
        for epoch, loss in enumerate([0.5, 0.4, 0.3], start=1)
    ]
    assert course_codes(healthy) == set()
    finding = only(judge([*healthy[:2], replace(healthy[2], **cast(dict[str, Any], {field: value}))]), "non_finite")
    assert (finding.severity, finding.epoch) == ("error", 3)
    assert f"{field} {value}" in finding.evidence


def test_nan_never_heals() -> None:
    finding = only(judge(noise_curve([0.5, NAN, 0.4, 0.3])), "non_finite")
    assert (finding.severity, finding.epoch) == ("error", 2)
    assert "no longer" not in finding.evidence


def test_nan_that_comes_twice_is_one_finding_since_the_first() -> None:
    assert only(judge(noise_curve([0.5, NAN, 0.4, NAN, 0.3])), "non_finite").epoch == 2


def test_a_past_explosion_becomes_a_warning_that_says_until_when() -> None:
    finding = only(judge(noise_curve([500.0, 400.0, 50.0, 0.5, 0.4])), "explosion")
    assert (finding.severity, finding.epoch) == ("warning", 1)
    assert "no longer in epoch 3" in finding.evidence


def test_an_explosion_that_returns_is_an_error_again_and_one_finding() -> None:
    finding = only(judge(noise_curve([500.0, 50.0, 0.5, 700.0])), "explosion")
    assert (finding.severity, finding.epoch) == ("error", 4)


# Oscillation.


def test_a_loss_that_goes_up_and_down_oscillates_since_the_first_of_eight_epochs() -> None:
    curve = noise_curve([0.5, *[1.0, 2.0] * 4])
    assert first_epoch(curve, "oscillation") == 8
    finding = only(judge(curve), "oscillation")
    assert (finding.severity, finding.epoch) == ("warning", 1)


def test_seven_epochs_are_too_few_to_oscillate() -> None:
    assert "oscillation" not in course_codes(noise_curve(([1.0, 2.0] * 4)[:7]))


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([1.0, 1.05] * 8, id="noise about a mean"),
        pytest.param([0.9**n * (1.0 + 0.02 * (-1) ** n) for n in range(30)], id="noise about a fall"),
        pytest.param([0.5, 0.48, 0.46, 0.44, 5.0, 0.43, 0.42, 0.41, 0.4, 0.39], id="a single jump"),
        pytest.param([1.0, 1.2, 1.5, 1.9, 2.4, 3.0, 3.7, 4.5, 5.4], id="a steady rise"),
        pytest.param([0.0] * 10, id="zeros"),
        pytest.param(
            [22.5, 0.7, 0.75, 0.6, 0.63, 0.5, 0.52, 0.45, 0.46, 0.4, 0.42, 0.38], id="after a first epoch's fall"
        ),
    ],
)
def test_no_oscillation(losses: list[float]) -> None:
    assert "oscillation" not in course_codes(noise_curve(losses))


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([-1.0, -5.0] * 4, id="negative"),
        pytest.param([1.0, -1.0] * 4, id="about zero"),
        pytest.param([0.0, 1.0] * 4, id="down to zero"),
        pytest.param([1e308, 1e307] * 4, id="near the largest float"),
        pytest.param([2e-300, 1e-300] * 4, id="near the smallest"),
    ],
)
def test_oscillation_does_not_depend_on_a_losss_sign_or_scale(losses: list[float]) -> None:
    """A log-likelihood is negative, and its mean may be zero."""
    assert "oscillation" in course_codes(other_curve(losses))


# Plateau.


def test_five_epochs_that_stand_still_above_two_are_a_plateau_since_the_first() -> None:
    curve = noise_curve([9.0, 5.0, 2.6, 2.55, 2.5, 2.5, 2.5])
    assert first_epoch(curve, "plateau") == 7
    finding = only(judge(curve), "plateau")
    assert (finding.severity, finding.epoch) == ("error", 3)


def test_a_standing_plateau_keeps_its_first_epoch() -> None:
    finding = only(judge(noise_curve([9.0, 5.0, *[2.5] * 30])), "plateau")
    assert (finding.severity, finding.epoch) == ("error", 3)


def test_a_past_plateau_becomes_a_warning_that_says_until_when() -> None:
    finding = only(judge(noise_curve([*[2.5] * 6, 1.2, 0.5, 0.4])), "plateau")
    assert (finding.severity, finding.epoch) == ("warning", 1)
    assert "no longer in epoch 7" in finding.evidence


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([2.5] * 4, id="four epochs"),
        pytest.param([2.0] * 20, id="exactly 2.0"),
        pytest.param([2.5, 2.5, 2.0, 2.5, 2.5, 2.5, 2.5], id="once at 2.0"),
        pytest.param([9.0, 8.0, 7.0, 6.2, 5.5, 4.9, 4.3, 3.8], id="still falling"),
        pytest.param([0.3] * 20, id="converged"),
        pytest.param([NAN] * 10, id="NaN"),
        pytest.param([INF] * 10, id="inf"),
        pytest.param([-3.0] * 10, id="negative"),
    ],
)
def test_no_plateau(losses: list[float]) -> None:
    assert "plateau" not in course_codes(noise_curve(losses))


def test_a_plateau_just_above_two() -> None:
    assert "plateau" in course_codes(noise_curve([math.nextafter(2.0, 3.0)] * 5))


def test_a_loss_of_unknown_scale_has_no_plateau() -> None:
    assert course_codes(other_curve([50.0, 49.0, 48.0, 47.0, 46.0, 45.0, 44.0])) == set()


def test_a_plateau_as_high_as_floats_go() -> None:
    assert "plateau" in course_codes(noise_curve([1.7e308] * 5))


# No improvement.


def test_five_epochs_without_a_lower_loss() -> None:
    losses = [0.9, 0.8, 0.7, 0.71, 0.72, 0.71, 0.72, 0.71]
    assert first_epoch(noise_curve(losses), "no_improvement") == 8
    assert "no_improvement" not in course_codes(noise_curve(losses[:7]))
    finding = only(judge(noise_curve(losses)), "no_improvement")
    assert (finding.severity, finding.epoch) == ("warning", 3)
    assert "0.7 in epoch 3, 5 epochs before epoch 8" in finding.evidence


def test_below_the_band_excellent_standing_still_is_converging() -> None:
    assert only(judge(noise_curve([0.4] * 6)), "no_improvement").severity == "info"
    assert only(judge(noise_curve([0.5] * 6)), "no_improvement").severity == "warning"
    assert only(judge(other_curve([0.4] * 6)), "no_improvement").severity == "warning"


def test_the_last_digits_are_no_improvement_and_small_steps_add_up() -> None:
    assert "no_improvement" in course_codes(noise_curve([0.7 - 1e-6 * n for n in range(8)]))
    assert "no_improvement" not in course_codes(noise_curve([0.7 * 0.9995**n for n in range(40)]))


@pytest.mark.parametrize("first", [0.0, -2.0])
def test_no_improvement_of_a_loss_that_is_not_positive(first: float) -> None:
    assert "no_improvement" in course_codes(other_curve([first] * 6))
    assert "no_improvement" not in course_codes(other_curve([first - 0.1 * n for n in range(12)]))


def test_held_out_loss_counts_where_there_is_one() -> None:
    falling = [0.8 - 0.02 * n for n in range(10)]
    assert "no_improvement" in course_codes(other_curve(falling, [0.9] * 10))
    assert "no_improvement" not in course_codes(other_curve([0.8] * 10, falling))


def test_training_loss_does_not_stand_for_held_out_loss_in_epochs_without_validation() -> None:
    """Validated every second epoch, as trainers do: the training loss falls, the held-out loss stands still."""
    train = [0.8 * 0.9**n for n in range(24)]
    validation = [0.9 if n % 2 else None for n in range(24)]
    assert "no_improvement" in course_codes(other_curve(train, validation))


def test_held_out_loss_that_falls_is_seen_in_epochs_without_validation() -> None:
    train = [0.1] * 24
    validation = [0.9 * 0.9**n if n % 2 else None for n in range(24)]
    assert "no_improvement" not in course_codes(other_curve(train, validation))


def test_a_first_epoch_that_is_not_finite_is_no_best_one() -> None:
    assert "no_improvement" not in course_codes(other_curve([NAN, *[0.9 - 0.1 * n for n in range(8)]]))
    assert "no_improvement" not in course_codes(other_curve([INF, *[0.9 - 0.1 * n for n in range(8)]]))


def test_epochs_are_told_by_their_numbers() -> None:
    """A history that has a row every ten epochs."""
    curve = [EpochLosses(epoch, 0.7) for epoch in range(10, 70, 10)]
    finding = only(judge(curve), "no_improvement")
    assert " 5 epochs before epoch 60" not in finding.evidence


# Validation.


def test_held_out_loss_above_twice_the_training_loss_for_three_epochs() -> None:
    train = [0.5, 0.4, 0.3, 0.3, 0.3, 0.3]
    validation = [0.5, 0.5, 0.61, 0.62, 0.63, 0.64]
    curve = noise_curve(train, validation)
    assert first_epoch(curve, "validation_gap") == 5
    finding = only(judge(curve), "validation_gap")
    assert (finding.severity, finding.epoch) == ("warning", 3)
    assert "2.13 times" in finding.evidence


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        pytest.param([0.3] * 9, [0.6] * 9, id="exactly twice"),
        pytest.param([0.3] * 9, [0.7, 0.7, 0.6] * 3, id="two of three epochs"),
        pytest.param([0.3, 0.3], [0.9, 0.9], id="two epochs"),
        pytest.param([NAN] * 9, [0.6] * 9, id="no training loss"),
        pytest.param([0.3] * 9, [NAN] * 9, id="no held-out loss"),
        pytest.param([0.0] * 9, [0.0] * 9, id="zeros"),
        pytest.param([-0.9] * 9, [-0.9] * 9, id="negative"),
    ],
)
def test_no_validation_gap(train: list[float], validation: list[float | None]) -> None:
    assert "validation_gap" not in course_codes(other_curve(train, validation))


def test_a_training_loss_of_zero_is_the_widest_gap() -> None:
    assert "validation_gap" in course_codes(other_curve([0.0] * 5, [5.0] * 5))


def test_a_gap_is_found_in_a_run_that_is_validated_every_second_epoch() -> None:
    validation = [9.0 if n % 2 else None for n in range(20)]
    assert "validation_gap" in course_codes(other_curve([0.3] * 20, validation))


def test_an_epoch_without_validation_does_not_end_a_gap() -> None:
    """What was not measured has not healed."""
    finding = only(judge(other_curve([0.3] * 6, [*[0.9] * 5, None])), "validation_gap")
    assert "no longer" not in finding.evidence


def test_held_out_loss_that_rises_while_training_loss_falls() -> None:
    train = [0.5 * 0.9**n for n in range(10)]
    validation = [0.6, 0.5, 0.45, 0.5, 0.52, 0.54, 0.56, 0.58, 0.6, 0.62]
    curve = noise_curve(train, validation)
    assert first_epoch(curve, "validation_rising") == 8  # five epochs after the lowest
    finding = only(judge(curve), "validation_rising")
    assert (finding.severity, finding.epoch) == ("warning", 3)
    assert "0.45 -> 0.62" in finding.evidence


FALLING = [0.5 * 0.9**n for n in range(10)]


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        pytest.param(FALLING[::-1], [0.45, *[0.6] * 9], id="both rise: no overfitting"),
        pytest.param(FALLING, [0.45, *[0.49] * 9], id="nine per cent are noise"),
        pytest.param(FALLING, [0.45, *[0.49] * 8, 0.9], id="one high epoch"),
        pytest.param(FALLING[:5], [0.45, *[0.6] * 4], id="four epochs"),
        pytest.param(FALLING, FALLING, id="both fall"),
        pytest.param(FALLING, [0.0] * 10, id="a perfect held-out loss that stays perfect"),
        pytest.param([-loss for loss in FALLING[::-1]], [-10.0, *[-9.999] * 9], id="negative, and flat"),
        pytest.param(FALLING, [0.45, *[0.46] * 6, NAN, 0.46, 0.46], id="NaN proves no rise"),
        pytest.param(FALLING, [None] * 10, id="not validated"),
    ],
)
def test_no_rise(train: list[float], validation: list[float | None]) -> None:
    assert "validation_rising" not in course_codes(other_curve(train, validation))


def test_a_negative_held_out_loss_that_rises() -> None:
    validation: list[float | None] = [-10.0, *[-5.0 + 0.1 * n for n in range(9)]]
    assert "validation_rising" in course_codes(other_curve([-1.0 - n for n in range(10)], validation))


def test_a_rise_is_found_in_a_run_that_is_validated_every_second_epoch() -> None:
    train = [0.5 * 0.9**n for n in range(24)]
    validation = [0.6 + 0.05 * n if n % 2 else None for n in range(24)]
    assert "validation_rising" in course_codes(other_curve(train, validation))


# judge: the order, and what the last epoch means.


UNSORTED: tuple[tuple[str, Severity], ...] = (
    ("a", "info"),
    ("b", "warning"),
    ("c", "error"),
    ("d", "warning"),
    ("e", "error"),
)


def test_the_gravest_come_first_each_in_the_order_found() -> None:
    findings = [Finding(code, severity, None, "", "") for code, severity in UNSORTED]
    assert [finding.code for finding in gravest_first(findings)] == ["c", "e", "b", "d", "a"]


def test_judge_says_the_gravest_first() -> None:
    losses = [*[2.5] * 6, 500.0, NAN, 0.9, 0.5, 0.4]
    severities = [finding.severity for finding in judge(noise_curve(losses), RunSettings(100, 64, 500, 99))]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert set(severities) == {"error", "warning", "info"}


@pytest.mark.parametrize(
    ("noise_mse", "name", "severity"),
    [
        (0.0, "below the seed's table", "info"),
        (0.099, "below the seed's table", "info"),
        (0.1, "excellent", "info"),
        (0.499, "excellent", "info"),
        (0.51, "good", "info"),
        (0.999, "good", "info"),
        (1.01, "acceptable", "warning"),
        (2.0, "acceptable", "warning"),  # "above 2 poor"
        (math.nextafter(2.0, 3.0), "poor", "error"),
        (1e308, "poor", "error"),
        (INF, "poor", "error"),
    ],
)
def test_the_seeds_bands(noise_mse: float, name: str, severity: str) -> None:
    assert (band_of(noise_mse).name, band_of(noise_mse).severity) == (name, severity)


def test_the_bands_leave_no_gap() -> None:
    assert [band.low for band in BANDS] == [0.0, *[band.high for band in BANDS[:-1]]]


@pytest.mark.parametrize(
    ("noise_mse", "low", "high"),
    [
        (0.1, 0.9, 0.95),
        (0.19, 0.9, 0.95),
        (0.21, 0.8, 0.9),
        (0.39, 0.8, 0.9),
        (0.41, 0.6, 0.8),
        (0.59, 0.6, 0.8),
        (0.61, 0.3, 0.6),
        (1.0, 0.3, 0.6),  # "above 1.0 less than 30 %"
        (math.nextafter(1.0, 2.0), 0.0, 0.3),
        (1e9, 0.0, 0.3),
        (INF, 0.0, 0.3),
    ],
)
def test_the_seeds_success(noise_mse: float, low: float, high: float) -> None:
    assert success_of(noise_mse) == (low, high)


def test_the_last_epochs_band_is_told_on_held_out_data_where_it_was_measured() -> None:
    finding = only(judge(noise_curve([0.9, 0.05], [0.9, 0.7])), "loss_band")
    assert "good" in finding.evidence
    assert "30-60 %" in finding.advice
    assert finding.epoch == 2


@pytest.mark.parametrize(("noise_mse", "severity"), [(0.3, "info"), (0.94, "info"), (0.96, "error"), (1.5, "error")])
def test_a_network_that_predicts_hardly_better_than_no_noise_has_learned_nothing(
    noise_mse: float, severity: str
) -> None:
    finding = only(judge(noise_curve([noise_mse])), "variance_explained")
    assert finding.severity == severity


@pytest.mark.parametrize(
    ("action_mse", "severity"),
    [(0.5, "error"), (0.3, "error"), (0.28, "error"), (0.26, "warning"), (0.13, "warning"), (0.11, None), (0.0, None)],
)
def test_sampled_actions_hardly_better_than_the_mean_action(action_mse: float, severity: str | None) -> None:
    curve = [replace(noise_curve([0.2])[0], action_mse=action_mse, action_variance=0.3)]
    found = [finding.severity for finding in judge(curve) if finding.code == "observation_unused"]
    assert found == (["warning"] if severity else [])  # a noise predictor's
    curve = [replace(curve[0], train_loss=0.01)]
    found = [finding.severity for finding in judge(curve) if finding.code == "observation_unused"]
    assert found == ([severity] if severity else [])


@pytest.mark.parametrize(("action_mse", "variance"), [(0.3, 0.0), (0.3, None), (None, 0.3)])
def test_what_was_not_measured_of_actions_is_not_judged(action_mse: float | None, variance: float | None) -> None:
    curve = [replace(noise_curve([0.2])[0], action_mse=action_mse, action_variance=variance)]
    assert "observation_unused" not in codes(judge(curve))


def test_nothing_is_said_of_a_last_loss_that_is_not_a_number() -> None:
    assert not codes(judge(noise_curve([0.5, NAN]), RunSettings(600))) & {"loss_band", "variance_explained"}


def test_a_noise_mse_that_was_not_trained_for_is_not_judged() -> None:
    """MIP, a student, and a policy for one evaluation: at most timesteps nobody asks what it predicts."""
    curve = noise_curve([3.0] * 10)
    assert {"plateau", "loss_band", "variance_explained", "target_loss"} <= codes(judge(curve, RunSettings(600)))
    judged = codes(judge(curve, RunSettings(600, denoises=False)))
    assert not judged & {"plateau", "loss_band", "variance_explained", "target_loss"}
    assert "no_improvement" in judged
    for changes, denoises in (
        ({}, True),
        ({"objective": "mip"}, False),
        ({"teacher": "runs/teacher"}, False),
        ({"noise_only_fraction": 0.5}, True),
        ({"noise_only_fraction": 0.9}, False),
    ):
        config = {"objective": "diffusion", "teacher": None, "noise_only_fraction": 0.0, **changes}
        facts = {"epoch_windows": 9, "config": {"batch_size": 1, "epochs": 1, "patience": 0, **config}}
        assert run_settings(facts).denoises is denoises


def test_nothing_is_read_off_a_loss_of_unknown_scale() -> None:
    found = codes(judge(other_curve([0.5, 0.4]), RunSettings(samples=600, batch_size=8, epochs=20, patience=10)))
    assert found == set()


# The seed's advice by data-set size.


@pytest.mark.parametrize(
    ("samples", "epochs", "patience", "target", "batch"),
    [
        (1, (10, 20), (8, 10), (0.1, 0.5), (4, 8)),
        (499, (10, 20), (8, 10), (0.1, 0.5), (4, 8)),
        (500, (20, 50), (8, 10), (0.1, 0.5), (4, 8)),
        (528, (20, 50), (8, 10), (0.1, 0.5), (4, 8)),
        (999, (20, 50), (8, 10), (0.1, 0.5), (4, 8)),
        (1000, (20, 50), (10, 15), (0.1, 0.5), (4, 8)),
        (2000, (20, 50), (10, 15), (0.1, 0.5), (4, 8)),
        (2001, (50, None), (10, 15), (0.05, 0.3), (16, 32)),
        (10**9, (50, None), (10, 15), (0.05, 0.3), (16, 32)),
    ],
)
def test_the_seeds_advice_by_data_size(
    samples: int,
    epochs: tuple[int, int | None],
    patience: tuple[int, int],
    target: tuple[float, float],
    batch: tuple[int, int],
) -> None:
    advice = advice_for(samples)
    assert (advice.epochs, advice.patience, advice.target, advice.batch) == (epochs, patience, target, batch)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (RunSettings(), set()),
        (RunSettings(batch_size=999, epochs=999, patience=999), set()),
        (RunSettings(samples=499, batch_size=4, epochs=10, patience=8), set()),
        (RunSettings(samples=499, batch_size=8, epochs=20, patience=10), set()),
        (RunSettings(samples=499, epochs=9), {"epochs"}),
        (RunSettings(samples=499, epochs=21), {"epochs"}),
        (RunSettings(samples=500, epochs=21), set()),
        (RunSettings(samples=2000, epochs=51), {"epochs"}),
        (RunSettings(samples=2001, epochs=51), set()),
        (RunSettings(samples=2001, epochs=100_000), set()),
        (RunSettings(samples=2001, epochs=49), {"epochs"}),
        (RunSettings(samples=999, patience=11), {"patience"}),
        (RunSettings(samples=1000, patience=11), set()),
        (RunSettings(samples=1000, patience=9), {"patience"}),
        (RunSettings(samples=1000, patience=0), set()),
        (RunSettings(samples=2000, batch_size=16), {"batch_size"}),
        (RunSettings(samples=2001, batch_size=16), set()),
        (RunSettings(samples=2001, batch_size=33), {"batch_size"}),
        (RunSettings(samples=2001, batch_size=15), {"batch_size"}),
    ],
)
def test_settings_off_the_seeds_advice_are_told_as_known_facts(settings: RunSettings, found: set[str]) -> None:
    findings = [
        each for each in judge(other_curve([0.4]), settings) if each.code in {"epochs", "patience", "batch_size"}
    ]
    assert codes(findings) == found
    assert {(each.severity, each.epoch) for each in findings} <= {("info", None)}


@pytest.mark.parametrize(
    ("samples", "noise_mse", "severity"),
    [(2000, 0.5, "info"), (2000, 0.501, "warning"), (2001, 0.3, "info"), (2001, 0.301, "warning"), (528, 0.05, "info")],
)
def test_the_target_loss_by_data_size(samples: int, noise_mse: float, severity: str) -> None:
    finding = only(judge(noise_curve([noise_mse]), RunSettings(samples)), "target_loss")
    assert (finding.severity, finding.epoch) == (severity, 1)


# For any numbers.

ANY_LOSS = st.floats() | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 100.0, 1e308, -1e308, 5e-324])
ANY_EPOCHS = st.lists(st.tuples(ANY_LOSS, st.none() | ANY_LOSS), min_size=1, max_size=24)
ANY_SETTINGS = st.builds(
    RunSettings,
    *[st.none() | st.integers(min_value=1, max_value=10**6)] * 3,
    patience=st.none() | st.integers(min_value=0, max_value=10**6),
)


@given(ANY_EPOCHS, st.booleans(), ANY_SETTINGS)
@example([(1.7e308, None)] * 8, True, RunSettings())
@example([(1.0, None), (-1.0, None)] * 4, False, RunSettings())
def test_judge_never_raises_and_never_says_the_same_twice(
    epochs: list[tuple[float, float | None]], scale_is_known: bool, settings: RunSettings
) -> None:
    train, validation = zip(*epochs, strict=True)
    curve = (noise_curve if scale_is_known else other_curve)(train, validation)
    findings = judge(curve, settings)
    assert len(codes(findings)) == len(findings)
    assert findings == gravest_first(findings)
    for finding in findings:
        assert finding.epoch is None or 1 <= finding.epoch <= len(curve)
        assert "\n" not in finding.evidence + finding.advice
    assert ("non_finite" in codes(findings)) == any(
        not math.isfinite(value) for pair in epochs for value in pair if value is not None
    )


ANY_ACTION = st.none() | st.floats()


@given(st.lists(st.tuples(ANY_LOSS, ANY_ACTION, ANY_ACTION, ANY_ACTION), min_size=1, max_size=9))
def test_judge_never_raises_on_sampled_actions(
    epochs: list[tuple[float, float | None, float | None, float | None]],
) -> None:
    curve = [
        EpochLosses(epoch, loss, action_mse=action, action_variance=variance, gradient_norm=norm)
        for epoch, (loss, action, variance, norm) in enumerate(epochs)
    ]
    assert len(codes(judge(curve))) == len(judge(curve))


POSITIVE = st.floats(min_value=1e-3, max_value=90.0)


@given(
    st.lists(st.tuples(POSITIVE, st.none() | POSITIVE), min_size=1, max_size=24),
    st.integers(min_value=-60, max_value=0),
)
def test_the_scale_of_an_unknown_loss_does_not_matter(epochs: list[tuple[float, float | None]], exponent: int) -> None:
    """Powers of two, by which floats scale without rounding, and no larger than 1: explosion has a scale."""
    train, validation = zip(*epochs, strict=True)
    factor = 2.0**exponent
    scaled = other_curve(
        [factor * loss for loss in train], [None if loss is None else factor * loss for loss in validation]
    )
    findings, of_scaled = judge(other_curve(train, validation)), judge(scaled)
    assert [(each.code, each.severity, each.epoch) for each in findings] == [
        (each.code, each.severity, each.epoch) for each in of_scaled
    ]


@given(st.lists(st.tuples(ANY_LOSS, st.none() | ANY_LOSS), min_size=2, max_size=16))
def test_what_comes_later_does_not_change_what_was_found_before(epochs: list[tuple[float, float | None]]) -> None:
    train, validation = zip(*epochs, strict=True)
    whole = other_curve(train, validation)
    cut = whole[:-1]
    assert list(map(repr, course_findings(cut))) == list(map(repr, course_findings(whole)))[:-1]
