"""LeRobotDataset v3: what is written is read back, other people's sets are read too, and bad ones are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from chunkcast.training.checkpoint import LAST_CHECKPOINT, load_policy, read_checkpoint
from chunkcast.training.collect.cli import CollectConfig, collect_command
from chunkcast.training.demonstrations.episodes import joined
from chunkcast.training.demonstrations.lerobot import writer as writer_module
from chunkcast.training.demonstrations.lerobot.episode_statistics import ColourCounts
from chunkcast.training.demonstrations.lerobot.videos import read_pictures
from chunkcast.training.demonstrations.memory import Memory
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.errors import CheckpointError, DemonstrationsError, TrainingError
from chunkcast.training.train_cli import train_command
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer
from tests.training.conftest import EPISODES, TASKS
from tests.training.foreign_set import FPS, Foreign

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def lerobot_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstrations of ``demonstrations_folder`` as a LeRobotDataset."""
    folder = tmp_path_factory.mktemp("lerobot") / "two"
    collect_command(CollectConfig(out=folder, format="lerobot", tasks=TASKS, episodes=EPISODES, workers=2))
    return folder


def test_what_is_written_is_read_back(lerobot_folder: Path, demonstrations_folder: Path) -> None:
    native, read = read_demonstrations(demonstrations_folder), read_demonstrations(lerobot_folder)
    for name in ("states", "actions", "executed", "episode_index"):
        np.testing.assert_array_equal(getattr(read, name), getattr(native, name))
    assert read.episode_tasks == native.episode_tasks
    assert read.episode_seeds == native.episode_seeds
    for key in ("state", "action", "control_rate_hz", "first_seed", "last_seed", "tasks", "frames", "episodes"):
        assert read.manifest[key] == native.manifest[key], key


def test_a_policy_trained_from_it_is_the_same(lerobot_folder: Path, small_config: TrainConfig, tmp_path: Path) -> None:
    def trained(data: Path) -> Trainer:
        config = replace(small_config, data=data, out=tmp_path / data.parent.name, epochs=1)
        trainer = Trainer(config, read_demonstrations(data), CPU, bf16=False)
        trainer.run(lambda record, findings: None)
        return trainer

    native, read = trained(small_config.data), trained(lerobot_folder)
    for name, value in native.policy.state_dict().items():
        assert torch.equal(value, read.policy.state_dict()[name]), name


