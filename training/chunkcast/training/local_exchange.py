"""A few bytes from every process of one machine to every other, many times a second.

A step of training asks three times where the others are. By gloo, through TCP and a thread of its own, that took four
milliseconds of a step's fifty: more than two processes can spare beside one. Hence Unix sockets, looked at again and
again for as long as another is a little late.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from chunkcast.training.distributed import Processes, another_is_lost

SPIN_SECONDS = 0.002
"""For which a late message is looked for before the processor is given away: waking up again takes longer."""
MAX_MESSAGE = 64
MEETING_SECONDS = 60.0
FOLDER = Path("/dev/shm")  # noqa: S108 (mkdtemp makes what is in it)
"""Where Linux keeps shared memory."""


class LocalExchange:
    """Sockets between all of ``processes``, which are several and on one machine.

    They are there as long as their processes: the end of one is noticed by all others at once.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._others: dict[int, socket.socket] = {}
        # A folder that is this user's alone; of a short name, since a socket's may have a hundred letters.
        made = tempfile.mkdtemp(prefix="chunkcast-", dir=FOLDER) if processes.writes else ""
        try:
            folder = Path(processes.first_of(made))
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(str(folder / str(processes.rank)))
                listener.listen(processes.count)
                listener.settimeout(MEETING_SECONDS)
                processes.wait()  # until all listen
                for rank in range(processes.rank):
                    self._others[rank] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    self._others[rank].connect(str(folder / str(rank)))
                    self._others[rank].send(str(processes.rank).encode())
                while len(self._others) < processes.count - 1:
                    other, _ = listener.accept()
                    self._others[int(other.recv(MAX_MESSAGE))] = other
            processes.wait()
        except (OSError, ValueError) as error:
            raise another_is_lost(processes, error) from None
        finally:
            if made:
                shutil.rmtree(made, ignore_errors=True)

    def wait(self) -> None:
        """Until all are here."""
        self.exchanged(b"here")

    def exchanged(self, message: bytes) -> list[bytes]:
        """The processes' messages, by rank; each has one of 1 to ``MAX_MESSAGE`` bytes.

        Raises:
            TrainingError: another process has ended.
        """
        try:
            for other in self._others.values():
                other.send(message)
            received = {rank: _received(other) for rank, other in self._others.items()}
        except OSError as error:
            raise another_is_lost(self._processes, error) from None
        if not all(received.values()):
            raise another_is_lost(self._processes, "its end of a socket is closed")
        return [received.get(rank, message) for rank in range(self._processes.count)]


def _received(other: socket.socket) -> bytes:
    """Its next message; empty where it has ended."""
    until = time.monotonic() + SPIN_SECONDS
    while time.monotonic() < until:
        with suppress(BlockingIOError):
            return other.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
    return other.recv(MAX_MESSAGE)
