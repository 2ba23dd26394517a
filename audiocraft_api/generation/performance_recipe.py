"""A performance as JSON: what its session returns, what a client may edit, and what is generated again.

Controls are written with each change, so that a change can be read, moved and edited by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from audiocraft_api.core.constants import FRAME_RATE
from audiocraft_api.core.performance import Change, Controls, Performance, WeightedPrompt


def performance_json(performance: Performance) -> dict[str, Any]:
    """Return the fields of a performance."""
    return {"frames": performance.num_frames, "changes": [_change_json(change) for change in performance.changes]}


def performance_of(fields: Mapping[str, Any]) -> Performance:
    """Return the performance that `performance_json` made `fields` from; other fields are ignored."""
    return Performance(tuple(_change_of(change) for change in fields["changes"]), fields["frames"])


def _change_json(change: Change) -> dict[str, Any]:
    controls = change.controls
    return {
        "frame": change.frame,
        "prompts": [{"text": prompt.text, "weight": prompt.weight} for prompt in controls.prompts],
        "temperature": controls.temperature,
        "top_k": controls.top_k,
        "top_p": controls.top_p,
        "cfg_coef": controls.cfg_coef,
        "transition": change.transition_frames / FRAME_RATE,
        "reset_context": change.resets_context,
    }


def _change_of(fields: Mapping[str, Any]) -> Change:
    controls = Controls(
        prompts=tuple(WeightedPrompt(prompt["text"], prompt["weight"]) for prompt in fields["prompts"]),
        temperature=fields["temperature"],
        top_k=fields["top_k"],
        top_p=fields["top_p"],
        cfg_coef=fields["cfg_coef"],
    )
    return Change(fields["frame"], controls, round(fields["transition"] * FRAME_RATE), fields["reset_context"])
