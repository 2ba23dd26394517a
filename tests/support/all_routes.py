"""Imports every module of the service, and generates with every kind of model: python -m support.all_routes DIRECTORY

`DIRECTORY/checkpoints` has the demo models and their separator. Fails at the first package that is missing.
"""

from __future__ import annotations

import importlib
import io
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from flask.testing import FlaskClient

import audiocraft_api
from audiocraft_api.config import Config
from audiocraft_api.factory import create_app
from support import audiogen

PROGRAMS = {"__main__", "audiocraft_api.celery_app"}  # importing them does something


def import_all() -> None:
    for module in pkgutil.walk_packages(audiocraft_api.__path__, "audiocraft_api."):
        if not {module.name, module.name.rpartition(".")[2]} & PROGRAMS:
            importlib.import_module(module.name)


def write_models(directory: Path) -> Path:
    """Write models of transformers' and of AudioGen's format, and return a models file that declares them."""
    from transformers import MusicgenConfig, MusicgenForConditionalGeneration

    from bench import untrained

    tokenizer = untrained.tokenizer()
    decoder = {"hidden_size": 64, "num_attention_heads": 4, "ffn_dim": 128, "num_hidden_layers": 2}
    text_encoder = untrained.text_encoder(len(tokenizer)).config.to_dict()
    config = MusicgenConfig(
        text_encoder=text_encoder, audio_encoder=untrained.codec().config.to_dict(), decoder=decoder
    )
    MusicgenForConditionalGeneration(config).save_pretrained(directory / "transformers")
    tokenizer.save_pretrained(directory / "transformers")
    models_file = audiogen.write(directory)
    declared = json.loads(models_file.read_text()) | {"saved": {"checkpoint": str(directory / "transformers")}}
    models_file.write_text(json.dumps(declared))
    return models_file


def generate(client: FlaskClient, **fields: Any) -> None:
    body = {"prompt": "warm piano", "duration": 1, **fields}
    response = client.post("/generate", json=body)
    assert response.status_code == 200, (body, response.get_data())


def generate_with_melody(client: FlaskClient, format: str) -> None:
    melody = io.BytesIO()
    soundfile.write(melody, 0.3 * np.sin(np.arange(44_100) / 20), 44_100, format=format)
    melody.seek(0)
    form = {"prompt": "string quartet", "model_size": "demo", "duration": "1", "melody": (melody, f"melody.{format}")}
    response = client.post("/generate-with-melody", data=form)
    assert response.status_code == 200, response.get_data()


def main() -> None:
    directory = Path(sys.argv[1])
    import_all()
    config = Config(
        checkpoints_dir=directory / "checkpoints",
        models_file=write_models(directory),
        audio_dir=directory / "audio",
        task_db=directory / "tasks.sqlite3",
        state_db=directory / "state.sqlite3",
        offline=True,
    )
    client = create_app(config).test_client()
    for output_format in ("wav", "mp3", "m4a"):
        generate(client, model_size="demo", output_format=output_format)
    generate(client, model_size="demo-stereo", stems=True, analysis=True)
    generate(client, model_size=audiogen.NAME)
    generate(client, model_size="saved")
    generate_with_melody(client, "MP3")


if __name__ == "__main__":
    main()
