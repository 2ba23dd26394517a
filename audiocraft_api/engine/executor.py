"""A loaded model made ready for decoding: what the loop makes once and keeps until the model is unloaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiocraft_api.config import Config
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.codec.decoder import ChunkDecoderFactory, make_decoder
from audiocraft_api.engine.input_processor import InputProcessor
from audiocraft_api.engine.model_runner import ModelRunner
from audiocraft_api.engine.precision import make_model_runner as default_model_runner

if TYPE_CHECKING:
    from audiocraft_api.model.audiocraft_adapter import LoadedModel
    from audiocraft_api.model.model_cache import ModelCache

ModelRunnerFactory = Callable[["LoadedModel", Config], ModelRunner]


@dataclass(frozen=True, eq=False)
class ModelExecutor:
    """The parts that decode for one model, of which the model_runner may hold a copy of the weights."""

    model: LoadedModel
    model_runner: ModelRunner
    make_codec: Callable[[], ChunkDecoderFactory]  # with the first call; the others get the same
    preparer: InputProcessor

    def start(self, request: EngineRequest, num_frames: int) -> None:
        """Tell a request what its result will be."""
        request.start(
            num_frames,
            sample_rate=self.model.sample_rate,
            frame_rate=self.model.frame_rate,
            revision=self.model.revision,
            precision=self.model_runner.precision,
        )

    def settle(self, cache: ModelCache) -> None:
        """Do, once, what the first token need not wait for: release the weights that the model runner has packed."""
        if self.model_runner.own_weight_bytes and not self.model.has_released_decoder_weights:
            cache.release_decoder_weights(self.model, self.model_runner.own_weight_bytes)


def prepare(model: LoadedModel, config: Config, make_model_runner: ModelRunnerFactory | None = None) -> ModelExecutor:
    """Pack weights and set up caches; takes seconds. Raises GenerationFailed, OutOfMemory."""
    model_runner = (make_model_runner or default_model_runner)(model, config)
    preparer = InputProcessor(
        model,
        max_prefix=model_runner.max_prefix,
        exact=model_runner.is_exact,
        cache_entries=config.engine.condition_cache_entries,
    )
    return ModelExecutor(model, model_runner, functools.cache(lambda: make_decoder(model.codec)), preparer)
