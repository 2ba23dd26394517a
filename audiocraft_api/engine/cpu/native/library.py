"""The functions of the compiled library with their types, through ctypes, which releases the GIL during calls."""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import logging
import time
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from audiocraft_api.engine.cpu.native.build import BUILD_DIR, BuildError, build, library_path

logger = logging.getLogger(__name__)

FORMATS = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 3, "int6": 4}

# `kOutOfMemory` of api.cpp.
OUT_OF_MEMORY = 1


class DecoderSpec(Structure):
    """`DecoderSpec` of decoder.h."""

    _fields_ = [
        (name, c_int32)
        for name in (
            "num_layers",
            "dim",
            "num_heads",
            "ffn_dim",
            "codebook_size",
            "num_codebooks",
            "has_cross_attention",
            "num_slots",
            "capacity",
            "num_threads",
            "format",
            "kv_bits",
        )
    ]


NORMS = ("norm1_weight", "norm1_bias", "cross_norm_weight", "cross_norm_bias", "norm2_weight", "norm2_bias")
MATRICES = ("qkv", "self_out", "cross_query", "cross_key", "cross_value", "cross_out", "linear1", "linear2")


class LayerPointers(Structure):
    """`LayerPointers` of decoder.h."""

    _fields_ = [*((name, c_void_p) for name in (*NORMS, *MATRICES)), ("stored", c_int32)]


class SamplingParams(Structure):
    """`SamplingParams` of sampling.h."""

    _fields_ = [
        ("seed", c_int64),
        ("draw", c_int64),
        ("rows", c_int32),
        ("is_greedy", c_int32),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("temperature", c_float),
        ("cfg_coef", c_float),
    ]


class LstmSequence(Structure):
    """`LstmSequence` of lstm.h."""

    _fields_ = [("steps", c_int32), *((name, c_void_p) for name in ("gates", "hidden", "cell", "outputs"))]


class ConvolutionSpec(Structure):
    """`ConvolutionSpec` of convolution.h."""

    _fields_ = [
        *((name, c_int32) for name in ("outputs", "inputs", "taps", "dilation")),
        ("weights", c_void_p),
        ("bias", c_void_p),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "native_last_error": (c_char_p, []),
    "native_integer_kernel": (c_char_p, []),
    "native_create": (c_void_p, [POINTER(DecoderSpec)]),
    "native_destroy": (None, [c_void_p]),
    "native_bytes": (c_size_t, [c_void_p]),
    "native_set_layer": (c_int, [c_void_p, c_int, POINTER(LayerPointers)]),
    "native_set_embeddings_and_heads": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_void_p), c_void_p]),
    "native_set_context": (c_int, [c_void_p, c_int, c_int, c_void_p, c_int]),
    "native_set_parts": (c_int, [c_void_p, c_int, c_int, c_void_p, c_void_p]),
    "native_clear_slot": (c_int, [c_void_p, c_int]),
    "native_forward": (c_int, [c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p]),
    "native_sample": (c_int, [c_void_p, c_int, POINTER(SamplingParams), c_void_p, c_void_p]),
    "native_workers_create": (c_void_p, [c_int]),
    "native_workers_destroy": (None, [c_void_p]),
    "native_lstm_create": (c_void_p, [c_void_p, c_int, c_int, POINTER(c_void_p)]),
    "native_lstm_destroy": (None, [c_void_p]),
    "native_lstm_advance": (c_int, [c_void_p, c_void_p, c_int, POINTER(LstmSequence), c_int]),
    "native_convolution_create": (c_void_p, [POINTER(ConvolutionSpec)]),
    "native_convolution_destroy": (None, [c_void_p]),
    "native_convolution_apply": (c_int, [c_void_p, c_void_p, c_void_p, c_int64, c_void_p]),
    "native_elu": (None, [c_void_p, c_int64, c_void_p]),
}


def open_library(path: str) -> ctypes.CDLL:
    """Load a compiled library and declare its functions. Raises OSError if it cannot be loaded."""
    library = ctypes.CDLL(path)
    try:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        _ctypes.dlclose(library._handle)  # otherwise this path would give the same library again
        raise OSError(str(error)) from None
    return library


def open_or_build(directory: Path = BUILD_DIR) -> ctypes.CDLL | None:
    """Load this machine's library. Build it first if it is missing, and again if it cannot be loaded.

    Returns None, with a warning in the log, if it cannot be built.
    """
    path = library_path(directory)
    try:
        if path.exists():
            try:
                return open_library(str(path))
            except OSError as error:
                logger.warning("%s cannot be loaded (%s). Building it again.", path, error)
                path.unlink(missing_ok=True)
        logger.info("Compiling the native kernels for this processor. This takes about a minute.")
        begin = time.monotonic()
        build(directory)
        library = open_library(str(path))
    except (BuildError, OSError) as error:
        logger.warning("The native kernels could not be built; PyTorch's own, which are slower, are used: %s", error)
        return None
    logger.info("Compiled the native kernels in %.0f s.", time.monotonic() - begin)
    return library


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Return the library for this machine, or None if there is none."""
    return open_or_build()


def kernels_of(library: ctypes.CDLL | None) -> str:
    """Return the instructions that a library multiplies integers with, such as `avx2`; `pytorch` without a library."""
    return "pytorch" if library is None else str(library.native_integer_kernel().decode())


def known_kernels() -> str | None:
    """Return the kernels that decode on this CPU; None until `load_library` has run, which may have to compile."""
    return kernels_of(load_library()) if load_library.cache_info().currsize else None
