"""A checkpoint's success, measured where it counts: exported, served, and played over gRPC by ``chunkcast-sim``.

The simulator and its client are other parts of the house: they are run as the commands that they are. What was played
is kept beside the checkpoint, so that an interrupted calibration goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chunkcast.training.errors import TrainingError
from chunkcast.training.files import write_json

STOP_SECONDS = 15.0
"""For an interrupted simulation to end its workers and its server."""


@dataclass(frozen=True)
class Rollouts:
    """Episodes to play.

    Attributes:
        episodes: of each task.
        seed: the first episode's; the others take the following ones.
        workers: parallel robots.

    Raises:
        TrainingError: there is nothing to play, or no robot.
    """

    episodes: int
    seed: int
    workers: int

    def __post_init__(self) -> None:
        """Refuse what cannot be played."""
        if self.episodes < 1 or self.workers < 1:
            raise TrainingError(f"--episodes and --workers must be at least 1, got {self.episodes} and {self.workers}")

    def play_checkpoint(self, file: Path, steps: int | None = None, folder: Path | None = None) -> dict[str, Any]:
        """Export ``file`` with ``steps`` evaluations, serve and play it; what ``chunkcast-sim --json`` writes.

        Args:
            steps: by default what export would take.
            folder: where the summary is kept, and looked for; by default ``rollouts`` in the checkpoint's run.

        Raises:
            TrainingError: the checkpoint cannot be exported or played; the command's own message says why.
        """
        from chunkcast.training.export.exporter import export_bundle

        key = {"checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "steps": steps}
        folder = folder or file.parent.parent / "rollouts"
        kept = folder / f"{file.stem}-steps{steps or ''}-seed{self.seed}-n{self.episodes}.json"
        if (summary := _kept(kept, key)) is not None:
            return summary
        with tempfile.TemporaryDirectory(prefix="chunkcast-") as aside:
            bundle = Path(aside) / "checkpoint"
            export_bundle(file, bundle, name="checkpoint", steps=steps)
            summary = self.play_bundle(bundle)
        write_json(kept, {**key, "summary": summary})
        return summary

    def play_bundle(self, bundle: Path, *arguments: str) -> dict[str, Any]:
        """Serve and play ``bundle``, with further ``arguments`` to ``chunkcast-sim``; what its ``--json`` writes.

        Raises:
            TrainingError: it cannot be played.
        """
        with tempfile.TemporaryDirectory(prefix="chunkcast-") as folder:
            file = Path(folder) / "summary.json"
            command = [sys.executable, "-m", "chunkcast.client.sim.cli", "--bundle", str(bundle), "--json", str(file)]
            command += ["--episodes", str(self.episodes), "--seed", str(self.seed), "--workers", str(self.workers)]
            command += arguments
            # A session of its own: Ctrl-C reaches this program, which then ends the other and all that it started.
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            try:
                _, log = process.communicate()
            except BaseException:
                process.send_signal(signal.SIGINT)
                try:
                    process.communicate(timeout=STOP_SECONDS)
                except BaseException:  # it hangs, or a second Ctrl-C; its server ends with the pipe that it holds
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                raise
            if process.returncode:
                reason = log.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
                raise TrainingError(f"{bundle} could not be played ({reason[0].removeprefix('error: ')})")
            summary: dict[str, Any] = json.loads(file.read_text())
            return summary


def _kept(file: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The summary that was kept for ``key``, if it is there and whole."""
    if not file.is_file():
        return None
    try:
        kept = json.loads(file.read_text())
        return dict(kept["summary"]) if all(kept[name] == value for name, value in key.items()) else None
    except (ValueError, KeyError, TypeError):
        return None
