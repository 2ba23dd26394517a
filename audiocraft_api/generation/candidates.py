"""Loops: candidates with several seeds, generated at the same time, of which the best becomes the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from audiocraft_api.audio.beats import Tempo
from audiocraft_api.audio.looping import Loop, LoopShape, find_loop
from audiocraft_api.core.constants import MAX_SEED
from audiocraft_api.core.errors import NoLoop
from audiocraft_api.core.request import GenerationResult
from audiocraft_api.generation.command import GenerateCommand

SEED_STEP = 2**32  # between the seeds of candidates, so that those of several variations differ


@dataclass(frozen=True, eq=False)
class FoundLoop:
    """The result that contains a loop, cut to it, and what was measured."""

    result: GenerationResult
    report: Mapping[str, Any]


def candidates_of(command: GenerateCommand) -> list[GenerateCommand]:
    """Return a command for each candidate of a loop. The first one has the seed of the command."""
    seed = command.seed or 0
    return [replace(command, seed=(seed + index * SEED_STEP) % (MAX_SEED + 1)) for index in range(command.candidates)]


def best_loop(
    results: Sequence[GenerationResult], shape: LoopShape, check: Callable[[], None], timeout_seconds: float
) -> FoundLoop:
    """Return the loop with the smallest seam. Calls `check` before each candidate. Raises NoLoop, ConversionFailed."""
    best: tuple[int, Loop] | None = None
    tempos = []
    for index, result in enumerate(results):
        check()
        loop, tempo = find_loop(result.waveform, result.sample_rate, shape, timeout_seconds=timeout_seconds)
        tempos.append(tempo)
        if loop is not None and (best is None or loop.seam < best[1].seam):
            best = index, loop
    if best is None:
        raise NoLoop(_sentence(shape, tempos))
    index, loop = best
    report = {
        "candidate": index + 1,
        "tempo_bpm": round(loop.tempo_bpm, 3),
        "stretch": round(loop.stretch, 5),
        "start": round(loop.start_seconds, 3),
        "seam": round(loop.seam, 3),
    }
    return FoundLoop(replace(results[index], waveform=loop.waveform, codes=None), report)


def _sentence(shape: LoopShape, tempos: Sequence[Tempo]) -> str:
    """Say why no candidate loops, and what was measured."""
    measured = ", ".join("none" if t.estimated_bpm is None else f"{t.estimated_bpm:.1f}" for t in tempos)
    if any(tempo.bpm is not None for tempo in tempos):
        problem = f"No candidate closes without a jump after {shape.bars} bars at {shape.bpm} bpm"
    else:
        problem = f"No candidate has a tempo within 3 % of {shape.bpm} bpm"
    return (
        f"{problem}. Measured tempi in bpm: {measured}. Try a bpm near these, another seed, more candidates, or a "
        "prompt with a clear beat."
    )
