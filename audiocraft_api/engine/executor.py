"""A loaded model prepared for decoding: what the loop builds once and keeps until the model is unloaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from audiocraft_api.config.engine import EngineSettings
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.codec.decoder import ChunkCodec, make_codec, threads_beside_decoding
from audiocraft_api.engine.input_processor import InputProcessor
from audiocraft_api.engine.model_runner import ModelRunner
from audiocraft_api.engine.precision import make_model_runner

if TYPE_CHECKING:
    from audiocraft_api.model.audiocraft_adapter import LoadedModel
    from audiocraft_api.model.model_cache import ModelCache

ModelRunnerFactory = Callable[["LoadedModel", EngineSettings], ModelRunner]
CodecFactory = Callable[[Any], ChunkCodec]  # from audiocraft's `CompressionModel`


@dataclass(frozen=True, eq=False)
class ModelExecutor:
    """The parts that decode for one model. The model runner may own a copy of the weights."""

    cache: ModelCache
    model: LoadedModel
    model_runner: ModelRunner
    input_processor: InputProcessor
    codec: Callable[[], ChunkCodec]  # builds the codec when first called

    def start_request(self, request: EngineRequest, num_frames: int) -> None:
        """Start a request with the properties of its result."""
        request.start(
            num_frames,
            sample_rate=self.model.sample_rate,
            frame_rate=self.model.frame_rate,
            revision=self.model.revision,
            precision=self.model_runner.precision,
            codec=self.model.codec_digest,
        )

    def finish_startup(self) -> None:
        """Release the weights that the model runner has packed, once, so that the first token does not wait for it."""
        if self.model_runner.own_weight_bytes and not self.model.has_released_decoder_weights:
            self.cache.release_decoder_weights(self.model, self.model_runner.own_weight_bytes)

    def close(self) -> None:
        """Free packed weights and caches. A model that has released its own weights cannot be prepared again."""
        self.model_runner.close()
        self.cache.evict(self.model)


def build_executor(
    cache: ModelCache,
    model: LoadedModel,
    settings: EngineSettings,
    *,
    model_runner_factory: ModelRunnerFactory | None = None,
    codec_factory: CodecFactory | None = None,
) -> ModelExecutor:
    """Pack weights and allocate caches, which takes seconds. Raises GenerationFailed, OutOfMemory."""
    model_runner = (model_runner_factory or make_model_runner)(model, settings)
    input_processor = InputProcessor(
        model,
        max_prefix=model_runner.max_prefix,
        is_exact=model_runner.is_exact,
        cache_entries=settings.condition_cache_entries,
    )
    make = codec_factory or functools.partial(make_codec, num_threads=threads_beside_decoding())
    codec = functools.cache(lambda: make(model.codec))
    return ModelExecutor(cache, model, model_runner, input_processor, codec)
