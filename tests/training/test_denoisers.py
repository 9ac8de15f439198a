"""Every denoiser trains, sees what it is given, and exports as any other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chunkcast.training.choices import DenoiserName, Objective
from chunkcast.training.denoisers.denoiser import DenoiserConfig, make_denoiser
from chunkcast.training.errors import TrainingError
from chunkcast.training.export.parity import verify_parity
from chunkcast.training.export.policy_graph import onnx_graph
from chunkcast.training.mip import T_STAR, MipScheduler
from chunkcast.training.policy import DiffusionPolicy, PolicyConfig
from chunkcast.training.sampling import sample_chunk, sampling_scheduler

SHAPES = DenoiserConfig(horizon=8, action_size=3, embedding_size=32, width=64, blocks=2, sees_committed=True)
NAMES: tuple[DenoiserName, ...] = ("mlp", "unet", "transformer")


def small_policy(denoiser: DenoiserName, objective: Objective = "diffusion") -> DiffusionPolicy:
    """With random weights, also where a fresh network's are zero."""
    config = PolicyConfig(
        state_size=5,
        action_size=3,
        instruction_size=2,
        observation_steps=1,
        horizon=8,
        denoiser=denoiser,
        width=64,
        blocks=2,
        embedding_size=32,
        objective=objective,
        prediction_type="sample",
        train_timesteps=2 if objective == "mip" else 100,
        max_committed_steps=4,
    )
    torch.manual_seed(0)
    bounds = torch.full((3,), -2.0), torch.full((3,), 2.0)
    policy = DiffusionPolicy(config, torch.zeros(5), torch.ones(5), torch.zeros(2), torch.ones(()), *bounds)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy.eval()


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_given_matters_and_every_weight_learns(name: DenoiserName) -> None:
    torch.manual_seed(0)
    denoiser = make_denoiser(name, SHAPES)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    inputs = {
        "noisy": torch.randn(4, 8, 3),
        "timestep": torch.tensor([0, 10, 50, 99]),
        "embedding": torch.randn(4, 32),
        "committed": torch.zeros(4, 8),
    }
    answer = denoiser(**inputs)
    assert answer.shape == (4, 8, 3)
    others = {
        "noisy": torch.randn(4, 8, 3),
        "timestep": torch.tensor([99, 50, 10, 0]),
        "embedding": torch.randn(4, 32),
        "committed": torch.ones(4, 8),
    }
    for key, other in others.items():
        assert (denoiser(**{**inputs, key: other}) - answer).abs().max() > 1e-4, key
    # A window's answer does not depend on what shares its batch; one timestep may stand for all.
    alone = denoiser(**{key: value[1:2] for key, value in inputs.items()})
    torch.testing.assert_close(alone[0], answer[1])
    answer.square().mean().backward()
    assert not [key for key, parameter in denoiser.named_parameters() if parameter.grad is None]
    assert not [key for key, parameter in denoiser.named_parameters() if not parameter.grad.abs().sum()]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_a_fresh_network_predicts_zero(name: DenoiserName) -> None:
    denoiser = make_denoiser(name, SHAPES)
    answer = denoiser(torch.randn(2, 8, 3), torch.tensor([3]), torch.randn(2, 32), torch.zeros(2, 8))
    assert answer.abs().max() == 0


def test_the_seeds_head_has_its_parameters() -> None:
    shapes = DenoiserConfig(horizon=20, action_size=4, embedding_size=512, width=256, blocks=3, sees_committed=False)
    with torch.device("meta"):
        unet = make_denoiser("unet", shapes)
    assert sum(parameter.numel() for parameter in unet.parameters()) / 1e6 == pytest.approx(72.8, abs=0.3)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("unet", {"horizon": 9}, "--horizon is 9, expected a multiple of 2 for a U-Net"),
        ("unet", {"width": 36}, "--width is 36, expected a multiple of 8"),
        ("transformer", {"width": 96}, "--width is 96, expected a multiple of 64"),
    ],
)
def test_shapes_that_it_cannot_have_are_refused(name: DenoiserName, change: dict[str, int], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        make_denoiser(name, replace(SHAPES, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["unet", "transformer"])
def test_it_exports(name: DenoiserName) -> None:
    policy = small_policy(name)
    scheduler = sampling_scheduler(policy.config, 2)
    assert verify_parity(onnx_graph(policy, scheduler), policy, scheduler) < 1e-3


@pytest.mark.parametrize("evaluations", [1, 2])
def test_mip_exports_and_does_not_depend_on_the_noise(evaluations: int) -> None:
    policy = small_policy("mlp", "mip")
    scheduler = sampling_scheduler(policy.config, evaluations)
    assert verify_parity(onnx_graph(policy, scheduler), policy, scheduler) < 1e-3
    state, told, nothing = torch.randn(2, 1, 5), torch.eye(2), torch.zeros(2, dtype=torch.int64)
    chunks = [
        sample_chunk(policy, scheduler, state, told, torch.randn(2, 8, 3), torch.zeros(2, 8, 3), nothing)
        for _ in range(2)
    ]
    torch.testing.assert_close(chunks[0], chunks[1])


def test_mip_is_two_regressions() -> None:
    """Section 4 of the paper: the first from nothing, the second from t* of the first's answer."""
    policy, scheduler = small_policy("mlp", "mip"), MipScheduler(2)
    state, told = torch.randn(2, 1, 5), torch.eye(2)
    encoded, free = policy.encode(state, told), torch.zeros(2, 8)
    first = policy(torch.zeros(2, 8, 3), torch.tensor([1]), encoded, free).clamp(-1.0, 1.0)
    second = policy(T_STAR * first, torch.tensor([0]), encoded, free)
    nothing = torch.zeros(2, dtype=torch.int64)
    chunk = sample_chunk(policy, scheduler, state, told, torch.randn(2, 8, 3), torch.zeros(2, 8, 3), nothing)
    torch.testing.assert_close(chunk, policy.denormalize_actions(second))
    clean, noise = torch.ones(2, 8, 3), torch.full((2, 8, 3), 2.0)
    noisy = scheduler.add_noise(clean, noise, torch.tensor([0, 1]))
    torch.testing.assert_close(noisy[0], torch.full((8, 3), T_STAR + 2.0 * (1.0 - T_STAR)))
    assert noisy[1].abs().max() == 0