def test_it_follows_lerobots_conventions(lerobot_folder: Path) -> None:
    info = json.loads((lerobot_folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["fps"] == 80
    assert info["features"]["observation.state"]["shape"] == [39]
    assert info["features"]["action"]["names"] == ["hand_dx", "hand_dy", "hand_dz", "gripper_effort"]
    # lerobot learns every feature that begins with these.
    assert [name for name in info["features"] if name.startswith("action")] == ["action"]
    table = pq.read_table(lerobot_folder / "data/chunk-000/file-000.parquet")
    assert table.schema.field("observation.state").type == pa.list_(pa.float32(), 39)
    assert table["index"].to_pylist() == list(range(info["total_frames"]))
    np.testing.assert_allclose(table["timestamp"], np.array(table["frame_index"]) / 80, rtol=1e-6)
    tasks = pq.read_table(lerobot_folder / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert tasks["task"].to_pylist() == ["close the drawer", "pick up the puck and place it at the goal"]
    stats = json.loads((lerobot_folder / "meta/stats.json").read_text())
    np.testing.assert_allclose(stats["action"]["mean"], np.stack(table["action"].to_pylist()).mean(0), rtol=1e-6)
    episodes = pq.read_table(lerobot_folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [episode["dataset_from_index"] for episode in episodes[1:]] == [
        episode["dataset_to_index"] for episode in episodes[:-1]
    ]
    assert episodes[0]["tasks"] == ["close the drawer"]


def test_rows_beyond_a_files_size_go_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "DATA_FILE_MB", 0.02)
    monkeypatch.setattr(writer_module, "FILES_OF_A_CHUNK", 2)
    collect_command(
        CollectConfig(out=tmp_path / "set", format="lerobot", tasks=("drawer-close-v3",), episodes=4, workers=1)
    )
    files = sorted(str(file.relative_to(tmp_path / "set/data")) for file in (tmp_path / "set/data").rglob("*.parquet"))
    assert files == [
        "chunk-000/file-000.parquet",
        "chunk-000/file-001.parquet",
        "chunk-001/file-000.parquet",
        "chunk-001/file-001.parquet",
    ]
    read = read_demonstrations(tmp_path / "set")
    assert len(read.episode_tasks) == 4
    assert np.array_equal(read.states, read_demonstrations(tmp_path / "set", Memory(0.0, tmp_path / "mapped")).states)


def test_no_writing_leaves_halves(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with pytest.raises(TrainingError, match="a picture for every tick"):
        CollectConfig(out=folder, format="lerobot", frames="fast", every=2)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="holds other files"):
        collect_command(CollectConfig(out=folder, format="lerobot", tasks=TASKS, episodes=1, workers=1))
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_another_robots_set(tmp_path: Path) -> None:
    foreign = Foreign(tmp_path / "set")
    read = read_demonstrations(foreign.write())
    np.testing.assert_array_equal(read.states, foreign.states)
    np.testing.assert_array_equal(read.executed, foreign.actions)
    assert read.tasks == foreign.names
    assert read.manifest["control_rate_hz"] == FPS
    assert [name for name, _ in read.manifest["state"]["elements"]] == [f"joint_{n}" for n in range(6)]
    assert [name for name, *_ in read.manifest["action"]["elements"]] == ["action_0", "action_1", "action_2"]
    low, high = read.action_bounds
    np.testing.assert_array_equal(low, foreign.actions.min(0))
    np.testing.assert_array_equal(high, foreign.actions.max(0))


def test_an_episode_is_cut_where_its_task_changes(tmp_path: Path) -> None:
    foreign = Foreign(tmp_path / "set")
    foreign.task_index[3:8] = 1
    read = read_demonstrations(foreign.write())
    assert np.bincount(read.episode_index).tolist() == [3, 5, 6, 7, 9]
    assert read.episode_tasks == tuple(foreign.names[task] for task in (0, 1, 1, 1, 0))


def test_its_videos_are_seen(tmp_path: Path) -> None:
    foreign = Foreign(tmp_path / "set")
    foreign.task_index[3:8] = 1  # five episodes from lerobot's four
    config = TrainConfig(
        data=foreign.write(),
        out=tmp_path / "run",
        epochs=1,
        batch_size=8,
        width=32,
        blocks=1,
        cameras=("front",),
        image_size=16,
        proprioception=6,
        privileged_weight=0.0,
        device="cpu",
    )
    foreign_tasks = read_demonstrations(config.data)
    trainer = Trainer(config, foreign_tasks, CPU, bf16=False)
    batch = trainer.training.take(torch.arange(len(trainer.training)))
    assert batch.images[0].shape[1:] == (1, 16, 16, 3)
    # Each window sees its own row's picture: grey of a row's own shade.
    expected = {
        tuple(state.tolist()): shade for state, shade in zip(foreign.states, foreign.pictures[:, 0, 0, 0], strict=True)
    }
    seen = batch.images[0].float().mean((1, 2, 3, 4))
    for state, shade in zip(batch.state[:, -1], seen, strict=True):
        assert float(shade) == pytest.approx(float(expected[tuple(state.tolist())]), abs=4.0)
    trainer.run(lambda record, findings: None)
    assert trainer.run_facts["frames"]["cameras"][0]["view"] == "front"
    # The same rows with other videos are other data.
    foreign.pictures = 255 - foreign.pictures
    foreign.write()
    again = Trainer(config, read_demonstrations(config.data), CPU, bf16=False)
    others = again.training.take(torch.arange(len(again.training))).images[0].float().mean((1, 2, 3, 4))
    torch.testing.assert_close(others, 255 - seen, rtol=0, atol=4.0)
    with pytest.raises(CheckpointError, match=r"begun with other settings \(frames\)"):
        Trainer(replace(config, resume=True), read_demonstrations(config.data), CPU, bf16=False)
    for shard in config.data.glob("mapped-*/*/frames/*.parquet"):
        shard.unlink()
    with pytest.raises(DemonstrationsError, match=r"is missing or damaged; delete .*/front-16, and it is made again"):
        Trainer(config, read_demonstrations(config.data), CPU, bf16=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.info.update(codebase_version="v2.1"), "convert it with lerobot's convert_dataset_v21_to_v30"),
        (lambda f: f.info.pop("fps"), "does not describe a LeRobotDataset"),
        (lambda f: f.info["features"].pop("action"), "expected action, and observation.state"),
        (lambda f: f.info["features"].pop("observation.state"), "expected action, and observation.state"),
        (lambda f: setattr(f, "task_index", f.task_index + 5), "has no task 5"),
        (lambda f: setattr(f, "states", f.states[:, :0]), "no rows of numbers"),
        (lambda f: setattr(f, "states", f.states[:, :4]), "have 4 entries, meta/info.json says 6"),
        (lambda f: f.states.__setitem__((3, 2), np.nan), "not finite; leave these episodes out"),
    ],
)
def test_a_set_that_cannot_be_read_says_why(tmp_path: Path, spoil: Callable[[Foreign], Any], message: str) -> None:
    foreign = Foreign(tmp_path / "set")
    spoil(foreign)
    with pytest.raises(DemonstrationsError, match=message):
        read_demonstrations(foreign.write())


def test_a_column_that_is_missing_is_said(tmp_path: Path) -> None:
    foreign = Foreign(tmp_path / "set")
    file = foreign.write() / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["action"]), file)
    with pytest.raises(DemonstrationsError, match="is no whole LeRobotDataset"):
        read_demonstrations(foreign.folder)
    file.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DemonstrationsError, match="is no whole LeRobotDataset"):
        read_demonstrations(foreign.folder)


