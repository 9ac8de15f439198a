"""Does training health find what is wrong with a run, and leave a healthy run alone?

    make findings      (6 min on 2 cores)

Trains small networks on real demonstrations: with a known fault (learning rate, initialisation, normalisation, data),
and without. Faults that a small network cannot be made to show at will (a loss that stands still above 2, for one) are
histories drawn by rule. A fault is found if one of the codes that it should give is there as a warning or an error; a
healthy run must give no error.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.progress import track

from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.demonstrations.rows import Rows
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.errors import TrainingError
from chunkcast.training.files import write_json
from chunkcast.training.health.findings import Finding
from chunkcast.training.health.judge import judge
from chunkcast.training.health.loss_curve import EpochLosses, curve_of_records
from chunkcast.training.history import EpochRecord
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer

LEARNS_NOTHING = ("variance_explained", "observation_unused", "plateau", "loss_band")
DIVERGES = ("non_finite", "explosion", "oscillation", *LEARNS_NOTHING)
OVERFITS = ("validation_gap", "validation_rising", "observation_unused")


@dataclass(frozen=True)
class FindingsConfig:
    """Count the faults that are found, and the false errors."""

    data: Path
    """Demonstrations of the six tasks (chunkcast-collect)."""
    json: Path | None = None
    """File for every history's findings."""
    seed: int = 0
    """First seed; thresholds were chosen on 0 and 1000, figures are of 2000."""
    repeats: int = 4
    """Seeds of each way to be wrong or healthy."""


@dataclass(frozen=True)
class Case:
    """A history to judge.

    Attributes:
        kind: the fault, or "healthy".
        name: what exactly.
        expected: codes of which one must be found; empty for a healthy run.
        curve: makes the history.
    """

    kind: str
    name: str
    expected: tuple[str, ...]
    curve: Callable[[], list[EpochLosses]]


@dataclass
class Verdict:
    """What was found in one history."""

    kind: str
    name: str
    expected: tuple[str, ...]
    epochs: int
    final_noise_mse: float | None
    findings: list[Finding] = field(default_factory=list)

    @property
    def found(self) -> bool:
        """Whether the fault, if it is one, was found as a warning or an error."""
        return any(each.code in self.expected and each.severity != "info" for each in self.findings)

    def codes(self, severity: str) -> list[str]:
        """The findings of a severity."""
        return sorted(each.code for each in self.findings if each.severity == severity)


def some_episodes(demonstrations: Demonstrations, per_task: int, seed: int) -> Demonstrations:
    """``per_task`` episodes of each task, drawn by ``seed``."""
    generator = np.random.default_rng(seed)
    tasks = np.array(demonstrations.episode_tasks)
    episodes = np.sort(
        np.concatenate(
            [generator.choice(np.flatnonzero(tasks == task), per_task, False) for task in demonstrations.tasks]
        )
    )
    rows = np.isin(demonstrations.episode_index, episodes)
    return replace(
        demonstrations,
        states=Rows.of(demonstrations.states[rows]),
        actions=Rows.of(demonstrations.actions[rows]),
        executed=Rows.of(demonstrations.executed[rows]),
        episode_index=np.searchsorted(episodes, demonstrations.episode_index[rows]).astype(np.int32),
        episode_tasks=tuple(demonstrations.episode_tasks[i] for i in episodes),
        episode_seeds=tuple(demonstrations.episode_seeds[i] for i in episodes),
    )


def train(
    demonstrations: Demonstrations, config: TrainConfig, spoil: Callable[[Trainer], None] = lambda trainer: None
) -> list[EpochLosses]:
    """Really train, as chunkcast-train does; a run that diverges has the history until then."""
    records: list[EpochRecord] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(replace(config, out=Path(folder)), demonstrations, torch.device("cpu"), bf16=False)
        spoil(trainer)
        with suppress(TrainingError):  # it diverged
            trainer.run(lambda record, _: records.append(record))
    return curve_of_records(records)


