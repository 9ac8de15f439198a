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

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.demonstrations.columns import read_columns
from chunkcast.training.demonstrations.episodes import Demonstrations, Episode
from chunkcast.training.demonstrations.memory import Memory
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.files import sha256_of

FORMAT = "chunkcast-demonstrations"
FORMAT_VERSION = 2
TABLE_NAME = "demonstrations.parquet"
MANIFEST_NAME = "manifest.json"
COLUMNS = {"states": ("observation.state",), "actions": ("action",), "executed": ("action.executed",)}


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
        "sha256": sha256_of(aside),
        **manifest,
    }
    manifest_aside = folder / f".{MANIFEST_NAME}.writing"
    manifest_aside.write_text(json.dumps(written, indent=2) + "\n")
    os.replace(aside, table_file)
    os.replace(manifest_aside, folder / MANIFEST_NAME)
    return written


def read_table(folder: Path, memory: Memory) -> Demonstrations:
    """Read a folder written by ``write_demonstrations``, after checking its version and hash.

    Args:
        folder: of the demonstrations.
        memory: what may be held of them.

    Raises:
        DemonstrationsError: a file is missing, of an unknown version, or differs from its hash.
    """
    import pyarrow.parquet as pq

    manifest = read_manifest(folder)
    table_file = folder / TABLE_NAME
    if not table_file.is_file():
        raise DemonstrationsError(f"{table_file} is missing; collect again with chunkcast-collect --out {folder}")
    sha256 = sha256_of(table_file)
    if sha256 != manifest.get("sha256"):
        raise DemonstrationsError(
            f"{table_file} has SHA-256 {sha256[:12]}..., its manifest says "
            f"{str(manifest.get('sha256'))[:12]}...; the file is damaged or was replaced: collect again"
        )
    episodes = pq.read_table(table_file, columns=["episode_index", "task", "seed"])
    episode_index = episodes["episode_index"].to_numpy()
    first_rows = np.flatnonzero(np.diff(episode_index, prepend=-1))
    columns = read_columns([table_file], COLUMNS, memory.folder_of(folder, sha256), memory)
    return Demonstrations(
        **columns,
        episode_index=np.array(episode_index),
        episode_tasks=tuple(episodes["task"].take(first_rows).to_pylist()),
        episode_seeds=tuple(episodes["seed"].take(first_rows).to_pylist()),
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
