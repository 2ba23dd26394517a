"""Decoding in blocks against the codec's own decoding of all codes at once, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocraft_api.engine.codec.decoder import BLOCK_FRAMES, StreamingCodec, WholeCodec, make_codec
from audiocraft_api.model import xformers_stub
from bench import untrained

NUM_FRAMES = 120


@pytest.fixture(scope="module")
def wrappers() -> Any:
    """audiocraft's module of codecs."""
    xformers_stub.install()
    import audiocraft.models.encodec

    return audiocraft.models.encodec


@pytest.fixture(scope="module")
def mono(wrappers: Any) -> Any:
    return wrappers.HFEncodecCompressionModel(untrained.codec())


@pytest.fixture(scope="module")
def stereo(mono: Any, wrappers: Any) -> Any:
    return wrappers.InterleaveStereoCompressionModel(mono)


def random_codes(codec: Any, num_frames: int = NUM_FRAMES, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, codec.cardinality, (codec.num_codebooks, num_frames), generator=generator)


def whole(codec: Any, codes: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return codec.decode(codes[None], None)[0].numpy()  # type: ignore[no-any-return]


def in_pieces(chunk_codec: Any, codes: torch.Tensor, lengths: Sequence[int]) -> np.ndarray:
    decoder = chunk_codec.new_decoder()
    pieces = [decoder.feed(part) for part in codes[:, : sum(lengths)].split(list(lengths), dim=1)]
    pieces.append(decoder.feed(codes[:, sum(lengths) :], final=True))
    return np.concatenate(pieces, axis=1)


def assert_equal_to_whole(codec: Any, codes: torch.Tensor, waveform: np.ndarray) -> None:
    expected = whole(codec, codes)
    assert waveform.shape == expected.shape
    assert waveform.dtype == np.float32
    assert np.abs(expected).max() > 1e-2, "the codec is silent, so the comparison would prove nothing"
    assert np.abs(waveform - expected).max() <= 1e-6 * max(1.0, np.abs(expected).max())


def encodec(wrappers: Any, **changes: Any) -> Any:
    """Build a small codec of the released structure with `changes`. Weights are seeded noise, weight norms not 1."""
    from transformers import EncodecConfig, EncodecModel

    options: dict[str, Any] = {
        "target_bandwidths": [2.2], "sampling_rate": 32_000, "normalize": False, "use_causal_conv": False,
        "num_filters": 4, "upsampling_ratios": [8, 5, 4, 4], "hidden_size": 16, "codebook_dim": 16,
        "codebook_size": 2048, "chunk_length_s": None, "num_lstm_layers": 2, "use_conv_shortcut": False,
    }  # fmt: skip
    model = EncodecModel(EncodecConfig(**(options | changes))).eval()
    untrained.draw(model.decoder, 7, {})
    model.decoder.layers[-1].conv.parametrizations.weight.original0.data *= 0.25  # as loud as music
    generator = torch.Generator().manual_seed(8)
    for layer in model.quantizer.layers:
        layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape, generator=generator))
    return wrappers.HFEncodecCompressionModel(model)


@pytest.mark.parametrize("block", [*range(1, 13), 16, 25, 33, 50])
def test_blocks_of_any_length_join_to_the_whole(mono: Any, block: int) -> None:
    codes = random_codes(mono)
    chunk_codec = make_codec(mono, block_frames=(block,))
    assert isinstance(chunk_codec, StreamingCodec)
    assert_equal_to_whole(mono, codes, chunk_codec.new_decoder().feed(codes, final=True))


@pytest.mark.parametrize("num_frames", range(1, 12))
def test_the_shortest_waveforms_are_reflected_like_the_whole(mono: Any, num_frames: int) -> None:
    codes = random_codes(mono, num_frames)
    for schedule in (BLOCK_FRAMES, (1,), (2,), (4,)):
        chunk_codec = make_codec(mono, block_frames=schedule)
        assert_equal_to_whole(mono, codes, chunk_codec.new_decoder().feed(codes, final=True))


def test_left_and_right_are_decoded_together(stereo: Any) -> None:
    codes = random_codes(stereo)
    waveform = in_pieces(make_codec(stereo), codes, [30, 1, 50])
    assert waveform.shape[0] == 2
    assert_equal_to_whole(stereo, codes, waveform)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=6), num_frames=st.integers(1, 90))
