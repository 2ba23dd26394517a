"""The text encoder: a tokenizer of whole words, and a T5 encoder that is set by hand except for its embeddings.

A word's embedding has its meaning in the first dimensions and, in the next ones, what it does to its neighbors ("no",
"electric", "synth"). The one attention layer copies the latter from the word before, the word before that and the word
after into dimensions of their own. The end of the text receives nothing from negations, which deny nothing there.
Nothing else is left of T5: the feed-forward part is zero.
"""

from __future__ import annotations

import itertools
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocraft_api.model.demo_weights import NEGATIONS
from demo_models.captions import FILLERS, HIGHEST_BPM, LOWEST_BPM, PHRASES, nearest_tempo, words_of

MEANING, EFFECT = 64, 16  # dimensions
OFFSETS = (-1, -2, 1)  # of the neighbors whose effect a word receives
DIM = MEANING + EFFECT * (1 + len(OFFSETS))
EPSILON = 1e-6  # of T5's norm

PAD, END, UNKNOWN = 0, 1, 2


def _vocabulary() -> dict[str, tuple[str, ...]]:
    """Return all words with the statements that each takes part in."""
    words: dict[str, list[str]] = {word: [] for word in (*FILLERS, *NEGATIONS, "bpm", "beats", "per", "minute")}
    for statement, phrases in PHRASES.items():
        for phrase in phrases:
            denies = any(word in NEGATIONS for word in words_of(phrase))  # then the statement is not what words mean
            for word in words_of(phrase):
                meanings = words.setdefault(word, [])
                if word not in FILLERS and word not in NEGATIONS and not denies and statement not in meanings:
                    meanings.append(statement)
    for number in range(LOWEST_BPM, HIGHEST_BPM + 1):
        words[str(number)] = [f"tempo {nearest_tempo(number)}"]
    return {word: tuple(meanings) for word, meanings in words.items()}


VOCABULARY = _vocabulary()
WORD_IDS = {word: i for i, word in enumerate(VOCABULARY, UNKNOWN + 1)}
NUM_WORDS = UNKNOWN + 1 + len(VOCABULARY)
_NEGATION_IDS = torch.tensor([WORD_IDS[word] for word in NEGATIONS])


def encode_words(text: str) -> list[int]:
    """Return the ids of a text's words, and of its end. An unknown word has as many ids as the tokenizer's pieces."""
    separated = re.sub(r"(\d)bpm\b", r"\1 bpm", text.lower())
    ids = [[WORD_IDS[w]] if w in WORD_IDS else [UNKNOWN] * (1 + len(w)) for w in words_of(separated)]
    return [*itertools.chain.from_iterable(ids), END]


class WordTable(nn.Module):
    """Embeddings [NUM_WORDS, DIM]: a sum of shared rows for what a word means and a row of its own.

    Unknown words and fillers are zero. Numbers have only the row of the nearest tempo. Negations share their effect.
    """

    def __init__(self) -> None:
        super().__init__()
        statements = sorted({s for meanings in VOCABULARY.values() for s in meanings})
        most = max(len(meanings) for meanings in VOCABULARY.values())
        index = torch.zeros(NUM_WORDS, most, dtype=torch.int64)
        free, effect = torch.zeros(NUM_WORDS, 1), torch.arange(NUM_WORDS)
        for word, meanings in VOCABULARY.items():
            i = WORD_IDS[word]
            index[i, : len(meanings)] = torch.tensor([1 + statements.index(s) for s in meanings])
            free[i] = float((bool(meanings) or word in NEGATIONS) and not word.isdigit())
            effect[i] = WORD_IDS[NEGATIONS[0]] if word in NEGATIONS else i
        free[END] = 1.0
        for name, buffer in {"index": index, "free": free, "effect_of": effect}.items():
            self.register_buffer(name, buffer, persistent=False)
        self._statements = statements
        self.shared = nn.Parameter(torch.randn(1 + len(statements), MEANING))
        self.own = nn.Parameter(0.2 * torch.randn(NUM_WORDS, MEANING))
        self.effect = nn.Parameter(0.5 * torch.randn(NUM_WORDS, EFFECT))

    def row_of(self, statement: str) -> int:
        """Return the shared row of a statement."""
        return 1 + self._statements.index(statement)

    def forward(self) -> Tensor:
        shared = torch.cat((torch.zeros(1, MEANING), self.shared[1:]))
        meaning = F.embedding_bag(self.index, shared, mode="sum") + self.own * self.free
        effect = self.effect[self.effect_of] * self.free
        return torch.cat((meaning, effect, torch.zeros(NUM_WORDS, DIM - MEANING - EFFECT)), -1)


def encode(table: Tensor, ids: Tensor) -> Tensor:
    """Return states [B, L, DIM] for ids [B, L] padded with PAD: what the T5 encoder of `demo_weights` computes."""
    x = F.embedding(ids, table)
    effects = _normalize(x)[..., MEANING : MEANING + EFFECT]
    length, places = ids.shape[1], torch.arange(ids.shape[1])
    received = []
    for offset in OFFSETS:
        neighbor = (places + offset).expand(ids.shape)
        inside = (neighbor >= 0) & (neighbor < length)
        neighbor_ids = ids.gather(1, neighbor.clamp(0, length - 1))
        inside = inside & (neighbor_ids != PAD) & ~((ids == END) & torch.isin(neighbor_ids, _NEGATION_IDS))
        source = torch.where(inside, neighbor, places)
        received.append(effects.gather(1, source[..., None].expand_as(effects)))
    return _normalize(torch.cat((x[..., : MEANING + EFFECT], *received), -1))


def _normalize(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON)


def pieces() -> list[tuple[str, float]]:
    """Return the tokenizer's pieces with their scores. `piece_ids` says which word each stands for."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words: dict[str, float] = {}
    for word in VOCABULARY:
        for form in (word, word.capitalize(), word.title(), word.upper()):
            words.setdefault(form if _is_punctuation(word) else f"▁{form}", -4.0)
    for unit in ("bpm", "BPM", "Bpm"):
        words.setdefault(unit, -4.0)
    characters = [(c, -8.0) for c in ["▁", *map(chr, range(33, 127))] if c not in words]
    return [*special, *words.items(), *characters]


def _is_punctuation(word: str) -> bool:
    return len(word) == 1 and not word.isalnum()


def piece_ids() -> Tensor:
    """Return the word id of each piece; characters are UNKNOWN, which is zero."""
    ids = [WORD_IDS.get(piece.removeprefix("▁").lower(), UNKNOWN) for piece, _ in pieces()[3:]]
    single = [piece for piece, _ in pieces()[3:]]
    ids = [UNKNOWN if len(p) == 1 and p.isalnum() else i for p, i in zip(single, ids, strict=True)]
    return torch.tensor([UNKNOWN, END, UNKNOWN, *ids])
