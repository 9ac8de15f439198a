"""What is played at each tick and when the next chunk is asked for, decided without any connection or clock."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkcast.client import (
    ActionChunk,
    ChunkHealth,
    ChunkTimeout,
    ObservationError,
    PlaybackConfig,
    PolicyOverloaded,
    PolicyUnavailable,
    PolicyUnhealthy,
    UnsafeAction,
)
from chunkcast.client.playback import Playback
from chunkcast.client.wire import Dropped, Sent
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import decode_tensor

KEY = "state"
HORIZON = 8
RATE = 10.0
"""Ticks of 0.1 s: a tick may wait 0.05 s for its chunk."""


def spec(observation_steps: int = 1, max_committed_steps: int = 4) -> pb.PolicySpec:
    return pb.PolicySpec(
        name="made",
        version="1",
        observations=[pb.ObservationEntry(key=KEY, dtype=pb.DATA_TYPE_FLOAT32, shape=[1])],
        observation_steps=observation_steps,
        action=pb.ActionSpec(
            elements=[pb.ActionElement(name="a", unit="1", low=-10_000, high=10_000)],
            control_rate_hz=RATE,
            horizon=HORIZON,
            execute_steps=4,
            max_committed_steps=max_committed_steps,
        ),
        serving_health=pb.ServingHealth(
            thresholds=[pb.SignalThreshold(signal=pb.HEALTH_SIGNAL_NOVELTY, threshold=1.0)],
        ),
    )


class Loop:
    """A control loop at 10 Hz whose chunks take ``delay`` ticks; chunk ``n`` says ``100 n + tick`` for each tick."""

    def __init__(self, config: PlaybackConfig, delay: float = 0.0, **of_spec: int) -> None:
        self.playback = Playback(spec(**of_spec), config, timeout=1.0)
        self.playback.begin_episode("")
        self.delay = delay
        self.tick, self.now = 0, 0.0
        self.requests: list[pb.Observation] = []
        self.on_the_way: list[tuple[float, Sent, ActionChunk]] = []
        self.silent = False

    def step(self) -> float:
        """One tick: the action's only element."""
        self.now = self.tick / RATE
        self.deliver()
        while (wait := self.playback.seconds_before_tick(self.now)) > 0.0:
            self.now = min([self.now + wait, *(arrives for arrives, *_ in self.on_the_way)])
            self.deliver()
        for message in self.playback.begin_tick(observation(self.tick), self.now):
            if not message.history_only:
                self.requests.append(message)
                if not self.silent:
                    self.send_chunk(message)
        self.deliver()
        while (wait := self.playback.seconds_to_wait(self.now)) > 0.0:
            # Waiting ends with the next arrival, or when the tick may wait no longer.
            self.now = min([self.now + wait, *(arrives for arrives, *_ in self.on_the_way)])
            self.deliver()
        self.tick += 1
        return float(self.playback.action()[0])

    def send_chunk(self, message: pb.Observation) -> None:
        rows = 100.0 * len(self.requests) + message.step + np.arange(HORIZON, dtype=np.float32)
        chunk = ActionChunk(message.step, rows[:, None].astype(np.float32), "1", 0.0, 0.0)
        self.on_the_way.append((self.now + self.delay / RATE, Sent(message.episode_id, message.step, False), chunk))

    def deliver(self) -> None:
        for item in list(self.on_the_way):
            arrives, token, chunk = item
            if arrives <= self.now + 1e-9:
                self.on_the_way.remove(item)
                self.playback.take(token, chunk, self.now)

    def play(self, ticks: int) -> list[float]:
        return [self.step() for _ in range(ticks)]


def observation(tick: int) -> dict[str, npt.NDArray[np.float32]]:
    return {KEY: np.array([tick], np.float32)}


def test_a_quick_chunk_is_waited_for_and_played_from_its_first_row() -> None:
    loop = Loop(PlaybackConfig(), delay=0.2)
    assert loop.play(9) == [100, 101, 102, 103, 204, 205, 206, 207, 308]
    assert [request.step for request in loop.requests] == [0, 4, 8]


