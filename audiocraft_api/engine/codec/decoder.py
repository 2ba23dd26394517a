"""Codes to waveform in blocks, for the batching engine.

`make_decoder` prepares a loaded codec once; each request then opens a `StreamingDecoder` and feeds it codes as they are
made. Weight norm is folded into a private copy of the decoder's weights, the codebooks are shared with the loaded
codec, which stays as it was: it is the twin that this one is tested against.

What is promised: all blocks joined differ from the codec's own decoding of all codes at once by fp32 rounding only,
less than 1e-6 at usual loudness, and are as near to exact arithmetic as that one (on CUDA nearer, where the codec's
own convolutions may use TF32). On one machine, with one number of threads, the bits depend on the
request's codes alone: not on how they were cut into feeds, nor on other requests. The order of sums, and with it
the last bits, may differ between machines, devices, library versions and numbers of threads.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiocraft_api.core.params import Waveform
from audiocraft_api.engine.codec.lstm import Lstm
from audiocraft_api.engine.codec.stages import Conv, Residual, Stage, Upsample, run

logger = logging.getLogger(__name__)

# Frames per block; the last number repeats. The first block is short so that sound comes early; blocks of 25 frames
# cost a few percent more than longer ones, and a waveform's last half second is all that is left at its end.
BLOCK_FRAMES = (8, 12, 25)


class ChunkDecoder(Protocol):
    """Turns one request's codes into its waveform, piece by piece. Used by one thread at a time."""

    @property
    def num_frames_wanted(self) -> int:
        """Frames to feed until the next block is complete; feeding fewer costs nothing and gives nothing."""

    def feed(self, codes: Tensor, final: bool = False) -> Waveform:
        """Take the next codes [K, t] and return the samples [C, n] that are complete now, maybe none.

        With `final` (t may be 0) the rest comes and the decoder is spent: another feed raises ValueError.
        """


class ChunkDecoderFactory(Protocol):
    """A codec prepared for decoding in pieces, shared by all requests."""

    def open(self) -> ChunkDecoder: ...

    def feed_many(self, feeds: Sequence[tuple[ChunkDecoder, Tensor, bool]]) -> list[Waveform]:
        """Feed several decoders of this factory at once: the same bits as one after the other, in less time."""


def make_decoder(codec: Any, block_frames: Sequence[int] = BLOCK_FRAMES) -> ChunkDecoderFactory:
    """Prepare audiocraft's `CompressionModel` for decoding in pieces.

    Understood are transformers' EnCodec decoders with weight norm, causal or not, alone or as left and right channel.
    Any other codec is decoded as a whole when its last code has come: correct, in one piece.
    """
    is_stereo = hasattr(codec, "get_left_right_codes")
    try:
        if is_stereo and codec.per_timestep:
            raise _NotUnderstood("channels interleaved in time")
        with torch.no_grad():
            return StreamingDecoderFactory(codec.model.model if is_stereo else codec.model, is_stereo, block_frames)
    except (_NotUnderstood, AttributeError) as reason:
        logger.info("The codec %s is decoded as a whole: %s.", type(codec).__name__, reason)
        return WholeDecoderFactory(codec)


class _NotUnderstood(Exception):
    """The codec has a part that cannot be decoded in pieces."""


