"""The command `live`: plays music without end, and changes it with lines of standard input."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Optional

from audiocraft_api_client._live_messages import Answer
from audiocraft_api_client._live_sync import LiveSession
from audiocraft_api_client._sync import AudioCraft
from audiocraft_api_client.cli.commands import STANDARD_OUTPUT, require_writable, usage_error
from audiocraft_api_client.cli.live_lines import apply_line, prompts_of
from audiocraft_api_client.cli.wave_sink import Sink, open_standard_output, open_wave_file
from audiocraft_api_client.errors import InvalidRequestError
from audiocraft_api_client.models import (
    AppliedAnswer,
    EndedAnswer,
    FilteredPromptAnswer,
    RejectedAnswer,
    StartedAnswer,
)
from audiocraft_api_client.play import open_player, require_player

FRAMES_PER_SECOND = 50  # of all models


def live(client: AudioCraft, options: argparse.Namespace) -> None:
    output = options.output or (None if options.play else STANDARD_OUTPUT)
    require_writable(output)
    if output not in (None, STANDARD_OUTPUT) and not output.lower().endswith(".wav"):
        raise usage_error("The file name must end with .wav. `generate --performance ID` makes other formats of it.")
    if options.play:
        require_player()
    fields = {name: getattr(options, name) for name in options.fields if getattr(options, name) is not None}
    prompts = prompts_of(options.prompt)
    with ExitStack() as stack:
        sinks: list[Sink] = []
        show = _shown_messages(sinks, as_json=options.json)
        session = stack.enter_context(client.live(prompts, on_message=show, **fields))
        sinks += [stack.enter_context(sink) for sink in _sinks(session.started, output, options.play)]
        ends_with_input = options.duration is None
        threading.Thread(target=_steer, args=(session, ends_with_input, options.json), daemon=True).start()
        stack.enter_context(_stopped_by_interrupt(session))
        for block in session:
            for sink in sinks:
                sink.write(block)
    if output != STANDARD_OUTPUT:
        _report(session, output, as_json=options.json)


def _steer(session: LiveSession, ends_with_input: bool, as_json: bool) -> None:
    for line in _input_lines():
        try:
            apply_line(session, line)
        except InvalidRequestError as error:
            if as_json:
                print(json.dumps({"error": error.message, "code": error.code}), file=sys.stderr, flush=True)
            else:
                _show(error.message)
    if ends_with_input:
        session.stop()


def _input_lines() -> Iterator[str]:
    """Yield the lines of standard input. A thread in `sys.stdin` would hold its lock when the interpreter exits."""
    rest = b""
    while received := os.read(0, 4096):
        *lines, rest = (rest + received).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    yield rest.decode(errors="replace")


def _sinks(started: StartedAnswer, output: Optional[str], plays: bool) -> Iterator[Any]:
    """Yield what the audio goes to, each as a context manager."""
    if output == STANDARD_OUTPUT:
        yield open_standard_output(started)
    elif output is not None:
        yield open_wave_file(output, started)
    if plays:
        yield open_player(started)


@contextmanager
def _stopped_by_interrupt(session: LiveSession) -> Iterator[None]:
    """Let the first Ctrl-C end the music, and the second one the command."""
    default = signal.getsignal(signal.SIGINT)

    def stop(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, default)
        # Not in this thread, which may hold the lock of the socket at the moment.
        threading.Thread(target=session.stop, daemon=True).start()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)


def _shown_messages(sinks: list[Sink], *, as_json: bool) -> Callable[[Answer], None]:
    """Return a function that takes each message of the server.

    Refusals are always shown, the rest on a terminal, and all as lines of JSON with `as_json`.
    """

    def take(message: Answer) -> None:
        if isinstance(message, AppliedAnswer) and message.to == "seek_back":
            for sink in sinks:
                sink.seek_back(message.frame)
        is_refusal = isinstance(message, (RejectedAnswer, FilteredPromptAnswer))
        if as_json:
            print(message.model_dump_json(exclude_none=True), file=sys.stderr, flush=True)
        elif is_refusal or sys.stderr.isatty():
            _show(_text_of(message))

    return take


def _text_of(message: Answer) -> str:
    if isinstance(message, (RejectedAnswer, FilteredPromptAnswer)):
        return " ".join(part for part in (message.error, message.suggestion) if part)
    if isinstance(message, AppliedAnswer):
        return f"{message.to} holds from {message.frame / FRAMES_PER_SECOND:.2f} s on"
    if isinstance(message, EndedAnswer) and message.performance:
        return f"ended after {message.duration:.2f} s; again: audiocraft generate --performance {message.performance}"
    return message.type


def _show(text: str) -> None:
    print(f"audiocraft: {text}", file=sys.stderr, flush=True)


def _report(session: LiveSession, file: Optional[str], *, as_json: bool) -> None:
    """Print the file that was written, or what was played."""
    if as_json:
        ended = session.ended
        known = {"performance": ended.performance, "duration": ended.duration} if ended else {}
        print(json.dumps({"file": file, "seed": session.started.seed, **known}))
    elif file:
        print(file)
