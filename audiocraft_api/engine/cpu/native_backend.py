"""The native backend for CPUs: each step runs the whole transformer in one call of the C++ decoder.

A step is limited by the time to read weights, keys and values from memory. The decoder reads each of them once, in as
few bytes as the precision allows, and only up to each row's own length. `torch_backend.py` is the reference
implementation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from audiocraft_api.core.errors import OutOfMemory
from audiocraft_api.engine.cpu.native.library import (
    FORMATS,
    MATRICES,
    OUT_OF_MEMORY,
    DecoderSpec,
    LayerPointers,
    SamplingParams,
    kernels_of,
    load_library,
)
from audiocraft_api.engine.weights import DecoderWeights, LayerWeights, position_table

if TYPE_CHECKING:
    from audiocraft_api.engine.backend import Part

Format = Literal["float32", "float16", "bfloat16", "int8", "int6"]

_PRECISIONS: dict[Format, str] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PREFILL_ROWS = 64  # positions per call: enough to reuse each weight, few enough for the processor's cache


def native_supports(weights: DecoderWeights, find_library: Callable[[], ctypes.CDLL | None] | None = None) -> bool:
    """Return whether the library is built and supports the model's sizes."""
    head_dim = weights.dim // weights.num_heads
    ffn_dim = weights.layers[0].linear1.shape[0]
    sizes_fit = weights.dim % 64 == 0 and ffn_dim % 64 == 0 and weights.codebook_size % 16 == 0
    return sizes_fit and head_dim % 16 == 0 and head_dim <= 256 and (find_library or load_library)() is not None


def has_fast_integers() -> bool:
    """Return whether the library multiplies integers with vector instructions. Without them float16 is faster."""
    return kernels_of(load_library()) not in ("pytorch", "portable")


def kv_bits(weight_format: Format) -> int:
    """Return the bits per number of keys and values: 32 for float32, fewer for integers with one scale per vector."""
    return {"float32": 32, "int6": 6}.get(weight_format, 8)