@pytest.mark.parametrize("shape", [[48, 64, 1], [48, 64], [90_000, 64, 3], [], ["48", 64, 3]])
def test_pictures_that_are_none_are_refused(tmp_path: Path, shape: list[int]) -> None:
    foreign = Foreign(tmp_path / "set")
    foreign.info["features"]["observation.images.front"]["shape"] = shape
    config = TrainConfig(data=foreign.write(), out=tmp_path / "run", cameras=("front",), proprioception=6)
    with pytest.raises(
        DemonstrationsError, match=r"expected height, width and 3 colours, at most 8192 pixels|what its pictures are"
    ):
        Trainer(config, read_demonstrations(config.data), CPU, bf16=False)


@pytest.mark.parametrize("content", [b"#EXTM3U\n#EXTINF:1,\nother.mp4\n", b"", b"no video at all" * 10_000])
def test_a_video_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    foreign = Foreign(tmp_path / "set")
    video = foreign.write() / "videos/observation.images.front/chunk-000/file-000.mp4"
    shutil.copy(video, video.with_name("other.mp4"))
    video.write_bytes(content)  # the first would name another file
    with pytest.raises(DemonstrationsError, match="cannot be decoded"):
        list(read_pictures(video, 48, 64))
    video.unlink()
    video.symlink_to(tmp_path / "elsewhere.mp4")
    config = TrainConfig(data=foreign.folder, out=tmp_path / "run", cameras=("front",), proprioception=6)
    with pytest.raises(DemonstrationsError, match="leads out of the data set's folder"):
        Trainer(config, read_demonstrations(config.data), CPU, bf16=False)


@pytest.mark.parametrize("rows", [0, 1])
def test_pictures_of_other_rows_are_refused(tmp_path: Path, rows: int) -> None:
    """An episode that has lost its rows, or one of them, and none of its pictures."""
    foreign = Foreign(tmp_path / "set")
    file = foreign.write() / "data/chunk-000/file-000.parquet"
    table, first = pq.read_table(file), foreign.lengths[0]
    pq.write_table(pa.concat_tables([table[: first + rows], table[first + foreign.lengths[1] :]]), file)
    config = TrainConfig(data=foreign.folder, out=tmp_path / "run", cameras=("front",), proprioception=6)
    for _ in range(2):  # nothing half-done is taken for the whole the next time
        with pytest.raises(DemonstrationsError, match="pictures would go with other rows than theirs"):
            Trainer(config, read_demonstrations(config.data), CPU, bf16=False)


