"""Undoes the ways in which a word is written so that a list does not find it. Knows no list.

Words of a list and words of a prompt go through the same `fold`, as the skeletons of Unicode's UTS #39 do, so that what
looks alike is alike and every script still has words. All of it takes time in proportion to the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

# Letters of other scripts that pass for a Latin one; what Unicode's own names tell (`_PLAIN_LETTER`) is not repeated.
_SCRIPTS = {
    "Cyrillic": ("авгезиікмнопрстухьѕјѵһԁԛԝ", "abre3uikmhonpctyxbsjvhdqw"),
    "Greek": ("αβγδεηικμνορστυχω", "abydenikuvopotuxw"),
    "Armenian": ("հյոսվցքօ", "hjnuugpo"),
    "Cherokee": ("ᎠᎡᎢᎥᎩᎪᎫᎬᎳᎷᎻᏀᏃᏚᏙᏞᏟᏢᏦᏴ", "drtiyajewmhgzsvlcpkb"),
    "Latin": ("æœɑɡıɩʋɔə", "aoagiivoe"),
}
_LOOK_ALIKES: dict[str, str] = {
    theirs: ours for letters in _SCRIPTS.values() for theirs, ours in zip(*letters, strict=True)
}
_PLAIN_LETTER = re.compile(
    r"(?:LATIN (?:SMALL |CAPITAL )?LETTER (?:SMALL CAPITAL |TURNED |REVERSED |DOTLESS |SCRIPT |OPEN |LONG )?"
    r"|(?:CROSSED )?NEGATIVE (?:SQUARED|CIRCLED) LATIN CAPITAL LETTER |REGIONAL INDICATOR SYMBOL LETTER )"
    r"([A-Z])(?: WITH .+)?"
)
# Marks, and what is not seen: joiners, direction marks, soft hyphens, tags, variation selectors, controls.
_UNSEEN_CATEGORIES = {"Mn", "Me", "Cf", "Cc", "Cs"}
_UNSEEN_LETTERS = set("\u115f\u1160\u3164\uffa0\u2800")  # the fillers of Hangul and Braille
_MAX_FOLDED = 4  # one ligature of Arabic stands for 18 letters: two thousand of them are no prompt

# What stands for a letter between letters. The symbols among them end a word as often as they are in it.
_SYMBOLS = "@$!|€"
_LEET = str.maketrans("0345789@$!|€", "oeastbgasiie")
_DIGIT_ONE = "1!|"  # an i or an l
_WORD = re.compile(rf"[\w{re.escape(_SYMBOLS)}]+")
_BARE_WORD = re.compile(r"\w+")
LONG_RUN = 3  # so many of a letter in a row are in hardly a word of any language
_RUN = re.compile(r"((.)\2*)")
_LONG_RUN = re.compile(rf"(.)\1{{{LONG_RUN - 1}}}")

# Single letters, each apart from the next: "k i l l", "k.i.l.l".
_SPACED = re.compile(r"(?<!\w)\w(?:\W{1,4}\w(?!\w)){2,}")
_NOTES = set("abcdefg")
# Marks inside a word, with two letters of it on one side at least.
_INSIDE = re.compile(r"(?<=\w\w)[^\w\s]+(?=\w)|(?<=\w)[^\w\s]+(?=\w\w)")


def fold(text: str) -> str:
    """Return the text in small plain letters: no marks, nothing unseen, one letter for all that look like it."""
    return "".join(map(_fold_character, text))


def readings(text: str) -> Iterator[list[str]]:
    """Yield the words of a text; then, where it differs, with symbols between words, and with what was pulled apart joined."""
    folded = fold(text)
    words = words_of(folded)
    yield words
    bare = _BARE_WORD.findall(folded)
    if bare != words:
        yield bare
    joined = _INSIDE.sub("", _SPACED.sub(_joined, folded))
    if joined != folded:
        yield words_of(joined)


def words_of(folded: str) -> list[str]:
    """Return the words of a folded text, symbols that may stand for letters still in them."""
    return _WORD.findall(folded)


def spellings(word: str) -> set[str]:
    """Return what a folded word may be meant to say: itself, and with letters for digits and symbols."""
    if word.isalpha() or not any(map(str.isalpha, word)):
        return {word}
    forms = {word, word.strip(_SYMBOLS)}
    return forms | {_letters(form, one) for form in forms for one in "il"}


def runs(word: str) -> tuple[str, tuple[int, ...]]:
    """Return the letters of a word without repetitions, and how often each stands there."""
    found = _RUN.findall(word)
    return "".join([letter for _, letter in found]), tuple([len(run) for run, _ in found])


def has_long_run(word: str) -> bool:
    """Say whether a letter is repeated as no word has it."""
    return _LONG_RUN.search(word) is not None


@lru_cache(maxsize=16_384)
def _fold_character(character: str) -> str:
    """Fold one character. Marks are dropped, so nothing hangs on their order and each can be folded by itself."""
    if character.isspace():
        return character
    if character == "_":
        return "-"  # a word character to regular expressions, and a way to pull words apart to people
    folded = ""
    for part in unicodedata.normalize("NFKD", character):
        if unicodedata.category(part) not in _UNSEEN_CATEGORIES and part not in _UNSEEN_LETTERS:
            folded += "".join(map(_plain, part.casefold()))
    return folded[:_MAX_FOLDED]


def _plain(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter in _LOOK_ALIKES:
        return _LOOK_ALIKES[letter]
    named = _PLAIN_LETTER.fullmatch(unicodedata.name(letter, ""))
    return named[1].lower() if named else letter


def _letters(word: str, one: str) -> str:
    """Read a word as leet."""
    for symbol in _DIGIT_ONE:
        word = word.replace(symbol, one)
    return word.translate(_LEET)


def _joined(spaced: re.Match[str]) -> str:
    """Put single letters together; a gap wider than the narrowest one, or a space among marks, is one between words.

    Letters that are all names of notes stay apart: they are chords or a tuning.
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