def real_cases(demonstrations: Demonstrations, config: FindingsConfig) -> Iterator[Case]:
    """Runs that are trained."""
    base = TrainConfig(
        data=config.data,
        out=Path(),
        epochs=12,
        batch_size=256,
        width=64,
        blocks=2,
        warmup_steps=20,
        keep_epochs=(),
        patience=0,
        ema_decay=0.99,
    )

    def case(
        kind: str,
        name: str,
        expected: tuple[str, ...],
        changes: dict[str, Any],
        *,
        per_task: int = 20,
        data: Callable[[Demonstrations], Demonstrations] = lambda data: data,
        spoil: Callable[[Trainer], None] = lambda trainer: None,
    ) -> Iterator[Case]:
        for seed in range(config.seed, config.seed + config.repeats):
            settings = replace(base, **changes, seed=seed)
            yield Case(
                kind,
                f"{name}, seed {seed}",
                expected,
                lambda settings=settings, seed=seed: train(  # type: ignore[misc]
                    data(some_episodes(demonstrations, per_task, seed)), settings, spoil
                ),
            )

    def scale_parameters(factor: float) -> Callable[[Trainer], None]:
        def spoil(trainer: Trainer) -> None:
            with torch.no_grad():
                for parameter in trainer.policy.parameters():
                    parameter.mul_(factor)

        return spoil

    def state_scale(factor: float) -> Callable[[Trainer], None]:
        def spoil(trainer: Trainer) -> None:
            trainer.policy.state_std.mul_(factor)

        return spoil

    def shuffled_states(data: Demonstrations) -> Demonstrations:
        order = np.random.default_rng(0).permutation(len(data.states))
        return replace(data, states=Rows.of(data.states[order]))

    def with_nan(data: Demonstrations) -> Demonstrations:
        states = np.array(data.states)
        states[len(states) // 2] = np.nan
        return replace(data, states=Rows.of(states))

    high = {"gradient_clip": 1e9, "warmup_steps": 0}
    yield from case("learning rate too high", "lr 1", DIVERGES, {**high, "learning_rate": 1.0})
    yield from case(
        "learning rate too high",
        "lr 0.3, noise prediction",
        DIVERGES,
        {**high, "learning_rate": 0.3, "prediction_type": "epsilon"},
    )
    yield from case("learning rate too low", "lr 1e-8", LEARNS_NOTHING, {"learning_rate": 1e-8})
    yield from case(
        "learning rate too low",
        "lr 1e-7, noise prediction",
        LEARNS_NOTHING,
        {"learning_rate": 1e-7, "prediction_type": "epsilon"},
    )
    yield from case("bad initialisation", "weights x 1000", DIVERGES, {}, spoil=scale_parameters(1000.0))
    yield from case("bad initialisation", "all weights 0", LEARNS_NOTHING, {}, spoil=scale_parameters(0.0))
    yield from case("broken normalisation", "states divided by 1e6", LEARNS_NOTHING, {}, spoil=state_scale(1e6))
    yield from case(
        "broken normalisation", "states divided by 1e-6", (*DIVERGES, *OVERFITS), {}, spoil=state_scale(1e-6)
    )
    yield from case(
        "broken data", "states shuffled against actions", (*LEARNS_NOTHING, *OVERFITS), {}, data=shuffled_states
    )
    yield from case("broken data", "a NaN in the states", ("non_finite",), {}, data=with_nan)
    few = {"epochs": 80, "batch_size": 64, "width": 128, "learning_rate": 2e-3}
    yield from case("too little data", "2 episodes a task", OVERFITS, few, per_task=2)
    yield from case(
        "too little data",
        "2 episodes a task, noise prediction",
        OVERFITS,
        {**few, "prediction_type": "epsilon"},
        per_task=2,
    )
    healthy = {"epochs": 24, "width": 128, "learning_rate": 2e-3}
    ways: dict[str, dict[str, Any]] = {
        "default": {},
        "uniform weights": {"loss_weighting": "uniform"},
        "noise prediction": {"prediction_type": "epsilon"},
        "nothing committed": {"max_committed_steps": 0},
        "lower rate, longer": {"learning_rate": 1e-3, "epochs": 40},
        "small batches": {"batch_size": 64, "epochs": 12},
        "two observations": {"observation_steps": 2},
        "wider": {"width": 192, "blocks": 3, "learning_rate": 1e-3},
    }
    for name, changes in ways.items():
        yield from case("healthy", name, (), {**healthy, **changes}, per_task=22)


def drawn_cases(config: FindingsConfig) -> Iterator[Case]:
    """Histories drawn by rule: a healthy course with one fault in it."""

    def healthy(generator: np.random.Generator, epochs: int) -> list[float]:
        start, end, speed = generator.uniform(0.8, 3.0), generator.uniform(0.05, 0.3), generator.uniform(0.1, 0.3)
        return [
            float((end + (start - end) * np.exp(-speed * epoch)) * generator.normal(1.0, 0.02))
            for epoch in range(epochs)
        ]

    def curve(train: list[float], validation: list[float] | None = None) -> list[EpochLosses]:
        held_out = validation or [None] * len(train)  # type: ignore[list-item]
        return [
            EpochLosses(epoch, loss, other, loss, other)
            for epoch, (loss, other) in enumerate(zip(train, held_out, strict=True), start=1)
        ]

    def drawn(
        kind: str, expected: tuple[str, ...], draw: Callable[[np.random.Generator], list[EpochLosses]]
    ) -> Iterator[Case]:
        for seed in range(config.seed, config.seed + config.repeats):
            yield Case(
                kind,
                f"drawn, seed {seed}",
                expected,
                lambda seed=seed: draw(np.random.default_rng(seed)),  # type: ignore[misc]
            )

    def broken(value: float) -> Callable[[np.random.Generator], list[EpochLosses]]:
        def draw(generator: np.random.Generator) -> list[EpochLosses]:
            losses = healthy(generator, 30)
            losses[int(generator.integers(1, 30))] = value
            return curve(losses)

        return draw

    def exploding(generator: np.random.Generator) -> list[EpochLosses]:
        losses = healthy(generator, 20)
        return curve([*losses, *(losses[-1] * generator.uniform(20, 40) ** n for n in range(1, 4))])

    def oscillating(generator: np.random.Generator) -> list[EpochLosses]:
        size = generator.uniform(0.3, 0.6)
        return curve([loss * (1 + size * (-1) ** n) for n, loss in enumerate(healthy(generator, 30))])

    def standing(generator: np.random.Generator) -> list[EpochLosses]:
        level = generator.uniform(2.1, 20.0)
        return curve([float(level * generator.normal(1.0, 0.01)) for _ in range(15)])

    def stuck(generator: np.random.Generator) -> list[EpochLosses]:
        losses = [loss + 0.5 for loss in healthy(generator, 12)]
        return curve([*losses, *(float(min(losses) * generator.uniform(1.005, 1.05)) for _ in range(8))])

    def gap(generator: np.random.Generator) -> list[EpochLosses]:
        losses = healthy(generator, 30)
        return curve(losses, [loss * (1 + epoch * generator.uniform(0.06, 0.1)) for epoch, loss in enumerate(losses)])

    def rising(generator: np.random.Generator) -> list[EpochLosses]:
        losses = healthy(generator, 30)
        turn = int(generator.integers(8, 15))
        return curve(losses, [*losses[:turn], *(losses[turn] * 1.03**n for n in range(30 - turn))])

    yield from drawn("NaN", ("non_finite",), broken(float("nan")))
    yield from drawn("infinity", ("non_finite",), broken(float("inf")))
    yield from drawn("explosion", ("explosion",), exploding)
    yield from drawn("oscillation", ("oscillation",), oscillating)
    yield from drawn("plateau above 2", ("plateau",), standing)
    yield from drawn("no improvement", ("no_improvement",), stuck)
    yield from drawn("validation above twice training", ("validation_gap",), gap)
    yield from drawn("validation rises", ("validation_rising",), rising)


cases: list[Case] = []
"""All of them; filled before the workers are forked."""


def judge_case(index: int) -> Verdict:
    """Make a history and judge it."""
    case = cases[index]
    curve = case.curve()
    return Verdict(case.kind, case.name, case.expected, len(curve), curve[-1].noise_mse, judge(curve))


def main() -> None:
    """Make the histories, judge them, print the table, write the JSON."""
    config = tyro.cli(FindingsConfig)
    demonstrations = read_demonstrations(config.data)
    cases[:] = [*real_cases(demonstrations, config), *drawn_cases(config)]
    # Forked, so that a worker has the cases, which hold functions; a small network trains best on one thread.
    workers = multiprocessing.get_context("fork").Pool(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))
    verdicts = []
    with workers:
        for verdict in track(workers.imap(judge_case, range(len(cases))), "training", len(cases)):
            verdicts.append(verdict)
            found = ", ".join(verdict.codes("error") + verdict.codes("warning")) or "nothing"
            print(f"{verdict.kind}: {verdict.name}: {found}", flush=True)
    faults = [verdict for verdict in verdicts if verdict.expected]
    sound = [verdict for verdict in verdicts if not verdict.expected]
    summary = {
        "faults": len(faults),
        "faults_found": sum(verdict.found for verdict in faults),
        "faults_with_errors": sum(bool(verdict.codes("error")) for verdict in faults),
        "missed": [f"{verdict.kind}: {verdict.name}" for verdict in faults if not verdict.found],
        "healthy": len(sound),
        "healthy_with_errors": sum(bool(verdict.codes("error")) for verdict in sound),
        "healthy_with_warnings": sum(bool(verdict.codes("warning")) for verdict in sound),
        "first_seed": config.seed,
        "command": "make findings",
        "histories": [
            {
                "kind": verdict.kind,
                "name": verdict.name,
                "epochs": verdict.epochs,
                "final_noise_mse": verdict.final_noise_mse,
                "found": verdict.found if verdict.expected else None,
                "errors": verdict.codes("error"),
                "warnings": verdict.codes("warning"),
            }
            for verdict in verdicts
        ],
    }
    print(json.dumps({name: value for name, value in summary.items() if name != "histories"}, indent=2))
    if config.json:
        write_json(config.json, summary)


if __name__ == "__main__":
    main()
