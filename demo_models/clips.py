"""Writes the audio examples of docs/audio/ and their spectrograms: `python -m demo_models.clips checkpoints docs`."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import soundfile
import torch

from audiocraft_api.audio.convert import ffmpeg_executable
from demo_models import generation
from demo_models.following import notes_of

# File name, model, prompt. The seed of clip i is i, and everything else is the service's default. `demo-melody` follows
# the notes of `TUNE`.
CLIPS = (
    ("lo-fi", "demo", "lo-fi beat with electric piano, piano melody, soft bass and drums, 75 bpm"),
    ("folk", "demo", "happy folk tune for flute and acoustic guitar, no drums"),
    ("techno", "demo", "dark techno at 125 bpm, synth lead, pads, drums and synth bass"),
    ("ambient", "demo-stereo", "ambient soundscape, music box, warm pads, no beat, no bass"),
    ("melody", "demo-melody", "happy folk tune for flute and acoustic guitar, drums and bass"),
)
TUNE = "Ode to Joy"
SECONDS = 10.0
_PICTURE = "aresample=12000,showspectrumpic=s=900x512:legend=0:scale=log:fscale=lin:drange=80,scale=900:130"


def write(checkpoints: Path, docs: Path) -> None:
    """Generate the clips and write `docs`/audio/*.ogg and `docs`/images/demo-spectrograms.jpg."""
    audio = docs / "audio"
    audio.mkdir(exist_ok=True)
    models = {name: generation.load(checkpoints, name) for name in {name for _, name, _ in CLIPS}}
    paths = []
    for seed, (title, name, prompt) in enumerate(CLIPS, 1):
        parameters = {"melody": notes_of(TUNE)} if name == "demo-melody" else {}
        codes = generation.generate(models[name], [prompt], SECONDS, seed=seed, **parameters)[0]
        wave = models[name].decode_codes(torch.tensor(codes)[None]).numpy()
        paths.append(audio / f"{title}.ogg")
        soundfile.write(paths[-1], wave.T, models[name].sample_rate, format="OGG", compression_level=0.7)
    draw(paths, docs / "images" / "demo-spectrograms.jpg")


def draw(clips: list[Path], picture: Path) -> None:
    """Write the spectrograms of the clips, 0 to 6 kHz, one below the other."""
    inputs = [argument for clip in clips for argument in ("-i", str(clip))]
    rows = [f"[{i}:a]aformat=channel_layouts=mono,{_PICTURE}[row{i}]" for i in range(len(clips))]
    stack = "".join(f"[row{i}]" for i in range(len(clips))) + f"vstack=inputs={len(clips)}"
    command = [ffmpeg_executable(), "-y", "-loglevel", "error", *inputs, "-filter_complex", ";".join([*rows, stack])]
    subprocess.run([*command, "-q:v", "6", "-frames:v", "1", str(picture)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the audio examples of the demo models.")
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("docs", type=Path)
    arguments = parser.parse_args()
    write(arguments.checkpoints, arguments.docs)


if __name__ == "__main__":
    main()
