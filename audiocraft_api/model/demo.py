"""Makes the demo checkpoints: complete, small MusicGen models in audiocraft's own file format.

They are expanded from the numbers in `demo_data/`, which `demo_models/` trains. The files are the same each time.
`python -m audiocraft_api.model.demo [directory]` makes all of them. Each directory contains `state_dict.bin`,
`compression_state_dict.bin` and, in the layout of the model hub's cache, the text encoder, the codec and the source
separator that these two name by id.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiocraft_api.model import released_configuration

if TYPE_CHECKING:
    from omegaconf import DictConfig

NAMES = ("demo", "demo-melody", "demo-stereo")
DATA = Path(__file__).parent / "demo_data"
CODEC_FILE = "codec.safetensors"
TEXT_ENCODER_ID = "audiocraft-api/demo-text-encoder"
CODEC_ID = "audiocraft-api/demo-codec"
SEPARATOR_ID = "audiocraft-api/demo-separator"

logger = logging.getLogger(__name__)


def build(name: str, directory: Path, write: Callable[[str, Path], None] | None = None) -> Path:
    """Make one demo checkpoint in `directory` unless it exists, and return its path. Safe to call concurrently.

    `write(name, directory)` fills its directory; by default with the trained model.
    """
    target = directory / name
    if target.is_dir():
        return target
    logger.info("Making the checkpoint %s in %s.", name, directory)
    directory.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=directory))
    try:
        temporary.chmod(0o755)
        from audiocraft_api.model.checkpoint import BUILDING

        with BUILDING:
            (write or _write)(name, temporary)
        os.replace(temporary, target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster, with the same content
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write(name: str, directory: Path) -> None:
    write_trained(directory, DATA / CODEC_FILE, DATA / f"{name}.safetensors")


def write_trained(directory: Path, codec_file: Path, model_file: Path) -> None:
    """Write the checkpoint of a trained model from its shipped numbers."""
    from omegaconf import OmegaConf

    from audiocraft_api.model import demo_codec, demo_separator, demo_weights

    codec_numbers, _ = demo_weights.read(codec_file)
    numbers, facts = demo_weights.read(model_file)
    hub = directory / "hub"
    tokenizer = demo_weights.tokenizer(facts)
    encoder = demo_weights.text_encoder(numbers, facts)
    add_repository(hub, TEXT_ENCODER_ID, tokenizer.save_pretrained, encoder.save_pretrained)
    codec = demo_codec.build(codec_numbers, stereo=facts["configuration"]["stereo"])
    add_repository(hub, CODEC_ID, codec.save_pretrained, demo_codec.halve_codebooks)
    if facts["configuration"]["melody"]:
        add_repository(hub, SEPARATOR_ID, partial(demo_separator.write, SEPARATOR_ID))
    state = demo_weights.language_model_state(numbers)
    config = OmegaConf.create(configuration(**facts["configuration"]))
    save(directory, config, state)


def configuration(**shape: Any) -> dict[str, Any]:
    """Return the content of `xp.cfg`. `shape` is what `released_configuration.configuration` takes, besides the ids."""
    return released_configuration.configuration(text_encoder=TEXT_ENCODER_ID, separator=SEPARATOR_ID, **shape)


def save(directory: Path, config: DictConfig, state: dict[str, Any]) -> None:
    """Write the language model, and the file that names the codec."""
    import torch
    from omegaconf import OmegaConf

    torch.save({"xp.cfg": OmegaConf.to_yaml(config), "best_state": state}, directory / "state_dict.bin")
    torch.save({"pretrained": CODEC_ID}, directory / "compression_state_dict.bin")


def add_repository(hub: Path, repository: str, *saves: Any) -> None:
    """Store files as the hub's cache does: `models--<org>--<name>`, with the snapshot's name in `refs/main`."""
    root = hub / f"models--{repository.replace('/', '--')}"
    files = root / "files"
    files.mkdir(parents=True)
    for save in saves:
        save(files)
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(files.iterdir()):
        path.chmod(0o644)  # safetensors makes it readable by its owner only
        digest.update(path.name.encode() + path.read_bytes())
    (root / "snapshots").mkdir()
    files.rename(root / "snapshots" / digest.hexdigest())
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(digest.hexdigest())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo checkpoints.")
    parser.add_argument("directory", nargs="?", default="checkpoints", type=Path)
    directory = parser.parse_args().directory
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    made = {name: str(build(name, directory)) for name in NAMES}
    print(json.dumps(made))


if __name__ == "__main__":
    main()
