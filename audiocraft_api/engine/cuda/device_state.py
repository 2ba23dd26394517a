"""What a captured step reads and writes: every running request's numbers, at fixed addresses on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from audiocraft_api.engine.delay import UNKNOWN
from audiocraft_api.engine.noise import exponential_noise
from audiocraft_api.engine.sequence import RunningRequest


class DeviceState:
    """One entry per place; a place is one request's."""

    def __init__(self, num_places: int, num_codebooks: int, num_columns: int, device: torch.device) -> None:
        def numbers(dtype: torch.dtype) -> Tensor:
            return torch.zeros(num_places, dtype=dtype, device=device)

        self.sequence = torch.zeros(num_places, num_codebooks, num_columns, dtype=torch.long, device=device)
        self.num_filled = torch.ones(num_places, dtype=torch.long, device=device)
        self.prefix_length, self.top_k = numbers(torch.long), numbers(torch.long)
        self.seed, self.draw = numbers(torch.long), numbers(torch.long)
        self.temperature = torch.ones(num_places, device=device)
        self.top_p, self.cfg_coef = numbers(torch.float32), numbers(torch.float32)
        self.is_active, self.is_greedy = numbers(torch.bool), numbers(torch.bool)
        self.is_guided, self.is_broken = numbers(torch.bool), numbers(torch.bool)

    def load(self, place: int, run: RunningRequest, is_new: bool) -> None:
        """Write a request's window into its place; its count of draws goes on from window to window."""
        params = run.params
        self.sequence[place, :, : run.sequence.shape[1]] = run.sequence.to(self.sequence.device)
        self.num_filled[place] = run.num_filled
        self.prefix_length[place] = run.prefix_length
        self.is_greedy[place] = not params.use_sampling or params.temperature <= 0
        self.temperature[place] = params.temperature if params.temperature > 0 else 1.0
        self.top_k[place] = params.top_k
        self.top_p[place] = params.top_p
        self.cfg_coef[place] = params.cfg_coef
        self.is_guided[place] = len(run.rows) > 1
        self.is_broken[place] = False
        self.seed[place] = params.seed
        if is_new:
            self.draw[place] = 0

    def next_inputs(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the tokens [size, K] to feed and their positions [size]."""
        column = self.num_filled[:size] - 1
        tokens = self.sequence[:size].gather(2, column.view(-1, 1, 1).expand(-1, self.sequence.shape[1], 1))
        return tokens.squeeze(2), self.prefix_length[:size] + column

    def last_columns(self, size: int, count: int) -> Tensor:
        """Return the columns [size, K, count] that the first places' last steps have filled."""
        first = (self.num_filled[:size] - count).clamp(min=0).view(-1, 1, 1)  # places that do not step may have fewer
        index = first + torch.arange(count, device=first.device)
        return self.sequence[:size].gather(2, index.expand(-1, self.sequence.shape[1], -1))

    def advance(self, cond: Tensor, null: Tensor | None) -> None:
        """Sample the next column of the first places from logits [size, K, codebook_size] float32, and write it."""
        size = len(cond)
        logits = cond
        if null is not None:
            guided = null + (cond - null) * self.cfg_coef[:size].view(-1, 1, 1)
            logits = torch.where(self.is_guided[:size].view(-1, 1, 1), guided, cond)
        active = self.is_active[:size]
        self.is_broken[:size] |= active & ~torch.isfinite(logits).flatten(1).all(dim=1)
        tokens = self._sample(logits).unsqueeze(2)  # [size, K, 1]
        index = self.num_filled[:size].clamp(max=self.sequence.shape[2] - 1).view(-1, 1, 1).expand_as(tokens)
        current = self.sequence[:size].gather(2, index)
        is_open = (current == UNKNOWN) & active.view(-1, 1, 1)
        self.sequence[:size].scatter_(2, index, torch.where(is_open, tokens, current))
        self.num_filled[:size] += active
        self.draw[:size] += active

    def _sample(self, logits: Tensor) -> Tensor:
        """Draw tokens [size, K] by every place's own rule (`sampling.py` has the same, one request at a time)."""
        size, num_codebooks, codebook_size = logits.shape
        probs = torch.softmax(logits / self.temperature[:size].view(-1, 1, 1), dim=-1)
        ranked, tokens = torch.sort(probs, dim=-1, descending=True, stable=True)
        top_k = self.top_k[:size].view(-1, 1, 1)
        least = ranked.gather(2, (top_k.clamp(1, codebook_size) - 1).expand(-1, num_codebooks, 1))
        top_p = self.top_p[:size].view(-1, 1, 1)
        by_k = (ranked >= least) | (top_k == 0)
        # In whole numbers: a GPU sums a row of fractions in an order that depends on how many rows there are.
        mass = (ranked.double() * 2**40).long()
        by_p = torch.cumsum(mass, dim=-1) - mass <= (top_p.double() * 2**40).long()
        kept = ranked * torch.where(top_p > 0, by_p, by_k)
        noise = exponential_noise(self.seed[:size], self.draw[:size], num_codebooks, codebook_size)
        rank = (kept / noise).argmax(dim=-1, keepdim=True)
        sampled = tokens.gather(2, rank).squeeze(2)
        return torch.where(self.is_greedy[:size].view(-1, 1), logits.argmax(dim=-1), sampled)
