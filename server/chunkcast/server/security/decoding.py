"""Unary requests that are no messages, or never come: refused as the client's mistake, and within a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

MALFORMED = "the request cannot be read as a protobuf message of this method; check the client's contract"

READ_SECONDS = 10.0
"""A call whose message does not come holds a place that others may need."""


class Decoding(grpc.aio.ServerInterceptor):
    """Reads unary calls' requests itself, as a stream of one message: gRPC would wait for it without end, and call what
    cannot be read a failure of the server. A stream's requests are its service's to read.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """As gRPC asks."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler  # type: ignore[no-any-return]

        async def read(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    request = await context.read()
            except TimeoutError:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no request came within {READ_SECONDS:g} s")
            except DecodeError:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)
            if request is grpc.aio.EOF:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
            return await handler.unary_unary(request, context)

        return grpc.stream_unary_rpc_method_handler(
            read, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )
