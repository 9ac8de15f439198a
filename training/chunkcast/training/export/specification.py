"""The PolicySpec of a checkpoint: everything a server and a robot must know about a policy."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from chunkcast.simulation.cameras import Camera
from chunkcast.simulation.policy_cameras import camera_message
from chunkcast.training.checkpoint import Checkpoint
from chunkcast.training.choices import PredictionType
from chunkcast.training.export.policy_graph import STATE_INPUT, image_inputs
from chunkcast.training.health.judge import judge, run_settings
from chunkcast.training.health.loss_curve import curve_of_records
from chunkcast.training.health.messages import finding_message, seed_table_expectation
from chunkcast.training.history import EpochRecord
from chunkcast.training.language.messages import instruction_messages, text_encoder_message
from chunkcast.training.policy import PolicyConfig
from chunkcast.v1 import policy_pb2 as pb

BUNDLE_FORMAT_VERSION = 1

PREDICTION_TYPES: dict[PredictionType, pb.PredictionType.ValueType] = {
    "sample": pb.PREDICTION_TYPE_SAMPLE,
    "epsilon": pb.PREDICTION_TYPE_EPSILON,
    "v_prediction": pb.PREDICTION_TYPE_V_PREDICTION,
}


def policy_spec(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    *,
    name: str,
    description: str,
    evaluations: int,
    parity: float,
) -> pb.PolicySpec:
    """The specification of ``checkpoint`` sampled in ``evaluations`` steps; files and version are left to the writer.

    Args:
        checkpoint_sha256: of the checkpoint's file.
        parity: the largest difference that ``verify_parity`` measured.
    """
    config, run = checkpoint.policy_config, checkpoint.run
    manifest = run["data_manifest"]
    return pb.PolicySpec(
        format_version=BUNDLE_FORMAT_VERSION,
        name=name,
        description=description,
        observations=[_state_entry(run, manifest, config.state_size), *_camera_entries(config, run)],
        observation_steps=config.observation_steps,
        instructions=instruction_messages(checkpoint.instructions),
        text_encoder=text_encoder_message(checkpoint.instructions),
        action=pb.ActionSpec(
            elements=[
                pb.ActionElement(name=element, unit=unit, low=low, high=high)
                for element, unit, low, high in manifest["action"]["elements"]
            ],
            control_rate_hz=manifest["control_rate_hz"],
            horizon=config.horizon,
            execute_steps=run["config"]["execute_steps"],
            max_committed_steps=config.max_committed_steps,
        ),
        sampler=pb.SamplerSpec(
            name=sampler_name(config),
            prediction_type=PREDICTION_TYPES[config.prediction_type],
            train_timesteps=config.train_timesteps,
            evaluations=evaluations,
            parity_max_abs_difference=parity,
        ),
        training=_training_facts(checkpoint),
        expected_success=_expected_from_loss(checkpoint),
        provenance=pb.Provenance(
            exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
            checkpoint_sha256=checkpoint_sha256,
            versions={
                "python": platform.python_version(),
                **{package: version(package) for package in ("chunkcast", "torch", "diffusers", "onnx", "onnxscript")},
                **{f"collect/{package}": number for package, number in manifest.get("versions", {}).items()},
            },
            train_command=run["command"],
        ),
    )


def sampler_name(config: PolicyConfig) -> str:
    """``DDIM``, or ``MIP``."""
    return "MIP" if config.objective == "mip" else "DDIM"


def _expected_from_loss(checkpoint: Checkpoint) -> list[pb.ExpectedSuccess]:
    """What the seed would have read off the loss; nothing where the loss is not that of denoising."""
    if not run_settings(checkpoint.run).denoises:
        return []
    return [seed_table_expectation(checkpoint.run["history"][-1]["train_noise_mse"])]


def _camera_entries(config: PolicyConfig, run: dict[str, Any]) -> list[pb.ObservationEntry]:
    cameras = {facts["view"]: Camera(**facts) for facts in run["frames"]["cameras"]} if config.views else {}
    return [
        pb.ObservationEntry(
            key=key,
            dtype=pb.DATA_TYPE_UINT8,
            shape=[size, size, 3],
            meaning="a camera's picture, RGB, the first row on top",
            camera=camera_message(cameras[view]),
        )
        for key, view, size in zip(image_inputs(config), config.views, config.image_sizes, strict=True)
    ]


def _state_entry(run: dict[str, Any], manifest: dict[str, Any], size: int) -> pb.ObservationEntry:
    state_min, state_max = run["state_range"]
    elements = [
        pb.ElementSpec(name=element, unit=unit, training_min=low, training_max=high)
        for (element, unit), low, high in zip(manifest["state"]["elements"][:size], state_min, state_max, strict=True)
    ]
    return pb.ObservationEntry(
        key=STATE_INPUT,
        dtype=pb.DATA_TYPE_FLOAT32,
        shape=[len(elements)],
        elements=elements,
        meaning=manifest["state"]["meaning"]
        if size == len(manifest["state"]["elements"])
        else "what the robot knows of itself, at this tick",
    )


def _training_facts(checkpoint: Checkpoint) -> pb.TrainingFacts:
    run, record = checkpoint.run, checkpoint.run["history"][-1]
    curve = curve_of_records(EpochRecord(**epoch) for epoch in run["history"])
    return pb.TrainingFacts(
        data_sha256=run["data_sha256"],
        episodes=run["episodes"],
        windows=run["training_windows"],
        first_seed=run["data_manifest"]["first_seed"],
        last_seed=run["data_manifest"]["last_seed"],
        epochs=checkpoint.progress.epoch,
        optimizer_steps=checkpoint.progress.step,
        parameters=run["parameters"],
        seconds=run["seconds"],
        train_loss=record["train_loss"],
        validation_loss=record["validation_loss"],
        train_noise_mse=record["train_noise_mse"],
        validation_noise_mse=record["validation_noise_mse"],
        validation_noise_mse_by_timestep=record["validation_noise_mse_by_timestep"],
        best_validation_noise_mse=min(epoch["validation_noise_mse"] for epoch in run["history"]),
        validation_noise_mse_by_task=record["validation_noise_mse_by_task"],
        validation_action_mse=record["validation_action_mse"],
        validation_action_mse_by_task=record["validation_action_mse_by_task"],
        validation_action_variance=record["validation_action_variance"],
        findings=[finding_message(finding) for finding in judge(curve, run_settings(run))],
        loss_curve=[
            pb.EpochLosses(
                epoch=epoch["epoch"],
                train_noise_mse=epoch["train_noise_mse"],
                validation_noise_mse=epoch["validation_noise_mse"],
            )
            for epoch in run["history"]
        ],
    )
