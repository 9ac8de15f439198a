"""What a process has used, from Linux's /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessSample:
    """A process at one moment.

    Attributes:
        cpu: seconds of processor time, user and system.
        resident: bytes of memory.
    """

    cpu: float
    resident: int

    @classmethod
    def of(cls, pid: int) -> ProcessSample:
        """Sample the process ``pid``; zeros where there is no /proc."""
        try:
            # The name may hold spaces; what follows its closing bracket does not. See proc(5).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return cls(0.0, 0)
        ticks = int(fields[11]) + int(fields[12])
        return cls(ticks / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
