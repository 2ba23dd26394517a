"""Plain data between the endpoints and the generation service: a validated request, and the audio made for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from audiocraft_api.audio.finishing import Finishing
from audiocraft_api.audio.looping import LoopShape, beats_per_bar
from audiocraft_api.audio.notes import line_of_notes, parse_notes
from audiocraft_api.core.constants import (
    DEFAULT_CANDIDATES,
    DEFAULT_CFG_COEF,
    DEFAULT_EXTEND_STRIDE_SECONDS,
    DEFAULT_TOP_K,
    MAX_DURATION_SECONDS,
)
from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.core.params import AudioInput, Melody, Segment
from audiocraft_api.core.performance import Performance
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.generation.recipe import Recipe
from audiocraft_api.generation.wording import wording

# Marks a field that the first release did not have. A task is stored with it only if it is not the default, so that
# servers and workers of both releases can run the same tasks, and a repeated request keeps its fingerprint.
ADDED = {"added": True}


@dataclass(frozen=True, eq=False)
class GenerateCommand:
    """A validated request: `model` is a checkpoint's public name, `output_format` a key of `convert.ALL_FORMATS`."""

    prompt: str
    model: str
    duration_seconds: float
    output_format: str = "wav"
    temperature: float = 1.0
    top_k: int = DEFAULT_TOP_K
    top_p: float = 0.0
    cfg_coef: float = DEFAULT_CFG_COEF
    seed: int | None = None
    melody: Melody | None = None  # that was uploaded
    audio_owner: str | None = None  # the only caller who may fetch the audio; None: anyone with the link
    seed_drawn: bool = False  # the service drew the seed, so no later request can have the same one by intention
    extend_stride_seconds: float = field(default=DEFAULT_EXTEND_STRIDE_SECONDS, metadata=ADDED)
    negative_prompt: str | None = field(default=None, metadata=ADDED)
    # Instead of `prompt`, which is then the first segment's; together they have the duration.
    segments: tuple[Segment, ...] = field(default=(), metadata=ADDED)
    # Instead of all controls. `prompt` is then its first one, and the duration its length.
    performance: Performance | None = field(default=None, metadata=ADDED)
    n: int = field(default=1, metadata=ADDED)  # variations, with different seeds
    # What to continue, and where it is in the client's recording, in seconds. `duration_seconds` is that of new audio.
    audio_prompt: AudioInput | None = field(default=None, metadata=ADDED)
    prompt_start: float | None = field(default=None, metadata=ADDED)
    prompt_end: float | None = field(default=None, metadata=ADDED)
    include_input: bool = field(default=True, metadata=ADDED)  # the result begins with `audio_prompt`
    continued_url: str | None = field(default=None, metadata=ADDED)  # of the audio on this server that is continued
    loudness: float | None = field(default=None, metadata=ADDED)  # LUFS
    fade_in_seconds: float = field(default=0.0, metadata=ADDED)
    fade_out_seconds: float = field(default=0.0, metadata=ADDED)
    trim_silence: bool = field(default=False, metadata=ADDED)
    analysis: bool = field(default=False, metadata=ADDED)
    bpm: int | None = field(default=None, metadata=ADDED)
    key: str | None = field(default=None, metadata=ADDED)
    time_signature: str | None = field(default=None, metadata=ADDED)
    stems: bool = field(default=False, metadata=ADDED)
    loop: bool = field(default=False, metadata=ADDED)  # of `duration_seconds`, which bars and bpm decide
    bars: int | None = field(default=None, metadata=ADDED)
    candidates: int = field(default=DEFAULT_CANDIDATES, metadata=ADDED)
    notes: str | None = field(default=None, metadata=ADDED)  # a melody as text, at `bpm`

    @property
    def followed(self) -> Melody | None:
        """The melody that the music follows."""
        if self.notes is None:
            return self.melody
        assert self.bpm is not None
        return line_of_notes(parse_notes(self.notes), self.bpm)

    @property
    def finishing(self) -> Finishing:
        """What happens to the waveform before it is encoded."""
        return Finishing(self.loudness, self.fade_in_seconds, self.fade_out_seconds, self.trim_silence)

    @property
    def wording(self) -> str:
        """What the descriptions of the engine have in addition to the client's prompts."""
        return wording({"bpm": self.bpm, "key": self.key, "time_signature": self.time_signature})

    @property
    def loop_shape(self) -> LoopShape | None:
        """The length of the loop; None unless one is requested."""
        if not self.loop or self.bpm is None or self.bars is None:
            return None
        return LoopShape(self.bpm, self.bars, beats_per_bar(self.time_signature))

    @property
    def generated_seconds(self) -> float:
        """Seconds of new audio that the engine generates for each result."""
        shape = self.loop_shape
        return self.candidates * shape.generated_seconds if shape else self.duration_seconds

    @property
    def time_factor(self) -> float:
        """How many times the limits of time apply, which are those of synchronous requests."""
        return max(1.0, self.n * self.generated_seconds / MAX_DURATION_SECONDS)


@dataclass
class Progress:
    """The progress of a command, readable from other threads while it runs."""

    num_requests: int = 1  # of all variations, and of all candidates of loops
    num_separations: int = 0
    requests: list[EngineRequest] = field(default_factory=list)  # that the engine has accepted; cached audio needs none
    separated: dict[EngineRequest, float] = field(default_factory=dict)  # the part of each that is separated

    @property
    def frames(self) -> tuple[int, int]:
        """Frames done and frames in total, of all requests; (0, 0) until decoding starts.

        A separation into stems counts as many frames as a request.
        """
        progress = [request.progress for request in list(self.requests)]
        num_frames_each = max((total for _, total in progress), default=0)
        num_separated = round(sum(self.separated.copy().values()) * num_frames_each)
        num_times = self.num_requests + self.num_separations
        return sum(done for done, _ in progress) + num_separated, num_frames_each * num_times


@dataclass(frozen=True)
class FailedVariation:
    """A variation that was not made, while others of the same request were."""

    seed: int
    error: AudioCraftError


@dataclass(frozen=True)
class StemFile:
    """A stem in the store."""

    filename: str
    url: str


@dataclass(frozen=True)
class GeneratedFile:
    """Audio in the store. Of a request for several variations, this is the first that was made."""

    filename: str
    url: str
    recipe: Recipe
    variations: tuple[GeneratedFile | FailedVariation, ...] = ()  # all of them; empty if only one was requested
    stems: Mapping[str, StemFile] = field(default_factory=dict)  # by name; empty unless requested

    @property
    def filenames(self) -> list[str]:
        """The names of all files."""
        made = [variation for variation in self.variations if isinstance(variation, GeneratedFile)]
        return [name for file in made or [self] for name in (file.filename, *(s.filename for s in file.stems.values()))]


@dataclass(frozen=True)
class GeneratedBytes:
    """Encoded audio in memory. Of a request for several variations, this is the first that was made."""

    audio: bytes
    recipe: Recipe
    codes: bytes | None = None  # to store beside the audio (`stored_codes.py`); None: they are not stored
    variations: tuple[GeneratedBytes | FailedVariation, ...] = ()  # all of them; empty if only one was requested
    stems: Mapping[str, bytes] = field(default_factory=dict)  # encoded, by name; empty unless requested
