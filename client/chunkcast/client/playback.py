"""What a robot plays at each tick and when it asks again, as pure state: no connection, no clock, no thread.

Both players, blocking and asyncio, carry out what this decides: they are told the time, send what ``begin_tick``
returns, hand every answer to ``take``, and play ``action``.

::

    tick        0   1   2   3   4   5   6   7   8   9
    chunk A     a0  a1  a2  a3  a4  a5  a6  a7              asked for at tick 0
    chunk B                     -   -   b2  b3  b4  b5      asked for at tick 4, arrived during tick 5
    replace     a0  a1  a2  a3  a4  a5  b2  b3  b4  b5      b0 and b1 are late: they are discarded
    ensemble    ...                     mean of a6 and b2, ...
    real-time chunking: b0 = a4 and b1 = a5 were sent along as committed, so that b2 continues them
"""

from __future__ import annotations

import math
import uuid
from collections import deque

import numpy as np
import numpy.typing as npt

from chunkcast.client.chunk_health import ChunkHealth
from chunkcast.client.errors import (
    ChunkcastError,
    ChunkTimeout,
    ObservationError,
    PolicyOverloaded,
    PolicyUnavailable,
    PolicyUnhealthy,
)
from chunkcast.client.playback_config import PlaybackConfig, require_fits
from chunkcast.client.robot import ActionCheck, check_observation
from chunkcast.client.wire import ActionChunk, Answer, Observation, Sent, encode_observation
from chunkcast.v1 import policy_pb2 as pb

DELAYS_KEPT = 10
"""The estimate is the longest of the last few: a chunk that comes earlier costs nothing, a later one a jump."""

ENSEMBLE_DECAY = 0.01
"""Weights exp(-m i) of the chunks that know a tick, i = 0 for the oldest (ACT, Zhao et al. 2023, arXiv:2304.13705)."""


