"""The asyncio face of the client: many robots in one process, or one beside other asynchronous work.

>>> from chunkcast.client.aio import AsyncChunkPlayer, AsyncPolicyClient

What it decides is decided where the blocking face has it decided: ``playback`` and ``wire``.
"""

from chunkcast.client.aio.action_stream import AsyncActionStream
from chunkcast.client.aio.chunk_player import AsyncChunkPlayer
from chunkcast.client.aio.policy_client import AsyncPolicyClient

__all__ = ["AsyncActionStream", "AsyncChunkPlayer", "AsyncPolicyClient"]
