"""Compares decoding in pieces, as streams do, with transformers' own decoding of the whole, on the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench import shapes

FRAME_RATE = 50
NUM_STREAMS = 8


def seconds_per_second(num_threads: int, seconds: float, num_turns: int) -> dict[str, float]:
    """Return the shortest times per second of audio, by the names of their figures."""
    import torch

    from audiocraft_api.engine.codec import decoder

    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        model = shapes.make_codec()
        codec = decoder.StreamingCodec(model, decoder.native_layers(model))
        size = (len(codec.codebooks), round(seconds * FRAME_RATE))
        codes = torch.randint(len(codec.codebooks[0]), size, generator=torch.Generator().manual_seed(0))
        best = _by_turns(
            {
                "whole": lambda: _whole(model, codes),
                "pieces": lambda: _in_pieces(codec, codes, 1),
                f"pieces_{NUM_STREAMS}": lambda: _in_pieces(codec, codes, NUM_STREAMS),
            },
            num_turns,
        )
    finally:
        torch.set_num_threads(threads_before)
    best[f"pieces_{NUM_STREAMS}"] /= NUM_STREAMS
    return {
        **{f"codec_{name}_{num_threads}_s_per_s": time / seconds for name, time in best.items()},
        f"codec_pieces_to_whole_{num_threads}": best["pieces"] / best["whole"],
    }


def _whole(model: Any, codes: Any) -> None:
    import torch

    with torch.inference_mode():
        model.decode(codes[None, None], [None])


def _in_pieces(codec: Any, codes: Any, num_streams: int) -> None:
    """Decode streams that receive their codes as they are generated."""
    decoders = [codec.new_decoder() for _ in range(num_streams)]
    pieces = codes.split(25, dim=1)
    for index, piece in enumerate(pieces, 1):
        codec.feed_many([(each, piece, index == len(pieces)) for each in decoders])


def _by_turns(measured: dict[str, Callable[[], None]], num_turns: int) -> dict[str, float]:
    """Return the shortest time of each, run by turns so that the machine is in the same state for all."""
    best = dict.fromkeys(measured, float("inf"))
    for _ in range(num_turns):
        for name, run in measured.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best
