"""Demonstrations larger than what may be held: mapped from shards, and the same to training."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from chunkcast.training.checkpoint import LAST_CHECKPOINT, read_checkpoint, write_checkpoint
from chunkcast.training.collect.cli import CollectConfig, collect_command
from chunkcast.training.demonstrations import mapped
from chunkcast.training.demonstrations.mapped import mapped_columns
from chunkcast.training.demonstrations.memory import Memory
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.errors import CheckpointError, DemonstrationsError
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer

NOTHING = Memory(0.0)
CPU = torch.device("cpu")


def test_mapped_columns_are_those_in_memory(
    demonstrations_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "SHARD_ROWS", 100)
    held = read_demonstrations(demonstrations_folder)
    there = read_demonstrations(demonstrations_folder, Memory(0.0, tmp_path))
    assert there.states.mapped
    assert not held.states.mapped
    assert len(there.states.shards) == -(-len(held.states) // 100) > 2
    for name in ("states", "actions", "executed"):
        np.testing.assert_array_equal(getattr(there, name), getattr(held, name))
    assert there.episode_tasks == held.episode_tasks


def test_vectors_of_several_lengths_are_refused(tmp_path: Path) -> None:
    files = []
    for width in (2, 1):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(3 * width, np.float32)), width)
        files.append(tmp_path / f"{width}.parquet")
        pq.write_table(pa.table({"x": vectors}), files[-1])
    with pytest.raises(DemonstrationsError, match=r"the vectors of states in .* are not all as long"):
        mapped_columns(files, {"states": ("x",)}, tmp_path / "mapped")


def test_a_copy_goes_with_its_table(tmp_path: Path) -> None:
    config = CollectConfig(out=tmp_path, tasks=("drawer-close-v3",), episodes=1, workers=1)
    collect_command(config)
    read_demonstrations(tmp_path, NOTHING)
    (old,) = tmp_path.glob("mapped-*")
    collect_command(replace(config, seed=1, overwrite=True))
    assert not old.exists()


def test_a_copy_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "SHARD_ROWS", 10)
    values = np.arange(70, dtype=np.float32).reshape(35, 2)
    files = []
    for number, part in enumerate(np.split(values, [22])):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), 2)
        files.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table({"x": vectors}), files[-1])
    folder = tmp_path / "mapped"
    whole = mapped_columns(files, {"states": ("x",)}, folder)["states"]
    np.testing.assert_array_equal(whole, values)
    assert [len(shard) for shard in whole.shards] == [10, 10, 2, 10, 3]
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    written = (folder / "shard-00000.safetensors").stat().st_mtime_ns
    (folder / "shard-00001.safetensors").unlink()
    (folder / "shard-00004.safetensors").unlink()
    np.testing.assert_array_equal(mapped_columns(files, {"states": ("x",)}, folder)["states"], values)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert (folder / "shard-00000.safetensors").stat().st_mtime_ns == written


def test_where_no_copy_can_be_written(demonstrations_folder: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DemonstrationsError, match="name another place with --mapped-folder"):
        read_demonstrations(demonstrations_folder, Memory(0.0, blocked))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit stands for a full disk on Linux")
def test_a_full_disk_leaves_nothing(demonstrations_folder: Path, small_run: Path, tmp_path: Path) -> None:
    whole = read_checkpoint(small_run / LAST_CHECKPOINT)
    file = tmp_path / LAST_CHECKPOINT
    file.parent.mkdir(parents=True)
    file.write_bytes(b"the one before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(DemonstrationsError, match="make room, or name another place with --mapped-folder"):
            read_demonstrations(demonstrations_folder, Memory(0.0, tmp_path))
        with pytest.raises(CheckpointError, match=r"cannot be written .*; make room"):
            write_checkpoint(file, whole)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == b"the one before"
    assert not [each for each in tmp_path.rglob("*") if "writing" in each.name]


def test_training_from_mapped_shards_is_training_from_memory(small_config: TrainConfig, tmp_path: Path) -> None:
    def trained(memory_gb: float) -> Trainer:
        config = replace(small_config, out=tmp_path / f"run-{memory_gb}", data_memory_gb=memory_gb, epochs=2)
        config = replace(config, mapped_folder=tmp_path)
        trainer = Trainer(config, read_demonstrations(config.data, config.memory), CPU, bf16=False)
        trainer.run(lambda record, findings: None)
        return trainer

    held, there = trained(4.0), trained(0.0)
    assert held.run_facts["history"][-1]["train_loss"] == there.run_facts["history"][-1]["train_loss"]
    for name, value in held.policy.state_dict().items():
        assert torch.equal(value, there.policy.state_dict()[name]), name


ANONYMOUS = """
import sys, pathlib, numpy as np, torch
from chunkcast.training.demonstrations.mapped import mapped_columns

def anonymous():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

rows = mapped_columns([pathlib.Path(sys.argv[1])], {"x": ("x",)}, pathlib.Path(sys.argv[2]))["x"]
before = anonymous()
order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
total = sum(float(rows.take(part).double().sum()) for part in order.split(4096))
print(total, anonymous() - before)
"""


def test_a_table_is_read_without_being_held(tmp_path: Path) -> None:
    """All 200 MB of it once, in random order: pages of the file, and next to nothing of the process's own."""
    rows = 200_000
    values = np.random.default_rng(0).standard_normal((rows, 256), dtype=np.float32)
    table = tmp_path / "table.parquet"
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 256)
    pq.write_table(pa.table({"x": vectors}), table, compression="none", row_group_size=20_000)
    command = [sys.executable, "-c", ANONYMOUS, str(table), str(tmp_path / "mapped")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert float(printed[0]) == pytest.approx(float(values.astype(np.float64).sum()), rel=1e-9)
    assert float(printed[1]) < 40.0, f"{printed[1]} MB of {values.nbytes / 2**20:.0f} MB were held"
