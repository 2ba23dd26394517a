"""Decodes codes to a waveform in blocks, for the batching engine.

`make_codec` prepares a loaded codec once. Each request then opens a decoder and feeds it codes as they are generated.
Weight norm is folded into a private copy of the decoder's weights; the codebooks are shared with the loaded codec,
which is left unchanged and is the reference that this one is tested against.

All blocks joined differ from the codec's own decoding of all codes at once by float32 rounding only: less than 1e-6 at
usual loudness, and as close to exact arithmetic as that decoding (on CUDA closer, where the codec's own convolutions
may use TF32). On one machine, the bits depend only on the request's codes, not on how they were split into feeds or on
other requests; with the native library, not on the blocks or the number of threads either. The order of sums, and with
it the last bits, may differ between machines, devices and library versions and, without the native library, numbers of
threads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiocraft_api.core.params import Waveform
from audiocraft_api.engine.codec import layers
from audiocraft_api.engine.codec.layers import Unsupported
from audiocraft_api.engine.codec.stages import feed_through
from audiocraft_api.engine.cpu.native.library import load_library
from audiocraft_api.engine.cpu.native_layers import NativeLayers

logger = logging.getLogger(__name__)

# Frames per block; the last number repeats. The first block is short so that audio starts early. Blocks of 25 frames
# are a few percent slower than longer ones, but leave only the last half second to decode at the end of a waveform.
BLOCK_FRAMES = (8, 12, 25)


class ChunkDecoder(Protocol):
    """Decodes one request's codes chunk by chunk. Not thread-safe."""

    def feed(self, codes: Tensor, final: bool = False) -> Waveform:
        """Accept the next codes [K, t] and return the samples [C, n] that are complete now; n may be 0.

        With `final` (t may be 0) all remaining samples are returned, and another feed raises ValueError.
        """


class ChunkCodec(Protocol):
    """A codec prepared for decoding in chunks, shared by all requests."""

    def new_decoder(self) -> ChunkDecoder: ...

    def feed_many(self, feeds: Sequence[tuple[ChunkDecoder, Tensor, bool]]) -> list[Waveform]:
        """Feed several decoders of this codec together: the same bits as one after the other, in less time."""


def make_codec(
    codec: Any, block_frames: Sequence[int] = BLOCK_FRAMES, *, is_native: bool = True, num_threads: int | None = None
) -> ChunkCodec:
    """Prepare audiocraft's `CompressionModel` for decoding in chunks.

    Supports EnCodec decoders of transformers and of audiocraft, with weight norm or without a norm, causal or not, as
    one channel or as left and right. Any other codec decodes everything at once after the last code. `is_native`: use
    the native library on a CPU if it is built, with `num_threads` or as many threads as PyTorch.
    """
    is_stereo = hasattr(codec, "get_left_right_codes")
    try:
        if is_stereo and codec.per_timestep:
            raise Unsupported("its channels are interleaved in time")
        with torch.no_grad():
            inner = codec.model if is_stereo else codec
            inner = getattr(inner, "model", inner)
            return StreamingCodec(
                inner, native_layers(inner, num_threads) if is_native else None, is_stereo, block_frames
            )
    except (Unsupported, AttributeError) as reason:
        logger.info("The codec %s cannot decode in blocks: %s.", type(codec).__name__, reason)
        return WholeCodec(codec)


