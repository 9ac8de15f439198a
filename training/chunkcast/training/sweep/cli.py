"""``chunkcast-sweep``: a small grid of settings, each trained, played through the server, and ranked."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chunkcast.training.errors import TrainingError, run_command
from chunkcast.training.files import write_json
from chunkcast.training.seeds import CHOICE_SEED, EVALUATION_SEED
from chunkcast.training.sweep.grid import Point, grid_of
from chunkcast.training.sweep.ranking import Result, as_good_as_the_first, ranked

if TYPE_CHECKING:
    from chunkcast.training.train_config import TrainConfig

SEPARATOR = "--"
INTERRUPTED_SECONDS = 5.0
"""For a run to end by itself, where the whole terminal was interrupted."""


@dataclass(frozen=True)
class SweepConfig:
    """Train every combination of a grid, play each through the server, and print them ranked.

    What chunkcast-train is to be told in every run stands after two dashes:

    chunkcast-sweep --out runs/sweep --grid learning-rate=1e-3,3e-3 width=256,352 -- --data data/six --epochs 30

    The same command goes on where it was interrupted. Exit code 1 where a run failed.
    """

    out: Path
    """Folder of the sweep: a run's folder for each combination, and sweep.json."""
    grid: tuple[str, ...] = ()
    """FLAG=VALUE,VALUE of chunkcast-train, several; seed=0,1,2 repeats."""
    episodes: int = 10
    """Episodes of each task that a run's last checkpoint is played; 0 ranks by validation alone."""
    seed: int = CHOICE_SEED
    """Their first seed: settings are chosen by these, so evaluate the chosen one on others (chunkcast-sim's own)."""
    workers: int = os.cpu_count() or 1
    """Parallel robots."""
    json: Path | None = None
    """File for the table, of the runs that are done; by default sweep.json in --out."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.seed >= EVALUATION_SEED:
            raise TrainingError(f"--seed must lie below {EVALUATION_SEED}, where evaluations begin, got {self.seed}")
        if self.episodes < 0 or self.workers < 1 or self.seed < 0:
            raise TrainingError(
                f"--episodes and --seed must not be negative and --workers at least 1, got {self.episodes}, "
                f"{self.seed} and {self.workers}"
            )


def main() -> None:
    """Console script."""
    arguments = sys.argv[1:]
    end = arguments.index(SEPARATOR) if SEPARATOR in arguments else len(arguments)
    train = arguments[end + 1 :]
    run_command(SweepConfig, lambda config: sweep_command(config, train), arguments=arguments[:end])


def sweep_command(config: SweepConfig, train: list[str]) -> None:
    """Train, play, rank."""
    from rich.console import Console

    from chunkcast.training.demonstrations.sources import read_demonstrations
    from chunkcast.training.training_rollouts import require_playable

    points = grid_of(config.grid)
    if not any(flag == "--data" or flag.startswith("--data=") for flag in train):
        raise TrainingError("chunkcast-train's flags are missing; expected them after two dashes: -- --data DIR ...")
    if any(flag.partition("=")[0] in ("--out", "--resume") for flag in train):
        raise TrainingError("--out and --resume are the sweep's own; leave them out after the two dashes")
    # Before hours are spent on the first.
    memories = {run.data: run.memory for run in (_checked(point, train, config.out) for point in points)}
    if config.episodes:
        for folder, memory in memories.items():
            require_playable(read_demonstrations(folder, memory).tasks, "--episodes")
    console = Console(stderr=True)
    results: list[Result] = []
    try:
        for number, point in enumerate(points, 1):
            console.rule(f"run {number} of {len(points)}: {point.name or 'as it is'}", characters="-")
            results = ranked([*results, _run(config, point, train)])
            _write(config, results, len(points))
    except KeyboardInterrupt:
        console.print(f"interrupted: {len(results)} of {len(points)} runs are done; the same command goes on")
        raise SystemExit(130) from None
    _print_table(results, config)
    if any(result.failed for result in results):
        raise SystemExit(1)


def _write(config: SweepConfig, results: list[Result], runs: int) -> None:
    facts = {
        "command": shlex.join(["chunkcast-sweep", *sys.argv[1:]]),
        "episodes_per_task": config.episodes,
        "first_seed": config.seed,
        "runs_asked_for": runs,
        "runs": [asdict(result) for result in results],
    }
    write_json(config.json or config.out / "sweep.json", facts)


def _checked(point: Point, train: list[str], out: Path) -> TrainConfig:
    from chunkcast.training.presets import config_of

    return config_of([*train, *point.flags, "--out", str(out)])


def _run(config: SweepConfig, point: Point, train: list[str]) -> Result:
    """Train one combination where that was not done, and play it."""
    from chunkcast.training.checkpoint import LAST_CHECKPOINT, read_run_facts
    from chunkcast.training.health.rollouts import Rollouts

    run = config.out / (point.name or "run")
    command = [sys.executable, "-m", "chunkcast.training.train_cli", *train, *point.flags, "--out", str(run)]
    if (run / LAST_CHECKPOINT).is_file():
        command.append("--resume")
    if code := _trained(command):
        return Result(run.name, dict(point.settings), failed=f"chunkcast-train ended with {code}; why is said above")
    facts = read_run_facts(run / LAST_CHECKPOINT)
    last = facts["history"][-1]
    result = Result(
        run.name,
        dict(point.settings),
        validation_action_mse=last["validation_action_mse"],
        validation_loss=last["validation_loss"],
        seconds=round(facts["seconds"], 1),
    )
    if not config.episodes:
        return result
    try:
        played = Rollouts(config.episodes, config.seed, config.workers).play_checkpoint(run / LAST_CHECKPOINT)
    except TrainingError as error:
        return replace(result, failed=str(error))
    low, high = played["ci95"]
    return replace(
        result,
        success_rate=played["success_rate"],
        successes=played["successes"],
        episodes=played["episodes"],
        ci95=(low, high),
    )


def _trained(command: list[str]) -> int:
    """The exit code of a run, which ends before an interrupted sweep does.

    Raises:
        KeyboardInterrupt: one of them was interrupted.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as training:
        try:
            code = training.wait()
        except KeyboardInterrupt:
            # A terminal's Ctrl-C reaches it too, a supervisor's SIGTERM does not.
            with suppress(subprocess.TimeoutExpired):
                training.wait(INTERRUPTED_SECONDS)
            training.terminate()
            training.wait()
            raise
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    return code


