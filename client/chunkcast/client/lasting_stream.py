"""A robot's stream that is opened anew whenever it is lost, and moved when the server asks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from chunkcast.client.action_stream import ActionStream
from chunkcast.client.errors import ChunkcastError, PolicyOverloaded, PolicyUnavailable, RobotMismatch
from chunkcast.client.policy_client import PolicyClient
from chunkcast.client.reconnect import RENEW_SECONDS, Backoff, require_same_contract
from chunkcast.v1 import policy_pb2 as pb


class LastingStream:
    """One stream, opened anew in the background.

    Args:
        client: opens streams.
        spec: the policy's, as the robot was compared with it.
        robot_id, timeout: of the streams.
    """

    def __init__(self, client: PolicyClient, spec: pb.PolicySpec, robot_id: str, timeout: float) -> None:
        self._client, self._spec, self._robot_id, self._timeout = client, spec, robot_id, timeout
        self._lock = threading.Condition()
        self._stream: ActionStream | None = client.stream(spec.name, robot_id=robot_id, timeout=timeout)
        self._successor: ActionStream | None = None
        self._is_new = False
        self._error: ChunkcastError | None = None
        self._closed = False
        self._hurry = threading.Event()
        self._workers: list[threading.Thread] = []
        self._renewing, self._renewed_at = False, 0.0

    def stream(self, wait: float, *, may_change: bool) -> tuple[ActionStream | None, bool]:
        """The stream, ``None`` if there is none within ``wait`` seconds, and whether it is new since the last call.

        Args:
            may_change: no answer is awaited, so that nothing is lost if the stream is left for its successor.

        Raises:
            RobotMismatch: the server came back with another contract.
        """
        with self._lock:
            if self._has_successor() and may_change:
                self._succeed()
            if self._stream is None and wait > 0.0:
                self._hurry.set()  # a robot waits: try at once, however long the server has been away
                self._lock.wait_for(lambda: self._stream is not None or self._fatal(), wait)
            if self._fatal():
                assert self._error is not None
                raise self._error
            is_new, self._is_new = self._is_new, False
            return self._stream, is_new

    @property
    def current(self) -> ActionStream | None:
        """The stream, perhaps over, or ``None`` while another is being opened."""
        return self._stream

    @property
    def error(self) -> ChunkcastError:
        """Why there is no stream."""
        return self._error or PolicyUnavailable("there is no connection")

    def lost(self, error: ChunkcastError) -> None:
        """The stream is over: begin to open another, unless there is one."""
        with self._lock:
            if self._stream is None or self._closed:
                self._error = self._error if self._fatal() else error
            elif self._has_successor():
                self._succeed()
            else:
                stream, self._stream, self._error = self._stream, None, error
                self._work(self._reconnect, stream)

    def renew(self) -> None:
        """The stream will be over soon: open its successor while it is answered still."""
        with self._lock:
            settled = self._stream is None or self._successor is not None or self._renewing or self._closed
            if settled or time.monotonic() < self._renewed_at + RENEW_SECONDS:
                return
            self._renewing, self._renewed_at = True, time.monotonic()
            self._work(self._open_successor)

    def close(self) -> None:
        """End the stream and every attempt to open one."""
        self._closed = True
        self._hurry.set()
        for worker in self._workers:
            worker.join()
        for stream in (self._stream, self._successor):
            if stream is not None:
                stream.close()

    def _fatal(self) -> bool:
        return isinstance(self._error, RobotMismatch)

    def _work(self, target: Callable[..., None], *arguments: object) -> None:
        worker = threading.Thread(target=target, args=arguments, name="reconnect", daemon=True)
        self._workers = [each for each in self._workers if each.is_alive()]
        self._workers.append(worker)
        worker.start()

    def _has_successor(self) -> bool:
        """Whether there is one that lives: both may have ended while the robot asked nothing. With the lock held."""
        if self._successor is not None and self._successor.over:
            self._work(self._successor.close)
            self._successor = None
        return self._successor is not None

    def _succeed(self) -> None:
        """Leave the stream for its successor. With the lock held."""
        if self._stream is not None:
            self._work(self._stream.close)  # waits for its reader, which no tick should
        self._stream, self._successor, self._is_new, self._error = self._successor, None, True, None

    def _open(self) -> ActionStream:
        require_same_contract(self._spec, self._client.get_policy(self._spec.name))
        return self._client.stream(self._spec.name, robot_id=self._robot_id, timeout=self._timeout)

    def _open_successor(self) -> None:
        try:
            stream = self._open()
            with self._lock:
                self._take(stream)
        except ChunkcastError:
            pass  # the old one is answered still, and its next chunk hints again
        finally:
            self._renewing = False

    def _reconnect(self, old: ActionStream) -> None:
        old.close()
        backoff, retry_after = Backoff(), 0.0
        while True:
            if self._hurry.wait(max(backoff.next_wait(), retry_after)):
                self._hurry.clear()
                backoff.reset()
            if self._closed or self._stream is not None:
                return
            try:
                stream = self._open()
            except ChunkcastError as error:
                retry_after = error.retry_after if isinstance(error, PolicyOverloaded) else 0.0
                with self._lock:
                    self._error = error
                    self._lock.notify_all()
                if self._fatal():
                    return
                continue
            with self._lock:
                self._take(stream)
            return

    def _take(self, stream: ActionStream) -> None:
        """A stream was opened: it becomes the current one, or that one's successor. With the lock held."""
        if self._closed or self._successor is not None:
            self._work(stream.close)
        elif self._stream is None:
            self._stream, self._is_new, self._error = stream, True, None
            self._lock.notify_all()
        else:
            self._successor = stream
