"""The melody model: its training data, its hand-set attention heads, its loss, and its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from audiocraft_api.model import demo
from demo_models import alignment, codec, export, following, generation, melody, reader, text
from demo_models.composer import Facts, bar_frames
from demo_models.dimensions import DIM, HOP, NUM_CLASSES, NUM_HEADS, NUM_PLACES
from demo_models.harmony import KEYS
from demo_models.language_model import LanguageModel, sinusoids
from demo_models.score import FRAME
from demo_models.training import Trainer, delayed, draw_batch, load_model, loss_of

FOLK = Facts(groove=12, tempo=8, drums=False, key=0, loop=1, chords="guitar", bass=None, lead="violin")
TECHNO = Facts(groove=3, tempo=6, drums=True, key=3, loop=0, chords="pad", bass="synth", lead="synth")
POP = Facts(groove=5, tempo=7, drums=True, key=0, loop=1, chords="organ", bass="finger", lead="marimba")


@pytest.fixture(scope="module")
def untrained_melody(untrained: LanguageModel) -> LanguageModel:
    torch.manual_seed(4)
    model = LanguageModel(melody=True).eval()
    model.begin_as(untrained)
    return model


@pytest.mark.parametrize("facts", [FOLK, TECHNO, POP])
@pytest.mark.parametrize("seed", range(4))
def test_a_lead_follows_what_is_heard_with_legal_steps(facts: Facts, seed: int) -> None:
    codes, _, classes, _ = melody.compose_with_melody(np.random.default_rng(seed), facts, 10)
    assert codes.shape == (4, 10 * bar_frames(facts))
    assert reader.legal_steps(codes).all()
    assert reader.read(codes).on_grid == 1
    assert following.following(codes, classes) > 0.75


def test_a_lead_that_went_astray_comes_back_with_legal_steps() -> None:
    codes, _, classes, is_astray = melody.compose_with_melody(np.random.default_rng(1), POP, 12, astray=0.4)
    assert 0 < is_astray.mean() < 1
    assert reader.legal_steps(codes).all()
    playing = np.full(codes.shape[1], -1)
    for note in reader.notes(3, codes[3]):
        playing[note.start : note.start + note.length] = int(note.item) % NUM_CLASSES  # type: ignore[call-overload]
    at = np.minimum(np.arange(len(classes)) * HOP // FRAME, codes.shape[1] - 1)
    assert (playing[at] == classes)[~is_astray[at]].mean() > 0.7


def test_the_piece_has_the_key_that_fits_the_melody_best() -> None:
    scale = sorted(KEYS[1].scale)  # F major
    line = melody.line_of((60 + scale[i % 7], 0.5 * (i + 1)) for i in range(60))
    classes = melody.heard(line)
    assert set(classes) <= KEYS[1].scale
    assert melody.best_key(classes, "major") == 1


def test_a_note_that_dies_away_begins_again() -> None:
    row = melody.follow(np.full(NUM_PLACES, 7), POP, np.full(400, melody.FOLLOWS))
    notes = reader.notes(3, row)
    assert len(notes) > 20
    assert {int(note.item) % NUM_CLASSES for note in notes} == {7}  # type: ignore[call-overload]
    assert (row != 0).all()


def test_heads_of_the_first_layer_look_at_the_moment_that_the_lead_has_reached(
    untrained_melody: LanguageModel,
) -> None:
    batch = draw_batch(np.random.default_rng(1), 512, 2, untrained_melody)
    layer: Any = untrained_melody.layers[0]
    size = DIM // NUM_HEADS
    with torch.no_grad():
        x = sinusoids(batch["positions"] + NUM_PLACES)
        for k, table in enumerate(untrained_melody.inputs):
            x = x + F.embedding(batch["tokens"][:, k], table())
        prefix = untrained_melody.embed_melody(batch["chroma"]) + sinusoids(torch.arange(NUM_PLACES))
        query, key, _ = layer.attend(layer.norm1(torch.cat((prefix, x), 1))).split(DIM, -1)
    lead_frames = (batch["positions"] - 3).numpy()
    for head, shift in enumerate(alignment.SHIFTS):
        part = slice(head * size, (head + 1) * size)
        weights = (query[:, NUM_PLACES:, part] @ key[:, :, part].transpose(1, 2) / size**0.5).softmax(-1).numpy()
        wanted = lead_frames * FRAME / HOP + shift
        inside = (lead_frames >= 0) & (wanted < NUM_PLACES - 2)
        found = (weights[:, :, :NUM_PLACES] * np.arange(NUM_PLACES)).sum(-1)
        assert weights[:, :, :NUM_PLACES].sum(-1)[inside].mean() > 0.99
        assert np.abs(found - wanted)[inside].mean() < 0.3


def test_training_leaves_the_heads_that_look_as_they_are(tmp_path: Path, untrained: LanguageModel) -> None:
    trainer = Trainer(tmp_path / "melody.pt", 4, mono=untrained, melody=True)
    size = DIM // NUM_HEADS
    first: Any = trainer.model.layers[0]
    before = first.attend.weight.detach().clone()
    trainer._train(draw_batch(np.random.default_rng(2), 64, 2, trainer.model, guided=True))
    after = first.attend.weight.detach()
    for begin in (0, DIM):  # queries and keys
        rows = slice(begin, begin + len(alignment.SHIFTS) * size)
        assert torch.equal(after[rows], before[rows])
    assert not torch.equal(after[2 * DIM :], before[2 * DIM :])
    trainer.save()
    assert load_model(tmp_path / "melody.pt").melody


def test_the_loss_is_that_of_the_guided_codes(untrained_melody: LanguageModel) -> None:
    batch = draw_batch(np.random.default_rng(3), 64, 2, untrained_melody, guided=True)
    batch["guidance"] = torch.zeros(2)  # the conditions do not count
    torch.manual_seed(0)
    loss = loss_of(untrained_melody, batch)[0]
    torch.manual_seed(0)
    without = loss_of(untrained_melody, batch | {"chroma": torch.zeros_like(batch["chroma"])})[0]
    assert loss == without


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, solution: codec.Solution, untrained_melody: LanguageModel) -> Any:
    """The untrained melody model, exported, and loaded by the service's own code."""
    directory = tmp_path_factory.mktemp("checkpoints")
    export.write(directory / "codec.safetensors", export.codec_numbers(solution))
    export.write(directory / "melody.safetensors", export.language_model_numbers(untrained_melody), untrained_melody)
    (directory / "demo-melody").mkdir()
    demo.write_trained(directory / "demo-melody", directory / "codec.safetensors", directory / "melody.safetensors")
    return generation.load(directory, "demo-melody")


