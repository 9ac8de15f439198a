"""The status page: what it says, in a real browser, and that it asks nobody else."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkcast.client import PlaybackConfig, PolicyClient
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.client.sim.episode import EpisodeJob, SimulatedRobot
from chunkcast.client.sim.faults import parse_fault
from tests.browser import browser
from tests.conftest import ROOT, SHIPPED_BUNDLE, ServeBundle
from tests.handmade_bundle import STATE_KEY, STATE_SIZE, write_echo_bundle

SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", ROOT / "build" / "screenshots"))
"""Kept by each test run, for people to look at."""

CHOICE_SEED = 500_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """A server of two policies that has seen healthy and faulty episodes."""
    echo = write_echo_bundle(tmp_path_factory.mktemp("status") / "echo")
    bundles = ("--bundle", str(SHIPPED_BUNDLE), str(echo))
    with private_server(None, *bundles, "--health-share", "1") as server:
        robot = SimulatedRobot(server.address, "metaworld-six", PlaybackConfig(simulated_delay=0))
        for seed in range(3):
            robot.play(EpisodeJob("drawer-close-v3", CHOICE_SEED + seed, "drawer-close-v3"))
        robot.play(EpisodeJob("pick-place-v3", CHOICE_SEED, "pick-place-v3", fault=parse_fault("gripper-stuck")))
        with PolicyClient(server.address) as client, client.stream("echo", robot_id="arm <b>7</b>") as stream:
            stream.request({STATE_KEY: np.zeros(STATE_SIZE, np.float32)}, episode_id="e", step=0, instruction="left")
            client.report_episode(
                policy="echo", outcome="failure", task="left", steps=1, robot_id="<script>alert(1)</script>"
            )
        yield server


def get(server: PrivateServer, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(f"http://{server.metrics_address}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, dict(refused.headers), refused.read()


def policy(server: PrivateServer, name: str) -> dict[str, Any]:
    policies = json.loads(get(server, "/status.json")[2])["policies"]
    return next(each for each in policies if each["name"] == name)


def test_what_was_reported_stands_beside_what_was_expected(server: PrivateServer) -> None:
    rows = {row["task"]: row for row in policy(server, "metaworld-six")["success"]}
    assert rows["drawer-close-v3"]["measured"]["episodes"] == 3
    assert rows["drawer-close-v3"]["expected"]["source"] == "measured"
    assert rows["door-open-v3"]["measured"] is None
    assert list(rows)[-1] == "all"
    assert rows["all"]["measured"]["episodes"] == 4
    assert not rows["drawer-close-v3"]["below_expected"]


def test_health_and_training_are_there(server: PrivateServer) -> None:
    six = policy(server, "metaworld-six")
    assert six["health"]["calibrated"]
    assert six["health"]["judged"]["healthy"] > 0
    assert six["health"]["judged"]["unhealthy"] > 0, "a gripper that does not close"
    assert len(six["loss_curve"]) >= 8
    assert six["versions"] == [{"version": six["version"], "state": "promoted"}]
    assert [each["outcome"] for each in six["recent_episodes"]] == ["failure", "success", "success", "success"]
    echo = policy(server, "echo")
    assert not echo["health"]["calibrated"]
    assert echo["findings"][0]["severity"] == "warning"


def test_only_known_pages_are_served(server: PrivateServer) -> None:
    for path in ("/nothing", "/../bundle.py", "/static/index.html", "/%2e%2e/policy.json", "//etc/passwd"):
        assert get(server, path)[0] == 404, path
    assert get(server, "/", "POST")[0] == 405
    assert get(server, "/metrics", "DELETE")[0] == 405
    status, headers, content = get(server, "/")
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert b"http://" not in content
    assert b"https://" not in content
    host, port = server.metrics_address.split(":")
    for path in ("/", "/metrics"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(f"HEAD {path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b"200 OK" in answer
        assert answer.endswith(b"\r\n\r\n"), "HEAD has no body"


def test_it_listens_where_it_is_told(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), "--metrics-listen", "[::1]:0")
    assert server.metrics_address.startswith("[::1]:")
    assert get(server, "/")[0] == 200


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1440, 900)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(server: PrivateServer, tmp_path: Path, width: int, height: int, scheme: str) -> None:
    with browser(tmp_path) as page:
        page.open(f"http://{server.metrics_address}/", width=width, height=height, scheme=scheme)
        page.wait_until("document.querySelectorAll('.policy').length === 2")
        page.screenshot(SCREENSHOTS / f"status-{width}-{scheme}.png")
        text = page.evaluate("document.body.innerText")
        for shown in ("metaworld-six", "a20173bc09f2", "drawer-close-v3: 100 % of 3", "failure", "response", "p99"):
            assert shown in text
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
        assert page.evaluate("[...document.querySelectorAll('.card')].every(c => c.scrollWidth <= c.clientWidth + 1)")
        # What a client wrote is text.
        assert "<script>alert(1)</script>" in page.evaluate("document.body.textContent")
        assert page.evaluate("document.querySelectorAll('main script, main b b').length") == 0
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (light == "rgb(246, 247, 249)") == (scheme == "light")
        # It draws anew by itself.
        asked = page.evaluate("performance.getEntriesByName(new URL('status.json', location).href).length")
        page.wait_until(f"performance.getEntriesByName(new URL('status.json', location).href).length > {asked}")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        print(f"first contentful paint at {width} px: {paint:.0f} ms")
        assert not page.complaints()
        assert {url.split("/")[2] for url in page.requested() if url != "about:blank"} == {server.metrics_address}
