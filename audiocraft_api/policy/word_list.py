"""A list of words and phrases by category, read from a TOML file, and their lookup in prompts. Knows no service.

Each word is looked up in a dictionary, without regular expressions, so no prompt can make the lookup slow.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audiocraft_api.config import ConfigError
from audiocraft_api.policy.normalize import LONG_RUN, fold, has_long_run, readings, runs, spellings, words_of

SHIPPED = Path(__file__).with_name("words.toml")
MAX_PHRASES = 1000  # that one entry may expand to
_PART = re.compile(r"\[([^\[\]]*)\]|([^\s\[\]]+)|(\S)")


class Category(BaseModel):
    """Entries that are refused for one reason."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    contains: str = Field(min_length=1, max_length=200)  # completes "The prompt seems to contain"
    suggestion: str | None = Field(None, min_length=1, max_length=500)
    entries: list[str]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    allow: list[str] = []
    category: list[Category] = []


@dataclass(frozen=True)
class _Phrase:
    """Consecutive words, each one of several alternatives. A phrase without a category is an exception."""

    slots: tuple[frozenset[str], ...]
    category: Category | None


class WordList:
    """Finds the entries of categories in prompts."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises ConfigError."""
        self._phrases: dict[str, list[_Phrase]] = {}  # by each alternative of the first word
        self._known: dict[
            str, set[tuple[str, tuple[int, ...]]]
        ] = {}  # every listed word with its run lengths, by its letters
        where = f"The word list {path}"
        file = _read(path, where)
        phrases = [_Phrase(slots, None) for entry in file.allow for slots in _parse(entry, where)]
        for category in file.category:
            for entry in category.entries:
                phrases += [_Phrase(slots, category) for slots in _parse(entry, where)]
        for phrase in phrases:
            self._add(phrase)

    def find(self, prompt: str) -> Category | None:
        """Return the category of the first entry in the prompt, or None."""
        spell = functools.cache(self._spelled)  # per prompt: words recur within it and in its readings
        for words in readings(prompt):
            found = list(self._matches([spell(word) for word in words]))
            allowed = {index for span, category in found if category is None for index in span}
            for span, category in found:
                if category is not None and allowed.isdisjoint(span):
                    return category
        return None

    def _add(self, phrase: _Phrase) -> None:
        for word in phrase.slots[0]:
            self._phrases.setdefault(word, []).append(phrase)
        for word in itertools.chain(*phrase.slots):
            letters, counts = runs(word)
            self._known.setdefault(letters, set()).add((word, counts))

    def _spelled(self, word: str) -> set[str]:
        """Return the possible spellings of a word; for stretched letters, the listed words that it stretches."""
        found = set()
        for spelling in spellings(word):
            if has_long_run(spelling):
                letters, counts = runs(spelling)
                for known, wanted in self._known.get(letters, ()):
                    if all(have == want or have >= LONG_RUN for have, want in zip(counts, wanted, strict=True)):
                        found.add(known)
            else:
                found.add(spelling)
        return found

    def _matches(self, spelled: Sequence[set[str]]) -> Iterator[tuple[range, Category | None]]:
        for start, words in enumerate(spelled):
            for word in words:
                for phrase in self._phrases.get(word, ()):
                    end = start + len(phrase.slots)
                    if end <= len(spelled) and not any(map(frozenset.isdisjoint, phrase.slots, spelled[start:end])):
                        yield range(start, end), phrase.category


def _read(path: Path, where: str) -> _File:
    try:
        return _File.model_validate(tomllib.loads(path.read_bytes().decode()))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(str(part) for part in detail["loc"])
        raise ConfigError(f"{where} is not valid at {place}: {detail['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not TOML: {error}") from None


def _parse(entry: str, where: str) -> Iterator[tuple[frozenset[str], ...]]:
    """Yield the phrases that an entry expands to, each as the alternatives for every word."""
    parts = []
    for optional, required, stray in _PART.findall(entry):
        alternatives = [words_of(fold(words)) for words in (optional or required).split("|")]
        if stray or not all(alternatives):
            raise ConfigError(f"{where} has the entry {entry!r}, which is not valid: use words, a|b and [a]")
        single = frozenset(words[0] for words in alternatives if len(words) == 1)
        several = [tuple(frozenset({word}) for word in words) for words in alternatives if len(words) > 1]
        parts.append([*([(single,)] if single else []), *several, *([()] if optional else [])])
    if math.prod(map(len, parts)) > MAX_PHRASES:
        raise ConfigError(f"{where} has the entry {entry!r}, which expands to over {MAX_PHRASES:,} phrases")
    for chosen in itertools.product(*parts):
        slots = tuple(itertools.chain(*chosen))
        if not slots:
            raise ConfigError(f"{where} has the entry {entry!r}, in which every word is optional")
        yield slots
