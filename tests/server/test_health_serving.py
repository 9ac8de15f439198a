"""Health through a real server: what a robot is told of its chunks, what it costs, and what a bad bundle does."""

from __future__ import annotations

import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from chunkcast.client import ActionChunk, ActionStream, ObservationError, PolicyClient, PolicyUnavailable
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.client.sim.metaworld_robot import MetaWorldRobot
from chunkcast.client.wire import encode_observation
from chunkcast.server.bundle import read_bundle
from chunkcast.server.health.judgement import Scores, Thresholds
from chunkcast.server.health.monitor import HealthMonitor
from chunkcast.server.health.scorer import Pair, Sample, Scorer
from chunkcast.server.health.statistics import HealthStatistics
from chunkcast.training.export.bundle_writer import read_spec, write_serving_health
from chunkcast.v1 import admin_pb2, admin_pb2_grpc, health_pb2
from chunkcast.v1 import policy_pb2 as pb
from tests.conftest import SHIPPED_BUNDLE, ServeBundle
from tests.handmade_bundle import STATE_KEY, STATE_SIZE, write_echo_bundle

TASK = "drawer-close-v3"
CHOICE_SEED = 500_000
SECONDS = 30.0
"""After which what a test waits for will not come."""

SIGNALS = {"range", "novelty", "embedding_novelty", "disagreement", "denoising_loss", "response"}


