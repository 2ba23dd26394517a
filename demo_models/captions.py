"""Captions: words for the facts of a piece, and many ways to put them together."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from audiocraft_api.model.demo_weights import NEGATIONS
from demo_models.composer import Facts
from demo_models.score import TEMPOS

# What can be said about a piece, and in which phrases.
PHRASES: dict[str, tuple[str, ...]] = {
    "lofi": ("lo-fi", "lofi", "lofi hip hop", "lo-fi hip-hop", "chill hop", "chillhop", "lo-fi beats", "hip hop",
             "boom bap", "study beats", "r&b", "trip hop", "jazz", "jazzy", "neo soul", "funk", "soul"),
    "techno": ("techno", "house", "deep house", "edm", "electronic dance music", "dance", "trance", "club", "electro",
               "electronic", "disco", "synthwave", "rave"),
    "pop": ("pop", "rock", "indie", "indie pop", "pop rock", "indie rock", "80s", "90s", "70s", "radio hit", "punk",
            "alternative", "reggae", "latin", "country rock"),
    "ballad": ("ballad", "romantic", "love song", "romance", "slow dance", "lullaby", "blues", "tender", "intimate",
               "emotional", "nocturne", "classical"),
    "waltz": ("waltz", "waltz in three", "waltzing", "3/4", "three four", "viennese waltz", "musette", "carousel"),
    "folk": ("folk", "country", "acoustic", "bluegrass", "celtic", "singer songwriter", "americana", "campfire",
             "irish", "fingerstyle", "unplugged"),
    "ambient": ("ambient", "atmospheric", "cinematic", "meditation", "drone", "soundscape", "new age", "ethereal",
                "space", "film score", "sleep", "yoga", "orchestral", "epic"),
    "major": ("happy", "bright", "cheerful", "uplifting", "joyful", "major", "major key", "sunny", "optimistic",
              "playful", "feel-good", "positive", "hopeful", "summer", "fun", "merry"),
    "minor": ("sad", "melancholic", "melancholy", "dark", "minor", "minor key", "rainy", "moody", "gloomy", "somber",
              "nostalgic", "mysterious", "tense", "night", "lonely", "dramatic", "bittersweet", "haunting"),
    "piano": ("piano", "grand piano", "piano melody", "pianist"),
    "bells": ("bells", "bell", "music box", "glockenspiel", "celesta", "chimes", "vibraphone"),
    "marimba": ("marimba", "xylophone", "kalimba", "mallets", "steel drum", "pizzicato"),
    "flute": ("flute", "flutes", "whistle", "tin whistle", "recorder", "pan flute", "ocarina", "woodwinds", "clarinet"),
    "violin": ("violin", "violins", "strings", "fiddle", "cello", "string section", "viola"),
    "synth": ("synth lead", "synth melody", "synthesizer", "synth", "lead synth", "arpeggio", "saw lead", "chiptune"),
    "keys": ("electric piano", "rhodes", "wurlitzer", "keys", "keyboard", "ep chords"),
    "guitar": ("guitar", "acoustic guitar", "guitars", "strummed guitar", "ukulele", "banjo", "guitar chords"),
    "pad": ("pad", "pads", "synth pad", "warm pads", "synth pads", "choir", "string pad"),
    "organ": ("organ", "church organ", "hammond organ", "hammond", "accordion", "harmonium"),
    "bass": ("bass", "bassline", "bass line", "low end"),
    "finger": ("bass guitar", "electric bass", "upright bass", "double bass", "contrabass"),
    "synth bass": ("synth bass", "sub bass", "bass synth"),
    "no bass": ("no bass", "without bass", "no bassline", "bassless"),
    "drums": ("drums", "drum", "percussion", "beat", "drum beat", "drum kit", "drummer", "drum machine", "hi-hats",
              "brushed drums", "soft drums", "groove"),
    "no drums": ("no drums", "without drums", "drumless", "no percussion", "no beat", "without percussion",
                 "without any drums", "beatless", "no drum kit"),
    "no rhythm section": ("solo", "no drums or bass", "no bass or drums", "alone", "without drums and bass",
                          "unaccompanied", "no drums, no bass"),
    "slow": ("slow", "slowly", "relaxed", "laid-back", "laid back", "calm", "downtempo", "adagio", "sleepy", "gentle",
             "peaceful", "soothing", "chill", "slow tempo", "relaxing", "quiet", "lento"),
    "medium": ("mid-tempo", "midtempo", "medium tempo", "moderate", "moderate tempo", "walking", "andante", "steady"),
    "fast": ("fast", "quick", "driving", "energetic", "upbeat", "uptempo", "up-tempo", "lively", "fast tempo",
             "high energy", "allegro", "bouncy", "fast-paced", "exciting", "powerful", "vivace"),
}  # fmt: skip
# Words that say nothing. They are tokens of their own, but have the same meaning as an unknown word: none.
FILLERS = (
    "a", "an", "the", "of", "in", "with", "and", "for", "to", "at", "on", "is", "by", "from", "this", "that", "very",
    "really", "some", "song", "track", "tune", "music", "piece", "melody", "instrumental", "featuring", "style",
    "loop", "theme", "background", "sound", "vibe", "feel", "mood", "tempo", "please", "make", "me", "something",
    "like", "video", "game", "intro", "warm", "soft", "nice", "beautiful", "simple", "short", "long", "good", "great",
    "cool", ",", ".", "!", "-",
)  # fmt: skip
LOWEST_BPM, HIGHEST_BPM = 50, 190

_TEMPO_WORDS = {10: ("slow",), 8: ("medium", "slow"), 7: ("medium", "fast"), 6: ("fast",)}
_TEMPLATES = (
    "a {mode} {genre} track with {rest}", "{genre} with {rest}", "{mode} {genre}, {rest}",
    "{tempo} {mode} {genre} song", "{rest} playing a {mode} {genre} tune",
    "a {tempo} {genre} piece featuring {rest}", "{genre}. {rest}. {mode}", "{mode} {rest}",
    "{tempo} {genre}", "{genre} {tempo} {mode} {rest}", "{mode} music for a video, {rest}, {tempo}",
)  # fmt: skip


def bpm(tempo: int) -> float:
    """Return beats per minute for a tempo in frames in a sixteenth note."""
    return 750 / tempo


def nearest_tempo(beats_per_minute: float) -> int:
    """Return the tempo of the score that is nearest to a number of beats per minute."""
    return min(TEMPOS, key=lambda tempo: abs(np.log(bpm(tempo) / beats_per_minute)))


def words_of(text: str) -> list[str]:
    """Split a text as the tokenizer does: lower-case words, and punctuation after or before a word as its own."""
    return re.findall(r"[\w&][\w&/'-]*|[^\w\s]", text.lower())


def statements(facts: Facts) -> dict[str, tuple[str, ...]]:
    """Return, by topic, the keys of `PHRASES` that are true of a piece."""
    bass = {None: ("no bass",), "finger": ("bass", "finger"), "synth": ("bass", "synth bass")}[facts.bass]
    return {
        "genre": (facts.genre,),
        "mode": (facts.mode,),
        "lead": (facts.lead,),
        "chords": (facts.chords,),
        "bass": bass,
        "drums": ("drums" if facts.drums else "no drums",),
        "tempo": _TEMPO_WORDS[facts.tempo],
    }


_SAID = {"genre": 0.7, "mode": 0.5, "lead": 0.6, "chords": 0.35, "bass": 0.35, "drums": 0.45, "tempo": 0.35}


def draw_caption(rng: np.random.Generator, facts: Facts) -> str:
    """Draw a text that says some of the facts, in one of many forms."""

    def pick(items: Sequence[str]) -> str:
        return items[rng.integers(len(items))]

    said = {
        topic: pick(PHRASES[pick(keys)]) for topic, keys in statements(facts).items() if rng.random() < _SAID[topic]
    }
    if not facts.drums and facts.bass is None and rng.random() < 0.4:
        said["drums"] = pick(PHRASES["no rhythm section"])
        said.pop("bass", None)
        if said["drums"] == "solo" and "lead" in said:
            said["lead"] = f"{said.pop('drums')} {said['lead']}"
    if rng.random() < 0.3:
        number = round(bpm(facts.tempo) * rng.uniform(0.95, 1.05))
        said["tempo"] = pick((f"{number} bpm", f"at {number} bpm", f"{number}bpm", f"{number} beats per minute"))
    text = _as_sentence(rng, said) if rng.random() < 0.4 else _as_list(rng, list(said.values()))
    return _with_noise(rng, text)


def _as_sentence(rng: np.random.Generator, said: dict[str, str]) -> str:
    said = dict(said)
    fields = {name: said.pop(name, "") for name in ("mode", "genre", "tempo")}
    template = _TEMPLATES[rng.integers(len(_TEMPLATES))]
    rest = list(said.values()) + [v for name, v in fields.items() if "{" + name + "}" not in template and v]
    rng.shuffle(rest)
    joined = ", ".join(rest[:-1]) + (" and " if len(rest) > 1 else "") + "".join(rest[-1:])
    return re.sub(r"\s+", " ", template.format(**fields, rest=joined)).strip()


def _as_list(rng: np.random.Generator, phrases: list[str]) -> str:
    rng.shuffle(phrases)
    return (", ", " ", " with ", " and ")[rng.choice(4, p=(0.6, 0.2, 0.1, 0.1))].join(phrases)


def _with_noise(rng: np.random.Generator, text: str) -> str:
    """Insert words that say nothing, known and unknown ones."""
    words = text.split(" ")
    for _ in range(rng.integers(3) if rng.random() < 0.5 else 0):
        noise = FILLERS[rng.integers(len(FILLERS))] if rng.random() < 0.5 else "zyx" * int(rng.integers(1, 4))
        at = int(rng.integers(len(words) + 1))
        if at == 0 or words[at - 1] not in NEGATIONS:
            words.insert(at, noise)
    return " ".join(words).strip()