def test_the_bits_do_not_depend_on_how_codes_are_fed(stereo: Any, lengths: list[int], num_frames: int) -> None:
    chunk_codec = make_codec(stereo)
    codes = random_codes(stereo, num_frames)
    fed: list[int] = []
    for length in lengths:
        fed.append(min(length, num_frames - sum(fed)))
    assert np.array_equal(in_pieces(chunk_codec, codes, fed), chunk_codec.new_decoder().feed(codes, final=True))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_bits_do_not_depend_on_other_requests(mono: Any, data: st.DataObject) -> None:
    chunk_codec = make_codec(mono)
    sources = [random_codes(mono, data.draw(st.integers(1, 70)), seed) for seed in range(data.draw(st.integers(2, 6)))]
    decoders = [chunk_codec.new_decoder() for _ in sources]
    pieces: list[list[np.ndarray]] = [[] for _ in sources]
    open_places = set(range(len(sources)))
    while open_places:
        places = sorted(data.draw(st.sets(st.sampled_from(sorted(open_places)), min_size=1)))
        feeds = []
        for place in places:
            length = data.draw(st.integers(1, 40))
            part, sources[place] = sources[place][:, :length], sources[place][:, length:]
            feeds.append((decoders[place], part, sources[place].shape[1] == 0))
        for place, samples, (_, _, final) in zip(places, chunk_codec.feed_many(feeds), feeds, strict=True):
            pieces[place].append(samples)
            open_places -= {place} if final else set()
    for seed, parts in enumerate(pieces):
        waveform = np.concatenate(parts, axis=1)
        codes = random_codes(mono, waveform.shape[1] // 640, seed)
        assert np.array_equal(waveform, chunk_codec.new_decoder().feed(codes, final=True))


def test_the_first_audio_needs_only_the_first_block(mono: Any) -> None:
    decoder = make_codec(mono).new_decoder()
    codes = random_codes(mono)
    assert decoder.feed(codes[:, : BLOCK_FRAMES[0] - 1]).shape == (1, 0)
    # Less than four of the eight frames are context.
    assert 4 * 640 < decoder.feed(codes[:, BLOCK_FRAMES[0] - 1 : BLOCK_FRAMES[0]]).shape[1] < 5 * 640


def test_a_decoder_refuses_codes_after_its_last_ones(mono: Any) -> None:
    for chunk_codec in (make_codec(mono), WholeCodec(mono)):
        decoder = chunk_codec.new_decoder()
        decoder.feed(random_codes(mono, 5), final=True)
        with pytest.raises(ValueError, match="last codes"):
            decoder.feed(random_codes(mono, 5))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_causal_conv": True, "trim_right_ratio": 1.0},
        {"use_causal_conv": True, "trim_right_ratio": 0.5, "pad_mode": "constant"},
        {"num_residual_layers": 3, "use_conv_shortcut": True, "dilation_growth_rate": 3},
        {"kernel_size": 5, "last_kernel_size": 3, "residual_kernel_size": 5, "upsampling_ratios": [10, 8, 8]},
        {"num_lstm_layers": 1, "pad_mode": "replicate"},
    ],
)
def test_context_follows_from_the_layers(wrappers: Any, changes: dict[str, Any]) -> None:
    codec = encodec(wrappers, **changes)
    codes = random_codes(codec, 23)
    for is_native in (True, False):
        chunk_codec = make_codec(codec, block_frames=(1, 2, 6), is_native=is_native)
        assert isinstance(chunk_codec, StreamingCodec)
        assert_equal_to_whole(codec, codes, chunk_codec.new_decoder().feed(codes, final=True))


def test_the_released_shape_joins_to_the_whole(wrappers: Any) -> None:
    codec = encodec(wrappers, num_filters=64, hidden_size=128, codebook_dim=128)
    codes = random_codes(codec, 40)
    chunk_codec = make_codec(codec)
    assert_equal_to_whole(codec, codes, in_pieces(chunk_codec, codes, [9, 20]))
    alone = chunk_codec.new_decoder().feed(codes, final=True)
    beside = chunk_codec.feed_many(
        [(chunk_codec.new_decoder(), codes[:, 10:], True), (chunk_codec.new_decoder(), codes, True)]
    )
    assert np.array_equal(beside[1], alone)
    own = whole(codec, codes)
    exact = whole(codec.double(), codes)
    assert np.abs(alone - exact).std() <= 1.2 * np.abs(own - exact).std()


def test_preparing_and_decoding_leave_the_loaded_codec_unchanged(mono: Any) -> None:
    before = {name: value.clone() for name, value in mono.state_dict().items()}
    codes = random_codes(mono, 20)
    expected = whole(mono, codes)
    chunk_codec = make_codec(mono)
    chunk_codec.new_decoder().feed(codes, final=True)
    assert mono.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in mono.state_dict().items())
    assert np.array_equal(whole(mono, codes), expected)
    assert isinstance(chunk_codec, StreamingCodec)
    assert chunk_codec.codebooks[0].data_ptr() == mono.model.quantizer.layers[0].codebook.embed.data_ptr()


