"""Where a LeRobotDataset v3 keeps what, and what of this project's own lies beside it.

::

    DIR/
      meta/info.json                        features (name, type, shape, names of entries), fps, counts
      meta/tasks.parquet                    task_index of each sentence
      meta/stats.json                       of every feature, over all frames
      meta/episodes/chunk-000/file-000.parquet   of each episode: tasks, length, where its rows and pictures are
      meta/chunkcast.json                   written by chunkcast-collect alone: bounds, units, seeds and task names
      data/chunk-000/file-000.parquet       a row a frame
      videos/VIEW/chunk-000/file-000.mp4    the episodes' pictures, one after the other

Read from lerobot 0.4.4, which writes codebase version v3.0.
"""

from __future__ import annotations

import re
from pathlib import Path

CODEBASE_VERSION = "v3.0"
INFO = Path("meta/info.json")
TASKS = Path("meta/tasks.parquet")
STATS = Path("meta/stats.json")
EPISODES = Path("meta/episodes")
OWN_FACTS = Path("meta/chunkcast.json")
DATA = Path("data")

FILES_OF_A_CHUNK = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

LEROBOTS_OWN = re.compile(r"meta|data|videos|images|README\.md|mapped-[0-9a-f]{16}")
"""What lies in a data set's folder."""

STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
ACTION = "action"
EXECUTED = "executed_action"
"""This project's own: what the robot did in the expert's place. Not ``action.executed``: lerobot takes every feature
that begins with ``action`` for one to learn."""
SEED = "seed"
SUCCESS = "next.success"


def is_lerobot(folder: Path) -> bool:
    """Whether a LeRobotDataset lies in ``folder``."""
    return (folder / INFO).is_file()
