"""The catalog of models: public names, origin of the weights, abilities and license.

Neither imports torch nor loads anything; `loading` turns a spec into a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from audiocraft_api.config import Config, ConfigError, variable_name
from audiocraft_api.core.constants import (
    DEFAULT_EXTEND_STRIDE_SECONDS,
    MAX_LONG_DURATION_SECONDS,
    MIN_EXTEND_STRIDE_SECONDS,
    WINDOW_SECONDS,
)
from audiocraft_api.core.errors import InvalidRequest

RELEASED_LICENSE = "CC-BY-NC-4.0"
DEMO_NOTICE = "Small demo model, trained on synthesized music."

# A model's name is also the name of its directory in `checkpoints_dir`.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = r"^[0-9a-f]{64}$"

ModelKind = Literal["music", "sound_effects"]


@dataclass(frozen=True)
class ModelSpec:
    """One model. `checkpoint` is a hub id, a local directory, or `built-in`."""

    name: str
    checkpoint: str
    revision: str | None = None  # of the hub; None is its main branch
    sha256: str | None = None  # of state_dict.bin
    codec_sha256: str | None = None  # of compression_state_dict.bin
    kind: ModelKind = "music"  # what the model was trained on
    melody: bool = False
    channels: int = 1
    sample_rate: int = 32_000  # Hz
    max_duration_seconds: float = MAX_LONG_DURATION_SECONDS
    window_seconds: float = WINDOW_SECONDS  # that the model generates at once
    extend_stride_seconds: float = DEFAULT_EXTEND_STRIDE_SECONDS  # of requests that name none
    num_codebooks: int = 4
    licence: str = RELEASED_LICENSE
    commercial_use: bool = False
    description: str = ""

    @property
    def is_built_in(self) -> bool:
        """Whether `model.demo` makes the weights on this machine."""
        return self.checkpoint == BUILT_IN

    def stride(self, wanted_seconds: float | None) -> float:
        """Return the seconds of new audio in each window of a request that wants `wanted_seconds`, or none."""
        return self.extend_stride_seconds if wanted_seconds is None else wanted_seconds


BUILT_IN = "built-in"


def _released(name: str, description: str, *, melody: bool = False) -> ModelSpec:
    return ModelSpec(name, f"facebook/musicgen-{name}", melody=melody, description=f"MusicGen {description}")


def _stereo(name: str, description: str, *, melody: bool = False) -> ModelSpec:
    return replace(_released(f"stereo-{name}", f"stereo {description}", melody=melody), channels=2, num_codebooks=8)


def _demo(name: str, description: str, **abilities: Any) -> ModelSpec:
    description = f"{description} {DEMO_NOTICE}"
    return ModelSpec(name, BUILT_IN, licence="MIT", commercial_use=True, description=description, **abilities)


_DEFAULT_SPECS = (
    _released("small", "small: text to music, 300 million parameters."),
    _released("medium", "medium: text to music, 1.5 billion parameters."),
    _released("large", "large: text to music, 3.3 billion parameters."),
    _released("melody", "melody: text and a melody to music, 1.5 billion parameters.", melody=True),
    _released("melody-large", "melody large: text and a melody to music, 3.3 billion parameters.", melody=True),
    _stereo("small", "small: text to music, 300 million parameters."),
    _stereo("medium", "medium: text to music, 1.5 billion parameters."),
    _stereo("large", "large: text to music, 3.3 billion parameters."),
    _stereo("melody", "melody: text and a melody to music, 1.5 billion parameters.", melody=True),
    _stereo("melody-large", "melody large: text and a melody to music, 3.3 billion parameters.", melody=True),
    ModelSpec(  # window and stride are those of audiocraft's `AudioGen`
        "audiogen-medium",
        "facebook/audiogen-medium",
        kind="sound_effects",
        sample_rate=16_000,
        window_seconds=10.0,
        extend_stride_seconds=2.0,
        description="AudioGen medium: text to sound effects, 1.5 billion parameters.",
    ),
    _demo("demo", "Text to music."),
    _demo("demo-melody", "Text and a melody to music.", melody=True),
    _demo("demo-stereo", "Text to stereo music.", channels=2, num_codebooks=8),
)

# The models behind the public sizes of POST /generate-with-melody; other melody models are requested by name.
_MELODY_SIZES = {"medium": "melody", "large": "melody-large", "demo": "demo-melody"}


class _Entry(BaseModel):
    """One model of `models_file`. An omitted field keeps the built-in model's value, or the default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    checkpoint: str | None = Field(None, min_length=1)
    revision: str | None = Field(None, min_length=1)
    sha256: str | None = Field(None, pattern=_SHA256)
    codec_sha256: str | None = Field(None, pattern=_SHA256)
    kind: ModelKind | None = None
    melody: bool | None = None
    channels: int | None = Field(None, ge=1, le=2)
    sample_rate: int | None = Field(None, ge=8_000, le=192_000)
    max_duration_seconds: float | None = Field(None, gt=0, le=MAX_LONG_DURATION_SECONDS)
    window_seconds: float | None = Field(None, gt=MIN_EXTEND_STRIDE_SECONDS, le=WINDOW_SECONDS)
    extend_stride_seconds: float | None = Field(None, ge=MIN_EXTEND_STRIDE_SECONDS, lt=WINDOW_SECONDS)
    num_codebooks: int | None = Field(None, ge=1, le=64)
    licence: str | None = Field(None, min_length=1)
    commercial_use: bool | None = None
    description: str | None = None


