"""Describes the machine and the versions that were measured."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path


def machine() -> dict[str, object]:
    """Return the processor, the number of threads and the versions. audiocraft may not be installed."""
    import torch

    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    installed = {distribution.metadata["Name"] for distribution in metadata.distributions()}
    found: dict[str, object] = {
        "processor": model.partition(":")[2].strip() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    names = ("torch", "audiocraft", "transformers")
    return found | {name: metadata.version(name) for name in names if name in installed}
