"""The demonstrations' files: one Parquet table, a row per control tick, and a manifest that describes it.

::

    DIR/
      demonstrations.parquet    the table; column names follow LeRobot's data sets
      manifest.json             versions, seeds, counts, expert success, SHA-256 of the table

=================  ==================  =======================================================================
column             type                meaning
=================  ==================  =======================================================================
episode_index      int32               0-based, in order of the rows
frame_index        int32               control tick within the episode, 0-based
timestamp          float32             seconds since the episode's start (frame_index / control rate)
task               dictionary<string>  MetaWorld task name
seed               int64               names the episode: the same task and seed give the same start and goal
observation.state  list<float32>[39]   what the environment showed before the action (m, gripper 0-1, quaternions)
action             list<float32>[4]    the expert's own action, clipped to [-1, 1]; no noise
action.executed    list<float32>[4]    what the robot did instead: the action, with noise during bursts, clipped
success            bool                the task was solved at or before this tick
=================  ==================  =======================================================================

No pickle: Parquet and JSON only. Does not know: simulators, torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.errors import DemonstrationsError

FORMAT = "chunkcast-demonstrations"
FORMAT_VERSION = 2
TABLE_NAME = "demonstrations.parquet"
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Episode:
    """One recorded episode of ``T`` control ticks.

    Attributes:
        task: task name.
        seed: the integer that names the episode's start and goal.
        states: float32 ``[T, S]``, what was observed before each action.
        actions: float32 ``[T, A]``, the expert's clean, clipped actions.
        executed: float32 ``[T, A]``, what was executed in their place.
        success: bool ``[T]``, solved at or before this tick.
    """

    task: str
    seed: int
    states: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    executed: npt.NDArray[np.float32]
    success: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Demonstrations:
    """A whole set of demonstrations, read into memory; ``N`` rows over all episodes.

    Attributes:
        states: float32 ``[N, S]``.
        actions: float32 ``[N, A]``, the expert's.
        executed: float32 ``[N, A]``, what was executed.
        episode_index: int32 ``[N]``, ascending from 0 without gaps.
        episode_tasks: the task name of each episode.
        episode_seeds: the seed of each episode.
        manifest: the manifest as read.
    """

    states: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    executed: npt.NDArray[np.float32]
    episode_index: npt.NDArray[np.int32]
    episode_tasks: tuple[str, ...]
    episode_seeds: tuple[int, ...]
    manifest: dict[str, Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, sorted: the order of the policy's task codes."""
        return tuple(sorted(set(self.episode_tasks)))

    @property
    def action_bounds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The robot's inclusive bounds, lower and upper, float32 ``[A]`` each."""
        bounds = np.array([element[2:] for element in self.manifest["action"]["elements"]], np.float32)
        return bounds[:, 0], bounds[:, 1]

    @property
    def sha256(self) -> str:
        """SHA-256 of the table: what a policy names as the data it was trained on."""
        return str(self.manifest["sha256"])


def write_demonstrations(
    folder: Path, episodes: list[Episode], control_rate_hz: float, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Write the table and the manifest, aside and then renamed; returns the manifest as written.

    Args:
        folder: made if it does not exist.
        episodes: at least one.
        control_rate_hz: ticks per second, for the timestamp column.
        manifest: what the recorder knows (what state and action elements are, versions, seeds, per-task counts);
            format, sizes and hash are added.

    Raises:
        DemonstrationsError: there is no episode to write.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not episodes:
        raise DemonstrationsError("no episode to write: collect at least one successful episode")
    lengths = [len(episode.actions) for episode in episodes]
    frame_index = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    states = np.concatenate([episode.states for episode in episodes])
    actions = np.concatenate([episode.actions for episode in episodes])
    tasks = np.repeat([episode.task for episode in episodes], lengths)

    def vectors(values: npt.NDArray[np.float32]) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    table = pa.table(
        {
            "episode_index": pa.array(np.repeat(np.arange(len(episodes), dtype=np.int32), lengths)),
            "frame_index": pa.array(frame_index),
            "timestamp": pa.array((frame_index / control_rate_hz).astype(np.float32)),
            "task": pa.array(tasks).dictionary_encode(),
            "seed": pa.array(np.repeat([episode.seed for episode in episodes], lengths)),
            "observation.state": vectors(states),
            "action": vectors(actions),
            "action.executed": vectors(np.concatenate([episode.executed for episode in episodes])),
            "success": pa.array(np.concatenate([episode.success for episode in episodes])),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    table_file = folder / TABLE_NAME
    aside = folder / f".{TABLE_NAME}.writing"
    pq.write_table(table, aside, compression="zstd")
    written = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "episodes": len(episodes),
        "frames": int(frame_index.size),
        "control_rate_hz": control_rate_hz,
        "sha256": hashlib.sha256(aside.read_bytes()).hexdigest(),
        **manifest,
    }
    manifest_aside = folder / f".{MANIFEST_NAME}.writing"
    manifest_aside.write_text(json.dumps(written, indent=2) + "\n")
    os.replace(aside, table_file)
    os.replace(manifest_aside, folder / MANIFEST_NAME)
    return written


def read_demonstrations(folder: Path) -> Demonstrations:
    """Read a folder written by ``write_demonstrations``, after checking its version and hash.

    Raises:
        DemonstrationsError: a file is missing, of an unknown version, or differs from its hash.
    """
    import pyarrow.parquet as pq

    manifest = read_manifest(folder)
    table_file = folder / TABLE_NAME
    if not table_file.is_file():
        raise DemonstrationsError(f"{table_file} is missing; collect again with chunkcast-collect --out {folder}")
    sha256 = hashlib.sha256(table_file.read_bytes()).hexdigest()
    if sha256 != manifest.get("sha256"):
        raise DemonstrationsError(
            f"{table_file} has SHA-256 {sha256[:12]}..., its manifest says "
            f"{str(manifest.get('sha256'))[:12]}...; the file is damaged or was replaced: collect again"
        )
    table = pq.read_table(table_file)
    episode_index = table["episode_index"].to_numpy()
    first_rows = np.flatnonzero(np.diff(episode_index, prepend=-1))
    return Demonstrations(
        states=_vectors(table, "observation.state"),
        actions=_vectors(table, "action"),
        executed=_vectors(table, "action.executed"),
        episode_index=np.array(episode_index),
        episode_tasks=tuple(table["task"].take(first_rows).to_pylist()),
        episode_seeds=tuple(table["seed"].take(first_rows).to_pylist()),
        manifest=manifest,
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check ``manifest.json``.

    Raises:
        DemonstrationsError: it is missing, not JSON, or of another format or version.
    """
    file = folder / MANIFEST_NAME
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        raise DemonstrationsError(
            f"{file} is missing; make demonstrations with chunkcast-collect --out {folder}"
        ) from None
    except json.JSONDecodeError as error:
        raise DemonstrationsError(f"{file} is not JSON ({error}); collect again") from None
    received = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else None
    if received != (FORMAT, FORMAT_VERSION):
        raise DemonstrationsError(f"{file} is {received}, expected {(FORMAT, FORMAT_VERSION)}; collect again")
    return dict(manifest)


def _vectors(table: Any, column: str) -> npt.NDArray[np.float32]:
    """A fixed-size-list column as float32 ``[N, D]``."""
    values = table[column].combine_chunks()
    flat = values.flatten().to_numpy(zero_copy_only=False)
    # A copy: Arrow's memory is read-only, and torch would warn of it.
    return np.array(flat.reshape(len(values), -1), dtype=np.float32)
