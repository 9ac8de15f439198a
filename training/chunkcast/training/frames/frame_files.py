"""The frames' files, beside the demonstrations' table: Parquet shards of compressed pictures, and a manifest.

::

    DIR/frames/
      frames-00000.parquet      a row a frame: episode_index, frame_index, and a column of JPEG or PNG a view
      manifest.json             cameras, ticks between frames, and each shard's episodes and SHA-256

Shards are written one after the other, each aside and then renamed, and named in the manifest when they are whole: a
rendering that was interrupted goes on where it stood.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.simulation.cameras import Camera
from chunkcast.simulation.policy_cameras import IMAGE_PREFIX
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.files import sha256_of, write_bytes, write_json

FORMAT = "chunkcast-frames"
FORMAT_VERSION = 1
FOLDER = "frames"
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class FrameSettings:
    """What decides the frames.

    Attributes:
        demonstrations_sha256: of the table that they belong to.
        cameras: what was rendered.
        every: ticks between two frames of an episode, the first at its beginning.
        quality: of JPEG; 0 is PNG.
        videos_sha256: of the videos that they were decoded from; empty where they were rendered.
    """

    demonstrations_sha256: str
    cameras: tuple[Camera, ...]
    every: int
    quality: int
    videos_sha256: str = ""

    @property
    def views(self) -> tuple[str, ...]:
        """The cameras' views."""
        return tuple(camera.view for camera in self.cameras)


@dataclass(frozen=True)
class Shard:
    """One file of frames: those of episodes ``first`` to ``last``."""

    path: str
    first: int
    last: int
    sha256: str


def read_settings(folder: Path) -> tuple[FrameSettings, list[Shard], bool] | None:
    """What the demonstrations in ``folder`` have of frames, and whether that is all; ``None`` if they have none.

    Raises:
        DemonstrationsError: the manifest is none of this version.
    """
    file = folder / FOLDER / MANIFEST_NAME
    if not file.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        received = (manifest["format"], manifest["version"])
    except (ValueError, KeyError, TypeError):
        received = ("unreadable", 0)
    if received != (FORMAT, FORMAT_VERSION):
        raise DemonstrationsError(f"{file} is {received}, expected {(FORMAT, FORMAT_VERSION)}; render again")
    cameras = tuple(
        Camera(**{**facts, "position": tuple(facts["position"]) if facts["position"] else None})
        for facts in manifest["cameras"]
    )
    settings = FrameSettings(
        manifest["demonstrations_sha256"],
        cameras,
        manifest["every"],
        manifest["quality"],
        manifest.get("videos_sha256", ""),
    )
    return settings, [Shard(**facts) for facts in manifest["shards"]], bool(manifest["complete"])


def write_manifest(folder: Path, settings: FrameSettings, shards: Sequence[Shard], *, complete: bool) -> None:
    """Say what is there."""
    facts = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(settings), "complete": complete}
    write_json(folder / FOLDER / MANIFEST_NAME, {**facts, "shards": [asdict(shard) for shard in shards]})


def write_shard(
    folder: Path, number: int, first: int, episodes: Sequence[Sequence[dict[str, bytes]]], every: int
) -> Shard:
    """Write the frames of consecutive episodes.

    Args:
        number: the shard's.
        first: the first episode's index.
        episodes: of each, its frames.
        every: ticks between two frames.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    lengths = [len(frames) for frames in episodes]
    columns: dict[str, Any] = {
        "episode_index": np.repeat(np.arange(first, first + len(episodes), dtype=np.int32), lengths),
        "frame_index": np.concatenate([np.arange(length, dtype=np.int32) * every for length in lengths]),
    }
    for view in episodes[0][0]:
        columns[IMAGE_PREFIX + view] = pa.array([frame[view] for frames in episodes for frame in frames], pa.binary())
    stream = io.BytesIO()
    # Pictures are compressed already.
    pq.write_table(pa.table(columns), stream, compression="none", use_dictionary=False)
    content = stream.getvalue()
    path = f"frames-{number:05d}.parquet"
    write_bytes(folder / FOLDER / path, content)
    return Shard(path, first, first + len(episodes) - 1, hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class CompressedFrames:
    """The frames of demonstrations, as read: ``M`` frames over all episodes, in the order of the table's rows.

    Attributes:
        settings: what decided them.
        rows: int64 ``[M]``, each frame's row in the demonstrations' table.
        pictures: by view, ``M`` pictures as JPEG or PNG each.
    """

    settings: FrameSettings
    rows: npt.NDArray[np.int64]
    pictures: dict[str, Any]


def read_frames(folder: Path, demonstrations_sha256: str, episode_index: npt.NDArray[np.int32]) -> CompressedFrames:
    """Read every shard, after checking its hash.

    Args:
        folder: of the demonstrations.
        demonstrations_sha256: of their table.
        episode_index: int32 ``[N]``, of its rows.

    Raises:
        DemonstrationsError: there are no frames, not all of them, or not of this table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = read_settings(folder)
    again = f"render them with chunkcast-render {folder}"
    if found is None:
        raise DemonstrationsError(f"{folder} has no camera frames; {again}")
    settings, shards, complete = found
    if not complete:
        raise DemonstrationsError(
            f"the rendering of {folder}'s frames was interrupted; go on with chunkcast-render {folder} and the flags "
            "that it was begun with"
        )
    if settings.demonstrations_sha256 != demonstrations_sha256:
        raise DemonstrationsError(
            f"the frames in {folder} are of other demonstrations than its table; {again} --overwrite"
        )
    tables = []
    for shard in shards:
        file = folder / FOLDER / shard.path
        if not file.is_file() or sha256_of(file) != shard.sha256:
            mend = f"delete {folder}, and it is made again" if settings.videos_sha256 else f"{again} --overwrite"
            raise DemonstrationsError(f"{file} is missing or damaged; {mend}")
        tables.append(pq.read_table(file))
    table = pa.concat_tables(tables)
    starts = np.searchsorted(episode_index, table["episode_index"].to_numpy())
    rows = starts + table["frame_index"].to_numpy().astype(np.int64)
    # Large offsets: of a column of more than 2 GiB.
    pictures = {view: table[IMAGE_PREFIX + view].cast(pa.large_binary()).combine_chunks() for view in settings.views}
    return CompressedFrames(settings, rows, pictures)
