"""Separating audio into stems: what the separator does, how it is loaded, and how a separation is bounded and stopped.

The separators are HTDemucs, of demucs' own class, and small: that of the demo models, and one with random weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import demucs.apply
import numpy as np
import pytest
import torch
from demucs.audio import convert_audio
from demucs.htdemucs import HTDemucs

from audiocraft_api.config import Config
from audiocraft_api.core.errors import Canceled, ModelUnavailable
from audiocraft_api.core.params import Waveform
from audiocraft_api.core.separation import STEMS
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.model import demo, demo_separator, separator
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.stem_separators import DEMO_DIRECTORY, StemSeparators
from bench.untrained import draw

RATE = 32_000


def separators(directory: Path, **settings: Any) -> StemSeparators:
    config = Config(checkpoints_dir=directory, offline=True, device="cpu", **settings)
    return StemSeparators(Catalog(config), config.models)


@pytest.fixture(scope="module")
def random_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A separator with both branches, a transformer and random weights."""
    arguments = demo_separator.ARGUMENTS | {"channels": 8, "channels_time": 8, "depth": 4, "t_layers": 1, "t_heads": 2}
    model = HTDemucs(**arguments).eval()
    draw(model, 1, {})
    path = tmp_path_factory.mktemp("random")
    demo_separator.save_separator(path, model, arguments)
    return path


def music(seconds: float, num_channels: int) -> Waveform:
    """Return a low note, a middle one, and high-pitched noise once a second."""
    times = np.arange(round(seconds * RATE)) / RATE
    noise = np.diff(np.random.default_rng(1).normal(0, 0.1, len(times) + 1), n=1) * np.exp(-20 * (times % 1))
    mono = 0.2 * np.sin(2 * np.pi * 80 * times) + 0.2 * np.sin(2 * np.pi * 880 * times) + noise
    return np.stack([mono, 0.5 * mono])[:num_channels].astype(np.float32)


def separate(
    found: StemSeparators, mix: Waveform, model: str = "demo", waiter: Waiter | None = None
) -> dict[str, Waveform]:
    return dict(found.separate(mix, RATE, model, waiter or Waiter(), lambda _part: None).stems)


@pytest.mark.parametrize("num_channels", [1, 2])
def test_stems_add_up_to_the_mix_and_have_its_shape(separator_directory: Path, num_channels: int) -> None:
    mix = music(1.5, num_channels)
    stems = separate(separators(separator_directory), mix)
    assert tuple(stems) == STEMS
    assert all(stem.shape == mix.shape and stem.dtype == np.float32 for stem in stems.values())
    np.testing.assert_allclose(sum(stems.values()), mix, atol=1e-6)


def test_stems_of_any_weights_add_up_better_than_what_the_separator_returns(random_directory: Path) -> None:
    mix = music(1.5, 2)
    found = separators(random_directory.parent, separator=str(random_directory))
    stems = separate(found, mix, "small")
    network = separator.load(random_directory)
    raw = demucs.apply.apply_model(network, convert_audio(torch.from_numpy(mix)[None], RATE, 44_100, 2), shifts=0)
    returned = convert_audio(raw.sum(1), 44_100, RATE, 2)[0].numpy()
    own_error = np.abs(returned - mix).max()
    assert own_error > 1e-3
    assert np.abs(sum(stems.values()) - mix).max() <= own_error / 100
    for index, name in enumerate(network.sources):
        if name != "other":  # which gets what the separator left out
            wanted = convert_audio(raw[:, index], 44_100, RATE, 2)[0].numpy()
            np.testing.assert_allclose(stems[name], wanted, atol=1e-6)


def test_the_demo_separator_tells_low_notes_from_high_noise(separator_directory: Path) -> None:
    stems = separate(separators(separator_directory), music(2, 1))
    loudest = {}
    for name in ("drums", "bass", "other"):
        spectrum = np.abs(np.fft.rfft(stems[name][0]))
        loudest[name] = float(np.argmax(spectrum)) / 2
    assert loudest["bass"] == pytest.approx(80, abs=1)
    assert loudest["other"] == pytest.approx(880, abs=1)
    assert loudest["drums"] > 5000
    assert np.sqrt(np.mean(stems["vocals"] ** 2)) < 1e-3


def test_equal_audio_has_equal_stems(separator_directory: Path) -> None:
    mix = music(1, 1)
    first, second = (separate(separators(separator_directory), mix) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in STEMS)


def test_the_files_of_the_demo_separator_are_the_same_each_time(separator_directory: Path, tmp_path: Path) -> None:
    again = demo.build(DEMO_DIRECTORY, tmp_path, demo_separator.write)
    first, second = (
        {path.name: path.read_bytes() for path in directory.iterdir()}
        for directory in (again, separator_directory / DEMO_DIRECTORY)
    )
    assert set(first) == {"demo.safetensors", "htdemucs.yaml"}
    assert first == second


def test_the_separator_of_released_models_is_that_of_melody_models() -> None:
    assert Config().models.separator == separator.RELEASED_ID


def test_a_missing_separator_is_reported_as_a_missing_model_is(separator_directory: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"adefossez/HTDemucs is not on this machine.* offline"):
        separators(separator_directory).prepare("small", Waiter())


def test_files_of_another_kind_are_not_loaded(separator_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "htdemucs.yaml").write_text("models: [demo]\n")
    (tmp_path / "demo.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelUnavailable, match="its files are damaged"):
        separators(separator_directory, separator=str(tmp_path)).prepare("small", Waiter())


def test_a_directory_without_a_separator_is_not_one(separator_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="its files cannot be read"):
        separators(separator_directory, separator=str(tmp_path)).prepare("small", Waiter())


def test_a_separator_is_loaded_once_and_again_after_it_was_unloaded(
    separator_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = separators(separator_directory)
    with caplog.at_level("INFO"):
        threads = [threading.Thread(target=found.prepare, args=("demo", Waiter())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert caplog.text.count("Loaded the separator") == 1
        found.unload()
        found.prepare("demo", Waiter())
    assert caplog.text.count("Loaded the separator") == 2


class Stopping:
    """Is true from the `after`-th time on, and counts."""

    def __init__(self, after: int) -> None:
        self.num_times, self._after = 0, after

    def __call__(self) -> bool:
        self.num_times += 1
        return self.num_times >= self._after


def test_a_separation_reports_its_progress_and_stops_between_segments(separator_directory: Path) -> None:
    found, mix = separators(separator_directory), music(7, 1)  # four segments
    parts: list[float] = []
    found.separate(mix, RATE, "demo", Waiter(), parts.append)
    assert parts == [0, 0.25, 0.5, 0.75, 1]

    parts.clear()
    with pytest.raises(Canceled):
        found.separate(mix, RATE, "demo", Waiter(Stopping(after=3)), parts.append)
    assert parts == [0, 0.25]


@pytest.fixture
def busy(separator_directory: Path) -> Iterator[StemSeparators]:
    """Separators with a separation that runs until the end of the test."""
    found, begun, done = separators(separator_directory), threading.Event(), threading.Event()

    def wait(_part: float) -> None:
        begun.set()
        done.wait()

    thread = threading.Thread(target=found.separate, args=(music(0.5, 1), RATE, "demo", Waiter(), wait))
    thread.start()
    begun.wait()
    yield found
    done.set()
    thread.join()


def test_a_separation_that_waits_for_another_one_can_be_canceled(busy: StemSeparators) -> None:
    parts: list[float] = []
    with pytest.raises(Canceled):
        busy.separate(music(0.5, 1), RATE, "demo", Waiter(Stopping(after=2)), parts.append)
    assert parts == []
