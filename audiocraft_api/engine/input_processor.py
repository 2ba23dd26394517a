"""What precedes decoding: conditions, the codes of an audio prompt, the windows. Done in a thread beside the loop.

The text encoder's results are kept for the descriptions asked for last: clients repeat themselves, and a long
generation asks again for each window.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine.sequence import Row, WindowInputs

if TYPE_CHECKING:
    from audiocraft_api.model.audiocraft_adapter import LoadedModel, Window

Conditions = Mapping[str, tuple[Tensor, Tensor]]  # name -> embeddings [1, L, D], mask [1, L]


class InputProcessor:
    """Prepares the windows of requests on one model. One thread at a time."""

    def __init__(self, model: LoadedModel, *, max_prefix: int, exact: bool, cache_entries: int) -> None:
        """`exact` keeps the null row at guidance 1, where audiocraft's sum of both rows is not bitwise the one row."""
        self._model = model
        self._max_prefix = max_prefix
        self._exact = exact
        self._cache_entries = cache_entries
        self._cache: OrderedDict[tuple[str, bool], Sequence[Row]] = OrderedDict()

    @torch.inference_mode()
    def first(self, params: GenerationParams) -> WindowInputs:
        """Plan a request's windows, encode its prompt and compute its first conditions. Raises InvalidRequest."""
        model = self._model
        prompt = torch.zeros(model.num_codebooks, 0, dtype=torch.long)
        if params.audio_prompt is not None:
            prompt = model.encode(params.audio_prompt)[0].cpu()
        windows = model.windows(params, prompt.shape[1])
        start = windows[0].start if len(windows) > 1 else None
        return WindowInputs(self._rows(params, start), windows, prompt)

    @torch.inference_mode()
    def later(self, params: GenerationParams, window: Window) -> WindowInputs:
        """Compute the conditions of a later window."""
        return WindowInputs(self._rows(params, window.start), (), torch.zeros(self._model.num_codebooks, 0))

    def _rows(self, params: GenerationParams, start: int | None) -> Sequence[Row]:
        """Return the rows of the window at frame `start`, None for the only one."""
        one_row = params.cfg_coef == 1.0 and not self._exact
        key = (params.description, one_row)
        if params.melody is None and key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        seconds = None if start is None else start / self._model.frame_rate
        cond, null = self._model.condition_tensors(params.description, params.melody, seconds)
        rows = [self._row(cond)]
        # Without description and tune both rows are the same: guidance adds exactly nothing.
        if not one_row and not _equal(cond, null):
            rows.append(self._row(null))
        if params.melody is None:
            self._cache[key] = rows
            if len(self._cache) > self._cache_entries:
                self._cache.popitem(last=False)
        return rows

    def _row(self, conditions: Conditions) -> Row:
        """Fuse the conditions as the model does (audiocraft `conditioners.py::ConditionFuser`)."""
        some = next(iter(conditions.values()))[0]
        prefix, context = self._model.lm.fuser(some.new_zeros(1, 0, some.shape[-1]), conditions)
        if prefix.shape[1] > self._max_prefix:
            raise InvalidRequest("The prompt is too long for this model; shorten it.")
        return Row(
            prefix=prefix[0].float().cpu() if prefix.shape[1] else None,
            # A context of zeros is the null row's, whatever its length.
            context=context[0].float().cpu() if context is not None and context.any() else None,
        )


def _equal(cond: Conditions, null: Conditions) -> bool:
    return all(torch.equal(cond[name][0], null[name][0]) for name in cond)
