"""Captions in many phrasings for what was composed: the same attributes never read the same way twice."""

from __future__ import annotations

from typing import Any

import numpy as np

INSTRUMENT_WORDS: dict[str, tuple[str, ...]] = {
    "piano": ("piano", "grand piano", "acoustic piano"),
    "electric piano": ("electric piano", "rhodes", "rhodes piano", "fender rhodes"),
    "harpsichord": ("harpsichord", "baroque harpsichord"),
    "music box": ("music box", "toy music box"),
    "vibraphone": ("vibraphone", "vibes", "mellow vibraphone"),
    "marimba": ("marimba", "wooden marimba", "mallets"),
    "organ": ("organ", "hammond organ", "rock organ", "church organ"),
    "accordion": ("accordion", "squeezebox"),
    "acoustic guitar": ("acoustic guitar", "nylon guitar", "classical guitar", "guitar", "fingerpicked guitar"),
    "clean electric guitar": ("clean electric guitar", "electric guitar", "clean guitar", "jazz guitar"),
    "distorted guitar": ("distorted guitar", "distorted electric guitar", "overdriven guitar", "heavy guitar"),
    "violin": ("violin", "fiddle"),
    "cello": ("cello", "violoncello"),
    "harp": ("harp", "orchestral harp"),
    "string ensemble": ("strings", "string ensemble", "string section", "orchestral strings"),
    "choir": ("choir", "choir voices", "vocal choir", "voices singing aah"),
    "trumpet": ("trumpet", "trumpets"),
    "brass section": ("brass section", "brass", "horn section"),
    "saxophone": ("saxophone", "sax", "tenor sax", "tenor saxophone"),
    "clarinet": ("clarinet", "woodwind"),
    "flute": ("flute", "concert flute"),
    "pan flute": ("pan flute", "panpipes", "pan pipes"),
    "square synth lead": ("square synth lead", "square wave synth", "chiptune lead", "8-bit synth", "video game synth"),
    "saw synth lead": ("saw synth lead", "sawtooth synth", "synth lead", "lead synthesizer", "supersaw synth"),
    "warm synth pad": ("warm synth pad", "synth pad", "pad", "ambient pad", "synthesizer pad"),
    "steel drums": ("steel drums", "steel pan"),
}
BASS_WORDS: dict[str, tuple[str, ...]] = {
    "upright bass": ("upright bass", "double bass", "acoustic bass"),
    "electric bass": ("electric bass", "bass guitar", "bass line"),
    "slap bass": ("slap bass", "funky bass"),
    "synth bass": ("synth bass", "deep bass", "sub bass", "bassline"),
    "cello bass": ("low strings", "bowed bass", "cellos"),
}
GENRE_WORDS: dict[str, tuple[str, ...]] = {
    "pop": ("pop", "pop song", "catchy pop", "pop music"),
    "rock": ("rock", "rock song", "rock music", "alternative rock"),
    "jazz": ("jazz", "swing jazz", "jazz combo", "swing", "jazzy"),
    "classical": ("classical", "classical music", "chamber music"),
    "ambient": ("ambient", "ambient soundscape", "atmospheric", "new age", "meditative ambient"),
    "electronic": ("electronic", "techno", "house", "edm", "dance", "trance", "electronic dance"),
    "hip hop": ("hip hop", "lofi hip hop", "lo-fi", "hip-hop", "rap beat", "lofi"),
    "folk": ("folk", "folk song", "acoustic folk", "country folk"),
    "latin": ("latin", "bossa nova", "latin music"),
    "funk": ("funk", "funky groove", "funky", "funk groove"),
    "orchestral": ("orchestral", "cinematic", "epic orchestral", "film score", "soundtrack", "symphonic"),
    "blues": ("blues", "bluesy", "blues jam"),
}
TEMPO_WORDS: dict[str, tuple[str, ...]] = {
    "slow": ("slow", "slow tempo", "slow-paced", "relaxed tempo", "unhurried", "adagio", "andante"),
    "medium": ("medium tempo", "mid-tempo", "moderate tempo", "moderately paced", "moderato"),
    "fast": ("fast", "fast tempo", "up-tempo", "fast-paced", "quick", "allegro", "presto"),
}
MOOD_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    # (minor or major, how energetic)
    ("minor", "low"): ("sad", "melancholic", "dark", "mysterious", "haunting", "introspective", "somber"),
    ("minor", "high"): ("tense", "dramatic", "dark", "intense", "driving", "aggressive", "urgent"),
    ("major", "low"): ("calm", "peaceful", "gentle", "warm", "relaxing", "dreamy", "soothing", "tender"),
    ("major", "high"): ("happy", "upbeat", "cheerful", "joyful", "uplifting", "bright", "energetic", "lively"),
}
NO_DRUMS = ("no drums", "without drums", "no percussion", "drumless", "without percussion", "beatless")
DRUM_WORDS: dict[str, tuple[str, ...]] = {
    "four on the floor": ("four on the floor beat", "drum machine", "electronic drums", "dance beat", "club drums"),
    "rock beat": ("rock drums", "drum kit", "driving drums", "steady drum beat"),
    "hip hop beat": ("hip hop drums", "boom bap drums", "laid-back beat", "drum loop"),
    "swing ride": ("swinging drums", "brushed drums", "ride cymbal", "jazz drums"),
    "bossa": ("bossa nova drums", "latin percussion", "congas", "shaker"),
    "funk beat": ("funky drums", "tight drum groove", "syncopated drums"),
    "train beat": ("snare drum shuffle", "light drums", "train beat drums"),
    "cinematic drums": ("timpani", "epic drums", "cinematic percussion", "big drums"),
}
DENSITY_WORDS = {
    "sparse": ("sparse", "minimal", "minimalist", "simple", "few notes", "spacious"),
    "moderate": ("melodic", "flowing"),
    "busy": ("busy", "many notes", "virtuosic", "intricate", "complex", "rapid notes"),
}
DYNAMICS_WORDS = {
    "soft": ("soft", "quiet", "delicate", "gentle dynamics"),
    "medium": ("balanced",),
    "loud": ("loud", "powerful", "strong", "forceful"),
}
PIECE_WORDS = ("piece", "track", "song", "tune", "composition", "instrumental", "music", "clip")


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    # the first word is the plain one; give it a third of the draws
    return words[0] if rng.random() < 0.34 else words[int(rng.integers(len(words)))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou8" else "a"


def write_caption(
    attributes: dict[str, Any], rng: np.random.Generator, tempo_share: float = 0.6, mode_share: float = 0.25
) -> str:
    """One caption. Every attribute it names is true of the piece; it need not name all of them, and names the tempo
    and the mode with about the probabilities `tempo_share` and `mode_share` (except in the shortest form).
    """
    lead = _pick(rng, INSTRUMENT_WORDS[attributes["lead"]])
    genre = _pick(rng, GENRE_WORDS[attributes["genre"]])
    mode = "minor" if attributes["minor"] else "major"
    energetic = attributes["drums"] or attributes["tempo_class"] == "fast" or attributes["density"] == "busy"
    mood = _pick(rng, MOOD_WORDS[mode, "high" if energetic else "low"])
    tempo = _pick(rng, TEMPO_WORDS[attributes["tempo_class"]])
    if rng.random() < 0.25:
        shown = attributes["tempo"] if rng.random() < 0.5 else 5 * round(attributes["tempo"] / 5)
        tempo = f"{shown} bpm" if rng.random() < 0.6 else f"{tempo}, {shown} bpm"
    key = f"{attributes['key']} {mode}" if rng.random() < 0.5 else f"{mode} key"
    drums = _pick(rng, DRUM_WORDS[attributes["drum_style"]]) if attributes["drums"] else _pick(rng, NO_DRUMS)
    if attributes["drums"] and rng.random() < 0.5:
        drums = str(rng.choice(["drums", "with drums", "drums", "drum beat", "percussion"])).removeprefix("with ")
    accompaniment = attributes["accompaniment"]
    backing = _pick(rng, INSTRUMENT_WORDS[accompaniment]) if accompaniment else None
    bass = _pick(rng, BASS_WORDS[attributes["bass"]]) if attributes["bass"] else None
    texture = _pick(rng, DENSITY_WORDS[attributes["density"]])
    dynamics = _pick(rng, DYNAMICS_WORDS[attributes["dynamics"]])

    with_parts = [part for part, chance in ((backing, 0.75), (bass, 0.6)) if part and rng.random() < chance]
    if attributes["drums"] and rng.random() < 0.75:
        with_parts.append(drums)
    drumless = "" if attributes["drums"] or rng.random() < 0.35 else drums
    noun = str(rng.choice(PIECE_WORDS))
    chances = ((tempo, tempo_share), (key, mode_share), (texture, 0.3), (dynamics, 0.15))
    extras = [text for text, chance in chances if rng.random() < chance]

    style = int(rng.integers(5))
    if style == 0:  # tags
        tags = [lead, genre, *with_parts, *extras]
        tags += [mood] if rng.random() < 0.6 else []
        tags += [drumless] if drumless else []
        rng.shuffle(tags)
        text = ", ".join(tags)
    elif style == 1:  # "a sad slow jazz piece with saxophone, piano and drums"
        words = [mood] if rng.random() < 0.7 else []
        plain = TEMPO_WORDS[attributes["tempo_class"]][0]
        words += [plain] if rng.random() < tempo_share - 0.1 else []
        words += [genre] if rng.random() < 0.85 else []
        head = " ".join(words + [noun])
        text = f"{_article(head)} {head} {rng.choice(['with', 'featuring', 'led by', 'played on'])} {lead}"
        text += f", {_join(with_parts, rng)}" if with_parts else ""
        text += f", {drumless}" if drumless else ""
        text += f", in {key}" if rng.random() < mode_share else ""
    elif style == 2:  # lead first
        text = f"{lead} {rng.choice(['melody', 'lead', 'solo', 'playing'])}"
        text += f" over {_join(with_parts, rng)}" if with_parts else ""
        text += f", {genre}" if rng.random() < 0.7 else ""
        text += "".join(f", {extra}" for extra in extras)
        text += f", {drumless}" if drumless else ""
    elif style == 3:  # sentences
        text = f"{_article(mood)} {mood} {genre} {noun}. {_article(lead)} {lead} plays the melody"
        text += f" accompanied by {_join(with_parts, rng)}." if with_parts else "."
        text += f" {tempo}." if rng.random() < tempo_share else ""
        text += f" there are {drumless}." if drumless.startswith("no ") else f" {drumless}." if drumless else ""
        text += f" in {key}." if rng.random() < mode_share else ""
    else:  # short
        parts = [p for p, chance in ((mood, 0.4), (genre, 0.5), (lead, 0.9)) if rng.random() < chance] or [lead]
        text = " ".join(parts)
        text += f" {rng.choice(['with', 'and'])} {with_parts[-1]}" if with_parts else ""
        text += f" {drumless}" if drumless else ""
    return text if rng.random() < 0.5 else text[0].upper() + text[1:]


def _join(parts: list[str], rng: np.random.Generator) -> str:
    parts = list(parts)
    rng.shuffle(parts)
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
