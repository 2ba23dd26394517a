"""The environment of OpenMP, which PyTorch's threads on CPUs use. Entry points set it before torch is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# Idle PyTorch threads spin, for milliseconds unless they outnumber the processors, and compete with the decoder's own
# threads for processor time: eight concurrent requests generated 2.2 to 2.9 s of audio per second, and 3.1 s with this
# limit.
_SPIN_COUNT = "1000"


def limit_spinning(environ: MutableMapping[str, str] = os.environ) -> None:
    """Limit how long idle threads spin, unless the environment already configures it.

    libgomp reads the environment when torch is imported; later calls have no effect.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environ.keys():
        environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
