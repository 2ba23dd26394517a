"""The benchmark of GPUs: its model and its checks, on the CPU, and its report when it is cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from audiocraft_api.engine.weights import decoder_weights
from audiocraft_api.model import demo, released_configuration
from audiocraft_api.model.checkpoint import build_language_model
from audiocraft_api.model.demo import add_repository
from audiocraft_api.model.hub import Hub
from bench import gpu, graph_checks, random_model, shapes, untrained
from support.distributions import hide_all_but, required_by

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def model(request: pytest.FixtureRequest) -> random_model.RandomModel:
    dtype = torch.float16 if request.param == "cuda" else torch.float32
    return random_model.RandomModel("tiny", torch.device(request.param), dtype)


def test_the_random_model_has_the_weights_of_audiocrafts(model: random_model.RandomModel, tmp_path: Path) -> None:
    dim, num_heads, num_layers = random_model.TINY
    encoder = shapes.make_text_encoder(random_model.TINY_TEXT_ENCODER)
    name = demo.TEXT_ENCODER_ID
    add_repository(tmp_path, name, untrained.tokenizer().save_pretrained, encoder.save_pretrained)
    configuration = released_configuration.configuration(
        text_encoder=name, melody=False, stereo=False, dim=dim, num_heads=num_heads, num_layers=num_layers
    )
    lm = build_language_model(OmegaConf.create(configuration), Hub(tmp_path, offline=True), torch.device("cpu"))
    ours, theirs = decoder_weights(model.lm), decoder_weights(lm)
    assert list(map(shape_of, parts_of(ours))) == list(map(shape_of, parts_of(theirs)))
    assert model.lm.fuser.fuse2cond == lm.fuser.fuse2cond
    assert model.lm.pattern_provider.delays == lm.pattern_provider.delays


def parts_of(value: object) -> list[object]:
    """Return the tensors and numbers of nested weights in their order."""
    if isinstance(value, list):
        return [part for item in value for part in parts_of(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [part for name in value.__dataclass_fields__ for part in parts_of(getattr(value, name))]
    return [value]


def shape_of(value: object) -> object:
    return value.shape if isinstance(value, torch.Tensor) else value


def test_a_graph_gives_the_codes_of_eager_steps(model: random_model.RandomModel) -> None:
    graph_checks.graphs_equal_eager_steps(model)


def test_a_request_gives_the_same_codes_alone_and_in_a_batch(model: random_model.RandomModel) -> None:
    graph_checks.batches_change_nothing(model)


@pytest.mark.gpu
def test_the_engine_works_again_after_memory_was_short_during_a_capture() -> None:
    model = random_model.RandomModel("tiny", torch.device("cuda"), torch.float16)
    assert graph_checks.short_memory_fails_one_request(model)


def test_the_checks_find_a_difference(model: random_model.RandomModel) -> None:
    cases = graph_checks._cases(model)
    with graph_checks._codes_engine(model, capture=False) as engine:
        first, second = (graph_checks._codes(engine.submit(case)) for case in cases[:2])
    with pytest.raises(AssertionError, match="The codes differ, one and another"):
        graph_checks._require_equal(first, second, "one and another")


def test_the_report_is_printed_when_the_time_is_over() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--limit-seconds", "0.1", "tiny"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["cut_short"] == "limit of 0.1 seconds"


def test_the_report_is_printed_at_a_signal() -> None:
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--seconds", "20", "tiny"]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            lines.append(line)
            if line.startswith("machine"):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 1
    assert json.loads(lines[-1])["cut_short"] == "SIGTERM"
    assert "torch" in json.loads(lines[-1])["machine"]


def test_a_step_that_fails_is_reported_and_the_next_one_runs(capsys: pytest.CaptureFixture[str]) -> None:
    report = gpu.Report()

    def fail() -> gpu.Figures:
        raise RuntimeError("no memory")

    assert not gpu._run("small_one", fail, report)
    assert gpu._run("large_one", lambda: {"large_s_per_s": 0.5}, report)
    report.end()
    report.end()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("{")] == lines[-1:]
    figures = json.loads(lines[-1])
    assert figures["small_one_error"] == "RuntimeError: no memory"
    assert figures["large_s_per_s"] == 0.5


@pytest.mark.fault
def test_a_machine_with_torch_and_transformers_alone_needs_only_the_bundle(tmp_path: Path) -> None:
    bundle, hiding = tmp_path / "bundle", tmp_path / "hiding"
    hiding.mkdir()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run([sys.executable, "-m", "bench.bundle", bundle, "--python", version], cwd=ROOT, check=True)
    hide_all_but(required_by("torch", "transformers") - {"pydantic", "pydantic-core"}, hiding)
    without_network = ["unshare", "-n"] if os.geteuid() == 0 else []
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--quick"]
    short = ["--seconds", "0.3", "--at-once", "2", "--limit-seconds", "1800", "tiny"]
    environment = os.environ | {"PYTHONPATH": f"{bundle}:{hiding}"}
    done = subprocess.run(
        [*without_network, *command, *short], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["graph_equals_eager"] == figures["batch_invariance"] == "passed"
    assert min(figures[f"tiny_{name}"] for name in ("s_per_s", "2_at_once_rtf", "transformers_fp32_s_per_s")) > 0
    assert "audiocraft" not in figures["machine"]
