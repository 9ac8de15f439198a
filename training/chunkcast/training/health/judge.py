"""Judges a run: its course epoch by epoch, where it ended, and its settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from chunkcast.training.health.findings import Finding, Severity, gravest_first
from chunkcast.training.health.loss_curve import LossCurve
from chunkcast.training.health.rules import COURSE_RULES, IMPROVEMENT, Moment
from chunkcast.training.health.seed_table import DataSizeAdvice, advice_for, band_of, success_of

LEARNED_NOTHING = 0.05
"""Variance explained at or below this share is none."""
OBSERVATION_UNUSED = 0.1
"""Sampled actions must explain at least this share of the actions' variance within each task. A policy that is shown
zeros explains none of it, at whatever noise MSE."""
OBSERVATION_WEAK = 0.6
"""Below this share they are far from the demonstrations: of 44 checkpoints of seven runs that were played, none so far
off succeeded in nine of ten episodes."""

MOSTLY_ONE_TIMESTEP = 0.5
"""Share of the windows noised to the end above which a run is trained to be sampled in few evaluations."""


@dataclass(frozen=True)
class RunSettings:
    """What is known of a run besides its losses; None where it is not.

    Attributes:
        samples: what one epoch passes over.
        batch_size: samples a step.
        epochs: as planned.
        patience: epochs without a lower loss before stopping; 0 never stops.
        denoises: whether the noise MSE is what the run was trained for. It is not where most windows were noised to the
            end, for one or two evaluations, nor for MIP or a one-step student: there the seed's bands say nothing.
    """

    samples: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    patience: int | None = None
    denoises: bool = True


def run_settings(facts: dict[str, Any]) -> RunSettings:
    """The settings of a run of chunkcast-train, from the facts in its checkpoints."""
    config = facts["config"]
    return RunSettings(
        samples=facts["epoch_windows"],
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        patience=config["patience"],
        denoises=config["objective"] == "diffusion"
        and not config["teacher"]
        and config["noise_only_fraction"] <= MOSTLY_ONE_TIMESTEP,
    )


def what_is_judged(curve: LossCurve, settings: RunSettings) -> LossCurve:
    """``curve``, which knows then whether its noise MSE is to be judged."""
    return curve if settings.denoises else [replace(epoch, denoises=False) for epoch in curve]


def course_findings(curve: LossCurve) -> Iterator[list[Finding]]:
    """After each epoch of ``curve``, the rules about its course that hold there."""
    best = 0
    for now, epoch in enumerate(curve):
        before = curve[best]
        # Held-out losses are compared with held-out ones; an epoch without one is no better and no worse.
        if before.validation_loss is None or epoch.validation_loss is not None:
            lowest = before.judged_loss
            lower = epoch.judged_loss < lowest - IMPROVEMENT * abs(lowest) or not math.isfinite(lowest)
            first_held_out = before.validation_loss is None and epoch.validation_loss is not None
            best = now if lower or first_held_out else best
        moment = Moment(curve, now, best)
        yield [finding for rule in COURSE_RULES if (finding := rule(moment))]


def judge(curve: LossCurve, settings: RunSettings | None = None) -> list[Finding]:
    """All findings about a run, the gravest first.

    What held during the run and no longer holds at its end is kept, an error as a warning, and says until when.
    NaN and infinity do not heal: weights that met them are lost.

    Args:
        curve: at least one epoch.
        settings: for the seed's advice by data-set size.
    """
    settings = settings or RunSettings()
    curve = what_is_judged(curve, settings)
    standing: dict[str, Finding] = {}
    past: dict[str, Finding] = {}
    for epoch, holding in zip(curve, course_findings(curve), strict=True):
        codes = {finding.code for finding in holding}
        if "non_finite" not in codes:  # NaN ends no other finding: nothing can be compared with it
            for code in [code for code in standing if code not in codes and code != "non_finite"]:
                past[code] = _over(standing.pop(code), epoch.epoch)
        for finding in holding:
            before = standing.get(finding.code)
            # The newest evidence, since the first epoch.
            standing[finding.code] = finding if before is None else replace(finding, epoch=before.epoch)
    found = [*standing.values(), *(finding for code, finding in past.items() if code not in standing)]
    found += _noise_mse_at_the_end(curve)
    found += _actions_at_the_end(curve)
    found += _findings_about_settings(curve, settings)
    return gravest_first(found)


def _over(finding: Finding, epoch: int) -> Finding:
    severity = "warning" if finding.severity == "error" else finding.severity
    return replace(finding, severity=severity, evidence=f"{finding.evidence}; no longer in epoch {epoch}")


def _noise_mse_at_the_end(curve: LossCurve) -> Iterator[Finding]:
    """What the last epoch's noise MSE means, and what it does not."""
    last = curve[-1]
    if last.noise_mse is not None and math.isfinite(last.noise_mse):
        band, explained = band_of(last.noise_mse), 1.0 - last.noise_mse
        low, high = success_of(last.noise_mse)
        # A clean-action predictor's first timesteps divide by nearly zero: with a noise MSE above 1 it may succeed.
        gravest: Severity = "error" if last.predicts_noise else "warning"
        yield Finding(
            "loss_band",
            gravest if band.severity == "error" else band.severity,
            last.epoch,
            f"noise MSE {last.noise_mse:.4g} in epoch {last.epoch}: {band.name}",
            f"the seed read {low * 100:.0f}-{high * 100:.0f} % success off this loss. It read 80-90 % off 0.16-0.43, "
            "and the arm succeeded 0 times out of 7: a low loss proves no success, measure it"
            if last.noise_mse < 1.0
            else "the seed called 1-2 acceptable; it is worse than predicting no noise at all, which scores 1.0",
        )
        learned = explained > LEARNED_NOTHING
        yield Finding(
            "variance_explained",
            "info" if learned else gravest,
            last.epoch,
            f"{explained:.1%} of the noise's variance is explained (1 - {last.noise_mse:.4g})",
            "averaged over timesteps: most of it is told from the noisy chunk alone, without looking at the observation"
            if learned
            else "predicting no noise scores 0 %: the network has learned nothing that helps; look at the data, the "
            "learning rate and the loss by timestep (a clean-action predictor's first timesteps divide by nearly zero)",
        )


