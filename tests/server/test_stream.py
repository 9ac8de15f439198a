"""A stream's contract: chunks for observations, typed errors for bad ones, and a stream that lives on."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from chunkcast.client import (
    ActionStream,
    ObservationError,
    PolicyClient,
    PolicyNotFound,
    UnsafeAction,
)
from chunkcast.client.private_server import PrivateServer
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc
from tests.conftest import ServeBundle
from tests.handmade_bundle import BOUND, HISTORY, STATE_KEY, STATE_SIZE, write_echo_bundle


def state(value: float) -> dict[str, npt.NDArray[np.float32]]:
    return {STATE_KEY: np.full(STATE_SIZE, value, np.float32)}


@pytest.fixture
def client(echo_server: PrivateServer) -> Iterator[PolicyClient]:
    with PolicyClient(echo_server.address) as client:
        yield client


@pytest.fixture
def stream(client: PolicyClient) -> Iterator[ActionStream]:
    with client.stream(robot_id="test") as stream:
        yield stream


def history_seen(stream: ActionStream, value: float, step: int, episode: str = "e") -> list[float]:
    """The history that the server gave the policy: the echo policy's rows."""
    chunk = stream.request(state(value), episode_id=episode, step=step, instruction="left")
    assert chunk.step == step
    assert chunk.actions.shape == (HISTORY, STATE_SIZE)
    return [float(row[0]) for row in chunk.actions]


def test_history_is_the_last_ticks_oldest_first(stream: ActionStream) -> None:
    assert history_seen(stream, 1, step=0) == [1, 1, 1]
    assert history_seen(stream, 2, step=1) == [1, 1, 2]
    assert history_seen(stream, 3, step=2) == [1, 2, 3]
    assert history_seen(stream, 4, step=3) == [2, 3, 4]


def test_history_only_observations_are_remembered_and_not_answered(stream: ActionStream) -> None:
    for step in range(2):
        stream.remember(state(step), episode_id="e", step=step, instruction="left")
    assert history_seen(stream, 2, step=2) == [0, 1, 2]


def test_a_missing_tick_is_replaced_by_the_next_newer_one(stream: ActionStream) -> None:
    history_seen(stream, 1, step=0)
    assert history_seen(stream, 3, step=2) == [1, 3, 3]
    assert history_seen(stream, 9, step=9) == [9, 9, 9]


def test_a_new_episode_forgets_the_old_one(stream: ActionStream) -> None:
    history_seen(stream, 1, step=5)
    assert history_seen(stream, 2, step=0, episode="another") == [2, 2, 2]


def test_streams_do_not_share_history(client: PolicyClient) -> None:
    with client.stream() as first, client.stream() as second:
        assert history_seen(first, 1, step=0) == [1, 1, 1]
        assert history_seen(second, 2, step=0) == [2, 2, 2]
        assert history_seen(first, 3, step=1) == [1, 1, 3]


def test_instruction_stands_for_the_rest_of_its_episode(stream: ActionStream) -> None:
    stream.request(state(0), episode_id="e", step=0, instruction="right")
    stream.request(state(0), episode_id="e", step=1)
    with pytest.raises(ObservationError) as caught:
        stream.request(state(0), episode_id="next", step=0)
    assert caught.value.code == pb.ERROR_CODE_UNKNOWN_INSTRUCTION


not_finite = np.array([0, np.nan, 0, 0], np.float32)


@pytest.mark.parametrize(
    ("observation", "code", "message"),
    [
        ({}, pb.ERROR_CODE_WRONG_KEY, r"observation has \[\], expected \['observation.state'\]"),
        ({**state(0), "other": not_finite}, pb.ERROR_CODE_WRONG_KEY, "'other'"),
        ({STATE_KEY: np.zeros(3, np.float32)}, pb.ERROR_CODE_WRONG_SHAPE, r"has shape \[3\], expected \[4\]"),
        ({STATE_KEY: np.zeros((1, 4), np.float32)}, pb.ERROR_CODE_WRONG_SHAPE, r"shape \[1, 4\]"),
        ({STATE_KEY: np.zeros(4, np.float64)}, pb.ERROR_CODE_WRONG_DTYPE, "is float64, expected float32"),
        ({STATE_KEY: not_finite}, pb.ERROR_CODE_NOT_FINITE, r"at index \[1\] is nan"),
        ({STATE_KEY: np.full(4, -np.inf, np.float32)}, pb.ERROR_CODE_NOT_FINITE, "is -inf"),
    ],
)
def test_bad_observations_get_a_typed_error_and_change_nothing(
    stream: ActionStream,
    observation: dict[str, npt.NDArray[np.float32]],
    code: pb.ErrorCode.ValueType,
    message: str,
) -> None:
    history_seen(stream, 1, step=0)
    with pytest.raises(ObservationError, match=message) as caught:
        stream.request(observation, episode_id="e", step=1)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    # The stream lives on, and step 1 is still free.
    assert history_seen(stream, 2, step=1) == [1, 1, 2]


