"""Normalizes text, so that a word list also finds words in disguise. Knows no list.

Listed words and prompts are both folded, like the skeletons of Unicode's UTS #39: texts that look alike become equal,
and words of every script remain words. Everything runs in time proportional to the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

# Letters that look like a Latin letter, except those whose Unicode name contains it (`_PLAIN_LETTER`).
_SCRIPTS = {
    "Cyrillic": ("авгезиікмнопрстухьѕјѵһԁԛԝ", "abre3uikmhonpctyxbsjvhdqw"),
    "Greek": ("αβγδεηικμνορστυχω", "abydenikuvopotuxw"),
    "Armenian": ("հյոսվցքօ", "hjnuugpo"),
    "Cherokee": ("ᎠᎡᎢᎥᎩᎪᎫᎬᎳᎷᎻᏀᏃᏚᏙᏞᏟᏢᏦᏴ", "drtiyajewmhgzsvlcpkb"),
    "Latin": ("æœɑɡıɩʋɔə", "aoagiivoe"),
}
_LOOK_ALIKES: dict[str, str] = {
    letter: latin for letters in _SCRIPTS.values() for letter, latin in zip(*letters, strict=True)
}
_PLAIN_LETTER = re.compile(
    r"(?:LATIN (?:SMALL |CAPITAL )?LETTER (?:SMALL CAPITAL |TURNED |REVERSED |DOTLESS |SCRIPT |OPEN |LONG )?"
    r"|(?:CROSSED )?NEGATIVE (?:SQUARED|CIRCLED) LATIN CAPITAL LETTER |REGIONAL INDICATOR SYMBOL LETTER )"
    r"([A-Z])(?: WITH .+)?"
)
# Marks and invisible characters: joiners, direction marks, soft hyphens, tags, variation selectors, controls.
_INVISIBLE_CATEGORIES = {"Mn", "Me", "Cf", "Cc", "Cs"}
_INVISIBLE_LETTERS = set("\u115f\u1160\u3164\uffa0\u2800")  # the fillers of Hangul and Braille
_MAX_FOLDED = 4  # characters: one Arabic ligature expands to 18, which would multiply the length of a prompt

# Digits and symbols that stand for letters. The symbols also occur at the end of words, as punctuation.
_SYMBOLS = "@$!|€"
_LEET = str.maketrans("0345789@$!|€", "oeastbgasiie")
_DIGIT_ONE = "1!|"  # an i or an l
_WORD = re.compile(rf"[\w{re.escape(_SYMBOLS)}]+")
_BARE_WORD = re.compile(r"\w+")
LONG_RUN = 3  # hardly any word of any language has this many equal letters in a row
_RUN = re.compile(r"((.)\2*)")
_LONG_RUN = re.compile(rf"(.)\1{{{LONG_RUN - 1}}}")

# Separated single letters: "k i l l", "k.i.l.l".
_SPACED = re.compile(r"(?<!\w)\w(?:\W{1,4}\w(?!\w)){2,}")
_NOTES = set("abcdefg")
# Punctuation inside a word, with at least two letters on one side.
_INSIDE = re.compile(r"(?<=\w\w)[^\w\s]+(?=\w)|(?<=\w)[^\w\s]+(?=\w\w)")


def fold(text: str) -> str:
    """Return the text in plain lowercase, without marks and invisible characters, with one letter for all that look
    like it."""
    return "".join(map(_fold_character, text))


def readings(text: str) -> Iterator[list[str]]:
    """Yield the words of a text, then other possible divisions: at symbols, and with separated letters joined."""
    folded = fold(text)
    words = words_of(folded)
    yield words
    bare = _BARE_WORD.findall(folded)
    if bare != words:
        yield bare
    joined = _INSIDE.sub("", _SPACED.sub(_join_letters, folded))
    if joined != folded:
        yield words_of(joined)


def words_of(folded: str) -> list[str]:
    """Return the words of a folded text, including symbols that may stand for letters."""
    return _WORD.findall(folded)


def spellings(word: str) -> set[str]:
    """Return the possible spellings of a folded word: itself, and with letters in place of digits and symbols."""
    if word.isalpha() or not any(map(str.isalpha, word)):
        return {word}
    forms = {word, word.strip(_SYMBOLS)}
    return forms | {_from_leet(form, one) for form in forms for one in "il"}


def runs(word: str) -> tuple[str, tuple[int, ...]]:
    """Run-length encode a word: return its letters without repetitions, and the length of each run."""
    found = _RUN.findall(word)
    return "".join([letter for _, letter in found]), tuple([len(run) for run, _ in found])


def has_long_run(word: str) -> bool:
    """Return whether a letter is repeated at least `LONG_RUN` times."""
    return _LONG_RUN.search(word) is not None


@lru_cache(maxsize=16_384)
def _fold_character(character: str) -> str:
    """Fold one character. Marks are dropped, so their order does not matter and characters fold independently."""
    if character.isspace():
        return character
    if character == "_":
        return "-"  # a word character in regular expressions, but people use it to separate words
    folded = ""
    for part in unicodedata.normalize("NFKD", character):
        if unicodedata.category(part) not in _INVISIBLE_CATEGORIES and part not in _INVISIBLE_LETTERS:
            folded += "".join(map(_plain, part.casefold()))
    return folded[:_MAX_FOLDED]


def _plain(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter in _LOOK_ALIKES:
        return _LOOK_ALIKES[letter]
    named = _PLAIN_LETTER.fullmatch(unicodedata.name(letter, ""))
    return named[1].lower() if named else letter


def _from_leet(word: str, one: str) -> str:
    """Replace digits and symbols with letters; `one` replaces those that look like the digit one."""
    for symbol in _DIGIT_ONE:
        word = word.replace(symbol, one)
    return word.translate(_LEET)


def _join_letters(spaced: re.Match[str]) -> str:
    """Join separated letters; a gap wider than the narrowest, or a space among punctuation, separates words.

    Letters that are all note names stay separate: they are chords or a tuning.
    """
    letters: list[str] = re.findall(r"\w", spaced[0])
    gaps: list[str] = re.findall(r"\W+", spaced[0])
    if _NOTES.issuperset(letters):
        return spaced[0]
    widths = [len(gap) + gap.isspace() for gap in gaps]
    narrowest = min(widths)
    return letters[0] + "".join(
        (" " if width > narrowest else "") + letter for width, letter in zip(widths, letters[1:], strict=True)
    )
