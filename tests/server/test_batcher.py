"""The queue before an engine: who is computed when, who is dropped, and that each observation has one outcome.

The engine is real; it only waits for the test's permission before each run, so that a test knows who waits meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcast.server.batcher import Batcher, BatcherConfig, Computed, Expired, Failed, Outcome, Superseded
from chunkcast.server.bundle import Bundle, read_bundle
from chunkcast.server.engine import Engine, EngineResult, GraphInputs
from chunkcast.server.errors import Overloaded
from tests.conftest import SHIPPED_BUNDLE
from tests.handmade_bundle import HISTORY, INSTRUCTIONS, STATE_KEY, STATE_SIZE, write_echo_bundle

PATIENCE = 20.0
"""Seconds after which a signal that never comes fails its test."""

NEVER = 3600.0
"""Seconds that no test waits for."""

MAX_BATCH = 8

POLICY = "batcher"
"""Names the threads of this module's engines."""


class GatedEngine(Engine):
    """Takes a permit before each run once it is warm, and notes what each run was given."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, max_batch=MAX_BATCH)
        self.permits, self.entered = threading.Semaphore(0), threading.Semaphore(0)
        self.runs: list[list[int]] = []
        self._gated = False
        self.warm_up()
        self._gated = True

    def run(self, observations: Sequence[GraphInputs]) -> EngineResult:
        if self._gated:
            self.runs.append([tag_of(inputs[STATE_KEY]) for inputs in observations])
            self.entered.release()
            assert self.permits.acquire(timeout=PATIENCE)
        return super().run(observations)


def tag_of(rows: npt.NDArray[np.float32]) -> int:
    """The number that an observation, or the echo policy's chunk, is made of."""
    return int(rows[0, 0])


def graph_inputs(tag: int) -> dict[str, npt.NDArray[np.float32]]:
    return {
        STATE_KEY: np.full((HISTORY, STATE_SIZE), tag, np.float32),
        "instruction": np.zeros(len(INSTRUCTIONS), np.float32),
        "noise": np.zeros((HISTORY, STATE_SIZE), np.float32),
    }


class Robots:
    """Any number of streams before one batcher. Observations are numbered; ``outcomes`` has what became of each.

    Args:
        engine: new.
        config: the batcher's.
        fastest_run: as it was measured at warm-up; by default too long for the event loop.
        streams: that have joined.
    """

    def __init__(
        self, engine: GatedEngine, config: BatcherConfig, *, fastest_run: float = 1.0, streams: int = 0
    ) -> None:
        self.engine = engine
        self.batch_sizes: list[int] = []
        self.batcher = Batcher(engine, config, fastest_run=fastest_run, on_batch=self.batch_sizes.append)
        for _ in range(streams):
            self.batcher.join()
        self.outcomes: dict[int, list[Outcome]] = {}
        self.order: list[int] = []
        self._answered = asyncio.Event()

    def submit(self, stream: str, tag: int, *, deadline: float | None = None, alone: bool = False) -> None:
        self.submit_inputs(stream, tag, graph_inputs(tag), deadline=deadline, alone=alone)

    def submit_inputs(
        self, stream: str, tag: int, inputs: GraphInputs, *, deadline: float | None = None, alone: bool = False
    ) -> None:
        outcomes = self.outcomes[tag] = []

        def answer(outcome: Outcome) -> None:
            outcomes.append(outcome)
            self.order.append(tag)
            self._answered.set()

        self.batcher.submit(stream, inputs, answer, deadline=deadline, alone=alone)

    async def until_running(self) -> None:
        """Until the engine has begun a run that this did not return for yet."""
        assert await asyncio.to_thread(self.engine.entered.acquire, timeout=PATIENCE), "no run began"

    async def until_answered(self, *tags: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while not all(self.outcomes[tag] for tag in tags):
                self._answered.clear()
                await self._answered.wait()

    async def busy_with(self, stream: str, tag: int) -> None:
        """Keep the engine busy until ``let_run``: what is submitted meanwhile waits."""
        self.submit(stream, tag)
        await self.until_running()

    def let_run(self, runs: int = 1) -> None:
        self.engine.permits.release(runs)

    def outcome(self, tag: int) -> Outcome:
        (outcome,) = self.outcomes[tag]
        return outcome

    def computed(self, tag: int) -> Computed:
        """The one outcome of ``tag``, which is its own chunk and no other's."""
        outcome = self.outcome(tag)
        assert isinstance(outcome, Computed)
        np.testing.assert_array_equal(outcome.actions, np.full((HISTORY, STATE_SIZE), tag, np.float32))
        return outcome


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_echo_bundle(tmp_path_factory.mktemp("batcher") / "echo", name=POLICY))