class StreamingDecoderFactory:
    """The folded weights of an EnCodec decoder."""

    def __init__(self, model: Any, is_stereo: bool, block_frames: Sequence[int]) -> None:
        """`model` is transformers' `EncodecModel`. Raises AttributeError or `_NotUnderstood` where it is not like it."""
        if model.config.chunk_length_s is not None:
            raise _NotUnderstood("it overlaps chunks of its own")
        layers = list(model.decoder.layers)
        places = [place for place, layer in enumerate(layers) if type(layer).__name__ == "EncodecLSTM"]
        if len(places) != 1:
            raise _NotUnderstood("it has not one recurrent layer")
        self.codebooks: list[Tensor] = [layer.codebook.embed for layer in model.quantizer.layers]  # [2048, D] each
        self.before = _stages(layers[: places[0]])
        self.lstm = _lstm(layers[places[0]].lstm)
        self.after = _stages(layers[places[0] + 1 :])
        self.num_lanes = 2 if is_stereo else 1
        self.num_channels = self.num_lanes * int(model.config.audio_channels)
        self.block_frames = tuple(block_frames)

    def open(self) -> StreamingDecoder:
        return StreamingDecoder(self)

    @torch.inference_mode()
    def feed_many(self, feeds: Sequence[tuple[ChunkDecoder, Tensor, bool]]) -> list[Waveform]:
        decoders: list[StreamingDecoder] = []
        for decoder, codes, final in feeds:
            assert isinstance(decoder, StreamingDecoder)
            decoder.take(codes, final)
            decoders.append(decoder)
        while due := [decoder for decoder in decoders if decoder.begin_block()]:
            lanes = [lane for decoder in due for lane in decoder.lanes]
            blocks = self.lstm.feed([lane.state for lane in lanes], [lane.block for lane in lanes])
            for lane, block in zip(lanes, blocks, strict=True):
                lane.block = block
            for decoder in due:
                decoder.end_block()
        return [decoder.give() for decoder in decoders]


class _Lane:
    """One channel's way through the layers; stereo has two that share the weights."""

    def __init__(self, factory: StreamingDecoderFactory) -> None:
        self.before = [stage.open() for stage in factory.before]
        self.state = factory.lstm.open()
        self.after = [stage.open() for stage in factory.after]
        self.block: Tensor  # [t, H] between the two halves of a block


class StreamingDecoder:
    """One request's decoder. Codes wait until a block of the fixed schedule is complete, so feeds leave no trace."""

    def __init__(self, factory: StreamingDecoderFactory) -> None:
        self._factory = factory
        self.lanes = [_Lane(factory) for _ in range(factory.num_lanes)]
        self._codes: Tensor | None = None  # [K, t] that wait for their block
        self._samples: list[Tensor] = []  # [C, n] done, not yet given
        self._num_blocks = 0
        self._final = False  # the last codes have come
        self._ending = False  # the block in work is the last one
        self._ended = False

    @property
    def num_frames_wanted(self) -> int:
        return self._block_length() - (0 if self._codes is None else self._codes.shape[1])

    def feed(self, codes: Tensor, final: bool = False) -> Waveform:
        (waveform,) = self._factory.feed_many([(self, codes, final)])
        return waveform

    def take(self, codes: Tensor, final: bool) -> None:
        """Keep codes [K, t] for the blocks to come."""
        if self._final:
            raise ValueError("the decoder has had its last codes")
        codes = codes.to(self._factory.codebooks[0].device, non_blocking=True)
        self._codes = codes.clone() if self._codes is None else torch.cat((self._codes, codes), dim=1)
        self._final = final

    def begin_block(self) -> bool:
        """Run the next block up to the recurrent layer; say whether there was one.

        What is left after whole blocks, even nothing, is the last one: its length does not depend on the feeds.
        """
        assert self._codes is not None
        length = self._block_length()
        self._ending = self._final and self._codes.shape[1] < length
        if self._ended or (self._codes.shape[1] < length and not self._ending):
            return False
        codes, self._codes = self._codes[:, :length], self._codes[:, length:]
        self._num_blocks += 1
        for channel, lane in enumerate(self.lanes):
            own = codes[channel :: len(self.lanes)]  # left and right are interleaved over the codebooks
            embeddings = torch.zeros((), device=codes.device)
            for indices, codebook in zip(own, self._factory.codebooks, strict=False):
                embeddings = embeddings + F.embedding(indices, codebook)
            lane.block = run(lane.before, embeddings, self._ending)  # [t, H]
        return True

    def end_block(self) -> None:
        """Run the block from the recurrent layer to the samples."""
        channels = [run(lane.after, lane.block, self._ending).T for lane in self.lanes]  # [channels of the lane, n]
        self._samples.append(torch.cat(channels))
        self._ended = self._ending

    def give(self) -> Waveform:
        """Return the samples [C, n] done since the last time."""
        samples, self._samples = self._samples, []
        if not samples:
            return np.zeros((self._factory.num_channels, 0), np.float32)
        return torch.cat(samples, dim=1).cpu().numpy()

    def _block_length(self) -> int:
        schedule = self._factory.block_frames
        return schedule[min(self._num_blocks, len(schedule) - 1)]


