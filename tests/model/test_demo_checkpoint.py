"""The demo checkpoints: complete, small, reproducible, and with the interface of the released models.

The untrained ones serve as the models of most tests.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from audiocraft_api.config import load_config
from audiocraft_api.model import demo
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.loading import load_model
from bench import untrained


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", demo.NAMES)
def test_a_checkpoint_is_made_with_the_same_bytes_each_time(name: str, demo_checkpoints: Path, tmp_path: Path) -> None:
    assert contents(demo.build(name, tmp_path, untrained.write)) == contents(demo_checkpoints / name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demo checkpoints as the service makes them."""
    directory = tmp_path_factory.mktemp("trained")
    for name in demo.NAMES:
        demo.build(name, directory)
    return directory


@pytest.mark.parametrize("name", demo.NAMES)
def test_a_trained_checkpoint_is_expanded_to_the_same_bytes_each_time(name: str, trained: Path, tmp_path: Path) -> None:
    assert contents(demo.build(name, tmp_path)) == contents(trained / name)


def test_the_numbers_that_ship_and_the_checkpoints_are_small(trained: Path) -> None:
    assert sum(path.stat().st_size for path in demo.DATA.iterdir()) < 20e6
    for name in demo.NAMES:
        assert sum(path.stat().st_size for path in (trained / name).rglob("*") if path.is_file()) < 30e6


def test_an_existing_checkpoint_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert list(demo.build("demo", tmp_path).iterdir()) == []


def test_two_threads_can_make_the_same_checkpoint_at_once(tmp_path: Path, demo_checkpoints: Path) -> None:
    threads = [threading.Thread(target=demo.build, args=("demo", tmp_path, untrained.write)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert contents(tmp_path / "demo") == contents(demo_checkpoints / "demo")


@pytest.mark.parametrize("name", demo.NAMES)
def test_the_loader_makes_a_missing_demo_checkpoint(name: str, tmp_path: Path) -> None:
    config = load_config({}, checkpoints_dir=tmp_path / "new", offline=True)
    catalog = Catalog(config)
    assert load_model(catalog.get(name), catalog, config).num_codebooks == (8 if name == "demo-stereo" else 4)
    assert (tmp_path / "new" / name / "state_dict.bin").is_file()


def test_the_command_makes_all_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in demo.NAMES:
        (tmp_path / name).mkdir()
    monkeypatch.setattr("sys.argv", ["demo", str(tmp_path)])
    demo.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed == {name: str(tmp_path / name) for name in demo.NAMES}


@pytest.mark.parametrize(("name", "num_codebooks"), [("demo", 4), ("demo-melody", 4), ("demo-stereo", 8)])
def test_a_checkpoint_has_the_released_interface_and_decodes_without_clipping(
    name: str, num_codebooks: int, trained: Path
) -> None:
    import torch

    config = load_config({}, checkpoints_dir=trained, offline=True, device="cpu")
    catalog = Catalog(config)
    model = load_model(catalog.get(name), catalog, config)
    assert (model.sample_rate, model.frame_rate, model.codebook_size, model.special_token_id) == (
        32_000,
        50,
        2048,
        2048,
    )
    assert (model.num_codebooks, model.max_window_frames, model.channels) == (num_codebooks, 1500, num_codebooks // 4)
    delays = [0, 0, 1, 1, 2, 2, 3, 3] if name == "demo-stereo" else [0, 1, 2, 3]
    assert list(model.lm.pattern_provider.delays) == delays
    codes = torch.randint(0, 2048, (1, num_codebooks, 500), generator=torch.Generator().manual_seed(1))
    waveform = model.decode_codes(codes)
    assert waveform.shape == (num_codebooks // 4, 500 * 640)
    assert waveform.abs().max() < 1
    assert 0.05 < waveform.std() < 0.4
