"""A file that may be replaced while the server runs."""

from __future__ import annotations

from pathlib import Path

_State = tuple[int, int, int, int]


class WatchedFile:
    """Says whether a file may be another than when it was last read well.

    Args:
        path: the file, or a link that is turned to another (as Kubernetes does with its secrets).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._looked: _State | None = None
        self._read: _State | None = None

    def changed(self) -> bool:
        """Look at it: whether it is another than the one that was read. To be asked before it is read.

        Raises:
            OSError: it cannot be found.
        """
        status = self.path.stat()
        # A change of its mode alone changes ctime: then it may be readable at last.
        self._looked = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        return self._looked != self._read

    def was_read(self) -> None:
        """What was looked at last has been read well."""
        self._read = self._looked