def _print_table(results: list[Result], config: SweepConfig) -> None:
    from rich.console import Console
    from rich.table import Table

    flags = list(dict.fromkeys(flag for result in results for flag in result.settings))
    table = Table("", *flags, "success (95 %)", "n", "action MSE", "loss", "s", title=str(config.out))
    for rank, (result, close) in enumerate(zip(results, as_good_as_the_first(results), strict=True), 1):
        settings = [result.settings.get(flag, "") for flag in flags]
        if result.failed:
            table.add_row(str(rank), *settings, "failed", *[""] * 4)
            continue
        table.add_row(
            f"{rank}{' ~' if close and rank > 1 else ''}",
            *settings,
            _success(result),
            str(result.episodes),
            f"{result.validation_action_mse:.5f}",
            f"{result.validation_loss:.5f}",
            f"{result.seconds:.0f}",
        )
    console = Console()
    console.print(table)
    for result in results:
        if result.failed:
            console.print(f"{result.name} failed: {result.failed}", highlight=False)
    if any(as_good_as_the_first(results)[1:]):
        console.print("~ its interval meets the first's: more --episodes would tell them apart")


def _success(result: Result) -> str:
    if result.success_rate is None or result.ci95 is None:
        return "-"
    low, high = result.ci95
    return f"{result.success_rate:.1%} ({100 * low:.0f} - {high:.0%})"


if __name__ == "__main__":
    main()
