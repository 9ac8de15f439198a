"""The second graph: the policy's own denoising loss and embedding, with weights that stay in the policy's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from chunkcast.training.checkpoint import LAST_CHECKPOINT, load_policy, read_checkpoint
from chunkcast.training.errors import ExportError
from chunkcast.training.export.exporter import export_bundle
from chunkcast.training.export.health_graph import HealthGraph, health_graph
from chunkcast.training.export.policy_graph import onnx_graph
from chunkcast.training.policy import DiffusionPolicy
from chunkcast.training.sampling import sampling_scheduler, training_noise_scheduler
from tests.training.test_export import with_prediction_type


@pytest.fixture
def policy(small_run: Path) -> DiffusionPolicy:
    return load_policy(read_checkpoint(small_run / LAST_CHECKPOINT))


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_the_graph_equals_torch_and_holds_no_weights(policy: DiffusionPolicy, prediction_type: str) -> None:
    policy = with_prediction_type(policy, prediction_type)
    weights = onnx_graph(policy, sampling_scheduler(policy.config, 2))
    # It compares itself with torch before it is returned.
    graph = health_graph(policy, training_noise_scheduler(policy.config), weights, "policy.onnx")
    large = [value.numpy().tobytes() for value in policy.state_dict().values() if value.numel() >= 1024]
    assert len(large) > 5
    for weight in large:
        assert weight in weights
        assert weight not in graph


def test_weights_of_another_policy_are_refused(policy: DiffusionPolicy) -> None:
    weights = onnx_graph(policy, sampling_scheduler(policy.config, 2))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    with pytest.raises(ExportError, match="it was made of another policy"):
        health_graph(policy, training_noise_scheduler(policy.config), weights, "policy.onnx")


def test_the_loss_is_the_objective_at_fixed_noise(policy: DiffusionPolicy) -> None:
    """By hand, with diffusers' own noising."""
    scheduler = training_noise_scheduler(policy.config)
    module = HealthGraph(policy, scheduler).eval()
    config, generator = policy.config, torch.Generator().manual_seed(0)
    state = policy.state_mean + torch.randn(3, config.observation_steps, config.state_size, generator=generator)
    instruction = torch.eye(config.instruction_size)[[0, 1, 0]]
    actions = torch.rand(3, config.horizon, config.action_size, generator=generator) * 2 - 1
    with torch.no_grad():
        loss, embedding = module(state, instruction, None, actions)
        encoded = policy.encode(state, instruction)
        errors = []
        for timestep, noise in zip(module.timesteps, module.noise, strict=True):
            steps = timestep.repeat(3)
            noisy = scheduler.add_noise(policy.normalize_actions(actions), noise[None].expand(3, -1, -1), steps)
            predicted = policy(noisy, steps, encoded, torch.zeros(3, config.horizon))
            errors.append(((predicted - policy.normalize_actions(actions)) ** 2).mean((1, 2)))
    torch.testing.assert_close(loss, torch.stack(errors).mean(0))
    torch.testing.assert_close(embedding, encoded)


def test_it_is_in_the_bundle_and_finds_its_weights_by_path(small_run: Path, tmp_path: Path) -> None:
    exported = export_bundle(small_run / LAST_CHECKPOINT, tmp_path / "bundle", name="small", steps=2)
    assert [file.path for file in exported.spec.files] == ["policy.onnx", "health.onnx"]
    assert [each.epoch for each in exported.spec.training.loss_curve] == [1, 2, 3, 4]
    session = onnxruntime.InferenceSession(str(tmp_path / "bundle" / "health.onnx"), providers=["CPUExecutionProvider"])
    feeds = {each.name: np.zeros([5, *each.shape[1:]], np.float32) for each in session.get_inputs()}
    loss, embedding = session.run(["denoising_loss", "embedding"], feeds)
    assert loss.shape == (5,)
    assert embedding.shape[0] == 5
