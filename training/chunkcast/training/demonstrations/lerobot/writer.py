"""Episodes as a LeRobotDataset v3, which the lerobot package loads and ``chunkcast-train`` reads back exactly.

Tasks are told by sentences, as lerobot has it. What the format has no place for (units, bounds, seeds' range, the
recorder's versions, this project's names of the tasks) lies beside it in ``meta/chunkcast.json``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.demonstrations.episodes import Episode
from chunkcast.training.demonstrations.lerobot.episode_statistics import (
    ColourCounts,
    Statistics,
    vector_statistics,
)
from chunkcast.training.demonstrations.lerobot.layout import (
    ACTION,
    CODEBASE_VERSION,
    DATA_FILE_MB,
    DATA_PATH,
    EPISODES_PATH,
    EXECUTED,
    FILES_OF_A_CHUNK,
    INFO,
    OWN_FACTS,
    SEED,
    STATE,
    STATS,
    SUCCESS,
    TASKS,
    VIDEO_FILE_MB,
    VIDEO_PATH,
)
from chunkcast.training.demonstrations.lerobot.videos import VideoWriter
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.files import replace_folder, write_json

ROBOT = "metaworld_sawyer"
MEGABYTE = 1e6
SAMPLED_PICTURES = 100
"""Of an episode's at most, for their statistics."""


