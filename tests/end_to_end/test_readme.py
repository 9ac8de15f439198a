"""The README's robot controller, run as it is written, against the real server."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from chunkcast.client.private_server import PrivateServer
from tests.conftest import ROOT

# What the README leaves to the reader's robot: its sensors, its drives, and whether the puck is where it should be.
ROBOT = """
ticks = 0
def read_sensors(): return [0.1] * 39
def send_setpoint(action):
    global ticks
    assert action.shape == (4,) and abs(action).max() <= 1
    ticks += 1
def engage_brakes(): print("stopped after", ticks)
def puck_is_at_goal(): return ticks >= 9
"""


def test_the_controller_runs(shipped_server: PrivateServer, tmp_path: Path) -> None:
    controller = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert controller
    assert len(controller[1].splitlines()) < 25
    program = tmp_path / "controller.py"
    program.write_text(ROBOT + controller[1].replace("127.0.0.1:50051", shipped_server.address))
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "stopped after 9\n"), result.stderr
    with urllib.request.urlopen(f"http://{shipped_server.metrics_address}/metrics", timeout=10) as page:
        assert 'outcome="success",policy="metaworld-six",task="pick-place-v3"' in page.read().decode()
