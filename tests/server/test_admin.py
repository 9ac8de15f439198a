"""What an operator does with a running server: load, promote, roll back, unload, while robots go on without a jolt."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from uuid import uuid4

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client.parser import text_string_to_metric_families

from chunkcast.client import ActionStream, ChunkcastError, PolicyClient, PolicyNotFound
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.training.export.bundle_writer import write_bundle
from chunkcast.v1 import admin_pb2 as pb
from chunkcast.v1 import admin_pb2_grpc as pb_grpc
from chunkcast.v1 import policy_pb2
from tests.conftest import ServeBundle
from tests.handmade_bundle import HISTORY, STATE_KEY, STATE_SIZE, echo_graph, echo_spec, write_echo_bundle

TIMEOUT = 30.0
"""Seconds after which a call, or what a test waits for, has failed."""

LOADED, PROMOTED, PREVIOUS = (pb.VERSION_STATE_LOADED, pb.VERSION_STATE_PROMOTED, pb.VERSION_STATE_PREVIOUS)


@dataclass
class OperatedPolicy:
    """An operator's and a robot's hands on one policy of a server.

    Attributes:
        name: of the policy.
        server: that serves it.
        store: the server's.
        client: a robot's connection.
        admin: the operator's.
    """

    name: str
    server: PrivateServer
    store: Path
    client: PolicyClient
    admin: pb_grpc.AdminServiceStub

    def versions(self) -> list[pb.LoadedVersion]:
        """In the order of their loading."""
        response = self.admin.ListVersions(pb.ListVersionsRequest(), timeout=TIMEOUT)
        return [version for version in response.versions if version.policy == self.name]

    def states(self) -> dict[str, pb.VersionState.ValueType]:
        return {version.version: version.state for version in self.versions()}

    def load(self, version: str, *, promote: bool = False) -> pb.LoadedVersion:
        """Load the bundle that ``write`` wrote."""
        return self.load_bundle(f"{self.name}-{version}", promote=promote)

    def load_bundle(self, bundle: str, *, promote: bool = False) -> pb.LoadedVersion:
        request = pb.LoadBundleRequest(bundle=bundle, promote=promote)
        return self.admin.LoadBundle(request, timeout=TIMEOUT).version

    def promote(self, version: str) -> pb.LoadedVersion:
        request = pb.PromoteVersionRequest(policy=self.name, version=version)
        return self.admin.PromoteVersion(request, timeout=TIMEOUT).version

    def roll_back(self) -> pb.LoadedVersion:
        return self.admin.RollBack(pb.RollBackRequest(policy=self.name), timeout=TIMEOUT).version

    def unload(self, version: str) -> None:
        self.admin.UnloadVersion(pb.UnloadVersionRequest(policy=self.name, version=version), timeout=TIMEOUT)

    def write(self, version: str) -> Path:
        """Export a version into the store."""
        return write_echo_bundle(self.store / f"{self.name}-{version}", name=self.name, version=version)

    def stream(self, version: str = "") -> ActionStream:
        """A robot's stream, pinned to ``version`` if there is one."""
        return self.client.stream(self.name, policy_version=version)

    def served(self) -> str:
        """The version that robots are told of."""
        return self.client.get_policy(self.name).version

    def serves_only_version_1(self) -> None:
        """Nothing has changed: version 1 alone is there, and answers."""
        assert self.states() == {"1": PROMOTED}
        chunk = self.client.predict_chunk(state(1), policy=self.name, instruction="left")
        assert chunk.policy_version == "1"


@contextmanager
def operated(name: str, server: PrivateServer, store: Path) -> Iterator[OperatedPolicy]:
    with PolicyClient(server.address) as client, grpc.insecure_channel(server.admin_address) as channel:
        yield OperatedPolicy(name, server, store, client, pb_grpc.AdminServiceStub(channel))


def refusal(call: Callable[[], object], code: grpc.StatusCode = grpc.StatusCode.FAILED_PRECONDITION) -> str:
    """The one line with which the server refuses ``call``."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == code
    message = str(caught.value.details())
    assert message
    assert "\n" not in message
    return message


def state(value: float) -> dict[str, npt.NDArray[np.float32]]:
    return {STATE_KEY: np.full(STATE_SIZE, value, np.float32)}


def version_and_history(stream: ActionStream, value: float, step: int) -> tuple[str, list[float]]:
    """Which version answered, and the history that it saw: the echo policy's rows."""
    chunk = stream.request(state(value), episode_id="e", step=step, instruction="left")
    return chunk.policy_version, [float(row[0]) for row in chunk.actions]


