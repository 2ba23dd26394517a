"""A loaded model made ready for decoding: what the loop makes once and keeps until the model is unloaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiocraft_api.config import Config
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.codec.decoder import ChunkDecoderFactory, make_decoder
from audiocraft_api.engine.input_processor import Preparer
from audiocraft_api.engine.model_runner import Stepper
from audiocraft_api.model.audiocraft_imports import complete_torch

if TYPE_CHECKING:
    from audiocraft_api.model.audiocraft_adapter import LoadedModel
    from audiocraft_api.model.model_cache import ModelCache

StepperFactory = Callable[["LoadedModel", Config], Stepper]


@dataclass(frozen=True, eq=False)
class Prepared:
    """The parts that decode for one model, of which the stepper may hold a copy of the weights."""

    model: LoadedModel
    stepper: Stepper
    make_codec: Callable[[], ChunkDecoderFactory]  # with the first call; the others get the same
    preparer: Preparer

    def start(self, request: EngineRequest, num_frames: int) -> None:
        """Tell a request what its result will be."""
        request.start(
            num_frames,
            sample_rate=self.model.sample_rate,
            frame_rate=self.model.frame_rate,
            revision=self.model.revision,
            precision=self.stepper.precision,
        )

    def settle(self, cache: ModelCache) -> None:
        """Do, once, what the first token need not wait for: give the packed weights' source back, complete torch."""
        if self.stepper.own_weight_bytes and not self.model.is_handed_over:
            cache.hand_over(self.model, self.stepper.own_weight_bytes)
        complete_torch()


def prepare(model: LoadedModel, config: Config, make_stepper: StepperFactory) -> Prepared:
    """Pack weights and set up caches; takes seconds. Raises GenerationFailed, OutOfMemory."""
    stepper = make_stepper(model, config)
    preparer = Preparer(
        model,
        max_prefix=stepper.max_prefix,
        exact=stepper.is_exact,
        cache_entries=config.engine.condition_cache_entries,
    )
    return Prepared(model, stepper, functools.cache(lambda: make_decoder(model.codec)), preparer)
