"""A performance in audiocraft's own model, step by step: the batching engine is tested against it, live and again.

Cross-attention to several texts is the weighted sum of the module's own outputs, put in place by forward hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.performance import Timeline
from audiocraft_api.model.guided_loop import Conditions, next_logits, sample_token

if TYPE_CHECKING:
    from audiocraft.models.lm import LMModel


def generate_performance(
    lm: LMModel,
    params: GenerationParams,
    *,
    window_frames: int,
    stride_frames: int,
    context_of: Callable[[str], Conditions],
    on_step: Callable[[int, int], None],
) -> Tensor:
    """Generate codes [1, K, T]. Calls `on_step(frames_done, frames_total)` after each step."""
    assert params.performance is not None
    performance = params.performance
    changes = list(performance.changes)
    timeline = Timeline(changes.pop(0))
    codes = torch.zeros(1, lm.num_codebooks, 0, dtype=torch.long, device=next(lm.parameters()).device)
    start = 0
    while codes.shape[-1] < performance.num_frames:
        done = codes.shape[-1]
        if changes and changes[0].frame == done:
            start = done if changes[0].resets_context else start
            timeline.add(changes.pop(0))
        given = codes[..., start:]
        pattern = lm.pattern_provider.get_pattern(window_frames)
        layout = torch.full((1, lm.num_codebooks, window_frames), -1, dtype=torch.long, device=codes.device)
        layout[..., : given.shape[-1]] = given
        sequence, _, mask = pattern.build_pattern_sequence(layout, lm.special_token_id)  # [1, K, S]
        states: tuple[dict[str, Any], ...] = ({}, {})
        num_fed, frame = 0, done
        with lm.streaming():
            for column in range(given.shape[-1] + 1, sequence.shape[-1]):
                frame = max(done, start + column - 1 - max(lm.pattern_provider.delays))
                if frame == performance.num_frames:
                    break
                if changes and changes[0].frame == frame:
                    if changes[0].resets_context:
                        break
                    timeline.add(changes.pop(0))
                fed = sequence[..., num_fed:column]
                some = context_of(timeline.texts[0])  # what audiocraft attends to is replaced, and must not be missing
                cond, uncond = (
                    _blended_logits(lm, fed, some, [(context_of(text), weight) for text, weight in blend], state)
                    for blend, state in zip(timeline.blends(frame), states, strict=True)
                )
                controls = timeline.controls
                now = replace(params, temperature=controls.temperature, top_k=controls.top_k, top_p=controls.top_p)
                token = sample_token(uncond + (cond - uncond) * controls.cfg_coef, now)  # [1, K, 1]
                token[~mask[None, ..., column : column + 1]] = lm.special_token_id
                current = sequence[..., column : column + 1]
                sequence[..., column : column + 1] = torch.where(current == -1, token, current)
                num_fed = column
                on_step(frame, performance.num_frames)
            else:
                frame = start + window_frames
        found, _, _ = pattern.revert_pattern_sequence(sequence, special_token=-1)
        codes = torch.cat([codes, found[..., done - start : frame - start]], dim=-1)
        start += stride_frames
    return codes


def _blended_logits(
    lm: LMModel, tokens: Tensor, some: Conditions, parts: list[tuple[Conditions, float]], state: dict[str, Any]
) -> Tensor:
    """Feed a row's tokens [1, K, n]; return the last position's logits [1, K, codebook_size]. Updates `state`."""
    contexts = [(next(iter(conditions.values()))[0], weight) for conditions, weight in parts]
    with _attending_to(lm, contexts):
        return next_logits(lm, tokens, some, state)


@contextmanager
def _attending_to(lm: LMModel, parts: list[tuple[Tensor, float]]) -> Iterator[None]:
    """Replace the output of each cross-attention by the weighted sum over contexts [1, L, D]; zeros without any."""

    def attend(module: torch.nn.Module, arguments: tuple[Tensor, ...], _kwargs: Any, output: tuple[Any, ...]) -> Any:
        total = torch.zeros_like(output[0])
        for context, weight in parts:
            total = total + weight * module.forward(arguments[0], context, context, need_weights=False)[0]
        return total, *output[1:]

    hooks = [layer.cross_attention.register_forward_hook(attend, with_kwargs=True) for layer in lm.transformer.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