def test_late_rows_are_discarded_and_no_tick_waits_for_a_slow_chunk() -> None:
    loop = Loop(PlaybackConfig(), delay=0.2)
    loop.play(4)
    loop.delay = 1.5
    assert loop.play(3) == [104, 105, 206]
    assert loop.now < 6 / RATE + 0.051


def test_a_chunk_of_which_every_row_is_late_is_asked_for_again() -> None:
    loop = Loop(PlaybackConfig(max_starved_ticks=100), delay=0.0)
    loop.play(4)
    loop.delay = HORIZON + 3
    loop.play(HORIZON + 3)
    assert [request.step for request in loop.requests] == [0, 4]
    loop.delay = 0.0
    loop.play(3)
    assert loop.requests[-1].step >= 4 + HORIZON


def test_a_slow_policy_is_asked_before_its_chunk_runs_out() -> None:
    loop = Loop(PlaybackConfig(execute_steps=8), delay=0.0)
    loop.play(1)
    loop.delay = 3.5
    loop.play(40)
    assert loop.playback.latency == pytest.approx(0.4)
    assert loop.playback.starved_ticks <= 4  # the first slow chunk could not be foreseen
    starved = loop.playback.starved_ticks
    loop.play(40)
    assert loop.playback.starved_ticks == starved


