"""Chooses the arithmetic: from the device and the precision setting to a model runner over the right backend.

`exact` is float32 in audiocraft's order of operations. `auto` is the fastest precision that stays within the accuracy
rule of docs/engine.md. A CPU uses the native kernels if they could be built, otherwise PyTorch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch

from audiocraft_api.config.engine import EngineSettings
from audiocraft_api.core.errors import OutOfMemory
from audiocraft_api.engine.backend import Backend
from audiocraft_api.engine.cpu.native.library import known_kernels
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
from audiocraft_api.engine.sampling import NativeSampler, Sampler, TorchSampler, counter_noise, generator_noise
from audiocraft_api.engine.scheduler import ROWS_PER_REQUEST
from audiocraft_api.engine.torch_backend import TorchBackend, packed_linear, plain_linear
from audiocraft_api.engine.weights import DecoderWeights, converted, decoder_weights

if TYPE_CHECKING:
    from audiocraft_api.model.audiocraft_adapter import LoadedModel

logger = logging.getLogger(__name__)

Precision = Literal["auto", "exact", "fp16", "bf16", "int8", "int6"]

BackendFactory = Callable[..., Backend]  # with the parameters of `default_backend`

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

# Positions reserved for a prefix: a melody needs 235, and text is not truncated.
MAX_PREFIX = 1024


def make_model_runner(
    model: LoadedModel, config: EngineSettings, backend_factory: BackendFactory | None = None
) -> ModelRunner:
    """Prepare a loaded model for decoding. Raises GenerationFailed for an unsupported architecture, OutOfMemory."""
    make_backend = backend_factory or default_backend
    pattern = DelayPattern(model.lm.pattern_provider.delays, model.special_token_id)
    weights = decoder_weights(model.lm)
    max_prefix = MAX_PREFIX if model.lm.fuser.fuse2cond["prepend"] else 0
    capacity = max_prefix + pattern.num_columns(model.max_window_frames) - 1
    slot_bytes = _slot_bytes(weights, capacity, config.precision)
    num_slots = _num_slots(slot_bytes, config)
    if model.device.type == "cuda":
        dtype = _CUDA_TYPES[config.precision]
        if config.precision in ("int8", "int6"):
            logger.warning("Precision %s is only available on CPUs. Using float16.", config.precision)
        return CudaGraphRunner(
            converted(weights, dtype, model.device),
            pattern,
            max_batch_size=num_slots // ROWS_PER_REQUEST,
            max_prefix=max_prefix,
            num_columns=pattern.num_columns(model.max_window_frames),
            slot_bytes=slot_bytes,
            capture=True,
        )
    backend = make_backend(weights, config.precision, num_slots=num_slots, capacity=capacity)
    is_exact = config.precision == "exact"
    sampler = make_sampler(backend, is_exact=is_exact)
    return CpuModelRunner(backend, sampler, pattern, max_prefix=max_prefix, is_exact=is_exact, slot_bytes=slot_bytes)


def default_backend(weights: DecoderWeights, precision: Precision, *, num_slots: int, capacity: int) -> Backend:
    """Return the native backend if its kernels are built and support the sizes, otherwise the PyTorch backend."""
    is_cpu = weights.out_norm_weight.device.type == "cpu"
    if is_cpu and native_supports(weights):
        weight_format = native_format(precision)
        logger.info("Decoding on the CPU with weights in %s and the %s kernels.", weight_format, known_kernels())
        return NativeBackend(weights, num_slots=num_slots, capacity=capacity, weight_format=weight_format)
    if precision not in ("auto", "exact"):
        logger.warning("Precision %s needs the native kernels, which are not available. Using float32.", precision)
    is_packed = is_cpu and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    weights = converted(weights, torch.float32, weights.out_norm_weight.device)
    make_linear = packed_linear if is_packed else plain_linear
    return TorchBackend(weights, num_slots=num_slots, capacity=capacity, make_linear=make_linear)


def make_sampler(backend: Backend, *, is_exact: bool) -> Sampler:
    """Return the sampler: with audiocraft's generator for `exact`, otherwise the fastest one for the backend."""
    if is_exact:
        return TorchSampler(generator_noise)
    return NativeSampler(backend) if isinstance(backend, NativeBackend) else TorchSampler(counter_noise)


def native_format(precision: Precision) -> Format:
    """Return the weights' format; `auto` selects the smallest accurate format that this processor multiplies fast."""
    if precision == "auto":
        return "int6" if has_fast_integers() else "float16"
    return _NATIVE_FORMATS[precision]


def _num_slots(slot_bytes: int, config: EngineSettings) -> int:
    """Return the number of slots that the settings allow. Raises OutOfMemory if they do not suffice for one request."""
    num_slots = ROWS_PER_REQUEST * config.max_batch_requests
    if config.kv_cache_bytes:
        num_slots = min(num_slots, config.kv_cache_bytes // slot_bytes)
        if num_slots < ROWS_PER_REQUEST:
            raise OutOfMemory(
                f"One request of this model needs {ROWS_PER_REQUEST * slot_bytes} bytes for keys and values. "
                "Raise AUDIOCRAFT_API_KV_CACHE_BYTES."
            )
    return num_slots


def _slot_bytes(weights: DecoderWeights, capacity: int, precision: Precision) -> int:
    """Return the size of a slot's keys and values on this device and in this precision."""
    if weights.out_norm_weight.device.type == "cuda":
        # A request's two slots share the room for one context.
        return weights.kv_bytes(capacity + MAX_CONTEXT // ROWS_PER_REQUEST, _CUDA_TYPES[precision].itemsize)
    if native_supports(weights):
        return native_slot_bytes(weights, capacity, native_format(precision))
    return weights.kv_bytes(capacity, 4)
