"""What the commands do. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional, get_args, get_type_hints

from pydantic import BaseModel

from audiocraft_api_client._requests import Task
from audiocraft_api_client._sync import AudioCraft
from audiocraft_api_client.cli import standard_output
from audiocraft_api_client.cli.completion import SHELLS
from audiocraft_api_client.errors import InvalidRequestError
from audiocraft_api_client.models import TaskCompletedResponse, TaskFailedResponse, TaskFields, TaskWorkingResponse
from audiocraft_api_client.play import play, require_player
from audiocraft_api_client.progress import TerminalProgress, line_of

Command = Callable[[AudioCraft, argparse.Namespace], None]
STANDARD_OUTPUT = "-"


def generate(client: AudioCraft, options: argparse.Namespace) -> None:
    if "notes" in options.fields and (options.melody is None) == (options.notes is None):
        raise usage_error("Give the melody either as a FILE or with --notes.")
    if options.play:
        require_player()
    with TerminalProgress() as progress:
        task = client.tasks.run(options.prompt, melody=options.melody, on_progress=progress, **_fields(options))
    _write(client, task, options)


def continue_recording(client: AudioCraft, options: argparse.Namespace) -> None:
    if options.play:
        require_player()
    given = _fields(options)
    with TerminalProgress() as progress:
        task = client.tasks.run_continuation(
            options.prompt, audio=options.audio, melody=options.melody, on_progress=progress, **given
        )
    _write(client, task, options)


def stream(client: AudioCraft, options: argparse.Namespace) -> None:
    with client.stream(options.prompt, **_fields(options)) as audio:
        if options.output != STANDARD_OUTPUT:
            audio.save(options.output)
            print(json.dumps({"file": options.output, "seed": audio.seed}) if options.json else options.output)
            return
        for chunk in audio:
            standard_output.write(chunk)


def models(client: AudioCraft, options: argparse.Namespace) -> None:
    found = client.models()
    if options.json:
        _print_json(found)
    else:
        width = max(len(model.name) for model in found) + 2
        for model in found:
            print(f"{model.name:<{width}}{'melody' if model.melody else '':<8}{model.licence:<16}{model.description}")


def completion(_client: AudioCraft, options: argparse.Namespace) -> None:
    print(SHELLS[options.shell](options.parser))


def list_tasks(client: AudioCraft, options: argparse.Namespace) -> None:
    page = client.tasks.list(limit=options.limit)
    if options.json:
        _print_json(page.tasks)
    else:
        for task in page.tasks:
            print(_line_of(task))


def _show_task(client: AudioCraft, options: argparse.Namespace) -> None:
    _print_task(client.tasks.get(options.task_id), options)


def _wait_for_task(client: AudioCraft, options: argparse.Namespace) -> None:
    with TerminalProgress() as progress:
        task = client.tasks.wait(options.task_id, on_progress=progress)
    _print_task(task, options)


def _cancel_task(client: AudioCraft, options: argparse.Namespace) -> None:
    _print_task(client.tasks.cancel(options.task_id), options)


TASK_ACTIONS: dict[str, tuple[Command, str]] = {
    "show": (_show_task, "Show a task."),
    "wait": (_wait_for_task, "Wait for a task."),
    "cancel": (_cancel_task, "Cancel a task."),
}


def _fields(options: argparse.Namespace) -> Any:
    """Return the given fields of a request. The extension of the output file selects the format."""
    given = {name: getattr(options, name) for name in options.fields if getattr(options, name) is not None}
    if options.prompt is None and "segments" not in given:
        raise usage_error("A PROMPT or at least one --segment is missing.")
    require_writable(options.output)
    formats = get_args(get_type_hints(TaskFields)["output_format"])
    extension = Path(options.output or "").suffix[1:].lower()
    if "output_format" not in given and extension:
        if extension not in formats:
            raise usage_error(f"The file name must end with one of {', '.join(formats)}, or use --format.")
        given["output_format"] = extension
    return given


def require_writable(output: Optional[str]) -> None:
    """Refuse an output that would fail after the generation."""
    if output == STANDARD_OUTPUT and sys.stdout.isatty():
        raise usage_error("Audio is not written to a terminal. Use -o FILE, or redirect standard output.")
    if output and not Path(output).parent.is_dir():
        raise usage_error(f"The directory {Path(output).parent} does not exist.")


def _write(client: AudioCraft, task: TaskCompletedResponse, options: argparse.Namespace) -> None:
    """Save and play the audio of a task, and print the name of the file."""
    output = options.output or task.result.filename
    if output == STANDARD_OUTPUT:
        standard_output.write(client.download(task))
    else:
        client.save(task, output)
        _save_stems(client, task, Path(output))
        _print_task(task, options, file=output)
    if options.play:
        play(client.download(task))


def _save_stems(client: AudioCraft, task: TaskCompletedResponse, output: Path) -> None:
    """Save the stems of a task, if it has any, beside its audio: `clip.drums.wav` beside `clip.wav`."""
    for name, path in task.result.stems.model_dump().items() if task.result.stems else ():
        client.save(path, output.with_suffix(f".{name}{output.suffix}"))


def _print_task(task: Task, options: argparse.Namespace, file: Optional[str] = None) -> None:
    if options.json:
        shown = task.model_dump(mode="json")
        print(json.dumps(shown if file is None else {**shown, "file": file}))
    else:
        print(file or _line_of(task))


def _line_of(task: Task) -> str:
    detail = ""
    if isinstance(task, TaskWorkingResponse):
        detail = line_of(task)
    elif isinstance(task, TaskCompletedResponse):
        detail = task.audio_url
    elif isinstance(task, TaskFailedResponse):
        detail = task.error
    return f"{task.task_id}  {task.state:<12}{detail}".rstrip()


def _print_json(found: Sequence[BaseModel]) -> None:
    print(json.dumps([item.model_dump(mode="json") for item in found]))


def usage_error(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="invalid_request")
