"""Applies the messages of a live client to its session, in order, and says what became of each.

Prompts are checked in a thread of their own, because a moderation service may take seconds and the music must not wait
for it. Later messages wait until that is decided.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from audiocraft_api.core.constants import FRAME_RATE
from audiocraft_api.core.errors import AudioCraftError, InvalidRequest, PromptRefused
from audiocraft_api.core.performance import Controls, WeightedPrompt
from audiocraft_api.live.session import LiveSession, Message
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.policy.prompt_policy import PromptPolicy
from audiocraft_api.web.errors import details_of
from audiocraft_api.web.parsing import parse_json_text
from audiocraft_api.web.request_checks import require_music
from audiocraft_api.web.schemas.live import (
    MAX_ID_CHARACTERS,
    MESSAGES,
    ConfigMessage,
    LiveMessage,
    PauseMessage,
    PlaybackMessage,
    PlayMessage,
    PromptsMessage,
    ResetContextMessage,
    SeekBackMessage,
    StartMessage,
    StopMessage,
    TransitionMessage,
    spoken,
    weighted,
)
from audiocraft_api.web.schemas.performance import LivePromptFields

SAMPLING = ("temperature", "top_k", "top_p", "cfg_coef")
WISHES = ("bpm", "key")


def parse_message(text: str | bytes) -> LiveMessage:
    """Return a valid message. Raises InvalidRequest."""
    if not isinstance(text, str):
        raise InvalidRequest("Send messages as text that contains JSON.")
    kind = None
    try:
        value = json.loads(text)
        kind = value.get("type") if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        pass  # the parser below explains it
    schema = MESSAGES.get(kind) if isinstance(kind, str) else None
    if schema is None and kind is not None:
        sentence = f"type must be one of {', '.join(MESSAGES)}."
        raise InvalidRequest(sentence, {"type": [sentence]})
    return parse_json_text(schema or StartMessage, text)


class LiveSteering:
    """The prompts and the wishes of a session, and the messages that wait. For one thread; always `close` it."""

    def __init__(
        self, policy: PromptPolicy, max_prompt_characters: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._max_prompt_characters = max_prompt_characters
        self._clock = clock
        self._spec: ModelSpec  # since `begin`
        self._checker = ThreadPoolExecutor(1, "live-prompts")
        self._checking: tuple[LiveMessage, Future[list[PromptRefused]]] | None = None
        self._prompts: tuple[WeightedPrompt, ...] = ()
        self._wishes: dict[str, object] = {}
        self._transition_seconds = 0.0
        self.paused_since: float | None = None
        self.is_stopping = False

    def close(self) -> None:
        self._checker.shutdown(wait=False, cancel_futures=True)

    @property
    def is_checking(self) -> bool:
        """Whether later messages have to wait."""
        return self._checking is not None

    def begin(self, message: StartMessage, spec: ModelSpec) -> Controls:
        """Return the controls of the beginning. Raises InvalidRequest, PromptRefused, ModerationUnavailable."""
        self._spec = spec
        require_music(spec, message)
        self._require_lengths(message.prompts)
        for refusal in self._refusals(message.prompts):
            raise refusal
        self._prompts, self._transition_seconds = weighted(message.prompts), message.transition
        self._set_wishes(message)
        self.paused_since = self._clock() if message.paused else None
        given = {name: value for name in SAMPLING if (value := getattr(message, name)) is not None}
        return Controls(spoken(self._prompts, self._wishes), **given)

    def receive(self, session: LiveSession, message: LiveMessage) -> Iterator[Message]:
        """Apply a message, or begin to check its prompts. Not to be called while `is_checking`."""
        try:
            prompts = getattr(message, "prompts", None)
            if prompts and not isinstance(message, StartMessage):
                self._require_lengths(prompts)
                self._checking = message, self._checker.submit(self._refusals, prompts)
                return
            yield from self._apply(session, message)
        except AudioCraftError as error:
            yield rejected(message, error)

    def finish_check(self, session: LiveSession) -> Iterator[Message]:
        """Apply the message whose prompts were checked, if there is one."""
        if self._checking is None or not self._checking[1].done():
            return
        (message, check), self._checking = self._checking, None
        try:
            if refusals := check.result():
                yield from (rejected(message, refusal) for refusal in refusals)
            else:
                yield from self._apply(session, message)
        except AudioCraftError as error:
            yield rejected(message, error)

    def forget_rejected(self, session: LiveSession) -> None:
        """Go on from the controls that the session has, because the engine rejected a change."""
        self._prompts, self._wishes = session.controls.prompts, {}

    def _apply(self, session: LiveSession, message: LiveMessage) -> Iterator[Message]:
        match message:
            case PromptsMessage():
                self._prompts = weighted(message.prompts)
                seconds = self._transition_seconds if message.transition is None else message.transition
                session.change(self._controls(session), seconds, _tag(message))
            case ConfigMessage():
                require_music(self._spec, message)
                self._set_wishes(message)
                given = {name: value for name in SAMPLING if (value := getattr(message, name)) is not None}
                controls = replace(self._controls(session), **given)
                session.change(controls, self._transition_seconds, _tag(message))
            case ResetContextMessage():
                session.change(session.controls, 0.0, _tag(message), resets_context=True)
            case SeekBackMessage():
                frame, tag = round(message.position * FRAME_RATE), _tag(message)
                if message.prompts is None:
                    session.seek_back(frame, None, tag)
                    self.forget_rejected(session)
                else:
                    self._prompts = weighted(message.prompts)
                    session.seek_back(frame, self._controls(session), tag)
                yield from session.answers()
            case TransitionMessage():
                self._transition_seconds = message.seconds
                yield _applied(message, session.num_frames)
            case PlayMessage():
                self.paused_since = None
                yield _applied(message, session.play())
            case PauseMessage():
                self.paused_since = self.paused_since or self._clock()
                yield _applied(message, session.pause())
            case PlaybackMessage():
                session.playback.report(message.position * FRAME_RATE)
            case StopMessage():
                self.is_stopping = True
                yield _applied(message, session.num_frames)
            case _:
                raise InvalidRequest("The session has begun already. Open another connection for another session.")

    def _controls(self, session: LiveSession) -> Controls:
        return replace(session.controls, prompts=spoken(self._prompts, self._wishes))

    def _set_wishes(self, message: StartMessage | ConfigMessage) -> None:
        given = {name: getattr(message, name) for name in WISHES if name in message.model_fields_set}
        self._wishes = self._wishes | given

    def _require_lengths(self, prompts: list[LivePromptFields]) -> None:
        if any(len(prompt.text) > self._max_prompt_characters for prompt in prompts):
            sentence = f"prompts must have at most {self._max_prompt_characters} characters each on this server."
            raise InvalidRequest(sentence, {"prompts": [sentence]})

    def _refusals(self, prompts: list[LivePromptFields]) -> list[PromptRefused]:
        """Return the prompts that are refused. Raises ModerationUnavailable."""
        refusals = []
        for prompt in prompts:
            try:
                self._policy.require_allowed(prompt.text)
            except PromptRefused as refusal:
                refusals.append(refusal)
        return refusals


def client_message(message: Message) -> Message:
    """Turn what became of a change of the session into a message of this protocol."""
    if not isinstance(message.get("to"), dict):
        return message
    tag, error = message["to"], message.get("error")
    found = {name: value for name, value in message.items() if name not in ("to", "error")}
    found |= tag
    return found if error is None else found | _details(error)


def _id_in(text: str | bytes) -> Message:
    """Return the ID of a message that is not valid, if it has one."""
    try:
        found = json.loads(text)["id"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return {}
    return {"id": found} if isinstance(found, str) and len(found) <= MAX_ID_CHARACTERS else {}


def _tag(message: LiveMessage) -> Message:
    return {"to": getattr(message, "type", "")} | ({} if message.id is None else {"id": message.id})


def _applied(message: LiveMessage, frame: int) -> Message:
    return {"type": "applied", "frame": frame} | _tag(message)


def unreadable(text: str | bytes, error: AudioCraftError) -> Message:
    """Return the answer to a message that cannot be read, with its ID if it has one."""
    return {"type": "rejected"} | _details(error) | _id_in(text)


def rejected(message: LiveMessage, error: AudioCraftError) -> Message:
    """Return the answer to a message that has no effect."""
    kind = {"type": "rejected"}
    if isinstance(error, PromptRefused):
        kind = {"type": "filtered_prompt", "text": error.prompt}
    return kind | _tag(message) | _details(error)


def _details(error: AudioCraftError) -> Message:
    found = {name: value for name, value in details_of(error).items() if value is not None}
    return {"error": error.message, "code": error.code} | found
