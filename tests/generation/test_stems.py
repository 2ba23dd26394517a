"""Stems in the generation service: progress, cancellation, and files that cannot be stored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiocraft_api.config import Config
from audiocraft_api.core.errors import AudioCraftError, Canceled, StorageUnavailable
from audiocraft_api.core.params import Waveform
from audiocraft_api.core.separation import Separation
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import GenerateCommand, Progress
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.stem_separators import StemSeparators
from audiocraft_api.storage.base import StoredAudio
from audiocraft_api.storage.local import LocalStore
from support.fakes import FRAME_RATE, FakeEngine

SECONDS = 7  # four segments of the separator
COMMAND = GenerateCommand("solo cello", "demo", SECONDS, stems=True)


class PausedSeparators(StemSeparators):
    """Separators that pause before the second segment."""

    def __init__(self, catalog: Catalog, config: Config) -> None:
        super().__init__(catalog, config.models)
        self.paused, self.resumed = threading.Event(), threading.Event()
        self.parts: list[float] = []

    def separate(
        self, waveform: Waveform, sample_rate: int, model: str, waiter: Waiter, advance: Callable[[float], None]
    ) -> Separation:
        def at_segment(part: float) -> None:
            advance(part)
            self.parts.append(part)
            if len(self.parts) == 2:
                self.paused.set()
                self.resumed.wait()

        return super().separate(waveform, sample_rate, model, waiter, at_segment)


class ShortStore(LocalStore):
    """A store that has room for three files."""

    num_saved = 0

    def save(self, *arguments: Any, **options: Any) -> StoredAudio:
        self.num_saved += 1
        if self.num_saved > 3:
            raise StorageUnavailable("The disk is full.")
        return super().save(*arguments, **options)


@pytest.fixture
def config(tmp_path: Path, separator_directory: Path) -> Config:
    return Config(audio_dir=tmp_path, checkpoints_dir=separator_directory)


def test_progress_counts_frames_twice_and_a_cancellation_stops_between_segments(config: Config, tmp_path: Path) -> None:
    separators = PausedSeparators(Catalog(config), config)
    service = GenerationService(FakeEngine(), LocalStore(config.storage), separators, config)
    canceled, progress, errors = threading.Event(), Progress(), []

    def generate() -> None:
        try:
            service.generate_file(COMMAND, Waiter(canceled.is_set), progress)
        except AudioCraftError as error:
            errors.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    separators.paused.wait()
    num_frames = SECONDS * FRAME_RATE
    assert progress.frames == (num_frames + round(num_frames / 4), 2 * num_frames)
    canceled.set()
    separators.resumed.set()
    thread.join()
    assert isinstance(errors[0], Canceled)
    assert separators.parts == [0, 0.25]
    assert not list(tmp_path.iterdir())


def test_progress_ends_with_all_frames(config: Config) -> None:
    separators, progress = StemSeparators(Catalog(config), config.models), Progress()
    service = GenerationService(FakeEngine(), LocalStore(config.storage), separators, config)
    service.generate_file(GenerateCommand("solo cello", "demo", 1.0, stems=True, n=2), Waiter(), progress)
    assert progress.frames == (4 * FRAME_RATE, 4 * FRAME_RATE)


def test_stems_that_cannot_be_stored_leave_no_files(config: Config, tmp_path: Path) -> None:
    separators = StemSeparators(Catalog(config), config.models)
    service = GenerationService(FakeEngine(), ShortStore(config.storage), separators, config)
    with pytest.raises(StorageUnavailable):
        service.generate_file(GenerateCommand("solo cello", "demo", 1.0, stems=True), Waiter())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
