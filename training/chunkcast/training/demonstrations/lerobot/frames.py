"""The pictures of a LeRobotDataset as this project's frames, decoded once: training takes them from everywhere.

A policy's pictures are square. Wider or higher ones lose what lies beyond the middle, and are scaled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.simulation.cameras import Camera
from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.demonstrations.lerobot.layout import DATA, EPISODES, INFO, OWN_FACTS, VIDEO_PATH
from chunkcast.training.demonstrations.lerobot.videos import read_pictures
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.files import sha256_of
from chunkcast.training.frames.frame_files import FrameSettings, Shard, read_settings, write_manifest, write_shard
from chunkcast.training.frames.replay import compressed

IMAGES = "observation.images."
LOCK = "decoding.lock"
SHARD_EPISODES = 50
COLOURS = 3
MOST_PIXELS = 8192
QUALITY = 95
"""Of the JPEGs that decoded pictures are kept as."""


def decode_frames(
    folder: Path,
    demonstrations: Demonstrations,
    into: Path,
    views: Sequence[str],
    size: int,
    on_episode: Callable[[], None] = lambda: None,
) -> None:
    """Decode the videos of ``views`` into ``into/frames``; nothing where that was done before, of the same videos.

    Another process that decodes them too is waited for.

    Args:
        folder: of the LeRobotDataset.
        demonstrations: as read from it.
        into: where the frames go.
        views: cameras, without ``observation.images.``.
        size: height and width of a frame, pixels; 0 takes the smaller side of the video.
        on_episode: called as each of lerobot's episodes is decoded.

    Raises:
        DemonstrationsError: a view has no video, a video lacks pictures, or they are of other episodes than the rows.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        cameras = _cameras(folder, info, views, size)
        settings = FrameSettings(demonstrations.sha256, cameras, 1, QUALITY, _videos_sha256(folder, views))
        if _decoded(into, settings):
            return
        into.mkdir(parents=True, exist_ok=True)
        with (into / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            if not _decoded(into, settings):
                _decode(folder, info, demonstrations, into, settings, on_episode)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DemonstrationsError(f"{folder} does not say what its pictures are ({error!r})") from None


def _decoded(into: Path, settings: FrameSettings) -> bool:
    found = read_settings(into)
    return found is not None and found[0] == settings and found[2]


def _decode(
    folder: Path,
    info: dict[str, Any],
    demonstrations: Demonstrations,
    into: Path,
    settings: FrameSettings,
    on_episode: Callable[[], None],
) -> None:
    write_manifest(into, settings, [], complete=False)
    bounds = np.searchsorted(demonstrations.episode_index, np.arange(len(demonstrations.episode_tasks) + 1))
    shards: list[Shard] = []
    rendered: list[list[dict[str, bytes]]] = []
    frames: list[dict[str, bytes]] = []
    done = 0
    for pictures in _episodes(folder, info, settings.cameras):
        frames.extend(pictures)
        on_episode()
        # lerobot's episodes may be several of these, one for each task within it.
        while done < len(bounds) - 1 and len(frames) >= (length := int(bounds[done + 1] - bounds[done])):
            rendered.append(frames[:length])
            frames, done = frames[length:], done + 1
            if len(rendered) == SHARD_EPISODES or done == len(bounds) - 1:
                shards.append(write_shard(into, len(shards), done - len(rendered), rendered, 1))
                write_manifest(into, settings, shards, complete=False)
                rendered = []
        if frames:
            raise DemonstrationsError(
                f"{folder / EPISODES} has an episode of another length than its rows in {DATA}, or one that has none; "
                "pictures would go with other rows than theirs: write the set again with lerobot"
            )
    if done < len(bounds) - 1:
        raise DemonstrationsError(f"{folder} has fewer pictures than rows; expected one for each")
    write_manifest(into, settings, shards, complete=True)


def picture_shape(folder: Path, view: str, feature: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a camera's pictures, as ``meta/info.json`` has them: colours last, or first in older sets.

    Raises:
        DemonstrationsError: they are no pictures of three colours, or too large.
    """
    shape = feature["shape"]
    sides = shape[:2] if shape[-1] == COLOURS else shape[1:]
    if len(shape) != 3 or COLOURS not in (shape[0], shape[-1]) or not all(1 <= side <= MOST_PIXELS for side in sides):
        raise DemonstrationsError(
            f"{folder}: {view} has the shape {shape}, expected height, width and {COLOURS} colours, at most "
            f"{MOST_PIXELS} pixels to a side"
        )
    return int(sides[0]), int(sides[1])


def _cameras(folder: Path, info: dict[str, Any], views: Sequence[str], size: int) -> tuple[Camera, ...]:
    """The cameras as they were recorded; all that is known of another's are their names."""
    own: dict[str, Any] = {}
    if (folder / OWN_FACTS).is_file():
        facts = json.loads((folder / OWN_FACTS).read_text(encoding="utf-8"))
        own = {camera["view"]: camera for camera in facts.get("manifest", {}).get("cameras", [])}
    cameras = []
    for view in views:
        feature = info["features"].get(IMAGES + view)
        if feature is None or feature["dtype"] != "video":
            known = [name.removeprefix(IMAGES) for name in info["features"] if name.startswith(IMAGES)]
            raise DemonstrationsError(
                f"{folder} has no videos of {view}; "
                + (f"expected some of {', '.join(known)}" if known else "it was recorded without cameras")
            )
        facts = own.get(view, {"name": view, "quality": "full"})
        position = tuple(facts["position"]) if facts.get("position") else None
        smaller = min(picture_shape(folder, view, feature))
        cameras.append(Camera(**{**facts, "view": view, "size": size or smaller, "position": position}))
    return tuple(cameras)


def _videos_sha256(folder: Path, views: Sequence[str]) -> str:
    """Of everything that the pictures are made of beside the rows: the videos, and which part of them is an episode."""
    digest = hashlib.sha256()
    videos = [file for view in views for file in (folder / "videos" / f"{IMAGES}{view}").glob("*/*.mp4")]
    for file in sorted([*videos, *(folder / EPISODES).glob("*/*.parquet")]):
        if not file.is_file() or not _within(file, folder):
            continue  # refused where it is needed
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _episodes(folder: Path, info: dict[str, Any], cameras: Sequence[Camera]) -> Iterator[list[dict[str, bytes]]]:
    """The compressed pictures of lerobot's episodes, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((folder / EPISODES).glob("*/*.parquet"))
    if not files:
        raise DemonstrationsError(f"{folder / EPISODES} holds no Parquet file; expected a whole LeRobotDataset")
    places = [f"videos/{IMAGES}{camera.view}/" for camera in cameras]
    wanted = [place + name for place in places for name in ("chunk_index", "file_index", "from_timestamp")]
    try:
        tables = [pq.read_table(file, columns=["episode_index", "length", *wanted]) for file in files]
    except (pa.ArrowInvalid, KeyError) as error:
        raise DemonstrationsError(f"{folder / EPISODES} does not say where the pictures are ({error})") from None
    readers = [_Pictures(folder, info, camera) for camera in cameras]
    for episode in pa.concat_tables(tables).sort_by("episode_index").to_pylist():
        taken = [
            reader.take(
                episode[place + "chunk_index"],
                episode[place + "file_index"],
                episode[place + "from_timestamp"],
                episode["length"],
            )
            for reader, place in zip(readers, places, strict=True)
        ]
        yield [
            dict(zip((camera.view for camera in cameras), pictures, strict=True))
            for pictures in zip(*taken, strict=True)
        ]


class _Pictures:
    """The pictures of one camera, read forwards through its files."""

    def __init__(self, folder: Path, info: dict[str, Any], camera: Camera) -> None:
        self._folder, self._camera, self._fps = folder, camera, float(info["fps"])
        feature = info["features"][IMAGES + camera.view]
        self._shape = picture_shape(folder, camera.view, feature)
        self._file: Path | None = None
        self._read: Iterator[npt.NDArray[np.uint8]] = iter(())
        self._next = 0

    def take(self, chunk: int, file: int, begin: float, length: int) -> list[bytes]:
        """``length`` pictures from the time ``begin`` on, compressed."""
        place = VIDEO_PATH.format(video_key=IMAGES + self._camera.view, chunk_index=chunk, file_index=file)
        path = self._folder / place
        if not _within(path, self._folder):
            raise DemonstrationsError(f"{path} leads out of the data set's folder; copy it there")
        if path != self._file:
            self._file, self._read, self._next = path, read_pictures(path, *self._shape), 0
        first = round(begin * self._fps)
        pictures: list[bytes] = []
        if first >= self._next:
            for picture in self._read:
                self._next += 1
                if self._next <= first:
                    continue
                pictures.append(compressed(_square(picture, self._camera.size), QUALITY))
                if len(pictures) == length:
                    return pictures
        raise DemonstrationsError(f"{path} has no {length} pictures in a row from {begin:.3f} s on")


def _square(picture: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """The middle of a picture, scaled; as it is where that changes nothing."""
    from PIL import Image

    height, width, _ = picture.shape
    if (height, width) == (size, size):
        return picture
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = Image.fromarray(picture[top : top + side, left : left + side])
    return np.asarray(middle.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.BILINEAR))
