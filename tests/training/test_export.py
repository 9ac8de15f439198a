"""The exported graph equals diffusers' DDIM, for both prediction types and any evaluations, or is not written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

from chunkcast.server.bundle import read_bundle
from chunkcast.server.engine import Engine
from chunkcast.training.checkpoint import LAST_CHECKPOINT, load_policy, read_checkpoint
from chunkcast.training.errors import ExportError
from chunkcast.training.export.cli import ExportConfig, export_command
from chunkcast.training.export.parity import verify_parity
from chunkcast.training.export.policy_graph import onnx_graph
from chunkcast.training.policy import DiffusionPolicy, PolicyConfig
from chunkcast.training.sampling import sampling_scheduler
from chunkcast.training.train_config import TrainConfig


@pytest.fixture
def policy(small_run: Path) -> DiffusionPolicy:
    return load_policy(read_checkpoint(small_run / LAST_CHECKPOINT))


def with_prediction_type(policy: DiffusionPolicy, prediction_type: str) -> DiffusionPolicy:
    config: PolicyConfig = replace(policy.config, prediction_type=prediction_type)  # type: ignore[arg-type]
    other = DiffusionPolicy(
        config,
        policy.state_mean,
        policy.state_std,
        policy.instruction_mean,
        policy.instruction_scale,
        policy.action_low,
        policy.action_high,
    )
    other.load_state_dict(policy.state_dict())
    return other.eval()


@pytest.mark.parametrize("evaluations", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_graph_equals_diffusers_ddim(policy: DiffusionPolicy, prediction_type: str, evaluations: int) -> None:
    policy = with_prediction_type(policy, prediction_type)
    scheduler = sampling_scheduler(policy.config, evaluations)
    assert verify_parity(onnx_graph(policy, scheduler), policy, scheduler) < 1e-3


def test_committed_actions_come_back_as_the_chunks_first_rows(policy: DiffusionPolicy) -> None:
    config, scheduler = policy.config, sampling_scheduler(policy.config, 2)
    session = onnxruntime.InferenceSession(onnx_graph(policy, scheduler), providers=["CPUExecutionProvider"])

    def graph(*inputs: torch.Tensor) -> torch.Tensor:
        feeds = {each.name: value.numpy() for each, value in zip(session.get_inputs(), inputs, strict=True)}
        return torch.from_numpy(session.run(None, feeds)[0])

    generator = torch.Generator().manual_seed(0)
    state = torch.randn(3, config.observation_steps, config.state_size, generator=generator)
    instruction = torch.eye(config.instruction_size)[[0, 1, 0]]
    noise = torch.randn(3, config.horizon, config.action_size, generator=generator)
    prefix = torch.rand(3, config.horizon, config.action_size, generator=generator) * 2 - 1
    lengths = torch.tensor([0, 1, config.max_committed_steps])
    actions = graph(state, instruction, noise, prefix, lengths)
    free = graph(state, instruction, noise, prefix * 0.5, lengths * 0)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(actions[row, :length], prefix[row, :length])
    # What is committed decides what follows; where nothing is, the prefix is not looked at.
    torch.testing.assert_close(actions[0], free[0])
    assert (actions[2, config.max_committed_steps :] - free[2, config.max_committed_steps :]).abs().max() > 1e-3


def test_a_graph_that_differs_is_refused(policy: DiffusionPolicy) -> None:
    scheduler = sampling_scheduler(policy.config, 2)
    graph = onnx_graph(policy, scheduler)
    with torch.no_grad():
        policy.action_low.add_(0.05)
    with pytest.raises(ExportError, match="differs from the sampler in torch by"):
        verify_parity(graph, policy, scheduler)


def test_a_bundle_is_what_the_server_reads(small_run: Path, small_config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "small"
    export_command(ExportConfig(run=small_run, out=out, steps=3, description="for a test"))
    bundle = read_bundle(out)
    engine = Engine(bundle)
    engine.warm_up()
    spec, run = bundle.spec, read_checkpoint(small_run / LAST_CHECKPOINT).run
    assert (spec.name, spec.description) == ("small", "for a test")
    assert spec.version == spec.files[0].sha256[:12]
    assert spec.sampler.evaluations == 3
    assert [instruction.text for instruction in spec.instructions] == ["drawer-close-v3", "pick-place-v3"]
    assert (spec.action.horizon, spec.action.execute_steps) == (16, 4)
    assert spec.action.max_committed_steps == small_config.max_committed_steps == 8
    assert (spec.observation_steps, spec.action.control_rate_hz) == (2, 80.0)
    element = spec.observations[0].elements[2]
    assert (element.name, element.unit) == ("hand_z", "m")
    assert 0 < element.training_min < element.training_max < 1
    assert spec.training.data_sha256 == run["data_sha256"]
    assert spec.training.validation_noise_mse == run["history"][-1]["validation_noise_mse"]
    assert spec.training.epochs == small_config.epochs
    assert spec.provenance.versions["torch"].startswith("2.")


def test_bundles_are_replaced_only_when_told(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    export_command(ExportConfig(run=small_run, out=out))
    (out / "README.md").write_text("kept")
    with pytest.raises(ExportError, match="exists; pass --overwrite"):
        export_command(ExportConfig(run=small_run, out=out, steps=1))
    export_command(ExportConfig(run=small_run, out=out, steps=1, overwrite=True))
    assert read_bundle(out).spec.sampler.evaluations == 1
    assert (out / "README.md").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    with pytest.raises(ExportError, match="is not a bundle"):
        export_command(ExportConfig(run=small_run, out=small_run, overwrite=True))


def test_a_graph_depends_on_the_policy_alone(policy: DiffusionPolicy) -> None:
    """Its hash names the version, and the exporting machine's paths are nobody's business."""
    scheduler = sampling_scheduler(policy.config, 2)
    graph = onnx_graph(policy, scheduler)
    assert graph == onnx_graph(policy, scheduler)
    assert str(Path.cwd()).encode() not in graph
    assert b".py" not in graph


def test_the_specification_is_plain_json(small_run: Path, tmp_path: Path) -> None:
    export_command(ExportConfig(run=small_run, out=tmp_path / "small"))
    spec = json.loads((tmp_path / "small" / "policy.json").read_text())
    assert spec["format_version"] == 1
    assert spec["observations"][0]["key"] == "observation.state"


def test_more_steps_than_the_process_has_are_refused(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--steps 101 exceeds the 100 timesteps"):
        export_command(ExportConfig(run=small_run, out=tmp_path / "x", steps=101))
