"""Which arithmetic runs a model: device and setting in, a model_runner over the right backend out.

`exact` is float32 in audiocraft's order of operations. On the CPU the native kernels are taken where they could be
built, else PyTorch's; `auto` is the fastest that stays within the accuracy rule of docs/engine.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch

from audiocraft_api.config import Config
from audiocraft_api.core.errors import OutOfMemory
from audiocraft_api.engine.backend import Backend
from audiocraft_api.engine.cpu.native_backend import (
    Format,
    NativeBackend,
    has_fast_integers,
    native_slot_bytes,
    native_supports,
)
from audiocraft_api.engine.cuda.graph_runner import MAX_CONTEXT, CudaGraphRunner
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.model_runner import CpuModelRunner, ModelRunner
from audiocraft_api.engine.samplers import NativeSampler, Sampler, TorchSampler, counter_noise, request_noise
from audiocraft_api.engine.scheduler import ROWS_PER_REQUEST
from audiocraft_api.engine.torch_backend import TorchBackend, packed_linear, plain_linear
from audiocraft_api.engine.weights import DecoderWeights, converted, decoder_weights

if TYPE_CHECKING:
    from audiocraft_api.model.audiocraft_adapter import LoadedModel

logger = logging.getLogger(__name__)

Precision = Literal["auto", "exact", "fp16", "bf16", "int8", "int6"]

BackendFactory = Callable[..., Backend]  # called like `default_backend`

_NATIVE_FORMATS: dict[Precision, Format] = {
    "exact": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "int8",
    "int6": "int6",
}

_CUDA_TYPES = {
    "auto": torch.float16,
    "exact": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float16,
    "int6": torch.float16,
}

# Room for a prefix: a tune takes 235 positions, and text is not cut.
MAX_PREFIX = 1024


def make_model_runner(model: LoadedModel, config: Config, make_backend: BackendFactory | None = None) -> ModelRunner:
    """Prepare a loaded model for decoding. Raises GenerationFailed for an unknown architecture, OutOfMemory."""
    make_backend = make_backend or default_backend
    pattern = DelayPattern(model.lm.pattern_provider.delays, model.special_token_id)
    weights = decoder_weights(model.lm)
    max_prefix = MAX_PREFIX if model.lm.fuser.fuse2cond["prepend"] else 0
    capacity = max_prefix + pattern.num_columns(model.max_window_frames) - 1
    slot_bytes = _slot_bytes(weights, capacity, config.engine.precision)
    num_slots = _num_slots(slot_bytes, config)
    if model.device.type == "cuda":
        dtype = _CUDA_TYPES[config.engine.precision]
        if config.engine.precision in ("int8", "int6"):
            logger.warning("Precision %s is for CPUs; computing in float16.", config.engine.precision)
        return CudaGraphRunner(
            converted(weights, dtype, model.device),
            pattern,
            num_places=num_slots // ROWS_PER_REQUEST,
            max_prefix=max_prefix,
            num_columns=pattern.num_columns(model.max_window_frames),
            slot_bytes=slot_bytes,
            capture=True,
        )
    backend = make_backend(weights, config.engine.precision, num_slots=num_slots, capacity=capacity)
    is_exact = config.engine.precision == "exact"
    sampler = make_sampler(backend, is_exact=is_exact)
    return CpuModelRunner(backend, sampler, pattern, max_prefix=max_prefix, is_exact=is_exact, slot_bytes=slot_bytes)


def default_backend(weights: DecoderWeights, precision: Precision, *, num_slots: int, capacity: int) -> Backend:
    """Return the backend of a precision: native where the kernels are built and fit, else of PyTorch's operations."""
    is_cpu = weights.out_norm_weight.device.type == "cpu"
    if is_cpu and native_supports(weights):
        weight_format = native_format(precision)
        return NativeBackend(weights, num_slots=num_slots, capacity=capacity, weight_format=weight_format)
    if precision not in ("auto", "exact"):
        logger.warning("Precision %s needs the native kernels, which are not there; computing in float32.", precision)
    prepare = packed_linear if is_cpu and torch.backends.mkldnn.is_available() else plain_linear  # type: ignore[no-untyped-call]
    weights = converted(weights, torch.float32, weights.out_norm_weight.device)
    return TorchBackend(weights, num_slots=num_slots, capacity=capacity, prepare=prepare)


def make_sampler(backend: Backend, *, is_exact: bool) -> Sampler:
    """Return what samples beside a backend: audiocraft's generator for `exact`, else the quickest that there is."""
    if is_exact:
        return TorchSampler(request_noise)
    return NativeSampler(backend) if isinstance(backend, NativeBackend) else TorchSampler(counter_noise)


def native_format(precision: Precision) -> Format:
    """Return the weights' format; `auto` is the smallest within the accuracy rule that this build multiplies quickly."""
    if precision == "auto":
        return "int6" if has_fast_integers() else "float16"
    return _NATIVE_FORMATS[precision]


def _num_slots(slot_bytes: int, config: Config) -> int:
    """Return the slots that the settings give room for. Raises OutOfMemory when it is not one request."""
    num_slots = ROWS_PER_REQUEST * config.engine.max_batch_requests
    if config.engine.kv_cache_bytes:
        num_slots = min(num_slots, config.engine.kv_cache_bytes // slot_bytes)
        if num_slots < ROWS_PER_REQUEST:
            raise OutOfMemory(
                f"One request of this model needs {ROWS_PER_REQUEST * slot_bytes} bytes for keys and values: "
                "raise the engine's memory setting."
            )
    return num_slots


def _slot_bytes(weights: DecoderWeights, capacity: int, precision: Precision) -> int:
    """Return the bytes that a slot's keys and values take where this precision runs."""
    if weights.out_norm_weight.device.type == "cuda":
        # Room for a context lies beside each conditional row.
        return weights.kv_bytes(capacity + MAX_CONTEXT // ROWS_PER_REQUEST, _CUDA_TYPES[precision].itemsize)
    if native_supports(weights):
        return native_slot_bytes(weights, capacity, native_format(precision))
    return weights.kv_bytes(capacity, 4)