def test_a_set_of_one_robot_is_rehearsed_with_another(tmp_path: Path) -> None:
    """Bounds that nobody recorded are the range of all that was done; a policy that is there keeps its own."""
    one, other = Foreign(tmp_path / "one"), Foreign(tmp_path / "other")
    other.actions *= 2.0
    first, second = read_demonstrations(one.write()), read_demonstrations(other.write())
    both = joined([first, second])
    np.testing.assert_array_equal(both.action_bounds, second.action_bounds)
    config = TrainConfig(
        data=one.folder, out=tmp_path / "run", epochs=1, batch_size=8, width=32, blocks=1, device="cpu"
    )
    train_command(config)
    again = replace(config, data=other.folder, out=tmp_path / "again", start_from=config.out)
    train_command(again)
    policy = load_policy(read_checkpoint(again.out / LAST_CHECKPOINT))
    np.testing.assert_array_equal(policy.action_high.numpy(), first.action_bounds[1])
    written = json.loads((again.out / "demonstrations.json").read_text())["action"]["elements"]
    np.testing.assert_allclose([element[3] for element in written], first.action_bounds[1])
    with pytest.raises(CheckpointError, match="is of a robot with the action bounds"):
        Trainer(again, second, CPU, bf16=False)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"action": {"elements": [["x", "", 0.0, 1.0]]}}, "has 1 elements of the action, the set has 3"),
        ({"control_rate_hz": 12.0}, "says 12.0 Hz, the set"),
    ],
)
def test_facts_of_another_set_are_refused(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    foreign = Foreign(tmp_path / "set")
    (foreign.write() / "meta/chunkcast.json").write_text(json.dumps({"manifest": facts}))
    with pytest.raises(DemonstrationsError, match=message):
        read_demonstrations(foreign.folder)


def test_a_folder_beside_it_is_asked_for(tmp_path: Path) -> None:
    folder = Foreign(tmp_path / "set").write()
    for near in (tmp_path, folder / "meta"):
        with pytest.raises(DemonstrationsError, match=f"holds neither .* did you mean {folder}\\?"):
            read_demonstrations(near)
    with pytest.raises(DemonstrationsError, match=r"is no folder, so it holds neither"):
        read_demonstrations(tmp_path / "elsewhere/set")


def test_one_format_does_not_replace_the_other(lerobot_folder: Path, demonstrations_folder: Path) -> None:
    for folder, format_ in ((lerobot_folder, "chunkcast"), (demonstrations_folder, "lerobot")):
        config = CollectConfig(out=folder, format=format_, tasks=TASKS, episodes=1, overwrite=True)  # type: ignore[arg-type]
        with pytest.raises(TrainingError, match="of the other --format; choose another --out"):
            collect_command(config)


def test_statistics_of_pictures_are_those_of_their_pixels() -> None:
    pictures = np.random.default_rng(0).integers(0, 200, (6, 8, 10, 3), dtype=np.uint8)
    counted, rest = ColourCounts(), ColourCounts()
    counted.add(pictures[:2])
    rest.add(pictures[2:])
    counted.merge(rest)
    found = counted.statistics()
    pixels = pictures.reshape(-1, 3) / 255.0
    assert found["count"] == [6]
    for name, expected in (
        ("min", pixels.min(0)),
        ("max", pixels.max(0)),
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0)),
    ):
        np.testing.assert_allclose(np.array(found[name]).ravel(), expected, rtol=1e-9)
    np.testing.assert_allclose(np.array(found["q50"]).ravel(), np.quantile(pixels, 0.5, axis=0), atol=1 / 255)


def test_missing_files_are_named(lerobot_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(lerobot_folder, folder)
    (folder / "meta/tasks.parquet").unlink()
    with pytest.raises(DemonstrationsError, match=r"tasks\.parquet is missing"):
        read_demonstrations(folder)
    shutil.rmtree(folder / "data")
    with pytest.raises(DemonstrationsError, match="holds no Parquet file"):
        read_demonstrations(folder)
