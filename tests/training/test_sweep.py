"""A sweep: a grid of settings trained and played, and a table that says which are better."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chunkcast.training.errors import TrainingError
from chunkcast.training.history import read_history
from chunkcast.training.sweep.cli import SweepConfig, sweep_command
from chunkcast.training.sweep.grid import grid_of
from chunkcast.training.sweep.ranking import Result, as_good_as_the_first, ranked
from chunkcast.training.train_config import TrainConfig
from tests.training.foreign_set import Foreign

PROGRAM = Path(sys.executable).parent / "chunkcast-sweep"


def flags_of(config: TrainConfig, epochs: int) -> list[str]:
    return [
        *("--data", str(config.data), "--epochs", str(epochs), "--batch-size", "32", "--blocks", "1"),
        *("--warmup-steps", "5", "--device", "cpu", "--precision", "fp32"),
    ]


def test_a_grid_is_every_combination() -> None:
    points = grid_of(["learning-rate=1e-3,3e-3", "--width=32,64", "differences=true,false"])
    assert len(points) == 8
    assert points[0].name == "learning-rate=1e-3,width=32,differences=true"
    assert points[1].flags == ["--learning-rate", "1e-3", "--width", "32", "--no-differences"]
    assert [point.name for point in grid_of([])] == [""]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["learning-rate"], "no axis, expected FLAG=VALUE,VALUE"),
        (["learning-rate="], "no axis"),
        (["width=1,1"], "twice"),
        (["width=1", "--width=2"], "twice"),
        (["out=a,b"], "cannot vary --out"),
        (["instructions=a/b,a_b", "seed=0"], "would share the folder instructions=a_b,seed=0; rename one"),
        (["seed=" + ",".join(map(str, range(300)))], "makes 300 runs, at most 200"),
    ],
)
def test_what_is_no_grid(axes: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        grid_of(axes)


def test_runs_are_ranked_by_success_then_by_their_actions() -> None:
    best = Result("best", {}, 0.9, 9, 10, (0.6, 0.98), 0.3)
    close = Result("close", {}, 0.9, 9, 10, (0.6, 0.98), 0.4)
    worse = Result("worse", {}, 0.1, 1, 10, (0.02, 0.4), 0.1)
    failed = Result("failed", {}, failed="it diverged")
    order = ranked([failed, worse, close, best])
    assert [result.name for result in order] == ["best", "close", "worse", "failed"]
    assert as_good_as_the_first(order) == [True, True, False, False]


def test_a_sweep_trains_plays_and_ranks(
    small_config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SweepConfig(tmp_path / "sweep", grid=("width=32",), episodes=1)
    # Its run is there already: the command goes on.
    train = flags_of(small_config, 2)
    sweep_command(replace(config, episodes=0), train)
    written = (tmp_path / "sweep/width=32/checkpoints/last.safetensors").stat().st_mtime_ns
    sweep_command(config, train)
    assert (tmp_path / "sweep/width=32/checkpoints/last.safetensors").stat().st_mtime_ns == written
    facts = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert facts["first_seed"] == 500_000
    assert {run["name"] for run in facts["runs"]} == {"width=32"}
    for run in facts["runs"]:
        assert run["episodes"] == 2
        assert 0.0 <= run["ci95"][0] <= run["success_rate"] <= run["ci95"][1] <= 1.0
        assert run["validation_action_mse"] > 0.0
    assert "width" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["a terminal", "a supervisor"])
def test_an_interrupted_sweep_goes_on(by: str, small_config: TrainConfig, tmp_path: Path) -> None:
    # Tests that a shell runs in its background ignore it, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = tmp_path / "sweep"
    command = [str(PROGRAM), "--out", str(out), "--grid", "seed=0,1", "--episodes", "0", "--"]
    command += flags_of(small_config, 400)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                break
        training = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert training
        if by == "a terminal":
            os.killpg(process.pid, signal.SIGINT)  # to all that it started
        else:
            process.terminate()
        rest = process.stderr.read()
        assert process.wait(30) == 130, rest
    assert "interrupted: 0 of 2 runs are done; the same command goes on" in rest
    done = len(read_history(out / "seed=0"))
    assert done >= 2
    assert not (out / "seed=1").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in training)


def test_a_bad_flag_is_refused_before_anything_is_trained(small_config: TrainConfig, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        command = [str(PROGRAM), "--out", str(tmp_path / "sweep"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr + done.stdout

    data = ["--", "--data", str(small_config.data)]
    assert "--epochs must be at least 1" in refused("--grid", "epochs=1,0", *data)
    assert "expected them after two dashes" in refused("--grid", "epochs=1")
    elsewhere = refused("--grid", "epochs=1", "--", "--data", str(Foreign(tmp_path / "set").write()))
    assert "'pick up the cube'" in elsewhere
    assert "what is none of MetaWorld's is not played here: pass --episodes 0" in elsewhere
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_goes_on_past_a_run_that_fails(small_config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    command = [str(PROGRAM), "--out", str(out), "--grid", "learning-rate=1e30,1e-3", "--episodes", "0", "--"]
    done = subprocess.run([*command, *flags_of(small_config, 1)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "training diverged" in done.stderr
    assert "learning-rate=1e30 failed: chunkcast-train ended with 2" in done.stdout
    facts = json.loads((out / "sweep.json").read_text())
    assert [run["name"] for run in facts["runs"]] == ["learning-rate=1e-3", "learning-rate=1e30"]
    assert facts["runs_asked_for"] == 2
