"""A client of AudioCraft API, a server that generates music with MusicGen."""

from audiocraft_api_client._async import AsyncAudioCraft, AsyncAudioStream, AsyncTasks
from audiocraft_api_client._live_async import AsyncLiveSession
from audiocraft_api_client._live_sync import LiveSession
from audiocraft_api_client._sync import AudioCraft, AudioStream, Tasks
from audiocraft_api_client.errors import (
    AudioCraftError,
    AudioGoneError,
    CanceledError,
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    GenerationFailedError,
    IdempotencyConflictError,
    InvalidRequestError,
    LimitExceededError,
    ModelBusyError,
    NoModelsHereError,
    NotFoundError,
    NotStreamableError,
    PromptRefusedError,
    UnauthorizedError,
    UnavailableError,
)
from audiocraft_api_client.play import play
from audiocraft_api_client.progress import TerminalProgress

__version__ = "0.1.0"

__all__ = [
    "AsyncAudioCraft",
    "AsyncAudioStream",
    "AsyncLiveSession",
    "AsyncTasks",
    "AudioCraft",
    "AudioCraftError",
    "AudioGoneError",
    "AudioStream",
    "CanceledError",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "ForbiddenError",
    "GenerationFailedError",
    "IdempotencyConflictError",
    "InvalidRequestError",
    "LimitExceededError",
    "LiveSession",
    "ModelBusyError",
    "NoModelsHereError",
    "NotFoundError",
    "NotStreamableError",
    "PromptRefusedError",
    "Tasks",
    "TerminalProgress",
    "UnauthorizedError",
    "UnavailableError",
    "play",
]
