"""The native decoder against its PyTorch twin, and the law of runners: a row's bits depend on that row alone."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
import threading
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
# Relative error of logits that each format may have on these small models.
BOUNDS: dict[Format, float] = {"float32": 3e-6, "float16": 3e-2, "bfloat16": 3e-2, "int8": 3e-2, "int6": 8e-2}

SIZES = pytest.mark.parametrize("sizes", [(128, 2), (192, 6), (64, 4)], ids=["64-wide heads", "32-wide", "16-wide"])


def native(weights: DecoderWeights, weight_format: Format, num_threads: int = 2, num_slots: int = 24) -> NativeBackend:
    return NativeBackend(
        weights, num_slots=num_slots, capacity=CAPACITY, weight_format=weight_format, num_threads=num_threads
    )


@pytest.mark.parametrize("weight_format", FORMATS)
@SIZES
def test_logits_are_the_twins(weight_format: Format, sizes: tuple[int, int]) -> None:
    weights = random_weights(*sizes)
    twin = TorchBackend(weights, num_slots=1, capacity=CAPACITY)
    runner = native(weights, weight_format)
    tokens = some_tokens(40)
    for context in (some_context(weights.dim, 19), None):
        expected = row_logits(twin, context, tokens)
        assert relative_error(row_logits(runner, context, tokens), expected) < BOUNDS[weight_format]


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("has_cross", [True, False])
def test_weights_of_half_precision_are_packed_to_the_bits_of_their_float32(
    weight_format: Format, has_cross: bool
) -> None:
    half = converted(random_weights(has_cross=has_cross), torch.float16, torch.device("cpu"))
    tokens, context = some_tokens(20), some_context(half.dim, 7) if has_cross else None
    stored, wide = (
        row_logits(native(weights, weight_format), context, tokens)
        for weights in (half, converted(half, torch.float32, torch.device("cpu")))
    )
    assert torch.equal(stored, wide)


@pytest.mark.parametrize("has_cross", [True, False])
def test_prefix_and_long_prompt_are_the_twins(has_cross: bool) -> None:
    weights = random_weights(has_cross=has_cross)
    context = some_context(weights.dim, 5) if has_cross else None
    prefix, tokens = some_context(weights.dim, 70, seed=3), some_tokens(90)
    results = []
    for runner in (TorchBackend(weights, num_slots=2, capacity=CAPACITY), native(weights, "float32")):
        runner.begin(1, context)
        first = runner.prefill(1, 0, prefix, tokens[:80].T)
        last = runner.prefill(1, 150, None, tokens[80:].T)
        results.append(torch.stack([first, last]))
    assert relative_error(results[1], results[0]) < BOUNDS["float32"]


@pytest.mark.parametrize("weight_format", FORMATS)
def test_prefill_gives_the_bits_of_single_steps(weight_format: Format) -> None:
    weights = random_weights()
    runner, tokens, context = native(weights, weight_format), some_tokens(75), some_context(weights.dim, 7)
    expected = row_logits(runner, context, tokens)[-1]
    runner.begin(1, context)
    assert torch.equal(runner.prefill(1, 0, None, tokens.T), expected)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("outlier", [1, 5], ids=["even activations", "some rows with outliers"])
def test_a_rows_bits_do_not_depend_on_its_neighbours(weight_format: Format, outlier: float) -> None:
    weights = with_outliers(random_weights(), outlier)
    tokens, context = some_tokens(20), some_context(weights.dim, 11)
    expected = row_logits(native(weights, weight_format, num_threads=1), context, tokens)
    runner = native(weights, weight_format, num_threads=3)
    runner.begin(17, context)
    for slot in range(16):
        runner.begin(slot, None if slot % 2 else some_context(weights.dim, slot + 1, seed=slot))
    past = [0] * 16
    for step in range(len(tokens)):
        num_neighbours = (step * 7) % 17  # 0 to 16, so that every block of rows occurs
        neighbours = list(range(num_neighbours))
        place = step % (num_neighbours + 1)
        slots = [*neighbours[:place], 17, *neighbours[place:]]
        positions = [step if slot == 17 else past[slot] for slot in slots]
        rows = some_tokens(len(slots), seed=step)
        rows[place] = tokens[step]
        assert torch.equal(runner.decode(slots, rows, positions)[place], expected[step]), f"step {step}"
        for slot in neighbours:
            past[slot] += 1


@pytest.mark.parametrize("weight_format", FORMATS)
@SIZES
def test_a_slot_takes_the_bytes_that_are_counted_for_it(weight_format: Format, sizes: tuple[int, int]) -> None:
    weights = random_weights(*sizes)
    one, many = (native(weights, weight_format, num_slots=number).num_bytes for number in (1, 17))
    counted = 16 * native_backend.native_slot_bytes(weights, CAPACITY, weight_format)
    assert counted <= many - one <= counted + 16 * 3 * 4096  # in whole pages, two pieces of memory each


def test_a_slot_takes_memory_as_it_fills() -> None:
    weights, capacity = random_weights(), 2**15
    runner = NativeBackend(weights, num_slots=1, capacity=capacity, weight_format="float32")
    process = psutil.Process()
    before = process.memory_info().rss
    runner.decode([0], some_tokens(1), [0])
    slot_bytes = native_backend.native_slot_bytes(weights, capacity, "float32")
    assert process.memory_info().rss - before < slot_bytes / 16


def test_weights_that_are_gathered_into_huge_pages_are_the_same() -> None:
    weights = random_weights()
    runner, tokens = native(weights, "int6", num_threads=1), some_tokens(1)
    first, before = runner.decode([0], tokens, [0]), huge_page_bytes()
    for _ in range(4100):  # a little more than the steps after which that begins, in a thread of its own
        assert torch.equal(runner.decode([0], tokens, [0]), first)
    has_huge_pages = Path("/sys/kernel/mm/transparent_hugepage").exists()
    if has_huge_pages and tuple(map(int, platform.release().split(".")[:2])) >= (6, 1):
        wait_until(lambda: huge_page_bytes() > before)
        assert torch.equal(runner.decode([0], tokens, [0]), first)


def huge_page_bytes() -> int:
    """Return how much of this process lies in huge pages; 0 where the system does not say."""
    told = Path("/proc/self/smaps_rollup")
    lines = told.read_text().splitlines() if told.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages"))


def test_a_slot_in_use_again_shows_nothing_of_its_former_row() -> None:
    weights = random_weights()
    runner, tokens = native(weights, "int8"), some_tokens(30)
    expected = row_logits(runner, None, tokens)
    row_logits(runner, some_context(weights.dim, 25), some_tokens(60, seed=9))
    runner.release(0)
    assert torch.equal(row_logits(runner, None, tokens), expected)


def test_weights_of_sixteen_bits_take_half_the_memory_and_lose_nothing() -> None:
    weights = random_weights(dim=512, num_heads=8)
    full = native(weights, "float32", num_slots=1)
    halves = [tensor for layer in weights.layers for tensor in vars(layer).values() if isinstance(tensor, Tensor)]
    for layer in weights.layers:
        assert layer.cross is not None
        halves += list(vars(layer.cross).values())
    for tensor in [*halves, *weights.heads]:
        tensor.copy_(tensor.half())
    packed = native(weights, "float32", num_slots=1)
    twin = TorchBackend(weights, num_slots=1, capacity=CAPACITY)
    assert packed.num_bytes < 0.7 * full.num_bytes
    tokens = some_tokens(10)
    assert relative_error(row_logits(packed, None, tokens), row_logits(twin, None, tokens)) < BOUNDS["float32"]


def test_weights_of_zeros_are_no_division_by_zero() -> None:
    weights = random_weights()
    for layer in weights.layers:
        layer.linear1.zero_()
        layer.self_out.zero_()
    for weight_format in ("int8", "int6"):
        assert row_logits(native(weights, weight_format), None, some_tokens(3)).isfinite().all()


def test_runners_work_at_the_same_time() -> None:
    weights, tokens = random_weights(), some_tokens(40)
    runners = [native(weights, "int8", num_threads=3) for _ in range(3)]
    expected = row_logits(runners[0], None, tokens)
    results: list[Tensor | None] = [None] * 3

    def work(index: int) -> None:
        results[index] = row_logits(runners[index], None, tokens)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(result is not None and torch.equal(result, expected) for result in results)


def test_idle_workers_take_no_processor_time() -> None:
    runner = native(random_weights(), "int8", num_threads=4)
    row_logits(runner, None, some_tokens(2))
    process = psutil.Process()
    before = process.cpu_times()
    threading.Event().wait(0.5)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.25
    runner.close()


MACHINES = {"x86_64": ["-march=x86-64", "-march=x86-64-v3"]}.get(platform.machine(), [""])


@pytest.mark.parametrize("machine", MACHINES)
def test_other_machines_builds_agree(machine: str, tmp_path: Path) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    target = tmp_path / "decoder.so"
    build.compile_to(target, compiler, [machine] if machine else [])
    library: ctypes.CDLL = open_library(str(target))
    weights, tokens = random_weights(num_layers=2), some_tokens(20)
    context = some_context(weights.dim, 6)
    for weight_format in FORMATS:
        sizes = {"num_slots": 1, "capacity": CAPACITY, "num_threads": 2}
        other = NativeBackend(weights, **sizes, weight_format=weight_format, library=library)
        logits = row_logits(other, context, tokens)
        # Float sums differ in order; bytes of keys and values, and of `int6`'s activations, may round to the other side.
        bound = {"float32": 3e-6, "int6": 2e-2}.get(weight_format, 5e-3)
        assert relative_error(logits, row_logits(native(weights, weight_format), context, tokens)) < bound


def test_without_a_compiler_the_build_says_so_and_does_not_fail(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from audiocraft_api.engine.cpu.native import build;"
        f"build.BUILD_DIR = Path({str(tmp_path)!r}); sys.exit(build.main())"
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "no C++ compiler" in done.stderr


def test_a_compiler_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="false failed"):
        build.compile_to(tmp_path / "decoder.so", "false", [])


def test_without_the_library_nothing_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights()
    assert native_backend.native_supports(weights)
    monkeypatch.setattr(native_backend, "load_library", lambda: None)
    assert not native_backend.native_supports(weights)


def test_sizes_that_do_not_fit_the_blocks_are_not_supported() -> None:
    assert not native_backend.native_supports(random_weights(dim=96, num_heads=2))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight_format", ["float32", "int6"])
def test_weights_are_packed_from_the_type_they_are_stored_in(stored: torch.dtype, weight_format: Format) -> None:
    weights = converted(random_weights(), stored, torch.device("cpu"))
    context, tokens = some_context(weights.dim, 7), some_tokens(20)
    widened = converted(weights, torch.float32, torch.device("cpu"))
    expected = row_logits(native(widened, weight_format), context, tokens)
    assert torch.equal(row_logits(native(weights, weight_format), context, tokens), expected)
