"""Pictures on the wire: raw, JPEG and PNG, brought to size, bounded before they are decoded, refused in one line."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from chunkcast.client import ObservationError, PolicyClient
from chunkcast.client.errors import RobotMismatch
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.client.robot import check_observation
from chunkcast.client.wire import ActionChunk, Dropped, encode_observation, require_quality
from chunkcast.server.errors import ObservationRejected
from chunkcast.server.images import MAX_BYTES, MAX_PIXELS, MAX_SCANS, decoded
from chunkcast.training.export.bundle_writer import write_bundle
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import contract_difference
from tests.handmade_bundle import HISTORY, INSTRUCTIONS, STATE_KEY, STATE_SIZE, echo_spec

EYE = "observation.images.eye"
SIZE = 16
SHAPE = (SIZE, SIZE, 3)


def colour_spec(ticks: int = HISTORY) -> pb.PolicySpec:
    """A policy of so many observations whose chunk has as many rows."""
    spec = echo_spec("colour")
    spec.observation_steps = spec.action.horizon = ticks
    spec.action.execute_steps = min(ticks, spec.action.execute_steps)
    spec.observations.add(key=EYE, dtype=pb.DATA_TYPE_UINT8, shape=SHAPE, camera=pb.CameraSpec(name="eye"))
    for element in spec.action.elements:
        element.low, element.high = -1.0, 300.0
    return spec


def colour_graph(ticks: int = HISTORY) -> bytes:
    """``actions[:, t] = (mean red, green, blue, state's first number) of tick t``."""
    state: list[Any] = ["batch", ticks, STATE_SIZE]
    nodes = [
        helper.make_node("Cast", [EYE], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels", "axes"], ["colours"], keepdims=0),
        helper.make_node("Slice", [STATE_KEY, "zero_index", "one_index", "last_axis"], ["first"]),
        helper.make_node("Concat", ["colours", "first"], ["answer"], axis=2),
        helper.make_node("Mul", ["noise", "zero"], ["nothing"]),
        helper.make_node("Add", ["answer", "nothing"], ["actions"]),
    ]
    inputs = {
        STATE_KEY: (TensorProto.FLOAT, state),
        EYE: (TensorProto.UINT8, ["batch", ticks, *SHAPE]),
        "instruction": (TensorProto.FLOAT, ["batch", len(INSTRUCTIONS)]),
        "noise": (TensorProto.FLOAT, state),
    }
    constants = [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
        *(
            helper.make_tensor(name, TensorProto.INT64, [1], [value])
            for name, value in (("zero_index", 0), ("one_index", 1), ("last_axis", 2))
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info(name, *described) for name, described in inputs.items()],
        [helper.make_tensor_value_info("actions", TensorProto.FLOAT, state)],
        constants,
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    folder = tmp_path_factory.mktemp("colour") / "colour"
    write_bundle(folder, colour_graph(), colour_spec(), overwrite=False)
    with private_server(folder) as running:
        yield running


def picture(
    height: int = SIZE, width: int = SIZE, colour: tuple[int, int, int] = (200, 100, 50)
) -> npt.NDArray[np.uint8]:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def encoded(array: npt.NDArray[Any], name: str, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    picture = Image.fromarray(array)
    (picture if array.ndim == 2 else picture.convert(mode)).save(stream, name)
    return stream.getvalue()


def with_scans(jpeg: bytes, scans: int) -> bytes:
    """A JPEG that goes over its pixels so many times more."""
    start = jpeg.index(b"\xff\xda")
    length = 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return jpeg[:-2] + jpeg[start : start + length] * scans + b"\xff\xd9"


def message(
    images: dict[str, pb.Image] | None = None, raw: npt.NDArray[Any] | None = None, step: int = 0
) -> pb.Observation:
    observation = {STATE_KEY: np.zeros(STATE_SIZE, np.float32), **({EYE: raw} if raw is not None else {})}
    made = encode_observation(observation, episode_id="e", step=step, instruction="left")
    for key, image in (images or {}).items():
        made.images[key].CopyFrom(image)
    return made


def asked(server: PrivateServer, *observations: pb.Observation) -> list[Any]:
    with PolicyClient(server.address) as client, client.stream() as stream:
        for observation in observations:
            stream.send(observation)
        return [stream.receive(5.0)[1] for _ in observations]


@pytest.mark.parametrize("size", [(SIZE, SIZE), (100, 100), (8, 8), (479, 480)])
@pytest.mark.parametrize("way", ["raw", "JPEG", "PNG"])
def test_a_picture_of_any_size_in_its_proportions_reaches_the_policy(
    server: PrivateServer, way: str, size: tuple[int, int]
) -> None:
    array = picture(*size)
    if way == "raw":
        sent = message(raw=array)
    else:
        form = pb.IMAGE_FORMAT_JPEG if way == "JPEG" else pb.IMAGE_FORMAT_PNG
        sent = message({EYE: pb.Image(format=form, data=encoded(array, way))})
    (answer,) = asked(server, sent)
    assert isinstance(answer, ActionChunk)
    assert answer.actions[-1, :3] == pytest.approx([200, 100, 50], abs=3 if way == "JPEG" else 0.01)


def test_rows_and_columns_stay_where_they_are() -> None:
    array = picture(64, 64, (0, 0, 0))
    array[:32, :32] = (255, 0, 0)
    for name, form in (("JPEG", pb.IMAGE_FORMAT_JPEG), ("PNG", pb.IMAGE_FORMAT_PNG)):
        small = decoded(EYE, pb.Image(format=form, data=encoded(array, name)), SHAPE)
        assert small.shape == SHAPE
        assert small[3, 3, 0] > 200
        assert small[3, 12].max() < 30
        assert small[12, 3].max() < 30


def test_history_is_of_pictures_too_and_the_time_of_decoding_is_told(server: PrivateServer) -> None:
    with PolicyClient(server.address, image_quality=95) as client, client.stream() as stream:
        for step, level in enumerate((10, 20, 30)):
            observation: dict[str, npt.NDArray[Any]] = {
                STATE_KEY: np.zeros(STATE_SIZE, np.float32),
                EYE: picture(colour=(level, level, level)),
            }
            chunk = stream.request(observation, episode_id="e", step=step, instruction="left")
        assert chunk.actions[:, 0] == pytest.approx([10, 20, 30], abs=2)
        assert chunk.decode_seconds > 0.0
        unary = client.predict_chunk(observation, instruction="left")
        assert unary.actions[-1, 0] == pytest.approx(30, abs=2)


def png_header(height: int, width: int) -> bytes:
    """A PNG that claims a size, of some sixty bytes."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


@pytest.mark.parametrize(
    ("image", "raw", "code", "words"),
    [
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_PNG, data=png_header(100_000, 100_000)),
            None,
            pb.ERROR_CODE_BAD_IMAGE,
            "eye",
            id="bomb",
        ),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_PNG, data=png_header(4096, 4096)),
            None,
            pb.ERROR_CODE_BAD_IMAGE,
            f"at most {MAX_PIXELS}",
            id="large",
        ),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_JPEG, data=b"not a picture"),
            None,
            pb.ERROR_CODE_BAD_IMAGE,
            "no whole JPEG",
            id="garbage",
        ),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_JPEG, data=with_scans(encoded(picture(), "JPEG"), MAX_SCANS)),
            None,
            pb.ERROR_CODE_BAD_IMAGE,
            f"a JPEG of {MAX_SCANS + 1} scans",
            id="many passes over it",
        ),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_JPEG, data=b"\xff\xd8" + b"\xff\xfe\x00\x02" * 5000),
            None,
            pb.ERROR_CODE_BAD_IMAGE,
            "5001 segments",
            id="empty comments",
        ),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_PNG, data=bytes(MAX_BYTES + 1)),
            None,
            pb.ERROR_CODE_BAD_IMAGE,
            f"at most {MAX_BYTES}",
            id="heavy",
        ),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_JPEG, data=encoded(picture(), "JPEG", "L")),
            None,
            pb.ERROR_CODE_BAD_IMAGE,
            "mode L, expected RGB",
            id="grey",
        ),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(np.full((SIZE, SIZE), 4000, np.uint16), "PNG")),
            None,
            pb.ERROR_CODE_BAD_IMAGE,
            "mode I;16, expected RGB",
            id="depth",
        ),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_JPEG, data=encoded(picture(), "JPEG")[:-40]),
            None,
            pb.ERROR_CODE_BAD_IMAGE,
            "no whole JPEG",
            id="cut",
        ),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_JPEG, data=encoded(picture(), "PNG")),
            None,
            pb.ERROR_CODE_BAD_IMAGE,
            "no whole JPEG",
            id="another format than it says",
        ),
        pytest.param(
            pb.Image(data=encoded(picture(), "PNG")), None, pb.ERROR_CODE_BAD_IMAGE, "format code 0", id="no format"
        ),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(picture(48, 64), "PNG")),
            None,
            pb.ERROR_CODE_WRONG_SHAPE,
            "48x64 pixels",
            id="other proportions",
        ),
        pytest.param(None, picture(48, 64), pb.ERROR_CODE_WRONG_SHAPE, "48x64 pixels", id="raw, other proportions"),
        pytest.param(None, np.zeros(SHAPE, np.float32), pb.ERROR_CODE_WRONG_DTYPE, "not uint8", id="raw, float"),
        pytest.param(None, np.zeros((SIZE, SIZE), np.uint8), pb.ERROR_CODE_WRONG_SHAPE, "[16, 16]", id="raw, grey"),
        pytest.param(None, None, pb.ERROR_CODE_WRONG_KEY, "expected", id="none"),
        pytest.param(
            pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(picture(), "PNG")),
            picture(),
            pb.ERROR_CODE_WRONG_KEY,
            "expected",
            id="twice",
        ),
    ],
)
def test_a_bad_picture_is_refused_and_the_stream_lives_on(
    server: PrivateServer, image: pb.Image | None, raw: npt.NDArray[Any] | None, code: int, words: str
) -> None:
    bad = message({EYE: image} if image else None, raw)
    good = message(raw=picture(), step=1)
    refused, answered = asked(server, bad, good)
    assert isinstance(refused, ObservationError)
    assert refused.code == code
    assert words in str(refused)
    assert "\n" not in str(refused)
    assert " object at 0x" not in str(refused)
    assert isinstance(answered, ActionChunk)


def test_a_robot_that_sends_faster_than_its_pictures_are_decoded_is_answered_about_the_newest(tmp_path: Path) -> None:
    write_bundle(tmp_path / "colour", colour_graph(1), colour_spec(1), overwrite=False)
    large = pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(picture(1500, 1500), "PNG"))
    sent = [message({EYE: large}, step=step) for step in range(12)]
    with private_server(tmp_path / "colour") as server:
        answers = asked(server, *sent)
    kinds = ["dropped" if isinstance(answer, Dropped) else "chunk" for answer in answers]
    assert {type(answer) for answer in answers} == {ActionChunk, Dropped}
    assert kinds[0] == kinds[-1] == "chunk", "the episode's first observation tells its instruction"
    assert kinds.count("dropped") > 6
    assert [answer.step for answer in answers] == list(range(12))


def test_a_version_that_sees_by_another_camera_is_another_contract() -> None:
    other = colour_spec()
    other.observations[1].camera.field_of_view = 45.0
    without = colour_spec()
    without.observations[1].ClearField("camera")
    assert contract_difference(colour_spec(), colour_spec()) == ""
    assert "field_of_view: 45" in contract_difference(colour_spec(), other)
    assert contract_difference(colour_spec(), without).startswith("observations")


def test_a_picture_where_none_belongs_is_refused(server: PrivateServer) -> None:
    sent = message(raw=picture())
    del sent.tensors[STATE_KEY]
    sent.images[STATE_KEY].CopyFrom(pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(picture(), "PNG")))
    (refused,) = asked(server, sent)
    assert isinstance(refused, ObservationError)
    assert refused.code == pb.ERROR_CODE_WRONG_KEY


@given(st.binary(max_size=200), st.sampled_from([pb.IMAGE_FORMAT_JPEG, pb.IMAGE_FORMAT_PNG]), st.integers(0, 600))
def test_no_bytes_do_more_than_be_refused(tail: bytes, form: pb.ImageFormat.ValueType, kept: int) -> None:
    whole = encoded(picture(), "JPEG" if form == pb.IMAGE_FORMAT_JPEG else "PNG")
    made, refused = None, None
    try:
        made = decoded(EYE, pb.Image(format=form, data=whole[:kept] + tail), SHAPE)
    except ObservationRejected as rejected:
        refused = rejected.code
    assert refused in (None, pb.ERROR_CODE_BAD_IMAGE, pb.ERROR_CODE_WRONG_SHAPE)
    assert refused or (made is not None and made.shape == SHAPE)


def test_a_robot_is_compared_with_the_policy_before_it_moves() -> None:
    state = {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}
    check_observation(colour_spec(), {**state, EYE: picture(64, 64)})
    with pytest.raises(RobotMismatch, match=r"48x64 pixels .* the proportions of 16x16; crop it"):
        check_observation(colour_spec(), {**state, EYE: picture(48, 64)})
    with pytest.raises(RobotMismatch, match="float32"):
        check_observation(colour_spec(), {**state, EYE: np.zeros(SHAPE, np.float32)})


def test_the_quality_is_checked_and_decides_the_size() -> None:
    noisy = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    sizes = [len(encode_observation({EYE: noisy}, image_quality=quality).images[EYE].data) for quality in (30, 95)]
    assert sizes[0] < sizes[1]
    with pytest.raises(ValueError, match="image_quality is 101, expected 1 to 100"):
        encode_observation({EYE: noisy}, image_quality=101)
    for unclear in ("90", 90.5):
        with pytest.raises(ValueError, match="expected 1 to 100, or None"):
            require_quality(unclear)  # type: ignore[arg-type]


def test_a_bundle_whose_camera_is_no_picture_is_refused(tmp_path: Path) -> None:
    from chunkcast.server.bundle import read_bundle
    from chunkcast.server.errors import BundleError

    spec = colour_spec()
    spec.observations[1].dtype = pb.DATA_TYPE_FLOAT32
    write_bundle(tmp_path / "b", colour_graph(), spec, overwrite=False)
    with pytest.raises(BundleError, match="is a camera's, of dtype code 1"):
        read_bundle(tmp_path / "b")
