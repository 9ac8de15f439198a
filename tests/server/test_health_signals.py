"""The health signals as pure functions, their averages over an episode, and the thresholds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chunkcast.server.health import signals
from chunkcast.server.health.judgement import MAX_SCORE, Course, Thresholds
from chunkcast.server.health.outcomes import WINDOW, Outcomes, wilson
from chunkcast.server.health.reference import Reference
from chunkcast.server.health.statistics import REST_SECONDS, HealthStatistics
from chunkcast.server.histogram import Histogram
from chunkcast.v1 import policy_pb2 as pb

STATE, ACTIONS = 3, 2
finite = st.floats(-1e3, 1e3, width=32)


def reference(observations: Sequence[Sequence[float]]) -> Reference:
    """Of a robot whose state moves by its actions, element by element."""
    points = np.array(observations, np.float32)
    response = np.zeros((STATE, STATE + 2 * ACTIONS + 1), np.float32)
    for element in range(ACTIONS):
        response[element, STATE + element] = 1.0
    return Reference(
        scale=np.ones(STATE, np.float32),
        observations=points,
        squares=(points**2).sum(1),
        embedding_mean=np.zeros(2, np.float32),
        embedding_axes=np.eye(2, dtype=np.float32),
        response=response,
        response_deviation=np.full(STATE, 0.5, np.float32),
    )


def test_novelty_is_the_distance_to_the_nearest() -> None:
    known = reference([[0, 0, 0]] * 5 + [[10, 0, 0]] * 5)
    assert signals.novelty(np.zeros(3, np.float32), known) == pytest.approx(0.0)
    assert signals.novelty(np.array([10, 3, 4], np.float32), known) == pytest.approx(5.0)


@given(arrays(np.float32, STATE, elements=finite), arrays(np.float32, (7, STATE), elements=finite))
def test_novelty_is_what_sorting_all_distances_gives(state: np.ndarray, points: np.ndarray) -> None:
    distances = np.sort(np.linalg.norm(points.astype(float) - state.astype(float), axis=1))[: signals.NEIGHBOURS]
    # Squares of a thousand in float32 leave a few thousandths of a square.
    assert signals.novelty(state, reference(points.tolist())) == pytest.approx(distances.mean(), rel=1e-3, abs=2.0)


def test_range_is_a_share_of_the_training_range() -> None:
    low, high = np.array([0, -1], np.float32), np.array([2, 1], np.float32)
    assert signals.range_exceedance(np.array([1, 1], np.float32), low, high) == 0.0
    assert signals.range_exceedance(np.array([3, -1.5], np.float32), low, high) == pytest.approx(0.5)
    # An element that never varied: anything else is far beyond, and still finite.
    assert math.isfinite(signals.range_exceedance(np.array([1], np.float32), low[:1], low[:1]))


def test_chunks_that_continue_each_other_agree() -> None:
    path = np.cumsum(np.full((12, ACTIONS), 0.1, np.float32), axis=0)
    span = np.full(ACTIONS, 2.0, np.float32)
    assert signals.disagreement(path[:8], path[4:], 4, span) == pytest.approx(0.0, abs=1e-6)
    assert signals.disagreement(path[:8], path[:8], 8, span) is None
    shifted = signals.disagreement(path[:8], path[4:] + 0.5, 4, span)
    larger = signals.disagreement(path[:8], path[4:] + 1.0, 4, span)
    assert shifted is not None
    assert larger == pytest.approx(2 * shifted, rel=1e-5)


def test_a_robot_that_does_as_it_is_told_responds() -> None:
    known, before = reference([[0, 0, 0]]), np.zeros(STATE, np.float32)
    executed = np.array([[0.5, 0.0], [0.5, 1.0]], np.float32)
    obedient = np.array([1.0, 1.0, 0.0], np.float32)
    assert signals.response(before, obedient, executed, known) == pytest.approx(0.0, abs=1e-6)
    # It stands still: two elements are off by 1, two standard deviations.
    assert signals.response(before, before, executed, known) == pytest.approx(math.sqrt((4 + 4) / 3))
    jump = np.array([1e30, 1.0, 0.0], np.float32)
    assert signals.response(before, jump, executed, known) <= signals.MAX_DEVIATIONS


def test_averages_begin_anew_with_an_episode() -> None:
    course, signal = Course(), pb.HEALTH_SIGNAL_NOVELTY
    assert course.add("a", {signal: 4.0})[signal] == 4.0
    assert course.add("a", {signal: 0.0})[signal] == 2.0
    # A signal that cannot be had at a chunk keeps its average.
    assert course.add("a", {})[signal] == 2.0
    assert course.add("b", {signal: 1.0})[signal] == 1.0


@pytest.mark.parametrize("score", [math.nan, math.inf, 1e300])
def test_a_score_is_finite_and_alarming(score: float) -> None:
    averages = Course().add("a", {pb.HEALTH_SIGNAL_DENOISING_LOSS: score})
    assert averages[pb.HEALTH_SIGNAL_DENOISING_LOSS] == MAX_SCORE


def test_the_verdict_names_the_signal_that_stands_highest() -> None:
    thresholds = Thresholds(
        pb.ServingHealth(
            thresholds=[
                pb.SignalThreshold(signal=pb.HEALTH_SIGNAL_NOVELTY, task="left", threshold=10.0),
                pb.SignalThreshold(signal=pb.HEALTH_SIGNAL_NOVELTY, threshold=1.0),
                pb.SignalThreshold(signal=pb.HEALTH_SIGNAL_RESPONSE, threshold=2.0),
            ]
        )
    )
    scores = {pb.HEALTH_SIGNAL_NOVELTY: 5.0, pb.HEALTH_SIGNAL_RESPONSE: 3.0, pb.HEALTH_SIGNAL_RANGE: 99.0}
    left, right = thresholds.judge(7, "left", scores), thresholds.judge(7, "right", scores)
    assert (left.signal, left.score, left.threshold, left.step) == (pb.HEALTH_SIGNAL_RESPONSE, 3.0, 2.0, 7)
    assert (right.signal, right.threshold) == (pb.HEALTH_SIGNAL_NOVELTY, 1.0)
    assert len(left.scores) == 3
    nothing_known = Thresholds(pb.ServingHealth()).judge(7, "left", scores)
    assert nothing_known.signal == pb.HEALTH_SIGNAL_UNSPECIFIED
    assert nothing_known.threshold == 0.0
    assert len(nothing_known.scores) == 3


def test_measured_success_is_of_the_last_episodes() -> None:
    outcomes = Outcomes()
    for _ in range(10):
        outcomes.report("left", "failure", 1, "")
    for _ in range(WINDOW):
        outcomes.report("left", "success", 1, "")
    outcomes.report("left", "aborted", 1, "")
    outcomes.report("right", "failure", 1, "")
    outcomes.report("other", "failure", 1, "")
    measured = outcomes.measured()
    assert (measured["left"].ratio, measured["left"].episodes) == (1.0, WINDOW)
    assert measured["all"].episodes == WINDOW + 1, "tasks that the policy does not know are not among all"
    assert measured["all"].ratio == pytest.approx(WINDOW / (WINDOW + 1))
    assert [each.outcome for each in outcomes.recent][-3:] == ["aborted", "failure", "failure"]


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_are_scipys(counts: tuple[int, int]) -> None:
    from scipy.stats import binomtest

    successes, episodes = counts
    expected = binomtest(successes, episodes).proportion_ci(0.95, method="wilson")
    mine = wilson(successes, episodes)
    assert (mine.low, mine.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_quantiles_are_of_what_was_counted_since() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    assert histogram.quantile(0.5) is None
    for value in (0.5, 3.0, 3.0, 3.0):
        histogram.observe(value)
    assert histogram.quantile(0.25) == 1.0
    assert histogram.quantile(0.5) == pytest.approx(2.0 + 2.0 / 3.0)
    before = list(histogram.counts)
    assert histogram.quantile(0.5, before) is None
    histogram.observe(100.0)
    assert histogram.quantile(0.5, before) == 4.0, "above the last bound there is only the bound"


def test_a_robot_that_rests_is_not_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics, ill, well = HealthStatistics(), object(), object()
    statistics.stream_judged(ill, unhealthy=True)
    statistics.stream_judged(well, unhealthy=True)
    assert statistics.unhealthy_streams == 2
    statistics.stream_judged(well, unhealthy=False)
    assert statistics.unhealthy_streams == 1
    later = time.monotonic() + REST_SECONDS + 1.0
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert statistics.unhealthy_streams == 0