def threads_beside_decoding() -> int:
    """Return how many of the native library's threads the codec uses while the decoder's run on all processors.

    About a fifth of the work is the codec's. More threads than processors wait for each other: with two processors,
    eight requests generated 1.3 s of audio per second with one thread of the codec, and 0.95 s with two.
    """
    return max(1, torch.get_num_threads() // 4)


def native_layers(model: Any, num_threads: int | None = None) -> NativeLayers | None:
    """Return the native library's layers for a model in float32 on a CPU; None if the library is not built."""
    weight = next(model.decoder.parameters())
    library = load_library() if weight.device.type == "cpu" and weight.dtype == torch.float32 else None
    return None if library is None else NativeLayers(library, num_threads or torch.get_num_threads())


class StreamingCodec:
    """The folded weights of an EnCodec decoder."""

    def __init__(
        self,
        model: Any,
        native: NativeLayers | None,
        is_stereo: bool = False,
        block_frames: Sequence[int] = BLOCK_FRAMES,
    ) -> None:
        """`model` is an `EncodecModel`. Raises AttributeError or `Unsupported` for other structures."""
        parts = layers.read(model, native)
        self.codebooks = parts.codebooks
        self.before = parts.before
        self.lstm = parts.lstm
        self.after = parts.after
        self.num_passes = 2 if is_stereo else 1
        self.num_channels = self.num_passes * parts.channels
        self.block_frames = tuple(block_frames)

    def new_decoder(self) -> StreamingDecoder:
        return StreamingDecoder(self)

    @torch.inference_mode()
    def feed_many(self, feeds: Sequence[tuple[ChunkDecoder, Tensor, bool]]) -> list[Waveform]:
        decoders: list[StreamingDecoder] = []
        for decoder, codes, final in feeds:
            assert isinstance(decoder, StreamingDecoder)
            decoder.add_codes(codes, final)
            decoders.append(decoder)
        while due := [decoder for decoder in decoders if decoder.start_block()]:
            passes = [each for decoder in due for each in decoder.passes]
            blocks = self.lstm.feed([each.lstm_state for each in passes], [each.block for each in passes])
            for each, block in zip(passes, blocks, strict=True):
                each.block = block
            for decoder in due:
                decoder.finish_block()
        return [decoder.take_samples() for decoder in decoders]


class _Pass:
    """The state of one pass through the layers. Stereo has two, left and right, which share the weights."""

    def __init__(self, codec: StreamingCodec) -> None:
        self.before = [stage.new_state() for stage in codec.before]
        self.lstm_state = codec.lstm.new_state()
        self.after = [stage.new_state() for stage in codec.after]
        self.block = torch.empty(0, 0)  # [t, H], at the recurrent layer


class StreamingDecoder:
    """The decoder of one request.

    Codes wait until a block of the fixed schedule is complete, so the result does not depend on how they are fed.
    """

    def __init__(self, codec: StreamingCodec) -> None:
        self._codec = codec
        self.passes = [_Pass(codec) for _ in range(codec.num_passes)]
        self._codes: Tensor | None = None  # [K, t] that wait for their block
        self._samples: list[Tensor] = []  # [C, n] complete, not returned yet
        self._num_blocks = 0
        self._has_last_codes = False
        self._is_last_block = False
        self._has_ended = False

    def feed(self, codes: Tensor, final: bool = False) -> Waveform:
        (waveform,) = self._codec.feed_many([(self, codes, final)])
        return waveform

    def add_codes(self, codes: Tensor, final: bool) -> None:
        """Queue codes [K, t] for the next blocks."""
        if self._has_last_codes:
            raise ValueError("the decoder has already received its last codes")
        codes = codes.to(self._codec.codebooks[0].device, non_blocking=True)
        self._codes = codes.clone() if self._codes is None else torch.cat((self._codes, codes), dim=1)
        self._has_last_codes = final

    def start_block(self) -> bool:
        """Process the next block up to the recurrent layer; return whether there was one.

        The codes that remain after the last complete block, even none, form the last block. So its length does not
        depend on the feeds.
        """
        assert self._codes is not None
        length = self._codec.block_frames[min(self._num_blocks, len(self._codec.block_frames) - 1)]
        self._is_last_block = self._has_last_codes and self._codes.shape[1] < length
        if self._has_ended or (self._codes.shape[1] < length and not self._is_last_block):
            return False
        codes, self._codes = self._codes[:, :length], self._codes[:, length:]
        self._num_blocks += 1
        for channel, each in enumerate(self.passes):
            own = codes[channel :: len(self.passes)]  # left and right are interleaved over the codebooks
            embeddings = torch.zeros((), device=codes.device)
            for indices, codebook in zip(own, self._codec.codebooks, strict=False):
                embeddings = embeddings + F.embedding(indices, codebook)
            each.block = feed_through(each.before, embeddings, self._is_last_block)  # [t, H]
        return True

    def finish_block(self) -> None:
        """Process the block from the recurrent layer to the samples."""
        channels = [feed_through(each.after, each.block, self._is_last_block).T for each in self.passes]  # [c, n] each
        self._samples.append(torch.cat(channels))
        self._has_ended = self._is_last_block

    def take_samples(self) -> Waveform:
        """Return the samples [C, n] that were completed since the last call."""
        samples, self._samples = self._samples, []
        if not samples:
            return np.zeros((self._codec.num_channels, 0), np.float32)
        return torch.cat(samples, dim=1).cpu().numpy()


class WholeCodec:
    """A codec that decodes everything at once after the last code."""

    def __init__(self, codec: Any) -> None:
        self.codec = codec

    def new_decoder(self) -> WholeDecoder:
        return WholeDecoder(self.codec)

    def feed_many(self, feeds: Sequence[tuple[ChunkDecoder, Tensor, bool]]) -> list[Waveform]:
        return [decoder.feed(codes, final) for decoder, codes, final in feeds]


class WholeDecoder:
    """The decoder of one request, which waits for the last code."""

    def __init__(self, codec: Any) -> None:
        self._codec = codec
        self._codes: list[Tensor] = []
        self._has_last_codes = False

    @torch.inference_mode()
    def feed(self, codes: Tensor, final: bool = False) -> Waveform:
        if self._has_last_codes:
            raise ValueError("the decoder has already received its last codes")
        self._codes.append(codes)
        self._has_last_codes = final
        if not final:
            return np.zeros((self._codec.channels, 0), np.float32)
        waveform: Waveform = self._codec.decode(torch.cat(self._codes, dim=1)[None], None)[0].float().cpu().numpy()
        return waveform
