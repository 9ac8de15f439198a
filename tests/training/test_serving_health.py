"""References and thresholds of serving health: fitted on episodes that went well, and written into the bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkcast.server.bundle import read_bundle
from chunkcast.server.health.reference import read_references
from chunkcast.training.errors import TrainingError
from chunkcast.training.export.bundle_writer import read_spec
from chunkcast.training.health.serving_reference import TracedEpisode, fit_reference, read_traces
from chunkcast.training.health.serving_thresholds import JudgedEpisode, conformal_quantile, fit_thresholds
from chunkcast.v1 import policy_pb2 as pb
from tests.conftest import SHIPPED_BUNDLE
from tests.end_to_end.test_whole_way import run

STATE_KEY = "observation.state"
SEED = 500_000


@given(st.lists(st.floats(0, 1), min_size=40, max_size=200), st.sampled_from([0.03, 0.05, 0.1, 0.5]))
def test_the_quantile_leaves_no_more_than_alpha_above_it(scores: list[float], alpha: float) -> None:
    """Of n scores and a further one, exchangeable with them, at most alpha (n + 1) lie above."""
    quantile = conformal_quantile(scores, alpha)
    assert quantile in scores
    assert sum(score > quantile for score in scores) <= alpha * (len(scores) + 1)


def test_false_alarms_are_as_rare_as_asked_for() -> None:
    """On episodes that had no part in it, over many calibrations: the guarantee is of their mean."""
    generator, alarms = np.random.default_rng(0), []
    for _ in range(200):
        draw = [
            [JudgedEpisode("a", {"novelty": x, "response": y}) for x, y in generator.exponential(size=(60, 2))]
            for _ in range(3)
        ]
        fitted = {each.signal: each.threshold for each in fit_thresholds(draw[0], draw[1], 0.1)}
        signals = {"novelty": pb.HEALTH_SIGNAL_NOVELTY, "response": pb.HEALTH_SIGNAL_RESPONSE}
        alarms += [any(each.highest[name] > fitted[code] for name, code in signals.items()) for each in draw[2]]
    assert 0.06 < np.mean(alarms) < 0.11


def test_too_few_episodes_for_so_few_alarms() -> None:
    message = r"10 successful episodes cannot bound false alarms at 0\.03; expected at least 33"
    with pytest.raises(TrainingError, match=message):
        conformal_quantile([1.0] * 10, 0.03)
    with pytest.raises(TrainingError, match="too few successful episodes of 'a'"):
        fit_thresholds([JudgedEpisode("a", {"range": 1.0})], [JudgedEpisode("b", {"range": 1.0})], 0.5)


def made_episode(spec: pb.PolicySpec, task: str, seed: int, success: bool = True) -> TracedEpisode:
    """A robot whose hand goes where it is told; what it does not touch stays."""
    generator = np.random.default_rng(seed)
    steps = np.arange(0, 40, 4)
    actions = generator.uniform(-1, 1, (len(steps), 16, 4)).astype(np.float32)
    state = np.zeros((len(steps), 39), np.float32)
    state[0] = generator.uniform(0, 1, 39)
    for index in range(1, len(steps)):
        state[index] = state[index - 1]
        state[index, :3] += 0.01 * actions[index - 1, :4, :3].sum(0)
    return TracedEpisode(task, success, steps, {STATE_KEY: state}, actions)


def test_the_server_reads_what_is_fitted_and_the_response_is_learned() -> None:
    bundle = read_bundle(SHIPPED_BUNDLE)
    tasks = [instruction.text for instruction in bundle.spec.instructions]
    episodes = [made_episode(bundle.spec, task, seed) for task in tasks for seed in range(12)]
    reference = fit_reference(SHIPPED_BUNDLE, bundle.spec, episodes)
    read = read_references(bundle.spec, reference.SerializeToString())
    assert list(read) == tasks
    one = read[tasks[0]]
    assert len(one.observations) == 12 * 10
    # 1 cm a tick and unit of action, in units of the element's scale; of the sum of the actions, the map's 40th column.
    assert one.response[0, 39] * one.scale[0] == pytest.approx(0.01, rel=0.1)
    assert one.response_deviation[0] < 0.1
    whitened = (np.random.default_rng(0).standard_normal((5, len(one.embedding_mean)))) @ one.embedding_axes.T
    assert np.isfinite(whitened).all()


def test_episodes_that_failed_are_no_reference() -> None:
    spec = read_spec(SHIPPED_BUNDLE)
    tasks = [instruction.text for instruction in spec.instructions]
    episodes = [made_episode(spec, task, seed, success=task != tasks[2]) for task in tasks for seed in range(3)]
    with pytest.raises(TrainingError, match=f"0 successful episodes of '{tasks[2]}', expected 2 or more"):
        fit_reference(SHIPPED_BUNDLE, spec, episodes)


def test_a_bundle_without_the_second_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"has no health.onnx; export the policy again"):
        fit_reference(tmp_path, read_spec(SHIPPED_BUNDLE), [])


def test_what_is_no_trace_is_refused_by_name(tmp_path: Path) -> None:
    # No archive, one that was cut off, and one of something else.
    np.savez(tmp_path / "x.npz", something=np.zeros(1000))
    whole = (tmp_path / "x.npz").read_bytes()
    for content in (b"no zip", whole[: len(whole) // 2], whole):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(TrainingError, match=r"x.npz is no trace of chunkcast-sim"):
            read_traces(tmp_path)


def test_monitor_measures_a_bundle_through_the_server(tmp_path: Path) -> None:
    """The command as users run it, on few episodes; the version stays, and so do expectations and findings."""
    bundle = tmp_path / "six"
    shutil.copytree(SHIPPED_BUNDLE, bundle)
    before = read_spec(bundle)
    flags = ("--episodes", "2", "--seed", str(SEED), "--false-alarms", "0.1", "--json", tmp_path / "t.json")
    result = run("chunkcast-health", "monitor", bundle, *flags)
    assert "24 others to tell how unlike healthy ones may be" in result.stdout
    spec = read_bundle(bundle).spec
    health = spec.serving_health
    assert (health.false_alarm_rate, health.episodes, health.reference_episodes) == (0.1, 24, 12)
    assert (health.reference_first_seed, health.reference_last_seed) == (SEED, SEED + 1)
    assert (health.first_seed, health.last_seed) == (SEED + 2, SEED + 5)
    assert len(health.thresholds) == 6 * 6
    assert spec.version == before.version
    assert spec.expected_success == before.expected_success
    assert len(json.loads((tmp_path / "t.json").read_text())["thresholds"]) == 36
    assert (bundle / "README.md").is_file()


def test_measure_writes_what_is_expected_of_a_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "six"
    shutil.copytree(SHIPPED_BUNDLE, bundle)
    before = read_spec(bundle)
    flags = ("--episodes", "2", "--seed", str(SEED), "--json", tmp_path / "played.json")
    result = run("chunkcast-health", "measure", bundle, *flags)
    assert "expected success in the bundle" in result.stdout
    spec = read_bundle(bundle).spec
    measured = {each.task: each for each in spec.expected_success if each.source == pb.SUCCESS_SOURCE_MEASURED}
    assert set(measured) == {"", *(each.text for each in spec.instructions)}
    assert measured[""].episodes == 12
    assert measured[""].evidence.endswith(f"of 12 episodes through the server, seeds {SEED}-{SEED + 1}")
    played = json.loads((tmp_path / "played.json").read_text())
    assert (measured[""].ratio, played["episodes"]) == (played["success_rate"], 12)

    def others(spec: pb.PolicySpec) -> list[pb.ExpectedSuccess]:
        return [each for each in spec.expected_success if each.source != pb.SUCCESS_SOURCE_MEASURED]

    assert others(spec) == others(before) != []
    assert (spec.version, spec.serving_health) == (before.version, before.serving_health)
    refused = run("chunkcast-health", "measure", bundle, "--seed", "50", code=2)
    assert refused.stderr.startswith("error: seeds 50 to 69 overlap with those of the demonstrations, 0 to 108; take")


def test_bad_flags_are_one_line(tmp_path: Path) -> None:
    for arguments, message in (
        ((SHIPPED_BUNDLE, "--episodes", "0"), "error: --episodes and --workers must be at least 1"),
        ((SHIPPED_BUNDLE, "--false-alarms", "1.5"), "error: --false-alarms is 1.5, expected above 0 and below 1"),
        ((SHIPPED_BUNDLE, "--seed", "50"), "error: seeds 50 to 139 overlap with those of the demonstrations, 0 to 108"),
        ((SHIPPED_BUNDLE, "--execute-steps", "0"), "error: --execute-steps is 0, expected 1 or more"),
        ((tmp_path,), "policy.json is missing"),
    ):
        refused = run("chunkcast-health", "monitor", *arguments, code=2)
        assert message in refused.stderr
        assert refused.stderr.count("\n") == 1
