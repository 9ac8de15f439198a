"""Who calls: each gRPC call shows a bearer token, before anything of it is read."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn

import grpc
import structlog

from chunkcast.server.security.tokens import Bearer, TokenFile

AUTHORIZATION = "authorization"
SCHEME = "bearer "

OPEN_METHOD = "/grpc.health.v1.Health/Check"
"""Probes and load balancers ask without a token, and learn nothing but whether the server is well. Not Watch, which
holds a place for as long as the caller likes."""

REFUSALS_SECONDS = 10.0
"""Between two lines in the log on calls that were refused."""

log = structlog.get_logger()

_bearer: ContextVar[Bearer | None] = ContextVar("bearer", default=None)


class Client(NamedTuple):
    """Who calls.

    Attributes:
        name: its token's, or else its certificate's, or else its address: what its limits and the log go by.
        bearer: the token that it showed, if any was asked for.
    """

    name: str
    bearer: Bearer | None


class Authentication(grpc.aio.ServerInterceptor):
    """Refuses calls without a good token with UNAUTHENTICATED.

    Args:
        tokens: the good ones.
        on_refusal: called for each call that is refused.
    """

    def __init__(self, tokens: TokenFile, on_refusal: Callable[[], None]) -> None:
        self._tokens, self._on_refusal = tokens, on_refusal
        self._logged, self._unlogged = -REFUSALS_SECONDS, 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """As gRPC asks."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method == OPEN_METHOD:
            return handler
        token = shown_token(handler_call_details.invocation_metadata)
        bearer = self._tokens.bearer(token) if token else None
        if bearer is None:
            self._on_refusal()
            self._log_refusal(handler_call_details.method, shown=bool(token))
            return _refusal("unknown token" if token else "this server asks for a bearer token")
        # The call's handler runs in this task, and finds it there.
        _bearer.set(bearer)
        return handler

    def _log_refusal(self, method: str, *, shown: bool) -> None:
        """Now and then: whoever tries tokens must not fill the log."""
        self._unlogged += 1
        now = time.monotonic()
        if now >= self._logged + REFUSALS_SECONDS:
            log.warning("calls without a good token were refused", calls=self._unlogged, last=method, shown=shown)
            self._logged, self._unlogged = now, 0


def shown_token(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The bearer token in a call's metadata, or an empty string."""
    for key, value in metadata or ():
        if key == AUTHORIZATION and isinstance(value, str) and value[: len(SCHEME)].lower() == SCHEME:
            return value[len(SCHEME) :].strip()
    return ""


def calling_client(context: grpc.aio.ServicerContext[Any, Any]) -> Client:
    """Who makes this call."""
    bearer = _bearer.get()
    if bearer:
        return Client(bearer.name, bearer)
    facts: Mapping[str, Iterable[bytes]] = context.auth_context() or {}
    names = list(facts.get("x509_common_name") or facts.get("x509_subject_alternative_name") or ())
    if names:
        return Client(names[0].decode("utf-8", "replace"), None)
    return Client(host_of(context.peer()), None)


def host_of(peer: str) -> str:
    """The address in gRPC's name of a peer (``ipv4:192.0.2.1:4711``, ``ipv6:%5B::1%5D:4711``): a client that opens many
    connections is one.
    """
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "") if kind in ("ipv4", "ipv6") else peer


def _refusal(message: str) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that refuses. Whatever the method's kind, it is a stream's: a unary one would be called only when its
    message had been read, and one that never comes would hold a place.
    """

    async def refuse(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED, f"{message}; send authorization: Bearer TOKEN (--token-file)"
        )
        raise AssertionError("abort raises")

    return grpc.stream_stream_rpc_method_handler(refuse)
