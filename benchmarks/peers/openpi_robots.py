"""Robots with openpi's own client, ``openpi_client.websocket_client_policy``: a thread, a client and a connection each.

Runs in an environment of its own (``make peers``), for openpi-client needs numpy 1: nothing of chunkcast is here.
Reads what to do as JSON from standard input and writes what was measured to standard output, like chunkcast_robots.py.
Threads, since the client blocks and a process a robot would not fit on the machine; beside each thread the websocket
library runs another, which reads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy as np

HOST = "127.0.0.1"


def robot(client: Any, observation: dict[str, Any], counted_from: float, until: float) -> list[tuple[float, float]]:
    """Ask, wait for the answer, ask again: milliseconds of each chunk, and of the server's inference in it."""
    measured = []
    while (asked := time.perf_counter()) < until:
        answer = client.infer(observation)
        answered = time.perf_counter()
        if counted_from <= answered < until:
            measured.append(((answered - asked) * 1e3, answer["server_timing"]["infer_ms"]))
    return measured


def main() -> None:
    """Measure one block."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy  # type: ignore[import-not-found]

    os.environ["no_proxy"] = HOST  # the library asks for the web's proxies even here
    request = json.load(sys.stdin)
    observation: dict[str, Any] = {key: np.array(value, np.float32) for key, value in request["observation"].items()}
    observation["prompt"] = request["instruction"]
    clients = [WebsocketClientPolicy(HOST, request["port"]) for _ in range(request["robots"])]
    counted_from = time.perf_counter() + request["warm_up"]
    until = counted_from + request["seconds"]
    with ThreadPoolExecutor(len(clients)) as threads:
        futures = [threads.submit(robot, client, observation, counted_from, until) for client in clients]
        chunks = [chunk for future in futures for chunk in future.result()]
    measured = {
        "latency_ms": [latency for latency, _ in chunks],
        "inference_ms": [inference for _, inference in chunks],
        "versions": {name: version(name) for name in ("openpi-client", "websockets", "msgpack", "numpy")},
    }
    json.dump(measured, sys.stdout)


if __name__ == "__main__":
    main()
