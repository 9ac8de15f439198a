"""Memory: as little as possible, and whether there is enough for another policy.

The kernel ends a server that runs out of it, with every robot on it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from contextlib import suppress
from pathlib import Path

from chunkcast.server.errors import BundleError

NEEDED_FACTOR = 3.0
"""Of a bundle's files: their bytes, the session's own copy of the weights, and that again."""

NEEDED_BYTES = 160 * 2**20
"""And in any case: what a batch of 32 takes, and a text encoder. At its peak, loading the shipped policies took 25 MB
(six tasks), 178 MB (those by eye) and 178 MB (fifty tasks), of bundles of 18, 20 and 20 MB."""

CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Of the group that a container sees as its own: cgroup v2, v1."""


M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""glibc's, of ``mallopt``."""
ARENAS = 2
"""glibc makes eight a core, and a version that is loaded or dropped leaves holes in those that its threads happened to
use."""
LARGE_BYTES = 2**18
"""From this size on, blocks are mapped one by one and go back to the system when they are freed. Left to itself glibc
raises the limit to the largest block that was ever freed, and weights then come to lie among smaller blocks that stay.
After 39 reloads in 4 minutes with 32 robots a server held 208 MB with both, 212 MB with few arenas alone, 230 MB else.
"""


def keep_memory_whole() -> None:
    """Few arenas, and large blocks apart. To be called before there are threads; nothing where it is not glibc."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_ARENA_MAX, ARENAS)
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def release_memory() -> None:
    """Give back what unloaded versions held: their sessions may hang in cycles, and the C library keeps what is freed
    in the arenas of the threads that freed it.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # malloc_trim is glibc's
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def require_memory(folder: Path) -> None:
    """Refuse to load the bundle in ``folder`` where that would take more memory than there is.

    Raises:
        BundleError: it would.
    """
    size = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
    needed, free = NEEDED_FACTOR * size + NEEDED_BYTES, free_bytes()
    if needed > free:
        raise BundleError(
            f"loading {folder.name} may take {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; unload a version, "
            "or give the server more memory"
        )


def free_bytes() -> float:
    """What this process may still take: of the machine's memory, of its container's, and of its own limit."""
    free = [_available()]
    for limit_file, usage_file in CGROUP_LIMITS:
        limit, usage = _number(limit_file), _number(usage_file)
        if limit is not None and usage is not None:
            free.append(limit - usage)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        free.append(float(soft - used))
    return min(free)


def _available() -> float:
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    return float("inf")  # not Linux: nothing is known


def _number(file: str) -> float | None:
    try:
        text = Path(file).read_text("ascii").strip()
    except OSError:
        return None
    return float(text) if text.isdigit() else None