@pytest.mark.parametrize("delay", [0, 1, 3, 4])
@pytest.mark.parametrize("takes", [0.0, 0.3, 4.2])
def test_a_simulated_delay_is_kept_to_the_tick_however_long_a_chunk_takes(delay: int, takes: float) -> None:
    loop = Loop(PlaybackConfig(simulated_delay=delay), delay=takes)
    played = loop.play(20)
    for tick in range(20):
        request = max(0, (tick - delay) // 4)
        assert played[tick] == 100 * (1 + request) + tick


def test_real_time_chunking_commits_to_what_will_play_meanwhile() -> None:
    loop = Loop(PlaybackConfig(overlap="real-time-chunking", simulated_delay=3))
    played = loop.play(12)
    first, second, third = loop.requests
    assert not first.HasField("committed_actions")
    for request, step in ((second, 4), (third, 8)):
        assert request.step == step
        committed = decode_tensor(request.committed_actions)
        assert committed[:, 0].tolist() == played[step : step + 3]


def test_committed_actions_are_as_many_as_the_latency_takes_and_the_policy_has_learned() -> None:
    loop = Loop(PlaybackConfig(overlap="real-time-chunking", max_starved_ticks=100), delay=1.5, max_committed_steps=2)
    loop.play(20)
    counts = [request.committed_actions.shape[0] for request in loop.requests if request.HasField("committed_actions")]
    assert counts
    assert set(counts) == {2}


def test_an_ensemble_averages_the_chunks_that_know_the_tick() -> None:
    loop = Loop(PlaybackConfig(overlap="ensemble", simulated_delay=0))
    played = loop.play(5)
    older, newer = 104.0, 204.0
    weight = math.exp(-0.01)
    assert played[4] == pytest.approx((older + weight * newer) / (1 + weight), rel=1e-5)


@pytest.mark.parametrize(
    ("starvation", "expected"),
    [("hold", [107.0, 107.0, 107.0, 107.0]), ("decelerate", [80.25, 53.5, 26.75, 0.0]), ("stop", [])],
)
def test_starvation(starvation: str, expected: list[float]) -> None:
    loop = Loop(PlaybackConfig(starvation=starvation, max_starved_ticks=4))  # type: ignore[arg-type]
    loop.play(1)
    loop.silent = True
    assert loop.play(7) == [101, 102, 103, 104, 105, 106, 107]
    assert loop.play(len(expected)) == pytest.approx(expected)
    with pytest.raises(ChunkTimeout, match="no chunk for tick"):
        loop.step()


def test_an_arm_comes_to_rest_as_fast_as_it_is_set_to_and_stays_there() -> None:
    loop = Loop(PlaybackConfig(starvation="decelerate", max_starved_ticks=6, decelerate_ticks=2))
    loop.play(1)
    loop.silent = True
    loop.play(7)
    assert loop.play(6) == pytest.approx([53.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    with pytest.raises(ChunkTimeout):
        loop.step()


def test_what_is_not_to_rest_holds() -> None:
    name = spec().action.elements[0].name
    config = PlaybackConfig(starvation="decelerate", max_starved_ticks=4, rest_elements=[])
    loop = Loop(config)
    loop.play(1)
    loop.silent = True
    loop.play(7)
    assert loop.play(4) == [107.0] * 4
    assert Loop(replace(config, rest_elements=[name])).play(1)
    with pytest.raises(ValueError, match=r"rest_elements names \['wrist'\], expected some of"):
        Loop(replace(config, rest_elements=["wrist"]))
    with pytest.raises(ValueError, match="decelerate_ticks is 5, expected 1 to max_starved_ticks, 4"):
        Loop(replace(config, decelerate_ticks=5))


def test_history_that_is_beyond_the_clients_rate_is_waited_for_and_stops_nothing() -> None:
    loop = Loop(PlaybackConfig(), observation_steps=2)
    loop.play(3)
    history = Sent(loop.playback.episode_id, 2, True)
    assert loop.playback.take(history, PolicyOverloaded("too many requests", 0.3), loop.now) is None
    assert loop.step()


def test_a_reason_is_forgotten_when_chunks_come_again() -> None:
    loop = Loop(PlaybackConfig(starvation="stop"))
    loop.play(1)
    loop.playback.disconnected(PolicyUnavailable("gone"))
    loop.playback.connected()
    loop.play(1)
    loop.silent = True
    with pytest.raises(ChunkTimeout):
        loop.play(2 * HORIZON)


def test_a_lost_connection_is_named_when_the_robot_starves() -> None:
    loop = Loop(PlaybackConfig(starvation="stop"))
    loop.play(1)
    loop.playback.disconnected(PolicyUnavailable("connection refused"))
    loop.play(HORIZON - 1)
    assert len(loop.requests) == 1
    with pytest.raises(PolicyUnavailable, match="connection refused"):
        loop.step()


def test_a_server_that_is_back_is_told_the_history_first() -> None:
    loop = Loop(PlaybackConfig(), observation_steps=3)
    loop.play(5)
    loop.playback.disconnected(PolicyUnavailable("gone"))
    assert all(message.history_only for message in loop.playback.begin_tick(observation(5), 0.5))
    loop.playback.connected()
    messages = loop.playback.begin_tick(observation(6), 0.6)
    assert [(message.step, message.history_only) for message in messages] == [(4, True), (5, True), (6, False)]


def test_an_overloaded_server_is_given_its_time() -> None:
    loop = Loop(PlaybackConfig())
    loop.play(4)
    loop.silent = True
    loop.playback.begin_tick(observation(4), 0.4)
    loop.playback.take(Sent(loop.playback.episode_id, 4, False), PolicyOverloaded("full", 0.15), 0.41)
    assert loop.playback.begin_tick(observation(5), 0.5) == []
    assert len(loop.playback.begin_tick(observation(6), 0.6)) == 1


def test_a_dropped_observation_is_followed_by_another_at_the_next_tick() -> None:
    loop = Loop(PlaybackConfig())
    loop.play(4)
    loop.playback.begin_tick(observation(4), 0.4)
    loop.playback.take(Sent(loop.playback.episode_id, 4, False), Dropped(4, "deadline"), 0.41)
    assert [message.step for message in loop.playback.begin_tick(observation(5), 0.5)] == [5]


def test_refusals_and_unsafe_chunks_are_raised() -> None:
    loop = Loop(PlaybackConfig())
    loop.playback.begin_tick(observation(0), 0.0)
    with pytest.raises(ObservationError, match="nan"):
        loop.playback.take(
            Sent(loop.playback.episode_id, 0, False), ObservationError(pb.ERROR_CODE_NOT_FINITE, "nan"), 0.0
        )
    (message,) = loop.playback.begin_tick(observation(1), 0.1)
    beyond = ActionChunk(message.step, np.full((HORIZON, 1), 1e6, np.float32), "1", 0.0, 0.0)
    with pytest.raises(UnsafeAction):
        loop.playback.take(Sent(message.episode_id, message.step, False), beyond, 0.1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PlaybackConfig(execute_steps=HORIZON + 1), "execute_steps is 9, expected 1 to 8"),
        (PlaybackConfig(simulated_delay=5), "simulated_delay is 5"),
        (PlaybackConfig(max_starved_ticks=-1), "max_starved_ticks is -1"),
        (PlaybackConfig(patience=2.0), "patience 2.0"),
        (PlaybackConfig(rest_action=[0.0, 0.0]), r"rest_action has shape \[2\], expected \[1\]"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(config: PlaybackConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Playback(spec(), config, 1.0)


def test_a_policy_that_has_not_learned_real_time_chunking_is_not_played_so() -> None:
    with pytest.raises(ValueError, match="made has not learned to continue committed actions"):
        Playback(spec(max_committed_steps=0), PlaybackConfig(overlap="real-time-chunking"), 1.0)


@given(
    delays=st.lists(st.floats(0.0, 12.0), min_size=1, max_size=30),
    overlap=st.sampled_from(["replace", "real-time-chunking"]),
    execute_steps=st.integers(1, HORIZON),
)
def test_whatever_the_delays_each_tick_plays_its_own_row_or_holds(
    delays: list[float], overlap: str, execute_steps: int
) -> None:
    config = PlaybackConfig(
        overlap=overlap,  # type: ignore[arg-type]
        execute_steps=execute_steps,
        max_starved_ticks=1000,
    )
    loop = Loop(config)
    last = None
    for tick, delay in enumerate(delays):
        loop.delay = delay if tick else 0.0
        starved = loop.playback.starved_ticks
        action = loop.step()
        if loop.playback.starved_ticks > starved:
            assert action == last
        else:
            assert action % 100 == tick  # never another tick's row
        last = action
    steps = [request.step for request in loop.requests]
    assert steps == sorted(set(steps))


def test_an_answer_to_the_episode_before_is_not_played() -> None:
    loop = Loop(PlaybackConfig())
    (message,) = loop.playback.begin_tick(observation(0), 0.0)
    loop.playback.begin_episode("")
    loop.playback.begin_tick(observation(0), 0.1)
    chunk = ActionChunk(0, np.zeros((HORIZON, 1), np.float32), "1", 0.0, 0.0)
    loop.playback.take(Sent(message.episode_id, 0, False), chunk, 0.1)
    assert not loop.playback.has_chunk
    loop.playback.take(Sent(loop.playback.episode_id, 0, False), chunk, 0.1)
    assert loop.playback.has_chunk


def health(score: float) -> ChunkHealth:
    return ChunkHealth(step=0, signal="novelty", score=score, threshold=1.0, scores={"novelty": (score, 1.0)})


def judged(loop: Loop, score: float) -> None:
    """The next chunk comes with this judgement."""
    arrives, token, chunk = loop.on_the_way.pop()
    loop.on_the_way.append((arrives, token, chunk._replace(health=health(score))))


def test_an_unhealthy_policy_is_ignored_unless_the_robot_says_otherwise() -> None:
    loop = Loop(PlaybackConfig(), delay=0.2)
    loop.playback.health = health(2.0)
    assert loop.play(4) == [100, 101, 102, 103]


def test_an_unhealthy_policy_stops_the_robot() -> None:
    loop = Loop(PlaybackConfig(on_unhealthy="stop"), delay=1.5)
    loop.step()
    loop.playback.begin_episode("")  # its answers come too late
    loop.playback.health = health(1.0)
    loop.tick = 0
    loop.play(2)  # at its threshold it is healthy
    loop.playback.health = health(1.01)
    with pytest.raises(PolicyUnhealthy, match=r"at tick 2: novelty is 1.01 at tick 0, healthy up to 1") as stopped:
        loop.step()
    assert stopped.value.health == loop.playback.health
    assert loop.playback.unhealthy_at == 2


def test_an_unhealthy_policy_slows_the_robot_towards_rest() -> None:
    loop = Loop(PlaybackConfig(on_unhealthy="slow", slow_share=0.25, rest_action=(20.0,)), delay=0.2)
    assert loop.step() == 100
    loop.playback.health = health(2.0)
    assert loop.step() == 20 + 0.25 * (101 - 20)
    loop.playback.health = health(0.5)
    assert loop.step() == 20 + 0.25 * (102 - 20), "until the episode ends"
    loop.playback.begin_episode("")
    loop.tick = 0
    assert loop.step() == 200


def test_a_judgement_is_of_its_episode() -> None:
    loop = Loop(PlaybackConfig(on_unhealthy="stop"), delay=0.0)
    loop.playback.health = health(2.0)
    loop.playback.begin_episode("")
    assert loop.playback.health is None
    assert loop.step() == 100


def test_what_the_server_says_of_health_arrives_with_a_chunk() -> None:
    loop = Loop(PlaybackConfig(on_unhealthy="stop"), delay=0.0)
    message = loop.playback.begin_tick(observation(0), 0.0)[0]
    loop.send_chunk(message)
    judged(loop, 3.0)
    loop.deliver()
    with pytest.raises(PolicyUnhealthy):
        loop.playback.action()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PlaybackConfig(on_unhealthy="panic"), "on_unhealthy is 'panic'"),  # type: ignore[arg-type]
        (PlaybackConfig(on_unhealthy="slow", slow_share=1.0), "above 0 and below 1"),
    ],
)
def test_what_is_no_reaction_is_refused(config: PlaybackConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Playback(spec(), config, timeout=1.0)


def test_a_reaction_to_what_is_never_judged_is_refused() -> None:
    """A robot that is set to stop must not be played by a policy that nothing would ever stop."""
    unjudged = spec()
    unjudged.ClearField("serving_health")
    Playback(unjudged, PlaybackConfig(), timeout=1.0)
    with pytest.raises(ValueError, match=r"made has no thresholds to judge health by, so on_unhealthy='stop'"):
        Playback(unjudged, PlaybackConfig(on_unhealthy="stop"), timeout=1.0)


def test_the_server_is_told_what_was_executed() -> None:
    loop = Loop(PlaybackConfig(on_unhealthy="slow", slow_share=0.5), delay=0.2)
    loop.play(6)
    loop.playback.health = health(2.0)
    loop.play(3)
    first, second, third = loop.requests
    assert not first.HasField("executed_actions")
    assert decode_tensor(second.executed_actions)[:, 0].tolist() == [100, 101, 102, 103]
    assert decode_tensor(third.executed_actions)[:, 0].tolist() == [204, 205, 206 / 2, 207 / 2]


def test_only_the_elements_named_are_slowed() -> None:
    loop = Loop(PlaybackConfig(on_unhealthy="slow", slow_elements=()), delay=0.2)
    loop.step()
    loop.playback.health = health(2.0)
    assert loop.step() == 101
    with pytest.raises(ValueError, match=r"slow_elements names \['b'\], expected some of \['a'\]"):
        Playback(spec(), PlaybackConfig(slow_elements=("b",)), timeout=1.0)


def test_a_server_that_comes_back_is_asked_anew_for_health() -> None:
    loop = Loop(PlaybackConfig(), delay=0.2)
    loop.step()
    loop.playback.health = health(2.0)
    loop.playback.disconnected(PolicyUnavailable("gone"))
    loop.playback.connected()
    assert loop.playback.health is None
