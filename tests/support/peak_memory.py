"""Reads the peak memory of a process."""

from __future__ import annotations

import resource
import sys
from contextlib import ExitStack
from typing import Self

MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


class PeakMemory(ExitStack):
    """Opens its file in advance, because a process under test may be unable to open files later."""

    def __enter__(self) -> Self:
        # On Linux, `ru_maxrss` starts at the value of the parent process; the status file does not.
        self._status = self.enter_context(open("/proc/self/status")) if sys.platform == "linux" else None
        return self

    def read(self) -> int:
        """Return the peak of this process in bytes."""
        if self._status is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES
        self._status.seek(0)
        return next(int(line.split()[1]) for line in self._status if line.startswith("VmHWM")) * 1024

    def read_children(self) -> int:
        """Return the peak of the largest child that has ended, in bytes, or this process's own if that was more."""
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * MAXRSS_BYTES
