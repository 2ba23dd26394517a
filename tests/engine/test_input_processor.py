"""The inputs of a window: conditions, the codes of an audio prompt."""

from __future__ import annotations

import torch

from audiocraft_api.engine.input_processor import InputProcessor
from support.engines import LoadedModels, noise, params


def test_conditions_do_not_depend_on_a_run_of_audiocrafts_own_loop(cache: LoadedModels) -> None:
    case = params("demo-melody", melody=noise(1.0))
    with cache.lease("demo-melody") as model:
        (cond, _) = model.condition_tensors(case.description, case.melody, None)
        processor = InputProcessor(model, max_prefix=1000, is_exact=True, cache_entries=0)
        expected = processor.first_window(case).rows
        with model.lm.streaming(), torch.no_grad():
            model.lm.fuser(torch.zeros(1, 1, model.lm.dim), cond)  # what the loop does in its first step
            rows = processor.first_window(case).rows

    assert expected[0].prefix is not None
    for row, other in zip(rows, expected, strict=True):
        assert row.prefix is not None
        assert other.prefix is not None
        assert torch.equal(row.prefix, other.prefix)
