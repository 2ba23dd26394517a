"""Checkpoints that transformers saved: the same predictions as in transformers, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyForConditionalGeneration,
)

from audiocraft_api.config import load_config
from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.core.params import AudioInput, GenerationParams
from audiocraft_api.model import demo, hub, revisions, transformers_checkpoint
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.loading import load_model
from audiocraft_api.model.separator import RELEASED_ID
from bench import untrained

KINDS = ("mono", "stereo", "melody")
TEXTS = ["slow piano with warm strings", "techno"]
NUM_FRAMES = 40
CHROMA_FRAMES = 235


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a models file, and with a checkpoint of each kind in a directory of its name."""
    directory = tmp_path_factory.mktemp("transformers")
    for kind in KINDS:
        save(kind, directory / kind)
    entries = {
        "mono": {"checkpoint": str(directory / "mono")},
        "stereo": {"checkpoint": str(directory / "stereo"), "channels": 2, "num_codebooks": 8},
        "melody": {"checkpoint": str(directory / "melody"), "melody": True},
    }
    (directory / "models.json").write_text(json.dumps(entries))
    return directory


def save(kind: str, directory: Path) -> None:
    tokenizer = untrained.tokenizer()
    decoder = {
        "hidden_size": 64, "num_attention_heads": 4, "ffn_dim": 256, "num_hidden_layers": 2, "dropout": 0.0,
        "num_codebooks": 8 if kind == "stereo" else 4, "audio_channels": 2 if kind == "stereo" else 1,
    }  # fmt: skip
    config_class, model_class = MusicgenConfig, MusicgenForConditionalGeneration
    if kind == "melody":
        config_class, model_class = MusicgenMelodyConfig, MusicgenMelodyForConditionalGeneration
    text_encoder = untrained.text_encoder(len(tokenizer))
    text_config = text_encoder.config.to_dict()
    codec_config = EncodecConfig(**untrained.codec().config.to_dict()).to_dict()
    torch.manual_seed(len(kind))
    model = model_class(config_class(text_encoder=text_config, audio_encoder=codec_config, decoder=decoder)).eval()
    model.text_encoder.load_state_dict(text_encoder.state_dict())
    model.audio_encoder.load_state_dict(untrained.codec().state_dict())
    # In several files, as large models are.
    model.save_pretrained(directory, max_shard_size="1MB" if kind == "mono" else "5GB")
    tokenizer.save_pretrained(directory)
    if kind == "melody":
        demo.add_repository(directory / "hub", RELEASED_ID, untrained.save_separator)


def load(directory: Path, kind: str, **settings: Any) -> Any:
    config = load_config({}, models_file=directory / "models.json", offline=True, device="cpu", **settings)
    catalog = Catalog(config)
    return load_model(catalog.get(kind), catalog, config)


@torch.no_grad()
def test_weights_of_transformers_give_the_same_logits(saved: Path) -> None:
    """For texts of one length: transformers masks the padding of shorter ones, audiocraft attends to zeros there."""
    for kind, texts in (("mono", TEXTS[:1]), ("stereo", TEXTS[1:])):
        theirs = MusicgenForConditionalGeneration.from_pretrained(saved / kind).eval()
        ours = load(saved, kind)
        ours.to_float32()
        codes = torch.randint(0, 2048, (1, ours.num_codebooks, NUM_FRAMES))
        text = untrained.tokenizer()(texts, return_tensors="pt")
        expected = theirs(**text, decoder_input_ids=codes.flatten(0, 1)).logits
        found = ours.lm(codes, [], condition_tensors=text_conditions(ours.lm, texts))
        torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-4, rtol=0)
        assert expected.std() > 0.1


@torch.no_grad()
def test_melody_weights_of_transformers_give_the_same_logits(saved: Path) -> None:
    theirs = MusicgenMelodyForConditionalGeneration.from_pretrained(saved / "melody").eval()
    ours = load(saved, "melody")
    ours.to_float32()
    codes = torch.randint(0, 2048, (len(TEXTS), 4, NUM_FRAMES))
    chroma = torch.nn.functional.one_hot(torch.randint(0, 12, (len(TEXTS), CHROMA_FRAMES)), 12).float()
    text = untrained.tokenizer()(TEXTS, return_tensors="pt", padding=True)
    expected = theirs(**text, input_features=chroma, decoder_input_ids=codes.flatten(0, 1)).logits
    melody = ours.lm.condition_provider.conditioners.self_wav.output_proj(chroma)
    conditions = {"self_wav": (melody, torch.ones(melody.shape[:2])), **text_conditions(ours.lm, TEXTS)}
    found = ours.lm(codes, [], condition_tensors=conditions)
    torch.testing.assert_close(found.flatten(0, 1), expected[:, -NUM_FRAMES:], atol=1e-4, rtol=0)


def text_conditions(lm: Any, texts: list[str]) -> dict[str, Any]:
    conditioner = lm.condition_provider.conditioners.description
    return {"description": conditioner(conditioner.tokenize(texts))}


