"""Make `import audiocraft` work, and quick, on a current stack. The first call costs seconds: never at the start.

audiocraft imports at the top of its modules packages that generation may never touch. They are put off until one of
their names is used; xformers, which has no build for many platforms, is stood in for where it is absent.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

_lock = threading.Lock()


class _PutOff(ModuleType):
    """Stands for a module, or for a name in one, and imports the real one when it is used."""

    def __init__(self, module: str, name: str = "") -> None:
        super().__init__(module)
        self._name = name

    def _real(self) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        return getattr(module, self._name) if self._name else module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by tools that look through all modules (inspect.getmodule), not by users
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)


def _put_off() -> dict[str, ModuleType]:
    """Return what stands for modules while audiocraft is imported.

    spaCy lemmatises the captions of some training sets, librosa's filters (with numba and scipy) set up the chroma of
    melody models, the compression solver (with all metrics) loads codecs for multi-band diffusion, and transformers
    matches boxes with scipy in the losses of its object detectors.
    """
    spacy, librosa, optimize = _PutOff("spacy"), _PutOff("librosa"), _PutOff("scipy.optimize")
    solver = _PutOff("audiocraft.solvers.compression")
    for module in (spacy, librosa, optimize):
        # Whether a package is installed is asked by looking at its spec.
        module.__spec__ = importlib.util.find_spec(module.__name__)
    vars(librosa).update(filters=_PutOff("librosa.filters"))
    vars(optimize).update(linear_sum_assignment=_PutOff(optimize.__name__, "linear_sum_assignment"))
    vars(solver).update(CompressionSolver=_PutOff(solver.__name__, "CompressionSolver"))
    return {module.__name__: module for module in (spacy, librosa, optimize, solver)}


class _CollectorPause:
    """Keeps the garbage collector still while any thread is inside, unless it is off anyway."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._was_enabled = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_inside:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._num_inside += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside and self._was_enabled:
                gc.enable()


# Around imports: the collector would look through ever more modules, all of them to stay, for a fifth of the time.
COLLECTOR_PAUSED = _CollectorPause()


def prepare() -> None:
    """Import audiocraft once, however many threads ask. Raises ImportError when it is not installed."""
    with _lock:
        if "audiocraft.models.musicgen" in sys.modules:
            return
        if importlib.util.find_spec("xformers") is None:
            _stand_in_for_xformers()
        stand_ins = {name: module for name, module in _put_off().items() if name not in sys.modules}
        sys.modules.update(stand_ins)
        try:
            import audiocraft.models.musicgen  # noqa: F401
            from transformers.utils import logging as transformers_logging

            transformers_logging.disable_progress_bar()
            # What was imported stays: no later collection, which would halt decoding for 0.2 s, needs to look through it.
            gc.freeze()
        finally:
            for name, module in stand_ins.items():
                if sys.modules.get(name) is module:
                    del sys.modules[name]


def _stand_in_for_xformers() -> None:
    """Register the names that audiocraft asks of xformers although its default attention is torch's own.

    Source: audiocraft `modules/transformer.py`. Only `unbind` is called.
    """
    import torch

    class LowerTriangularMask:
        """The type of xformers' causal mask; none is ever made."""

    def memory_efficient_attention(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("xformers is not installed: audiocraft's attention backend must stay 'torch'")

    package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    package.__path__ = []
    vars(ops).update(
        unbind=torch.unbind,
        LowerTriangularMask=LowerTriangularMask,
        memory_efficient_attention=memory_efficient_attention,
    )
    vars(package).update(ops=ops)
    sys.modules.update({"xformers": package, "xformers.ops": ops})
