"""AudioGen: windows of 10 seconds at 16 kHz, with audiocraft's own codec."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiocraft_api.config import Config
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.codec.decoder import StreamingCodec, make_codec
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.loading import load_model
from support import audiogen
from support.engines import (
    SECONDS,
    LoadedModels,
    assert_same_codes,
    codes_engine,
    eager_runner,
    noise,
    params,
    wait_for_codes,
)

PROMPT = "dog barking in the distance"
SECONDS_LONG = 12.5  # three windows with a stride of 2 s


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("audiogen")
    audiogen.write(directory)
    return directory


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    config = Config(models_file=directory / "models.json", offline=True, device="cpu")
    catalog = Catalog(config)
    return load_model(catalog.get(audiogen.NAME), catalog, config)


@pytest.fixture(scope="module")
def cache(model: Any) -> LoadedModels:
    return LoadedModels(lambda _name: model)


def sound(**changes: Any) -> Any:
    return params(audiogen.NAME, **{"description": PROMPT, "extend_stride_seconds": 2.0, **changes})


@pytest.fixture(scope="module")
def reference(directory: Path, model: Any) -> Any:  # noqa: ARG001
    """audiocraft's `AudioGen`, loaded by audiocraft from the same two files.

    audiocraft downloads text encoders, so the configuration names the directory of the one that `model` has loaded.
    """
    from audiocraft.models import AudioGen, loaders
    from audiocraft.modules.conditioners import T5Conditioner
    from omegaconf import OmegaConf

    package = torch.load(directory / audiogen.NAME / "state_dict.bin", weights_only=True)
    config = OmegaConf.create(package["xp.cfg"])
    config.conditioners.description.t5.name = next(name for name in T5Conditioner.MODELS if str(directory) in name)
    path = directory / "reference.bin"
    torch.save({**package, "xp.cfg": OmegaConf.to_yaml(config)}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's old weight norm, in audiocraft
        codec = loaders.load_compression_model(str(directory / audiogen.NAME), device="cpu")
    return AudioGen("reference", codec, loaders.load_lm_model(str(path), device="cpu"))


def expected_codes(reference: Any, **settings: Any) -> tuple[Any, Any]:
    """Return the codes [K, T] and the waveform [1, n] of audiocraft's `AudioGen.generate`."""
    reference.set_generation_params(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        waveform, codes = reference.generate([PROMPT], return_tokens=True)
    return codes[0].numpy(), waveform[0].numpy()


@pytest.mark.parametrize("factory", [None, eager_runner])
def test_tokens_are_those_of_audiogen_over_several_windows(
    cache: LoadedModels, reference: Any, factory: Callable[..., Any] | None
) -> None:
    """The runner of GPUs draws other random numbers: it is compared without sampling."""
    use_sampling = factory is None
    engine = codes_engine(cache, **({} if factory is None else {"model_runner_factory": factory}))
    for seconds in (1.0, SECONDS_LONG):
        codes = wait_for_codes(engine.submit(sound(duration_seconds=seconds, use_sampling=use_sampling)))
        expected, _ = expected_codes(reference, duration=seconds, use_sampling=use_sampling)
        assert codes.shape == (4, seconds * 50)
        np.testing.assert_array_equal(codes, expected)
    engine.close()


def test_controls_that_audiogen_does_not_have_give_the_codes_of_the_plain_loop(cache: LoadedModels) -> None:
    engine = codes_engine(cache)
    cases = [
        sound(duration_seconds=11.0, negative_description="wind"),
        sound(duration_seconds=11.0, audio_prompt=noise(9.0), top_p=0.9),
    ]
    assert_same_codes(engine, cache, cases)
    engine.close()


def test_a_waveform_that_is_decoded_in_blocks_is_audiocrafts(model: Any, cache: LoadedModels, reference: Any) -> None:
    assert isinstance(make_codec(model.codec), StreamingCodec)
    engine = BatchingEngine(cache, Config(precision="exact").engine)  # type: ignore[arg-type]
    request = engine.submit(sound(duration_seconds=3.0))
    result = request.result(SECONDS)
    _, expected = expected_codes(reference, duration=3.0)
    assert (result.sample_rate, result.waveform.shape) == (16_000, (1, 48_000))
    assert np.abs(expected).max() > 1e-2, "the codec is silent, so the comparison would prove nothing"
    np.testing.assert_allclose(result.waveform, expected, atol=1e-5)
    assert len(list(request.chunks())) > 1
    engine.close()