def test_with_the_native_library_the_bits_depend_on_neither_blocks_nor_threads(mono: Any) -> None:
    codes = random_codes(mono)
    waveforms = []
    num_threads = torch.get_num_threads()
    for threads, schedule in ((1, BLOCK_FRAMES), (3, BLOCK_FRAMES), (1, (NUM_FRAMES,)), (2, (1,)), (2, (7, 31))):
        torch.set_num_threads(threads)
        waveforms.append(make_codec(mono, schedule).new_decoder().feed(codes, final=True))
    torch.set_num_threads(num_threads)
    assert all(np.array_equal(waveform, waveforms[0]) for waveform in waveforms)


def test_without_the_native_library_blocks_join_to_the_whole(stereo: Any) -> None:
    chunk_codec = make_codec(stereo, is_native=False)
    codes = [random_codes(stereo, 40, seed) for seed in range(3)]
    waveforms = chunk_codec.feed_many([(chunk_codec.new_decoder(), each, True) for each in codes])
    for each, waveform in zip(codes, waveforms, strict=True):
        assert_equal_to_whole(stereo, each, waveform)


# audiocraft uses torch's older weight norm.
OLD_WEIGHT_NORM = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


def seanet(wrappers: Any, **changes: Any) -> Any:
    """Build a small codec of audiocraft's own class, as AudioGen has one. Weight norms are not 1."""
    from audiocraft.modules.seanet import SEANetDecoder, SEANetEncoder
    from audiocraft.quantization import ResidualVectorQuantizer

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "dimension": 16, "n_filters": 4, "n_residual_layers": 1, "ratios": [8, 5, 4, 2], "norm": "weight_norm",
        "lstm": 2, **changes,
    }  # fmt: skip
    codec = wrappers.EncodecModel(
        SEANetEncoder(**shape),
        SEANetDecoder(**shape),
        ResidualVectorQuantizer(dimension=16, n_q=4, bins=64),
        frame_rate=math.ceil(16_000 / math.prod(shape["ratios"])),
        sample_rate=16_000,
        channels=1,
    ).eval()
    for name, parameter in codec.decoder.named_parameters():
        if name.endswith("weight_g"):
            parameter.data *= 1.5
    for layer in codec.quantizer.vq.layers:
        layer._codebook.embed.normal_()
    return codec


@OLD_WEIGHT_NORM
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"causal": True, "norm": "none", "lstm": 1},
        {"n_residual_layers": 3, "true_skip": False, "dilation_base": 3, "pad_mode": "constant"},
        {"causal": True, "ratios": [5, 4, 2], "disable_norm_outer_blocks": 2},
    ],
)
def test_audiocrafts_own_codecs_are_decoded_in_blocks(wrappers: Any, changes: dict[str, Any]) -> None:
    codec = seanet(wrappers, **changes)
    codes = random_codes(codec, 60)
    chunk_codec = make_codec(codec)
    assert isinstance(chunk_codec, StreamingCodec)
    assert_equal_to_whole(codec, codes, in_pieces(chunk_codec, codes, [9, 20]))
    stereo = wrappers.InterleaveStereoCompressionModel(codec)
    codes = random_codes(stereo, 60)
    assert_equal_to_whole(stereo, codes, in_pieces(make_codec(stereo), codes, [9, 20]))


@OLD_WEIGHT_NORM
@pytest.mark.parametrize("changes", [{"lstm": 0}, {"norm": "time_group_norm"}])
def test_an_unsupported_codec_decodes_everything_at_once(wrappers: Any, changes: dict[str, Any]) -> None:
    codec = seanet(wrappers, **changes)
    chunk_codec = make_codec(codec)
    assert isinstance(chunk_codec, WholeCodec)
    codes = random_codes(codec, 30)
    decoder = chunk_codec.new_decoder()
    assert decoder.feed(codes[:, :20]).shape == (1, 0)
    assert np.array_equal(decoder.feed(codes[:, 20:], final=True), whole(codec, codes))


def test_channels_interleaved_in_time_are_decoded_at_once(mono: Any, wrappers: Any) -> None:
    codec = wrappers.InterleaveStereoCompressionModel(mono, per_timestep=True)
    chunk_codec = make_codec(codec)
    codes = random_codes(codec, 10)
    assert np.array_equal(chunk_codec.new_decoder().feed(codes, final=True), whole(codec, codes))
    assert chunk_codec.feed_many([(chunk_codec.new_decoder(), codes, True)])[0].shape[0] == 2