class Catalog:
    """The models of one server, by public name."""

    def __init__(self, config: Config) -> None:
        """Collect the built-in models and those of `config.models.models_file`.

        Raises ConfigError, also for a name in `config.models.preload` that cannot be served.
        """
        self._allow_non_commercial = config.models.allow_non_commercial
        self._checkpoints_dir = config.models.checkpoints_dir
        self._specs = {spec.name: spec for spec in _DEFAULT_SPECS}
        if config.models.models_file is not None:
            self._specs.update(_read_models_file(config.models.models_file, self._specs))
        for name in config.models.preload:
            try:
                self.get(name)
            except InvalidRequest as error:
                raise ConfigError(f"{variable_name('preload_models')}: {error.message}") from None

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self._specs.values())

    def is_allowed(self, spec: ModelSpec) -> bool:
        """Whether the server's settings allow this model's license."""
        return self._allow_non_commercial or spec.commercial_use

    def local_directory(self, spec: ModelSpec) -> Path | None:
        """Return the local directory of the checkpoint, or None if it comes from the hub."""
        for directory in (self._checkpoints_dir / spec.name, Path(spec.checkpoint)):
            if directory.is_dir() and not (spec.is_built_in and directory == Path(BUILT_IN)):
                return directory.absolute()
        return None

    def get(self, name: str) -> ModelSpec:
        """Return a model by name. Raises InvalidRequest naming `model_size` if it is unknown or not allowed."""
        spec = self._specs.get(name)
        if spec is None:
            raise _invalid(f"There is no model {name!r}. Choose one of: {self._listed(self._specs.values())}.")
        if not self.is_allowed(spec):
            raise _invalid(
                f"The weights of {name!r} are licensed under {spec.licence}, which forbids commercial use, and this "
                f"server does not serve such models. Choose one of: {self._listed(self._specs.values())}."
            )
        return spec

    def called(self, name: str) -> ModelSpec:
        """Return a model by name, or by the id of its checkpoint on the hub. Raises InvalidRequest as `get`."""
        by_checkpoint = (spec.name for spec in self if spec.checkpoint == name)
        return self.get(name if name in self._specs else next(by_checkpoint, name))

    def melody_checkpoint(self, size: str) -> ModelSpec:
        """Return the melody model of a public size. Raises InvalidRequest naming `model_size`."""
        spec = self._specs.get(_MELODY_SIZES.get(size, size))
        if spec is not None and spec.melody:
            return self.get(spec.name)
        sizes = [s for s, name in _MELODY_SIZES.items() if self.is_allowed(self._specs[name])]
        others = [s.name for s in self if s.melody and self.is_allowed(s)]
        raise _invalid(f"The model {size!r} cannot follow a melody. Choose one of: {', '.join(sizes + others)}.")

    def _listed(self, specs: Any) -> str:
        return ", ".join(spec.name for spec in specs if self.is_allowed(spec))


def _invalid(sentence: str) -> InvalidRequest:
    return InvalidRequest(sentence, {"model_size": [sentence]})


def _read_models_file(path: Path, known: dict[str, ModelSpec]) -> dict[str, ModelSpec]:
    where = f"The models file {path}"
    try:
        entries = TypeAdapter(dict[str, _Entry]).validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(str(part) for part in detail["loc"]) or "the whole file"
        raise ConfigError(f"{where} is not valid at {place}: {detail['msg']}") from None
    return {name: _spec(name, entry, known.get(name), where) for name, entry in entries.items()}


def _spec(name: str, entry: _Entry, known: ModelSpec | None, where: str) -> ModelSpec:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where} has the model name {name!r}; expected lowercase letters, digits, '.', '_' and '-'")
    given = entry.model_dump(exclude_none=True)
    if known is not None and "checkpoint" not in given:
        return _with_stride(replace(known, **given), given, where)
    if "checkpoint" not in given:
        raise ConfigError(f"{where} names no checkpoint for {name!r}; expected a hub id or a directory")
    # Other weights: the built-in model's license and description do not apply to them.
    given.setdefault("licence", "unknown")
    abilities = {} if known is None else {f.name: getattr(known, f.name) for f in fields(known) if f.name in _ABILITIES}
    return _with_stride(ModelSpec(**{"name": name, **abilities, **given}), given, where)


def _with_stride(spec: ModelSpec, given: dict[str, Any], where: str) -> ModelSpec:
    """Return the model with a stride that is shorter than its window. Raises ConfigError if the file names another."""
    if spec.extend_stride_seconds < spec.window_seconds:
        return spec
    if "extend_stride_seconds" in given:
        raise ConfigError(
            f"{where} is not valid at {spec.name}.extend_stride_seconds: expected less than window_seconds, "
            f"which is {spec.window_seconds:g}"
        )
    share = DEFAULT_EXTEND_STRIDE_SECONDS / WINDOW_SECONDS
    return replace(spec, extend_stride_seconds=max(MIN_EXTEND_STRIDE_SECONDS, share * spec.window_seconds))


_ABILITIES = {
    *("kind", "melody", "channels", "sample_rate", "max_duration_seconds", "window_seconds", "extend_stride_seconds"),
    "num_codebooks",
}
