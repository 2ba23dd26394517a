"""Lyria's contract of a live session: what its clients send, and what they get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.live.session import STEREO_48K, Message
from audiocraft_api.web.compat.lyria_messages import (
    ClientContent,
    ClientMessage,
    MusicGenerationConfig,
    Setup,
    blended,
    controls_of,
    unsupported_in,
)
from audiocraft_api.web.compat.lyria_sources import LyriaSources, Source
from audiocraft_api.web.compat.translation import model_named, refusal, renamed
from audiocraft_api.web.parsing import parse_json_text, validate
from audiocraft_api.web.request_checks import require_live
from audiocraft_api.web.schemas.live import (
    ConfigMessage,
    LiveMessage,
    PauseMessage,
    PlayMessage,
    PromptsMessage,
    ResetContextMessage,
    StartMessage,
    StopMessage,
)
from audiocraft_api.web.services import services

NAMES = {"prompts": "weightedPrompts", "model_size": "model", "cfg_coef": "guidance", "top_k": "topK", "key": "scale"}
ENDINGS = {
    "limit": "The music is as long as this server permits.",
    "paused": "The music was paused for too long.",
    "idle": "The client sent no message for too long.",
    "quota": "The daily quota of audio is used up.",
    "draining": "The server is shutting down.",
}


class LyriaContract:
    """Lyria's contract.

    PLAY begins a session once there are prompts, and STOP ends it; the prompts and the config are kept for the next.
    While the client pauses, the audio that was made already is held back, because players discard what they get.
    """

    restarts = True
    output_format: str | None = STEREO_48K

    def __init__(self) -> None:
        self.is_ready = False
        self._model = ""
        self._sources = LyriaSources()
        self._wants_to_play = False
        self._has_session = self._is_stopping = self._is_paused = False
        self._seed: int | None = None  # of the session
        self._held: list[dict[str, Any]] = []
        self._warned: set[str] = set()
        self._num_changes = 0

    def read(self, text: str | bytes) -> Iterator[LiveMessage | dict[str, Any]]:
        message = parse_json_text(ClientMessage, text if isinstance(text, str) else text.decode(errors="replace"))
        with renamed(NAMES):
            if not self.is_ready:
                self._model = _model_of(message.setup)
                self.is_ready = True
                yield {"setupComplete": {}}
            elif message.client_content is not None:
                yield from self._read_prompts(message.client_content)
            elif message.music_generation_config is not None:
                yield from self._read_config(message.music_generation_config)
            elif message.playback_control is not None:
                yield from self._read_control(message.playback_control.upper())
            else:
                raise InvalidRequest("Send one of clientContent, musicGenerationConfig and playbackControl.")

    def next_start(self) -> StartMessage | None:
        if not (self._wants_to_play and self._sources.prompts):
            return None
        self._has_session, self._is_stopping, self._is_paused = True, False, False
        self._held = []
        self._sources.begin()
        self._seed = self._sources.config.seed
        fields = {"type": "start", "model_size": self._model, "prompts": self._sources.prompts, "seed": self._seed}
        given = {name: value for name, value in controls_of(self._sources.config).items() if value is not None}
        return validate(StartMessage, fields | given, strict=True)

    def write(self, message: Message) -> Iterator[dict[str, Any]]:
        match message["type"]:
            case "applied":
                self._sources.apply(message.get("id", ""), message["frame"])
                if message["to"] == "play":
                    yield from self._held
                    self._held = []
            case "filtered_prompt":
                reason = " ".join(filter(None, (message["error"], message.get("suggestion"))))
                yield {"filteredPrompt": {"text": message["text"], "filteredReason": reason}}
            case "rejected":
                yield {"warning": message["error"]}
            case "ending" if message["reason"] in ENDINGS:
                yield {"warning": ENDINGS[message["reason"]]}
            case "ended":
                self._has_session = False
        self._sources.drop(message.get("id", ""))
        if message.get("to") == "start":  # it was refused
            self._has_session, self._sources.prompts = False, []

    def write_audio(self, piece: bytes) -> Iterator[dict[str, Any]]:
        answer = self._sources.chunk(piece)
        if self._is_paused:
            self._held.append(answer)
        elif not self._is_stopping:
            yield answer

    def closing_text(self, message: Message, /) -> str:
        return str(message["error"]) if message["type"] == "error" else ENDINGS.get(message["reason"], "")

    @property
    def _is_steering(self) -> bool:
        """Whether messages go to a session. Otherwise they are for the next one."""
        return self._has_session and not self._is_stopping

    def _read_prompts(self, content: ClientContent) -> Iterator[LiveMessage | dict[str, Any]]:
        prompts, left_out = blended(content.weighted_prompts)
        message = self._message(PromptsMessage, prompts, {"type": "prompts", "prompts": prompts})
        if left_out:
            yield from self._warn({"weightedPrompts"}, f"This server blends {len(prompts)} prompts, the heaviest ones.")
        if self._is_steering:
            yield message
        else:
            self._sources.replace(prompts)

    def _read_config(self, config: MusicGenerationConfig) -> Iterator[LiveMessage | dict[str, Any]]:
        message = self._message(ConfigMessage, config, {"type": "config", **controls_of(config)})
        if names := unsupported_in(config):
            yield from self._warn(set(names), f"This server ignores {', '.join(names)}.")
        if not self._is_steering:
            self._sources.replace(config)
            return
        if config.seed not in (None, self._seed):
            yield from self._warn({"seed"}, "A seed has an effect only when the music begins: send STOP, then PLAY.")
        yield message

    def _read_control(self, control: str) -> Iterator[LiveMessage]:
        if control not in ("PLAY", "PAUSE", "STOP", "RESET_CONTEXT"):
            raise refusal("playbackControl", "must be PLAY, PAUSE, STOP or RESET_CONTEXT.")
        if control == "RESET_CONTEXT":
            if self._is_steering:
                yield ResetContextMessage(type="reset_context", id=None)
            return
        self._wants_to_play = control == "PLAY"
        if not self._is_steering:
            if self._wants_to_play and not self._sources.prompts:
                raise InvalidRequest("The music begins with the first clientContent. Send weightedPrompts.")
        elif control == "PLAY" and self._is_paused:
            self._is_paused = False
            yield PlayMessage(type="play", id=None)
        elif control == "PAUSE" and not self._is_paused:
            self._is_paused = True
            yield PauseMessage(type="pause", id=None)
        elif control == "STOP":
            self._is_stopping = True
            yield StopMessage(type="stop", id=None)

    def _message(
        self,
        schema: type[PromptsMessage | ConfigMessage],
        source: Source,
        fields: dict[str, Any],
    ) -> LiveMessage:
        """Return a valid message that changes the source of the music. Raises InvalidRequest."""
        self._num_changes += 1
        message = validate(schema, fields | {"id": str(self._num_changes)}, strict=True)
        if self._is_steering:
            self._sources.change(str(self._num_changes), source)
        return message

    def _warn(self, names: set[str], sentence: str) -> Iterator[dict[str, Any]]:
        """Yield a warning unless the client was warned of all these fields."""
        if names - self._warned:
            self._warned |= names
            yield {"warning": sentence}


def _model_of(setup: Setup | None) -> str:
    """Return this server's name of the model. Raises InvalidRequest."""
    if setup is None:
        raise InvalidRequest("The first message must be setup, with the model.")
    name = setup.model.removeprefix("models/")
    spec = services().catalog.get(model_named(None if name.startswith("lyria-") else name))
    require_live(spec, "model_size")
    return spec.name
