"""The losses equal what their equations say, for every prediction type."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

from chunkcast.simulation.metaworld_tasks import STATE_ELEMENTS
from chunkcast.training.choices import PredictionType
from chunkcast.training.denoisers.residual_mlp import ResidualMlpDenoiser
from chunkcast.training.loss import CONTINUATION_DECAY, continued_chunk, denoising_loss, penalty, timestep_weights
from chunkcast.training.policy import BINS, DiffusionPolicy, PolicyConfig
from chunkcast.training.sampling import training_noise_scheduler
from chunkcast.training.state_differences import differences_of, previous_of
from chunkcast.training.windows import Batch

PREDICTION_TYPES = ("sample", "epsilon", "v_prediction")


def policy(prediction_type: str) -> DiffusionPolicy:
    config = PolicyConfig(
        state_size=3,
        action_size=2,
        instruction_size=2,
        observation_steps=1,
        horizon=4,
        denoiser="mlp",
        width=16,
        blocks=1,
        embedding_size=16,
        objective="diffusion",
        prediction_type=cast(PredictionType, prediction_type),
        train_timesteps=100,
        max_committed_steps=3,
    )
    torch.manual_seed(0)
    made = DiffusionPolicy(
        config,
        torch.zeros(3),
        torch.ones(3),
        torch.zeros(2),
        torch.ones(()),
        torch.tensor([-1.0, -10.0]),
        torch.tensor([1.0, 30.0]),
    )
    torch.nn.init.normal_(chunk_out(made).weight, std=0.1)
    return made


def chunk_out(made: DiffusionPolicy) -> torch.nn.Linear:
    assert isinstance(made.denoiser, ResidualMlpDenoiser)
    return made.denoiser.chunk_out


def batch(size: int = 6) -> Batch:
    mask = torch.ones(size, 4)
    mask[0, 2:] = 0.0
    actions = torch.stack([torch.rand(size, 4) * 2 - 1, torch.rand(size, 4) * 40 - 10], -1)
    executed = (actions + torch.randn(size, 4, 2) * 0.1).clamp(-1.0, 1.0)
    return Batch(torch.randn(size, 1, 3), torch.eye(2)[torch.arange(size) % 2], actions, executed, mask, mask * 0.0)


def nothing_committed(size: int = 6) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.int64)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_noise_mse_is_that_of_the_implied_noise(prediction_type: str) -> None:
    made, scheduler = policy(prediction_type), training_noise_scheduler(policy(prediction_type).config)
    windows = batch()
    timestep, noise = torch.tensor([0, 5, 20, 50, 80, 99]), torch.randn(6, 4, 2)
    loss = denoising_loss(made, scheduler, windows, timestep, noise, nothing_committed())

    clean = made.normalize_actions(windows.actions)
    abar = scheduler.alphas_cumprod[timestep][:, None, None]
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    prediction = made(noisy, timestep, made.encode(windows.state, windows.instruction), torch.zeros(6, 4))
    noise_hat = {
        "sample": (noisy - abar.sqrt() * prediction) / (1 - abar).sqrt(),
        "epsilon": prediction,
        "v_prediction": abar.sqrt() * prediction + (1 - abar).sqrt() * noisy,
    }[prediction_type]
    squared = ((noise_hat - noise) ** 2).mean(-1)
    expected = (squared * windows.mask).sum(-1) / windows.mask.sum(-1)
    torch.testing.assert_close(loss.noise_mse, expected, rtol=1e-3, atol=1e-5)


def test_masked_actions_do_not_count() -> None:
    made, scheduler = policy("sample"), training_noise_scheduler(policy("sample").config)
    windows = batch()
    timestep, noise = torch.full((6,), 99), torch.randn(6, 4, 2)
    # At the last timestep the noisy chunk is noise alone, so the network cannot see the actions that are changed.
    scheduler.alphas_cumprod[99] = 0.0
    before = denoising_loss(made, scheduler, windows, timestep, noise, nothing_committed()).objective
    windows.actions[0, 2:] = 0.123
    torch.testing.assert_close(
        denoising_loss(made, scheduler, windows, timestep, noise, nothing_committed()).objective, before
    )
    windows.actions[0, 1] = 0.123
    assert denoising_loss(made, scheduler, windows, timestep, noise, nothing_committed()).objective[0] != before[0]


def test_later_actions_weigh_less_from_the_first_that_is_not_given() -> None:
    made, scheduler = policy("sample"), training_noise_scheduler(policy("sample").config)
    torch.nn.init.zeros_(chunk_out(made).weight)
    windows = batch()
    executed = windows.actions.clone()
    windows = replace(windows, executed=executed)  # what is committed is what the expert did: continued as it is
    timestep, noise = torch.full((6,), 50), torch.randn(6, 4, 2)
    prefix_length = torch.tensor([0, 0, 1, 2, 3, 0])
    loss = denoising_loss(made, scheduler, windows, timestep, noise, prefix_length, discount=0.5)
    squared = (made.normalize_actions(windows.actions) ** 2).mean(-1)
    rows = [
        (1, 0.5, 0, 0),
        (1, 0.5, 0.25, 0.125),
        (0, 1, 0.5, 0.25),
        (0, 0, 1, 0.5),
        (0, 0, 0, 1),
        (1, 0.5, 0.25, 0.125),
    ]
    weights = torch.tensor(rows)
    torch.testing.assert_close(loss.minimized, (squared * weights).sum(-1) / weights.sum(-1))
    # What is reported, and compared with validation, does not depend on it.
    alike = denoising_loss(made, scheduler, windows, timestep, noise, prefix_length)
    assert torch.equal(loss.noise_mse, alike.noise_mse)
    assert torch.equal(loss.objective, alike.objective)
    torch.testing.assert_close(alike.minimized, alike.objective)
    large = denoising_loss(made, scheduler, windows, timestep, noise, prefix_length, huber=0.1)
    assert torch.equal(large.objective, alike.objective)
    assert not torch.equal(large.minimized, alike.minimized)


def test_the_encoder_sees_differences_of_the_state() -> None:
    """In their own scale and by the intervals that they were met in; a glitch still drives the network nowhere."""
    config = replace(policy("sample").config, differences=((0, 1), (2, 1)))
    made = DiffusionPolicy(
        config, torch.zeros(3), torch.ones(3), torch.zeros(2), torch.ones(()), torch.zeros(2), torch.ones(2)
    )
    made.fit_intervals(torch.tensor([[1.0, 0.5, 0.5], [0.5, 1.0, 1.0]]))
    torch.testing.assert_close(made.difference_std, torch.tensor([0.5, 1e-4]))
    seen: list[torch.Tensor] = []
    made.encoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    made.encode(torch.tensor([[[0.3, 0.2, 0.7]]]), torch.tensor([[0.0, 1.0]]))
    # The first was met from -0.5 to 0.5, so 0.1 lies in the 29th of 48 intervals, at 0.8 of it; the other was always 0.
    binned = torch.full((2, BINS), 1.0)
    binned[0, 28:] = -1.0
    binned[0, 28] = 2 * 0.8 - 1
    expected = [torch.tensor([0.3, 0.2, 0.7, 0.0, 1.0]), torch.tensor([0.2, 5.0]), binned.flatten()]
    torch.testing.assert_close(seen[0], torch.cat(expected)[None], rtol=0.0, atol=1e-4)


def test_a_large_error_counts_by_its_size_and_the_likelier_of_two_actions_costs_least() -> None:
    errors = torch.tensor([0.0, 0.001, 1.0])
    torch.testing.assert_close(
        penalty(errors**2, 0.1), torch.tensor([0.0, 0.001**2 / 0.2, 1.01**0.5 - 0.1]), rtol=1e-4, atol=0.0
    )
    assert torch.equal(penalty(errors**2, 0.0), errors**2)
    demonstrated, answers = torch.tensor([-1.0] * 4 + [1.0] * 6), torch.linspace(-1.0, 1.0, 201)
    squared = (answers[:, None] - demonstrated) ** 2
    for huber, learned in ((0.0, 0.2), (0.1, 0.91)):
        best = answers[penalty(squared, huber).mean(-1).argmin()]
        assert float(best) == pytest.approx(learned, abs=0.02)


def test_points_are_compared_with_each_other_and_with_where_they_were() -> None:
    names = "hand_x hand_y hand_z grip cup_x cup_y cup_z previous_hand_x previous_hand_y previous_hand_z half_x"
    elements = [(name, "1" if name == "grip" else "m") for name in names.split()]
    assert differences_of(elements) == ((0, 4), (1, 5), (2, 6), (0, 7), (1, 8), (2, 9))
    assert previous_of(elements) == ((7, 0), (8, 1), (9, 2))
    assert differences_of([("q_x", "1"), ("q_y", "1"), ("q_z", "1")]) == ()
    assert len(differences_of(STATE_ELEMENTS)) == 3 * (6 + 3)


def test_committed_actions_are_given_and_do_not_count() -> None:
    made, scheduler = policy("sample"), training_noise_scheduler(policy("sample").config)
    windows = batch()
    timestep, noise = torch.full((6,), 50), torch.randn(6, 4, 2)
    prefix_length = torch.tensor([0, 1, 2, 3, 3, 0])
    seen: list[torch.Tensor] = []
    made.denoiser.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    loss = denoising_loss(made, scheduler, windows, timestep, noise, prefix_length)
    executed = made.normalize_actions(windows.executed)
    for window, length in enumerate(prefix_length.tolist()):
        torch.testing.assert_close(seen[0][window, :length], executed[window, :length])
    # Other noise on what is committed changes nothing.
    noise[3, :3] += 1.0
    again = denoising_loss(made, scheduler, windows, timestep, noise, prefix_length)
    torch.testing.assert_close(again.objective, loss.objective)


def test_what_is_committed_is_continued_smoothly_back_to_the_expert() -> None:
    clean = torch.zeros(2, 4, 1)
    executed = torch.tensor([[0.3, 0.5, 0.9, 0.9], [0.5, 0.5, 0.5, 0.5]])[..., None]
    continued = continued_chunk(clean, executed, torch.tensor([2, 0]))[..., 0]
    decay = CONTINUATION_DECAY
    torch.testing.assert_close(continued[0], torch.tensor([0.3, 0.5, 0.5 * decay, 0.5 * decay**2]))
    assert continued[1].tolist() == [0, 0, 0, 0]


def test_predicting_no_noise_scores_one() -> None:
    """What the seed's bands called acceptable (1 to 2) is worse than this untrained zero."""
    made, scheduler = policy("epsilon"), training_noise_scheduler(policy("epsilon").config)
    torch.nn.init.zeros_(chunk_out(made).weight)
    loss = denoising_loss(
        made, scheduler, batch(4096), torch.randint(100, (4096,)), torch.randn(4096, 4, 2), nothing_committed(4096)
    )
    assert float(loss.noise_mse.mean()) == pytest.approx(1.0, abs=0.03)


