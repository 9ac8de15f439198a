"""Moved to chunkcast.client.private_server."""

from chunkcast.client.private_server import PrivateServer, private_server

__all__ = ["PrivateServer", "private_server"]
