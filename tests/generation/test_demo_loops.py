"""Loops of the demo model, which plays at the tempo of its caption: the whole path, from the command to the file."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from audiocraft_api.audio.beats import track_beats
from audiocraft_api.audio.looping import LoopShape
from audiocraft_api.config import Config
from audiocraft_api.core.errors import NoLoop
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.engine.create import create_engine
from audiocraft_api.generation.command import GenerateCommand, Progress
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.model import demo
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.model.stem_separators import StemSeparators
from audiocraft_api.storage.local import LocalStore
from support.loops import assert_no_jump

PROMPT = "house track, organ, deep synth bass, drums"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GenerationService]:
    directory = tmp_path_factory.mktemp("demo")
    demo.build("demo", directory)
    config = Config(checkpoints_dir=directory, audio_dir=directory / "audio", device="cpu")
    catalog = Catalog(config)
    models = ModelCache(catalog, config)
    engine = create_engine(models, config)
    store = LocalStore(config.storage)
    yield GenerationService(engine, store, StemSeparators(catalog, config.models), config)
    engine.close()
    models.close()
    store.close()


def command(bpm: int, bars: int, candidates: int, prompt: str = PROMPT) -> GenerateCommand:
    shape = LoopShape(bpm, bars, 4)
    return GenerateCommand(
        prompt, "demo", shape.seconds, "flac", seed=1, bpm=bpm, loop=True, bars=bars, candidates=candidates
    )


@pytest.mark.parametrize(("bpm", "prompt"), [(94, PROMPT), (110, PROMPT), (125, "lo-fi beat, piano, bass, drums")])
def test_a_loop_has_the_exact_length_no_jump_and_beats_that_go_on(
    service: GenerationService, bpm: int, prompt: str
) -> None:
    progress = Progress()
    made = service.generate_file(command(bpm, 2, 2, prompt), Waiter(), progress)
    shape = LoopShape(bpm, 2, 4)
    with service._store.open(made.filename).file as file:
        samples, rate = soundfile.read(io.BytesIO(file.read()), dtype="float32", always_2d=True)
    loop = samples.T
    assert loop.shape == (1, round(8 * 60 * rate / bpm))
    assert_no_jump(loop, rate, shape)
    beats = track_beats(np.tile(loop[0], 3), rate, bpm)
    for seam in (shape.seconds, 2 * shape.seconds):
        assert np.abs(beats - seam).min() < 0.04  # where the loop begins again
    assert np.diff(beats[1:-1]) == pytest.approx(60 / bpm, abs=0.05)
    done, total = progress.frames
    assert done == total == 50 * 2 * shape.generated_seconds
    assert made.recipe.loop is not None
    assert 0.97 <= made.recipe.loop["stretch"] <= 1.03


def test_a_tempo_that_the_model_does_not_play_is_an_error(service: GenerationService) -> None:
    with pytest.raises(NoLoop, match=r"within 3 % of 100 bpm\. Measured tempi in bpm: [0-9.]+, [0-9.]+\. Try"):
        service.generate_bytes(command(100, 1, 2), Waiter())
