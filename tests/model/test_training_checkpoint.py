"""Fine-tuned models as audiocraft's trainer and its export leave them: the same model, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from audiocraft_api.config import Config
from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.model import demo, hub, released_configuration
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.checkpoint import build_codec
from audiocraft_api.model.checkpoint_file import _configuration_types
from audiocraft_api.model.loading import load_model
from audiocraft_api.model.model_cache import ModelCache

NAME = "mine"
CODEC = "compression_state_dict.bin"
PRETRAINED = f"//pretrained/{demo.CODEC_ID}"
OWN_CODEC = "//sig/0123abcd/checkpoint.th"


def catalog_of(directory: Path, **entry: Any) -> tuple[Catalog, Config]:
    path = directory.parent / "models.json"
    path.write_text(json.dumps({NAME: {"checkpoint": str(directory), **entry}}))
    config = Config(models_file=path, checkpoints_dir=directory.parent / "none", offline=True, device="cpu")
    return Catalog(config), config


def load(directory: Path, **entry: Any) -> Any:
    catalog, config = catalog_of(directory, **entry)
    return load_model(catalog.get(NAME), catalog, config)


def refusal(directory: Path, **entry: Any) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load(directory, **entry)
    return caught.value.message


def solver_state(demo: Path, codec: str | None = PRETRAINED) -> dict[str, Any]:
    """Return the state of a solver of audiocraft (`solvers/base.py`) for the language model of a demo checkpoint.

    Its best weights are those of the demo checkpoint; the latest ones are others.
    """
    package = torch.load(demo / "state_dict.bin", weights_only=True)
    config = OmegaConf.create(package["xp.cfg"])
    config.solver, config.logging = "musicgen", {"level": "INFO", "lr": [1e-4, 2e-4], "name": None, "on": True}
    if codec is not None:
        config.compression_model_checkpoint = codec
    OmegaConf.set_struct(config, True)
    latest = {name: tensor + 1 for name, tensor in package["best_state"].items()}
    return {
        "xp.cfg": config,
        "xp.sig": "5df74dbb",
        "history": [{"train": {"ce": 4.2, "epoch": 1}}],
        "best_state": {"model": package["best_state"]},
        "fsdp_best_state": {},
        "model": latest,
        "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    }


@pytest.fixture
def directory(demo_checkpoints: Path, tmp_path: Path) -> Path:
    """A directory with a trainer's checkpoint, and with the parts that it names in its hub cache."""
    shutil.copytree(demo_checkpoints / "demo" / "hub", tmp_path / NAME / "hub")
    torch.save(solver_state(demo_checkpoints / "demo"), tmp_path / NAME / "checkpoint.th")
    return tmp_path / NAME


def resave(directory: Path, change: Callable[[dict[str, Any]], None], name: str = "checkpoint.th") -> None:
    with torch.serialization.safe_globals(_configuration_types()):
        state = torch.load(directory / "checkpoint.th", weights_only=True)
    change(state)
    torch.save(state, directory / name)


def codes(model: Any) -> torch.Tensor:
    params = GenerationParams(NAME, "slow piano", 0.5, seed=5)
    return torch.as_tensor(model.generate_codes(params, lambda _done, _total: None))


def demo_codes(demo_checkpoints: Path) -> torch.Tensor:
    config = Config(checkpoints_dir=demo_checkpoints, offline=True, device="cpu")
    return codes(load_model(Catalog(config).get("demo"), Catalog(config), config))


def test_a_trainers_checkpoint_gives_its_best_weights_with_the_released_codec(
    directory: Path, demo_checkpoints: Path
) -> None:
    model = load(directory)
    assert torch.equal(codes(model), demo_codes(demo_checkpoints))
    catalog, config = catalog_of(directory)
    assert ModelCache(catalog, config).known_revision(NAME) == model.revision


def test_a_pair_that_audiocraft_exported_gives_the_same_model(directory: Path, demo_checkpoints: Path) -> None:
    from audiocraft.utils import export

    with torch.serialization.safe_globals(_configuration_types()):
        export.export_lm(directory / "checkpoint.th", directory / "state_dict.bin")
    export.export_pretrained_compression_model(demo.CODEC_ID, directory / CODEC)
    (directory / "checkpoint.th").unlink()
    assert torch.equal(codes(load(directory)), demo_codes(demo_checkpoints))