def native_slot_bytes(weights: DecoderWeights, capacity: int, weight_format: Format) -> int:
    """Return the bytes of one slot's self-attention keys and values in the layout of kv_cache.h."""
    bits, head_dim = kv_bits(weight_format), weights.dim // weights.num_heads
    value_dim = head_dim if bits == 32 else -(-head_dim // 64) * 64
    scales = 0 if bits == 32 else 4
    positions = -(-capacity // 16) * 16
    return len(weights.layers) * weights.num_heads * positions * ((head_dim + value_dim) * bits // 8 + scales)


class NativeBackend:
    """A `Backend` that calls the C++ decoder."""

    def __init__(
        self,
        weights: DecoderWeights,
        *,
        num_slots: int,
        capacity: int,
        weight_format: Format,
        num_threads: int | None = None,
        library: ctypes.CDLL | None = None,
    ) -> None:
        """Pack `weights`, of any floating-point type on the CPU; they are not read afterwards. Raises OutOfMemory."""
        self._handle = None  # `__del__` reads it even if this constructor fails
        self.num_slots, self.capacity = num_slots, capacity
        self.precision = _PRECISIONS.get(weight_format, weight_format)
        loaded = library or load_library()
        assert loaded is not None, "check native_supports() first"
        self._library = loaded
        self._num_codebooks, self._codebook_size = weights.num_codebooks, weights.codebook_size
        self._contexts: list[list[Tensor | None]] = [[] for _ in range(num_slots)]  # by slot and number
        self._positions = weights.positional_scale * position_table(capacity, weights.dim, weights.max_period)
        self._embeddings = [table.to(torch.float32, copy=True).contiguous() for table in weights.embeddings]
        spec = DecoderSpec(
            num_layers=len(weights.layers),
            dim=weights.dim,
            num_heads=weights.num_heads,
            ffn_dim=weights.layers[0].linear1.shape[0],
            codebook_size=weights.codebook_size,
            num_codebooks=weights.num_codebooks,
            has_cross_attention=weights.layers[0].cross is not None,
            num_slots=num_slots,
            capacity=capacity,
            num_threads=num_threads or torch.get_num_threads(),
            format=FORMATS[weight_format],
            kv_bits=kv_bits(weight_format),
        )
        self._handle = self._library.native_create(ctypes.byref(spec))
        if not self._handle:
            raise OutOfMemory(f"There is not enough memory for the model's keys and values ({self._last_error()}).")
        cache_bytes = self.num_bytes
        self._pack(weights)
        self.own_weight_bytes = (
            self.num_bytes - cache_bytes + sum(table.nbytes for table in [*self._embeddings, self._positions])
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of packed weights, keys and values."""
        return int(self._library.native_bytes(self._handle))

    def begin(self, slot: int, context: Tensor | None) -> None:
        self.blend(slot, [] if context is None else [(context, 1.0)])

    def blend(self, slot: int, parts: Sequence[Part]) -> None:
        known, wanted = self._contexts[slot], [context for context, _ in parts]
        for number, context in enumerate(known):
            if context is not None and not any(context is other for other in wanted):
                self._call(self._library.native_set_context, slot, number, None, 0)
                known[number] = None
        numbers = [self._context_number(slot, context) for context in wanted]
        weights = (ctypes.c_float * len(parts))(*(weight for _, weight in parts))
        self._call(self._library.native_set_parts, slot, len(parts), (ctypes.c_int32 * len(parts))(*numbers), weights)

    def prefill(self, slot: int, position: int, prefix: Tensor | None, tokens: Tensor) -> Tensor:
        logits = torch.empty(1, self._num_codebooks, self._codebook_size)
        if prefix is not None:
            for chunk in _chunks(_to_float32(prefix)):
                self._forward(None, chunk, [slot] * len(chunk), range(position, position + len(chunk)), None)
                position += len(chunk)
        chunks = _chunks(tokens.T.contiguous())  # [S, K]
        for index, chunk in enumerate(chunks):
            out = logits if index == len(chunks) - 1 else None
            self._forward(chunk, None, [slot] * len(chunk), range(position, position + len(chunk)), out)
            position += len(chunk)
        return logits[0]

    def decode(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        logits = torch.empty(len(slots), self._num_codebooks, self._codebook_size)
        self._forward(tokens.contiguous(), None, slots, positions, logits)
        return logits

    def sample(self, params: Sequence[SamplingParams], logits: Tensor) -> Tensor:
        """Sample tokens int64 [N, K] from the rows' logits [R, K, codebook_size]; -1 where logits are not finite."""
        tokens = torch.empty(len(params), self._num_codebooks, dtype=torch.long)
        array = (SamplingParams * len(params))(*params)
        rows = logits.contiguous()
        self._call(self._library.native_sample, len(params), array, rows.data_ptr(), tokens.data_ptr())
        return tokens

    def release(self, slot: int) -> None:
        self._contexts[slot].clear()
        self._call(self._library.native_clear_slot, slot)

    def close(self) -> None:
        if self._handle:
            self._library.native_destroy(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()

    def _context_number(self, slot: int, context: Tensor) -> int:
        """Return the number of a context in a slot; compute its keys and values if the slot does not have them."""
        known = self._contexts[slot]
        for number, other in enumerate(known):
            if other is context:
                return number
        if None not in known:
            known.append(None)
        number, rows = known.index(None), _to_float32(context)
        self._call(self._library.native_set_context, slot, number, rows.data_ptr(), len(rows))
        known[number] = context
        return number

    def _forward(
        self,
        tokens: Tensor | None,
        inputs: Tensor | None,
        slots: Sequence[int],
        positions: Sequence[int],
        logits: Tensor | None,
    ) -> None:
        """Run rows of tokens [N, K] or inputs [N, D]; write the last rows' logits to `logits` [n, K, codebook_size]."""
        count = len(slots)
        self._call(
            self._library.native_forward,
            count,
            None if tokens is None else tokens.data_ptr(),
            None if inputs is None else inputs.data_ptr(),
            (ctypes.c_int32 * count)(*slots),
            (ctypes.c_int32 * count)(*positions),
            0 if logits is None else len(logits),
            None if logits is None else logits.data_ptr(),
        )

    def _pack(self, weights: DecoderWeights) -> None:
        buffers: dict[str, Tensor] = {}
        for index, layer in enumerate(weights.layers):
            tensors = _layer_tensors(layer)
            # The decoder converts float16 matrices itself, block by block, if all of a layer's matrices are float16.
            matrices = [name for name in MATRICES if name in tensors]
            are_half = all(tensors[name].dtype == torch.float16 for name in matrices)
            for name, tensor in tensors.items():
                is_passed_as_is = are_half and name in matrices
                tensors[name] = tensor.contiguous() if is_passed_as_is else _to_buffer(tensor, buffers, name)
            pointers = LayerPointers(
                stored=FORMATS["float16" if are_half else "float32"],
                **{name: tensor.data_ptr() for name, tensor in tensors.items()},
            )
            self._call(self._library.native_set_layer, index, ctypes.byref(pointers))
        heads = torch.cat([_to_float32(head) for head in weights.heads])
        norm_weight, norm_bias = _to_float32(weights.out_norm_weight), _to_float32(weights.out_norm_bias)
        tables = (ctypes.c_void_p * len(self._embeddings))(*(table.data_ptr() for table in self._embeddings))
        self._call(
            self._library.native_set_embeddings_and_heads,
            heads.data_ptr(),
            norm_weight.data_ptr(),
            norm_bias.data_ptr(),
            tables,
            self._positions.data_ptr(),
        )

    def _call(self, function: Any, *arguments: Any) -> None:
        """Call a function of the library. Raises OutOfMemory, or RuntimeError for arguments that it cannot process."""
        status = function(self._handle, *arguments)
        if status == OUT_OF_MEMORY:
            raise OutOfMemory(f"There is not enough memory to continue the generation ({self._last_error()}).")
        if status:
            raise RuntimeError(f"The native decoder failed: {self._last_error()}.")

    def _last_error(self) -> str:
        return (self._library.native_last_error() or b"").decode()


def _chunks(rows: Tensor) -> list[Tensor]:
    return [rows[begin : begin + PREFILL_ROWS] for begin in range(0, len(rows), PREFILL_ROWS)]


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _layer_tensors(layer: LayerWeights) -> dict[str, Tensor]:
    """Return a layer's tensors by their names in decoder.h."""
    tensors = {
        "norm1_weight": layer.norm1_weight,
        "norm1_bias": layer.norm1_bias,
        "qkv": layer.qkv,
        "self_out": layer.self_out,
        "norm2_weight": layer.norm2_weight,
        "norm2_bias": layer.norm2_bias,
        "linear1": layer.linear1,
        "linear2": layer.linear2,
    }
    if layer.cross is not None:
        tensors |= {
            "cross_norm_weight": layer.cross.norm_weight,
            "cross_norm_bias": layer.cross.norm_bias,
            "cross_query": layer.cross.query,
            "cross_key": layer.cross.key,
            "cross_value": layer.cross.value,
            "cross_out": layer.cross.out,
        }
    return tensors


def _to_buffer(tensor: Tensor, buffers: dict[str, Tensor], name: str) -> Tensor:
    """Return `tensor` in float32. A conversion goes to the buffer of its name: reusing memory is faster."""
    if tensor.dtype == torch.float32 and tensor.device.type == "cpu":
        return tensor.contiguous()
    if name not in buffers:
        buffers[name] = torch.empty(tensor.shape, dtype=torch.float32)
    return buffers[name].copy_(tensor)
