"""A small input may not take much memory: bounds for a process that does nothing but fuzz."""

from __future__ import annotations

import resource
from collections.abc import Callable

from fuzz.checks import Finding

SMALL_INPUT = 64 * 2**10
MOST_GROWTH = 256 * 2**20
"""Of the process, in bytes, while it reads a small input."""

ROOM = 3 * 2**30
"""Address space beyond what the libraries take: a bomb becomes a MemoryError and not the machine's end."""


def limit_memory() -> None:
    """Bound the process's address space; call once, after all imports."""
    limit = _pages(0) + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def watched(function: Callable[[bytes], None], data: bytes) -> None:
    """Call ``function`` on ``data``.

    Raises:
        Finding: the data are small, and the process grew by more than ``MOST_GROWTH``.
    """
    before, highest = _pages(1), _highest()
    function(data)
    # The highest mark never falls: an input that does not raise it took no more than one before it, which was in order.
    now = _highest()
    if now > highest and now - before > MOST_GROWTH and len(data) <= SMALL_INPUT:
        raise Finding(f"{len(data)} bytes took {(now - before) / 2**20:.0f} MiB of memory")


def _pages(column: int) -> int:
    """Bytes of address space (0) or of resident memory (1)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[column]) * resource.getpagesize()


def _highest() -> int:
    """The most resident memory so far. Not getrusage's: that begins with what the program had that started this one."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