def metrics(server: PrivateServer) -> dict[str, float]:
    """Sums over the labels of each sample."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
        text = page.read().decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def observed(seed: int = CHOICE_SEED) -> dict[str, Any]:
    robot = MetaWorldRobot(TASK)
    robot.begin_episode(seed)
    return dict(robot.observe())


@pytest.fixture(scope="module")
def judging_server() -> Iterator[PrivateServer]:
    """A server that judges every chunk, in order."""
    with private_server(SHIPPED_BUNDLE, "--health-share", "1") as server:
        yield server


def until_judged(
    stream: ActionStream, observation: dict[str, Any], *, episode: str, instruction: str = TASK, wait: int = 0
) -> ActionChunk:
    """A chunk of the episode whose health is of step ``wait``; those after it stand for a robot that does not move."""
    give_up, step = time.monotonic() + SECONDS, 0
    while True:
        chunk = stream.request(observation, episode_id=episode, step=step, instruction=instruction)
        if chunk.health and chunk.health.step == wait:
            return chunk
        assert time.monotonic() < give_up, "never judged"
        # Steps that are asked for once: later ones only ask again whether the first have been judged.
        step += 4 if step < wait + 4 else 1000
        time.sleep(0.05)


def test_a_usual_observation_is_healthy_and_a_strange_one_is_not(judging_server: PrivateServer) -> None:
    with PolicyClient(judging_server.address) as client, client.stream() as stream:
        usual = until_judged(stream, observed(), episode="usual").health
        assert usual is not None
        assert not usual.unhealthy
        assert 0 < usual.score <= usual.threshold
        strange = {key: array + np.float32(0.5) for key, array in observed().items()}
        flagged = until_judged(stream, strange, episode="strange").health
        assert flagged is not None
        assert flagged.unhealthy
        assert flagged.signal in SIGNALS
        assert flagged.scores["novelty"][0] > flagged.scores["novelty"][1] > 0
        # The next episode is judged by itself.
        again = until_judged(stream, observed(), episode="usual again").health
        assert again is not None
        assert not again.unhealthy


def test_every_signal_is_measured(judging_server: PrivateServer) -> None:
    with PolicyClient(judging_server.address) as client, client.stream() as stream:
        chunk = until_judged(stream, observed(), episode="all", wait=4)
    assert chunk.health is not None
    assert set(chunk.health.scores) == SIGNALS
    assert all(threshold > 0 for _, threshold in chunk.health.scores.values())
    # The arm is told to move and nothing moves.
    assert chunk.health.scores["response"][0] > 0


def test_another_task_is_novel(judging_server: PrivateServer) -> None:
    """The instruction decides what is usual."""
    with PolicyClient(judging_server.address) as client, client.stream() as stream:
        chunk = until_judged(stream, observed(), episode="wrong", instruction="peg-insert-side-v3")
    assert chunk.health is not None
    assert chunk.health.unhealthy


def test_each_episode_begins_without_a_judgement(judging_server: PrivateServer) -> None:
    with PolicyClient(judging_server.address) as client, client.stream() as stream:
        until_judged(stream, observed(), episode="first")
        assert stream.request(observed(), episode_id="second", step=0, instruction=TASK).health is None


def test_requests_at_another_pace_are_not_compared(judging_server: PrivateServer) -> None:
    """The references are of four ticks between requests: of eight they say nothing, and nothing is made up."""
    with PolicyClient(judging_server.address) as client, client.stream() as stream:
        for step in range(0, 80, 8):
            chunk = stream.request(observed(), episode_id="pace", step=step, instruction=TASK)
    give_up = time.monotonic() + SECONDS
    while not chunk.health:
        assert time.monotonic() < give_up
    assert not {"response", "disagreement"} & set(chunk.health.scores)
    assert "novelty" in chunk.health.scores


def test_what_was_executed_counts_and_not_what_was_sent(judging_server: PrivateServer) -> None:
    """The same observations and chunks, and a robot that says that it did something else."""
    told: dict[bool, float] = {}
    with PolicyClient(judging_server.address) as client, client.stream() as stream:
        for otherwise in (False, True):
            for step in (0, 4, *range(1004, 40000, 1000)):
                executed = np.full((4, 4), -1.0, np.float32) if otherwise and step else None
                message = encode_observation(
                    observed(),
                    episode_id=str(otherwise),
                    step=step,
                    instruction=TASK,
                    noise_seed=1,
                    executed_actions=executed,
                )
                stream.send(message)
                chunk = stream.receive(SECONDS)[1]
                assert isinstance(chunk, ActionChunk)
                if chunk.health and "response" in chunk.health.scores:
                    told[otherwise] = chunk.health.scores["response"][0]
                    break
                time.sleep(0.05)
    assert told[True] != pytest.approx(told[False], rel=0.1)


def test_executed_actions_are_checked(judging_server: PrivateServer) -> None:
    with PolicyClient(judging_server.address) as client, client.stream() as stream:
        cases: list[tuple[Any, str]] = [
            (np.zeros((99, 4), np.float32), r"executed_actions has shape \[99, 4\], expected \[0 to 16, 4\]"),
            (np.zeros((4, 4), np.float64), "executed_actions is not float32"),
            (np.full((4, 4), np.nan, np.float32), "executed_actions are not finite"),
        ]
        for executed, message in cases:
            stream.send(encode_observation(observed(), episode_id="bad", instruction=TASK, executed_actions=executed))
            refused = stream.receive(SECONDS)[1]
            assert isinstance(refused, ObservationError)
            assert re.search(message, str(refused))


def test_another_versions_episodes_are_not_the_promoted_ones(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    with PolicyClient(server.address) as client:
        client.report_episode(outcome="failure", task="left", steps=1, policy_version="an older one")
        client.report_episode(outcome="success", task="left", steps=1, policy_version="1")
    found = metrics(server)
    assert found["chunkcast_episodes_total"] == 2
    # Of the task and of all.
    assert found["chunkcast_measured_success_episodes"] == 2
    assert found["chunkcast_measured_success_ratio"] == 2.0


def test_a_chunk_that_cannot_be_judged_takes_the_verdict_with_it() -> None:
    """No judgement is better than one of long ago; the others of the batch keep theirs."""
    scored = threading.Event()

    class Broken(Scorer):
        def score(self, pairs: Sequence[Pair]) -> list[Scores]:
            scored.set()
            if any(pair.current.step == 1 for pair in pairs):
                raise RuntimeError("no score for step 1")
            return [{pb.HEALTH_SIGNAL_NOVELTY: 1.0} for _ in pairs]

    bundle, statistics = read_bundle(SHIPPED_BUNDLE), HealthStatistics()
    scorer = Broken(bundle.spec, {}, None)
    monitor = HealthMonitor(scorer, Thresholds(pb.ServingHealth()), statistics, share=1.0, name="broken")
    try:
        one, other = monitor.stream(), monitor.stream()
        chunk = np.zeros((16, 4), np.float32)
        for step in (0, 1):
            for stream in (one, other):
                stream.offer(Sample("e", step if stream is one else 0, TASK, {}, chunk))
        give_up = time.monotonic() + SECONDS
        while statistics.failures == 0 or other.latest("e") is None:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        assert one.latest("e") is None
        assert other.latest("e") is not None
        assert statistics.failures == 1
    finally:
        monitor.close()
        monitor.join(SECONDS)


def test_without_a_share_nothing_is_judged(serve_bundle: ServeBundle) -> None:
    server = serve_bundle(SHIPPED_BUNDLE, "--health-share", "0")
    with PolicyClient(server.address) as client, client.stream() as stream:
        for step in range(20):
            assert stream.request(observed(), episode_id="e", step=step, instruction=TASK).health is None
    assert metrics(server)["chunkcast_health_busy_seconds_total"] == 0.0


def test_a_bundle_without_reference_gets_scores_and_no_verdict(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), "--health-share", "1")
    with PolicyClient(server.address) as client, client.stream() as stream:
        state = {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}
        chunk = until_judged(stream, state, episode="e", instruction="left")
    assert chunk.health is not None
    assert not chunk.health.unhealthy
    assert chunk.health.signal == ""
    assert chunk.health.threshold == 0.0


def test_what_judging_may_take_is_bounded(serve_bundle: ServeBundle) -> None:
    """A flood of chunks is judged in part: the share of a processor is kept, and every robot has its turn."""
    share = 0.1
    server = serve_bundle(SHIPPED_BUNDLE, "--health-share", str(share))
    state = observed()
    with PolicyClient(server.address) as client, client.stream() as one, client.stream() as two:
        before, started = metrics(server), time.monotonic()
        judged: dict[str, set[int]] = {"one": set(), "two": set()}
        step = 0
        while time.monotonic() < started + 4.0:
            for name, stream in (("one", one), ("two", two)):
                chunk = stream.request(state, episode_id=name, step=step, instruction=TASK)
                if chunk.health:
                    judged[name].add(chunk.health.step)
            step += 1
        after, seconds = metrics(server), time.monotonic() - started
    spent = after["chunkcast_health_busy_seconds_total"] - before["chunkcast_health_busy_seconds_total"]
    # A run in progress at either end, on a machine that others use too.
    assert 0 < spent <= 1.5 * share * seconds
    assert after["chunkcast_health_skipped_chunks_total"] > 0
    assert min(map(len, judged.values())) > 0.4 * max(map(len, judged.values()))


def test_with_the_whole_share_every_chunk_is_judged(serve_bundle: ServeBundle) -> None:
    server = serve_bundle(SHIPPED_BUNDLE, "--health-share", "1")
    with PolicyClient(server.address) as client, client.stream() as stream:
        for step in range(50):
            stream.request(observed(), episode_id="e", step=step, instruction=TASK)
        give_up = time.monotonic() + SECONDS
        while metrics(server)["chunkcast_health_judged_chunks_total"] < 50:
            assert time.monotonic() < give_up
            time.sleep(0.05)
    assert metrics(server)["chunkcast_health_skipped_chunks_total"] == 0


def damage_reference(change: Callable[[health_pb2.HealthReference], None]) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        reference = health_pb2.HealthReference.FromString((bundle / "health.binpb").read_bytes())
        change(reference)
        write_serving_health(bundle, reference, read_spec(bundle).serving_health)

    return damage


def change_spec(change: Callable[[pb.PolicySpec], None]) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        spec = read_spec(bundle)
        change(spec)
        reference = health_pb2.HealthReference.FromString((bundle / "health.binpb").read_bytes())
        write_serving_health(bundle, reference, spec.serving_health)

    return damage


def not_finite(reference: health_pb2.HealthReference) -> None:
    reference.tasks[0].scale.data = np.full(39, np.nan, np.float32).tobytes()


def zero_scale(reference: health_pb2.HealthReference) -> None:
    reference.tasks[0].scale.data = bytes(39 * 4)


def other_size(reference: health_pb2.HealthReference) -> None:
    reference.tasks[1].observations.shape[:] = [1, 3]
    reference.tasks[1].observations.data = bytes(12)


def other_embedding(reference: health_pb2.HealthReference) -> None:
    for task in reference.tasks:
        task.embedding_mean.shape[:] = [2]
        task.embedding_mean.data = bytes(8)
        task.embedding_axes.shape[:] = [1, 2]
        task.embedding_axes.data = bytes(8)


def missing_task(reference: health_pb2.HealthReference) -> None:
    del reference.tasks[0]


def negative_threshold(spec: pb.PolicySpec) -> None:
    spec.serving_health.thresholds[0].threshold = -1.0


def unknown_task(spec: pb.PolicySpec) -> None:
    spec.serving_health.thresholds[0].task = "fly"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_reference(not_finite), "expected finite float32 [39]"),
        (damage_reference(zero_scale), "divides by zero"),
        (damage_reference(other_size), "expected finite float32 ['any', 39]"),
        (damage_reference(other_embedding), "the embedding has 352 numbers"),
        (damage_reference(missing_task), "5 other instructions than the policy's 6"),
        (change_spec(negative_threshold), "expected above 0 and finite"),
        (change_spec(unknown_task), "'fly', which is no instruction of the policy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_reference_that_does_not_fit_is_refused_by_name(
    serve_bundle: ServeBundle, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(SHIPPED_BUNDLE, bundle)
    damage(bundle)
    with pytest.raises(PolicyUnavailable) as refused:
        serve_bundle(bundle)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_thresholds_are_replaced_while_robots_stay(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    """A bundle that was measured again is loaded under the same version; open streams are judged by it at once."""
    store = tmp_path / "store"
    shutil.copytree(SHIPPED_BUNDLE, store / "six")
    server = serve_bundle(store / "six", "--store", str(store), "--health-share", "1")
    with PolicyClient(server.address) as client, client.stream() as stream:
        first = until_judged(stream, observed(), episode="before").health
        assert first is not None
        assert not first.unhealthy
        health = read_spec(store / "six").serving_health
        for threshold in health.thresholds:
            threshold.threshold *= 1e-3
        reference = health_pb2.HealthReference.FromString((store / "six" / "health.binpb").read_bytes())
        write_serving_health(store / "six", reference, health)
        with grpc.insecure_channel(server.admin_address) as channel:
            admin_pb2_grpc.AdminServiceStub(channel).LoadBundle(
                admin_pb2.LoadBundleRequest(bundle="six"), timeout=SECONDS
            )
        second = until_judged(stream, observed(), episode="after").health
        assert second is not None
        assert second.unhealthy
        assert second.threshold == pytest.approx(1e-3 * first.scores[second.signal][1])