def metric(server: PrivateServer, name: str, **labels: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=TIMEOUT) as response:
        page = response.read().decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    (value,) = [sample.value for sample in samples if sample.name == name and sample.labels == labels]
    return float(value)


def refused_loads(server: PrivateServer) -> float:
    return metric(server, "chunkcast_bundle_loads_total", outcome="refused")


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.001)  # let others run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("admin") / "store"


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[PrivateServer]:
    """A server that may load from the store."""
    with private_server(write_echo_bundle(store / "echo"), "--store", str(store)) as server:
        yield server


@pytest.fixture
def policy(server: PrivateServer, store: Path) -> Iterator[OperatedPolicy]:
    """A policy that no other test has: version 1 is served, 2 and 3 are in the store."""
    with operated(f"policy-{uuid4().hex[:6]}", server, store) as policy:
        for version in ("1", "2", "3"):
            policy.write(version)
        policy.load("1")
        yield policy
    for folder in store.glob(f"{policy.name}-*"):
        shutil.rmtree(folder)


def test_an_open_stream_follows_a_promotion_and_its_episode_goes_on(policy: OperatedPolicy) -> None:
    with policy.stream() as stream:
        assert stream.policy_version == "1"
        assert version_and_history(stream, 1, step=0) == ("1", [1, 1, 1])
        loaded = policy.load("2")
        assert (loaded.policy, loaded.version, loaded.state) == (policy.name, "2", LOADED)
        # Loaded, and nothing has changed for robots.
        assert version_and_history(stream, 2, step=1) == ("1", [1, 1, 2])
        assert policy.promote("2").state == PROMOTED
        # The other version, the same episode: its history and its instruction stand.
        chunk = stream.request(state(3), episode_id="e", step=2)
        assert chunk.policy_version == "2"
        assert [float(row[0]) for row in chunk.actions] == [1, 2, 3]
    assert policy.served() == "2"
    with policy.stream() as stream:
        assert stream.policy_version == "2"
    assert policy.client.predict_chunk(state(0), policy=policy.name, instruction="left").policy_version == "2"
    assert {version.version: version.chunks for version in policy.versions()} == {"1": 2, "2": 2}


def test_load_and_promote_in_one_call(policy: OperatedPolicy) -> None:
    assert policy.load("2", promote=True).state == PROMOTED
    assert policy.states() == {"1": PREVIOUS, "2": PROMOTED}
    assert policy.served() == "2"


def test_a_version_that_is_loaded_already_is_left_as_it_is(policy: OperatedPolicy) -> None:
    policy.load("2")
    assert policy.load("2").state == LOADED
    assert policy.load("1").state == PROMOTED
    assert policy.promote("1").state == PROMOTED
    assert policy.states() == {"1": PROMOTED, "2": LOADED}


def test_a_loaded_version_takes_what_is_expected_of_it_anew(policy: OperatedPolicy) -> None:
    """As chunkcast-health calibrate leaves a bundle: the same graph and version, a better known success."""
    file = policy.store / f"{policy.name}-2" / "policy.json"
    policy.load("2", promote=True)
    spec = json.loads(file.read_text())
    spec["expected_success"] = [{"source": "SUCCESS_SOURCE_MEASURED", "ratio": 0.5, "low": 0.25, "high": 0.75}]
    file.write_text(json.dumps(spec))
    policy.load("2")
    assert [each.ratio for each in policy.client.get_policy(policy.name).expected_success] == [0.5]
    with urllib.request.urlopen(f"http://{policy.server.metrics_address}/metrics", timeout=10) as page:
        text = page.read().decode()
    labels = f'policy="{policy.name}",source="measured",task="all"'
    assert f"chunkcast_expected_success_ratio{{{labels}}} 0.5" in text
    spec["description"] = "another"
    file.write_text(json.dumps(spec))
    assert "is loaded with another specification" in refusal(lambda: policy.load("2"))


