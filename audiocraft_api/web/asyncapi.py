"""Generates the AsyncAPI document of `/ws/live` from the schemas of its messages."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from audiocraft_api import __version__
from audiocraft_api.web.live_answers import ANSWERS
from audiocraft_api.web.schemas.live import MESSAGES

REF = "#/components/schemas/{model}"
ADDRESS = "/ws/live"
DESCRIPTION = """Music that is generated while it plays, and changed while it is generated.

The first message of the client is `start`. The server sends JSON text messages and, between them, audio as binary
messages. Every other message of the client is answered by `applied`, with the frame from which it holds, by `rejected`,
or by `filtered_prompt`; only `playback` has no answer unless it is rejected."""


def build_asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document."""
    sent: list[type[BaseModel]] = list(MESSAGES.values())
    received: list[type[BaseModel]] = list(ANSWERS)
    _, document = models_json_schema(
        [(schema, "validation") for schema in [*sent, *received]], ref_template=REF, by_alias=True
    )
    names = [schema.__name__ for schema in [*sent, *received]]
    messages: dict[str, Any] = {name: {"$ref": f"#/components/messages/{name}"} for name in [*names, "Audio"]}

    def operation(action: str, kinds: list[str], summary: str) -> dict[str, Any]:
        references = [{"$ref": f"#/channels/live/messages/{name}"} for name in kinds]
        return {
            "action": action,
            "channel": {"$ref": "#/channels/live"},
            "summary": summary,
            "messages": references,
        }

    return {
        "asyncapi": "3.0.0",
        "info": {"title": "AudioCraft API: live sessions", "version": __version__, "description": DESCRIPTION},
        "defaultContentType": "application/json",
        "channels": {"live": {"address": ADDRESS, "messages": messages}},
        "operations": {
            "steer": operation("receive", [schema.__name__ for schema in sent], "What a client sends."),
            "play": operation("send", [*(schema.__name__ for schema in received), "Audio"], "What the server sends."),
        },
        "components": {
            "messages": {name: _message(name) for name in names} | {"Audio": AUDIO},
            "schemas": document["$defs"],
        },
    }


AUDIO = {
    "contentType": "application/octet-stream",
    "summary": "The next audio, in the format of the session.",
    "payload": {"type": "string", "format": "binary"},
}


def _message(name: str) -> dict[str, Any]:
    return {"payload": {"$ref": REF.format(model=name)}}
