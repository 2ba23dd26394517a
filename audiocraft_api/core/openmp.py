"""The environment of OpenMP, which PyTorch's threads on CPUs use. Entry points set it before torch is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# Idle threads of PyTorch wait by spinning, for milliseconds unless they outnumber the processors. Meanwhile they take
# processor time from the decoder's own threads: eight requests at once made 2.2 to 2.9 s of audio a second, and 3.1
# with this bound.
_SPIN_COUNT = "1000"


def limit_spinning(environ: MutableMapping[str, str] = os.environ) -> None:
    """Bound how long idle threads spin, unless the environment already says how they wait.

    libgomp reads the environment when it is loaded, which is when torch is imported: later calls have no effect.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environ.keys():
        environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
