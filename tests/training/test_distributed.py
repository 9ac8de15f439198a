"""Processes that train together, started by torchrun: the run of one process, shared."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chunkcast.training.checkpoint import LAST_CHECKPOINT, read_checkpoint
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.distributed import Processes, by_environment
from chunkcast.training.draws import Draws
from chunkcast.training.errors import TrainingError
from chunkcast.training.history import read_history
from chunkcast.training.run_identity import ROUNDED_OTHERWISE, gone_on
from chunkcast.training.train_cli import train_command
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer

TORCHRUN = Path(sys.executable).parent / "torchrun"


def flags_of(config: TrainConfig, out: Path, **changes: Any) -> list[str]:
    settings = {
        "data": config.data,
        "out": out,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "width": config.width,
        "blocks": config.blocks,
        "warmup_steps": config.warmup_steps,
        "observation_steps": config.observation_steps,
        "device": "cpu",
        "precision": "fp32",
        **changes,
    }
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def train_with_two(flags: list[str]) -> subprocess.CompletedProcess[str]:
    command = [str(TORCHRUN), "--standalone", "--nproc-per-node", "2", "-m", "chunkcast.training.train_cli", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def shared_run(small_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "run"
    done = train_with_two(flags_of(small_config, out))
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr
    assert done.stdout.count("all epochs done") == 1  # one of them speaks
    return out


def test_two_processes_learn_what_one_does(shared_run: Path, small_config: TrainConfig, tmp_path: Path) -> None:
    alone = replace(small_config, out=tmp_path / "alone", precision="fp32")
    train_command(alone)
    one, two = read_history(alone.out), read_history(shared_run)
    assert len(one) == len(two) == small_config.epochs
    for mine, theirs in zip(one, two, strict=True):
        for name, value in mine.measurements().items():
            assert getattr(theirs, name) == pytest.approx(value, rel=1e-3), name
    weights, shared = (read_checkpoint(run / LAST_CHECKPOINT).part("ema") for run in (alone.out, shared_run))
    for name, value in weights.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-2, atol=1e-4)


def test_two_machines_learn_what_one_does(shared_run: Path, small_config: TrainConfig, tmp_path: Path) -> None:
    """They share no memory: the gradients go round."""
    flags = flags_of(small_config, tmp_path / "run")
    for done in run_without_torchrun([sys.executable, "-m", "chunkcast.training.train_cli", *flags], machines=2):
        assert done.returncode == 0, done.stderr
    for mine, theirs in zip(read_history(shared_run), read_history(tmp_path / "run"), strict=True):
        for name, value in mine.measurements().items():
            assert getattr(theirs, name) == pytest.approx(value, rel=1e-3), name


def test_it_resumes_as_if_it_had_not_been_interrupted(
    shared_run: Path, small_config: TrainConfig, tmp_path: Path
) -> None:
    flags = flags_of(small_config, tmp_path / "run")
    lost, ended = run_without_torchrun([sys.executable, "-c", STOP_AFTER_TWO, *flags])
    assert ended.returncode == 3
    # torchrun would have ended the other too; without, it says whom it misses.
    assert lost.returncode == 2
    assert "error: process 0 of 2 has lost another one" in lost.stderr
    assert "Traceback" not in lost.stderr
    assert len(read_history(tmp_path / "run")) == 2
    resumed = train_with_two([*flags, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    whole, again = (read_checkpoint(run / LAST_CHECKPOINT) for run in (shared_run, tmp_path / "run"))
    assert whole.tensors.keys() == again.tensors.keys()
    for name, value in whole.tensors.items():
        assert torch.equal(value, again.tensors[name]), name
    for one, other in zip(read_history(shared_run), read_history(tmp_path / "run"), strict=True):
        assert one.measurements() == other.measurements()


def run_without_torchrun(
    command: list[str], count: int = 2, machines: int = 1
) -> list[subprocess.CompletedProcess[str]]:
    """All of them, by rank; ``machines`` is what they are told."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    local = count // machines
    of_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(local)}

    def run(rank: int) -> subprocess.CompletedProcess[str]:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank % local), "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **of_all, **own}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_another_number_of_processes_is_noticed(shared_run: Path, small_config: TrainConfig) -> None:
    config = replace(small_config, out=shared_run, precision="fp32", resume=True)
    demonstrations = read_demonstrations(config.data)
    trainer = Trainer(config, demonstrations, torch.device("cpu"), False)
    assert not trainer.goes_on_as_it_began
    # And by those who go on with what it wrote, with as many processes as the run was begun by.
    assert gone_on({"processes": 2, "shares_memory": True}, trainer.run_facts)[ROUNDED_OTHERWISE]


STOP_AFTER_TWO = """
import os, sys
from chunkcast.training import trainer
from chunkcast.training.train_cli import main

finish = trainer.Trainer._finish_epoch

def stopping(self, record):
    finish(self, record)
    if record.epoch == 2 and not self.processes.writes:
        os._exit(3)

trainer.Trainer._finish_epoch = stopping
sys.argv[0] = "chunkcast-train"
main()
"""


def test_messages_go_round_in_order_until_one_has_ended() -> None:
    for rank, done in enumerate(run_without_torchrun([sys.executable, "-c", EXCHANGE], 3)):
        assert done.returncode == 0, done.stderr
        *rounds, last = done.stdout.splitlines()
        assert rounds == [f"0/{number},1/{number},2/{number}" for number in range(50)]
        assert last.startswith(f"process {rank} of 3 has lost another one" if rank else "ended")


EXCHANGE = """
import torch
from chunkcast.training.distributed import by_environment, joined
from chunkcast.training.errors import TrainingError
from chunkcast.training.local_exchange import LocalExchange

processes = by_environment()
with joined(processes, torch.device("cpu")):
    exchange = LocalExchange(processes)
    for number in range(50):
        print(b",".join(exchange.exchanged(f"{processes.rank}/{number}".encode())).decode())
    try:
        if processes.rank:
            exchange.wait()
        print("ended")
    except TrainingError as error:
        print(error)
    del exchange  # its sockets are closed
"""


def test_a_batch_that_cannot_be_shared_is_refused(small_config: TrainConfig) -> None:
    demonstrations = read_demonstrations(small_config.data)
    with pytest.raises(TrainingError, match="--batch-size 32 cannot be shared by 3 processes; take a multiple"):
        Trainer(small_config, demonstrations, torch.device("cpu"), False, Processes(0, 3))


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(TrainingError, match="start with torchrun, or unset WORLD_SIZE"):
        by_environment()


@pytest.mark.parametrize("processes", [2, 3])
def test_the_draws_of_all_are_the_draws_of_one(processes: int) -> None:
    def drawn(rank: int, count: int, size: int) -> list[torch.Tensor]:
        draws = Draws(torch.Generator().manual_seed(3), rank, count)
        return [draws.normal(size, 4), draws.uniform(size), draws.integers(0, 9, size, 2)]

    whole = drawn(0, 1, 12)
    parts = [drawn(rank, processes, 12 // processes) for rank in range(processes)]
    for kind, together in enumerate(whole):
        rebuilt = torch.stack([part[kind] for part in parts], 1).flatten(0, 1)
        assert torch.equal(rebuilt, together)
    counts = [Draws(torch.Generator(), rank, processes).own_of_first(7) for rank in range(processes)]
    assert sum(counts) == 7
