"""Spans of streams and chunks, as a collector receives them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from chunkcast.client.private_server import private_server
from chunkcast.client.wire import encode_observation
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc
from tests.handmade_bundle import STATE_KEY, STATE_SIZE, write_echo_bundle

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """A collector's HTTP end."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                collector.spans += [
                    span for resource in request.resource_spans for each in resource.scope_spans for span in each.spans
                ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_a_stream_and_its_chunks_are_spans_of_the_robots_trace(tmp_path: Path, collector: Collector) -> None:
    observation = {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}
    requests = [pb.StreamActionsRequest(open=pb.OpenStream(robot_id="arm"))]
    for step in (0, 1, 1):  # the last is out of order
        message = encode_observation(observation, episode_id="e", step=step, instruction="left")
        requests.append(pb.StreamActionsRequest(observation=message))
    with (
        private_server(write_echo_bundle(tmp_path / "echo"), "--traces", collector.url) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
        call: Any = pb_grpc.PolicyServiceStub(channel).StreamActions(iter(requests), metadata=metadata, timeout=20)
        answers = list(call)
    # The server has ended, and exported what was left.
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    by_name: dict[str, list[Any]] = {}
    for span in collector.spans:
        by_name.setdefault(span.name, []).append(span)
    (stream,) = by_name["stream"]
    assert stream.parent_span_id.hex() == PARENT
    assert {each.key: each.value.string_value for each in stream.attributes}["chunkcast.stream"] == (
        answers[0].opened.stream_id
    )
    assert [event.name for event in stream.events] == ["refused"]
    assert len(by_name["chunk"]) == 2
    for chunk in by_name["chunk"]:
        assert chunk.parent_span_id == stream.span_id
        inside = [span for span in collector.spans if span.parent_span_id == chunk.span_id]
        assert [span.name for span in inside] == ["preprocess", "queue", "inference", "postprocess"]
        assert chunk.start_time_unix_nano == inside[0].start_time_unix_nano
        assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in inside)


def test_a_collector_that_is_away_costs_no_chunk(tmp_path: Path) -> None:
    with (
        private_server(write_echo_bundle(tmp_path / "echo"), "--traces", "http://127.0.0.1:9/v1/traces") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        message = encode_observation(
            {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}, episode_id="e", step=0, instruction="left"
        )
        requests = [
            pb.StreamActionsRequest(open=pb.OpenStream()),
            pb.StreamActionsRequest(observation=message),
        ]
        call: Any = pb_grpc.PolicyServiceStub(channel).StreamActions(iter(requests), timeout=20)
        assert [each.WhichOneof("response") for each in call] == ["opened", "chunk"]
    assert server.process.returncode == 0
