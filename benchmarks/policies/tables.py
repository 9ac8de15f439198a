"""The experiments: which runs are trained, and how each is sampled and played."""

from __future__ import annotations

from dataclasses import dataclass, field

SUITES = {"six": "", "mt50": "--tasks mt50"}
"""Name to what chunkcast-collect is told of tasks."""

DEMONSTRATIONS = 50
"""Of each task, where an experiment does not say otherwise."""

TOLD = {
    "six": "",
    "mt50": "--text-encoder policies/text-encoders/all-minilm-l6-v2 "
    "--width 416 --blocks 3 --embedding-size 512 --batch-size 256",
}
"""What chunkcast-train is told of a suite: the six tasks by name, the fifty by sentences."""


SEED_REPORTED = ("the seed's report", "73", "522", "", "", "", "", "0", "", "7", "10", "22.5", "0.16-0.43")
"""What the seed's authors printed, and what its arm then did, in the columns of the table: run, million parameters,
seconds of training, evaluations, actions, latencies, successes, interval, episodes, epochs, first and last loss."""


@dataclass(frozen=True)
class Play:
    """How a trained policy is sampled and played.

    Attributes:
        evaluations: of the denoiser, for a chunk.
        execute_steps: actions of a chunk that are executed; 0 for the policy's own advice.
        episodes: of each task at most, where more would take hours; ``None`` for as many as are asked for.
        of_fifty: the same of each of fifty tasks.
    """

    evaluations: int
    execute_steps: int = 0
    episodes: int | None = None
    of_fifty: int | None = None

    def episodes_of(self, suite: str, asked: int) -> int:
        """How many of each task are played where ``asked`` are asked for."""
        limits = (self.episodes, self.of_fifty if suite == "mt50" else None)
        return min(asked, *(limit for limit in limits if limit is not None))


@dataclass(frozen=True)
class Run:
    """One training run and its plays.

    Attributes:
        name: of the run, within its table and suite.
        flags: further flags of chunkcast-train.
        plays: what is measured of it.
        collect: further flags of chunkcast-collect; another set of demonstrations than the suite's.
        minutes: of collecting and training, as a share of the table's; 0 trains as the flags say. A student's are its
            own training's alone.
        student_of: name of a run of the same table that is the teacher.
    """

    name: str
    flags: str = ""
    plays: tuple[Play, ...] = (Play(1),)
    collect: str = ""
    minutes: float = 1.0
    student_of: str = ""
    suites: tuple[str, ...] = field(default=("six", "mt50"))


ONE_AND_FOUR = (Play(1), Play(4))
ALL_EVALUATIONS = (Play(100, of_fifty=1), *(Play(evaluations) for evaluations in (16, 10, 4, 2, 1)))

SMALL = "--batch-size 128 --width 256 --blocks 3 --embedding-size 384 --warmup-steps 100 --validation-windows 512"
STUDENT = "--learning-rate 5e-4"
SEEDS_HEAD = "--denoiser unet --width 256 --blocks 3 --embedding-size 512 --batch-size 64 --learning-rate 3e-4"

TABLES: dict[str, tuple[Run, ...]] = {
    "few-step": (
        Run("clean-action", plays=ALL_EVALUATIONS),
        Run("clean-action, timesteps alike", "--noise-only-fraction 0", plays=ALL_EVALUATIONS, suites=("six",)),
        Run("noise", "--prediction-type epsilon", plays=ALL_EVALUATIONS),
        Run("velocity", "--prediction-type v_prediction", plays=ALL_EVALUATIONS),
        Run("mip", "--objective mip", plays=(Play(2), Play(1))),
        Run("student of clean-action", STUDENT, plays=(Play(1),), student_of="clean-action", minutes=0.5),
        Run("student of noise", STUDENT, plays=(Play(1),), student_of="noise", minutes=0.5, suites=("six",)),
    ),
    "denoisers": (
        Run("mlp", plays=ONE_AND_FOUR),
        Run("unet", "--denoiser unet --width 64 --blocks 3 --embedding-size 256", plays=ONE_AND_FOUR),
        Run("transformer", "--denoiser transformer --width 128 --blocks 4 --embedding-size 256", plays=ONE_AND_FOUR),
        Run("unet, 73 M", SEEDS_HEAD, plays=(Play(1, episodes=5),)),
    ),
    "seed": (
        Run(
            "seed's recipe",
            "--preset tinyvla-73m",
            plays=(Play(10, episodes=3),),
            collect="--episodes 88 --noise 0",
            minutes=0,
            suites=("six",),
        ),
        Run(
            "seed's head, our recipe",
            f"{SEEDS_HEAD} --horizon 20 --batch-size 16 --epochs 8 --windows-per-episode 1 --warmup-steps 50 "
            "--validation-windows 256",
            plays=(Play(1, episodes=5),),
            collect="--episodes 88",
            minutes=0,
            suites=("six",),
        ),
    ),
    "recipe": (
        Run("recipe"),
        Run("a small network in small batches", SMALL),
        Run("no noise while collecting", collect="--noise 0"),
        Run("20 demonstrations", collect="--episodes 20"),
        Run("88 demonstrations", collect="--episodes 88"),
        Run("no averaged weights", "--ema-decay 0"),
        Run("timesteps alike", "--noise-only-fraction 0"),
        Run("a chunk's actions alike", "--chunk-discount 1"),
        Run("no vectors between the state's points", "--no-differences"),
        Run("squared error", "--huber 0"),
        Run("the hand's motion always shown", "--motion-dropout 0"),
    ),
    "chunks": (
        Run("horizon 4", "--horizon 4 --max-committed-steps 2", plays=(Play(1, 1), Play(1, 2), Play(1, 4))),
        Run("horizon 8", "--horizon 8 --max-committed-steps 4", plays=(Play(1, 1), Play(1, 2), Play(1, 4), Play(1, 8))),
        Run("horizon 16", plays=(Play(1, 1), Play(1, 2), Play(1, 4), Play(1, 8), Play(1, 16))),
        Run("horizon 32", "--horizon 32", plays=(Play(1, 1), Play(1, 2), Play(1, 4), Play(1, 8), Play(1, 16))),
    ),
}
