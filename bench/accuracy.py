"""Measures how much the logits of a precision differ from those of `exact`, for the same tokens."""

from __future__ import annotations

from typing import Any

CFG_COEF = 3.0


def compare(model: Any, precision: str, num_steps: int) -> dict[str, object]:
    """Return mean KL divergence (nats) and relative error of guided logits of `precision` against `exact`.

    Both backends get the tokens that are sampled from `exact`, so that every step compares the same position.
    """
    import torch

    from audiocraft_api.engine.precision import default_backend
    from audiocraft_api.engine.weights import decoder_weights
    from bench.engine import DESCRIPTION

    weights = decoder_weights(model.lm)
    cond, _uncond = model.condition_tensors(DESCRIPTION)
    backends = []
    for each in ("exact", precision):
        backend = default_backend(weights, each, num_slots=2, capacity=num_steps + 8)  # type: ignore[arg-type]
        backend.begin(0, cond["description"][0][0])
        backend.begin(1, None)
        backends.append(backend)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((2, model.num_codebooks), model.special_token_id)
    divergences, errors = [], []
    for position in range(num_steps):
        exact, other = (_guided(backend.decode([0, 1], tokens, [position] * 2).double()) for backend in backends)
        log_p, log_q = exact.log_softmax(-1), other.log_softmax(-1)
        divergences.append((log_p.exp() * (log_p - log_q)).sum(-1).mean().item())
        errors.append(((other - exact).norm() / exact.norm()).item())
        tokens = torch.multinomial(log_p.exp(), 1, generator=generator).T.expand(2, -1).contiguous()
    for backend in backends:
        backend.close()
    return {
        f"{precision}_kl_nats": sum(divergences) / num_steps,
        f"{precision}_logit_error": sum(errors) / num_steps,
    }


def _guided(logits: Any) -> Any:
    """[2, K, codebook_size], the conditional row first → [K, codebook_size]"""
    return logits[1] + (logits[0] - logits[1]) * CFG_COEF