@pytest.fixture
def play(bundle: Bundle) -> Iterator[Callable[..., None]]:
    """Run a test's scene in an event loop of its own, with robots before a batcher of the given settings."""

    def play(
        scene: Callable[[Robots], Awaitable[None]], *, fastest_run: float = 1.0, streams: int = 0, **config: float
    ) -> None:
        async def run() -> None:
            settings = {"max_batch": MAX_BATCH, **config}
            batcher_config = BatcherConfig(**settings)  # type: ignore[arg-type]
            robots = Robots(GatedEngine(bundle), batcher_config, fastest_run=fastest_run, streams=streams)
            try:
                await scene(robots)
            finally:
                robots.batcher.close()
                robots.let_run(1000)
                # Whatever state a failed scene has left.
                robots.engine.close()

        asyncio.run(run())

    yield play
    for thread in engine_threads():
        thread.join(PATIENCE)
        assert not thread.is_alive()


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"engine-{POLICY}")]


Play = Callable[..., None]


def test_what_waits_while_the_engine_is_busy_is_one_batch(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        for tag, stream in enumerate("abcd", start=1):
            robots.submit(stream, tag)
        assert robots.batcher.waiting == 4
        robots.let_run(2)
        await robots.until_answered(0, 1, 2, 3, 4)
        assert robots.engine.runs == [[0], [1, 2, 3, 4]]
        assert robots.computed(0).batch_size == 1
        assert [robots.computed(tag).batch_size for tag in (1, 2, 3, 4)] == [4] * 4
        assert robots.batch_sizes == [1, 4]
        assert robots.batcher.waiting == 0

    play(scene)


def test_what_arrives_in_one_turn_of_the_event_loop_is_one_batch(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        robots.let_run()
        for tag, stream in enumerate("abc"):
            robots.submit(stream, tag)
        await robots.until_answered(0, 1, 2)
        assert robots.engine.runs == [[0, 1, 2]]

    play(scene)


def test_a_batch_is_no_larger_than_max_batch(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        for tag in range(1, 6):
            robots.submit(f"robot {tag}", tag)
        robots.let_run(4)
        await robots.until_answered(*range(6))
        assert robots.engine.runs == [[0], [1, 2], [3, 4], [5]]
        assert [robots.computed(tag).batch_size for tag in range(6)] == [1, 2, 2, 2, 2, 1]

    play(scene, max_batch=2)


def test_the_newest_observation_of_a_stream_wins(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        for tag in (1, 2, 3):
            robots.submit("a", tag)
        # The older ones are told at once, not when their turn would have come.
        assert robots.outcomes[1] == [Superseded()]
        assert robots.outcomes[2] == [Superseded()]
        assert robots.batcher.waiting == 1
        robots.let_run(2)
        await robots.until_answered(3)
        assert robots.engine.runs == [[0], [3]]
        robots.computed(3)
        assert all(len(outcomes) == 1 for outcomes in robots.outcomes.values())

    play(scene)


def test_an_observation_in_a_run_is_not_overtaken(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("a", 0)
        robots.submit("a", 1)
        robots.let_run(2)
        await robots.until_answered(0, 1)
        robots.computed(0)
        robots.computed(1)

    play(scene)


def test_a_newer_observation_keeps_its_streams_turn(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        for tag, stream in ((1, "a"), (2, "b"), (3, "c"), (4, "b"), (5, "a")):
            robots.submit(stream, tag)
        robots.let_run(4)
        await robots.until_answered(5, 4, 3)
        assert robots.engine.runs == [[0], [5], [4], [3]]

    play(scene, max_batch=1)


def test_a_stream_that_floods_does_not_delay_the_others(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("flood", 0)
        robots.submit("calm", 1)
        flood = iter(range(1000, 10**6))
        turns = 3
        for turn in range(turns):
            # A hundred of the one between two runs, one of the other: each still has every second run.
            newest = [next(flood) for _ in range(100)]
            for tag in newest:
                robots.submit("flood", tag)
            robots.let_run()
            await robots.until_running()
            assert robots.engine.runs[-1] == [turn + 1]
            robots.submit("calm", turn + 2)
            robots.let_run()
            await robots.until_running()
            assert robots.engine.runs[-1] == [newest[-1]]
            await robots.until_answered(turn + 1)
        robots.let_run(2)
        await robots.until_answered(turns + 1)
        assert sum(isinstance(robots.outcome(tag), Superseded) for tag in robots.outcomes) == turns * 99

    play(scene, max_batch=1)


def test_what_is_too_late_is_not_computed(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        robots.submit("late", 1, deadline=1e-9)
        robots.submit("patient", 2, deadline=NEVER)
        robots.submit("without", 3)
        robots.let_run(2)
        await robots.until_answered(0, 1, 2, 3)
        assert robots.outcomes[1] == [Expired()]
        assert robots.engine.runs == [[0], [2, 3]]
        robots.computed(2)
        robots.computed(3)

    play(scene)


def test_a_newer_observation_brings_its_own_deadline(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        robots.submit("a", 1, deadline=1e-9)
        robots.submit("a", 2, deadline=NEVER)
        robots.submit("b", 3, deadline=NEVER)
        robots.submit("b", 4, deadline=1e-9)
        robots.let_run(2)
        await robots.until_answered(1, 2, 3, 4)
        assert robots.outcomes[1] == robots.outcomes[3] == [Superseded()]
        robots.computed(2)
        assert robots.outcomes[4] == [Expired()]

    play(scene)


def test_a_queue_where_all_is_too_late_needs_no_run(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        robots.submit("late", 0, deadline=1e-9)
        await robots.until_answered(0)
        assert robots.outcomes[0] == [Expired()]
        assert robots.engine.runs == []
        robots.let_run()
        robots.submit("next", 1)
        await robots.until_answered(1)
        robots.computed(1)

    play(scene)


def test_what_is_withdrawn_is_neither_computed_nor_answered(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        robots.submit("a", 1)
        robots.submit("b", 2)
        robots.batcher.withdraw("a")
        robots.batcher.withdraw("a stream that has nothing in the queue")
        assert robots.batcher.waiting == 1
        robots.batcher.withdraw("first")  # its run goes on
        robots.let_run(2)
        await robots.until_answered(0, 2)
        assert robots.engine.runs == [[0], [2]]
        assert robots.outcomes[1] == []
        robots.computed(0)

    play(scene)


def test_one_observation_too_many_is_refused_at_once_and_the_others_are_not_disturbed(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        robots.submit("a", 1)
        robots.submit("b", 2)
        with pytest.raises(Overloaded, match="2 observations are waiting already; try again in") as caught:
            robots.submit("c", 3)
        assert caught.value.retry_after > 0
        # Who is waiting already may still send something newer: the queue grows by nothing.
        robots.submit("a", 4)
        assert robots.batcher.waiting == 2
        robots.let_run(2)
        await robots.until_answered(1, 2, 4)
        assert robots.outcomes[1] == [Superseded()]
        assert robots.outcomes[3] == []
        assert robots.engine.runs == [[0], [4, 2]]
        robots.let_run()
        robots.submit("c", 5)
        await robots.until_answered(5)

    play(scene, max_waiting=2)


def test_a_failing_run_fails_each_of_its_observations_and_no_other(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        robots.submit("a", 1)
        # Another shape than the graph's: the engine itself raises.
        robots.submit_inputs("b", 2, {**graph_inputs(2), "noise": np.zeros((HISTORY + 1, STATE_SIZE), np.float32)})
        robots.submit("c", 3)
        robots.let_run()
        await robots.until_running()
        robots.submit("d", 4)
        robots.let_run(2)
        await robots.until_answered(0, 1, 2, 3, 4)
        assert robots.engine.runs == [[0], [1, 2, 3], [4]]
        for tag in (1, 2, 3):
            outcome = robots.outcome(tag)
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, ValueError)
        robots.computed(0)
        robots.computed(4)

    play(scene)


def test_within_the_delay_an_observation_waits_for_company(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        robots.let_run()
        robots.submit("a", 0)
        await turns_of_the_event_loop()
        assert robots.engine.runs == []
        robots.submit("b", 1)
        await turns_of_the_event_loop()
        assert robots.engine.runs == []
        # The third robot does not come: the two go without it.
        await robots.until_answered(0, 1)
        assert robots.engine.runs == [[0, 1]]
        assert robots.computed(0).batch_size == robots.computed(1).batch_size == 2

    play(scene, streams=3, max_delay=0.5)


def test_a_newer_observation_is_no_company(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        robots.let_run()
        robots.submit("a", 0)
        robots.submit("a", 1)
        await turns_of_the_event_loop()
        assert robots.engine.runs == []
        robots.submit("b", 2)
        await robots.until_answered(0, 1, 2)
        assert robots.engine.runs == [[1, 2]]

    play(scene, streams=2, max_delay=NEVER)


def test_nobody_waits_for_more_company_than_there_is(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        robots.let_run(2)
        robots.submit("a", 0)
        await turns_of_the_event_loop()
        assert robots.engine.runs == []
        robots.submit("b", 1)
        await robots.until_answered(0, 1)
        assert robots.engine.runs == [[0, 1]]
        robots.batcher.leave()
        robots.submit("a", 2)
        await robots.until_answered(2)
        assert robots.computed(2).batch_size == 1

    play(scene, streams=2, max_delay=NEVER)


def test_a_full_batch_does_not_wait(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        robots.let_run()
        robots.submit("a", 0)
        await turns_of_the_event_loop()
        assert robots.engine.runs == []
        robots.submit("b", 1)
        await robots.until_answered(0, 1)
        assert robots.engine.runs == [[0, 1]]

    play(scene, streams=8, max_delay=NEVER, max_batch=2)


def test_what_waited_for_the_engine_waits_for_company_too(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        robots.submit("a", 0)
        robots.submit("b", 1)
        await robots.until_running()
        robots.submit("c", 2)
        robots.let_run(2)
        await robots.until_answered(0, 1)
        await turns_of_the_event_loop()
        assert robots.engine.runs == [[0, 1]]
        robots.submit("a", 3)
        await robots.until_answered(2, 3)
        assert robots.engine.runs == [[0, 1], [2, 3]]

    play(scene, streams=3, max_delay=NEVER, max_batch=2)


def test_a_batch_that_filled_during_a_run_starts_when_the_engine_is_free(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        robots.submit("a", 0)
        robots.submit("b", 1)
        await robots.until_running()
        robots.submit("b", 2)
        robots.submit("a", 3)
        robots.let_run(2)
        await robots.until_answered(0, 1, 2, 3)
        assert robots.engine.runs == [[0, 1], [2, 3]]

    play(scene, streams=2, max_delay=NEVER)


def test_a_robot_alone_has_a_short_run_at_once(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        robots.let_run()
        robots.submit("a", 0, alone=True)
        assert robots.computed(0).batch_size == 1
        assert robots.batch_sizes == [1]
        robots.let_run()
        robots.submit_inputs("a", 1, {**graph_inputs(1), "noise": np.zeros(5, np.float32)}, alone=True)
        assert isinstance(robots.outcome(1), Failed)

    play(scene, fastest_run=0.0)


def test_a_robot_alone_does_not_keep_the_event_loop_for_a_long_run(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        robots.let_run()
        robots.submit("a", 0, alone=True)
        assert robots.outcomes[0] == []
        await robots.until_answered(0)
        robots.computed(0)

    play(scene, fastest_run=1.0)


def test_no_run_at_once_while_another_is_under_way_or_waits(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        robots.submit("a", 1, alone=True)
        assert robots.outcomes[1] == []
        robots.let_run(2)
        await robots.until_answered(0, 1)
        robots.let_run(2)
        robots.submit("b", 2)
        robots.submit("c", 3, alone=True)
        assert robots.outcomes[3] == []
        await robots.until_answered(2, 3)
        assert robots.engine.runs == [[0], [1], [2, 3]]

    play(scene, fastest_run=0.0)


def test_close_computes_what_waits_and_ends_the_thread(play: Play) -> None:
    async def scene(robots: Robots) -> None:
        await robots.busy_with("first", 0)
        robots.submit("a", 1)
        robots.submit("b", 2)
        robots.batcher.close()
        robots.let_run(2)
        await robots.until_answered(0, 1, 2)
        for tag in (0, 1, 2):
            robots.computed(tag)
        for thread in engine_threads():
            await asyncio.to_thread(thread.join, PATIENCE)
        assert engine_threads() == []

    play(scene)


async def turns_of_the_event_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


STREAMS = ("a", "b", "c", "d")
operations = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(STREAMS)),
        st.tuples(st.just("withdraw"), st.sampled_from(STREAMS)),
        st.tuples(st.sampled_from(("turn", "run ends")), st.just("")),
    ),
    max_size=60,
)


class Model:
    """What a batcher is to do, in as few words as can be: streams take turns in the order of their first arrival."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.queue: list[tuple[str, int]] = []
        self.running: list[int] = []
        self.runs: list[list[int]] = []
        self.superseded: set[int] = set()
        self.withdrawn: set[int] = set()

    def submit(self, stream: str, tag: int) -> None:
        for place, (waiting, older) in enumerate(self.queue):
            if waiting == stream:
                self.superseded.add(older)
                self.queue[place] = (stream, tag)
                return
        self.queue.append((stream, tag))

    def withdraw(self, stream: str) -> None:
        self.withdrawn |= {tag for waiting, tag in self.queue if waiting == stream}
        self.queue = [place for place in self.queue if place[0] != stream]

    def start(self) -> None:
        if not self.running and self.queue:
            self.running = [tag for _, tag in self.queue[: self.max_batch]]
            del self.queue[: self.max_batch]
            self.runs.append(self.running)


@settings(max_examples=200)
@given(steps=operations, max_batch=st.integers(1, 3))
def test_every_observation_has_one_outcome_and_streams_take_turns(
    bundle: Bundle, steps: list[tuple[str, str]], max_batch: int
) -> None:
    async def play() -> None:
        model, robots = Model(max_batch), Robots(GatedEngine(bundle), BatcherConfig(max_batch))

        async def end_run() -> None:
            await robots.until_running()
            robots.let_run()
            await robots.until_answered(*model.running)
            model.running = []
            model.start()

        for tag, (what, stream) in enumerate(steps):
            if what == "submit":
                robots.submit(stream, tag)
                model.submit(stream, tag)
            elif what == "withdraw":
                robots.batcher.withdraw(stream)
                model.withdraw(stream)
            elif what == "turn":
                await asyncio.sleep(0)
                model.start()
            elif model.running:
                await end_run()
            assert robots.batcher.waiting == len(model.queue)
        robots.batcher.close()
        await asyncio.sleep(0)
        model.start()
        while model.running:
            await end_run()

        assert robots.engine.runs == model.runs
        for tag, outcomes in robots.outcomes.items():
            if tag in model.withdrawn:
                assert outcomes == []
            elif tag in model.superseded:
                assert outcomes == [Superseded()]
            else:
                robots.computed(tag)
        chunks = [tag for tag in robots.order if tag not in model.superseded]
        assert chunks == [tag for run in model.runs for tag in run]

    asyncio.run(play())
    for thread in engine_threads():
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def shipped_engine() -> Engine:
    return Engine(read_bundle(SHIPPED_BUNDLE), max_batch=32)


@pytest.mark.parametrize("batch_size", [2, 7, 32])
def test_a_chunk_does_not_depend_on_the_company_it_was_computed_in(shipped_engine: Engine, batch_size: int) -> None:
    """Bit for bit: the same seeds give the same episodes for any number of robots at once."""
    spec, random = shipped_engine.spec, np.random.default_rng(batch_size)
    (entry,) = spec.observations
    low = np.array([element.training_min for element in entry.elements])
    high = np.array([element.training_max for element in entry.elements])
    chunk_shape = (spec.action.horizon, len(spec.action.elements))
    observations: list[GraphInputs] = [
        {
            entry.key: random.uniform(low, high, (spec.observation_steps, len(low))).astype(np.float32),
            "instruction": np.array(spec.instructions[random.integers(len(spec.instructions))].embedding, np.float32),
            "noise": random.standard_normal(chunk_shape, np.float32),
            "prefix_actions": random.uniform(-1.0, 1.0, chunk_shape).astype(np.float32),
            "prefix_length": random.integers(spec.action.max_committed_steps + 1, size=()),
        }
        for _ in range(batch_size)
    ]
    together = shipped_engine.run(observations).actions
    alone = np.concatenate([shipped_engine.run([observation]).actions for observation in observations])
    assert together.tobytes() == alone.tobytes()
    backwards = shipped_engine.run(observations[::-1]).actions
    assert backwards[::-1].tobytes() == alone.tobytes()
    assert len({chunk.tobytes() for chunk in alone}) == batch_size