@torch.no_grad()
def test_the_codec_of_the_checkpoint_is_used(saved: Path) -> None:
    theirs = MusicgenForConditionalGeneration.from_pretrained(saved / "mono").eval()
    codes = torch.randint(0, 2048, (1, 4, NUM_FRAMES))
    expected = theirs.audio_encoder.decode(codes[None], [None]).audio_values
    assert torch.equal(load(saved, "mono").decode_codes(codes), expected[0])


def test_every_kind_generates(saved: Path) -> None:
    noise = torch.rand(32_000).numpy()[:, None] - 0.5
    for kind, channels in zip(KINDS, (1, 2, 1), strict=True):
        model = load(saved, kind)
        melody = AudioInput(noise, 32_000) if kind == "melody" else None
        params = GenerationParams(kind, "slow piano", 0.5, seed=1, melody=melody)
        codes = model.generate_codes(params, lambda _done, _total: None)
        assert model.decode_codes(codes).shape == (channels, 16_000)


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint that a test may damage, named in a models file next to it."""
    shutil.copytree(saved / "stereo", tmp_path / "ours")
    entry = {"checkpoint": str(tmp_path / "ours"), "channels": 2, "num_codebooks": 8}
    (tmp_path / "models.json").write_text(json.dumps({"ours": entry}))
    return tmp_path / "ours"


def refusal(checkpoint: Path) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load(checkpoint.parent, "ours")
    return caught.value.message


def test_the_revision_follows_the_content(checkpoint: Path) -> None:
    config = load_config({}, models_file=checkpoint.parent / "models.json")
    catalog = Catalog(config)
    first = revisions.known_revision(catalog.get("ours"), catalog)
    assert first == load(checkpoint.parent, "ours").revision
    with open(checkpoint / "tokenizer.json", "a") as file:
        file.write("\n")
    changed = revisions.known_revision(catalog.get("ours"), catalog)
    assert len(first) == len(changed) == 40
    assert first != changed


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        (None, "model_type", "gpt2"),
        (None, "model_type", "unknown"),
        ("decoder", "activation_function", "relu"),
        ("decoder", "scale_embedding", True),
        ("decoder", "num_codebooks", 5),
        ("decoder", "hidden_size", "wide"),
        ("audio_encoder", "model_type", "dac"),
        ("text_encoder", "model_type", "bert"),
    ],
)
def test_a_configuration_that_audiocraft_cannot_compute_is_refused(
    section: str | None, name: str, value: Any, checkpoint: Path
) -> None:
    path = checkpoint / "config.json"
    settings = json.loads(path.read_bytes())
    (settings if section is None else settings[section])[name] = value
    path.write_text(json.dumps(settings))
    assert "config.json" in refusal(checkpoint)


def test_missing_and_damaged_files_are_named(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "model.safetensors is damaged" in refusal(checkpoint)
    weights.unlink()
    assert "contains no model.safetensors" in refusal(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')
    assert "contains no ../other.safetensors" in refusal(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text("[]")
    assert "index.json is damaged" in refusal(checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    weights.write_bytes(content)
    (checkpoint / "model.safetensors.index.json").unlink()
    assert "contains no tokenizer.json" in refusal(checkpoint)


def test_a_missing_or_strange_weight_is_named(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = checkpoint / "model.safetensors"
    state = load_file(weights)
    layer = "decoder.model.decoder.layers.0"
    without = {name: tensor for name, tensor in state.items() if name != f"{layer}.self_attn.v_proj.weight"}
    save_file(without, weights)
    assert f"{layer}.self_attn.v_proj.weight" in refusal(checkpoint)
    save_file({**state, f"{layer}.adapter": torch.ones(1)}, weights)
    assert "adapter" in refusal(checkpoint)
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("text_encoder")}, weights)
    assert "text-encoder is missing weights" in refusal(checkpoint)


def test_a_pinned_sum_is_compared_with_the_weights(checkpoint: Path) -> None:
    entry = {"checkpoint": str(checkpoint), "channels": 2, "num_codebooks": 8, "sha256": "0" * 64}
    (checkpoint.parent / "models.json").write_text(json.dumps({"ours": entry}))
    assert "model.safetensors has the SHA-256" in refusal(checkpoint)
    entry = {**entry, "sha256": None, "codec_sha256": "0" * 64}
    (checkpoint.parent / "models.json").write_text(json.dumps({"ours": entry}))
    assert "compression_state_dict.bin, which ours does not contain" in refusal(checkpoint)


def test_the_temporary_files_of_a_load_are_deleted(saved: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load(saved, "stereo")
    assert not list(tmp_path.glob("audiocraft-api-*"))


def test_a_repository_of_the_hub_may_have_the_files_of_transformers_only(saved: Path, tmp_path: Path) -> None:
    def copy(directory: Path) -> None:
        shutil.copytree(saved / "mono", directory, dirs_exist_ok=True)

    demo.add_repository(tmp_path, "someone/blues", copy)
    found = hub.Hub(tmp_path, offline=True).snapshot("someone/blues", hub.CHECKPOINT)
    assert transformers_checkpoint.is_in(found)
    assert len(transformers_checkpoint.files(found)) > 3
