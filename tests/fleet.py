"""A real Prometheus whose clock, as far as its rules are concerned, runs thirty times faster."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, required_program

OBSERVABILITY = ROOT / "server" / "observability"
FASTER = 30
START_SECONDS = 60.0


def hurried(text: str) -> str:
    """The durations of rules and configuration, divided by ``FASTER``: ``[5m]`` is ``[10s]``, ``2m`` ``4s``."""

    def divide(match: re.Match[str]) -> str:
        seconds = int(match["number"]) * {"s": 1, "m": 60, "h": 3600}[match["unit"]]
        return f"{match['before']}{seconds * 1000 // FASTER}ms{match['after']}"

    # In range selectors and after the keys that hold durations; names such as ratio_rate5m stay.
    places = r"(?P<before>\[|(?:for|\w+_interval|\w+_timeout): )(?P<number>\d+)(?P<unit>[smh])(?P<after>\]|\s|$)"
    return re.sub(places, divide, text, flags=re.MULTILINE)


class Prometheus:
    """A running one."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **parameters: Any) -> Any:
        """The data of an API call."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=10) as answer:
            found = json.loads(answer.read())
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result

    def firing(self) -> set[tuple[str, str]]:
        """Alerts that fire now: name, and the policy, or else the instance, that they are about."""
        alerts = (each for each in self.get("alerts")["alerts"] if each["state"] == "firing")
        return {(each["labels"]["alertname"], _subject(each["labels"])) for each in alerts}

    def ever_pending(self, selector: str) -> set[str]:
        """The names of alerts that were pending or firing at any time since the start."""
        found = self.query(f"count by (alertname) (count_over_time(ALERTS{{{selector}}}[1h]))")
        return {each["metric"]["alertname"] for each in found}

    def ever_fired(self, selector: str) -> set[str]:
        """The names of alerts that fired at any time since the start."""
        return self.ever_pending(f'{selector}, alertstate="firing"')


def _subject(labels: dict[str, str]) -> str:
    return labels.get("policy") or labels.get("instance", "")


@contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Debian's Prometheus with the project's own configuration and rules, hurried, on ``targets``."""
    for file in ("recording_rules.yml", "alerts.yml"):
        (folder / file).write_text(hurried((OBSERVABILITY / file).read_text()))
    configuration = hurried((OBSERVABILITY / "prometheus.yml").read_text())
    configuration = re.sub(r"(?s)alerting:.*?(?=scrape_configs:)", "", configuration)
    configuration = configuration.replace('["127.0.0.1:9100"]', json.dumps(list(targets)))
    # A scrape must end within its interval.
    configuration = configuration.replace("global:\n", "global:\n  scrape_timeout: 500ms\n")
    (folder / "prometheus.yml").write_text(configuration)
    port = _free_port()
    command = [required_program("prometheus", "prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        running = Prometheus(f"127.0.0.1:{port}")
        _wait_ready(running, process, folder / "prometheus.log")
        yield running
    finally:
        process.terminate()
        process.wait(30)


def _wait_ready(running: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            running.query("vector(1)")
        except OSError:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < give_up, "prometheus did not start"
            time.sleep(0.1)
        else:
            return


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