def test_a_pinned_stream_stays_with_its_version(policy: OperatedPolicy) -> None:
    with policy.stream("1") as pinned, policy.stream() as follower:
        version_and_history(pinned, 1, step=0)
        version_and_history(follower, 1, step=0)
        policy.load("2", promote=True)
        assert version_and_history(pinned, 2, step=1) == ("1", [1, 1, 2])
        assert version_and_history(follower, 2, step=1) == ("2", [1, 1, 2])
        assert [version.pinned_streams for version in policy.versions()] == [1, 0]
        reason = refusal(lambda: policy.unload("1"))
        assert reason == f"{policy.name} 1 is pinned by 1 streams; wait until they end"
        assert version_and_history(pinned, 3, step=2) == ("1", [1, 2, 3])
    wait_until(lambda: policy.versions()[0].pinned_streams == 0, "the pinned stream's end is noticed")
    policy.unload("1")
    assert policy.states() == {"2": PROMOTED}
    with pytest.raises(PolicyNotFound, match=f"version '1' of {policy.name} is not loaded; expected one of: 2"):
        policy.stream("1")


def test_a_pinned_version_outlives_its_replacement_and_goes_with_its_last_stream(policy: OperatedPolicy) -> None:
    with policy.stream("1") as pinned:
        policy.load("2", promote=True)
        policy.load("3", promote=True)
        assert policy.states() == {"1": LOADED, "2": PREVIOUS, "3": PROMOTED}
        assert version_and_history(pinned, 1, step=0) == ("1", [1, 1, 1])
    wait_until(lambda: list(policy.states()) == ["2", "3"], "version 1 goes with its last stream")


def test_a_stream_may_pin_a_version_that_is_not_promoted(policy: OperatedPolicy) -> None:
    policy.load("2")
    with policy.stream("2") as stream:
        assert stream.policy_version == "2"
        assert version_and_history(stream, 1, step=0) == ("2", [1, 1, 1])
    assert policy.served() == "1"


def test_a_rollback_leads_to_the_version_before_and_back(policy: OperatedPolicy) -> None:
    policy.load("2", promote=True)
    with policy.stream() as stream:
        assert version_and_history(stream, 1, step=0) == ("2", [1, 1, 1])
        assert policy.roll_back().version == "1"
        assert version_and_history(stream, 2, step=1) == ("1", [1, 1, 2])
        assert policy.states() == {"1": PROMOTED, "2": PREVIOUS}
        assert policy.roll_back().version == "2"
        assert version_and_history(stream, 3, step=2) == ("2", [1, 2, 3])


def test_only_the_version_before_is_kept(policy: OperatedPolicy) -> None:
    policy.load("2", promote=True)
    policy.load("3", promote=True)
    assert policy.states() == {"2": PREVIOUS, "3": PROMOTED}


def test_no_rollback_without_a_version_before(policy: OperatedPolicy) -> None:
    nothing = f"{policy.name} has no version to roll back to; load and promote one"
    assert refusal(policy.roll_back) == nothing
    policy.load("2", promote=True)
    policy.unload("1")
    assert refusal(policy.roll_back) == nothing
    assert policy.states() == {"2": PROMOTED}


def test_the_promoted_version_cannot_be_unloaded(policy: OperatedPolicy) -> None:
    message = f"{policy.name} 1 is promoted; promote another version or roll back first"
    assert refusal(lambda: policy.unload("1")) == message
    policy.serves_only_version_1()


def test_what_is_not_loaded_is_not_found(policy: OperatedPolicy) -> None:
    for call in (lambda: policy.promote("2"), lambda: policy.unload("2")):
        message = f"version '2' of {policy.name} is not loaded; expected one of: 1"
        assert refusal(call, grpc.StatusCode.NOT_FOUND) == message
    other = replace(policy, name="other")
    for call in (lambda: other.promote("1"), lambda: other.unload("1"), other.roll_back):
        message = refusal(call, grpc.StatusCode.NOT_FOUND)
        assert message.startswith("policy 'other' is not served here; expected one of: echo, ")


def flip_a_bit(bundle: Path) -> None:
    file = bundle / "policy.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(bundle: Path) -> None:
    file = bundle / "policy.onnx"
    file.write_bytes(file.read_bytes()[:-1])


def spoil_json(bundle: Path) -> None:
    (bundle / "policy.json").write_text("{ this is no JSON\n}")


def remove_graph(bundle: Path) -> None:
    (bundle / "policy.onnx").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "policy.onnx has SHA-256"),
        (truncate, "policy.onnx has"),
        (remove_graph, "policy.onnx is missing"),
        (spoil_json, "policy.json is not JSON"),
    ],
)
def test_a_damaged_bundle_is_refused_and_the_old_version_serves_on(
    policy: OperatedPolicy, damage: Callable[[Path], None], reason: str
) -> None:
    damage(policy.store / f"{policy.name}-2")
    refused = refused_loads(policy.server)
    with policy.stream() as stream:
        version_and_history(stream, 1, step=0)
        assert reason in refusal(lambda: policy.load("2", promote=True))
        assert version_and_history(stream, 2, step=1) == ("1", [1, 1, 2])
    policy.serves_only_version_1()
    assert refused_loads(policy.server) == refused + 1


