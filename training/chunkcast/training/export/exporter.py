"""From a checkpoint's file to a verified bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chunkcast.training.checkpoint import load_policy, read_checkpoint
from chunkcast.training.choices import Precision
from chunkcast.training.errors import ExportError
from chunkcast.training.export.bundle_writer import GRAPH_NAME, write_bundle
from chunkcast.training.export.demonstrated import demonstrated_observations
from chunkcast.training.export.health_graph import health_graph
from chunkcast.training.export.parity import verify_parity
from chunkcast.training.export.policy_graph import onnx_graph
from chunkcast.training.export.specification import policy_spec
from chunkcast.training.export.variants import (
    BOUND,
    CALIBRATION_FRAMES,
    COMPARED_FRAMES,
    near_variant,
    smaller,
)
from chunkcast.training.sampling import sampling_scheduler, training_noise_scheduler
from chunkcast.v1 import policy_pb2 as pb

DEFAULT_EVALUATIONS = 4


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        spec: as in the bundle.
        epoch: of the checkpoint.
        parity: the largest difference between graph and torch.
        graph_bytes: the graph's size.
    """

    spec: pb.PolicySpec
    epoch: int
    parity: float
    graph_bytes: int


def export_bundle(
    file: Path,
    out: Path,
    *,
    name: str,
    steps: int | None = None,
    version: str = "",
    description: str = "",
    overwrite: bool = False,
    precision: Precision = "fp32",
    data: Path | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Exported:
    """Export the averaged weights in ``file`` as one ONNX graph with the sampler inside, compared with torch first.

    Args:
        file: a checkpoint.
        out: the bundle's folder.
        name: the policy's.
        steps: evaluations a chunk; by default what the run was trained for.
        precision: of the graph; other than fp32 it is compared with that on demonstrated observations.
        data: the run's demonstrations, for that; by default where they were.
        version: by default the first 12 digits of the graph's SHA-256.
        on_stage: told what is being done.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ExportError: more steps than the process has, the graph differs, or the folder may not be replaced.
        DemonstrationsError: another precision was asked for, and the run's demonstrations cannot be read.
    """
    checkpoint = read_checkpoint(file)
    timesteps = checkpoint.policy_config.train_timesteps
    student = bool(checkpoint.run["config"]["teacher"])
    steps = steps or (1 if student else min(DEFAULT_EVALUATIONS, timesteps))
    if student and steps > 1:
        raise ExportError(f"--steps {steps}: the run is a one-step student's; leave --steps out")
    if steps > timesteps:
        raise ExportError(f"--steps {steps} exceeds the {timesteps} timesteps of training")
    policy = load_policy(checkpoint)
    scheduler = sampling_scheduler(checkpoint.policy_config, steps)
    on_stage("exporting the graph")
    graph = onnx_graph(policy, scheduler)
    on_stage("comparing with torch")
    parity = verify_parity(graph, policy, scheduler)
    variant, smaller_graph = None, None
    if precision != "fp32":
        on_stage(f"comparing {precision} with fp32")
        calibration, held_out = demonstrated_observations(
            checkpoint, data, calibrating=CALIBRATION_FRAMES, comparing=COMPARED_FRAMES
        )
        span = (policy.action_high - policy.action_low).numpy()
        variant = near_variant(graph, precision, calibration, held_out, span)
        smaller_graph = partial(smaller, precision=precision, calibration=calibration, whole_views=variant.whole_views)
        graph = variant.graph
    on_stage("exporting the health graph")
    noise_scheduler = training_noise_scheduler(checkpoint.policy_config)
    second = health_graph(policy, noise_scheduler, graph, GRAPH_NAME, smaller_graph)
    spec = policy_spec(
        checkpoint,
        hashlib.sha256(file.read_bytes()).hexdigest(),
        name=name,
        description=description,
        evaluations=steps,
        parity=parity,
    )
    spec.version = version
    if variant:
        spec.variant.precision, spec.variant.bound = precision, BOUND
        spec.variant.action_difference, spec.variant.observations = variant.difference, variant.observations
    write_bundle(out, graph, spec, overwrite=overwrite, health_graph=second)
    return Exported(spec, checkpoint.progress.epoch, parity, len(graph))
