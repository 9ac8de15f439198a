"""Rules, alerts and dashboard, with a real Prometheus: each alert fires on its fault and spares a healthy fleet."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml

from chunkcast.client import ObservationError, PolicyClient
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.training.export.bundle_writer import GRAPH_NAME, read_spec, write_bundle, write_serving_health
from chunkcast.v1 import admin_pb2, admin_pb2_grpc, health_pb2
from chunkcast.v1 import policy_pb2 as pb
from tests.conftest import ROOT, SHIPPED_BUNDLE, required_program
from tests.fleet import OBSERVABILITY, Prometheus, hurried, prometheus
from tests.handmade_bundle import write_echo_bundle

ALERTS = yaml.safe_load((OBSERVABILITY / "alerts.yml").read_text())
NAMES = {rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((OBSERVABILITY / "grafana_dashboard.json").read_text())

HEALTHY, FAULTY, SLOW = "metaworld-six", "six-faulty", "slow"
CHOICE_SEED = 500_000
FIRE_SECONDS = 150.0
"""Within which every alert must have fired: an hour and more of the rules' time."""


def test_rules_are_tested_by_promtool() -> None:
    promtool = required_program("promtool", "prometheus")
    for arguments in (
        ("test", "rules", "tests/alerts_test.yml"),
        ("check", "config", "prometheus.yml"),
    ):
        result = subprocess.run([promtool, *arguments], cwd=OBSERVABILITY, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_tested_both_ways_and_has_a_runbook() -> None:
    tests = yaml.safe_load((OBSERVABILITY / "tests" / "alerts_test.yml").read_text())["tests"]
    cases = [(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]]
    assert {name for name, fires in cases if fires} == NAMES
    assert {name for name, fires in cases if not fires} == NAMES
    runbook = (ROOT / "docs" / "observability.md").read_text()
    anchors = {heading.strip().lower() for heading in re.findall(r"^#+ (.*)$", runbook, re.MULTILINE)}
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["runbook"].endswith(f"docs/observability.md#{rule['alert'].lower()}")
            assert rule["alert"].lower() in anchors
            assert rule["labels"]["severity"] in ("critical", "warning")


def test_durations_are_hurried_and_names_are_not() -> None:
    rule = "record: a:b:ratio_rate5m\nexpr: rate(x[5m]) > rate(y[1h])\nfor: 2m\nscrape_interval: 15s\n"
    expected = (
        "record: a:b:ratio_rate5m\nexpr: rate(x[10000ms]) > rate(y[120000ms])\nfor: 4000ms\nscrape_interval: 500ms\n"
    )
    assert hurried(rule) == expected


@contextmanager
def in_background(act: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let ``act`` go on until the block ends, and raise what it raised."""
    stop, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            act(stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    if failures:
        raise failures[0]


def run_until(stop: threading.Event, command: list[str]) -> None:
    """Run ``command``, which must not end by itself."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not stop.wait(0.2) and process.poll() is None:
        pass
    ended_early = process.poll()
    process.terminate()
    _, log = process.communicate(timeout=60)
    assert ended_early is None, log


def simulate(server: PrivateServer, policy: str, *arguments: str) -> Callable[[threading.Event], None]:
    """Episodes of a MetaWorld robot, over and over."""

    def act(stop: threading.Event) -> None:
        command = [sys.executable, "-m", "chunkcast.client.sim.cli", "--server", server.address, "--policy", policy]
        command += ["--episodes", "200", "--workers", "1", "--seed", str(CHOICE_SEED), *arguments]
        run_until(stop, command)

    return act


def send_wrong_shapes(server: PrivateServer) -> Callable[[threading.Event], None]:
    """A robot with a broken sensor."""

    def act(stop: threading.Event) -> None:
        with PolicyClient(server.address) as client, client.stream(FAULTY) as stream:
            step = 0
            while not stop.wait(0.02):
                with pytest.raises(ObservationError):
                    stream.request({"observation.state": np.zeros(3, np.float32)}, episode_id="e", step=step)
                step += 1

    return act


def overload(server: PrivateServer) -> Callable[[threading.Event], None]:
    """More robots than the slow policy has time for."""

    def act(stop: threading.Event) -> None:
        command = [sys.executable, "-m", "chunkcast.client.load.cli", "--server", server.address, "--policy", SLOW]
        command += ["--streams", "4", "--rate", "8", "--seconds", str(2 * FIRE_SECONDS)]
        run_until(stop, command)

    return act


def write_faulty(folder: Path) -> Path:
    """The shipped policy under another name, as a noise predictor that left training unfinished."""
    spec = read_spec(SHIPPED_BUNDLE)
    spec.name = FAULTY
    spec.sampler.prediction_type = pb.PREDICTION_TYPE_EPSILON
    spec.training.validation_noise_mse = 2.5
    spec.training.findings.add(code="plateau", severity=pb.FINDING_SEVERITY_ERROR, evidence="e", advice="a")
    contents = {file.path: (SHIPPED_BUNDLE / file.path).read_bytes() for file in spec.files}
    write_bundle(folder, contents[GRAPH_NAME], spec, overwrite=False, health_graph=contents["health.onnx"])
    reference = health_pb2.HealthReference.FromString(contents["health.binpb"])
    write_serving_health(folder, reference, spec.serving_health)
    return folder


def test_alerts_fire_on_faults_and_stay_quiet_on_a_healthy_fleet(tmp_path: Path) -> None:
    """Healthy robots on one server, faulty ones on two others; Prometheus tells them apart. The dashboard's queries are
    asked of the same Prometheus.
    """
    store = tmp_path / "store"
    slow = write_echo_bundle(store / SLOW, name=SLOW, slow_matmuls=120)
    faulty_bundle = write_faulty(tmp_path / FAULTY)
    (tmp_path / "prometheus").mkdir()
    with ExitStack() as stack:
        healthy = stack.enter_context(private_server(SHIPPED_BUNDLE, "--health-share", "0.3"))
        faulty = stack.enter_context(private_server(faulty_bundle, "--health-share", "0.3"))
        flags = ("--store", str(store), "--max-waiting", "1")
        slow_server = stack.enter_context(private_server(slow, *flags))
        targets = [each.metrics_address for each in (healthy, faulty, slow_server)]
        running = stack.enter_context(prometheus(tmp_path / "prometheus", targets))

        stack.enter_context(in_background(simulate(healthy, HEALTHY)))
        stack.enter_context(in_background(simulate(faulty, FAULTY, "--fault", "sensor-noise:0.05")))
        stack.enter_context(in_background(send_wrong_shapes(faulty)))
        with in_background(overload(slow_server)):
            expected = {
                ("ChunkcastErrors", FAULTY),
                ("ChunkcastNovelty", FAULTY),
                ("ChunkcastDisagreement", FAULTY),
                ("ChunkcastResponse", FAULTY),
                ("ChunkcastUnhealthyRobot", FAULTY),
                ("ChunkcastSuccessBelowExpected", FAULTY),
                ("ChunkcastTrainingLossOutOfBand", FAULTY),
                ("ChunkcastTrainingFindings", FAULTY),
                ("ChunkcastLatencyBurn", SLOW),
                ("ChunkcastOverload", SLOW),
            }
            wait_for(running, expected)
            refuse_a_bundle(slow_server, store)
            wait_for(running, {("ChunkcastBundleRefused", slow_server.metrics_address)})
            check_dashboard(running)
        slow_server.process.kill()
        gone = ("ChunkcastPolicyNotLoaded", slow_server.metrics_address)
        wait_for(running, {gone})

        seen = {name for name, _ in {*expected, gone, ("ChunkcastBundleRefused", "")}}
        assert seen == NAMES, "an alert without a fault in this test"
        assert not running.ever_fired(f'policy="{HEALTHY}"')
        assert not running.ever_fired(f'instance="{healthy.metrics_address}"')
        judged = f'sum(chunkcast_health_judged_chunks_total{{policy="{HEALTHY}"}})'
        assert float(running.query(judged)[0]["value"][1]) > 50, "the healthy fleet was hardly judged"
        episodes = running.query(f'chunkcast_measured_success_episodes{{policy="{HEALTHY}", task="all"}}')
        assert float(episodes[0]["value"][1]) >= 10, "the healthy fleet hardly played"


def wait_for(running: Prometheus, expected: set[tuple[str, str]]) -> None:
    """Until each of the alerts has fired at some time: a burst of faults may be over when the last one comes."""
    fired, give_up = set[tuple[str, str]](), time.monotonic() + FIRE_SECONDS
    while missing := expected - fired:
        fired |= running.firing()
        assert time.monotonic() < give_up, f"never fired: {sorted(missing)}; fired: {sorted(fired)}"
        time.sleep(0.25)


def refuse_a_bundle(server: PrivateServer, store: Path) -> None:
    """An operator loads a bundle that was damaged on its way."""
    shutil.copytree(store / SLOW, store / "damaged")
    with (store / "damaged" / GRAPH_NAME).open("r+b") as graph:
        graph.write(b"damage")
    with grpc.insecure_channel(server.admin_address) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            admin.LoadBundle(admin_pb2.LoadBundleRequest(bundle="damaged"), timeout=30)


def check_dashboard(running: Prometheus) -> None:
    """Each query of the dashboard is valid and has data."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert len(queries) >= 20
    for query in queries:
        asked = hurried(query.replace("$policy", ".*").replace("$__rate_interval", "5m"))
        assert running.query(asked), f"no data: {query}"
    (variable,) = [each for each in DASHBOARD["templating"]["list"] if each["name"] == "policy"]
    assert variable["query"]["query"] == "label_values(chunkcast_policy_info, policy)"
    policies = running.get("label/policy/values", **{"match[]": "chunkcast_policy_info"})
    assert set(policies) == {HEALTHY, FAULTY, SLOW}
    for annotation in DASHBOARD["annotations"]["list"]:
        assert running.query(annotation["expr"])
