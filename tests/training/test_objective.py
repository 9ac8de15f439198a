"""What a training step draws at random, what it minimises of it, and what it reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chunkcast.training import objective as module
from chunkcast.training.draws import Draws
from chunkcast.training.language.instructions import EncoderIdentity, Instructions, task_names
from chunkcast.training.loss import DenoisingLoss, denoising_loss, timestep_weights
from chunkcast.training.objective import Objective
from chunkcast.training.policy import DiffusionPolicy
from chunkcast.training.sampling import training_noise_scheduler
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.windows import Batch
from tests.training.test_loss import batch, policy

CPU = torch.device("cpu")
SIZE = 40
CONFIG = TrainConfig(data=Path("data"), out=Path("run"), horizon=4, max_committed_steps=3, execute_steps=4)


class Drawn:
    """What ``denoising_loss`` was called with, and what it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "denoising_loss", self)

    def __call__(self, *arguments: Any) -> DenoisingLoss:
        self.batch: Batch
        _, _, self.batch, self.timestep, self.noise, self.prefix_length, self.discount, self.huber, _ = arguments
        self.loss = denoising_loss(*arguments)
        return self.loss


def objective(config: TrainConfig, made: DiffusionPolicy, instructions: Instructions | None = None) -> Objective:
    return Objective(
        config,
        made,
        training_noise_scheduler(made.config),
        instructions=instructions or task_names(("a", "b")),
        device=CPU,
        bf16=False,
        previous=((2, 0),),
    )


def test_a_share_of_the_windows_is_noised_to_the_end_and_the_others_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn, made = Drawn(monkeypatch), policy("sample")
    config = replace(CONFIG, noise_only_fraction=0.75, chunk_discount=0.5, huber=0.2, committed_fraction=0.0)
    minimized, reported = objective(config, made).loss(batch(SIZE), Draws(torch.Generator().manual_seed(0)))
    assert (drawn.timestep[:30] == 99).all()
    assert len(drawn.timestep[30:].unique()) > 5
    assert (drawn.discount, drawn.huber) == (0.5, 0.2)
    weights = timestep_weights(training_noise_scheduler(made.config), "sample", "clamped-snr")[drawn.timestep]
    torch.testing.assert_close(minimized, (weights * drawn.loss.minimized).mean())
    assert torch.equal(reported.objective, drawn.loss.objective[30:])
    assert torch.equal(reported.noise_mse, drawn.loss.noise_mse[30:])


def test_a_noise_predictor_reports_its_noise_mse_as_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """By which health tells it from others, whatever the discount."""
    Drawn(monkeypatch)
    config = replace(CONFIG, prediction_type="epsilon", noise_only_fraction=0.0)
    _, reported = objective(config, policy("epsilon")).loss(batch(SIZE), Draws(torch.Generator()))
    assert torch.equal(reported.objective, reported.noise_mse)


@pytest.mark.parametrize("share", [1.0, 0.99])
def test_there_is_always_something_to_report(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    Drawn(monkeypatch)
    _, reported = objective(replace(CONFIG, noise_only_fraction=share), policy("sample")).loss(
        batch(8), Draws(torch.Generator())
    )
    assert len(reported.objective) == 1


def test_a_share_of_the_windows_has_committed_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(monkeypatch)
    made = objective(replace(CONFIG, committed_fraction=0.25), policy("sample"))
    made.loss(batch(2000), Draws(torch.Generator().manual_seed(0)))
    committed = drawn.prefix_length > 0
    assert 0.2 < committed.float().mean() < 0.3
    assert drawn.prefix_length[committed].unique().tolist() == [1, 2, 3]


def test_sentences_get_noise_of_their_own_spread_and_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, made, windows = Drawn(monkeypatch), policy("sample"), batch(2000)
    made.instruction_scale.fill_(0.5)
    names = task_names(("a", "b"))
    objective(CONFIG, made, names).loss(windows, Draws(torch.Generator()))
    assert torch.equal(drawn.batch.instruction, windows.instruction)
    sentences = replace(names, encoder=EncoderIdentity("made", "0" * 64))
    objective(replace(CONFIG, instruction_noise=0.2), made, sentences).loss(windows, Draws(torch.Generator()))
    assert float((drawn.batch.instruction - windows.instruction).std()) == pytest.approx(0.2 * 0.5, rel=0.1)


def test_a_share_of_the_windows_is_seen_as_if_nothing_had_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tick before that stands in the state, and by the observations before."""
    drawn, made = Drawn(monkeypatch), policy("sample")
    windows = batch(SIZE)
    objective(replace(CONFIG, motion_dropout=0.0), made).loss(windows, Draws(torch.Generator()))
    assert torch.equal(drawn.batch.state, windows.state)
    objective(replace(CONFIG, motion_dropout=0.5), made).loss(windows, Draws(torch.Generator()))
    seen = drawn.batch.state[:, 0]
    still = seen[:, 2] == seen[:, 0]
    assert 10 < int(still.sum()) < 30
    assert torch.equal(seen[:, :2], windows.state[:, 0, :2])
    assert torch.equal(seen[~still], windows.state[~still, 0])
    two = replace(windows, state=torch.randn(SIZE, 2, 3)).stilled(torch.ones(SIZE, dtype=torch.bool), ((2, 0),))
    assert torch.equal(two.state[:, 0], two.state[:, 1])


def test_the_same_generator_draws_the_same() -> None:
    made, windows = policy("sample"), batch(SIZE)
    first, second = (
        objective(CONFIG, made).loss(windows, Draws(torch.Generator().manual_seed(7)))[0].item() for _ in range(2)
    )
    assert first == second
