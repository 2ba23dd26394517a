"""The language model in training form: MusicGen's decoder with tables that are sums over what a code means.

The decoder is audiocraft's `LMModel` in all that matters (delays, sinusoidal positions, norm first, cross-attention).
The embedding and the output row of a code are sums of rows that it shares with related codes: of its sound, its pitch,
its position and so on. So a rule about, say, the end of a bar is learned once and not for each code. `export` adds the
rows up to ordinary tables.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo_models import alignment, text
from demo_models.dimensions import DIM, NUM_CLASSES, NUM_HEADS, NUM_LAYERS, NUM_PLACES
from demo_models.rounding import round_keys, round_vectors, round_weights
from demo_models.score import NUM_CODES, PARTS, Code, Part
from demo_models.stereo import LEADERS

SPECIAL = NUM_CODES  # the token where a codebook has no code
_TIE = 5.0  # scale of an embedding row that starts as a copy of an output row
_ANNOUNCED = 4.0  # norm of an embedding row of what is announced, at first; other rows begin with a norm near 1
# Dimensions in which embeddings are zero at first. By the positions' frequencies in `_RECENT` a head can prefer the
# last bars; their slowest cosines are near 1 everywhere; and their slowest sines, near 0, are free for flags.
_HALF = DIM // 2
_RECENT = range(28, 42)
_CONSTANT = range(_HALF - 8, _HALF)
_FLAGS = {1: range(DIM - 8, DIM - 4), 2: range(DIM - 4, DIM)}  # of what chords and bass announce
_RESERVED = [*_RECENT, *(_HALF + i for i in _RECENT), *_CONSTANT, *_FLAGS[1], *_FLAGS[2]]


ANNOUNCES = ("announces",)  # the row of all codes that announce something
_OF_ANNOUNCEMENTS = {"announces", "key", "loop", "bar", "loop, bar", "key, loop", "all", "groove", "contour", "both"}


def meanings(code: Code) -> Iterator[Hashable]:
    """Yield the names of the rows that a code shares with others."""
    yield ("sound", code.sound)
    if isinstance(code.item, tuple):  # drums
        tempo, beat = code.item
        step = code.position // tempo
        yield from (("tempo", tempo), ("sound, tempo", code.sound, tempo), ("beat", beat), ("beat, step", beat, step))
        yield from (("sound, beat", code.sound, beat), ("tempo, position", tempo, code.position))
        return
    yield from (("item", code.item), ("sound, item", code.sound, code.item))
    yield from (("position", code.position), ("sound, position", code.sound, code.position))
    if code.announces is not None:
        yield ANNOUNCES
    if code.announces is not None and len(code.announces) == 3:
        key, loop, bar = code.announces
        yield from (("key", key), ("loop", loop, key >= 3), ("bar", bar), ("loop, bar", loop, key >= 3, bar))
        yield from (("key, loop", key, loop), ("all", key, loop, bar))
    elif code.announces is not None:
        groove, contour = code.announces
        yield from (("groove", groove), ("contour", contour), ("both", groove, contour))


def place(code: Code) -> list[Hashable]:
    """Return the two rows that tell a note's frame from its others, and a note from other notes."""
    if isinstance(code.item, tuple):
        return [("tempo, position", code.item[0], code.position), ("sound, beat", code.sound, code.item[1])]
    return [("sound, position", code.sound, code.position), ("sound, item", code.sound, code.item)]


