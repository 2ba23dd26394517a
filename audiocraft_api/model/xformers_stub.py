"""A stub of xformers, which audiocraft imports but does not need with torch's own attention.

xformers has no build for many platforms. The stub is used only where xformers is not installed.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


def install() -> None:
    """Register the stub unless xformers is installed. Call before the first import of audiocraft; imports torch.

    Source: audiocraft `modules/transformer.py`, which uses three names and calls only `unbind`.
    """
    if "xformers" in sys.modules or importlib.util.find_spec("xformers") is not None:
        return
    import torch

    class LowerTriangularMask:
        """The type of xformers' causal mask; audiocraft compares with it and never creates one."""

    def memory_efficient_attention(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("xformers is not installed: audiocraft's attention backend must stay 'torch'")

    ops = ModuleType("xformers.ops")
    vars(ops).update(
        unbind=torch.unbind,
        LowerTriangularMask=LowerTriangularMask,
        memory_efficient_attention=memory_efficient_attention,
    )
    package = ModuleType("xformers")
    package.__path__ = []
    vars(package).update(ops=ops)
    sys.modules.update({"xformers.ops": ops, "xformers": package})