def with_other_bounds(spec: policy_pb2.PolicySpec) -> None:
    spec.action.elements[0].high = 50.0


def with_another_shape(spec: policy_pb2.PolicySpec) -> None:
    spec.observations[0].shape[0] = STATE_SIZE + 1


def with_another_rate(spec: policy_pb2.PolicySpec) -> None:
    spec.action.control_rate_hz = 20.0


def with_committed_steps(spec: policy_pb2.PolicySpec) -> None:
    spec.action.max_committed_steps = 1


def with_another_instruction(spec: policy_pb2.PolicySpec) -> None:
    spec.instructions[0].text = "up"
    spec.ClearField("expected_success")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_other_bounds, "action elements"),
        (with_another_shape, "observations"),
        (with_another_rate, "control_rate_hz 20.0, served 50.0"),
        (with_committed_steps, "max_committed_steps 1, served 0"),
        (with_another_instruction, "it does not know the instructions ['left']"),
    ],
)
def test_a_bundle_with_another_contract_is_refused_and_the_old_version_serves_on(
    policy: OperatedPolicy, change: Callable[[policy_pb2.PolicySpec], None], reason: str
) -> None:
    spec = echo_spec(policy.name, version="4")
    change(spec)
    write_echo_bundle(policy.store / f"{policy.name}-4", spec=spec)
    with policy.stream() as stream:
        version_and_history(stream, 1, step=0)
        message = refusal(lambda: policy.load("4", promote=True))
        assert message.startswith(f"{policy.name} 4 has another contract than 1, which is served: ")
        assert reason in message
        assert version_and_history(stream, 2, step=1) == ("1", [1, 1, 2])
    policy.serves_only_version_1()


def test_a_policy_of_another_name_may_have_another_contract(policy: OperatedPolicy) -> None:
    spec = echo_spec(f"other-than-{policy.name}")
    with_other_bounds(spec)
    write_echo_bundle(policy.store / f"{policy.name}-other", spec=spec)
    assert policy.load_bundle(f"{policy.name}-other").state == PROMOTED  # a policy's first
    with policy.client.stream(spec.name) as stream:
        assert version_and_history(stream, 1, step=0) == ("1", [1, 1, 1])
    policy.serves_only_version_1()


def test_a_graph_that_cannot_be_loaded_is_refused(policy: OperatedPolicy) -> None:
    # Not is an operator of booleans, and the state is none.
    write_echo_bundle(policy.store / f"{policy.name}-4", function="Not", name=policy.name, version="4")
    assert "ONNX Runtime cannot load the graph" in refusal(lambda: policy.load("4"))
    policy.serves_only_version_1()


@pytest.mark.parametrize(
    "name",
    ["../store/echo", "..", ".", "/etc", "", "a/b", "./echo", "echo/", "echo\\..", "echo\0", "x" * 300, "no-such"],
)
def test_a_bundle_is_the_name_of_a_folder_in_the_store_and_no_path(policy: OperatedPolicy, name: str) -> None:
    message = refusal(lambda: policy.load_bundle(name, promote=True))
    assert f"expected one of echo, {policy.name}-1, {policy.name}-2, {policy.name}-3" in message
    assert len(message) < 300
    assert str(policy.store) not in message
    policy.serves_only_version_1()


def test_robots_do_not_reach_the_admin_service(policy: OperatedPolicy) -> None:
    with grpc.insecure_channel(policy.server.address) as channel:
        stub = pb_grpc.AdminServiceStub(channel)
        refusal(lambda: stub.ListVersions(pb.ListVersionsRequest(), timeout=TIMEOUT), grpc.StatusCode.UNIMPLEMENTED)


