"""The Prometheus page: what it counts, and that Prometheus' own linter accepts it."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from chunkcast.client import ChunkcastError, ObservationError, PolicyClient
from chunkcast.client.private_server import PrivateServer, private_server
from tests.conftest import required_program
from tests.handmade_bundle import STATE_KEY, STATE_SIZE, write_echo_bundle

CHUNKS = 7


def page(server: PrivateServer) -> str:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as response:
        return str(response.read().decode())


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """A server that has sent ``CHUNKS`` chunks, refused two observations and been told of three episodes."""
    bundle = write_echo_bundle(tmp_path_factory.mktemp("metrics") / "echo")
    with private_server(bundle) as server, PolicyClient(server.address) as client:
        with client.stream() as stream:
            for step in range(CHUNKS):
                observation = {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}
                stream.request(observation, episode_id="e", step=step, instruction="left")
            for bad in (np.zeros(2, np.float32), np.full(STATE_SIZE, 1000, np.float32)):
                with pytest.raises(ObservationError):
                    stream.request({STATE_KEY: bad}, episode_id="e", step=CHUNKS)
        client.report_episode(outcome="success", task="left", steps=10)
        client.report_episode(outcome="failure", task="left", steps=500)
        client.report_episode(outcome="aborted", task="a task that nobody knows", steps=0)
        with pytest.raises(ValueError, match="expected one of success, failure, aborted"):
            client.report_episode(outcome="fine", task="left", steps=0)
        with pytest.raises(ChunkcastError):
            client.report_episode(outcome="success", task="left", steps=0, policy="unknown")
        yield server


def test_chunks_are_counted_by_outcome(server: PrivateServer) -> None:
    found = values(page(server))
    for outcome, count in (("ok", CHUNKS), ("wrong_shape", 1), ("unsafe_action", 1)):
        assert found["chunkcast_chunks_total", (("outcome", outcome), ("policy", "echo"))] == count


@pytest.mark.parametrize("stage", ["queue", "preprocess", "inference", "postprocess", "total"])
def test_latency_has_every_stage_in_seconds(server: PrivateServer, stage: str) -> None:
    found = values(page(server))
    labels = (("policy", "echo"), ("stage", stage))
    assert found["chunkcast_chunk_latency_seconds_count", labels] == CHUNKS
    assert found["chunkcast_chunk_latency_seconds_sum", labels] >= 0
    buckets = [
        value
        for (name, bucket_labels), value in found.items()
        if name == "chunkcast_chunk_latency_seconds_bucket" and set(labels) < set(bucket_labels)
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == CHUNKS


def test_stages_add_up(server: PrivateServer) -> None:
    found = values(page(server))
    seconds = {
        stage: found["chunkcast_chunk_latency_seconds_sum", (("policy", "echo"), ("stage", stage))]
        for stage in ("queue", "preprocess", "inference", "postprocess", "total")
    }
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()), rel=1e-6)


def test_clients_do_not_choose_labels(server: PrivateServer) -> None:
    found = values(page(server))
    episodes = {labels: value for (name, labels), value in found.items() if name == "chunkcast_episodes_total"}
    assert {(dict(labels)["task"], dict(labels)["outcome"]): count for labels, count in episodes.items()} == {
        ("left", "success"): 1,
        ("left", "failure"): 1,
        ("other", "aborted"): 1,
    }


def test_training_loss_is_that_of_the_specification(server: PrivateServer) -> None:
    found = values(page(server))
    expected = {"loss": {"train": 0.5, "validation": 0.25}, "noise_mse": {"train": 0.125, "validation": 0.0625}}
    for name, splits in expected.items():
        for split, value in splits.items():
            assert found[f"chunkcast_training_{name}", (("policy", "echo"), ("split", split))] == value


def test_the_page_shows_what_the_policy_was_when_it_left_training(server: PrivateServer) -> None:
    found = values(page(server))

    def of(name: str) -> dict[tuple[str, ...], float]:
        """Label values without the policy's, in the labels' alphabetical order."""
        return {
            tuple(value for label, value in labels if label != "policy"): number
            for (metric, labels), number in found.items()
            if metric == f"chunkcast_{name}"
        }

    assert of("training_noise_mse_by_timestep") == {("0-9",): 0.5, ("10-19",): 0.03125}
    assert of("training_action_mse") == {("policy",): 0.01, ("task_mean",): 0.25}
    assert of("health_findings") == {("no_improvement", "warning"): 1, ("batch_size", "info"): 1}
    # source, task
    assert of("expected_success_ratio") == {
        ("measured", "all"): 0.75,
        ("measured", "left"): 1.0,
        ("seed_table", "all"): 0.85,
    }
    bounds = of("expected_success_bound_ratio")
    assert bounds["low", "measured", "all"] == 0.5
    assert bounds["high", "measured", "all"] == 0.875
    assert len(bounds) == 6


def test_active_streams_go_up_and_down(server: PrivateServer) -> None:
    assert values(page(server))["chunkcast_active_streams", ()] == 0
    with PolicyClient(server.address) as client, client.stream():
        assert values(page(server))["chunkcast_active_streams", ()] == 1
    deadline = time.monotonic() + 10
    while values(page(server))["chunkcast_active_streams", ()] != 0:
        assert time.monotonic() < deadline, "the closed stream is still counted"


def test_promtool_accepts_the_page(server: PrivateServer, tmp_path: Path) -> None:
    promtool = required_program("promtool", "prometheus")
    file = tmp_path / "page.txt"
    file.write_text(page(server))
    with file.open() as text:
        result = subprocess.run([promtool, "check", "metrics"], stdin=text, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
