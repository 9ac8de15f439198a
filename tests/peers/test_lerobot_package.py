"""The lerobot package from PyPI, in an environment of its own: it loads what is written here, and is read here.

It brings 8 GB, so it is marked slow: ``make lerobot``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chunkcast.training.collect.cli import CollectConfig, collect_command
from chunkcast.training.demonstrations.memory import Memory
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.frames.frame_files import read_frames
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.vision.seen import what_is_seen
from tests.conftest import require_gl
from tests.peers.lerobot_side import FPS, LENGTHS, SENTENCES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LEROBOT = "lerobot==0.4.4"
ENVIRONMENT = Path(__file__).parents[2] / ".venv-lerobot"
SIDE = Path(__file__).with_name("lerobot_side.py")
TASKS = ("drawer-close-v3", "reach-v3")


@pytest.fixture(scope="session")
def lerobot_python() -> Path:
    """Python of an environment that has lerobot; made once."""
    python = ENVIRONMENT / "bin/python"
    done = ENVIRONMENT / ".installed"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", LEROBOT], check=True)
        done.write_text(LEROBOT)
    return python


def run_side(python: Path, what: str, root: Path, out: Path) -> dict[str, np.ndarray]:
    # Nothing of this project's, and nothing from outside.
    environment = {"PATH": os.environ["PATH"], "HOME": str(out.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, SIDE, what, root, out], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out) as arrays:
        return dict(arrays)


def test_lerobot_loads_the_same_arrays(lerobot_python: Path, tmp_path: Path) -> None:
    for name in ("chunkcast", "lerobot"):
        collect_command(CollectConfig(out=tmp_path / name, format=name, tasks=TASKS, episodes=3, workers=2))
    native = read_demonstrations(tmp_path / "chunkcast")
    loaded = run_side(lerobot_python, "read", tmp_path / "lerobot", tmp_path / "loaded.npz")
    np.testing.assert_array_equal(loaded["observation.state"], native.states)
    np.testing.assert_array_equal(loaded["action"], native.actions)
    np.testing.assert_array_equal(loaded["executed_action"], native.executed)
    np.testing.assert_array_equal(loaded["episode_index"], native.episode_index)
    np.testing.assert_array_equal(loaded["seed"], np.array(native.episode_seeds)[native.episode_index])
    sentences = {"drawer-close-v3": "close the drawer", "reach-v3": "reach the goal position"}
    told = [sentences.get(native.episode_tasks[episode]) for episode in native.episode_index]
    assert loaded["tasks"].tolist() == told
    np.testing.assert_array_equal(loaded["chunk"], native.actions[3:19])
    np.testing.assert_allclose(loaded["mean"], np.asarray(native.actions).mean(0), rtol=1e-5)


def test_lerobot_sees_the_same_pictures(lerobot_python: Path, tmp_path: Path) -> None:
    require_gl()
    program = Path(sys.executable).parent / "chunkcast-collect"
    flags = ["--tasks", "reach-v3", "--episodes", "2", "--workers", "1", "--frames", "fast", "--image-size", "64"]
    for name in ("chunkcast", "lerobot"):
        subprocess.run([program, "--out", tmp_path / name, "--format", name, *flags], check=True, capture_output=True)
    native = read_demonstrations(tmp_path / "chunkcast")
    loaded = run_side(lerobot_python, "read", tmp_path / "lerobot", tmp_path / "loaded.npz")
    np.testing.assert_array_equal(loaded["observation.state"], native.states)
    rendered = read_frames(tmp_path / "chunkcast", native.sha256, native.episode_index)
    for view, pictures in rendered.pictures.items():
        theirs = loaded[f"observation.images.{view}"]
        assert len(theirs) == len(pictures) == len(native.states)
        ours = decoded([pictures[row].as_py() for row in range(len(pictures))])
        # Of colours H.264 keeps every second pixel; brightness it keeps.
        difference = np.abs(brightness(theirs) - brightness(ours)).mean()
        assert difference < 2.5, view
        late = np.abs(brightness(theirs[1:]) - brightness(ours[:-1])).mean()
        assert difference < late, view


def brightness(pictures: np.ndarray) -> np.ndarray:
    weighted: np.ndarray = pictures @ np.array([0.299, 0.587, 0.114])
    return weighted


def decoded(pictures: list[bytes]) -> np.ndarray:
    import io

    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(picture))).astype(int) for picture in pictures])


def test_what_lerobot_writes_is_read(lerobot_python: Path, tmp_path: Path) -> None:
    theirs = run_side(lerobot_python, "write", tmp_path / "theirs", tmp_path / "written.npz")
    read = read_demonstrations(tmp_path / "theirs")
    np.testing.assert_array_equal(read.states, theirs["states"])
    np.testing.assert_array_equal(read.actions, theirs["actions"])
    assert read.episode_tasks == SENTENCES
    assert np.bincount(read.episode_index).tolist() == list(LENGTHS)
    assert read.manifest["control_rate_hz"] == FPS
    assert [name for name, *_ in read.manifest["action"]["elements"]] == ["u", "v"]

    config = TrainConfig(
        data=tmp_path / "theirs",
        out=tmp_path / "run",
        cameras=("front",),
        image_size=32,
        proprioception=4,
        privileged_weight=0.0,
        mapped_folder=tmp_path / "frames",
    )
    import torch

    read = read_demonstrations(config.data, Memory(config.data_memory_gb * 1e9, config.mapped_folder))
    seen = what_is_seen(config, read, np.arange(len(LENGTHS)), torch.device("cpu"))
    assert seen is not None
    pictures = seen.frames.take(torch.from_numpy(seen.frames.frame_of_row))[0]
    assert pictures.shape == (sum(LENGTHS), 32, 32, 3)
    np.testing.assert_allclose(pictures.float().mean((1, 2, 3)), theirs["shades"], atol=4.0)
