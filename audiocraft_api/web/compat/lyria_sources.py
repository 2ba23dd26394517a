"""The prompts and the config that Lyria's music is made from, by the frame from which they hold."""

from __future__ import annotations

import base64
from typing import Any

from audiocraft_api.core.constants import FRAME_RATE
from audiocraft_api.web.compat.lyria_messages import UNSUPPORTED, MusicGenerationConfig

MEDIA_TYPE = "audio/l16;rate=48000;channels=2"
BYTES_PER_FRAME = 48_000 * 2 * 2 // FRAME_RATE

Source = list[dict[str, Any]] | MusicGenerationConfig  # prompts, or a config


class LyriaSources:
    """What the music of one connection is made from, and the chunks of its audio."""

    def __init__(self) -> None:
        self.prompts: list[dict[str, Any]] = []
        self.config = MusicGenerationConfig()
        self._pending: dict[str, Source] = {}  # changes without a frame, by the ID of their message
        self._by_frame: list[tuple[int, dict[str, Any]]] = []
        self._num_bytes = 0

    def begin(self) -> None:
        """Begin another session with the prompts and the config of the last one."""
        self._pending, self._by_frame, self._num_bytes = {}, [], 0
        self._note(0)

    def change(self, change_id: str, source: Source) -> None:
        """Remember a change until it is applied or dropped."""
        self._pending[change_id] = source

    def apply(self, change_id: str, frame: int) -> None:
        """Note from which frame on a change holds."""
        if change_id in self._pending:
            self.replace(self._pending.pop(change_id))
            self._note(frame)

    def drop(self, change_id: str) -> None:
        """Forget a change that was rejected."""
        self._pending.pop(change_id, None)

    def replace(self, source: Source) -> None:
        """Use other prompts, or another config."""
        if isinstance(source, MusicGenerationConfig):
            self.config = source
        else:
            self.prompts = source

    def chunk(self, piece: bytes) -> dict[str, Any]:
        """Return the next piece of audio as a message."""
        frame = self._num_bytes // BYTES_PER_FRAME
        self._num_bytes += len(piece)
        while len(self._by_frame) > 1 and self._by_frame[1][0] <= frame:
            self._by_frame.pop(0)
        data = base64.b64encode(piece).decode()
        chunk = {"data": data, "mimeType": MEDIA_TYPE, "sourceMetadata": self._by_frame[0][1]}
        return {"serverContent": {"audioChunks": [chunk]}}

    def _note(self, frame: int) -> None:
        config = self.config.model_dump(by_alias=True, exclude_none=True, exclude=set(UNSUPPORTED))
        source = {"clientContent": {"weightedPrompts": self.prompts}, "musicGenerationConfig": config}
        self._by_frame.append((frame, source))
