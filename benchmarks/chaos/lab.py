"""What a scenario has at hand, and what it tells."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.served import Served

LATE_MS = 250.0
"""Twenty control periods: far above what the simulation's step and this machine's other programs take, and far below
any wait for an answer that does not come."""

SMALL_BUNDLE = Path("policies/metaworld-six")


@dataclass
class Outcome:
    """What came of a scenario.

    Attributes:
        checks: what should hold, and whether it did.
        in_time: the same of what depends on this machine's speed, which no test asserts.
        facts: what was measured.
        skipped: why it could not be played here.
    """

    checks: dict[str, bool] = field(default_factory=dict)
    in_time: dict[str, bool] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""

    def check(self, what: str, holds: bool) -> None:
        """Note whether something holds."""
        self.checks[what] = holds

    def check_controlled(self) -> None:
        """The arm never stopped, and no tick came later than a control loop may be held up."""
        self.check("it never stopped", not self.facts["ticks"]["stopped"])
        self.in_time[f"no tick came more than {LATE_MS:g} ms after the one before"] = (
            self.facts["longest_between_ticks_ms"] <= LATE_MS
        )

    def check_undisturbed(self) -> None:
        """The arm had an action of a chunk at every tick."""
        self.check_controlled()
        self.in_time["it had a chunk's action at every tick"] = self.facts["rested_since"] == 0

    @property
    def good(self) -> bool:
        """Whether everything holds."""
        return all(self.checks.values()) and all(self.in_time.values())


@dataclass
class Lab:
    """A folder, and servers in it.

    Attributes:
        folder: for files.
        bundle: the policy that is played.
        pause: seconds that a thing stays broken.
    """

    folder: Path
    bundle: Path = SMALL_BUNDLE
    pause: float = 3.0

    def served(self, *arguments: str | Path, **settings: Any) -> Served:
        """A server, not yet started; with ``--bundle`` unless the arguments name a store."""
        given = arguments if "--store" in arguments else ("--bundle", self.bundle, *arguments)
        return Served(*given, log=self.folder / "server.log", **settings)

    def store(self, folder: Path | None = None) -> Path:
        """A store with a copy of the bundle, called ``one``."""
        store = folder or self.folder / "store"
        store.mkdir(exist_ok=True)
        shutil.copytree(self.bundle, store / "one")
        return store


Scenario = Callable[[Lab], Outcome]


def another_version(bundle: Path, version: str) -> None:
    """Call the bundle in a folder another version of its policy."""
    spec = json.loads((bundle / "policy.json").read_text())
    spec["version"] = version
    (bundle / "policy.json").write_text(json.dumps(spec))


def until(holds: Callable[[], bool], what: str, timeout: float = 60.0) -> float:
    """Wait until something holds; returns the seconds that it took."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() > began + timeout:
            raise TimeoutError(f"waited {timeout:g} s for this: {what}")
        time.sleep(0.02)
    return time.monotonic() - began


def metrics(served: Served) -> str:
    """The text of a server's metrics page."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{served.metrics_address}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def resident_mb(pid: int) -> float:
    """A process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def open_files(pid: int) -> int:
    """A process's file descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
