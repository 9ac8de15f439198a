"""More robots, and more observations, than the server can compute: who is told what, and that nobody is forgotten.

The slow policy's run takes tens of milliseconds whatever its batch size: what is sent meanwhile waits.
"""

from __future__ import annotations

import math
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from chunkcast.client import (
    ActionChunk,
    ActionStream,
    ChunkcastError,
    ObservationError,
    PolicyClient,
    PolicyOverloaded,
    UnsafeAction,
)
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.client.wire import Answer, Dropped, encode_observation
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc
from tests.conftest import ServeBundle
from tests.handmade_bundle import BOUND, HISTORY, STATE_KEY, STATE_SIZE, echo_spec, write_echo_bundle

PATIENCE = 60.0
"""Seconds after which an answer that does not come fails its test."""

SLOW_MATMULS = 300
"""About 50 ms."""


def state(value: float) -> dict[str, npt.NDArray[np.float32]]:
    return {STATE_KEY: np.full(STATE_SIZE, value, np.float32)}


def observation(step: int, *, value: float | None = None, deadline: float | None = None) -> pb.Observation:
    """Of its own number, unless ``value`` says otherwise."""
    return encode_observation(
        state(step if value is None else value), episode_id="e", step=step, instruction="left", deadline=deadline
    )


def answers(stream: ActionStream, number: int) -> list[tuple[int, Answer]]:
    """The next answers with the steps of the observations that they are for."""
    received = [stream.receive(PATIENCE) for _ in range(number)]
    for token, answer in received:
        if isinstance(answer, ActionChunk | Dropped):
            assert answer.step == token.step
    return [(token.step, answer) for token, answer in received]


def answer_to(stream: ActionStream, message: pb.Observation) -> Answer:
    stream.send(message)
    ((step, answer),) = answers(stream, 1)
    assert step == message.step
    return answer


def history_in(answer: Answer) -> list[float]:
    """The echo policy's rows."""
    assert isinstance(answer, ActionChunk)
    return [float(row[0]) for row in answer.actions]


def metric(server: PrivateServer, name: str, **labels: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=PATIENCE) as response:
        page = response.read().decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    (value,) = [sample.value for sample in samples if sample.name == name and sample.labels == labels]
    return float(value)


def waiting(server: PrivateServer) -> float:
    return metric(server, "chunkcast_waiting_observations", policy="slow")


def runs(server: PrivateServer) -> float:
    return metric(server, "chunkcast_batch_size_count", policy="slow")


def overtaken(server: PrivateServer) -> float:
    return metric(server, "chunkcast_observations_dropped_total", policy="slow", reason="newer_observation")


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"


@contextmanager
def flooding(stream: ActionStream) -> Iterator[list[tuple[int, Answer]]]:
    """Have several observations of ``stream`` under way at any time until the block ends; then all of its answers."""
    under_way, stop = 20, threading.Event()
    received: list[tuple[int, Answer]] = []
    failures: list[ChunkcastError] = []

    def flood() -> None:
        try:
            for step in count():
                stream.send(observation(step, value=1))
                if stop.is_set():
                    break
                if step >= under_way:
                    received.extend(answers(stream, 1))
            received.extend(answers(stream, step + 1 - len(received)))
        except ChunkcastError as error:
            failures.append(error)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield received
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert failures == []


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_echo_bundle(tmp_path_factory.mktemp("slow") / "slow", slow_matmuls=SLOW_MATMULS, name="slow")


@pytest.fixture(scope="module")
def slow_server(slow_bundle: Path) -> Iterator[PrivateServer]:
    """A slow policy that computes one observation at a time."""
    with private_server(slow_bundle, "--max-batch", "1") as server:
        yield server


