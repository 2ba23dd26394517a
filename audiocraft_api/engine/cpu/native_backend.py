"""The native backend: the whole transformer of a step in one call of the C++ decoder, for CPUs.

A step is bound by reading weights, keys and values from memory; the decoder reads each once, in as few bytes as the
precision allows, at their true length. `torch_runner.py` is its plain twin.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from audiocraft_api.core.errors import OutOfMemory
from audiocraft_api.engine.cpu.native.library import (
    FORMATS,
    MATRICES,
    LayerPointers,
    SamplingParams,
    Shape,
    load_library,
)
from audiocraft_api.engine.weights import DecoderWeights, LayerWeights, position_table

Format = Literal["float32", "float16", "bfloat16", "int8", "int6"]

_PRECISIONS: dict[Format, str] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PREFILL_ROWS = 64  # positions of one call: enough to share each weight, few enough for the processor's cache


def native_supports(weights: DecoderWeights) -> bool:
    """Say whether the library is built and the model's sizes suit its blocks."""
    head_dim = weights.dim // weights.num_heads
    hidden = weights.layers[0].linear1.shape[0]
    sizes_fit = weights.dim % 64 == 0 and hidden % 64 == 0 and weights.codebook_size % 16 == 0
    return sizes_fit and head_dim % 16 == 0 and head_dim <= 256 and load_library() is not None


def has_byte_arithmetic() -> bool:
    """Say whether the library multiplies bytes with the processor's own instructions; without them halves are quicker."""
    library = load_library()
    return library is not None and library.native_arithmetic() != b"portable"


def kv_bits(weight_format: Format) -> int:
    """Return the bits of each number of keys and values; under 32 they are integers with a scale for each head's."""
    return {"float32": 32, "int6": 6}.get(weight_format, 8)


