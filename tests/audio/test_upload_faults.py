"""Damaged and hostile uploads: each ends in a waveform or a refusal, at bounded cost."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from audiocraft_api.core.errors import InvalidMelody
from support import hostile_audio, hostile_containers, recordings
from support.scripts import run_support
from support.uploads import make_decoder

NUM_MUTATIONS = 10_000
NUM_MUTATED_UPLOADS = 16
MAX_CPU_SECONDS = 4.0  # the decoder's limit of 3, and starting it
MAX_BYTES = 200e6


def seeds(directory: Path) -> list[bytes]:
    """Return a short recording of each kind, mono and stereo."""
    tones = [hostile_audio.tone(0.6, 16_000, channels) for channels in (1, 2)]
    return [data for tone in tones for data in recordings.record(directory, tone, 16_000).values()]


@pytest.mark.fault
def test_many_mutated_files_end_in_a_waveform_or_a_refusal(tmp_path: Path) -> None:
    """One process decodes all of them, so that a single crash, or a leak beyond the memory limit, fails."""
    packed = tmp_path / "packed"
    with open(packed, "wb") as file:
        for data in hostile_audio.mutations(seeds(tmp_path), NUM_MUTATIONS, seed=20):
            file.write(struct.pack("<Q", len(data)) + data)

    report = run_support("decode_many.py", packed)

    print(f"faults survived: {NUM_MUTATIONS}/{NUM_MUTATIONS} ({report})")
    assert sum(report["causes"].values()) == NUM_MUTATIONS
    assert report["causes"]["decoded"] > NUM_MUTATIONS / 5  # the mutations reach the decoders
    assert report["num_wrong"] == 0
    assert report["slowest_seconds"] < 3.0
    assert report["peak_bytes"] < MAX_BYTES


def test_mutated_uploads_to_the_real_decoder_end_in_a_waveform_or_a_refusal(
    tmp_path: Path, temporary_directory: Path
) -> None:
    decoder = make_decoder()
    originals = seeds(tmp_path)

    def outcome(data: bytes) -> str:
        try:
            waveform = decoder.decode(io.BytesIO(data)).waveform
        except InvalidMelody as refused:
            return refused.code
        assert np.isfinite(waveform).all()
        return "decoded"

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, hostile_audio.mutations(originals, NUM_MUTATED_UPLOADS, seed=21)))

    assert len(outcomes) == NUM_MUTATED_UPLOADS
    assert "decoded" in outcomes
    assert not list(temporary_directory.iterdir())


def assert_refused_at_little_cost(directory: Path, bombs: dict[str, bytes], **decoded: str) -> None:
    """Decode `bombs` as the service does: all are refused, except those in `decoded`, which has their shapes."""
    directory = directory / "bombs"
    directory.mkdir()
    for name, data in bombs.items():
        (directory / name).write_bytes(data)
    report = run_support("decode_uploads.py", directory)
    outcomes = {name: outcome["outcome"] for name, outcome in report["outcomes"].items()}
    assert outcomes == dict.fromkeys(bombs, "invalid_melody") | decoded
    assert max(outcome["cpu_seconds"] for outcome in report["outcomes"].values()) < MAX_CPU_SECONDS
    assert report["peak_bytes"]["children"] < MAX_BYTES
    assert report["peak_bytes"]["own"] < MAX_BYTES


@pytest.mark.timing
def test_hostile_containers_are_refused_at_little_cost(tmp_path: Path) -> None:
    bombs = hostile_containers.bombs(tmp_path)
    assert len(bombs) >= 12
    assert_refused_at_little_cost(tmp_path, bombs)


@pytest.mark.fault
def test_decompression_bombs_are_refused_at_little_cost(tmp_path: Path) -> None:
    minute = hostile_audio.tone(60.0, 48_000, 2)
    bombs = hostile_audio.bombs() | {"a minute": hostile_audio.audio_file(minute, 48_000, "WAV", "PCM_16")}
    assert len(bombs) >= 40
    one_block = {"FLAC that claims 2^36 frames": "decoded 1x65535"}  # whatever its header claims
    assert_refused_at_little_cost(tmp_path, bombs, **one_block, **{"a minute": "decoded 2x2880000"})
    print(f"faults survived: {len(bombs)}/{len(bombs)} (bombs)")