def _actions_at_the_end(curve: LossCurve) -> Iterator[Finding]:
    """What the last epoch's sampled actions say."""
    last = curve[-1]
    if last.action_mse is not None and last.action_variance:
        explained = 1.0 - last.action_mse / last.action_variance
        if explained < OBSERVATION_WEAK:
            # A noise predictor's samples scatter in few evaluations: one that explained less than nothing solved 56 %
            # of its episodes. Too little to condemn it by.
            unused = explained < OBSERVATION_UNUSED and not last.predicts_noise
            yield Finding(
                "observation_unused",
                "error" if unused else "warning",
                last.epoch,
                f"sampled actions explain {explained:.1%} of the variance of demonstrated ones within their tasks",
                "whatever the noise MSE, the policy does hardly better than each task's mean action: check that "
                "it was trained for more than a few hundred steps, that the observation reaches the network (zeros, "
                "wrong order, wrong statistics), and the number of windows"
                if unused
                else "far from what was demonstrated: train longer, collect more, or sample in more evaluations",
            )


def _findings_about_settings(curve: LossCurve, settings: RunSettings) -> Iterator[Finding]:
    """The seed's advice by data-set size."""
    if settings.samples is None:
        return
    advice, last = advice_for(settings.samples), curve[-1]
    size = f"{settings.samples} training samples"
    if last.noise_mse is not None and math.isfinite(last.noise_mse):
        low, high = advice.target
        reached = last.noise_mse <= high
        yield Finding(
            "target_loss",
            "info" if reached else "warning",
            last.epoch,
            f"noise MSE {last.noise_mse:.4g}; the seed's target for {size} is {low:g}-{high:g}",
            "reached; that says nothing of success yet" if reached else "train longer, or look at the other findings",
        )
    yield from _settings_off_the_advice(advice, size, settings)


def _settings_off_the_advice(advice: DataSizeAdvice, size: str, settings: RunSettings) -> Iterator[Finding]:
    least, most = advice.epochs
    epochs = f"{least}-{most}" if most else f"{least} or more"
    if settings.epochs is not None and (settings.epochs < least or (most is not None and settings.epochs > most)):
        yield Finding(
            "epochs",
            "info",
            None,
            f"{settings.epochs} epochs planned; the seed advises {epochs} for {size}",
            "the seed trained one window a demonstration and epoch; with all windows an epoch is many times longer",
        )
    shortest, longest = advice.patience
    if settings.patience and not shortest <= settings.patience <= longest:
        yield Finding(
            "patience",
            "info",
            None,
            f"patience of {settings.patience} epochs; the seed advises {shortest}-{longest} for {size}",
            "success often rises after the held-out loss has ceased to fall; stopping early saves time, not success",
        )
    if settings.batch_size is not None and not advice.batch[0] <= settings.batch_size <= advice.batch[1]:
        yield Finding(
            "batch_size",
            "info",
            None,
            f"batches of {settings.batch_size}; the seed advises {advice.batch[0]}-{advice.batch[1]} for {size}",
            "the seed's samples are whole demonstrations; with all windows, batches of hundreds train faster",
        )
