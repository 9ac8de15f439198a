"""Checkpoints: one safetensors file with weights, averaged weights and optimiser state, and its facts as metadata.

safetensors holds tensors and strings only: loading one runs no code. A file is written aside and renamed, so that
whatever bears a checkpoint's name is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from chunkcast.training.errors import CheckpointError
from chunkcast.training.language.instructions import Instructions
from chunkcast.training.policy import DiffusionPolicy, PolicyConfig

FORMAT_VERSION = "4"

LAST_CHECKPOINT = Path("checkpoints/last.safetensors")
BEST_CHECKPOINT = Path("checkpoints/best.safetensors")


def epoch_checkpoint(epoch: int) -> Path:
    """Where the averaged weights of one of ``keep_epochs`` lie, within the run."""
    return Path(f"checkpoints/epoch-{epoch:04d}.safetensors")


def top_checkpoint(epoch: int) -> Path:
    """Where the averaged weights of an epoch lie that is worth keeping for what it achieved, within the run."""
    return Path(f"checkpoints/top-{epoch:04d}.safetensors")


EMBEDDINGS_TENSOR = "instructions.embeddings"


@dataclass(frozen=True)
class Progress:
    """Where a run stands at the end of an epoch.

    Attributes:
        epoch: epochs done.
        step: optimiser steps done.
        best_validation_loss: the lowest so far.
        best_epoch: the epoch that had it.
    """

    epoch: int
    step: int
    best_validation_loss: float
    best_epoch: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        policy_config: the network's shapes.
        instructions: what the policy can be told.
        run: facts that export copies into the bundle (data, settings, losses).
        progress: where the run stood.
        tensors: name to tensor, prefixed ``model.``, ``ema.`` or ``optimizer.``.
    """

    policy_config: PolicyConfig
    instructions: Instructions
    run: dict[str, Any]
    progress: Progress
    tensors: dict[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors under ``prefix``, which is removed from their names."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def write_checkpoint(file: Path, checkpoint: Checkpoint) -> None:
    """Write aside, then rename over ``file``.

    Raises:
        CheckpointError: there is no room for it; what was there before is still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {
        "format_version": FORMAT_VERSION,
        "policy_config": json.dumps(asdict(checkpoint.policy_config)),
        "instructions": json.dumps(checkpoint.instructions.facts()),
        "run": json.dumps(checkpoint.run),
        "progress": json.dumps(asdict(checkpoint.progress)),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.writing")
    # save_file refuses tensors that share memory or are not contiguous.
    tensors = {name: value.detach().contiguous().cpu().clone() for name, value in checkpoint.tensors.items()}
    tensors[EMBEDDINGS_TENSOR] = checkpoint.instructions.embeddings.contiguous().cpu()
    aside.touch()  # with the mode that the user's umask gives, where save_file would make it private
    mode = aside.stat().st_mode
    try:
        save_file(tensors, aside, metadata)
        aside.chmod(mode)
        os.replace(aside, file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be written ({error}); make room, and pass --resume") from None
    finally:
        aside.unlink(missing_ok=True)


def read_checkpoint(file: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: the file is missing, not a safetensors file, or not a checkpoint of this version.
    """
    with _opened(file) as (opened, metadata):
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    embeddings = tensors.pop(EMBEDDINGS_TENSOR)
    return Checkpoint(
        policy_config=_policy_config(json.loads(metadata["policy_config"])),
        instructions=Instructions.from_facts(json.loads(metadata["instructions"]), embeddings),
        run=json.loads(metadata["run"]),
        progress=Progress(**json.loads(metadata["progress"])),
        tensors=tensors,
    )


def _policy_config(facts: dict[str, Any]) -> PolicyConfig:
    """JSON has lists where the configuration has tuples."""
    differences = tuple((int(one), int(other)) for one, other in facts.pop("differences", ()))
    tuples = {name: tuple(facts.get(name, ())) for name in ("views", "image_sizes", "binned")}
    return PolicyConfig(**{**facts, **tuples}, differences=differences)


def read_run_facts(file: Path) -> dict[str, Any]:
    """``Checkpoint.run`` alone, without the tensors.

    Raises:
        CheckpointError: as ``read_checkpoint``.
    """
    with _opened(file) as (_, metadata):
        return dict(json.loads(metadata["run"]))


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The checkpoint's file and metadata, of the version that is read here."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise CheckpointError(f"{file} is missing; expected a checkpoint that chunkcast-train wrote")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format_version") != FORMAT_VERSION:
                raise CheckpointError(
                    f"{file} has checkpoint version {metadata.get('format_version')!r}, expected {FORMAT_VERSION!r}; "
                    "train again"
                )
            yield opened, metadata
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a whole safetensors file ({error}); train again") from None


def load_policy(checkpoint: Checkpoint) -> DiffusionPolicy:
    """The policy with its averaged weights, on the CPU, in evaluation mode."""
    weights = checkpoint.part("ema")
    policy = DiffusionPolicy(
        checkpoint.policy_config,
        weights["state_mean"],
        weights["state_std"],
        weights["instruction_mean"],
        weights["instruction_scale"],
        weights["action_low"],
        weights["action_high"],
    )
    policy.load_state_dict(weights)
    return policy.eval().requires_grad_(False)
