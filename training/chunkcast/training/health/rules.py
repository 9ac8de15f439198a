"""The seed's warning signs, as pure functions: does a rule hold at this epoch of this loss curve?

Every rule looks at one moment of a curve and at nothing else, so that the same function warns while a run trains and
judges it afterwards. The thresholds are the seed's where it named them; what its prose left open is said at the
constant. No framework, no clock, no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chunkcast.training.health.findings import Finding
from chunkcast.training.health.loss_curve import EpochLosses, LossCurve, is_finite

EXPLOSION_LOSS = 100.0
PLATEAU_LOSS = 2.0
PLATEAU_EPOCHS = 5
PLATEAU_CHANGE = 0.1
"""A plateau's losses differ by at most this share of the highest; the seed gave no number."""
NO_IMPROVEMENT_EPOCHS = 5
IMPROVEMENT = 0.001
"""A lower loss counts as better from this share on: the last digits of a mean over random noise are no progress."""
GOOD_ENOUGH_TO_STAND_STILL = 0.5
"""The end of the seed's band "excellent": below it, a loss that no longer falls has converged."""
VALIDATION_FACTOR = 2.0
VALIDATION_EPOCHS = 3
"""A gap must last: in the first epochs averaged weights lag behind, and one epoch's ratio is noise."""
VALIDATION_RISE = 0.1
"""Held-out loss above its lowest by this share of it is rising; below, it is noise."""
OSCILLATION_EPOCHS = 8
OSCILLATION_CLIMB = 0.5
"""All steps up within the last epochs, as a share of their mean loss. A healthy run's noise climbs a fraction of it."""
OSCILLATION_TURNS = 3
"""Changes of direction within them: a single jump is none."""


@dataclass(frozen=True)
class Moment:
    """A run as it stood after one epoch.

    Attributes:
        curve: the whole history; epochs after ``now`` are not looked at.
        now: index of the epoch that is judged.
        best: index of the lowest judged loss up to ``now``.
    """

    curve: LossCurve
    now: int
    best: int

    @property
    def epoch(self) -> EpochLosses:
        """The epoch that is judged."""
        return self.curve[self.now]

    @property
    def judged_since_best(self) -> int:
        """Epochs after the best one whose loss compares with its: held-out with held-out."""
        held_out = self.curve[self.best].validation_loss is not None
        # A few hundred decide as well as all.
        later = self.curve[max(self.best + 1, self.now - 500) : self.now + 1]
        return sum(not held_out or epoch.validation_loss is not None for epoch in later)

    def last_validated(self, epochs: int) -> LossCurve:
        """The last ``epochs`` epochs that have a held-out loss, or fewer; not further back than ten times as many."""
        recent = [epoch for epoch in self.last(10 * epochs) if epoch.validation_loss is not None]
        return recent[-epochs:]

    def last(self, epochs: int) -> LossCurve:
        """The last ``epochs`` epochs, or fewer at the start."""
        return self.curve[max(0, self.now - epochs + 1) : self.now + 1]


Rule = Callable[[Moment], Finding | None]


def non_finite(moment: Moment) -> Finding | None:
    """A loss, gradient norm or error is NaN or infinite."""
    epoch = moment.epoch
    values = {
        "train_loss": epoch.train_loss,
        "validation_loss": epoch.validation_loss,
        "train_noise_mse": epoch.train_noise_mse,
        "validation_noise_mse": epoch.validation_noise_mse,
        "action_mse": epoch.action_mse,
        "action_variance": epoch.action_variance,
        "gradient_norm": epoch.gradient_norm,
    }
    broken = [f"{name} {value}" for name, value in values.items() if not is_finite(value)]
    if not broken:
        return None
    return Finding(
        "non_finite",
        "error",
        epoch.epoch,
        f"epoch {epoch.epoch}: {', '.join(broken)}",
        "weights after this are lost: go back to the last good checkpoint, lower the learning rate, and look for NaN "
        "or constant entries in the data",
    )


def explosion(moment: Moment) -> Finding | None:
    """The training loss is above 100; of a loss whose scale is unknown, above 100 times its lowest."""
    epoch, best = moment.epoch, moment.curve[moment.best]
    limit = EXPLOSION_LOSS if epoch.train_noise_mse is not None else EXPLOSION_LOSS * abs(best.train_loss)
    if not epoch.train_loss > limit:
        return None
    return Finding(
        "explosion",
        "error",
        epoch.epoch,
        f"training loss {epoch.train_loss:.4g} in epoch {epoch.epoch}, above {limit:.4g}",
        "lower the learning rate, clip gradients, check that states and actions are normalised; go back to the last "
        "good checkpoint",
    )


