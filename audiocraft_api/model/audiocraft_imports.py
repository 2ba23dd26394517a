"""Make `import audiocraft` work, and quick, on a current stack. The first call costs seconds: never at the start.

audiocraft and transformers import at the top of their modules what generation may never touch. That is put off until
one of its names is used; xformers, which has no build for many platforms, is stood in for where it is absent.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

# The families of transformers' models that audiocraft names, and what they stand on.
_FAMILIES = ("auto", "encodec", "roberta", "t5")

_META_KERNELS = "torch._meta_registrations"

# Threads of PyTorch wait for each other by spinning; where there are no more of them than processors, for milliseconds.
# Here they share the processors with the decoder's threads, which stand still meanwhile. Read once, with torch's import.
_SPINS = "1000"
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = _SPINS

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


class _NoCompiler(ModuleType):
    """Stands for `torch._dynamo`, which takes half a second: functions marked for it stay as they are."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda function=None, *_, **__: function if callable(function) else lambda marked: marked


def import_torch() -> None:
    """Import torch without its kernels for tensors that hold no data: a fifth of the time, which only compilers need.

    They are written in Python and register themselves as they are imported, at the end of `torch/__init__.py` (2.11).
    """
    if "torch" in sys.modules:
        return
    stand_in = sys.modules[_META_KERNELS] = _PutOff(_META_KERNELS)
    try:
        import torch
    finally:
        if sys.modules.get(_META_KERNELS) is stand_in:
            del sys.modules[_META_KERNELS]
    if vars(torch).get("_meta_registrations") is stand_in:
        del vars(torch)["_meta_registrations"]


@functools.cache
def complete_torch() -> threading.Thread:
    """Begin to import what `import_torch` left out; more calls do nothing.

    Not left for those who need it: a compiler that is imported before it finds its own modules in a circle.
    """
    thread = threading.Thread(target=importlib.import_module, args=(_META_KERNELS,), name="torch-import", daemon=True)
    thread.start()
    return thread


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Keep torch from importing its compiler, for this block, unless it is there already. One thread at a time."""
    import torch

    if "torch._dynamo" in sys.modules:
        yield
        return
    stand_in = _NoCompiler("torch._dynamo")
    sys.modules["torch._dynamo"] = vars(torch)["_dynamo"] = stand_in
    try:
        yield
    finally:
        del sys.modules["torch._dynamo"], vars(torch)["_dynamo"]  # torch imports it when it is asked for


def _put_off() -> dict[str, ModuleType]:
    """Return what stands for modules while audiocraft is imported.

    flashy and dora run trainings, av (FFmpeg) reads their sets, spaCy lemmatises captions of some and num2words spells
    their numbers. librosa's filters (with numba and scipy) set up the chroma of melody models, the compression solver
    (with all metrics) loads codecs for multi-band diffusion. transformers matches boxes with scipy in the losses of its
    object detectors, and marks functions for the compiler.
    """
    put_off = {
        "spacy": (),
        "librosa": ("filters",),
        "flashy": ("distrib",),
        "flashy.distrib": (),
        "dora": (),
        "av": (),
        "num2words": ("num2words",),
        "scipy.optimize": ("linear_sum_assignment",),
        "audiocraft.solvers.compression": ("CompressionSolver",),
        "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    }
    modules: dict[str, ModuleType] = {name: _PutOff(name) for name in put_off}
    for name, used in put_off.items():
        vars(modules[name]).update({attribute: _PutOff(name, attribute) for attribute in used})
    for name in ("spacy", "librosa", "scipy.optimize"):
        # Whether a package is installed is asked by looking at its spec.
        modules[name].__spec__ = importlib.util.find_spec(name)
    return modules


@contextmanager
def _few_of_transformers() -> Iterator[None]:
    """Have transformers look through the families that are used only, and not for distributed tensors, for this block.

    It reads the source of all its models to know the names in them: near a second. Its utilities, which do that, are
    imported before the package itself runs. Source: transformers 5 `__init__.py`, `utils/import_utils.py`.
    """
    spec = importlib.util.find_spec("transformers")
    if "transformers" in sys.modules or spec is None or spec.origin is None:
        yield
        return
    package = ModuleType("transformers")
    package.__path__ = [str(Path(spec.origin).parent)]
    vars(package).update(__version__=importlib.metadata.version("transformers"), __spec__=spec)
    sys.modules["transformers"] = package
    try:
        utils: Any = importlib.import_module("transformers.utils")
        import_utils: Any = importlib.import_module("transformers.utils.import_utils")
    finally:
        del sys.modules["transformers"]
    models, look_through = Path(spec.origin).parent / "models", import_utils.create_import_structure_from_path
    has_distributed = import_utils.is_torch_distributed_available

    def structure(path: Any) -> Any:
        if Path(path) in (models, models / "__init__.py"):
            return {name: look_through(str(models / name)) for name in _FAMILIES}
        return look_through(path)

    def set_up(structure: Any, has_distributed: Any) -> None:
        import_utils.create_import_structure_from_path = structure
        for module in (utils, import_utils):
            module.is_torch_distributed_available = has_distributed

    set_up(structure, lambda: False)
    try:
        yield
    finally:
        set_up(look_through, has_distributed)
        import_utils.define_import_structure.cache_clear()
        if "transformers" in sys.modules:
            _know_all(import_utils, sys.modules["transformers"], models, "models")
            _know_all(import_utils, importlib.import_module("transformers.models"), models / "__init__.py", None)


def _know_all(import_utils: Any, module: Any, path: Path, prefix: str | None) -> None:
    """Have a lazy module of transformers look through all models when it is asked for a name that it does not know."""
    lazy = type(module)

    class Whole(lazy):  # type: ignore[valid-type, misc]
        def __getattr__(self: Any, name: str) -> Any:
            if name.startswith("__") or name in self._class_to_module or name in self._modules or name in self._objects:
                return super().__getattr__(name)
            self.__class__ = lazy
            whole = lazy(self.__name__, self.__file__, import_utils.define_import_structure(path, prefix))
            for known in ("_modules", "_class_to_module", "_object_missing_backend", "_import_structure"):
                setattr(self, known, type(getattr(self, known))(getattr(whole, known)) | getattr(self, known))
            vars(self)["__all__"] = sorted({*vars(self)["__all__"], *whole.__all__})
            return getattr(self, name)

    module.__class__ = Whole


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
            with _without_compiler(), _few_of_transformers():
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
