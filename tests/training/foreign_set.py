"""A LeRobotDataset of another robot, as lerobot itself would write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chunkcast.training.demonstrations.lerobot.videos import VideoWriter

FPS = 10


class Foreign:
    """Another robot's data set, as lerobot would write it: six joints, one camera, two tasks, no bounds, no seeds."""

    lengths = (8, 6, 7, 9)
    tasks = (0, 1, 1, 0)
    names = ("pick up the cube", "stack the cubes")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        total = sum(self.lengths)
        generator = np.random.default_rng(0)
        self.states = generator.standard_normal((total, 6)).astype(np.float32)
        self.actions = generator.standard_normal((total, 3)).astype(np.float32)
        self.pictures = np.zeros((total, 48, 64, 3), np.uint8)
        self.pictures[:] = (np.arange(total) * 7 % 250)[:, None, None, None]
        self.task_index = np.repeat(self.tasks, self.lengths)
        self.info: dict[str, Any] = {
            "codebase_version": "v3.0",
            "robot_type": "so101",
            "fps": FPS,
            "features": {
                "observation.state": {
                    "dtype": "float32",
                    "shape": [6],
                    "names": {"motors": [f"joint_{n}" for n in range(6)]},
                },
                "action": {"dtype": "float32", "shape": [3], "names": None},
                "observation.images.front": {
                    "dtype": "video",
                    "shape": [48, 64, 3],
                    "names": ["height", "width", "channels"],
                },
            },
        }

    def write(self) -> Path:
        starts = np.cumsum([0, *self.lengths])
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("meta/episodes/chunk-000", "data/chunk-000"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "meta/info.json").write_text(json.dumps(self.info))
        pq.write_table(
            pa.table({"task_index": [0, 1], "__index_level_0__": list(self.names)}), self.folder / "meta/tasks.parquet"
        )
        pq.write_table(
            pa.table(
                {
                    # Variable lists, as older writers made them.
                    "observation.state": pa.array(self.states.tolist(), pa.list_(pa.float32())),
                    "action": pa.array(self.actions.tolist(), pa.list_(pa.float32())),
                    "episode_index": np.repeat(np.arange(len(self.lengths)), self.lengths),
                    "task_index": self.task_index,
                }
            ),
            self.folder / "data/chunk-000/file-000.parquet",
        )
        self._write_videos(starts)
        return self.folder

    def _write_videos(self, starts: np.ndarray[Any, Any]) -> None:
        """Two files of two episodes each."""
        place = self.folder / "videos/observation.images.front/chunk-000"
        episodes = []
        for file in range(2):
            video = VideoWriter(place / f"file-{file:03d}.mp4", FPS, 48, 64)
            for episode in (2 * file, 2 * file + 1):
                begin = video.frames
                video.write(self.pictures[starts[episode] : starts[episode + 1]])
                episodes.append(
                    {
                        "episode_index": episode,
                        "length": self.lengths[episode],
                        "videos/observation.images.front/chunk_index": 0,
                        "videos/observation.images.front/file_index": file,
                        "videos/observation.images.front/from_timestamp": begin / FPS,
                    }
                )
            video.close()
        pq.write_table(pa.Table.from_pylist(episodes), self.folder / "meta/episodes/chunk-000/file-000.parquet")