def native_slot_bytes(weights: DecoderWeights, capacity: int, weight_format: Format) -> int:
    """Return the bytes of one slot's self-attention keys and values, as kv_cache.h lays them out."""
    bits, head_dim = kv_bits(weight_format), weights.dim // weights.num_heads
    value_dim = head_dim if bits == 32 else -(-head_dim // 64) * 64
    scales = 0 if bits == 32 else 4
    positions = -(-capacity // 16) * 16
    return len(weights.layers) * weights.num_heads * positions * ((head_dim + value_dim) * bits // 8 + scales)


class NativeBackend:
    """A `Backend` of C++ kernels."""

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
        """Pack `weights`, of any floating type on the CPU; they are not read afterwards. Raises OutOfMemory."""
        self._handle = None  # for `__del__`, should anything before fail
        self.num_slots, self.capacity = num_slots, capacity
        self.precision = _PRECISIONS.get(weight_format, weight_format)
        loaded = library or load_library()
        assert loaded is not None, "native_supports was not asked"
        self._library = loaded
        self._dim, self._num_codebooks, self._card = weights.dim, weights.num_codebooks, weights.codebook_size
        self._positions = weights.positional_scale * position_table(capacity, weights.dim, weights.max_period)
        self._embeddings = [table.to(torch.float32, copy=True).contiguous() for table in weights.embeddings]
        shape = Shape(
            layers=len(weights.layers),
            dim=weights.dim,
            heads=weights.num_heads,
            hidden=weights.layers[0].linear1.shape[0],
            codebook_size=weights.codebook_size,
            codebooks=weights.num_codebooks,
            cross=weights.layers[0].cross is not None,
            slots=num_slots,
            capacity=capacity,
            threads=num_threads or torch.get_num_threads(),
            format=FORMATS[weight_format],
            kv_bits=kv_bits(weight_format),
        )
        self._handle = self._library.native_create(ctypes.byref(shape))
        if not self._handle:
            raise OutOfMemory(f"The model's caches do not fit in memory: {self._error()}.")
        without_weights = self.num_bytes
        self._pack(weights)
        self.own_weight_bytes = (
            self.num_bytes - without_weights + sum(table.nbytes for table in [*self._embeddings, self._positions])
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of packed weights, keys and values."""
        return int(self._library.native_bytes(self._handle))

    def begin(self, slot: int, context: Tensor | None) -> None:
        rows = None if context is None else _prepared(context)
        length = 0 if rows is None else len(rows)
        self._call(self._library.native_begin, slot, None if rows is None else rows.data_ptr(), length)

    def prefill(self, slot: int, position: int, prefix: Tensor | None, tokens: Tensor) -> Tensor:
        logits = torch.empty(1, self._num_codebooks, self._card)
        if prefix is not None:
            for piece in _pieces(_prepared(prefix)):
                self._run(None, piece, [slot] * len(piece), range(position, position + len(piece)), None)
                position += len(piece)
        pieces = _pieces(tokens.T.contiguous())  # [S, K]
        for index, piece in enumerate(pieces):
            wanted = logits if index == len(pieces) - 1 else None
            self._run(piece, None, [slot] * len(piece), range(position, position + len(piece)), wanted)
            position += len(piece)
        return logits[0]

    def decode(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        logits = torch.empty(len(slots), self._num_codebooks, self._card)
        self._run(tokens.contiguous(), None, slots, positions, logits)
        return logits

    def sample(self, choices: Sequence[SamplingParams], logits: Tensor) -> Tensor:
        """Choose tokens int64 [N, K] from the rows' logits [R, K, codebook_size]; -1 where logits are not finite."""
        tokens = torch.empty(len(choices), self._num_codebooks, dtype=torch.long)
        array = (SamplingParams * len(choices))(*choices)
        rows = logits.contiguous()
        self._call(self._library.native_sample, len(choices), array, rows.data_ptr(), tokens.data_ptr())
        return tokens

    def release(self, slot: int) -> None:
        self._call(self._library.native_release, slot)

    def close(self) -> None:
        if self._handle:
            self._library.native_destroy(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()

    def _run(
        self,
        tokens: Tensor | None,
        inputs: Tensor | None,
        slots: Sequence[int],
        positions: Sequence[int],
        logits: Tensor | None,
    ) -> None:
        """Run rows of tokens [N, K] or inputs [N, D]; the last rows' logits go into `logits` [n, K, codebook_size]."""
        count = len(slots)
        self._call(
            self._library.native_run,
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
            # The decoder widens matrices of half precision itself, a block at a time, where they are all of it.
            matrices = [name for name in MATRICES if name in tensors]
            are_half = all(tensors[name].dtype == torch.float16 for name in matrices)
            for name, tensor in tensors.items():
                is_kept = are_half and name in matrices
                tensors[name] = tensor.contiguous() if is_kept else _in_float32(tensor, buffers, name)
            pointers = LayerPointers(
                stored=FORMATS["float16" if are_half else "float32"],
                **{name: tensor.data_ptr() for name, tensor in tensors.items()},
            )
            self._call(self._library.native_set_layer, index, ctypes.byref(pointers))
        heads = torch.cat([_prepared(head) for head in weights.heads])
        norm_weight, norm_bias = _prepared(weights.out_norm_weight), _prepared(weights.out_norm_bias)
        tables = (ctypes.c_void_p * len(self._embeddings))(*(table.data_ptr() for table in self._embeddings))
        self._call(
            self._library.native_set_ends,
            heads.data_ptr(),
            norm_weight.data_ptr(),
            norm_bias.data_ptr(),
            tables,
            self._positions.data_ptr(),
        )

    def _call(self, function: Any, *arguments: Any) -> None:
        if function(self._handle, *arguments):
            raise OutOfMemory(f"The native decoder could not go on: {self._error()}.")

    def _error(self) -> str:
        return (self._library.native_error() or b"").decode()


def _pieces(rows: Tensor) -> list[Tensor]:
    return [rows[begin : begin + PREFILL_ROWS] for begin in range(0, len(rows), PREFILL_ROWS)]


def _prepared(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _layer_tensors(layer: LayerWeights) -> dict[str, Tensor]:
    """Name a layer's tensors as decoder.h does."""
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


def _in_float32(tensor: Tensor, buffers: dict[str, Tensor], name: str) -> Tensor:
    """Return `tensor` if it is float32, else a copy in the buffer of its name: new memory for each costs more time."""
    if tensor.dtype == torch.float32 and tensor.device.type == "cpu":
        return tensor.contiguous()
    if name not in buffers:
        buffers[name] = torch.empty(tensor.shape, dtype=torch.float32)
    return buffers[name].copy_(tensor)
