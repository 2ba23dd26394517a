"""The parsers of what clients send: the corpus in every run of the tests, new inputs for a while in the longer runs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.targets import TARGETS
from support.served import ROOT

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(CORPUS.glob("*/*"))
# `make fuzz` sets it; 15 seconds find what a change of a parser breaks at once.
SECONDS = int(os.environ.get("FUZZ_SECONDS", "15"))
HAS_ATHERIS = (sys.platform, platform.machine()) == ("linux", "x86_64")  # there are no packages for other systems


@pytest.mark.parametrize("path", INPUTS, ids=[f"{path.parent.name}-{path.name}" for path in INPUTS])
def test_no_input_of_the_corpus_breaks_its_parser(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_target_has_a_corpus() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)


@pytest.mark.fault
@pytest.mark.skipif(not HAS_ATHERIS, reason="atheris has no package for this system")
@pytest.mark.parametrize("name", TARGETS)
def test_no_new_input_breaks_a_parser(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", name, str(SECONDS)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
