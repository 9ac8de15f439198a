"""The robot's side of chunkcast: three dependencies (grpcio, protobuf, numpy), none of them heavy.

>>> from chunkcast.client import ChunkPlayer, PolicyClient
"""

from chunkcast.client.action_stream import ActionStream
from chunkcast.client.chunk_health import ChunkHealth
from chunkcast.client.chunk_player import ChunkPlayer, EpisodeSummary
from chunkcast.client.credentials import Credentials
from chunkcast.client.errors import (
    ChunkcastError,
    ChunkTimeout,
    NotAllowed,
    ObservationError,
    PolicyNotFound,
    PolicyOverloaded,
    PolicyUnavailable,
    PolicyUnhealthy,
    RobotMismatch,
    UnsafeAction,
)
from chunkcast.client.playback_config import PlaybackConfig
from chunkcast.client.policy_client import PolicyClient
from chunkcast.client.robot import Robot, check_observation
from chunkcast.client.wire import ActionChunk, Observation

__all__ = [
    "ActionChunk",
    "ActionStream",
    "ChunkHealth",
    "ChunkPlayer",
    "ChunkTimeout",
    "ChunkcastError",
    "Credentials",
    "EpisodeSummary",
    "NotAllowed",
    "Observation",
    "ObservationError",
    "PlaybackConfig",
    "PolicyClient",
    "PolicyNotFound",
    "PolicyOverloaded",
    "PolicyUnavailable",
    "PolicyUnhealthy",
    "Robot",
    "RobotMismatch",
    "UnsafeAction",
    "check_observation",
]