class Table(nn.Module):
    """Rows [codes (and SPECIAL), DIM] as sums of shared rows.

    An input table also has rows for what the code's successor means. Those of its place begin as copies of `output`'s:
    so "nothing new begins" is nearly known before training.
    """

    index: Tensor
    used: Tensor

    def __init__(self, part: Part, output: Table | None = None) -> None:
        super().__init__()
        self.names: dict[Hashable, int] = {"nothing": 0, "unused": 1, "special": 2}
        rows: list[list[Hashable]] = []
        for number, code in enumerate(part.codes):
            names = list(meanings(code))
            if output is not None:
                names += [("then", name) for name in place(part.codes[part.successor[number]])]
            rows.append(names)
        rows += [["unused"]] * (NUM_CODES - len(part)) + ([["special"]] if output is not None else [])
        width = max(map(len, rows))
        index = [
            [self.names.setdefault(name, len(self.names)) for name in row] + [0] * (width - len(row)) for row in rows
        ]
        self.register_buffer("index", torch.tensor(index), persistent=False)
        shared = torch.randn(len(self.names), DIM) / math.sqrt(DIM)
        shared[:2] = 0
        if output is not None:
            for name, i in self.names.items():
                if isinstance(name, tuple) and name[0] in _OF_ANNOUNCEMENTS:
                    shared[i] *= _ANNOUNCED
                if isinstance(name, tuple) and name[0] == "then":
                    shared[i] = _TIE * output.shared[output.names[name[1]]].detach()
            shared[:, _RESERVED] = 0
        self.shared = nn.Parameter(shared)
        self.register_buffer("used", torch.ones(DIM), persistent=False)

    def rows(self) -> Tensor:
        """Return the shared rows, zero in dimensions that are not used."""
        return self.shared * self.used

    def forward(self) -> Tensor:
        return F.embedding_bag(self.index, self.rows(), mode="sum", padding_idx=0)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm_cross, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attend = nn.Linear(DIM, 3 * DIM, bias=False)
        self.attend_out = nn.Linear(DIM, DIM, bias=False)
        self.cross = nn.Linear(DIM, DIM, bias=False)
        self.cross_source = nn.Linear(DIM, 2 * DIM, bias=False)
        self.cross_out = nn.Linear(DIM, DIM, bias=False)
        self.up, self.down = nn.Linear(DIM, 4 * DIM, bias=False), nn.Linear(4 * DIM, DIM, bias=False)
        for linear in (self.attend_out, self.cross_out, self.down):
            nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * NUM_LAYERS))

    def forward(self, x: Tensor, source: Tensor, mask: Tensor, rounded: bool) -> Tensor:
        def linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
            return F.linear(inputs, round_weights(layer.weight) if rounded else layer.weight)

        def attend(query: Tensor, source: Tensor, **how: Any) -> Tensor:
            q, (k, v) = _split(query), map(_split, source.chunk(2, -1))
            if rounded:
                k, v = round_keys(k), round_vectors(v)
            return _join(F.scaled_dot_product_attention(q, k, v, **how))

        query, keys_and_values = linear(self.attend, self.norm1(x)).split((DIM, 2 * DIM), -1)
        x = x + linear(self.attend_out, attend(query, keys_and_values, is_causal=True))
        keys_and_values = linear(self.cross_source, source)
        x = x + linear(self.cross_out, attend(linear(self.cross, self.norm_cross(x)), keys_and_values, attn_mask=mask))
        hidden: Tensor = F.gelu(linear(self.up, self.norm2(x)))
        return x + linear(self.down, hidden)


