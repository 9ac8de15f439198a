"""Frames are of the recorded ticks, are read as they were written, and nothing that does not belong is read."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.frames.frame_files import FOLDER, MANIFEST_NAME, read_frames
from chunkcast.training.frames.frame_flags import FrameFlags, frame_cameras
from chunkcast.training.frames.replay import compressed
from chunkcast.training.vision.frame_tensors import FrameTensors

RENDER = Path(sys.executable).parent / "chunkcast-render"


def rendered(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RENDER, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_every_second_tick_of_every_episode_has_a_frame_of_each_view(frames_folder: Path) -> None:
    demonstrations = read_demonstrations(frames_folder)
    frames = read_frames(frames_folder, demonstrations.sha256, demonstrations.episode_index)
    lengths = np.bincount(demonstrations.episode_index)
    assert len(frames.rows) == ((lengths + 1) // 2).sum()
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    expected = np.concatenate(
        [np.arange(start, start + length, 2) for start, length in zip(starts, lengths, strict=True)]
    )
    assert (frames.rows == expected).all()
    assert set(frames.pictures) == {"corner2-close", "gripper"}
    first = np.asarray(Image.open(io.BytesIO(frames.pictures["corner2-close"][0].as_py())))
    other = np.asarray(Image.open(io.BytesIO(frames.pictures["gripper"][0].as_py())))
    assert first.shape == (32, 32, 3)
    assert other.shape == (48, 48, 3)
    assert first.std() > 20, "nearly one colour"


@pytest.mark.parametrize("room", [0, 10**9])
def test_frames_are_the_same_whether_decoded_before_or_as_needed(frames_folder: Path, room: int) -> None:
    demonstrations = read_demonstrations(frames_folder)
    compressed_frames = read_frames(frames_folder, demonstrations.sha256, demonstrations.episode_index)
    rows = len(demonstrations.states)
    held = FrameTensors(compressed_frames, ("gripper",), rows, torch.device("cpu"), room)
    wanted = torch.tensor([[3, 0], [1, 2]])
    (taken,) = held.take(wanted)
    assert taken.shape == (2, 2, 48, 48, 3)
    expected = np.asarray(Image.open(io.BytesIO(compressed_frames.pictures["gripper"][3].as_py())))
    assert (taken[0, 0].numpy() == expected).all()
    assert held.frame_of_row[compressed_frames.rows[5]] == 5
    assert held.frame_of_row[1] == -1
    with pytest.raises(DemonstrationsError, match="the frames are of corner2-close, gripper, not of topview"):
        FrameTensors(compressed_frames, ("topview",), rows, torch.device("cpu"), room)


def test_an_interrupted_rendering_goes_on_and_equals_one_that_was_not(frames_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(frames_folder, folder)
    manifest_file = folder / FOLDER / MANIFEST_NAME
    manifest = json.loads(manifest_file.read_text())
    whole = manifest["shards"]
    manifest_file.write_text(json.dumps({**manifest, "complete": False, "shards": []}))
    demonstrations = read_demonstrations(folder)
    with pytest.raises(DemonstrationsError, match="was interrupted; go on with chunkcast-render"):
        read_frames(folder, demonstrations.sha256, demonstrations.episode_index)
    other = rendered(folder, "--image-size", "48")
    assert other.returncode == 2
    assert "a part of its frames by other settings (corner2-close, gripper, every 2. tick, quality 95)" in other.stderr
    same = ("--cameras", "corner2-close", "gripper:48", "--image-size", "32", "--every", "2")
    assert rendered(folder, *same).returncode == 0
    assert json.loads(manifest_file.read_text())["shards"] == whole
    again = rendered(folder, *same)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1


def test_what_does_not_belong_is_refused(frames_folder: Path, demonstrations_folder: Path, tmp_path: Path) -> None:
    demonstrations = read_demonstrations(frames_folder)
    with pytest.raises(DemonstrationsError, match="has no camera frames; render them with chunkcast-render"):
        read_frames(demonstrations_folder, demonstrations.sha256, demonstrations.episode_index)
    with pytest.raises(DemonstrationsError, match="of other demonstrations than its table"):
        read_frames(frames_folder, "0" * 64, demonstrations.episode_index)
    folder = tmp_path / "damaged"
    shutil.copytree(frames_folder, folder)
    shard = folder / FOLDER / "frames-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DemonstrationsError, match="missing or damaged"):
        read_frames(folder, demonstrations.sha256, demonstrations.episode_index)


def test_an_episode_that_does_not_go_as_recorded_is_refused(frames_folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from chunkcast.training.demonstrations.episodes import Episode
    from chunkcast.training.demonstrations.table import write_demonstrations

    demonstrations = read_demonstrations(frames_folder)
    table = pq.read_table(frames_folder / "demonstrations.parquet")
    rows = np.flatnonzero(demonstrations.episode_index == 0)
    success = np.array(table["success"].to_pylist())[rows]
    states = demonstrations.states[rows].copy()
    states[7, 0] += 0.01
    episode = Episode(
        demonstrations.episode_tasks[0],
        demonstrations.episode_seeds[0],
        states,
        demonstrations.actions[rows],
        demonstrations.executed[rows],
        success,
    )
    facts = {"state": demonstrations.manifest["state"], "action": demonstrations.manifest["action"]}
    write_demonstrations(tmp_path, [episode], 80.0, facts)
    refused = rendered(tmp_path, "--image-size", "32")
    assert refused.returncode == 2
    assert "differs at tick 7 from its recording by 0.01" in refused.stderr


def test_png_keeps_every_level_and_jpeg_is_smaller(frames_folder: Path) -> None:
    demonstrations = read_demonstrations(frames_folder)
    frames = read_frames(frames_folder, demonstrations.sha256, demonstrations.episode_index)
    picture = np.asarray(Image.open(io.BytesIO(frames.pictures["gripper"][0].as_py())))
    lossless, lossy = compressed(picture, 0), compressed(picture, 60)
    assert (np.asarray(Image.open(io.BytesIO(lossless))) == picture).all()
    assert len(lossy) < len(lossless)


@pytest.mark.parametrize(
    ("flags", "views", "size", "quality"),
    [
        (FrameFlags(), [], 0, ""),
        (FrameFlags(frames="fast"), ["corner2-close", "gripper", "topview"], None, "fast"),
        (FrameFlags(frames="published"), ["corner2"], 256, "full"),
        (
            FrameFlags(frames="published", cameras=("topview",), image_size=64, rendering="fast"),
            ["topview"],
            64,
            "fast",
        ),
    ],
)
def test_presets_hold_where_no_flag_says_otherwise(
    flags: FrameFlags, views: list[str], size: int | None, quality: str
) -> None:
    made = frame_cameras(flags)
    assert [camera.view for camera in made] == views
    assert {camera.quality for camera in made} == ({quality} if views else set())
    assert [camera.size for camera in made] == ([128, 64, 64] if size is None else [size] * len(views))
    if views == ["corner2"]:
        assert made[0].position == (0.75, 0.075, 0.7)
        assert made[0].turned


def test_bad_flags_are_one_line(frames_folder: Path) -> None:
    for flags, message in (
        (
            ("--cameras", "ceiling"),
            "error: unknown camera 'ceiling'; expected NAME or NAME:PIXELS with one of corner2, ",
        ),
        (("--image-size", "4"), "error: camera 'corner2-close' has 4 pixels, expected 16 to 1024"),
        (("--frames", "none"), "error: --frames none renders nothing"),
    ):
        refused = rendered(frames_folder, *flags)
        assert refused.returncode == 2
        assert refused.stderr.startswith(message)
        assert refused.stderr.count("\n") == 1
