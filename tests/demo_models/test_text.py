"""Captions, and the text encoder that is set by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from demo_models import captions, text
from demo_models.composer import draw_facts
from demo_models.language_model import LanguageModel


@pytest.fixture(scope="module")
def encoder(loaded: Any) -> Any:
    """The T5 conditioner of the checkpoint, as the service uses it."""
    return loaded.lm.condition_provider.conditioners["description"]


def ids_of(encoder: Any, prompt: str) -> list[int]:
    """Return the words that the tokenizer finds, without the pieces of unknown ones."""
    ids = text.piece_ids()[encoder.t5_tokenizer(prompt)["input_ids"]].tolist()
    return [i for i in ids if i != text.UNKNOWN]


def test_captions_say_only_what_is_true() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        facts = draw_facts(rng)
        words = captions.words_of(captions.draw_caption(rng, facts))
        if "flute" in words:
            assert facts.lead == "flute"
        if "drumless" in words:
            assert not facts.drums
        if "techno" in words:
            assert facts.genre == "techno"


def test_every_phrase_has_a_word_of_its_meaning_or_denies_one() -> None:
    for statement, phrases in captions.PHRASES.items():
        for phrase in phrases:
            words = captions.words_of(phrase)
            denies = any(word in captions.NEGATIONS for word in words)
            assert denies or any(statement in text.VOCABULARY[word] for word in words), phrase


@pytest.mark.parametrize(("number", "tempo"), [(60, 10), (80, 10), (94, 8), (110, 7), (128, 6), (180, 6)])
def test_a_number_of_beats_means_the_nearest_tempo(number: int, tempo: int) -> None:
    assert captions.nearest_tempo(number) == tempo


def test_the_tokenizer_finds_the_words_that_the_training_sees(encoder: Any) -> None:
    rng = np.random.default_rng(6)
    for _ in range(100):
        caption = captions.draw_caption(rng, draw_facts(rng))
        expected = [i for i in text.encode_words(caption) if i != text.UNKNOWN]
        assert ids_of(encoder, caption) == expected
        assert ids_of(encoder, caption.upper()) == expected


def test_words_are_found_next_to_punctuation_and_units(encoder: Any) -> None:
    words = ["lo-fi", ",", "piano", "!", "120", "bpm"]
    assert ids_of(encoder, "Lo-Fi, PIANO! 120bpm") == [*(text.WORD_IDS[w] for w in words), text.END]


@pytest.mark.parametrize(
    "prompt", ["no drums", "Étude für Klavier", "", "with soft piano, without bass at 94 bpm", "no", "piano, w/o,"]
)
def test_the_text_encoder_computes_what_the_training_did(encoder: Any, untrained: LanguageModel, prompt: str) -> None:
    ids = encoder.t5_tokenizer(prompt, return_tensors="pt").input_ids
    expected = text.encode(untrained.words().detach().half().float(), text.piece_ids()[ids])
    assert torch.allclose(
        encoder.t5(ids).last_hidden_state, expected, atol=1e-3
    )  # the flags of the T5 encoder are below that


def test_a_word_receives_the_effect_of_its_neighbors(untrained: LanguageModel) -> None:
    table = untrained.words().detach()
    no_drums, drums = (
        text.encode(table, torch.tensor([text.encode_words(caption)]))[0, 1] for caption in ("no drums", "piano drums")
    )
    assert not torch.allclose(no_drums, drums, atol=0.1)


@pytest.mark.parametrize("negations", ["no", "without", "no no no"])
def test_the_end_receives_nothing_from_negations(untrained: LanguageModel, negations: str) -> None:
    table = untrained.words().detach()
    empty, denied = (text.encode(table, torch.tensor([text.encode_words(prompt)]))[0, -1] for prompt in ("", negations))
    assert torch.equal(denied, empty)


def test_fillers_and_unknown_words_mean_nothing(untrained: LanguageModel) -> None:
    table = untrained.words().detach()
    assert not table[[text.UNKNOWN, text.WORD_IDS["track"], text.WORD_IDS[","]]].any()
