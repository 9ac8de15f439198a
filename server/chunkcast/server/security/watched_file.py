"""A file that may be replaced while the server runs."""

from __future__ import annotations

from pathlib import Path

_State = tuple[int, int, int]


class WatchedFile:
    """Says whether a file's content may have changed since it was last asked.

    Args:
        path: the file, or a link that is turned to another (as Kubernetes does with its secrets).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: _State | None = None

    def changed(self) -> bool:
        """Whether it is another file, or was written, since the last call; true at the first.

        Raises:
            OSError: it cannot be found.
        """
        status = self.path.stat()
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        changed, self._seen = state != self._seen, state
        return changed
