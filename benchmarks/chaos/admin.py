"""An operator's calls."""

from __future__ import annotations

import grpc

from chunkcast.client import PolicyUnavailable
from chunkcast.client.wire import error_of
from chunkcast.v1 import admin_pb2, admin_pb2_grpc


def load(address: str, bundle: str, *, promote: bool) -> str:
    """Load a bundle of the store; returns its version.

    Raises:
        PolicyUnavailable: it was refused; the message is the server's.
    """
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = admin_pb2.LoadBundleRequest(bundle=bundle, promote=promote)
        try:
            answer = admin_pb2_grpc.AdminServiceStub(channel).LoadBundle(request, timeout=120)
        except grpc.RpcError as error:
            raise PolicyUnavailable(error_of(error).args[0]) from None
    return str(answer.version.version)
