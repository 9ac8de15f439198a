"""Requests that are no messages: refused as the client's mistake, where gRPC would call them the server's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

MALFORMED = "the request cannot be read as a protobuf message of this method; check the client's contract"


class _Malformed:
    """Stands for a request that could not be read."""


class Decoding(grpc.aio.ServerInterceptor):
    """Answers unary requests that cannot be read with INVALID_ARGUMENT; a stream's are its service's to answer."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """As gRPC asks."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler  # type: ignore[no-any-return]
        answer, deserialize = handler.unary_unary, handler.request_deserializer

        def read(data: bytes) -> Any:
            try:
                return deserialize(data)
            except Exception:
                return _Malformed()

        async def checked(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            if isinstance(request, _Malformed):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)
            return await answer(request, context)

        return grpc.unary_unary_rpc_method_handler(
            checked, request_deserializer=read, response_serializer=handler.response_serializer
        )
