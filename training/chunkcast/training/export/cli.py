"""``chunkcast-export``: a bundle from a checkpoint."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from chunkcast.training.choices import Precision
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
    steps: int | None = None
    """Evaluations of the denoiser per chunk; by default what the run was trained for: 1 for a one-step student, 2 for
    MIP, else 4 (DDIM steps)."""
    best: bool = False
    """Export the checkpoint with the lowest validation loss instead of the last one. It is seldom the better policy:
    measure both."""
    most_successful: bool = False
    """Export the checkpoint that solved most of the rollouts while it trained (chunkcast-train --rollout-every)."""
    precision: Precision = "fp32"
    """Numbers that the graph computes in: int8 is faster on processors that multiply in it, fp16 is for GPUs. Either is
    compared with fp32 on the run's demonstrations, and refused if its actions differ by too much."""
    data: Path | None = None
    """The run's demonstrations, for that comparison; by default where they were."""
    overwrite: bool = False
    """Replace a bundle that exists."""

    def __post_init__(self) -> None:
        """Refuse values that no bundle could have."""
        name = self.name or self.out.resolve().name
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
            raise TrainingError(f"the policy's name is {name!r}, expected letters, digits, dots, dashes; pass --name")
        if self.best and self.most_successful:
            raise TrainingError("--best and --most-successful are two checkpoints; pass one of them")
        if self.steps is not None and self.steps < 1:
            raise TrainingError(f"--steps must be at least 1, got {self.steps}")


def main() -> None:
    """Console script."""
    run_command(ExportConfig, export_command)


def export_command(config: ExportConfig) -> None:
    """Export, verify, write, and say what was written."""
    from rich.console import Console

    from chunkcast.v1 import policy_pb2 as pb

    with Console(stderr=True).status("loading torch") as status:
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        from chunkcast.training.checkpoint import BEST_CHECKPOINT, LAST_CHECKPOINT
        from chunkcast.training.export.bundle_writer import GRAPH_NAME, SPEC_NAME
        from chunkcast.training.export.exporter import export_bundle
        from chunkcast.training.top_checkpoints import most_successful

        within = config.run / (BEST_CHECKPOINT if config.best else LAST_CHECKPOINT)
        if config.most_successful:
            within = most_successful(config.run)
        exported = export_bundle(
            config.run if config.run.is_file() else within,
            config.out,
            name=config.name or config.out.resolve().name,
            steps=config.steps,
            version=config.version or "",
            description=config.description,
            overwrite=config.overwrite,
            precision=config.precision,
            data=config.data,
            on_stage=status.update,
        )
    spec = exported.spec
    print(
        f"{config.out}: {spec.name} {spec.version}, epoch {exported.epoch}, {spec.sampler.evaluations} evaluations; "
        f"{GRAPH_NAME} {exported.graph_bytes / 1e6:.1f} MB and {SPEC_NAME}; in fp32 it differs from torch by at most "
        f"{exported.parity:.1e}"
    )
    if spec.HasField("variant"):
        variant = spec.variant
        print(
            f"{variant.precision}: actions differ from those in fp32 by {variant.action_difference:.2%} of their range "
            f"(root mean square of {variant.observations} observations; at most {variant.bound:.1%})"
        )
    for finding in spec.training.findings:
        if finding.severity != pb.FINDING_SEVERITY_INFO:
            severity = pb.FindingSeverity.Name(finding.severity).removeprefix("FINDING_SEVERITY_").lower()
            print(f"{severity}: {finding.code}: {finding.evidence}; {finding.advice}")


if __name__ == "__main__":
    main()
