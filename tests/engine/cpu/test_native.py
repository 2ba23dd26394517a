"""The native decoder against `TorchBackend`, and the invariant of backends: a row's bits depend on that row alone."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from audiocraft_api.engine.cpu import native_backend
from audiocraft_api.engine.cpu.native import build
from audiocraft_api.engine.cpu.native.library import open_library
from audiocraft_api.engine.cpu.native_backend import FORMATS, Format, NativeBackend
from audiocraft_api.engine.torch_backend import TorchBackend
from audiocraft_api.engine.weights import DecoderWeights, converted
from support.random_weights import (
    random_weights,
    relative_error,
    row_logits,
    some_context,
    some_tokens,
    with_outliers,
)
from support.served import wait_until

CAPACITY = 200
# The allowed relative error of each format's logits on these small models.
BOUNDS: dict[Format, float] = {"float32": 3e-6, "float16": 3e-2, "bfloat16": 3e-2, "int8": 3e-2, "int6": 8e-2}

SIZES = pytest.mark.parametrize("sizes", [(128, 2), (192, 6), (64, 4)], ids=["64-wide heads", "32-wide", "16-wide"])


def make_backend(
    weights: DecoderWeights, weight_format: Format, num_threads: int = 2, num_slots: int = 24
) -> NativeBackend:
    return NativeBackend(
        weights, num_slots=num_slots, capacity=CAPACITY, weight_format=weight_format, num_threads=num_threads
    )


@pytest.mark.parametrize("weight_format", FORMATS)
@SIZES
def test_logits_match_the_reference(weight_format: Format, sizes: tuple[int, int]) -> None:
    weights = random_weights(*sizes)
    reference = TorchBackend(weights, num_slots=1, capacity=CAPACITY)
    backend = make_backend(weights, weight_format)
    tokens = some_tokens(40)
    for context in (some_context(weights.dim, 19), None):
        expected = row_logits(reference, context, tokens)
        assert relative_error(row_logits(backend, context, tokens), expected) < BOUNDS[weight_format]


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("has_cross", [True, False])
def test_float16_weights_give_the_bits_of_the_same_weights_in_float32(weight_format: Format, has_cross: bool) -> None:
    half = converted(random_weights(has_cross=has_cross), torch.float16, torch.device("cpu"))
    tokens, context = some_tokens(20), some_context(half.dim, 7) if has_cross else None
    stored, wide = (
        row_logits(make_backend(weights, weight_format), context, tokens)
        for weights in (half, converted(half, torch.float32, torch.device("cpu")))
    )
    assert torch.equal(stored, wide)


@pytest.mark.parametrize("has_cross", [True, False])
def test_prefix_and_long_prompt_match_the_reference(has_cross: bool) -> None:
    weights = random_weights(has_cross=has_cross)
    context = some_context(weights.dim, 5) if has_cross else None
    prefix, tokens = some_context(weights.dim, 70, seed=3), some_tokens(90)
    results = []
    for backend in (TorchBackend(weights, num_slots=2, capacity=CAPACITY), make_backend(weights, "float32")):
        backend.begin(1, context)
        first = backend.prefill(1, 0, prefix, tokens[:80].T)
        last = backend.prefill(1, 150, None, tokens[80:].T)
        results.append(torch.stack([first, last]))
    assert relative_error(results[1], results[0]) < BOUNDS["float32"]


@pytest.mark.parametrize("weight_format", FORMATS)
def test_prefill_gives_the_bits_of_single_steps(weight_format: Format) -> None:
    weights = random_weights()
    backend, tokens, context = make_backend(weights, weight_format), some_tokens(75), some_context(weights.dim, 7)
    expected = row_logits(backend, context, tokens)[-1]
    backend.begin(1, context)
    assert torch.equal(backend.prefill(1, 0, None, tokens.T), expected)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_blend_of_contexts_matches_the_reference_whatever_the_row_attended_to_before(weight_format: Format) -> None:
    weights, tokens = random_weights(), some_tokens(12)
    one, two, three = (some_context(weights.dim, length, seed=length) for length in (7, 19, 4))
    script = {0: [(one, 1.0)], 3: [(one, 0.5), (two, 0.5)], 6: [(one, 0.2), (two, 0.8)], 8: [(three, 0.3)], 10: []}
    backends = [TorchBackend(weights, num_slots=2, capacity=CAPACITY), *(make_backend(weights, weight_format),) * 2]
    results = []
    for backend, slot in zip(backends, (0, 0, 1), strict=True):
        if slot:
            backend.blend(slot, [(two, 1.0), (three, 1.0)])
        logits = []
        for step in range(len(tokens)):
            if step in script:
                backend.blend(slot, script[step])
            logits.append(backend.decode([slot], tokens[step : step + 1], [step])[0])
        results.append(torch.stack(logits).clone())
    expected, found, after_others = results
    assert relative_error(found, expected) < BOUNDS[weight_format]
    assert torch.equal(found, after_others)
    assert torch.equal(found[:3], row_logits(backends[1], one, tokens[:3]))


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("outlier", [1, 5], ids=["even activations", "some rows with outliers"])
def test_a_rows_bits_do_not_depend_on_its_neighbors(weight_format: Format, outlier: float) -> None:
    weights = with_outliers(random_weights(), outlier)
    tokens, context = some_tokens(20), some_context(weights.dim, 11)
    expected = row_logits(make_backend(weights, weight_format, num_threads=1), context, tokens)
    backend = make_backend(weights, weight_format, num_threads=3)
    backend.begin(17, context)
    for slot in range(16):
        backend.begin(slot, None if slot % 2 else some_context(weights.dim, slot + 1, seed=slot))
    past = [0] * 16
    for step in range(len(tokens)):
        num_neighbors = (step * 7) % 17  # 0 to 16: every size of row block occurs
        neighbors = list(range(num_neighbors))
        index = step % (num_neighbors + 1)
        slots = [*neighbors[:index], 17, *neighbors[index:]]
        positions = [step if slot == 17 else past[slot] for slot in slots]
        rows = some_tokens(len(slots), seed=step)
        rows[index] = tokens[step]
        assert torch.equal(backend.decode(slots, rows, positions)[index], expected[step]), f"step {step}"
        for slot in neighbors:
            past[slot] += 1


@pytest.mark.parametrize("weight_format", FORMATS)
@SIZES
def test_native_slot_bytes_is_the_size_of_a_slot(weight_format: Format, sizes: tuple[int, int]) -> None:
    weights = random_weights(*sizes)
    one_slot, many_slots = (make_backend(weights, weight_format, num_slots=number).num_bytes for number in (1, 17))
    expected = 16 * native_backend.native_slot_bytes(weights, CAPACITY, weight_format)
    assert expected <= many_slots - one_slot <= expected + 16 * 3 * 4096  # two allocations per slot, in whole pages


def test_a_slot_uses_memory_only_as_it_fills() -> None:
    weights, capacity = random_weights(), 2**15
    backend = NativeBackend(weights, num_slots=1, capacity=capacity, weight_format="float32")
    process = psutil.Process()
    before = process.memory_info().rss
    backend.decode([0], some_tokens(1), [0])
    slot_bytes = native_backend.native_slot_bytes(weights, capacity, "float32")
    assert process.memory_info().rss - before < slot_bytes / 16


def test_moving_weights_to_huge_pages_does_not_change_results() -> None:
    weights = random_weights()
    backend, tokens = make_backend(weights, "int6", num_threads=1), some_tokens(1)
    first, before = backend.decode([0], tokens, [0]), huge_page_bytes()
    for _ in range(4100):  # a little more than the steps after which a background thread starts to move them
        assert torch.equal(backend.decode([0], tokens, [0]), first)
    has_huge_pages = Path("/sys/kernel/mm/transparent_hugepage").exists()
    if has_huge_pages and tuple(map(int, platform.release().split(".")[:2])) >= (6, 1):
        wait_until(lambda: huge_page_bytes() > before)
        assert torch.equal(backend.decode([0], tokens, [0]), first)


def huge_page_bytes() -> int:
    """Return how many bytes of this process are in huge pages; 0 if the system does not report it."""
    report = Path("/proc/self/smaps_rollup")
    lines = report.read_text().splitlines() if report.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages"))


def test_a_reused_slot_does_not_depend_on_its_previous_row() -> None:
    weights = random_weights()
    backend, tokens = make_backend(weights, "int8"), some_tokens(30)
    expected = row_logits(backend, None, tokens)
    row_logits(backend, some_context(weights.dim, 25), some_tokens(60, seed=9))
    backend.release(0)
    assert torch.equal(row_logits(backend, None, tokens), expected)


def test_weights_that_are_exact_in_16_bits_need_half_the_memory() -> None:
    weights = random_weights(dim=512, num_heads=8)
    full = make_backend(weights, "float32", num_slots=1)
    halves = [tensor for layer in weights.layers for tensor in vars(layer).values() if isinstance(tensor, Tensor)]
    for layer in weights.layers:
        assert layer.cross is not None
        halves += list(vars(layer.cross).values())
    for tensor in [*halves, *weights.heads]:
        tensor.copy_(tensor.half())
    packed = make_backend(weights, "float32", num_slots=1)
    reference = TorchBackend(weights, num_slots=1, capacity=CAPACITY)
    assert packed.num_bytes < 0.7 * full.num_bytes
    tokens = some_tokens(10)
    assert relative_error(row_logits(packed, None, tokens), row_logits(reference, None, tokens)) < BOUNDS["float32"]


def test_weights_of_zeros_do_not_divide_by_zero() -> None:
    weights = random_weights()
    for layer in weights.layers:
        layer.linear1.zero_()
        layer.self_out.zero_()
    for weight_format in ("int8", "int6"):
        assert row_logits(make_backend(weights, weight_format), None, some_tokens(3)).isfinite().all()


def test_backends_run_concurrently() -> None:
    weights, tokens = random_weights(), some_tokens(40)
    backends = [make_backend(weights, "int8", num_threads=3) for _ in range(3)]
    expected = row_logits(backends[0], None, tokens)
    results: list[Tensor | None] = [None] * 3

    def work(index: int) -> None:
        results[index] = row_logits(backends[index], None, tokens)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(result is not None and torch.equal(result, expected) for result in results)


def test_idle_workers_use_no_processor_time() -> None:
    weights, tokens, process = random_weights(), some_tokens(2), psutil.Process()
    row_logits(make_backend(weights, "int8", num_threads=1), None, tokens)  # starts whatever threads PyTorch starts
    others = {thread.id for thread in process.threads()}
    backend = make_backend(weights, "int8", num_threads=4)
    row_logits(backend, None, tokens)

    def worker_seconds() -> list[float]:
        return [each.user_time + each.system_time for each in process.threads() if each.id not in others]

    before, started = worker_seconds(), time.thread_time()
    assert len(before) == 3
    while time.thread_time() < started + 0.3:
        """This thread is busy; workers that spin would use as much time as it does."""
    assert sum(worker_seconds()) - sum(before) < 0.1
    backend.close()


def test_a_step_of_too_many_rows_is_refused() -> None:
    backend, num_rows = make_backend(random_weights(dim=64, num_heads=2, num_layers=1), "int8"), 2**16
    expected = backend.decode([0], some_tokens(1), [0])
    with pytest.raises(RuntimeError, match="a parallel loop of 65536 iterations exceeds the limit of 65535"):
        backend.decode([0] * num_rows, some_tokens(num_rows), [0] * num_rows)
    assert torch.equal(backend.decode([0], some_tokens(1), [0]), expected)


PROCESSORS = {"x86_64": ["-march=x86-64", "-march=x86-64-v3"]}.get(platform.machine(), [])
# Processors with AVX-512 without and with VNNI and AMX, and with AVX-VNNI.
LATEST_PROCESSORS = {"x86_64": ["-march=skylake-avx512", "-march=sapphirerapids", "-march=alderlake"]}.get(
    platform.machine(), []
)


def strict_builds() -> list[tuple[str, str]]:
    """Return the pairs of compiler and processor that `test_builds_for_other_processors_agree` does not compile."""
    compilers = [name for name in ("g++", "clang++") if shutil.which(name)]
    pairs = [(compiler, processor) for compiler in compilers for processor in [*PROCESSORS, *LATEST_PROCESSORS]]
    return [
        pair
        for pair in pairs
        if shutil.which(pair[0]) not in (build.find_compiler() or ()) or pair[1] not in PROCESSORS
    ]


@pytest.mark.fault
@pytest.mark.parametrize(("compiler", "processor"), strict_builds())
def test_sources_compile_without_warnings(compiler: str, processor: str) -> None:
    # Without optimization: with it, GCC 12 warns about its own header of AVX-512 intrinsics.
    command = [compiler, "-std=c++17", "-fsyntax-only", *build.STRICT_FLAGS, processor]
    done = subprocess.run([*command, *build.SOURCES.glob("*.cpp")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "processor", [pytest.param(name, marks=pytest.mark.fault if name == "-march=x86-64" else ()) for name in PROCESSORS]
)
def test_builds_for_other_processors_agree(processor: str, tmp_path: Path) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    target = tmp_path / "decoder.so"
    build.compile_to(target, compiler, [*build.STRICT_FLAGS, processor])
    library: ctypes.CDLL = open_library(str(target))
    weights, tokens = random_weights(num_layers=2), some_tokens(20)
    context = some_context(weights.dim, 6)
    for weight_format in FORMATS:
        sizes = {"num_slots": 1, "capacity": CAPACITY, "num_threads": 2}
        other = NativeBackend(weights, **sizes, weight_format=weight_format, library=library)
        logits = row_logits(other, context, tokens)
        # The order of float sums differs, so quantized keys, values and activations may round differently.
        bound = {"float32": 3e-6, "int6": 2e-2}.get(weight_format, 5e-3)
        assert relative_error(logits, row_logits(make_backend(weights, weight_format), context, tokens)) < bound


def test_an_error_names_the_compiler_that_failed(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="false failed"):
        build.compile_to(tmp_path / "decoder.so", ["false"], [])


def test_without_the_library_no_model_is_supported() -> None:
    weights = random_weights()
    assert native_backend.native_supports(weights)
    assert not native_backend.native_supports(weights, find_library=lambda: None)


def test_sizes_that_are_not_multiples_of_a_block_are_not_supported() -> None:
    assert not native_backend.native_supports(random_weights(dim=96, num_heads=2))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight_format", ["float32", "int6"])
def test_weights_of_16_bits_give_the_bits_of_the_same_weights_in_float32(
    stored: torch.dtype, weight_format: Format
) -> None:
    weights = converted(random_weights(), stored, torch.device("cpu"))
    context, tokens = some_context(weights.dim, 7), some_tokens(20)
    widened = converted(weights, torch.float32, torch.device("cpu"))
    expected = row_logits(make_backend(widened, weight_format), context, tokens)
    assert torch.equal(row_logits(make_backend(weights, weight_format), context, tokens), expected)