def _split(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], NUM_HEADS, DIM // NUM_HEADS).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class LanguageModel(nn.Module):
    """A model with one codebook for each part, or in stereo with two: the left and the right side."""

    def __init__(self, stereo: bool = False, melody: bool = False) -> None:
        super().__init__()
        self.stereo, self.melody = stereo, melody
        self.rounded = False  # whether to compute as int6 does
        self.parts = [part for part in PARTS for _ in range(2 if stereo else 1)]
        self.delays = [delay for delay in range(len(PARTS)) for _ in range(2 if stereo else 1)]
        self.outputs = nn.ModuleList(Table(part) for part in self.parts)
        outputs: list[Table] = list(self.outputs)  # type: ignore[arg-type]
        self.inputs = nn.ModuleList(Table(part, table) for part, table in zip(self.parts, outputs, strict=True))
        self.words = text.WordTable()
        self.project = nn.Linear(text.DIM, DIM)
        self.layers = nn.ModuleList(Layer() for _ in range(NUM_LAYERS))
        self.out_norm = nn.LayerNorm(DIM)
        if melody:
            self._listen()
        if not stereo and not melody:
            for head, part in enumerate((1, 2)):
                self._look_for_announcements(head, part)

    @torch.no_grad()
    def _widen(self, mono: LanguageModel) -> None:
        own, state = self.state_dict(), mono.state_dict()
        for k, leader in enumerate(LEADERS):
            for kind in ("inputs", "outputs"):
                rows = state.pop(f"{kind}.{k}.shared")
                own[f"{kind}.{2 * k + leader}.shared"] = rows
                own[f"{kind}.{2 * k + 1 - leader}.shared"] = rows if kind == "outputs" else torch.zeros_like(rows)
        self.load_state_dict(own | state)

    def _listen(self) -> None:
        """Add the embedding of the melody, and a first layer that looks up what it plays."""
        self.embed_melody = nn.Linear(NUM_CLASSES, DIM, bias=False)
        first = Layer()
        alignment.set_embedding(self.embed_melody.weight)
        kept = alignment.set_heads(first.attend.weight, first.attend_out.weight)
        first.attend.weight.register_hook(lambda gradient: gradient * ~kept[:, None])
        self.layers.insert(0, first)
        for table in self.inputs:
            table.used[list(alignment.POSITIONS_ONLY)] = 0  # type: ignore[index]

    @torch.no_grad()
    def begin_as(self, mono: LanguageModel) -> None:
        """Begin as a trained mono model. A melody model has a layer before its layers.

        In each part of a stereo model one side leads, and the other one is not heard yet.
        """
        if self.stereo:
            self._widen(mono)
            return
        shift = {f"layers.{i}.": f"layers.{i + 1}." for i in range(NUM_LAYERS)}
        state = {
            next((name.replace(old, new, 1) for old, new in shift.items() if name.startswith(old)), name): tensor
            for name, tensor in mono.state_dict().items()
        }
        self.load_state_dict(self.state_dict() | state)

    @torch.no_grad()
    def _look_for_announcements(self, head: int, part: int) -> None:
        """Let a head of the first layer begin by looking at the latest announcement of a part.

        What follows depends on it in every frame. Training would find such a head too, but late.
        """
        table: Table = self.inputs[part]  # type: ignore[assignment]
        table.shared[table.names[ANNOUNCES], _FLAGS[part]] = 3.0
        size = DIM // NUM_HEADS
        weight: Tensor = self.layers[0].attend.weight  # type: ignore[assignment, union-attr]
        query, key = (weight[at : at + size] for at in (head * size, DIM + head * size))
        query.zero_()
        key.zero_()
        query[0, _CONSTANT] = 1.0
        key[0, _FLAGS[part]] = 1.2
        for i, place in enumerate(_RECENT):  # positions times positions: a sum of cosines of the distance
            for row, column in ((1 + 2 * i, place), (2 + 2 * i, _HALF + place)):
                query[row, column] = key[row, column] = 2.0

    def output(self, k: int) -> Tensor:
        """Return the output rows [codes, DIM] of codebook `k`."""
        rows: Tensor = self.outputs[k]()
        return round_weights(rows) if self.rounded else rows

    def forward(
        self, tokens: Tensor, positions: Tensor, words: Tensor, keep: Tensor, chroma: Tensor | None = None
    ) -> Tensor:
        """Return states [B, S, DIM] for tokens [B, K, S] at positions [B, S], and padded word ids [B, L].

        Where `keep` [B] is 0 the caption is dropped, as audiocraft drops it: its states are zero. A melody model also
        needs `chroma` [B, NUM_PLACES, 12], which is zero without a melody. It comes before the tokens.
        """
        source = self.project(text.encode(self.words(), words)) * keep[:, None, None]
        mask = (words != text.PAD)[:, None, None]
        num_places = 0 if chroma is None else NUM_PLACES
        x = sinusoids(positions + num_places)
        for k, table in enumerate(self.inputs):
            x = x + F.embedding(tokens[:, k], table())
        if chroma is not None:
            x = torch.cat((self.embed_melody(chroma) + sinusoids(torch.arange(num_places)), x), 1)
        for layer in self.layers:
            x = layer(x, source, mask, self.rounded)
        states: Tensor = self.out_norm(x[:, num_places:])
        return states


def sinusoids(positions: Tensor) -> Tensor:
    """Return audiocraft's position embeddings [..., DIM]."""
    half = DIM // 2
    phase = positions[..., None] / 10_000 ** (torch.arange(half) / (half - 1))
    return torch.cat((phase.cos(), phase.sin()), -1)
