"""The HTTP side of a server, on threads of its own: ``/metrics`` for Prometheus, ``/`` for people.

Answers GET only, from memory: what is asked for chooses among known names and never reaches the file system.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from importlib import resources
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from chunkcast.server.prometheus_page import metrics_registry
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


class WebPage:
    """The HTTP server.

    Args:
        statistics: what it shows.
        live: the last minutes of it.
        host, port: where to listen; port 0 takes a free one.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, statistics: ServerStatistics, live: LiveHistory, host: str, port: int) -> None:
        self._statistics, self._live, self._started = statistics, live, time.time()
        folder = resources.files("chunkcast.server.status") / "static"
        self._static = {path: ((folder / file).read_bytes(), kind) for path, (file, kind) in STATIC.items()}
        self._metrics: Callable[..., Any] = make_wsgi_app(metrics_registry(statistics))
        self._server = make_server(host, port, self._answer, _Server, _Handler)
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
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        if path == "/status.json":
            facts = json.dumps(status_facts(self._statistics, self._live, self._started)).encode()
            return _respond(start_response, "200 OK", "application/json", facts)
        if path in self._static:
            content, kind = self._static[path]
            return _respond(start_response, "200 OK", kind, content)
        return _plain(start_response, "404 Not Found", "there are /, /status.json and /metrics")


def _plain(start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    return _respond(start_response, status, "text/plain; charset=utf-8", f"{text}\n".encode())


def _respond(start_response: StartResponse, status: str, kind: str, content: bytes) -> Iterable[bytes]:
    headers = [("Content-Type", kind), ("Content-Length", str(len(content))), *SECURITY_HEADERS]
    start_response(status, headers)
    return [content]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        # http.server's own is IPv4.
        self.address_family = socket.getaddrinfo(address[0], address[1], type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, handler)


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def address_string(self) -> str:
        """The address alone: to look up its name would keep the page waiting for a name server."""
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """A scrape every few seconds is no news."""