@dataclass
class _Place:
    """A file among those of its kind."""

    number: int = 0

    @property
    def indices(self) -> dict[str, int]:
        return {"chunk_index": self.number // FILES_OF_A_CHUNK, "file_index": self.number % FILES_OF_A_CHUNK}


@dataclass
class LeRobotWriter:
    """Writes a data set episode by episode, aside; ``finish`` renames it to its folder.

    Args:
        folder: to be made, or replaced.
        fps: control ticks a second, a whole number.
        manifest: what the recorder knows: state and action elements, versions and so on.
        sentences: how each task is told.
        cameras: height and width by view.
    """

    folder: Path
    fps: int
    manifest: Mapping[str, Any]
    sentences: Mapping[str, str]
    cameras: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin aside."""
        self._aside = self.folder.with_name(f".{self.folder.name}.writing")
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)
        self._tasks = {sentence: index for index, sentence in enumerate(dict.fromkeys(self.sentences.values()))}
        self._episodes: list[dict[str, Any]] = []
        self._frames = 0
        self._data, self._held = _Place(), 0
        self._parquet: Any = None
        self._vectors: dict[str, list[npt.NDArray[Any]]] = {}
        self._colours = {view: ColourCounts() for view in self.cameras}
        self._videos: dict[str, tuple[_Place, VideoWriter]] = {}

    def _video(self, view: str, place: _Place) -> VideoWriter:
        file = self._aside / VIDEO_PATH.format(video_key=view, **place.indices)
        return VideoWriter(file, self.fps, self.cameras[view], self.cameras[view])

    def add(self, episode: Episode, pictures: Mapping[str, npt.NDArray[np.uint8]] | None = None) -> None:
        """Append an episode.

        Args:
            episode: of ``T`` ticks.
            pictures: by view, uint8 ``[T, H, W, 3]``.

        Raises:
            DemonstrationsError: a view has another number of pictures than ticks.
        """
        length = len(episode.actions)
        number = len(self._episodes)
        columns: dict[str, npt.NDArray[Any]] = {
            STATE: episode.states,
            ACTION: episode.actions,
            EXECUTED: episode.executed,
            SUCCESS: episode.success,
            SEED: np.full(length, episode.seed, np.int64),
            "timestamp": (np.arange(length) / self.fps).astype(np.float32),
            "frame_index": np.arange(length, dtype=np.int64),
            "episode_index": np.full(length, number, np.int64),
            "index": np.arange(self._frames, self._frames + length, dtype=np.int64),
            "task_index": np.full(length, self._tasks[self.sentences[episode.task]], np.int64),
        }
        facts: dict[str, Any] = {
            "episode_index": number,
            "tasks": [self.sentences[episode.task]],
            "length": length,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
        }
        facts |= {f"data/{name}": index for name, index in self._write_rows(columns).items()}
        statistics = {name: vector_statistics(_flat(values)) for name, values in columns.items()}
        for name, values in columns.items():
            self._vectors.setdefault(name, []).append(_flat(values))
        for view in self.cameras:
            frames = (pictures or {}).get(view)
            if frames is None or len(frames) != length:
                raise DemonstrationsError(
                    f"episode {number} has {0 if frames is None else len(frames)} pictures of {view} for {length} ticks"
                )
            facts |= self._write_pictures(view, frames)
            colours = ColourCounts()
            colours.add(frames[:: -(-length // SAMPLED_PICTURES)])
            statistics[view] = colours.statistics()
            self._colours[view].merge(colours)
        facts |= {f"stats/{name}/{key}": value for name, each in statistics.items() for key, value in each.items()}
        # One file of episodes, however many: a row holds no frames.
        facts |= {f"meta/episodes/{name}": index for name, index in _Place().indices.items()}
        self._episodes.append(facts)
        self._frames += length

    def _write_rows(self, columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: _arrow(values) for name, values in columns.items()})
        if self._parquet is not None and self._held + table.nbytes > DATA_FILE_MB * MEGABYTE:
            self._parquet.close()
            self._parquet, self._data, self._held = None, _Place(self._data.number + 1), 0
        if self._parquet is None:
            file = self._aside / DATA_PATH.format(**self._data.indices)
            file.parent.mkdir(parents=True, exist_ok=True)
            self._parquet = pq.ParquetWriter(file, table.schema, compression="snappy")
        self._parquet.write_table(table)
        self._held += table.nbytes
        return self._data.indices

    def _write_pictures(self, view: str, frames: npt.NDArray[np.uint8]) -> dict[str, Any]:
        if view not in self._videos:
            self._videos[view] = _Place(), self._video(view, _Place())
        place, video = self._videos[view]
        if video.bytes_written > VIDEO_FILE_MB * MEGABYTE:
            video.close()
            place = _Place(place.number + 1)
            video = self._video(view, place)
            self._videos[view] = place, video
        begin = video.frames
        video.write(frames)
        facts: dict[str, Any] = {f"videos/{view}/{name}": index for name, index in place.indices.items()}
        facts[f"videos/{view}/from_timestamp"] = begin / self.fps
        facts[f"videos/{view}/to_timestamp"] = video.frames / self.fps
        return facts

    def finish(self) -> None:
        """Write what describes the data set, and put it in place.

        Raises:
            DemonstrationsError: it has no episode.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._episodes:
            raise DemonstrationsError("no episode to write: collect at least one successful episode")
        assert self._parquet is not None
        self._parquet.close()
        info = {view: writer.close() for view, (_, writer) in self._videos.items()}
        write_json(self._aside / INFO, self._info(info))
        write_json(self._aside / STATS, self._statistics())
        episodes = self._aside / EPISODES_PATH.format(**_Place().indices)
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), episodes)
        pq.write_table(self._task_table(), self._aside / TASKS)
        own = {"manifest": dict(self.manifest), "task_sentences": dict(self.sentences)}
        write_json(self._aside / OWN_FACTS, own)
        replace_folder(self._aside, self.folder)

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._parquet is not None:
            self._parquet.close()
        for _, video in self._videos.values():
            video.abandon()
        shutil.rmtree(self._aside, ignore_errors=True)

    def _task_table(self) -> Any:
        """Sentences as pandas' index, as lerobot reads them."""
        import pyarrow as pa

        table = pa.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        columns = [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
        ]
        heading = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
        pandas = {
            "index_columns": ["task"],
            "column_indexes": [{**heading, "metadata": {"encoding": "UTF-8"}}],
            "columns": [{**column, "metadata": None} for column in columns],
            "creator": {"library": "pyarrow", "version": pa.__version__},
            "pandas_version": "2.0.0",
        }
        return table.replace_schema_metadata({"pandas": json.dumps(pandas)})

    def _statistics(self) -> dict[str, Statistics]:
        whole = {name: vector_statistics(np.concatenate(parts)) for name, parts in self._vectors.items()}
        pictures = {view: colours.statistics() for view, colours in self._colours.items()}
        return {**whole, **pictures}

    def _info(self, videos: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        state = [name for name, *_ in self.manifest["state"]["elements"]]
        action = [name for name, *_ in self.manifest["action"]["elements"]]

        def vector(names: Sequence[str]) -> dict[str, Any]:
            return {"dtype": "float32", "shape": [len(names)], "names": list(names)}

        def number(dtype: str) -> dict[str, Any]:
            return {"dtype": dtype, "shape": [1], "names": None}

        features: dict[str, Any] = {
            STATE: vector(state),
            ACTION: vector(action),
            EXECUTED: vector(action),
            SUCCESS: number("bool"),
            SEED: number("int64"),
            **{
                view: {
                    "dtype": "video",
                    "shape": [size, size, 3],
                    "names": ["height", "width", "channels"],
                    "info": videos[view],
                }
                for view, size in self.cameras.items()
            },
            "timestamp": number("float32"),
            **{name: number("int64") for name in ("frame_index", "episode_index", "index", "task_index")},
        }
        return {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": ROBOT,
            "total_episodes": len(self._episodes),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_OF_A_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.cameras else None,
            "features": features,
        }


def whole_fps(control_rate_hz: float) -> int:
    """``control_rate_hz`` as lerobot has it.

    Raises:
        DemonstrationsError: it is no whole number.
    """
    if control_rate_hz != round(control_rate_hz):
        raise DemonstrationsError(
            f"a LeRobotDataset has whole frames per second; the control rate is {control_rate_hz}"
        )
    return round(control_rate_hz)


def _flat(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.reshape(len(values), -1)


def _arrow(values: npt.NDArray[Any]) -> Any:
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
