"""A network between a robot and its server that can be cut and slowed down: a network namespace, where the machine
allows one, or else a proxy on loopback.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

SERVER_ADDRESS, ROBOT_ADDRESS = "10.213.71.2", "10.213.71.1"


class Link(Protocol):
    """The network."""

    def cut(self) -> None:
        """Nothing passes, and nobody is told."""

    def slow(self, milliseconds: float, jitter: float) -> None:
        """Everything takes longer, each way."""

    def restore(self) -> None:
        """As it was."""


class Namespace:
    """A server's own network namespace, joined to this one by a pair of virtual interfaces (iproute2, tc netem)."""

    def __init__(self) -> None:
        self.name = f"chunkcast{os.getpid()}"
        self._here, self._there = f"cca{os.getpid() % 10**8}", f"ccb{os.getpid() % 10**8}"
        self.before = ["ip", "netns", "exec", self.name]

    def open(self) -> None:
        """Make it."""
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self._here, "type", "veth", "peer", "name", self._there, "netns", self.name)
        _run("ip", "address", "add", f"{ROBOT_ADDRESS}/30", "dev", self._here)
        _run("ip", "link", "set", self._here, "up")
        _run(*self.before, "ip", "address", "add", f"{SERVER_ADDRESS}/30", "dev", self._there)
        for interface in (self._there, "lo"):
            _run(*self.before, "ip", "link", "set", interface, "up")

    def close(self) -> None:
        """Take it away."""
        for command in (("ip", "link", "delete", self._here), ("ip", "netns", "delete", self.name)):
            subprocess.run(command, capture_output=True, check=False)

    def cut(self) -> None:
        """As ``Link``: the server's end is down, and every packet lost."""
        _run(*self.before, "ip", "link", "set", self._there, "down")

    def slow(self, milliseconds: float, jitter: float) -> None:
        """As ``Link``; needs the kernel's netem.

        Raises:
            subprocess.CalledProcessError: it has none.
        """
        for place, interface in self._ends():
            delay = (f"{milliseconds}ms", f"{jitter}ms")
            _run(*place, "tc", "qdisc", "replace", "dev", interface, "root", "netem", "delay", *delay)

    def restore(self) -> None:
        """As ``Link``."""
        _run(*self.before, "ip", "link", "set", self._there, "up")
        for place, interface in self._ends():
            subprocess.run([*place, "tc", "qdisc", "del", "dev", interface, "root"], capture_output=True, check=False)

    def _ends(self) -> list[tuple[list[str], str]]:
        return [([], self._here), (self.before, self._there)]


class Proxy:
    """A proxy on loopback: where namespaces are not allowed.

    Args:
        target: HOST:PORT behind it.

    Attributes:
        address: HOST:PORT of its own.
    """

    def __init__(self, target: str) -> None:
        self._host, port = target.rsplit(":", 1)
        self._port = int(port)
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._delay = 0.0
        self._passing: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _start(self) -> asyncio.Server:
        self._open.set()
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        ways = [self._pass_on(reader, there_writer), self._pass_on(there_reader, writer)]
        self._passing = [task for task in self._passing if not task.done()]
        self._passing += [asyncio.create_task(way) for way in ways]

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    await asyncio.sleep(self._delay)
                    await self._open.wait()
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def cut(self) -> None:
        """As ``Link``: bytes wait here."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def slow(self, milliseconds: float, jitter: float) -> None:
        """As ``Link``, without jitter."""
        self._delay = milliseconds / 1e3

    def restore(self) -> None:
        """As ``Link``."""
        self._delay = 0.0
        self._loop.call_soon_threadsafe(self._open.set)

    def close(self) -> None:
        """End it."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        await self._server.wait_closed()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)


@contextmanager
def namespace(*, slow: bool) -> Iterator[Namespace | None]:
    """A namespace for a server, or ``None`` where none can be made.

    Args:
        slow: it is to be slowed down, which not every kernel can.
    """
    made = Namespace()
    try:
        made.open()
        if slow:
            made.slow(1.0, 0.0)
            made.restore()
    except (OSError, subprocess.CalledProcessError):
        made.close()
        yield None
        return
    try:
        yield made
    finally:
        made.close()


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True)
