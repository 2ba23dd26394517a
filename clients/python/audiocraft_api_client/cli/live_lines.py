"""What a line of standard input changes in a live session."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints

from audiocraft_api_client._live_sync import LiveSession
from audiocraft_api_client.cli.commands import usage_error
from audiocraft_api_client.models import LivePromptFields, LiveSteerFields

HELP = """lines of standard input:
  PROMPTS                     change to one to four texts: rain, or 2:piano | rain | -1:drums
  bpm=90 temperature=0.8      change controls; bpm= and key= take the tempo and the key away
  pause, play                 pause, and go on
  back SECONDS [PROMPTS]      forget the music from a second on, and go on from there
  reset                       begin music that does not continue what was played
  stop                        end the music, as Ctrl-C and the end of the input do

With --duration, the music goes on after the end of the input. A second Ctrl-C ends the command at once."""
MOST_PROMPTS = 4


def apply_line(session: LiveSession, line: str) -> None:
    """Change a session as a line of the user says. Raises InvalidRequestError."""
    word, _, rest = line.strip().partition(" ")
    plain: dict[str, Callable[[], None]] = {
        "pause": session.pause,
        "play": session.play,
        "reset": session.reset_context,
        "stop": session.stop,
    }
    if not word:
        return
    if word in plain and not rest:
        plain[word]()
    elif word == "back":
        seconds, _, prompts = rest.strip().partition(" ")
        session.seek_back(_number("back", seconds), prompts_of(prompts) if prompts.strip() else None)
    elif "=" in word:
        session.steer(**_controls(line.split()))
    else:
        session.steer(prompts=prompts_of(line))


def prompts_of(text: str) -> list[LivePromptFields]:
    """Return the prompts in `2:piano | rain`. Only a number before a colon is a weight."""
    found: list[LivePromptFields] = []
    for part in text.split("|"):
        weight, colon, described = part.partition(":")
        number = _parsed(weight) if colon else math.nan
        prompt: LivePromptFields = {"text": part.strip()}
        if math.isfinite(number):
            prompt = {"text": described.strip(), "weight": number}
        if not prompt["text"]:
            raise usage_error("Each prompt must have a text, such as in 2:piano | rain.")
        found.append(prompt)
    if len(found) > MOST_PROMPTS:
        raise usage_error(f"There can be {MOST_PROMPTS} prompts at most.")
    return found


def _controls(words: Iterable[str]) -> Any:
    """Return the controls in `bpm=90 key=C minor`. A word without `=` belongs to the value before it."""
    texts: dict[str, str] = {}
    name = ""
    for word in words:
        if "=" in word:
            name, _, texts[name] = word.partition("=")
        else:
            texts[name] = f"{texts[name]} {word}"
    kinds = get_type_hints(LiveSteerFields)
    for name in texts:
        if name not in kinds:
            raise usage_error(f"There is no control {name}. The controls are {', '.join(kinds)}.")
    return {name: (text if name == "key" and text else _number(name, text)) for name, text in texts.items()}


def _number(name: str, text: str) -> Any:
    """Return a number, or None for the empty text of a control that can be taken away."""
    if name in ("bpm", "key") and not text:
        return None
    number = _parsed(text)
    if not math.isfinite(number):
        raise usage_error(f"{name} needs a number, and {text!r} is none.")
    return int(number) if name in ("bpm", "top_k") and number.is_integer() else number


def _parsed(text: str) -> float:
    """Return a number; NaN if the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
