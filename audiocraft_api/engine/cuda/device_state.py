"""What a captured step reads and writes: tokens and parameters of the running requests, at fixed addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from audiocraft_api.engine.delay import UNKNOWN
from audiocraft_api.engine.sampling import exponential_noise
from audiocraft_api.engine.sequence import Sequence


class DeviceState:
    """One entry per batch index; a batch index belongs to one request."""

    def __init__(self, max_batch_size: int, num_codebooks: int, num_columns: int, device: torch.device) -> None:
        def numbers(dtype: torch.dtype) -> Tensor:
            return torch.zeros(max_batch_size, dtype=dtype, device=device)

        self.tokens = torch.zeros(max_batch_size, num_codebooks, num_columns, dtype=torch.long, device=device)
        self.num_filled = torch.ones(max_batch_size, dtype=torch.long, device=device)
        self.prefix_length, self.top_k = numbers(torch.long), numbers(torch.long)
        self.seed, self.draw = numbers(torch.long), numbers(torch.long)
        self.temperature = torch.ones(max_batch_size, device=device)
        self.top_p, self.cfg_coef = numbers(torch.float32), numbers(torch.float32)
        self.is_active, self.is_greedy = numbers(torch.bool), numbers(torch.bool)
        self.is_guided, self.is_broken = numbers(torch.bool), numbers(torch.bool)

    def load(self, index: int, seq: Sequence) -> None:
        """Write a sequence's window at its batch index. The number of draws continues from window to window."""
        self.tokens[index, :, : seq.tokens.shape[1]] = seq.tokens.to(self.tokens.device)
        self.num_filled[index] = seq.num_filled
        self.prefix_length[index] = seq.prefix_length
        self.load_controls(index, seq)
        self.is_guided[index] = len(seq.rows) > 1
        self.is_broken[index] = False
        self.seed[index] = seq.params.seed
        self.draw[index] = seq.num_draws

    def load_controls(self, index: int, seq: Sequence) -> None:
        """Write what may change between two steps of a sequence."""
        params = seq.params
        self.is_greedy[index] = not params.use_sampling or params.temperature <= 0
        self.temperature[index] = params.temperature if params.temperature > 0 else 1.0
        self.top_k[index] = params.top_k
        self.top_p[index] = params.top_p
        self.cfg_coef[index] = params.cfg_coef

    def next_inputs(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the tokens [size, K] to feed and their positions [size]."""
        column = self.num_filled[:size] - 1
        tokens = self.tokens[:size].gather(2, column.view(-1, 1, 1).expand(-1, self.tokens.shape[1], 1))
        return tokens.squeeze(2), self.prefix_length[:size] + column

    def last_columns(self, size: int, count: int) -> Tensor:
        """Return the columns [size, K, count] that the last `count` steps have filled."""
        first = (self.num_filled[:size] - count).clamp(min=0).view(-1, 1, 1)  # inactive entries may have fewer
        index = first + torch.arange(count, device=first.device)
        return self.tokens[:size].gather(2, index.expand(-1, self.tokens.shape[1], -1))

    def advance(self, cond: Tensor, uncond: Tensor | None) -> None:
        """Sample the next column of the first entries from logits [size, K, codebook_size] float32, and write it."""
        size = len(cond)
        logits = cond
        if uncond is not None:
            guided = uncond + (cond - uncond) * self.cfg_coef[:size].view(-1, 1, 1)
            logits = torch.where(self.is_guided[:size].view(-1, 1, 1), guided, cond)
        active = self.is_active[:size]
        self.is_broken[:size] |= active & ~torch.isfinite(logits).flatten(1).all(dim=1)
        tokens = self._sample(logits).unsqueeze(2)  # [size, K, 1]
        index = self.num_filled[:size].clamp(max=self.tokens.shape[2] - 1).view(-1, 1, 1).expand_as(tokens)
        current = self.tokens[:size].gather(2, index)
        is_unknown = (current == UNKNOWN) & active.view(-1, 1, 1)
        self.tokens[:size].scatter_(2, index, torch.where(is_unknown, tokens, current))
        self.num_filled[:size] += active
        self.draw[:size] += active

    def _sample(self, logits: Tensor) -> Tensor:
        """Sample tokens [size, K] by each entry's own parameters; like `sampling.sample`, for many requests at once."""
        size, num_codebooks, codebook_size = logits.shape
        probs = torch.softmax(logits / self.temperature[:size].view(-1, 1, 1), dim=-1)
        ranked, tokens = torch.sort(probs, dim=-1, descending=True, stable=True)
        top_k = self.top_k[:size].view(-1, 1, 1)
        least = ranked.gather(2, (top_k.clamp(1, codebook_size) - 1).expand(-1, num_codebooks, 1))
        top_p = self.top_p[:size].view(-1, 1, 1)
        by_k = (ranked >= least) | (top_k == 0)
        # In integers: on a GPU, the order in which a row of floats is summed depends on the number of rows.
        mass = (ranked.double() * 2**40).long()
        by_p = torch.cumsum(mass, dim=-1) - mass <= (top_p.double() * 2**40).long()
        kept = ranked * torch.where(top_p > 0, by_p, by_k)
        noise = exponential_noise(self.seed[:size], self.draw[:size], num_codebooks, codebook_size)
        rank = (kept / noise).argmax(dim=-1, keepdim=True)
        sampled = tokens.gather(2, rank).squeeze(2)
        return torch.where(self.is_greedy[:size].view(-1, 1), logits.argmax(dim=-1), sampled)
