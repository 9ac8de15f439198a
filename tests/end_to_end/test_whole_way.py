"""Demonstrations to success through the server, with the console scripts that users run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import pytest

from chunkcast.client.private_server import PrivateServer
from tests.conftest import ROOT, SHIPPED_BUNDLE, require_gl

SCRIPTS = Path(sys.executable).parent
CHOICE_SEED = 500_000
"""Not the evaluation seeds: a test is looked at while developing."""


def run(script: str, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [SCRIPTS / script, *map(str, arguments)], capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result


def test_collect_train_export_serve_simulate(tmp_path: Path) -> None:
    """One easy task, a small network and half a minute: enough to solve what an untrained policy never does."""
    data, runs, bundle = tmp_path / "data", tmp_path / "run", tmp_path / "drawer"
    run("chunkcast-collect", "--out", data, "--tasks", "drawer-close-v3", "--episodes", "12")
    small = ("--width", "128", "--blocks", "2", "--batch-size", "128", "--epochs", "25", "--warmup-steps", "20")
    trained = run("chunkcast-train", "--data", data, "--out", runs, *small)
    assert "A low loss proves no success" in trained.stdout
    run("chunkcast-export", "--run", runs, "--out", bundle)
    played = ("--episodes", "6", "--seed", str(CHOICE_SEED), "--json", tmp_path / "s")
    result = run("chunkcast-sim", "--bundle", bundle, *played)
    assert "drawer-close-v3" in result.stdout
    summary = json.loads((tmp_path / "s").read_text())
    assert summary["success_rate"] >= 0.5
    assert summary["tasks"]["drawer-close-v3"]["episodes"] == 6
    assert not summary["seeds_seen_in_training"]
    assert not summary["expected"]  # the seed's table, which every bundle has, promises nothing
    checked = run("chunkcast-health", "check", runs, "--json", tmp_path / "findings.json", code=0)
    assert "Success is measured with chunkcast-sim" in checked.stdout


def test_the_shipped_policy_succeeds_through_the_server(shipped_server: PrivateServer, tmp_path: Path) -> None:
    """Protects the README's table: 98.5 % on average. Fewer than 90 % of 60 would be no accident."""
    file = tmp_path / "result.json"
    arguments = ("--episodes", "10", "--seed", str(CHOICE_SEED), "--json", file)
    run("chunkcast-sim", "--server", shipped_server.address, *arguments)
    summary = json.loads(file.read_text())
    assert summary["success_rate"] >= 0.9
    assert len(summary["tasks"]) == 6
    assert set(summary["expected"]) == {"all", *summary["tasks"]}
    assert summary["expected"]["all"]["source"] == "measured"
    for facts in summary["tasks"].values():
        assert facts["episodes"] == 10
        low, high = facts["ci95"]
        assert low <= facts["successes"] / facts["episodes"] <= high
        assert facts["successes"] + len(facts["failed_seeds"]) == 10
    latency = summary["chunk_latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]


def test_the_same_seeds_give_the_same_episodes(shipped_server: PrivateServer, tmp_path: Path) -> None:
    """Simulation and sampler both follow from the seed, whatever the number of workers."""
    played = []
    for workers in (1, 2):
        file = tmp_path / f"{workers}.json"
        arguments = ("--tasks", "pick-place-v3", "--episodes", "4", "--workers", str(workers), "--json", file)
        run("chunkcast-sim", "--server", shipped_server.address, "--seed", str(CHOICE_SEED), *arguments)
        facts = json.loads(file.read_text())["tasks"]["pick-place-v3"]
        assert facts["successes"] > 0
        played.append(facts)
    assert played[0] == played[1]


def test_seeds_of_the_demonstrations_are_warned_of(shipped_server: PrivateServer, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    arguments = ("--tasks", "drawer-close-v3", "--episodes", "1", "--seed", "0", "--json", file)
    result = run("chunkcast-sim", "--server", shipped_server.address, *arguments)
    assert "were demonstrated in training" in result.stderr
    assert json.loads(file.read_text())["seeds_seen_in_training"]


# imageio closes its pipes to ffmpeg only when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_video(tmp_path: Path) -> None:
    require_gl()
    arguments = ("--tasks", "drawer-close-v3", "--episodes", "1", "--seed", str(CHOICE_SEED), "--video", tmp_path)
    run("chunkcast-sim", "--bundle", SHIPPED_BUNDLE, *arguments)
    (file,) = tmp_path.iterdir()
    frames = iio.imread(file, plugin="FFMPEG")
    assert file.name == f"drawer-close-v3-{CHOICE_SEED}.mp4"
    assert frames.shape[1:] == (368, 320, 3)
    assert len(frames) > 5
    assert frames[0].std() > 10, "the first frame is nearly one colour"
    assert (frames[0] != frames[-1]).any()


def test_bad_input_is_one_line(shipped_server: PrivateServer, tmp_path: Path) -> None:
    unknown = run("chunkcast-sim", "--server", shipped_server.address, "--tasks", "fly-v3", code=2)
    assert unknown.stderr.startswith("error: metaworld-six does not know 'fly-v3'; expected some of button-press")
    for arguments, message in (
        (("--execute-steps", "99"), "error: --execute-steps is 99, expected 1 to 16, the horizon of metaworld-six"),
        (
            ("--fault", "dark"),
            "error: --fault dark changes nothing that metaworld-six is shown; expected one of sensor-",
        ),
        (("--json", tmp_path), "a folder; expected a file"),
        (("--json", "/proc/nothing/x.json"), "error: /proc/nothing cannot be written"),
    ):
        refused = run("chunkcast-sim", "--server", shipped_server.address, *arguments, code=2)
        assert message in refused.stderr
        assert refused.stderr.count("\n") == 1
    neither = run("chunkcast-sim", code=2)
    assert neither.stderr == "error: give either --server HOST:PORT or --bundle DIR\n"
    missing = run("chunkcast-sim", "--bundle", tmp_path, code=2)
    assert "policy.json is missing" in missing.stderr
    assert missing.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_process_is_left_behind(number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [SCRIPTS / "chunkcast-sim", "--bundle", SHIPPED_BUNDLE, "--episodes", "500", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    # A server, the pool's resource tracker and two workers.
    while len(pids := children.read_text().split()) < 4:
        assert time.monotonic() < deadline, "the simulation did not start"
        time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    if number != signal.SIGKILL:
        assert stderr.splitlines()[-1] == "interrupted"
        assert "Traceback" not in stderr
    deadline = time.monotonic() + 20
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"{alive} outlived {number.name}"
        time.sleep(0.1)


def test_make_help_lists_the_commands() -> None:
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "bench", "proto", "policy", "evaluate"):
        assert f"\n{target} " in f"\n{result.stdout}"