def oscillation(moment: Moment) -> Finding | None:
    """The training loss goes up and down instead of down."""
    losses = np.array([epoch.train_loss for epoch in moment.last(OSCILLATION_EPOCHS)])
    if len(losses) < OSCILLATION_EPOCHS or not np.isfinite(losses).all() or not losses.any():
        return None
    # In units of the largest, so that neither a huge nor a tiny loss leaves the range of floats.
    losses = losses / np.abs(losses).max()
    steps = np.diff(losses)
    directions = np.sign(steps)
    turns = int((directions[1:] * directions[:-1] < 0.0).sum())
    climb = float(steps[steps > 0.0].sum() / np.abs(losses).mean())
    if turns < OSCILLATION_TURNS or climb < OSCILLATION_CLIMB:
        return None
    return Finding(
        "oscillation",
        "warning",
        moment.last(OSCILLATION_EPOCHS)[0].epoch,
        f"within {OSCILLATION_EPOCHS} epochs to epoch {moment.epoch.epoch} the training loss turned {turns} times and "
        f"climbed {climb:.0%} of its mean",
        "lower the learning rate or take larger batches",
    )


def plateau(moment: Moment) -> Finding | None:
    """The noise MSE stands still above 2.0."""
    last = moment.last(PLATEAU_EPOCHS)
    losses = [epoch.train_noise_mse for epoch in last if epoch.denoises and epoch.train_noise_mse is not None]
    if (
        len(losses) < PLATEAU_EPOCHS
        or not all(loss > PLATEAU_LOSS for loss in losses)
        or not all(map(is_finite, losses))
    ):
        return None
    if 1.0 - min(losses) / max(losses) > PLATEAU_CHANGE:
        return None
    return Finding(
        "plateau",
        "error",
        last[0].epoch,
        f"noise MSE from {min(losses):.3g} to {max(losses):.3g} for {PLATEAU_EPOCHS} epochs, above {PLATEAU_LOSS:g}",
        "the network does not learn: check normalisation, the learning rate (too low as well as too high) and the "
        "data; predicting no noise at all scores 1.0",
    )


def no_improvement(moment: Moment) -> Finding | None:
    """No lower loss for five epochs or more; held-out loss where there is one."""
    best, now = moment.curve[moment.best], moment.epoch
    if moment.judged_since_best < NO_IMPROVEMENT_EPOCHS:
        return None
    converged = now.noise_mse is not None and now.noise_mse < GOOD_ENOUGH_TO_STAND_STILL
    return Finding(
        "no_improvement",
        "info" if converged else "warning",
        best.epoch,
        f"lowest loss {best.judged_loss:.4g} in epoch {best.epoch}, {now.epoch - best.epoch} epochs before epoch "
        f"{now.epoch}",
        "converged or stuck: a lower loss need not succeed more often, so measure this checkpoint and the best one"
        if converged
        else "stop, or lower the learning rate; then measure success before training longer",
    )


def validation_gap(moment: Moment) -> Finding | None:
    """The held-out loss is above twice the training loss."""
    last = moment.last_validated(VALIDATION_EPOCHS)
    if len(last) < VALIDATION_EPOCHS:
        return None
    pairs = [(epoch.validation_loss or 0.0, epoch.train_loss) for epoch in last]
    # Twice a negative loss, as a likelihood's may be, is no larger one.
    if not all(held_out > VALIDATION_FACTOR * train and train >= 0.0 for held_out, train in pairs):
        return None
    held_out, train = pairs[-1]
    times = f"{held_out / train:.2f} times the training loss" if train > 0.0 else f"{held_out:.4g}, training loss 0"
    return Finding(
        "validation_gap",
        "warning",
        last[0].epoch,
        f"held-out loss {times} in epoch {last[-1].epoch}",
        "overfitting or a split that differs from the training data: collect more demonstrations, or train less. "
        "Success may still rise while this grows: measure it",
    )


def validation_rising(moment: Moment) -> Finding | None:
    """The held-out loss rises while the training loss falls."""
    best, now = moment.curve[moment.best], moment.epoch
    if best.validation_loss is None or moment.judged_since_best < NO_IMPROVEMENT_EPOCHS:
        return None
    lately = [epoch.validation_loss or 0.0 for epoch in moment.last_validated(VALIDATION_EPOCHS)]
    # The lowest of the last epochs: one high epoch is no rise.
    rise = min(lately) - best.validation_loss
    if not all(map(is_finite, lately)) or not rise > VALIDATION_RISE * abs(best.validation_loss):
        return None
    if not now.train_loss < best.train_loss:
        return None
    return Finding(
        "validation_rising",
        "warning",
        best.epoch,
        f"since epoch {best.epoch} held-out loss {best.validation_loss:.4g} -> {lately[-1]:.4g} while training loss "
        f"{best.train_loss:.4g} -> {now.train_loss:.4g}",
        "overfitting by the loss: more demonstrations or fewer epochs. The best checkpoint by held-out loss is seldom "
        "the one that succeeds most: measure both",
    )


COURSE_RULES: tuple[Rule, ...] = (
    non_finite,
    explosion,
    oscillation,
    plateau,
    no_improvement,
    validation_gap,
    validation_rising,
)
"""About the course of a run: watched at every epoch."""

FATAL_CODES = frozenset({"non_finite", "explosion"})
"""What ends a run at once."""