class WholeDecoderFactory:
    """A codec that is decoded as a whole when the last code has come."""

    def __init__(self, codec: Any) -> None:
        self.codec = codec

    def open(self) -> WholeDecoder:
        return WholeDecoder(self.codec)

    def feed_many(self, feeds: Sequence[tuple[ChunkDecoder, Tensor, bool]]) -> list[Waveform]:
        return [decoder.feed(codes, final) for decoder, codes, final in feeds]


class WholeDecoder:
    """One request's decoder that waits for the last code."""

    # No number of frames makes a block complete.
    num_frames_wanted = 2**31

    def __init__(self, codec: Any) -> None:
        self._codec = codec
        self._codes: list[Tensor] = []
        self._final = False

    @torch.inference_mode()
    def feed(self, codes: Tensor, final: bool = False) -> Waveform:
        if self._final:
            raise ValueError("the decoder has had its last codes")
        self._codes.append(codes)
        self._final = final
        if not final:
            return np.zeros((self._codec.channels, 0), np.float32)
        waveform: Waveform = self._codec.decode(torch.cat(self._codes, dim=1)[None], None)[0].float().cpu().numpy()
        return waveform


def _stages(layers: Sequence[Any]) -> list[Stage]:
    """Copy layers of transformers' EnCodec, weight norm folded and each activation joined to what follows it."""
    stages: list[Stage] = []
    activated = False
    for layer in layers:
        name = type(layer).__name__
        if name == "ELU" and layer.alpha == 1.0 and not activated:
            activated = True
            continue
        if name == "EncodecConv1d":
            stages.append(_conv(layer, activated))
        elif name == "EncodecConvTranspose1d":
            stages.append(_upsample(layer, activated))
        elif name == "EncodecResnetBlock" and not activated:
            stages.append(_residual(layer))
        else:
            raise _NotUnderstood(f"a layer of type {name}")
        activated = False
    if activated:
        raise _NotUnderstood("an activation at the end")
    return stages


def _residual(layer: Any) -> Residual:
    shortcut = None if type(layer.shortcut).__name__ == "Identity" else _conv(layer.shortcut, activated=False)
    if shortcut is not None and shortcut.taps.span:
        raise _NotUnderstood("a shortcut with a kernel over 1")
    return Residual(_stages(layer.block), shortcut)


def _conv(layer: Any, activated: bool) -> Conv:
    conv = layer.conv
    if layer.norm_type != "weight_norm" or conv.stride[0] != 1 or conv.groups != 1:
        raise _NotUnderstood("a convolution with a norm, a stride or groups")
    if layer.pad_mode not in ("reflect", "constant", "replicate"):
        raise _NotUnderstood(f"padding of mode {layer.pad_mode}")
    span = (conv.kernel_size[0] - 1) * conv.dilation[0]
    right = 0 if layer.causal else span // 2
    return Conv(
        conv.weight.detach(), _copy(conv.bias), conv.dilation[0], span - right, right, layer.pad_mode, activated
    )


def _upsample(layer: Any, activated: bool) -> Upsample:
    conv = layer.conv
    if layer.norm_type != "weight_norm" or conv.groups != 1 or conv.dilation[0] != 1 or conv.output_padding[0]:
        raise _NotUnderstood("a transposed convolution with a norm, groups, dilation or padding")
    trimmed = conv.kernel_size[0] - conv.stride[0]
    if trimmed < 0:
        raise _NotUnderstood("a transposed convolution that leaves gaps")
    right = math.ceil(trimmed * layer.trim_right_ratio) if layer.causal else trimmed // 2
    return Upsample(conv.weight.detach(), _copy(conv.bias), conv.stride[0], trimmed - right, activated)


def _lstm(module: Any) -> Lstm:
    if module.bidirectional or module.batch_first or module.proj_size:
        raise _NotUnderstood("a recurrent layer of another form")
    return Lstm(module)


def _copy(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().clone()