def test_weights_are_clamped_and_no_timestep_has_them_all() -> None:
    scheduler = training_noise_scheduler(policy("sample").config)
    abar = scheduler.alphas_cumprod
    snr = abar / (1 - abar)
    of_sample = timestep_weights(scheduler, "sample", "clamped-snr")
    of_epsilon = timestep_weights(scheduler, "epsilon", "clamped-snr")
    assert (float(of_sample.min()), float(of_sample.max())) == (1.0, 5.0)
    # noise error = clean error x SNR: above an SNR of 1 both weigh the same error alike.
    torch.testing.assert_close((of_epsilon * snr)[snr >= 1], of_sample[snr >= 1])
    assert of_epsilon.max() == 1.0
    for weights in (of_sample, of_epsilon):
        assert weights.max() / weights.sum() < 0.05
    assert (timestep_weights(scheduler, "sample", "uniform") == 1.0).all()


def test_actions_are_normalized_from_the_robots_bounds() -> None:
    made = policy("sample")
    corners = torch.tensor([[-1.0, -10.0], [1.0, 30.0], [0.0, 10.0]])
    normalized = made.normalize_actions(corners)
    assert normalized.tolist() == [[-1, -1], [1, 1], [0, 0]]
    torch.testing.assert_close(made.denormalize_actions(normalized), corners)
    assert made.denormalize_actions(torch.tensor([[5.0, -5.0]])).tolist() == [[1.0, -10.0]]