def test_audiocrafts_model_computes_what_the_training_did_and_hears_the_same(
    loaded: Any, untrained_melody: LanguageModel
) -> None:
    """Half precision of the exported weights is the only difference."""
    conditioner = loaded.lm.condition_provider.conditioners["self_wav"]
    assert (conditioner.chroma.winhop, conditioner.chroma_len) == (HOP, NUM_PLACES)
    line = following.notes_of("Ode to Joy")
    tokens, _ = delayed(melody.compose_with_melody(np.random.default_rng(5), TECHNO, 2)[0][:, :120], (0, 1, 2, 3))
    conditions, _ = loaded.condition_tensors("fast techno, no bass", melody=line)
    loaded.to_float32()
    found = loaded.lm(torch.tensor(tokens)[None], [], conditions)[0]
    words = torch.tensor([text.encode_words("fast techno, no bass")])
    places = np.arange(NUM_PLACES) % (int(line.seconds * 32_000) // HOP + 1)
    chroma = torch.tensor(np.eye(NUM_CLASSES, dtype=np.float32)[melody.heard(line, line.seconds)[places]])[None]
    with torch.no_grad():
        arguments = (torch.tensor(tokens)[None], torch.arange(tokens.shape[1])[None], words, torch.ones(1), chroma)
        states = untrained_melody(*arguments)
        expected = torch.stack([states[0] @ table().T for table in untrained_melody.outputs]) * export.SHARPNESS
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_negative_prompt_is_not_padded(loaded: Any) -> None:
    """Cross-attention would attend to padding; only text in the prefix must have the same length."""
    prompt, negative = "flute", "slow sad piano with drums and bass"
    conditional, unconditional = loaded.condition_tensors(prompt, negative_description=negative)
    lengths = [len(text.encode_words(each)) for each in (prompt, negative)]
    assert [each["description"][0].shape[1] for each in (conditional, unconditional)] == lengths
    assert conditional["self_wav"][0].shape == unconditional["self_wav"][0].shape