@pytest.fixture
def slow_client(slow_server: PrivateServer) -> Iterator[PolicyClient]:
    with PolicyClient(slow_server.address, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def committed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """A policy that continues up to two committed actions, and echoes in the other rows."""
    spec = echo_spec()
    spec.action.max_committed_steps = 2
    with private_server(write_echo_bundle(tmp_path_factory.mktemp("committed") / "echo", spec=spec)) as server:
        yield server


def test_one_stream_too_many_is_told_when_to_try_again(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), "--max-streams", "1")
    with PolicyClient(server.address) as client:
        with client.stream() as stream:
            with pytest.raises(PolicyOverloaded, match="1 streams are open already") as caught:
                client.stream()
            assert caught.value.retry_after > 0
            # A full server is healthy, and answers what costs it nothing.
            with grpc.insecure_channel(server.address) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                status = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status
            assert status == health_pb2.HealthCheckResponse.SERVING
            assert client.get_policy().name == "echo"
            assert history_in(answer_to(stream, observation(1))) == [1, 1, 1]
        # The place is free again once the stream is over.
        wait_until(lambda: metric(server, "chunkcast_active_streams") == 0, "the stream's end is noticed")
        with client.stream() as stream:
            assert history_in(answer_to(stream, observation(1))) == [1, 1, 1]


def test_a_full_queue_refuses_in_the_stream_which_lives_on(serve_bundle: ServeBundle, slow_bundle: Path) -> None:
    server = serve_bundle(slow_bundle, "--max-batch", "1", "--max-waiting", "1")
    with PolicyClient(server.address, timeout=PATIENCE) as client, ExitStack() as stack:
        streams = [stack.enter_context(client.stream(robot_id=f"robot {i}")) for i in range(6)]
        # One is computed and one waits: of six at once, some are refused.
        for stream in streams:
            stream.send(observation(1))
        first = [answers(stream, 1)[0][1] for stream in streams]
        refused = [answer for answer in first if isinstance(answer, PolicyOverloaded)]
        assert refused
        for answer in refused:
            assert answer.retry_after > 0
            assert "observations are waiting already; try again in" in str(answer)
        assert all(history_in(answer) == [1, 1, 1] for answer in first if not isinstance(answer, PolicyOverloaded))
        outcome = metric(server, "chunkcast_chunks_total", policy="slow", outcome="overloaded")
        assert outcome == len(refused)
        # Each stream lives on, and a refused observation is in its history: it was good.
        for stream in streams:
            assert history_in(answer_to(stream, observation(2))) == [1, 1, 2]


def test_a_full_queue_refuses_scripts_too(serve_bundle: ServeBundle, slow_bundle: Path) -> None:
    server = serve_bundle(slow_bundle, "--max-batch", "1", "--max-waiting", "1")
    refused: PolicyOverloaded | None = None
    deadline = time.monotonic() + PATIENCE
    with PolicyClient(server.address, timeout=PATIENCE) as client:
        with client.stream() as stream, flooding(stream):
            # Now and then the script comes first and has the one place; it is answered then.
            while refused is None and time.monotonic() < deadline:
                try:
                    client.predict_chunk(state(0), instruction="left")
                except PolicyOverloaded as overloaded:
                    refused = overloaded
        assert refused is not None
        assert refused.retry_after > 0
        assert "observations are waiting already" in str(refused)
        # With room it is answered again.
        assert history_in(client.predict_chunk(state(3), instruction="left")) == [3, 3, 3]


def test_the_newest_observation_wins_and_each_is_answered_once_in_order(
    slow_server: PrivateServer, slow_client: PolicyClient
) -> None:
    sent = 40
    dropped_before = overtaken(slow_server)
    with slow_client.stream() as stream:
        for step in range(sent):
            stream.send(observation(step))
        received = answers(stream, sent)
        assert [step for step, _ in received] == list(range(sent))
        for step, answer in received:
            if isinstance(answer, Dropped):
                assert answer == Dropped(step, "newer_observation")
            else:
                # What was dropped is in the history all the same.
                assert history_in(answer) == [max(0, step - 2), max(0, step - 1), step]
        dropped = sum(isinstance(answer, Dropped) for _, answer in received)
        assert dropped > 0
        assert isinstance(received[-1][1], ActionChunk)
        # Nothing is left: the next answer is that of the next observation.
        assert history_in(answer_to(stream, observation(sent))) == [sent - 2, sent - 1, sent]
    assert overtaken(slow_server) == dropped_before + dropped


