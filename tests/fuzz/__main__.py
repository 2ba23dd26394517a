"""Fuzz one target for some seconds: `python -m fuzz json 600`, with `tests` on PYTHONPATH. Exits with 0 if none fails.

New inputs that reach more code are kept in build/fuzz/<target>. An input that fails, takes more than 5 seconds or more
than 2 GB of memory is written beside them, and its path is printed: make it a file of the corpus with the fix.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

# What the targets call. Instrumenting everything that they import takes as long as fuzzing.
PARSERS = [
    *(f"audiocraft_api.web.{name}" for name in ("parsing", "schemas", "live_steering", "blueprints.audio")),
    *(f"audiocraft_api.generation.{name}" for name in ("recipe", "performance_recipe")),
    *(f"audiocraft_api.{name}" for name in ("audio.midi", "audio.notes", "core.melody_line")),
    *("audiocraft_api.audio.mp3_header", "audiocraft_api.audio.tags", "audiocraft_api.core.performance"),
    *("werkzeug.sansio", "werkzeug.formparser", "werkzeug.http"),
]
with atheris.instrument_imports(include=PARSERS):
    from fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path(__file__).parents[2] / "build" / "fuzz"


def main() -> None:
    name, seconds = sys.argv[1:]
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    limits = ["-timeout=5", "-rss_limit_mb=2048", "-max_len=4096", f"-max_total_time={seconds}"]
    # libFuzzer writes new inputs into the first directory and only reads the second.
    command = [sys.argv[0], *limits, f"-artifact_prefix={found}/", str(found), str(CORPUS / name)]

    def target(data: bytes) -> None:
        try:
            TARGETS[name](data)
        except BaseException:
            path = found / f"failed-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"This input fails: {path}", flush=True)
            raise

    atheris.Setup(command, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
