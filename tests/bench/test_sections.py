"""The benchmark continues when one of its sections cannot run."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from bench.__main__ import run_section
from bench.controls import border_levels


def test_a_section_adds_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    figures: dict[str, object] = {}
    assert run_section("engine", lambda: {"step_growth": 1.25}, [], figures)
    assert figures == {"step_growth": 1.25}
    assert "step_growth" in capsys.readouterr().out


def test_a_section_whose_program_is_missing_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    figures: dict[str, object] = {}
    assert run_section("limits", lambda: {"figure": 1}, ["no-such-program"], figures)
    assert figures == {}
    assert "Skipped the section limits: no-such-program is not installed" in capsys.readouterr().out


def test_a_section_that_fails_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> dict[str, object]:
        raise RuntimeError("no memory")

    assert not run_section("tasks", fail, [], {})
    printed = capsys.readouterr()
    assert "The section tasks failed." in printed.out
    assert "no memory" in printed.err


def test_levels_across_the_borders_of_windows_are_compared_with_those_elsewhere() -> None:
    audio = np.full((1, 70 * 100), 0.1, np.float32)
    audio[:, 30 * 100 : 48 * 100] = 0.2  # 6 dB louder from one border to the next
    audio[:, 60 * 100 :] = 0.01
    assert border_levels(audio, 100, 18.0) == {
        "long_num_borders": 3,
        "long_border_step_db": pytest.approx(2 * 6.02 / 3, abs=0.01),
        "long_border_step_max_db": pytest.approx(6.02, abs=0.01),
        "long_other_step_db": pytest.approx(20 / 66, abs=0.01),
        "long_other_step_max_db": pytest.approx(20.0, abs=0.01),
    }


def test_the_last_line_is_json_even_if_a_section_fails() -> None:
    script = (
        "import sys; from bench import __main__ as bench; sys.argv = ['bench', '--section', 'tasks'];"
        "bench.SECTIONS = {'tasks': (lambda quick: 1 / 0, ())}; bench.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["failed_sections"] == ["tasks"]