def test_weights_of_sharded_training_come_first(directory: Path, demo_checkpoints: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        state["fsdp_best_state"] = state["best_state"]
        state["best_state"] = {"model": state["model"]}

    resave(directory, change)
    assert torch.equal(codes(load(directory)), demo_codes(demo_checkpoints))


def test_before_the_first_evaluation_the_latest_weights_are_used(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resave(directory, lambda state: state.update(best_state={}))
    assert load(directory).lm.emb[0].weight.abs().mean() > 0.5  # each is one higher than the best
    assert "checkpoint.th contains no best weights yet" in caplog.text


def test_the_file_may_have_another_name_if_it_is_the_only_one(directory: Path) -> None:
    (directory / "checkpoint.th").rename(directory / "checkpoint_20.th")
    assert load(directory)
    shutil.copy(directory / "checkpoint_20.th", directory / "checkpoint_30.th")
    message = refusal(directory)
    assert "contains checkpoint_20.th, checkpoint_30.th. Rename one of them to checkpoint.th" in message


def test_the_codec_in_the_directory_comes_first_in_either_format(directory: Path) -> None:
    configuration = released_configuration.audiogen_codec_configuration(num_filters=2, dimension=8)
    configuration |= {"solver": "compression", "sample_rate": 32_000}
    configuration["seanet"]["ratios"] = [8, 5, 4, 4]
    config = OmegaConf.create(configuration)
    state = build_codec(config).state_dict()
    resave(directory, lambda state: state["xp.cfg"].update(compression_model_checkpoint=OWN_CODEC))
    packages = (
        {"xp.cfg": OmegaConf.to_yaml(config), "best_state": state, "exported": True},
        {"xp.cfg": config, "best_state": {"model": state}, "model": state, "xp.sig": "0123abcd"},
    )
    waveforms = []
    for package in packages:
        torch.save(package, directory / CODEC)
        waveforms.append(load(directory).decode_codes(torch.ones(1, 4, 20, dtype=torch.long)))
    assert torch.equal(*waveforms)
    assert waveforms[0].shape == (1, 20 * 640)


@pytest.mark.parametrize("reference", [OWN_CODEC, None])
def test_a_codec_that_is_not_there_is_named_with_the_file_to_add(
    directory: Path, demo_checkpoints: Path, reference: str | None
) -> None:
    torch.save(solver_state(demo_checkpoints / "demo", reference), directory / "checkpoint.th")
    message = refusal(directory)
    assert f"mine contains no {CODEC}" in message
    assert f"Add the codec as {CODEC}" in message
    assert (OWN_CODEC in message) == (reference is not None)


def test_a_checkpoint_of_a_codec_is_no_language_model(directory: Path) -> None:
    configuration = released_configuration.audiogen_codec_configuration(num_filters=2, dimension=8)
    config = OmegaConf.create(configuration | {"solver": "compression"})
    state = {"xp.cfg": config, "best_state": {"model": build_codec(config).state_dict()}}
    expected = "checkpoint.th contains a codec, not a language model. Name it compression_state_dict.bin"
    resave(directory, lambda _state: None, CODEC)
    assert "compression_state_dict.bin contains a language model, not a codec" in refusal(directory)
    torch.save(state, directory / "checkpoint.th")
    (directory / CODEC).unlink()
    assert expected in refusal(directory)
    torch.save({"pretrained": demo.CODEC_ID}, directory / CODEC)
    assert expected in refusal(directory)


def _without_configuration(state: dict[str, Any]) -> None:
    del state["xp.cfg"]


def _without_weights(state: dict[str, Any]) -> None:
    del state["model"]
    state["best_state"] = {}


def _of_lightning(state: dict[str, Any]) -> None:
    state["pytorch-lightning_version"] = "1.9.0"


def _with_other_shapes(state: dict[str, Any]) -> None:
    state["best_state"]["model"]["emb.0.weight"] = torch.zeros(3, 3)


def _with_another_condition(state: dict[str, Any]) -> None:
    OmegaConf.set_struct(state["xp.cfg"], False)
    state["xp.cfg"].conditioners.genre = {"model": "lut", "lut": {"n_bins": 10, "dim": 4, "tokenizer": "noop"}}


class _Unknown:
    """A class of somebody's trainer."""


def _with_an_object(state: dict[str, Any]) -> None:
    state["trainer"] = _Unknown()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_without_configuration, "contains weights, but no training configuration (xp.cfg)"),
        (_without_weights, "neither best_state nor model"),
        (_of_lightning, "saved by PyTorch Lightning and not by audiocraft. Convert it"),
        (_with_other_shapes, "checkpoint.th does not contain this model's weights (size mismatch for emb.0.weight"),
        (_with_another_condition, "checkpoint.th needs 'genre' beside a text and a melody"),
        (_with_an_object, "is not loaded, for safety (it contains a test_training_checkpoint._Unknown)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_reason(
    directory: Path, change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    resave(directory, change)
    torch.save({"pretrained": demo.CODEC_ID}, directory / CODEC)
    message = refusal(directory)
    assert expected in message
    assert "checkpoint.th" in message


def test_a_directory_without_a_model_lists_what_it_may_contain(directory: Path) -> None:
    (directory / "checkpoint.th").unlink()
    message = refusal(directory)
    for name in ("state_dict.bin", "checkpoint.th", "config.json"):
        assert name in message
    (directory / "adapter_config.json").write_text("{}")
    assert "contains a LoRA adapter only. Merge it into its model" in refusal(directory)


def test_a_pinned_sum_is_compared_with_the_trainers_checkpoint(directory: Path) -> None:
    assert "checkpoint.th has the SHA-256" in refusal(directory, sha256="0" * 64)


def test_a_repository_of_the_hub_may_contain_a_trainers_checkpoint_only(directory: Path, tmp_path: Path) -> None:
    from audiocraft_api.model import demo

    def copy(target: Path) -> None:
        shutil.copy(directory / "checkpoint.th", target)

    demo.add_repository(tmp_path, "someone/blues", copy)
    found = hub.Hub(tmp_path, offline=True).snapshot("someone/blues", hub.CHECKPOINT)
    assert (found / "checkpoint.th").is_file()
