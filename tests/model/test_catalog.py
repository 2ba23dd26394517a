"""The catalog of models: names, sizes, licenses, and the file that adds more models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audiocraft_api.config import ConfigError, load_config
from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.model import demo
from audiocraft_api.model.catalog import DEMO_NOTICE, Catalog


def catalog(**settings: Any) -> Catalog:
    return Catalog(load_config({}, **settings))


def models_file(directory: Path, content: Any) -> Path:
    path = directory / "models.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_released_models_are_known_by_their_public_names() -> None:
    specs = {spec.name: spec for spec in catalog()}
    for name in ("small", "medium", "large", "melody", "melody-large", "stereo-small", "stereo-melody"):
        assert specs[name].checkpoint == f"facebook/musicgen-{name}"
        assert specs[name].licence == "CC-BY-NC-4.0"
        assert not specs[name].commercial_use
        assert specs[name].melody == ("melody" in name)


def test_descriptions_of_demo_models_say_how_they_were_made() -> None:
    for spec in catalog():
        assert (DEMO_NOTICE in spec.description) == (spec.name in demo.NAMES)


@pytest.mark.parametrize(
    ("size", "name"),
    [("medium", "melody"), ("large", "melody-large"), ("demo", "demo-melody"), ("melody", "melody")],
)
def test_a_public_size_selects_a_melody_checkpoint(size: str, name: str) -> None:
    assert catalog().melody_checkpoint(size).name == name


@pytest.mark.parametrize("size", ["small", "demo-stereo", "huge"])
def test_a_size_without_a_melody_checkpoint_is_refused_with_a_list_of_sizes(size: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        catalog().melody_checkpoint(size)
    assert list(caught.value.errors) == ["model_size"]
    assert repr(size) in caught.value.message
    names = "medium, large, demo, melody, melody-large, stereo-melody, stereo-melody-large, demo-melody"
    assert names in caught.value.message


def test_an_unknown_model_is_refused_with_a_list_of_models() -> None:
    with pytest.raises(InvalidRequest) as caught:
        catalog().get("../small")
    assert caught.value.errors == {"model_size": [caught.value.message]}
    assert "small, medium, large" in caught.value.message


def test_non_commercial_weights_are_refused_if_the_settings_forbid_them() -> None:
    models = catalog(allow_non_commercial=False)
    for choose in (models.get, models.melody_checkpoint):
        with pytest.raises(InvalidRequest, match=r"CC-BY-NC-4\.0") as caught:
            choose("medium")
        assert "model_size" in caught.value.errors
    assert models.get("demo").name == "demo"
    assert [spec.name for spec in models if models.is_allowed(spec)] == ["demo", "demo-melody", "demo-stereo"]


def test_a_file_adds_models_and_changes_built_in_ones(tmp_path: Path) -> None:
    path = models_file(
        tmp_path,
        {
            "mine": {"checkpoint": "someone/mine", "revision": "abc", "melody": True, "licence": "MIT"},
            "small": {"revision": "0123"},
            "large": {"checkpoint": "someone/large"},
        },
    )
    models = catalog(models_file=path)
    mine, small, large = (models.get(name) for name in ("mine", "small", "large"))
    assert (mine.checkpoint, mine.revision, mine.licence, mine.commercial_use) == ("someone/mine", "abc", "MIT", False)
    assert models.melody_checkpoint("mine") == mine
    assert (small.checkpoint, small.revision) == ("facebook/musicgen-small", "0123")
    assert (large.checkpoint, large.licence) == ("someone/large", "unknown")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not valid at the whole file"),
        ('["small"]', "not valid at the whole file"),
        ({"mine": {"checkpoint": "a/b", "colour": 1}}, "mine.colour"),
        ({"mine": {"checkpoint": "a/b", "channels": 7}}, "mine.channels"),
        ({"mine": {"checkpoint": "a/b", "melody": "yes"}}, "mine.melody"),
        ({"mine": {}}, "names no checkpoint for 'mine'"),
        ({"../mine": {"checkpoint": "a/b"}}, "the model name '../mine'"),
    ],
)
def test_an_invalid_file_prevents_the_start_with_a_message(tmp_path: Path, content: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=r"models\.json") as caught:
        catalog(models_file=models_file(tmp_path, content))
    assert expected in str(caught.value)


def test_a_missing_file_prevents_the_start_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        catalog(models_file=tmp_path / "none.json")


def test_a_local_directory_with_the_models_name_takes_precedence_over_the_hub(tmp_path: Path) -> None:
    models = catalog(checkpoints_dir=tmp_path)
    assert models.local_directory(models.get("small")) is None
    (tmp_path / "small").mkdir()
    assert models.local_directory(models.get("small")) == tmp_path / "small"


def test_a_checkpoint_can_be_a_directory(tmp_path: Path) -> None:
    path = models_file(tmp_path, {"mine": {"checkpoint": str(tmp_path)}})
    models = catalog(models_file=path, checkpoints_dir=tmp_path / "none")
    assert models.local_directory(models.get("mine")) == tmp_path


def test_importing_the_cache_and_the_catalog_does_not_import_torch() -> None:
    code = (
        "import sys, audiocraft_api.model.model_cache, audiocraft_api.engine.plain, audiocraft_api.model.demo\n"
        "assert not {'torch', 'audiocraft', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_audiogen_makes_sound_effects_with_limits_of_its_own() -> None:
    spec = catalog().get("audiogen-medium")
    assert spec.checkpoint == "facebook/audiogen-medium"
    assert {other.name for other in catalog() if other.kind == "sound_effects"} == {spec.name}
    assert (spec.sample_rate, spec.window_seconds, spec.extend_stride_seconds) == (16_000, 10.0, 2.0)
    assert (spec.stride(None), spec.stride(5.0)) == (2.0, 5.0)


@pytest.mark.parametrize(("window", "stride"), [(30, 18.0), (20, 18.0), (10, 6.0), (1.5, 1.0)])
def test_the_default_stride_is_shorter_than_the_window(tmp_path: Path, window: float, stride: float) -> None:
    path = models_file(tmp_path, {"mine": {"checkpoint": "org/mine", "window_seconds": window}})
    assert catalog(models_file=path).get("mine").extend_stride_seconds == stride


def test_a_stride_as_long_as_the_window_is_refused(tmp_path: Path) -> None:
    for entry in ({"checkpoint": "org/mine", "window_seconds": 10}, {"checkpoint": "org/mine", "window_seconds": 5}):
        path = models_file(tmp_path, {"mine": {**entry, "extend_stride_seconds": 10}})
        with pytest.raises(ConfigError, match=r"mine\.extend_stride_seconds: expected less than window_seconds"):
            catalog(models_file=path)


def test_other_weights_for_audiogen_keep_its_kind_and_limits(tmp_path: Path) -> None:
    path = models_file(tmp_path, {"audiogen-medium": {"checkpoint": "org/mine"}})
    spec = catalog(models_file=path).get("audiogen-medium")
    assert (spec.kind, spec.sample_rate, spec.extend_stride_seconds) == ("sound_effects", 16_000, 2.0)
    assert spec.licence == "unknown"