class Playback:
    """Chunks in, actions out.

    Args:
        spec: the policy's.
        config: how to play.
        timeout: seconds to wait for an episode's first chunk, and in simulations for every chunk.

    Attributes:
        at_border: the last action was the first in which a new chunk had a part.
        starved_ticks: ticks of this episode that no chunk knew.
        health: how the server judged this episode last, or ``None``.
        unhealthy_at: the tick at which it first said unhealthy, or ``None``.

    Raises:
        ValueError: the configuration does not fit the policy.
    """

    def __init__(self, spec: pb.PolicySpec, config: PlaybackConfig, timeout: float) -> None:
        self.spec, self._config, self._timeout = spec, config, timeout
        action = spec.action
        self._execute_steps = action.execute_steps if config.execute_steps is None else config.execute_steps
        self._rest = np.zeros(len(action.elements), np.float32)
        if config.rest_action is not None:
            self._rest = np.asarray(config.rest_action, np.float32)
        require_fits(config, spec, self._execute_steps, self._rest, timeout)
        slow = [config.slow_elements is None or each.name in config.slow_elements for each in action.elements]
        self._slow_by = np.where(slow, 1.0 - config.slow_share, 0.0).astype(np.float32)
        self._rests = np.array(
            [config.rest_elements is None or each.name in config.rest_elements for each in action.elements], np.float32
        )
        self._decelerate_ticks = config.decelerate_ticks or config.max_starved_ticks
        self.rate_hz = action.control_rate_hz
        self._check_actions = ActionCheck(spec)
        self._latencies: deque[float] = deque(maxlen=DELAYS_KEPT)
        self._delays: deque[int] = deque(maxlen=DELAYS_KEPT)
        self._connected = True
        self._tick_began = 0.0
        self.episode_id = ""
        self.begin_episode("")

    def begin_episode(self, instruction: str, *, episode_id: str | None = None, noise_seed: int | None = None) -> str:
        """Forget chunks and history; returns the episode's id, a random one by default.

        Raises:
            ValueError: the id is that of the episode before, whose late answers would be taken for this one's.
        """
        if episode_id and episode_id == self.episode_id:
            raise ValueError(f"episode_id {episode_id!r} is that of the episode before; each needs one of its own")
        self._instruction, self._noise_seed = instruction, noise_seed
        self.episode_id = episode_id or uuid.uuid4().hex
        self._tick = -1
        self._chunks: list[ActionChunk] = []
        self._arrived: ActionChunk | None = None
        self._pending: int | None = None  # the tick whose answer is awaited
        self._sent_at = 0.0
        self._not_before = -math.inf
        self._last_request: int | None = None
        self._history: deque[tuple[int, Observation]] = deque(maxlen=max(1, self.spec.observation_steps - 1))
        self._resend = False
        self._last_action: npt.NDArray[np.float32] | None = None
        self._starved_for = self.starved_ticks = 0
        self._reason: ChunkcastError | None = None
        self._new_chunk = self.at_border = False
        self.health: ChunkHealth | None = None
        self.unhealthy_at: int | None = None
        self._executed: deque[npt.NDArray[np.float32]] = deque(maxlen=self._execute_steps)
        self._between_ticks = True
        return self.episode_id

    def begin_tick(self, observation: Observation, now: float) -> list[pb.Observation]:
        """The next tick, with what the robot observes; returns what is to be sent, in order.

        Args:
            now: monotonic seconds.

        Raises:
            RobotMismatch: the episode's first observation is not what the policy expects.
        """
        if self._tick < 0:
            check_observation(self.spec, observation)
        self._tick += 1
        self._between_ticks = False
        self._tick_began = now
        self._take_up()
        messages: list[pb.Observation] = []
        if self._wants_chunk(now):
            if self._resend:
                # The server has forgotten this episode: it gets the ticks that the policy is to see.
                first = self._tick - self.spec.observation_steps + 1
                seen = [(tick, past) for tick, past in self._history if tick >= first]
                messages += [self._message(past, tick, history_only=True) for tick, past in seen]
                self._resend = False
            messages.append(self._request(observation, now))
        elif self.spec.observation_steps > 1 and not self._resend:
            messages.append(self._message(observation, self._tick, history_only=True))
        if self.spec.observation_steps > 1:
            self._history.append((self._tick, observation))
        return messages

    def seconds_before_tick(self, now: float) -> float:
        """How long the next tick waits for an answer before it begins: only in a simulation, where a chunk is due at a
        tick, and what is asked for at that tick depends on it.
        """
        delay = self._config.simulated_delay
        if delay is None or self._pending is None or self._tick + 1 - self._pending < delay:
            return 0.0
        return max(0.0, self._sent_at + self._timeout - now)

    def seconds_to_wait(self, now: float) -> float:
        """How long this tick may still wait for an answer: 0 if it need not."""
        if self._pending is None and self._arrived is None:
            return 0.0
        if not self._chunks:
            return max(0.0, self._sent_at + self._timeout - now)
        delay = self._config.simulated_delay
        if delay is not None:
            due = self._pending is not None and self._tick - self._pending >= delay
            return max(0.0, self._sent_at + self._timeout - now) if due else 0.0
        if self._pending == self._tick or self._rows_left() == 0:
            return max(0.0, self._tick_began + self._config.patience / self.rate_hz - now)
        return 0.0

    def take(self, token: Sent, answer: Answer, now: float) -> float | None:
        """An answer has arrived; returns the seconds that it took, if it is the chunk that was asked for last.

        Raises:
            UnsafeAction: the policy's answer was withheld, or its chunk is not within the specification.
            ObservationError: the server refused an observation; the next tick asks again.
        """
        if token.episode_id != self.episode_id:
            return None  # of an episode that is over
        if token.history_only:
            if isinstance(answer, PolicyOverloaded):
                # It was not looked at: the policy sees the next newer tick in its place.
                self._not_before = now + answer.retry_after
                return None
            assert isinstance(answer, ObservationError)
            raise answer
        if token.step != self._pending:
            return None  # of a connection that is over
        self._pending = None
        if isinstance(answer, ActionChunk):
            seconds = now - self._sent_at
            self._latencies.append(seconds)
            self._check_actions(answer)
            self.health = answer.health or self.health
            self._arrived, self._reason = answer, None
            self._take_up()
            return seconds
        self._last_request = None
        if isinstance(answer, ObservationError):
            raise answer
        if isinstance(answer, PolicyOverloaded):
            self._not_before, self._reason = now + answer.retry_after, answer
        return None

    def disconnected(self, error: ChunkcastError) -> None:
        """The connection is lost: what was asked for will not come."""
        self._pending, self._last_request, self._reason = None, None, error
        self._connected = False

    def connected(self) -> None:
        """There is a connection again, to a server that knows nothing of this episode."""
        self._connected, self._resend = True, self._tick >= 0
        self._pending = self._last_request = self._reason = None
        self.health = None  # of another server, which judges no more

    def retry_at(self) -> float | None:
        """When an episode's first chunk, which the server had no time for, may be asked for again: monotonic seconds;
        ``None`` where there is nothing to ask again. The observation then counts as the next tick's.
        """
        if self._chunks or self._arrived is not None or self._pending is not None or not self._connected:
            return None
        return self._not_before if self._tick >= 0 and self._sent_at > 0.0 else None

    def action(self) -> npt.NDArray[np.float32]:
        """This tick's action, float32 ``[action size]``.

        Raises:
            ChunkTimeout, PolicyUnavailable, PolicyOverloaded: no chunk knows this tick, and the robot has held or
                decelerated for as long as it may: stop it.
            PolicyUnhealthy: the server judges the policy out of its element, and ``on_unhealthy`` is ``stop``.
        """
        if self.health and self.health.unhealthy:
            if self.unhealthy_at is None:
                self.unhealthy_at = self._tick
            if self._config.on_unhealthy == "stop":
                raise PolicyUnhealthy(
                    f"the policy is out of its element at tick {self._tick}: {self.health.signal} is "
                    f"{self.health.score:.3g} at tick {self.health.step}, healthy up to {self.health.threshold:.3g}",
                    self.health,
                )
        action = self._planned()
        self._between_ticks = True
        self.at_border, self._new_chunk = self._new_chunk and self._last_action is not None, False
        if action is None:
            action = self._starved()
        else:
            self._starved_for = 0
            action = self._slowed(action)
        self._last_action = action
        self._executed.append(action)
        return action

    def _slowed(self, action: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What a planned action becomes where the episode has been unhealthy."""
        if self.unhealthy_at is None or self._config.on_unhealthy != "slow":
            return action
        slowed: npt.NDArray[np.float32] = action + self._slow_by * (self._rest - action)
        return slowed

    @property
    def has_chunk(self) -> bool:
        """Whether this episode has had a chunk."""
        return bool(self._chunks)

    @property
    def waits(self) -> bool:
        """Whether a chunk was asked for that has not come yet."""
        return self._pending is not None

    @property
    def latency(self) -> float:
        """Seconds from a request to its chunk, as expected of the next; 0 before the first."""
        return max(self._latencies, default=0.0)

    def _wants_chunk(self, now: float) -> bool:
        if not self._connected or self._pending is not None or self._arrived is not None or now < self._not_before:
            return False
        if self._last_request is None:
            return True
        # In time, even where a chunk takes longer than the ticks that are to be executed of it.
        runs_out = self._rows_left() <= self._delay_ticks() + 1
        return self._tick - self._last_request >= self._execute_steps or (
            runs_out and self._config.simulated_delay is None
        )

    def _request(self, observation: Observation, now: float) -> pb.Observation:
        committed = None
        if self._config.overlap == "real-time-chunking" and self._chunks:
            count = min(self._delay_ticks(), self.spec.action.max_committed_steps, self._rows_left())
            planned = [self._slowed(self._mean(self._tick + i)) for i in range(count)]
            committed = np.array(planned, np.float32) if planned else None
        deadline = None
        if self._config.simulated_delay is None:
            # A chunk whose last tick has passed is of no use.
            deadline = self.spec.action.horizon / self.rate_hz
        executed = np.array(self._executed, np.float32) if self._executed else None
        message = self._message(
            observation, self._tick, deadline=deadline, committed_actions=committed, executed_actions=executed
        )
        self._pending = self._last_request = self._tick
        self._sent_at = now
        return message

    def _message(
        self,
        observation: Observation,
        tick: int,
        *,
        history_only: bool = False,
        deadline: float | None = None,
        committed_actions: npt.NDArray[np.float32] | None = None,
        executed_actions: npt.NDArray[np.float32] | None = None,
    ) -> pb.Observation:
        return encode_observation(
            observation,
            episode_id=self.episode_id,
            step=tick,
            instruction=self._instruction,
            noise_seed=self._noise_seed,
            history_only=history_only,
            deadline=deadline,
            committed_actions=committed_actions,
            executed_actions=executed_actions,
            image_quality=self._config.image_quality,
        )

    def _delay_ticks(self) -> int:
        """Ticks that will be played from the old chunk before a chunk that is asked for now is there."""
        if self._config.simulated_delay is not None:
            return self._config.simulated_delay
        return max(self._delays, default=0)

    def _take_up(self) -> None:
        """Let an arrived chunk take part, from its row for this tick on; rows before it are late and discarded."""
        chunk, delay = self._arrived, self._config.simulated_delay
        if chunk is None or (delay is not None and self._chunks and self._tick - chunk.step < delay):
            return
        self._arrived = None
        # What arrives between two ticks is played from the next one on.
        self._delays.append(self._tick + self._between_ticks - chunk.step)
        if self._tick - chunk.step >= len(chunk.actions):
            self._last_request = None  # all of it is late: ask again
            return
        kept = self._chunks if self._config.overlap == "ensemble" else []
        self._chunks = [old for old in kept if self._tick - old.step < len(old.actions)] + [chunk]
        self._new_chunk = True

    def _rows_left(self) -> int:
        """Ticks from this one on that the newest chunk knows."""
        if not self._chunks:
            return 0
        newest = self._chunks[-1]
        return max(0, newest.step + len(newest.actions) - self._tick)

    def _planned(self) -> npt.NDArray[np.float32] | None:
        return self._mean(self._tick) if self._rows_left() else None

    def _mean(self, tick: int) -> npt.NDArray[np.float32]:
        """The chunks' action for ``tick``, averaged where several take part."""
        rows = [chunk.actions[tick - chunk.step] for chunk in self._chunks if tick - chunk.step < len(chunk.actions)]
        if len(rows) == 1:
            only: npt.NDArray[np.float32] = rows[0]
            return only
        weights = np.exp(-ENSEMBLE_DECAY * np.arange(len(rows)))
        mean: npt.NDArray[np.float32] = np.average(rows, axis=0, weights=weights).astype(np.float32)
        return mean

    def _starved(self) -> npt.NDArray[np.float32]:
        self._starved_for += 1
        self.starved_ticks += 1
        last, most = self._last_action, self._config.max_starved_ticks
        if last is None or self._config.starvation == "stop" or self._starved_for > most:
            raise self._starvation_error()
        if self._config.starvation == "hold":
            return last
        # From the last action to rest in equal steps, and there it stays.
        left = max(1, self._decelerate_ticks - self._starved_for + 1)
        slowed: npt.NDArray[np.float32] = (last + self._rests * (self._rest - last) / np.float32(left)).astype(
            np.float32
        )
        return slowed

    def _starvation_error(self) -> ChunkcastError:
        after = f"no chunk for tick {self._tick} after {self._starved_for} ticks without one"
        reason = self._reason
        if reason is None:
            return ChunkTimeout(f"{after}: no answer in time")
        if isinstance(reason, PolicyOverloaded):
            return PolicyOverloaded(f"{after}: {reason}", reason.retry_after)
        kind = type(reason) if isinstance(reason, PolicyUnavailable) else PolicyUnavailable
        return kind(f"{after}: {reason}")
