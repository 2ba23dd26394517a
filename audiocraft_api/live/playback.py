"""How far a listener is: by the positions that the client reports, and by the clock in between.

The position never passes the audio that was sent. If it reaches it, playback has run dry: the clock stops until there
is enough audio again, so that a slow machine makes pauses and no crackle.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from audiocraft_api.core.constants import FRAME_RATE

Clock = Callable[[], float]


class Playback:
    """The position of one listener, in frames. Begins paused and without audio."""

    def __init__(self, lead_frames: int, clock: Clock = time.monotonic) -> None:
        self.lead_frames = lead_frames
        self._clock = clock
        self._is_playing = False
        self._is_dry = True  # until there is enough audio to begin with
        self._position = 0.0
        self._num_sent = 0
        self._since = clock()

    @property
    def is_playing(self) -> bool:
        """Whether the listener wants to hear the music, even if there is none at the moment."""
        return self._is_playing

    @property
    def is_dry(self) -> bool:
        """Whether playback waits for audio."""
        return self._is_dry

    @property
    def position(self) -> int:
        """The frame that is heard now."""
        self._advance()
        return int(self._position)

    @property
    def num_frames_allowed(self) -> int:
        """How many frames may be generated now."""
        return self.position + self.lead_frames

    def play(self) -> None:
        self._advance()
        self._is_playing = True

    def pause(self) -> None:
        self._advance()
        self._is_playing = False

    def report(self, position: float) -> None:
        """Use a position in frames that the client reports."""
        self._advance()
        self._position = min(max(position, 0.0), self._num_sent)

    def sent(self, num_frames: int) -> None:
        """Record that audio of `num_frames` in total was sent."""
        self._advance()
        self._num_sent = num_frames
        if num_frames - self._position >= self.lead_frames / 2:
            self._is_dry = False

    def seek(self, frame: int) -> None:
        """Go on from a frame, of which no audio was sent."""
        self._advance()
        self._position, self._num_sent, self._is_dry = frame, frame, True

    def _advance(self) -> None:
        now = self._clock()
        if self._is_playing and not self._is_dry:
            self._position = self._position + (now - self._since) * FRAME_RATE
            if self._position >= self._num_sent:
                self._position, self._is_dry = self._num_sent, True
        self._since = now
