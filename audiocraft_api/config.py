"""The one settings table: every setting is a field of `Config`, read from `AUDIOCRAFT_API_<NAME>`.

A wrong value stops the start with a sentence that names variable, value and what was expected; an unknown variable
with the prefix warns. The README's table is tested against this one.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

PREFIX = "AUDIOCRAFT_API_"
MIN_WEBHOOK_KEY_BYTES = 24  # as Standard Webhooks asks

logger = logging.getLogger(__name__)


class ConfigError(Exception):
    """A setting has a wrong value; the message names the variable, the value and what was expected."""


def _split_commas(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def webhook_key(secret: SecretStr) -> bytes:
    """Return the key in a secret of Standard Webhooks, `whsec_` and base64; none in an empty one. Raises ValueError."""
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if text and len(key) < MIN_WEBHOOK_KEY_BYTES:
        raise ValueError(f"`whsec_` and the base64 of at least {MIN_WEBHOOK_KEY_BYTES} bytes was expected")
    return key


def _check_webhook_secret(secret: SecretStr) -> SecretStr:
    webhook_key(secret)
    return secret


CommaList = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]


class Config(BaseModel):
    """Settings of the server, frozen. Parameters of one request are `GenerationParams`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # server
    bind: str = Field(
        "0.0.0.0:5000", description="Address and port that gunicorn listens on.", pattern=r"^(.+:\d+|unix:.+)$"
    )
    threads: int = Field(64, ge=4, le=1024, description="Request threads of the one worker process.")
    max_synchronous_requests: int = Field(
        0,
        ge=0,
        le=1024,
        description="Requests that may hold a thread while they wait for audio; over it the answer is 503. "
        "0 is a quarter of the threads, or `max_waiting` when that is less.",
    )
    max_streams: int = Field(
        0,
        ge=0,
        le=1024,
        description="Streams of audio or of events, and WebSockets, that may be open, each of which holds a thread; "
        "over it the answer is 503. 0 is a quarter of the threads.",
    )
    socket_timeout_seconds: float = Field(
        30.0, ge=1, le=3600, description="A connection that stalls this long in the middle of a request is closed."
    )
    graceful_timeout_seconds: int = Field(
        30, ge=1, le=3600, description="How long a stopping server lets running requests finish."
    )
    cors_origins: CommaList = Field(
        ("*",), description="Origins that browsers may call from, separated by commas; `*` is any."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe level that is logged."
    )
    log_format: Literal["text", "json"] = Field("text", description="Log lines as text or as JSON objects.")
    log_prompts: bool = Field(False, description="Write prompts into the log at INFO.")

    # models
    checkpoints_dir: Path = Field(
        Path("checkpoints"),
        description="Directory with local checkpoints; a sub-directory of a model's name is used before the hub.",
    )
    models_file: Path | None = Field(
        None, description="JSON file with more models, or other checkpoints for the built-in names."
    )
    offline: bool = Field(False, description="Never reach for the model hub.")
    allow_non_commercial: bool = Field(
        True, description="Serve weights whose licence forbids commercial use (the released MusicGen weights)."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        "auto", description="Where models run; `auto` takes CUDA, then MPS, then CPU."
    )
    model_idle_seconds: float = Field(0.0, ge=0, description="Unload a model that nobody used for so long; 0 keeps it.")
    model_memory_bytes: int = Field(
        0, ge=0, description="Unload the least recently used models beyond this many bytes of weights; 0 is no budget."
    )

    # engine
    engine: Literal["batching", "plain"] = Field(
        "batching", description="Decode engine: many requests in one loop, or audiocraft's own loop one at a time."
    )
    precision: Literal["auto", "exact", "fp16", "bf16", "int8", "int6"] = Field(
        "auto", description="Arithmetic of the batching engine; `exact` gives audiocraft's own tokens on the CPU."
    )
    max_waiting: int = Field(
        32, ge=1, le=100_000, description="Requests that may wait for the engine; over it the answer is 503."
    )
    max_batch_requests: int = Field(8, ge=1, le=256, description="Requests decoded in one step.")
    kv_cache_bytes: int = Field(
        0, ge=0, description="Memory for keys and values; 0 is room for `max_batch_requests` whole requests."
    )
    condition_cache_entries: int = Field(
        64, ge=0, le=10_000, description="Descriptions whose encoded text is kept for each model."
    )
    request_deadline_seconds: float = Field(
        600.0, gt=0, le=86_400, description="A synchronous request that takes longer is answered with 504."
    )

    # tasks
    task_backend: Literal["embedded", "celery"] = Field(
        "embedded", description="Who works the tasks: this server itself, or Celery workers that share a Redis."
    )
    task_db: Path = Field(
        Path("data/tasks.sqlite3"),
        description="SQLite file of the embedded tasks; on a local disk, never on a network file system.",
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        pattern=r"^(rediss?|unix)://.+$",
        description="Redis that keeps the tasks of the Celery back end; it needs `appendonly yes`.",
    )
    broker_url: str = Field(
        "",
        pattern=r"^((amqps?|rediss?|redis\+socket|sentinel)://.+)?$",
        description="Broker of the Celery back end, a RabbitMQ (`amqp://…`) or a Redis; empty is `redis_url`.",
    )
    max_queued_tasks: int = Field(
        100, ge=1, le=100_000, description="Tasks that may wait to be worked; over it the answer is 503."
    )
    max_queued_melody_bytes: int = Field(
        512 * 2**20, ge=2**20, description="Decoded tunes of unfinished tasks, together; over it the answer is 503."
    )
    task_concurrency: int = Field(
        0, ge=0, le=256, description="Tasks worked at the same time; 0 is `max_batch_requests`."
    )
    task_attempts: int = Field(
        2, ge=1, le=10, description="How often a task is begun, over crashes and lacks, before it counts as failed."
    )
    task_lease_seconds: float = Field(
        15.0, ge=1, le=3600, description="A worker that is silent for so long has lost its task to the others."
    )
    task_deadline_seconds: float = Field(
        3600.0, gt=0, le=86_400, description="An attempt at a task that takes longer fails the task."
    )
    task_max_age_seconds: float = Field(
        86_400.0, ge=0, description="Delete finished tasks and their audio when they are older; 0 keeps them."
    )
    event_heartbeat_seconds: float = Field(
        15.0, ge=0.1, le=300, description="A stream of events that has nothing to tell sends a comment this often."
    )

    # webhooks
    webhook_secret: Annotated[SecretStr, AfterValidator(_check_webhook_secret)] = Field(
        SecretStr(""),
        description="Key that webhooks are signed with: `whsec_` and base64 (`openssl rand -base64 32`). Without one "
        "`webhook_url` is refused.",
    )
    webhook_allow_private: bool = Field(
        False, description="Call webhooks on private, loopback and link-local addresses too."
    )
    webhook_attempts: int = Field(
        8, ge=1, le=20, description="How often a webhook is called before it is given up; the pauses grow fourfold."
    )
    webhook_timeout_seconds: float = Field(10.0, gt=0, le=120, description="Longest time of one call of a webhook.")
    webhook_threads: int = Field(
        4, ge=1, le=64, description="Webhooks called at the same time, half of them of a host."
    )

    # uploads
    max_json_bytes: int = Field(256 * 2**10, ge=1024, description="Largest JSON body.")
    max_upload_bytes: int = Field(20 * 2**20, ge=1024, description="Largest request body.")
    max_melody_seconds: float = Field(60.0, ge=1, le=600, description="Longest uploaded tune.")
    max_melody_decoders: int = Field(2, ge=1, le=64, description="Uploads decoded at the same time; the others wait.")
    melody_timeout_seconds: float = Field(
        10.0, gt=0, le=600, description="Longest wait for a decoder, and then longest time to decode an uploaded tune."
    )

    # audio files
    convert_timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="Longest time that ffmpeg may take to encode one file."
    )
    audio_dir: Path = Field(Path("generated_audio"), description="Directory of the finished audio files.")
    audio_max_age_seconds: float = Field(
        86_400.0, ge=0, description="Delete audio files older than this; 0 keeps them."
    )
    audio_max_total_bytes: int = Field(
        10 * 2**30, ge=0, description="Delete the oldest audio files beyond this many bytes; 0 is no limit."
    )
    audio_sweep_interval_seconds: float = Field(
        60.0, gt=0, le=86_400, description="Time between two sweeps of the audio files."
    )


def variable_name(field: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + field.upper()


def load_config(environ: Mapping[str, str] | None = None, **overrides: Any) -> Config:
    """Read the settings from `environ` (default: the process's), `overrides` winning. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    known = {variable_name(field): field for field in Config.model_fields}
    for variable, value in environ.items():
        if variable in known:
            values[known[variable]] = value
        elif variable.startswith(PREFIX):
            logger.warning("Unknown setting %s is ignored.", variable)
    values.update(overrides)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(detail) for detail in error.errors())) from None


def settings_table() -> str:
    """Return the README's table of the settings."""
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in Config.model_fields.items():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = (
            ""
            if default is None or not str(default)
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        rows.append(f"| `{variable_name(name)}` | {shown} | {field.description} |")
    return "\n".join(rows)


def _sentence(detail: Any) -> str:
    expected = str(detail["msg"]).replace("Input should be", "expected")
    name = str(detail["loc"][0])
    value = "(hidden)" if name.endswith("_secret") else detail["input"]
    return f"{variable_name(name)}={value!s} is not valid: {expected}"


if __name__ == "__main__":
    print(settings_table())
