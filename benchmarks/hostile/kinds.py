"""What a hostile client sends in a stream or a call, and what it should be told."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from chunkcast.v1 import policy_pb2 as pb

STATE, STATE_SIZE = "observation.state", 39
INSTRUCTION = "drawer-open-v3"


class Sent(NamedTuple):
    """A request on an open stream.

    Attributes:
        observation: what is sent.
        expected: the codes that are right for it.
    """

    observation: pb.Observation
    expected: frozenset[str]


class Maker:
    """Makes messages that are wrong in one way each.

    Args:
        seed: of their details.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._step = 0
        self.kinds: dict[str, Callable[[pb.Observation], str]] = {
            "no tensors": self._no_tensors,
            "unknown key": self._unknown_key,
            "wrong dtype": self._wrong_dtype,
            "unknown dtype": self._unknown_dtype,
            "wrong shape": self._wrong_shape,
            "negative shape": self._negative_shape,
            "huge shape": self._huge_shape,
            "thousand dimensions": self._many_dimensions,
            "truncated data": self._truncated,
            "NaN": self._nan,
            "infinity": self._infinity,
            "old step": self._old_step,
            "unknown instruction": self._unknown_instruction,
            "instruction of 64 KiB": self._long_instruction,
            "long episode id": self._long_episode,
            "deadline in the past": self._deadline,
            "deadline NaN": self._deadline_nan,
            "committed actions of another shape": self._committed,
            "committed actions that are NaN": self._committed_nan,
            "a picture where none is": self._picture,
        }

    def good(self) -> pb.Observation:
        """One that is right."""
        self._step += 1
        observation = pb.Observation(episode_id="hostile", step=self._step, instruction=INSTRUCTION)
        values = self._random.uniform(-0.1, 0.1, STATE_SIZE).astype("<f4")
        observation.tensors[STATE].CopyFrom(
            pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[STATE_SIZE], data=values.tobytes())
        )
        return observation

    def make(self, kind: str) -> Sent:
        """One of a kind."""
        observation = self.good()
        return Sent(observation, frozenset(self.kinds[kind](observation).split("|")))

    def _no_tensors(self, observation: pb.Observation) -> str:
        observation.tensors.clear()
        return "WRONG_KEY"

    def _unknown_key(self, observation: pb.Observation) -> str:
        observation.tensors["../../etc/passwd"].CopyFrom(observation.tensors[STATE])
        return "WRONG_KEY"

    def _wrong_dtype(self, observation: pb.Observation) -> str:
        observation.tensors[STATE].dtype = pb.DATA_TYPE_FLOAT64
        return "WRONG_DTYPE"

    def _unknown_dtype(self, observation: pb.Observation) -> str:
        observation.tensors[STATE].dtype = 4711  # type: ignore[assignment]
        return "WRONG_DTYPE"

    def _wrong_shape(self, observation: pb.Observation) -> str:
        observation.tensors[STATE].shape[:] = [int(self._random.integers(40, 10**6))]
        return "WRONG_SHAPE"

    def _negative_shape(self, observation: pb.Observation) -> str:
        observation.tensors[STATE].shape[:] = [-STATE_SIZE]
        return "WRONG_SHAPE"

    def _huge_shape(self, observation: pb.Observation) -> str:
        observation.tensors[STATE].shape[:] = [2**62, 2**62, 4]
        return "WRONG_SHAPE"

    def _many_dimensions(self, observation: pb.Observation) -> str:
        observation.tensors[STATE].shape[:] = [1] * 1000 + [STATE_SIZE]
        return "WRONG_SHAPE"

    def _truncated(self, observation: pb.Observation) -> str:
        tensor = observation.tensors[STATE]
        tensor.data = tensor.data[: int(self._random.integers(0, len(tensor.data)))]
        return "WRONG_SHAPE"

    def _nan(self, observation: pb.Observation) -> str:
        return self._one_value(observation, np.nan)

    def _infinity(self, observation: pb.Observation) -> str:
        return self._one_value(observation, np.inf)

    def _one_value(self, observation: pb.Observation, value: float) -> str:
        values = np.frombuffer(observation.tensors[STATE].data, "<f4").copy()
        values[self._random.integers(STATE_SIZE)] = value
        observation.tensors[STATE].data = values.tobytes()
        return "NOT_FINITE"

    def _old_step(self, observation: pb.Observation) -> str:
        observation.step = 0
        return "OUT_OF_ORDER"

    def _unknown_instruction(self, observation: pb.Observation) -> str:
        observation.instruction = f"'; DROP TABLE robots; -- {self._random.integers(10**9)}"
        return "UNKNOWN_INSTRUCTION"

    def _long_instruction(self, observation: pb.Observation) -> str:
        observation.instruction = "x" * 65536
        return "UNKNOWN_INSTRUCTION"

    def _long_episode(self, observation: pb.Observation) -> str:
        observation.episode_id = "\x1b[31m\n" * 100
        return "BAD_REQUEST"

    def _deadline(self, observation: pb.Observation) -> str:
        observation.deadline = -1.0
        return "BAD_REQUEST"

    def _deadline_nan(self, observation: pb.Observation) -> str:
        observation.deadline = float("nan")
        return "BAD_REQUEST"

    def _committed(self, observation: pb.Observation) -> str:
        tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[3, 5], data=bytes(60))
        observation.committed_actions.CopyFrom(tensor)
        return "WRONG_SHAPE"

    def _committed_nan(self, observation: pb.Observation) -> str:
        values = np.full((1, 4), np.nan, "<f4")
        tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[1, 4], data=values.tobytes())
        observation.committed_actions.CopyFrom(tensor)
        return "NOT_FINITE"

    def _picture(self, observation: pb.Observation) -> str:
        observation.tensors.clear()
        observation.images[STATE].CopyFrom(pb.Image(format=pb.IMAGE_FORMAT_JPEG, data=jpeg(8, 8)))
        return "WRONG_KEY"


def bad_pictures(seed: int) -> dict[str, bytes]:
    """JPEGs that are none: for a policy that sees."""
    random = np.random.default_rng(seed)
    whole = jpeg(128, 128)
    flipped = bytearray(whole)
    for place in random.integers(20, len(whole), 40):
        flipped[place] ^= 0xFF
    return {
        "random bytes": random.bytes(4096),
        "truncated JPEG": whole[: len(whole) // 2],
        "JPEG of other proportions": jpeg(128, 16),
        "empty": b"",
        "a PNG bomb": png_bomb(30_000),
    }


def jpeg(width: int, height: int) -> bytes:
    """A picture of noise."""
    from PIL import Image

    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def png_bomb(side: int) -> bytes:
    """A PNG of a few hundred kilobytes that says it has ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(side * 3 + 1) * 64, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
