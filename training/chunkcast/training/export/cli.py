"""``chunkcast-export``: a bundle from a checkpoint."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from chunkcast.training.errors import TrainingError, run_command


@dataclass(frozen=True)
class ExportConfig:
    """Export a run's averaged weights as one ONNX graph with the sampler inside, compared with torch first."""

    run: Path
    """Folder of the run, or a checkpoint file (then that one is taken)."""
    out: Path
    """Folder of the bundle: policy.onnx and policy.json."""
    name: str | None = None
    """The policy's name; by default the bundle folder's."""
    version: str | None = None
    """The policy's version; by default the first 12 digits of the graph's SHA-256."""
    description: str = ""
    """One line for people."""
    steps: int = 4
    """Evaluations of the denoiser per chunk (DDIM steps)."""
    best: bool = False
    """Export the checkpoint with the lowest validation loss instead of the last one. It is seldom the better policy:
    measure both."""
    overwrite: bool = False
    """Replace a bundle that exists."""

    def __post_init__(self) -> None:
        """Refuse values that no bundle could have."""
        name = self.name or self.out.resolve().name
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
            raise TrainingError(f"the policy's name is {name!r}, expected letters, digits, dots, dashes; pass --name")
        if self.steps < 1:
            raise TrainingError(f"--steps must be at least 1, got {self.steps}")


def main() -> None:
    """Console script."""
    run_command(ExportConfig, export_command)


def export_command(config: ExportConfig) -> None:
    """Export, verify, write, and say what was written."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("loading torch"):
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        from chunkcast.training.checkpoint import load_policy, read_checkpoint
        from chunkcast.training.errors import ExportError
        from chunkcast.training.export.bundle_writer import GRAPH_NAME, SPEC_NAME, write_bundle
        from chunkcast.training.export.ddim_graph import onnx_graph
        from chunkcast.training.export.parity import verify_parity
        from chunkcast.training.export.specification import policy_spec
        from chunkcast.training.policy import sampling_scheduler
        from chunkcast.training.trainer import BEST_CHECKPOINT, LAST_CHECKPOINT

    file = config.run if config.run.is_file() else config.run / (BEST_CHECKPOINT if config.best else LAST_CHECKPOINT)
    checkpoint = read_checkpoint(file)
    if config.steps > checkpoint.policy_config.train_timesteps:
        raise ExportError(
            f"--steps {config.steps} exceeds the {checkpoint.policy_config.train_timesteps} timesteps of training"
        )
    policy = load_policy(checkpoint)
    scheduler = sampling_scheduler(checkpoint.policy_config, config.steps)
    with console.status("exporting the graph"):
        graph = onnx_graph(policy, scheduler)
    with console.status("comparing with torch"):
        parity = verify_parity(graph, policy, scheduler)
    spec = policy_spec(
        checkpoint,
        hashlib.sha256(file.read_bytes()).hexdigest(),
        name=config.name or config.out.resolve().name,
        description=config.description,
        evaluations=config.steps,
        parity=parity,
    )
    spec.version = config.version or ""
    write_bundle(config.out, graph, spec, overwrite=config.overwrite)
    print(
        f"{config.out}: {spec.name} {spec.version}, epoch {checkpoint.progress.epoch}, {config.steps} evaluations; "
        f"{GRAPH_NAME} {len(graph) / 1e6:.1f} MB and {SPEC_NAME}; differs from torch by at most {parity:.1e}"
    )


if __name__ == "__main__":
    main()
