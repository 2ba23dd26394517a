"""audiocraft's decode loop with conditions that it cannot take: an unconditional row with a text of its own.

The batching engine is tested against it, and the plain engine uses it. It follows `lm.py::LMModel.generate` with
guidance in two passes (`two_step_cfg`), because the texts of the two rows may differ in length, and audiocraft would
attend to padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from audiocraft_api.model import xformers_stub

xformers_stub.install()  # before the first import of audiocraft

# ruff: noqa: E402
import torch
from audiocraft.utils import utils
from torch import Tensor

from audiocraft_api.core.params import GenerationParams

if TYPE_CHECKING:
    from audiocraft.models.lm import LMModel

Conditions = dict[str, tuple[Tensor, Tensor]]  # name → condition [1, S, D], mask [1, S]


def generate_window(
    lm: LMModel,
    params: GenerationParams,
    prompt: Tensor,
    num_frames: int,
    conditions_at: Callable[[int], tuple[Conditions, Conditions]],
    on_step: Callable[[int, int], None],
) -> Tensor:
    """Continue the codes [1, K, P] to `num_frames` frames: codes [1, K, num_frames].

    `conditions_at(column)` returns the conditions of both rows, the unconditional one second, for the step that samples
    a column of the delay pattern. Calls `on_step(steps_done, steps_total)`.
    """
    codes = torch.full((1, lm.num_codebooks, num_frames), -1, dtype=torch.long, device=prompt.device)
    codes[..., : prompt.shape[-1]] = prompt
    pattern = lm.pattern_provider.get_pattern(num_frames)
    sequence, _, mask = pattern.build_pattern_sequence(codes, lm.special_token_id)  # [1, K, S]
    first = pattern.get_first_step_with_timesteps(prompt.shape[-1])
    assert first is not None
    num_fed, num_steps = 0, sequence.shape[-1] - first
    states: tuple[dict[str, Any], ...] = ({}, {})
    with lm.streaming():
        for column in range(first, sequence.shape[-1]):
            fed = sequence[..., num_fed:column]
            rows = zip(conditions_at(column), states, strict=True)
            cond, uncond = (next_logits(lm, fed, conditions, state) for conditions, state in rows)
            token = sample_token(uncond + (cond - uncond) * params.cfg_coef, params)  # [1, K, 1]
            token[~mask[None, ..., column : column + 1]] = lm.special_token_id
            current = sequence[..., column : column + 1]
            sequence[..., column : column + 1] = torch.where(current == -1, token, current)
            num_fed = column
            on_step(1 + column - first, num_steps)
    found, _, _ = pattern.revert_pattern_sequence(sequence, special_token=-1)
    return found[..., :num_frames]


def next_logits(lm: LMModel, tokens: Tensor, conditions: Conditions, state: dict[str, Any]) -> Tensor:
    """Feed a row's tokens [1, K, n]; return the last position's logits [1, K, codebook_size]. Updates `state`."""
    lm.set_streaming_state(state)
    logits: Tensor = lm(tokens, conditions=[], condition_tensors=conditions)
    state.clear()
    state.update(lm.get_streaming_state())
    return logits[:, :, -1]


def sample_token(logits: Tensor, params: GenerationParams) -> Tensor:
    """Sample as `lm.py::LMModel._sample_next_token` does."""
    if not params.use_sampling or params.temperature <= 0:
        return logits.argmax(dim=-1, keepdim=True)
    probs = torch.softmax(logits / params.temperature, dim=-1)
    if params.top_p > 0:
        return utils.sample_top_p(probs, p=params.top_p)
    if params.top_k > 0:
        return utils.sample_top_k(probs, k=params.top_k)
    return utils.multinomial(probs, num_samples=1)