@pytest.mark.parametrize("step", [3, 2, 0])
def test_steps_must_rise(stream: ActionStream, step: int) -> None:
    history_seen(stream, 1, step=3)
    with pytest.raises(ObservationError, match=f"step {step} is not above 3") as caught:
        stream.request(state(2), episode_id="e", step=step)
    assert caught.value.code == pb.ERROR_CODE_OUT_OF_ORDER
    assert history_seen(stream, 2, step=4) == [1, 1, 2]


def test_unknown_instruction(stream: ActionStream) -> None:
    with pytest.raises(ObservationError, match=r"'up' is not known to echo; expected one of \['left', 'right'\]"):
        stream.request(state(0), episode_id="e", step=0, instruction="up")


def test_data_shorter_than_the_shape(echo_server: PrivateServer) -> None:
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[STATE_SIZE], data=b"\0" * 15)
    requests = [
        pb.StreamActionsRequest(open=pb.OpenStream()),
        pb.StreamActionsRequest(observation=pb.Observation(tensors={STATE_KEY: tensor}, instruction="left")),
        pb.StreamActionsRequest(open=pb.OpenStream()),
    ]
    with grpc.insecure_channel(echo_server.address) as channel:
        opened, short, again = pb_grpc.PolicyServiceStub(channel).StreamActions(iter(requests), timeout=10)
    assert opened.opened.policy_version == "1"
    assert short.error.code == pb.ERROR_CODE_WRONG_SHAPE
    assert "has 15 bytes of data, expected 16 for float32 [4]" in short.error.message
    assert again.error.code == pb.ERROR_CODE_BAD_REQUEST


def test_actions_out_of_bounds_never_leave_the_server(stream: ActionStream) -> None:
    with pytest.raises(UnsafeAction, match=r"action 'a0' at row 0 is 100.5, expected \[-100"):
        history_seen(stream, BOUND + 0.5, step=0)
    with pytest.raises(UnsafeAction):
        history_seen(stream, BOUND, step=1)  # the history still holds the value that is out of bounds
    assert history_seen(stream, BOUND, step=0, episode="fresh") == [BOUND] * 3


def test_nan_never_leaves_the_server(serve_bundle: ServeBundle, tmp_path: object) -> None:
    from pathlib import Path

    server = serve_bundle(write_echo_bundle(Path(str(tmp_path)) / "sqrt", function="Sqrt"))
    with PolicyClient(server.address) as client, client.stream() as stream:
        with pytest.raises(UnsafeAction, match="is nan"):
            history_seen(stream, -1, step=0)
        assert history_seen(stream, 4, step=0, episode="fresh") == [2, 2, 2]
        with pytest.raises(UnsafeAction, match="is nan"):
            client.predict_chunk(state(-1), instruction="left")


def test_unary_prediction(client: PolicyClient) -> None:
    chunk = client.predict_chunk(state(3), instruction="left")
    np.testing.assert_array_equal(chunk.actions, np.full((HISTORY, STATE_SIZE), 3, np.float32))
    with pytest.raises(ObservationError, match=r"has shape \[2\]"):
        client.predict_chunk({STATE_KEY: np.zeros(2, np.float32)}, instruction="left")


def test_unknown_policy(client: PolicyClient) -> None:
    message = "policy 'other' is not served here; expected one of: echo"
    with pytest.raises(PolicyNotFound, match=message):
        client.stream("other")
    with pytest.raises(PolicyNotFound, match=message):
        client.get_policy("other")


def test_stream_must_be_opened_first(echo_server: PrivateServer) -> None:
    with grpc.insecure_channel(echo_server.address) as channel:
        call = pb_grpc.PolicyServiceStub(channel).StreamActions(
            iter([pb.StreamActionsRequest(observation=pb.Observation())]), timeout=10
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "the first request must open the stream"


def test_same_noise_seed_same_chunk(shipped_server: PrivateServer) -> None:
    with PolicyClient(shipped_server.address) as client:
        spec = client.get_policy()
        middle = [(e.training_min + e.training_max) / 2 for e in spec.observations[0].elements]
        observation = {spec.observations[0].key: np.array(middle, np.float32)}
        instruction = spec.instructions[0].text
        with client.stream() as stream:
            chunks = [
                stream.request(observation, episode_id=str(i), step=0, instruction=instruction, noise_seed=seed)
                for i, seed in enumerate([7, 7, 8, None])
            ]
    np.testing.assert_array_equal(chunks[0].actions, chunks[1].actions)
    assert (chunks[0].actions != chunks[2].actions).any()
    assert (chunks[0].actions != chunks[3].actions).any()