def test_a_server_without_a_store_loads_nothing(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    with operated("echo", server, tmp_path) as policy:
        message = "this server has no store; start it with --store DIR, whose sub-folders are bundles"
        assert refusal(lambda: policy.load_bundle("echo")) == message
        policy.serves_only_version_1()


def test_two_policies_in_one_process(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    left = write_echo_bundle(tmp_path / "left", name="same")
    right = write_echo_bundle(tmp_path / "right", function="Neg", name="negative")
    server = serve_bundle(None, "--bundle", str(left), str(right))
    with PolicyClient(server.address) as client:
        assert [spec.name for spec in client.list_policies()] == ["same", "negative"]
        with client.stream("same") as same, client.stream("negative") as negative:
            for step in range(HISTORY):
                assert version_and_history(same, step + 1, step)[1][-1] == step + 1
                assert version_and_history(negative, step + 1, step)[1][-1] == -(step + 1)
            assert version_and_history(same, 9, HISTORY)[1] == [2, 3, 9]
            assert version_and_history(negative, 9, HISTORY)[1] == [-2, -3, -9]
        # With two there is no policy that an empty name could mean.
        with pytest.raises(PolicyNotFound, match="this server has several policies; name one of: same, negative"):
            client.stream()
    for name in ("same", "negative"):
        assert metric(server, "chunkcast_chunks_total", policy=name, outcome="ok") == HISTORY + 1


def test_two_bundles_of_one_policy_are_two_versions(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    bundles = [str(write_echo_bundle(tmp_path / version, version=version)) for version in ("2", "1")]
    server = serve_bundle(None, "--bundle", *bundles)
    with operated("echo", server, tmp_path) as policy:
        assert policy.states() == {"2": PREVIOUS, "1": PROMOTED}


def test_a_store_alone_is_served_whole_the_newest_promoted(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    for age, (folder, name, version) in enumerate([("a", "echo", "1"), ("b", "other", "5"), ("c", "echo", "2")]):
        specification = write_echo_bundle(tmp_path / folder, name=name, version=version) / "policy.json"
        modified = specification.stat().st_mtime_ns - age * 10**9
        os.utime(specification, ns=(modified, modified))
    server = serve_bundle(None, "--store", str(tmp_path))
    with PolicyClient(server.address) as client:
        assert {spec.name: spec.version for spec in client.list_policies()} == {"echo": "1", "other": "5"}


def test_a_watched_store_promotes_what_appears_and_refuses_what_is_damaged(
    serve_bundle: ServeBundle, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    write_echo_bundle(store / "here-from-the-start", version="0")
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), "--store", str(store), "--watch")
    with operated("echo", server, store) as policy, policy.stream() as stream:
        assert version_and_history(stream, 1, step=0) == ("1", [1, 1, 1])
        # A whole bundle appears and is promoted; what lay there from the start is not.
        policy.write("2")
        wait_until(lambda: policy.served() == "2", "version 2 is promoted")
        assert policy.states() == {"1": PREVIOUS, "2": PROMOTED}
        assert version_and_history(stream, 2, step=1) == ("2", [1, 1, 2])
        # A damaged one is refused, and the old one serves on.
        flip_a_bit(write_echo_bundle(tmp_path / "damaged", version="3"))
        (tmp_path / "damaged").rename(store / "new")
        wait_until(lambda: refused_loads(server) == 1, "the damaged bundle is refused")
        assert policy.states() == {"1": PREVIOUS, "2": PROMOTED}
        assert version_and_history(stream, 3, step=2) == ("2", [1, 2, 3])
        # Exported again under the same name, it is promoted.
        write_bundle(store / "new", echo_graph(), echo_spec(version="3"), overwrite=True)
        wait_until(lambda: policy.served() == "3", "version 3 is promoted")
        assert version_and_history(stream, 4, step=3) == ("3", [2, 3, 4])
        assert metric(server, "chunkcast_bundle_loads_total", outcome="ok") == 2


def test_a_swap_under_load_fails_no_request_and_breaks_no_stream(policy: OperatedPolicy) -> None:
    reloads, robots = 20, 8
    versions = [str(100 + i) for i in range(reloads)]
    for version in versions:
        policy.write(version)
    stop = threading.Event()
    answered = [0] * robots
    seen: list[list[str]] = [["1"] for _ in range(robots)]
    failures: list[BaseException] = []

    def play(robot: int) -> None:
        try:
            with PolicyClient(policy.server.address, timeout=TIMEOUT) as client, client.stream(policy.name) as stream:
                for step in count():
                    version, history = version_and_history(stream, robot + step % 50, step)
                    assert history == [robot + max(0, tick) % 50 for tick in (step - 2, step - 1, step)]
                    if version != seen[robot][-1]:
                        seen[robot].append(version)
                    answered[robot] = step + 1
                    if stop.is_set():
                        return
        except (ChunkcastError, AssertionError) as error:
            failures.append(error)

    def each_robot_has_a_newer_chunk() -> None:
        before = list(answered)
        # More than one newer: the second was asked for after this call.
        wait_until(
            lambda: bool(failures) or all(now >= then + 2 for now, then in zip(answered, before, strict=True)),
            "two newer chunks for every robot",
        )

    threads = [threading.Thread(target=play, args=(robot,)) for robot in range(robots)]
    for thread in threads:
        thread.start()
    try:
        for version in versions:
            policy.load(version, promote=True)
            each_robot_has_a_newer_chunk()
    finally:
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT)
    assert failures == []
    # Each robot saw each version, in the order of promotion: what was replaced does not come back.
    assert seen == [["1", *versions]] * robots
    # And only two of them are kept.
    assert policy.states() == {versions[-2]: PREVIOUS, versions[-1]: PROMOTED}
    assert metric(policy.server, "chunkcast_chunks_total", policy=policy.name, outcome="ok") == sum(answered)


def chunkcast_admin(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chunkcast.client.admin_cli", "--server", address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def test_the_command_line_does_it_all(policy: OperatedPolicy) -> None:
    def done(*arguments: str) -> list[dict[str, object]]:
        result = chunkcast_admin(policy.server.admin_address, "--json", *arguments)
        assert (result.returncode, result.stderr) == (0, "")
        return [version for version in json.loads(result.stdout) if version["policy"] == policy.name]

    first = {"policy": policy.name, "version": "1", "state": "promoted", "pinned_streams": 0, "chunks": 0}
    second = {**first, "version": "2"}
    assert done("list") == [first]
    assert done("load", f"{policy.name}-2") == [{**second, "state": "loaded"}]
    assert done("promote", policy.name, "2") == [second]
    assert done("list") == [{**first, "state": "previous"}, second]
    assert done("rollback", policy.name) == [first]
    assert done("unload", policy.name, "2") == []
    assert done("load", f"{policy.name}-3", "--promote") == [{**first, "version": "3"}]


def test_the_command_line_shows_people_a_table(policy: OperatedPolicy) -> None:
    result = chunkcast_admin(policy.server.admin_address, "list")
    assert (result.returncode, result.stderr) == (0, "")
    header, *rows = [line.split() for line in result.stdout.splitlines()]
    assert header == ["policy", "version", "state", "pinned", "streams", "chunks"]
    assert [policy.name, "1", "promoted", "0", "0"] in rows
    policy.load("2")
    assert chunkcast_admin(policy.server.admin_address, "unload", policy.name, "2").stdout == "done\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("load", "../echo"), "is no name of a folder in the store"),
        (("promote", "echo", "9"), "version '9' of echo is not loaded"),
        (("rollback", "echo"), "has no version to roll back to"),
        (("unload", "echo", "1"), "is promoted"),
    ],
)
def test_what_the_server_refuses_is_one_line_and_exit_code_1(
    server: PrivateServer, arguments: tuple[str, ...], reason: str
) -> None:
    result = chunkcast_admin(server.admin_address, *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("promote", "echo"), ("destroy",), ("list", "--loud")])
def test_bad_input_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    result = chunkcast_admin("127.0.0.1:1", *arguments)
    assert (result.returncode, result.stdout) == (2, "")


def test_no_server_is_one_line_and_exit_code_1() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        result = chunkcast_admin(address, "list")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: no admin service at {address} (")
    assert result.stderr.count("\n") == 1


def test_the_robots_port_is_no_admin_service(server: PrivateServer) -> None:
    result = chunkcast_admin(server.address, "list")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_load_for_which_there_is_no_memory_is_refused_and_done_later(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_echo_bundle(store / "one")
    write_echo_bundle(store / "two", version="two")
    with private_server(None, "--store", str(store)) as server, grpc.insecure_channel(server.admin_address) as channel:
        stub = pb_grpc.AdminServiceStub(channel)
        used = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (used + 64 * 2**20, unlimited))
        with pytest.raises(grpc.RpcError) as error:
            stub.LoadBundle(pb.LoadBundleRequest(bundle="two"), timeout=60)
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "MB are free; unload a version, or give the server more memory" in str(error.value.details())
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (unlimited, unlimited))
        assert stub.LoadBundle(pb.LoadBundleRequest(bundle="two"), timeout=60).version.policy == "echo"
