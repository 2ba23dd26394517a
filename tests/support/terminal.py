"""Reads what a program shows on a terminal."""

from __future__ import annotations

import os
import select


def wait_for_text(terminal: int, text: bytes) -> None:
    """Return once a program has written a text to a terminal."""
    shown = b""
    while text not in shown:
        assert select.select([terminal], [], [], 30)[0], shown
        shown += os.read(terminal, 1000)
