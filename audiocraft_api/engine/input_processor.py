"""Computes the inputs of a window before it is decoded: conditions, the codes of an audio prompt, the list of windows.

Runs in its own thread, while the loop decodes other requests. The most recently used descriptions keep their encoded
text, because clients repeat descriptions and a long generation needs the same one in each window.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.texts import Texts, TextSchedule
from audiocraft_api.engine.sequence import Conditioning, WindowInputs

if TYPE_CHECKING:
    from audiocraft_api.core.window import Window
    from audiocraft_api.model.audiocraft_adapter import LoadedModel

Conditions = Mapping[str, tuple[Tensor, Tensor]]  # name -> embeddings [1, L, D], mask [1, L]


class InputProcessor:
    """Computes the window inputs of requests for one model. Not thread-safe."""

    def __init__(self, model: LoadedModel, *, max_prefix: int, is_exact: bool, cache_entries: int) -> None:
        """`is_exact` keeps the unconditional row even at guidance 1.0.

        audiocraft's `uncond + (cond - uncond)` is not bit-identical to `cond`.
        """
        self._model = model
        # Not the model's own fuser: it keeps the state of audiocraft's loop while that runs, and then adds no prefix.
        fuser = model.lm.fuser
        self._fuser = type(fuser)(fuser.fuse2cond, fuser.cross_attention_pos_emb, fuser.cross_attention_pos_emb_scale)
        self._max_prefix = max_prefix
        self._is_exact = is_exact
        self._cache_entries = cache_entries
        self._cache: OrderedDict[tuple[Texts, bool, bool], list[Conditioning]] = OrderedDict()

    @torch.inference_mode()
    def first_window(self, params: GenerationParams) -> WindowInputs:
        """Plan a request's windows, encode its audio prompt and compute its first conditions. Raises InvalidRequest."""
        model = self._model
        prompt = torch.zeros(model.num_codebooks, 0, dtype=torch.long)
        if params.audio_prompt is not None:
            prompt = model.prompt_codes(params.audio_prompt)[0].cpu()
        windows = model.windows(params, prompt.shape[1])
        texts = TextSchedule(params, model.frame_rate)
        start = windows[0].start if len(windows) > 1 else None
        return WindowInputs(self._rows(params, texts.at(prompt.shape[1]), start), windows, prompt, texts)

    @torch.inference_mode()
    def later_window(self, params: GenerationParams, window: Window) -> WindowInputs:
        """Compute the conditions of a window after the first."""
        schedule = TextSchedule(params, self._model.frame_rate)
        rows = self._rows(params, schedule.at(window.start + window.num_prompt_frames), window.start)
        return WindowInputs(rows, [], torch.zeros(self._model.num_codebooks, 0), schedule)

    @torch.inference_mode()
    def rows_of(self, params: GenerationParams, texts: Texts) -> list[Conditioning]:
        """Compute the conditions of texts that begin within a window. Only for models without a prefix."""
        return self._rows(params, texts, None)

    @torch.inference_mode()
    def contexts(self, params: GenerationParams, texts: tuple[str, ...]) -> dict[str, Tensor]:
        """Compute the contexts [L, D] of texts, each by itself. Only for models without a prefix."""
        contexts = {text: self._rows(params, Texts(text, None), None)[0].context for text in texts}
        return {text: context for text, context in contexts.items() if context is not None}

    def _rows(self, params: GenerationParams, texts: Texts, start: int | None) -> list[Conditioning]:
        """Return the rows of texts in the window at frame `start`; None if there is only one window."""
        conditional_only = params.cfg_coef == 1.0 and not self._is_exact
        keep_both = bool(params.segments)  # the number of rows must not change within a window
        key = (texts, conditional_only, keep_both)
        if params.melody is None and key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        seconds = None if start is None else start / self._model.frame_rate
        cond, uncond = self._model.condition_tensors(texts.description, params.melody, seconds, texts.negative)
        rows = [self._conditioning(cond)]
        # Both rows are equal without a description and a melody, or with the same text, and guidance adds exactly zero.
        if not conditional_only and (keep_both or not _are_equal(cond, uncond)):
            rows.append(self._conditioning(uncond))
        if params.melody is None:
            self._cache[key] = rows
            if len(self._cache) > self._cache_entries:
                self._cache.popitem(last=False)
        return rows

    def _conditioning(self, conditions: Conditions) -> Conditioning:
        """Fuse the conditions as the model does (audiocraft `conditioners.py::ConditionFuser`)."""
        some = next(iter(conditions.values()))[0]
        prefix, context = self._fuser(some.new_zeros(1, 0, some.shape[-1]), conditions)
        if prefix.shape[1] > self._max_prefix:
            raise InvalidRequest("The prompt is too long for this model. Use a shorter one.")
        return Conditioning(
            prefix=prefix[0].float().cpu() if prefix.shape[1] else None,
            # A context of zeros belongs to the unconditional row, whatever its length.
            context=context[0].float().cpu() if context is not None and context.any() else None,
        )


def _are_equal(cond: Conditions, uncond: Conditions) -> bool:
    return all(torch.equal(cond[name][0], uncond[name][0]) for name in cond)
