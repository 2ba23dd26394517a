"""Makes everything that ships of the demo models: `python -m demo_models` (`make train-demo`).

Solves the codec, trains the mono model and from it the stereo model and the melody model, writes their numbers,
expands them to checkpoints and evaluates these. Steps that are done are not repeated, and training goes on where it
stopped. `--quick` takes about two minutes and shows only that all steps work.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from audiocraft_api.model import demo
from demo_models import codec, evaluation, export, generation, rare_words
from demo_models.synthesizer import make_grains
from demo_models.training import Trainer, load_model

STEPS = {"demo": 3400, "demo-stereo": 900, "demo-melody": 3625}
WORD_STEPS = {"demo": 300, "demo-stereo": 300, "demo-melody": 200}  # of `rare_words`
_QUICK_STEPS = {"demo": 12, "demo-stereo": 4, "demo-melody": 2}


def make(directory: Path, data: Path, *, quick: bool = False) -> dict[str, Any]:
    """Train in `directory`, write what ships to `data`, and return the figures of the evaluation."""
    directory.mkdir(parents=True, exist_ok=True)
    codec_file = data / demo.CODEC_FILE
    if not codec_file.exists():
        begin = time.monotonic()
        export.write(codec_file, export.codec_numbers(codec.solve(make_grains())))
        print(f"Solved the codec in {time.monotonic() - begin:.0f} s.", flush=True)
    figures: dict[str, Any] = {}
    mono = None
    for name, steps in (_QUICK_STEPS if quick else STEPS).items():
        checkpoint = directory / f"{name}.pt"
        print(f"Training {name}.", flush=True)
        Trainer(checkpoint, steps, mono=mono, melody=name == "demo-melody").run(every=4 if quick else 30)
        model = load_model(checkpoint)
        rare_words.learn(model, 4 if quick else WORD_STEPS[name])
        mono = mono or model
        export.write(data / f"{name}.safetensors", export.language_model_numbers(model), model)
        shutil.rmtree(directory / name, ignore_errors=True)
        (directory / name).mkdir()
        demo.write_trained(directory / name, codec_file, data / f"{name}.safetensors")
        seconds, count = (2.0, 4) if quick else (15.0, len(evaluation.CAPTIONS))
        figures[name] = evaluation.evaluate(generation.load(directory, name), seconds, count)
        print(json.dumps(figures[name]), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, write and evaluate the demo models.")
    parser.add_argument("--directory", type=Path, default=Path("build/demo-models"), help="of the training checkpoints")
    parser.add_argument("--data", type=Path, help="where to write what ships (default: --directory)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a run of two minutes, whose models are of no use")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    directory = arguments.directory / "quick" if arguments.quick else arguments.directory
    figures = make(directory, arguments.data or directory, quick=arguments.quick)
    (directory / "figures.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
