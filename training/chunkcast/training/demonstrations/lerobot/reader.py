"""A LeRobotDataset v3 as demonstrations.

An episode's task is the sentence that its frames name; where these change within an episode, it is cut there. What such
a data set does not say is read off it: an action's bounds are the smallest and the largest that were demonstrated.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.demonstrations.columns import read_columns
from chunkcast.training.demonstrations.episodes import BOUNDS, DEMONSTRATED, Demonstrations
from chunkcast.training.demonstrations.lerobot.layout import (
    ACTION,
    DATA,
    ENVIRONMENT_STATE,
    EXECUTED,
    INFO,
    OWN_FACTS,
    SEED,
    STATE,
    TASKS,
)
from chunkcast.training.demonstrations.memory import Memory
from chunkcast.training.demonstrations.rows import Rows
from chunkcast.training.demonstrations.statistics import row_statistics
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.files import sha256_of

FORMAT = "LeRobotDataset"
OWN = ("manifest", "task_sentences")
LEAST_SPAN = 1e-3
"""Of an action's bounds: one that never changed has to lie between two numbers all the same."""


def read_lerobot(folder: Path, memory: Memory) -> Demonstrations:
    """As ``_read``; whatever is wrong with its files is said in one line."""
    import pyarrow as pa

    try:
        return _read(folder, memory)
    except (pa.ArrowException, KeyError, IndexError, StopIteration, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DemonstrationsError(f"{folder} is no whole LeRobotDataset ({reason[:200]})") from None


def _read(folder: Path, memory: Memory) -> Demonstrations:
    """Read a local LeRobotDataset v3.

    Args:
        folder: its root, which holds ``meta`` and ``data``.
        memory: what may be held of it.

    Raises:
        DemonstrationsError: it is of another version, files are missing, or it has no states or no actions.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    info = _read_info(folder)
    features = info["features"]
    files = sorted((folder / DATA).glob("*/*.parquet"))
    if not files:
        raise DemonstrationsError(f"{folder / DATA} holds no Parquet file; expected a whole LeRobotDataset")
    sha256 = _sha256(folder, files)
    columns = _columns(folder, features)
    rows = read_columns(files, columns, memory.folder_of(folder, sha256), memory)
    rows.setdefault("executed", rows["actions"])
    for name, parts in columns.items():
        described = sum(int(np.prod(features[part]["shape"])) for part in parts)
        if rows[name].shape[1] != described:
            raise DemonstrationsError(
                f"{', '.join(parts)} of {folder} have {rows[name].shape[1]} entries, {INFO} says {described}"
            )

    known = ["episode_index", "task_index", *([SEED] if SEED in features else [])]
    index = pa.concat_tables(pq.read_table(file, columns=known) for file in files)
    episode, task = (_numbers(folder, index, name) for name in ("episode_index", "task_index"))
    if (np.diff(episode) < 0).any():
        raise DemonstrationsError(f"the episodes of {folder} are not in order; write it again with lerobot")
    first_rows = np.flatnonzero((np.diff(episode, prepend=-1) != 0) | (np.diff(task, prepend=-1) != 0))
    sentences = _tasks(folder)
    if unknown := sorted(set(task[first_rows].tolist()) - set(sentences)):
        raise DemonstrationsError(f"{folder / TASKS} has no task {unknown[0]}, which frames name")
    own = _own_facts(folder)
    names = {sentence: name for name, sentence in own.get("task_sentences", {}).items()}
    tasks = tuple(names.get(sentences[number], sentences[number]) for number in task[first_rows].tolist())
    seeds = _numbers(folder, index, SEED)[first_rows] if SEED in features else np.arange(len(first_rows))
    lengths = np.diff([*first_rows, len(episode)])
    manifest = {
        "format": FORMAT,
        "version": info["codebase_version"],
        "recorder": info.get("robot_type") or "unknown",
        "control_rate_hz": float(info["fps"]),
        "state": {
            "meaning": "what the robot observed before the action",
            "elements": _state_elements(features, columns["states"]),
        },
        "action": {"elements": _action_elements(features, rows["actions"]), BOUNDS: DEMONSTRATED},
        **_own_manifest(folder, own.get("manifest", {}), rows, float(info["fps"])),
        "sha256": sha256,
        "episodes": len(first_rows),
        "frames": len(episode),
        "first_seed": int(seeds.min()),
        "last_seed": int(seeds.max()),
    }
    manifest.setdefault(
        "tasks",
        {
            name: {
                "episodes": tasks.count(name),
                "frames": int(sum(length for task, length in zip(tasks, lengths, strict=True) if task == name)),
            }
            for name in sorted(set(tasks))
        },
    )
    return Demonstrations(
        states=rows["states"],
        actions=rows["actions"],
        executed=rows["executed"],
        episode_index=np.repeat(np.arange(len(first_rows), dtype=np.int32), lengths),
        episode_tasks=tasks,
        episode_seeds=tuple(seeds.tolist()),
        manifest=manifest,
    )


def _read_info(folder: Path) -> dict[str, Any]:
    file = folder / INFO
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        version, features, fps = str(info["codebase_version"]), info["features"], float(info["fps"])
        shapes = all(isinstance(feature["shape"], list) and feature["dtype"] for feature in features.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DemonstrationsError(f"{file} does not describe a LeRobotDataset ({error!r})") from None
    if not version.startswith("v3."):
        raise DemonstrationsError(
            f"{folder} is a LeRobotDataset {version}, expected v3; convert it with lerobot's convert_dataset_v21_to_v30"
        )
    if not shapes or not fps > 0:
        raise DemonstrationsError(f"{file} has features without a shape, or no frames per second")
    return dict(info)


def _columns(folder: Path, features: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """The Parquet columns that states, actions and executed actions are made of."""
    states = tuple(name for name in (STATE, ENVIRONMENT_STATE) if name in features)
    if not states or ACTION not in features:
        raise DemonstrationsError(
            f"{folder} has the features {', '.join(features)}; expected {ACTION}, and {STATE} or {ENVIRONMENT_STATE}"
        )
    columns = {"states": states, "actions": (ACTION,)}
    if EXECUTED in features:
        columns["executed"] = (EXECUTED,)
    return columns


def _sha256(folder: Path, files: list[Path]) -> str:
    """Of everything that rows are made of; the files' names and contents."""
    digest = hashlib.sha256()
    own = [folder / OWN_FACTS] if (folder / OWN_FACTS).is_file() else []
    for file in (folder / INFO, folder / TASKS, *own, *files):
        if not file.is_file():
            raise DemonstrationsError(f"{file} is missing; expected a whole LeRobotDataset")
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _numbers(folder: Path, table: Any, column: str) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = table[column].to_numpy()
    if values.dtype.kind not in "iu":
        raise DemonstrationsError(f"{column} of {folder} has the type {values.dtype}, expected integers")
    return values.astype(np.int64)


def _tasks(folder: Path) -> dict[int, str]:
    """Sentence by ``task_index``. pandas writes the sentences as the table's index, under a name or none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(folder / TASKS)
    texts = [name for name in table.column_names if pa.types.is_string(table.schema.field(name).type)]
    texts += [name for name in table.column_names if pa.types.is_large_string(table.schema.field(name).type)]
    if len(texts) != 1 or "task_index" not in table.column_names:
        raise DemonstrationsError(f"{folder / TASKS} has the columns {table.column_names}, expected sentences by index")
    return dict(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))


def _own_facts(folder: Path) -> dict[str, Any]:
    file = folder / OWN_FACTS
    if not file.is_file():
        return {}
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DemonstrationsError(f"{file} is not JSON ({error}); collect again, or delete it") from None
    if not isinstance(facts, dict) or not all(isinstance(facts.get(name, {}), dict) for name in OWN):
        raise DemonstrationsError(f"{file} is not what chunkcast-collect writes; collect again, or delete it")
    return dict(facts)


def _own_manifest(folder: Path, manifest: dict[str, Any], rows: dict[str, Rows], fps: float) -> dict[str, Any]:
    """What this project says of the set, where it is still of this set."""
    for name, column in (("state", "states"), ("action", "actions")):
        if name in manifest and len(manifest[name]["elements"]) != rows[column].shape[1]:
            raise DemonstrationsError(
                f"{folder / OWN_FACTS} has {len(manifest[name]['elements'])} elements of the {name}, the set has "
                f"{rows[column].shape[1]}; collect again, or delete the file"
            )
    if manifest.get("control_rate_hz", fps) != fps:
        raise DemonstrationsError(
            f"{folder / OWN_FACTS} says {manifest['control_rate_hz']} Hz, the set {fps}; collect again, or delete the "
            "file"
        )
    return manifest


def _names(features: dict[str, Any], column: str) -> list[str]:
    """Of a feature's entries: a list, a list under a heading such as ``motors``, or nothing at all."""
    feature = features[column]
    size, names = int(np.prod(feature["shape"])), feature.get("names")
    if isinstance(names, dict):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    if isinstance(names, list) and len(names) == size:
        return [str(name) for name in names]
    return [f"{column.rsplit('.', 1)[-1]}_{number}" for number in range(size)]


def _state_elements(features: dict[str, Any], columns: tuple[str, ...]) -> list[list[str]]:
    """Name and unit of each entry; LeRobot records no units."""
    return [[name, ""] for column in columns for name in _names(features, column)]


def _action_elements(features: dict[str, Any], actions: Rows) -> list[list[Any]]:
    statistics = row_statistics(actions, np.arange(len(actions)))
    elements: list[list[Any]] = []
    for name, low, high in zip(
        _names(features, ACTION), statistics.low.tolist(), statistics.high.tolist(), strict=True
    ):
        wider = max(0.0, LEAST_SPAN - (high - low)) / 2
        elements.append([name, "", low - wider, high + wider])
    return elements
