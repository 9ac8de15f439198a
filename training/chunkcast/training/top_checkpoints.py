"""The checkpoints of a run that are worth keeping: by the success that was measured, and by the validation loss.

Neither ranking follows from the other: the lowest loss is seldom the best policy, and success of few episodes is a
number with an interval. So both are kept, ``keep`` of each, with what is known of them in ``checkpoints/top.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chunkcast.training.checkpoint import top_checkpoint
from chunkcast.training.errors import CheckpointError
from chunkcast.training.files import write_json

TOP = Path("checkpoints/top.json")


@dataclass(frozen=True)
class Candidate:
    """A checkpoint as it is ranked.

    Attributes:
        epoch: after which it was written.
        validation_loss: of its averaged weights.
        success: share of the episodes that it solved, through the server; ``None`` where it was not played.
        episodes: that were played.
        ci95: Wilson's interval of ``success``.
        first_seed: of the episodes, which take the following ones.
    """

    epoch: int
    validation_loss: float
    success: float | None = None
    episodes: int = 0
    ci95: tuple[float, float] | None = None
    first_seed: int = 0


def told(candidate: Candidate) -> str:
    """Its success in words."""
    if candidate.success is None or candidate.ci95 is None:
        return f"not played, validation loss {candidate.validation_loss:.5f}"
    low, high = candidate.ci95
    return (
        f"success {candidate.success:.1%} ({low:.1%} - {high:.1%}) of {candidate.episodes} episodes through the server"
    )


def by_success(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that were played, the most successful first; of equal ones the later, which has learned longer."""
    played = [candidate for candidate in candidates if candidate.success is not None]
    return sorted(played, key=lambda candidate: (-(candidate.success or 0.0), -candidate.epoch))


def by_validation(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The lowest loss first."""
    return sorted(candidates, key=lambda candidate: (candidate.validation_loss, candidate.epoch))


class TopCheckpoints:
    """Keeps the files of the best candidates of a run, and removes those that are overtaken.

    Args:
        run: folder of the run.
        keep: of each ranking; 0 keeps none.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self._run, self._keep = run, keep
        self._candidates: list[Candidate] = []
        self._played: list[Candidate] = []

    @property
    def candidates(self) -> list[Candidate]:
        """All whose files are kept."""
        return list(self._candidates)

    def has_played(self, epoch: int) -> bool:
        """Whether the checkpoint of ``epoch`` was played."""
        return any(candidate.epoch == epoch for candidate in self._played)

    def resume(self, epoch: int) -> None:
        """Take up what was kept up to ``epoch``; later ones were written after the checkpoint that is resumed."""
        kept, played = read_top(self._run)
        self._candidates = [candidate for candidate in kept if candidate.epoch <= epoch]
        self._played = [candidate for candidate in played if candidate.epoch <= epoch]

    def wants(self, validation_loss: float) -> bool:
        """Whether a checkpoint of this loss would be kept for it."""
        ranked = by_validation(self._candidates)[: self._keep]
        return self._keep > 0 and (len(ranked) < self._keep or validation_loss < ranked[-1].validation_loss)

    def add(self, candidate: Candidate) -> None:
        """Rank a candidate whose file is written, and remove what is overtaken.

        One of its epoch that was ranked before, not yet played, gives way to it.
        """
        self._candidates = [*_others(self._candidates, candidate), candidate]
        if candidate.success is not None:
            self._played = [*_others(self._played, candidate), candidate]
        kept = {one.epoch for ranked in (by_success, by_validation) for one in ranked(self._candidates)[: self._keep]}
        overtaken = [one for one in self._candidates if one.epoch not in kept]
        self._candidates = [one for one in self._candidates if one.epoch in kept]
        facts = {"kept": self._candidates, "played": self._played}
        write_json(self._run / TOP, {name: [asdict(one) for one in listed] for name, listed in facts.items()})
        for one in overtaken:
            (self._run / top_checkpoint(one.epoch)).unlink(missing_ok=True)


def _others(candidates: Sequence[Candidate], than: Candidate) -> list[Candidate]:
    return [one for one in candidates if one.epoch != than.epoch]


def read_top(run: Path) -> tuple[list[Candidate], list[Candidate]]:
    """What a run has kept, and all that it has played.

    Raises:
        CheckpointError: the file is not of this release.
    """
    file = run / TOP
    if not file.is_file():
        return [], []
    try:
        facts: dict[str, list[dict[str, Any]]] = json.loads(file.read_text())
        kept, played = (
            [Candidate(**{**one, "ci95": tuple(one["ci95"]) if one["ci95"] else None}) for one in facts[name]]
            for name in ("kept", "played")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is not of this release ({error}); delete it to rank anew") from None
    return kept, played


def most_successful(run: Path) -> Path:
    """The checkpoint of ``run`` that solved most of its rollouts.

    Raises:
        CheckpointError: none was played.
    """
    ranked = by_success(read_top(run)[0])
    if not ranked:
        raise CheckpointError(f"{run} has played no checkpoint; train with --rollout-every")
    return run / top_checkpoint(ranked[0].epoch)
