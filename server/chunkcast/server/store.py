"""A folder of bundles that a running server may load from, by name; optionally watched.

::

    STORE/
      metaworld-six/        a bundle: policy.json, policy.onnx
      metaworld-six-new/    another; exported aside and renamed, so that it appears whole
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from chunkcast.server.bundle import SPEC_NAME
from chunkcast.server.errors import BundleError, PolicyError, ProviderMissing
from chunkcast.server.identifiers import MAX_IDENTIFIER_LENGTH
from chunkcast.server.memory import release_memory, require_memory
from chunkcast.server.policies import Policies, PolicyVersion
from chunkcast.server.statistics import ServerStatistics

WATCH_SECONDS = 1.0
"""Between two looks at a watched store. Polling also works on network file systems, which tell of no change."""

RELEASE_SECONDS = 2.0
"""After a version was unloaded: what waits for it is computed first."""

log = structlog.get_logger()

_Seen = tuple[int, int, int, int]


class Store:
    """Loads bundles into a server's policies, one at a time.

    Args:
        folder: whose sub-folders are bundles.
        policies: where they go.
        statistics: where loads are counted.
    """

    def __init__(self, folder: Path, policies: Policies, statistics: ServerStatistics) -> None:
        self._folder, self._policies, self._statistics = folder, policies, statistics
        # Two loads at once would only take each other's processors, and robots'.
        self._loading = asyncio.Lock()
        self._seen: dict[str, _Seen] = {}
        policies.on_forgotten = self._release_later

    async def load(self, name: str) -> PolicyVersion:
        """Read, verify and warm a bundle on another thread, then take it in. A policy's first is promoted.

        Args:
            name: of a sub-folder. No path: a caller chooses among the store's bundles and nothing else.

        Raises:
            BundleError: there is no such bundle, or it cannot be served; what is served is as it was.
            ProviderMissing: a requested provider cannot be used.
        """
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
            shown = name[:MAX_IDENTIFIER_LENGTH]
            raise BundleError(f"bundle {shown!r} is no name of a folder in the store; expected one of {self._names()}")
        # Path.is_dir raises for a name that is too long for any folder.
        if not os.path.isdir(self._folder / name):
            shown = name[:MAX_IDENTIFIER_LENGTH]
            raise BundleError(f"the store has no bundle {shown!r}; expected one of {self._names()}")
        # An operator who goes away does not end what was begun: the next load waits for it.
        loading = asyncio.ensure_future(self._load(self._folder / name))
        try:
            version = await asyncio.shield(loading)
        except (BundleError, ProviderMissing, OSError) as refused:
            self._statistics.reloads["refused"] += 1
            log.warning("bundle refused", bundle=name, reason=str(refused))
            if isinstance(refused, OSError):
                raise BundleError(f"bundle {name!r} cannot be read ({refused.strerror})") from None
            raise
        self._statistics.reloads["ok"] += 1
        return version

    async def _load(self, folder: Path) -> PolicyVersion:
        async with self._loading:
            await asyncio.to_thread(release_memory)
            require_memory(folder)
            return self._policies.add(await asyncio.to_thread(self._policies.prepare, folder))

    def _release_later(self) -> None:
        """A version was unloaded: give its memory back once its engine has ended."""
        loop = asyncio.get_running_loop()
        loop.call_later(RELEASE_SECONDS, loop.run_in_executor, None, release_memory)

    def mark_seen(self) -> None:
        """Take what lies in the store now as known to a later ``watch``."""
        self._seen = self._look()

    async def watch(self) -> None:
        """Load and promote each bundle that appears or changes, until cancelled. A refused one is not tried again until
        it changes.
        """
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                found = await asyncio.to_thread(self._look)
            except OSError as error:
                log.warning("the store cannot be read", store=str(self._folder), reason=error.strerror)
                continue
            changed = [name for name, state in found.items() if self._seen.get(name) != state]
            # The oldest first: the newest is what stays promoted.
            for name in sorted(changed, key=lambda name: found[name]):
                try:
                    version = await self.load(name)
                    self._policies.promote(version.spec.name, version.spec.version)
                except (BundleError, ProviderMissing, PolicyError):
                    continue  # logged; the old version serves on
                except Exception:
                    # A watch that ends silently would leave a server on its old policy for ever.
                    log.exception("bundle could not be loaded", bundle=name)
            self._seen = found

    def names_by_age(self) -> list[str]:
        """The store's bundles, the oldest first."""
        found = self._look()
        return sorted(found, key=lambda name: found[name])

    def _names(self) -> str:
        names = sorted(self._look())
        return ", ".join(names[:16]) + (", ..." if len(names) > 16 else "") if names else "none: it is empty"

    def _look(self) -> dict[str, _Seen]:
        """Each bundle's age and identity: when its specification was written, and of all its files the latest
        modification time, the size and the number. A bundle that is copied in file by file changes until it is whole.
        """
        found: dict[str, _Seen] = {}
        for file in self._folder.glob(f"*/{SPEC_NAME}"):
            # Names with a dot in front are bundles that are being written.
            if file.parent.name.startswith("."):
                continue
            try:
                written = file.stat().st_mtime_ns
                files = [entry.stat() for entry in os.scandir(file.parent) if entry.is_file()]
            except OSError:
                files = []
            if not files:
                continue  # gone again, or out of reach: the watch goes on
            latest = max(status.st_mtime_ns for status in files)
            size = sum(status.st_size for status in files)
            found[file.parent.name] = (written, latest, size, len(files))
        return found
