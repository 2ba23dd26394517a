"""Which backend a precision uses, and how far the rounded formats are from exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from audiocraft_api.config import Config
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine import precision
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.cpu import native_backend
from audiocraft_api.engine.cpu.native_backend import Format, NativeBackend
from audiocraft_api.engine.torch_backend import TorchBackend
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache
from support.random_weights import random_weights, row_logits, some_context, some_tokens

SIZES = {"num_slots": 2, "capacity": 64}
CFG_COEF = 3.0


def test_exact_is_float32_and_auto_is_six_bits_on_processors_that_multiply_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "has_fast_integers", lambda: True)
    assert precision.native_format("exact") == "float32"
    assert precision.native_format("auto") == "int6"
    monkeypatch.setattr(precision, "has_fast_integers", lambda: False)
    assert precision.native_format("auto") == "float16"


def test_the_native_backend_is_used_if_it_is_built() -> None:
    assert isinstance(precision.default_backend(random_weights(), "auto", **SIZES), NativeBackend)


def test_without_the_library_pytorch_is_used_and_a_rounded_precision_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native_backend, "load_library", lambda: None)
    weights = random_weights()
    assert isinstance(precision.default_backend(weights, "auto", **SIZES), TorchBackend)
    assert not caplog.records
    assert isinstance(precision.default_backend(weights, "int8", **SIZES), TorchBackend)
    assert "int8" in caplog.text


@pytest.mark.parametrize("setting", ["exact", "fp16", "bf16", "int8", "int6", "auto"])
def test_a_result_reports_the_precision_it_was_computed_in(
    demo_checkpoints: Path, setting: precision.Precision
) -> None:
    config = Config(checkpoints_dir=demo_checkpoints, device="cpu", offline=True, precision=setting)
    cache = ModelCache(Catalog(config), config)
    engine = BatchingEngine(cache, config.engine)
    result = engine.submit(GenerationParams("demo", "solo cello", 0.1, seed=1)).result(60)
    engine.close()
    cache.close()
    resolved = {"float16": "fp16", "int6": "int6"}[precision.native_format("auto")]
    assert result.precision == (resolved if setting == "auto" else setting)


def test_pytorch_in_place_of_the_kernels_is_reported_as_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_backend, "load_library", lambda: None)
    assert precision.default_backend(random_weights(), "auto", **SIZES).precision == "fp32"


# Mean divergence in nats and relative error after guidance; with weights of 8 bits, half of the rule's limits.
@pytest.mark.parametrize(
    ("weight_format", "largest_kl", "largest_error"),
    [("float16", 0.0005, 0.02), ("bfloat16", 0.0005, 0.02), ("int8", 0.0025, 0.03), ("int6", 0.005, 0.06)],
)
def test_guided_logits_are_close_to_exact(weight_format: Format, largest_kl: float, largest_error: float) -> None:
    weights = random_weights(dim=512, num_heads=8, num_layers=6)
    for index, layer in enumerate(weights.layers):  # deeper layers smaller, as audiocraft initializes them
        assert layer.cross is not None
        for matrix in (layer.qkv, layer.self_out, layer.linear1, layer.linear2, *list(vars(layer.cross).values())[2:]):
            matrix.div_((2 * (index + 1)) ** 0.5)
    context, tokens = some_context(weights.dim, 10), some_tokens(40)

    def guided(some_format: Format) -> torch.Tensor:
        backend = NativeBackend(weights, **SIZES, weight_format=some_format)
        cond, uncond = row_logits(backend, context, tokens, slot=0), row_logits(backend, None, tokens, slot=1)
        return uncond + (cond - uncond) * CFG_COEF

    exact, rounded = guided("float32"), guided(weight_format)
    logs, exact_logs = rounded.log_softmax(-1), exact.log_softmax(-1)
    assert float((exact_logs.exp() * (exact_logs - logs)).sum(-1).mean()) < largest_kl
    assert float((rounded - exact).norm() / exact.norm()) < largest_error
