"""Binary data on standard output."""

from __future__ import annotations

import sys


def write(data: bytes) -> None:
    """Write all of the data. Where Python does not buffer its output, a signal may end a single write halfway."""
    rest = memoryview(data)
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()
