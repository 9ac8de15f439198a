"""The HTTP side of a server, on threads of its own: ``/metrics`` for Prometheus, ``/`` for people.

Answers GET only, from memory: what is asked for chooses among known names and never reaches the file system. ``/live``
and ``/ready`` are for probes, which have no token and learn one word.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib import resources
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import make_wsgi_app

from chunkcast.server.prometheus_page import metrics_registry
from chunkcast.server.security.tokens import TokenFile
from chunkcast.server.statistics import ServerStatistics
from chunkcast.server.status.facts import status_facts
from chunkcast.server.status.live import LiveHistory

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/status.css": ("status.css", "text/css; charset=utf-8"),
    "/status.js": ("status.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

SECURITY_HEADERS = [
    # Nothing on the page comes from elsewhere, and nothing that a client named can become code.
    ("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]

CLIENT_SECONDS = 10.0
"""A client that connects and says nothing holds a thread."""

MAX_CLIENTS = 32
"""At the same time, each with a thread; one more finds its connection closed."""


log = structlog.get_logger()


class WebPage:
    """The HTTP server.

    Args:
        statistics: what it shows.
        live: the last minutes of it.
        host, port: where to listen; port 0 takes a free one.
        tls: speaks HTTPS with this.
        tokens: of which a request must show one, but for the probes; as bearer token, or with its name as password.

    Attributes:
        ready: what ``/ready`` says.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self,
        statistics: ServerStatistics,
        live: LiveHistory,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        tokens: TokenFile | None = None,
    ) -> None:
        self._statistics, self._live, self._started = statistics, live, time.time()
        self._tokens, self.ready = tokens, False
        folder = resources.files("chunkcast.server.status") / "static"
        self._static = {path: ((folder / file).read_bytes(), kind) for path, (file, kind) in STATIC.items()}
        self._metrics: Callable[..., Any] = make_wsgi_app(metrics_registry(statistics))
        self._server = make_server(host, port, self._answer, _Server, _Handler)
        if tls:
            # The handshake takes place on the connection's own thread.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("REQUEST_METHOD") == "HEAD":
            # The same headers, and nothing after them.
            list(self._get({**environ, "REQUEST_METHOD": "GET"}, start_response))
            return []
        return self._get(environ, start_response)

    def _get(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO", "/"), environ.get("REQUEST_METHOD")
        if method != "GET":
            return _plain(start_response, "405 Method Not Allowed", "GET only")
        if path == "/live":
            return _plain(start_response, "200 OK", "live")
        if path == "/ready":
            return _plain(start_response, *(("200 OK", "ready") if self.ready else ("503 Service Unavailable", "no")))
        if not self._may_read(environ.get("HTTP_AUTHORIZATION", "")):
            return _ask_for_token(start_response)
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        if path == "/status.json":
            facts = json.dumps(status_facts(self._statistics, self._live, self._started)).encode()
            return _respond(start_response, "200 OK", "application/json", facts)
        if path in self._static:
            content, kind = self._static[path]
            return _respond(start_response, "200 OK", kind, content)
        return _plain(start_response, "404 Not Found", "there are /, /status.json, /metrics, /live and /ready")

    def _may_read(self, authorization: str) -> bool:
        """Whether a request with this header shows a token, where one is asked for."""
        if self._tokens is None:
            return True
        scheme, _, shown = authorization.partition(" ")
        if scheme.lower() == "bearer":
            return self._tokens.bearer(shown.strip()) is not None
        if scheme.lower() != "basic":
            return False
        try:
            name, _, token = base64.b64decode(shown, validate=True).decode().partition(":")
        except ValueError:
            return False
        bearer = self._tokens.bearer(token)
        return bearer is not None and bearer.name == name


def _ask_for_token(start_response: StartResponse) -> Iterable[bytes]:
    content = b"a token of --admin-token-file is needed: as bearer token, or its name and itself as user and password\n"
    # Browsers ask their user, for the status page.
    headers = [("WWW-Authenticate", 'Basic realm="chunkcast", charset="UTF-8"'), ("WWW-Authenticate", "Bearer")]
    return _respond(start_response, "401 Unauthorized", "text/plain; charset=utf-8", content, headers)


def _plain(start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    return _respond(start_response, status, "text/plain; charset=utf-8", f"{text}\n".encode())


def _respond(
    start_response: StartResponse, status: str, kind: str, content: bytes, headers: Sequence[tuple[str, str]] = ()
) -> Iterable[bytes]:
    about = [("Content-Type", kind), ("Content-Length", str(len(content)))]
    start_response(status, [*about, *headers, *SECURITY_HEADERS])
    return [content]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        # http.server's own is IPv4.
        self.address_family = socket.getaddrinfo(address[0], address[1], type=socket.SOCK_STREAM)[0][0]
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """On a thread of its own, if there is one."""
        if not self._places.acquire(blocking=False):
            request.close()
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread. A client that sends a byte now and then does not hold it for longer than a silent one."""
        deadline = threading.Timer(CLIENT_SECONDS, _cut, (request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, speaks no TLS or no HTTP is no news; all else is logged."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("page failed", client=str(client_address[0]), exc_info=error)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def address_string(self) -> str:
        """The address alone: to look up its name would keep the page waiting for a name server."""
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """A scrape every few seconds is no news."""
