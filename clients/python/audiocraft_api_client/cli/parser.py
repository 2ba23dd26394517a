"""The commands and options of `audiocraft`. Options of generations are the fields that the API has."""

from __future__ import annotations

import argparse
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from audiocraft_api_client import __version__
from audiocraft_api_client.cli import commands, live, live_lines
from audiocraft_api_client.cli.completion import SHELLS
from audiocraft_api_client.models import (
    ContinuationTaskFields,
    LiveFields,
    MelodyTaskFields,
    StreamFields,
    TaskFields,
)

SHORT_OPTIONS = {"duration": ("-d",), "model_size": ("-m",), "output_format": ("-f", "--format"), "seed": ("-s",)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="audiocraft",
        description="Generate music with AudioCraft API.",
        epilog="AUDIOCRAFT_URL is the default server, AUDIOCRAFT_KEY the API key. Exit status: 0 success, 1 failure, "
        "2 invalid options or request, 3 the server cannot be reached, is full, or limits you: try again later, "
        "4 the key is missing or not sufficient, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(url=None, json=False)
    # Without defaults of its own: those of `tasks show` would replace options of `tasks`.
    everywhere = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    everywhere.add_argument("--url", help="URL of the server (default: $AUDIOCRAFT_URL or http://localhost:5000)")
    everywhere.add_argument("--json", action="store_true", help="print JSON, also for errors")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: commands.Command, help: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=help, description=help, parents=[everywhere])
        added.set_defaults(run=run)
        return added

    generate = add("generate", commands.generate, "Generate music from text.")
    generate.add_argument("prompt", metavar="PROMPT", nargs="?")
    _add_output(generate)
    generate.set_defaults(fields=_add_fields(generate, TaskFields), melody=None)

    melody = add("melody", commands.generate, "Generate music from text and a melody.")
    melody.add_argument("prompt", metavar="PROMPT")
    melody.add_argument("melody", metavar="FILE", nargs="?", help="recording of the melody, or MIDI file")
    _add_output(melody)
    melody.set_defaults(fields=_add_fields(melody, MelodyTaskFields))

    continued = add("continue", commands.continue_recording, "Continue a recording.")
    continued.add_argument("prompt", metavar="PROMPT")
    continued.add_argument("audio", metavar="FILE", help="recording to continue")
    continued.add_argument("--melody", metavar="FILE", help="recording of a melody to follow, or MIDI file")
    _add_output(continued)
    continued.set_defaults(fields=_add_fields(continued, ContinuationTaskFields))

    stream = add("stream", commands.stream, "Generate music and write it while it is generated.")
    stream.add_argument("prompt", metavar="PROMPT", nargs="?")
    stream.add_argument("-o", "--output", metavar="FILE", default="-", help="file; - (default) is standard output")
    stream.set_defaults(fields=_add_fields(stream, StreamFields))

    played = add("live", live.live, "Play music without end, and change it with lines of standard input.")
    played.epilog = live_lines.HELP
    played.formatter_class = argparse.RawDescriptionHelpFormatter
    played.add_argument("prompt", metavar="PROMPTS", help="such as: cello, or 2:piano | rain | -1:drums")
    played.add_argument(
        "-o", "--output", metavar="FILE", help="WAV file; - (default without --play) is standard output"
    )
    played.add_argument("--play", action="store_true", help="play the audio")
    played.set_defaults(fields=_add_fields(played, LiveFields, without=("format",)))

    add("models", commands.models, "List the models.")

    tasks = add("tasks", commands.list_tasks, "List tasks, or show, await or cancel one.")
    tasks.add_argument("--limit", type=int, default=20, help="maximum number of listed tasks (default: 20)")
    actions = tasks.add_subparsers(metavar="ACTION")
    for name, (run, help) in commands.TASK_ACTIONS.items():
        action = actions.add_parser(name, help=help, description=help, parents=[everywhere])
        action.add_argument("task_id", metavar="ID", help="from the list of tasks")
        action.set_defaults(run=run)

    completion = add("completion", commands.completion, "Print a script that completes commands in a shell.")
    completion.add_argument("shell", choices=list(SHELLS))
    completion.set_defaults(parser=parser)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="file; its extension selects the format (default: the server's name)"
    )
    parser.add_argument("--play", action="store_true", help="play the audio")


def _add_fields(
    parser: argparse.ArgumentParser, fields: type[Any], without: tuple[str, ...] = ("n",)
) -> tuple[str, ...]:
    """Add an option for each field of a request; return the names of the fields. A command writes one file, not `n`."""
    hints: dict[str, Any] = get_type_hints(fields, include_extras=True)
    for name in without:
        hints.pop(name)
    for name, hint in hints.items():
        kind, description = get_args(hint)
        if name == "segments":
            _add_segments(parser)
            continue
        if name == "continue_from":
            _add_continue_from(parser)
            continue
        if name == "performance":
            kind = str  # the ID of a performance
        if kind is bool:
            flag = f"--{name.replace('_', '-')}"
            parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=description)
            continue
        choices = get_args(kind) if get_origin(kind) is Literal else None
        if choices:
            description += f" One of {', '.join(choices)}."
        parser.add_argument(
            *SHORT_OPTIONS.get(name, ()),
            f"--{name.replace('_', '-')}",
            dest=name,
            type=str if choices else _number if kind is float else kind,
            choices=choices,
            metavar=name.rpartition("_")[2].upper() if choices else kind.__name__.upper(),
            help=description.replace("%", "%%"),
        )
    return tuple(hints)


def _add_segments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--segment",
        dest="segments",
        action="append",
        type=_segment,
        metavar="SECONDS:PROMPT",
        help="A part with a prompt of its own; repeat the option for each part, and leave out PROMPT and --duration.",
    )


def _add_continue_from(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--continue-from",
        dest="continue_from",
        type=lambda text: {"audio_url" if text.startswith("/audio/") else "task_id": text},
        metavar="TASK_OR_LINK",
        help="Audio of yours to continue: the ID of a completed task, or the path of the audio on the server.",
    )


def _segment(text: str) -> dict[str, Any]:
    seconds, _, prompt = text.partition(":")
    try:
        return {"duration": _number(seconds), "prompt": prompt}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be SECONDS:PROMPT, such as 8:piano") from error


def _number(text: str) -> float:
    """Return a finite number: JSON has no others."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number