def test_refusals_keep_their_place_among_the_answers(slow_client: PolicyClient) -> None:
    with slow_client.stream() as stream:
        stream.send(observation(0))
        stream.send(observation(1, value=math.nan))
        stream.send(observation(0))  # not above the last
        stream.send(observation(2))
        (_, chunk), (_, not_finite), (_, out_of_order), (_, last) = answers(stream, 4)
        assert history_in(chunk) == [0, 0, 0] or chunk == Dropped(0, "newer_observation")
        assert isinstance(not_finite, ObservationError)
        assert not_finite.code == pb.ERROR_CODE_NOT_FINITE
        assert isinstance(out_of_order, ObservationError)
        assert out_of_order.code == pb.ERROR_CODE_OUT_OF_ORDER
        assert history_in(last) == [0, 2, 2]


def test_what_is_too_late_is_dropped_and_stays_in_the_history(slow_client: PolicyClient) -> None:
    with slow_client.stream() as stream:
        assert answer_to(stream, observation(1, deadline=1e-9)) == Dropped(1, "deadline")
        assert history_in(answer_to(stream, observation(2, deadline=PATIENCE))) == [1, 1, 2]


def test_a_script_is_told_that_its_deadline_passed(slow_server: PrivateServer) -> None:
    request = pb.PredictChunkRequest(observations=[observation(1, deadline=1e-9)])
    with grpc.insecure_channel(slow_server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        pb_grpc.PolicyServiceStub(channel).PredictChunk(request, timeout=PATIENCE)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.details() == "the observation's deadline passed as it waited"


@pytest.mark.parametrize("deadline", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_a_deadline_that_is_none_is_refused(slow_client: PolicyClient, deadline: float) -> None:
    with slow_client.stream() as stream:
        answer = answer_to(stream, observation(1, deadline=deadline))
        assert isinstance(answer, ObservationError)
        assert answer.code == pb.ERROR_CODE_BAD_REQUEST
        assert str(answer) == f"deadline is {deadline:g} s, expected above 0 and finite"
        # It was not used: its step is still free, and the stream lives on.
        assert history_in(answer_to(stream, observation(1))) == [1, 1, 1]


def test_a_stream_that_is_cancelled_leaves_the_queue(slow_server: PrivateServer, slow_client: PolicyClient) -> None:
    robots = 16
    runs_before, dropped_before = runs(slow_server), overtaken(slow_server)
    with ExitStack() as stack:
        staying = [stack.enter_context(slow_client.stream(robot_id=f"robot {i}")) for i in range(robots)]
        leaving = slow_client.stream(robot_id="leaving")
        for stream in staying:
            stream.send(observation(0))
        wait_until(lambda: waiting(slow_server) >= robots // 2, "the queue fills")
        for step in range(2):
            leaving.send(observation(step))
        # The first was overtaken by the second, which has thus reached the queue, behind most of the others.
        wait_until(lambda: overtaken(slow_server) == dropped_before + 1, "the leaving robot's observation waits")
        leaving.close()
        for stream in staying:
            assert history_in(answers(stream, 1)[0][1]) == [0, 0, 0]
        wait_until(lambda: waiting(slow_server) == 0, "the queue is empty")
        assert history_in(answer_to(staying[0], observation(1))) == [0, 0, 1]
        # What had left the queue was not computed before this.
        assert runs(slow_server) == runs_before + robots + 1


def test_a_connection_that_breaks_leaves_the_queue(slow_server: PrivateServer) -> None:
    clients = [PolicyClient(slow_server.address, timeout=PATIENCE) for _ in range(5)]
    streams = [client.stream() for client in clients]
    for stream in streams:
        stream.send(observation(0))
    wait_until(lambda: waiting(slow_server) > 0, "the queue fills")
    for client in clients:
        client.close()
    wait_until(lambda: waiting(slow_server) == 0, "the queue is empty")
    wait_until(lambda: metric(slow_server, "chunkcast_active_streams") == 0, "the streams' ends are noticed")
    for stream in streams:
        stream.close()


def test_a_flooding_robot_does_not_starve_another(slow_client: PolicyClient) -> None:
    """The one has always something newer in the queue; the other is answered each time it asks, for as long as that."""
    with (
        slow_client.stream(robot_id="flood") as flood,
        slow_client.stream(robot_id="calm") as calm,
        flooding(flood) as flooded,
    ):
        for step in range(8):
            assert history_in(answer_to(calm, observation(step))) == [max(0, step - 2), max(0, step - 1), step]
    # And the flood is served too: each of its observations has one answer, in order, the last a chunk.
    assert [step for step, _ in flooded] == list(range(len(flooded)))
    assert {type(answer) for _, answer in flooded} == {ActionChunk, Dropped}
    assert isinstance(flooded[-1][1], ActionChunk)


@contextmanager
def three_streams_in_one_batch(client: PolicyClient) -> Iterator[list[ActionStream]]:
    """Of a server that waits for all of its streams."""
    with ExitStack() as stack:
        streams = [stack.enter_context(client.stream(robot_id=f"robot {i}")) for i in range(3)]
        # A stream counts once it has been served: from the second observation on, nobody is left out.
        for stream in streams:
            stream.send(observation(0, value=0))
        for stream in streams:
            answers(stream, 1)
        yield streams


WAITING_FOR_ALL = ("--max-batch", "3", "--max-delay-ms", "1000")


def test_an_unsafe_chunk_is_withheld_and_its_batch_is_not(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "sqrt", function="Sqrt"), *WAITING_FOR_ALL)
    with PolicyClient(server.address, timeout=PATIENCE) as client, three_streams_in_one_batch(client) as streams:
        for stream, value in zip(streams, (4.0, -1.0, (BOUND + 1) ** 2), strict=True):
            stream.send(observation(1, value=value))
        (safe, nan, unbounded) = (answers(stream, 1)[0][1] for stream in streams)
        assert history_in(safe) == [0, 0, 2]
        assert isinstance(safe, ActionChunk)
        assert safe.batch_size == 3
        for withheld, reason in ((nan, "is nan"), (unbounded, "is 101, expected")):
            assert isinstance(withheld, UnsafeAction)
            assert reason in str(withheld)
    assert metric(server, "chunkcast_chunks_total", policy="echo", outcome="unsafe_action") == 2
    assert metric(server, "chunkcast_chunks_total", policy="echo", outcome="ok") == 4


def committed(actions: npt.NDArray[np.float32], step: int = 1) -> pb.Observation:
    return encode_observation(state(step), episode_id="e", step=step, instruction="left", committed_actions=actions)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_chunk_begins_with_the_committed_actions(committed_server: PrivateServer, steps: int) -> None:
    actions = np.arange(100, 100 - steps * STATE_SIZE, -1, dtype=np.float32).reshape(steps, STATE_SIZE)
    with PolicyClient(committed_server.address) as client, client.stream() as stream:
        assert client.get_policy().action.max_committed_steps == 2
        answer = answer_to(stream, committed(actions))
        assert isinstance(answer, ActionChunk)
        np.testing.assert_array_equal(answer.actions[:steps], actions)
        np.testing.assert_array_equal(answer.actions[steps:], np.ones((HISTORY - steps, STATE_SIZE), np.float32))
        # Each observation has its own: the next one has none.
        assert history_in(answer_to(stream, observation(2))) == [1, 1, 2]


def test_streams_in_one_batch_have_their_own_committed_actions(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    spec = echo_spec()
    spec.action.max_committed_steps = 2
    server = serve_bundle(write_echo_bundle(tmp_path / "echo", spec=spec), *WAITING_FOR_ALL)
    with PolicyClient(server.address, timeout=PATIENCE) as client, three_streams_in_one_batch(client) as streams:
        for length, stream in enumerate(streams):
            stream.send(committed(np.full((length, STATE_SIZE), 50 + length, np.float32)))
        for stream, rows in zip(streams, ([0, 0, 1], [51, 0, 1], [52, 52, 1]), strict=True):
            ((_, answer),) = answers(stream, 1)
            assert history_in(answer) == rows
            assert isinstance(answer, ActionChunk)
            assert answer.batch_size == 3


@pytest.mark.parametrize(
    ("actions", "code", "message"),
    [
        (np.zeros((3, 4), np.float32), pb.ERROR_CODE_WRONG_SHAPE, "has shape [3, 4], expected [0 to 2, 4]"),
        (np.zeros((1, 5), np.float32), pb.ERROR_CODE_WRONG_SHAPE, "has shape [1, 5], expected [0 to 2, 4]"),
        (np.zeros(4, np.float32), pb.ERROR_CODE_WRONG_SHAPE, "has shape [4], expected [0 to 2, 4]"),
        (np.zeros((1, 4), np.float64), pb.ERROR_CODE_WRONG_DTYPE, "is not float32; convert it"),
        (np.full((1, 4), np.nan, np.float32), pb.ERROR_CODE_NOT_FINITE, "are not finite and within"),
        (np.full((1, 4), -np.inf, np.float32), pb.ERROR_CODE_NOT_FINITE, "are not finite and within"),
        (np.full((1, 4), BOUND + 1, np.float32), pb.ERROR_CODE_NOT_FINITE, "are not finite and within"),
    ],
)
def test_bad_committed_actions_get_a_typed_error_and_change_nothing(
    committed_server: PrivateServer, actions: npt.NDArray[np.float32], code: pb.ErrorCode.ValueType, message: str
) -> None:
    with PolicyClient(committed_server.address) as client, client.stream() as stream:
        answer_to(stream, observation(0))
        answer = answer_to(stream, committed(actions))
        assert isinstance(answer, ObservationError)
        assert answer.code == code
        assert message in str(answer)
        assert "\n" not in str(answer)
        # It was not used: the step is still free, and the history without it.
        assert history_in(answer_to(stream, observation(1, value=5))) == [0, 0, 5]


@pytest.mark.parametrize("shape", [[-1, STATE_SIZE], [2**62, STATE_SIZE], [1, STATE_SIZE, 1], []])
def test_committed_actions_of_an_impossible_shape(committed_server: PrivateServer, shape: list[int]) -> None:
    message = observation(1)
    message.committed_actions.CopyFrom(pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=shape, data=b"\0" * 16))
    with PolicyClient(committed_server.address) as client, client.stream() as stream:
        answer = answer_to(stream, message)
        assert isinstance(answer, ObservationError)
        assert answer.code == pb.ERROR_CODE_WRONG_SHAPE


def test_a_policy_that_has_not_learned_it_refuses_committed_actions(echo_server: PrivateServer) -> None:
    with PolicyClient(echo_server.address) as client, client.stream() as stream:
        answer = answer_to(stream, committed(np.zeros((1, STATE_SIZE), np.float32)))
        assert isinstance(answer, ObservationError)
        assert answer.code == pb.ERROR_CODE_WRONG_SHAPE
        assert "expected [0 to 0, 4]" in str(answer)
        # Of length 0 there is nothing to continue.
        none = np.zeros((0, STATE_SIZE), np.float32)
        assert history_in(answer_to(stream, committed(none))) == [1, 1, 1]
