"""A small rule-based composer: a random generator in, notes and the attributes they were made from out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from styles import BASSES, DRUM_GRIDS, INSTRUMENTS, STYLES, Style

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}
KEYS = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
# C, F and G alone, whose major and minor scales differ in their notes: with all twelve the word "minor" says nothing of
# which notes to expect, for every set of them is that of a major and of a minor key, and no generator learned it
TONICS = (0, 5, 7)
DRUM_CHANNEL = 9

# Onsets of a melody bar in sixteenths; a motif is one of these and is varied over the phrase.
RHYTHMS = {
    "sparse": ((0, 8), (0, 6), (0,), (4, 8), (0, 12)),
    "moderate": ((0, 4, 8, 12), (0, 6, 8, 12), (0, 4, 6, 10), (0, 3, 6, 10), (2, 4, 8, 11, 14), (0, 8, 10, 12)),
    "busy": (
        (0, 2, 4, 6, 8, 10, 12, 14),
        (0, 2, 3, 4, 6, 8, 10, 11, 12, 14),
        (0, 1, 2, 4, 6, 8, 9, 10, 12, 14),
        (0, 2, 4, 7, 8, 10, 12, 13, 14),
    ),
}


@dataclass(frozen=True)
class Note:
    """One note: start and end in seconds, MIDI pitch and velocity, MIDI channel."""

    start: float
    end: float
    pitch: int
    velocity: int
    channel: int


@dataclass
class Piece:
    """Notes, the program and volume (0-127) of each channel, and what was composed."""

    attributes: dict[str, Any]
    notes: list[Note] = field(default_factory=list)
    programs: dict[int, int] = field(default_factory=dict)
    volumes: dict[int, int] = field(default_factory=dict)


# bpm. Few: trained on any tempo from 50 to 175, the small flow predicted a clip as well with a wrong tempo word
TEMPI = (60, 80, 100, 120, 140, 160)


def tempo_class(tempo: float) -> str:
    """slow below 90 bpm, fast from 125 bpm, medium between."""
    return "slow" if tempo < 90 else "fast" if tempo >= 125 else "medium"


def compose(rng: np.random.Generator, duration: float) -> Piece:
    """Compose `duration` seconds of music in a random style, key, tempo and instrumentation."""
    genre = str(rng.choice(list(STYLES)))
    style = STYLES[genre]
    low, high = style.tempo
    # half of the pieces leave the genre's usual tempi, so that a tempo word is not only a genre word
    usual = [tempo for tempo in TEMPI if low - 10 <= tempo <= high + 10]
    tempo = int(rng.choice(TEMPI if rng.random() < 0.5 else usual))
    minor = rng.random() < style.minor
    mode = str(rng.choice(["minor", "minor", "dorian"])) if minor else str(rng.choice(["major"] * 3 + ["mixolydian"]))
    lead = str(rng.choice(style.leads)) if rng.random() < 0.8 else str(rng.choice(list(INSTRUMENTS)))
    others = [name for name in style.accompaniments if name != lead]
    accompaniment = str(rng.choice(others)) if rng.random() < 0.88 else None
    drums = bool(rng.random() < 0.1 + 0.8 * style.drums)
    has_bass = bool(rng.random() < (0.85 if drums else 0.55))
    bass = str(rng.choice(style.basses)) if has_bass else None
    density = str(rng.choice(["sparse", "moderate", "moderate", "busy"]))
    if genre == "ambient":
        density = str(rng.choice(["sparse", "sparse", "moderate"]))
    dynamics = str(rng.choice(["soft", "medium", "medium", "loud"]))
    tonic = int(rng.choice(TONICS))
    attributes: dict[str, Any] = {
        "genre": genre, "tempo": tempo, "tempo_class": tempo_class(tempo), "key": KEYS[tonic], "mode": mode,
        "minor": minor, "lead": lead, "lead_family": INSTRUMENTS[lead].family, "accompaniment": accompaniment,
        "bass": bass, "drums": drums, "drum_style": str(rng.choice(style.grids)) if drums else None,
        "density": density, "dynamics": dynamics,
    }  # fmt: skip
    return _Arranger(rng, style, attributes, tonic, duration).arrange()


class _Arranger:
    """Fills one piece; holds what every voice shares (grid, harmony, loudness)."""

    def __init__(self, rng: np.random.Generator, style: Style, attributes: dict[str, Any], tonic: int, duration: float):
        self.rng, self.style, self.attributes, self.duration = rng, style, attributes, duration
        self.step = 60.0 / attributes["tempo"] / 4  # seconds per sixteenth
        self.bars = int(np.ceil(duration / (16 * self.step))) + 1
        self.scale = SCALES[attributes["mode"]]
        self.tonic = tonic
        self.level = {"soft": 58, "medium": 80, "loud": 104}[attributes["dynamics"]]
        self.seventh = rng.random() < style.sevenths
        progression = style.progressions[int(rng.integers(len(style.progressions)))]
        self.harmony = [progression[bar % len(progression)] for bar in range(self.bars)]
        self.piece = Piece(attributes)

    def arrange(self) -> Piece:
        lead = INSTRUMENTS[self.attributes["lead"]]
        self._voice(0, lead.program, 108)
        self._melody(0, lead.low, lead.high, lead.sustained)
        if self.attributes["accompaniment"]:
            instrument = INSTRUMENTS[self.attributes["accompaniment"]]
            self._voice(1, instrument.program, 70)
            figure = str(self.rng.choice(self.style.figures))
            self._chords(1, figure, center=58 if instrument.low < 60 else 66)
        if self.attributes["bass"]:
            self._voice(2, BASSES[self.attributes["bass"]], 96)
            self._bass(2, str(self.rng.choice(self.style.bass_figures)))
        if self.attributes["drums"]:
            self._voice(DRUM_CHANNEL, 0, 100)
            self._drums()
        return self.piece

    def _voice(self, channel: int, program: int, volume: int) -> None:
        self.piece.programs[channel] = program
        self.piece.volumes[channel] = int(np.clip(volume + self.rng.integers(-8, 9), 1, 127))

    def _time(self, bar: int, step: float) -> float:
        """Seconds of a grid position; off-beat eighths are delayed by the style's swing."""
        swing = self.style.swing / 3 * 2 if int(step) % 4 == 2 else 0.0
        return (bar * 16 + step + swing) * self.step

    def _add(self, channel: int, bar: int, step: float, length: float, pitch: int, loud: float) -> None:
        start = self._time(bar, step) + abs(float(self.rng.normal(0, 0.004)))
        if start < self.duration and 0 <= pitch < 128:
            velocity = int(np.clip(self.level * loud + self.rng.normal(0, 4), 12, 127))
            self.piece.notes.append(Note(start, start + length * self.step * 0.97, pitch, velocity, channel))

    def _degree(self, degree: int) -> int:
        """Semitones above the tonic of a scale degree (0 = tonic, may exceed one octave or be negative)."""
        octave, index = divmod(degree, 7)
        return 12 * octave + self.scale[index]

    def _chord(self, degree: int, center: int) -> list[int]:
        """Close-position chord on a scale degree, each tone moved to the octave nearest to `center`."""
        tones = [degree, degree + 2, degree + 4] + ([degree + 6] if self.seventh else [])
        pitches = [self.tonic + self._degree(tone) for tone in tones]
        return sorted({pitch + 12 * round((center - pitch) / 12) for pitch in pitches})

    def _melody(self, channel: int, low: int, high: int, sustained: bool) -> None:
        bank = RHYTHMS[self.attributes["density"]]
        motif, answer = (bank[int(self.rng.integers(len(bank)))] for _ in range(2))
        contour = self.rng.integers(-2, 3, size=16)
        center = (low + high) // 2
        ladder = [pitch for pitch in range(low, high + 1) if (pitch - self.tonic) % 12 in self.scale]
        position = int(np.argmin([abs(pitch - center) for pitch in ladder]))
        rest_bar = int(self.rng.integers(3, 8)) if self.attributes["density"] == "sparse" else -1
        for bar in range(self.bars):
            if bar == rest_bar:
                continue
            rhythm = answer if bar % 4 == 3 else motif
            for index, onset in enumerate(rhythm):
                end = rhythm[index + 1] if index + 1 < len(rhythm) else 16
                move = int(contour[index]) if self.rng.random() < 0.75 else int(self.rng.integers(-2, 3))
                position = int(np.clip(position + move, 0, len(ladder) - 1))
                if abs(ladder[position] - center) > (high - low) * 0.4:
                    position += -1 if ladder[position] > center else 1
                pitch = ladder[position]
                if onset % 8 == 0:  # strong beats take the nearest chord tone
                    chord = {(self.tonic + self._degree(self.harmony[bar] + tone)) % 12 for tone in (0, 2, 4)}
                    nearest = [p for p in ladder if p % 12 in chord]
                    pitch = min(nearest, key=lambda p: abs(p - pitch))
                    position = ladder.index(pitch)
                length = (end - onset) if sustained else min(end - onset, 6)
                self._add(channel, bar, onset, length, pitch, 1.12 if onset % 8 == 0 else 1.0)

    def _chords(self, channel: int, figure: str, center: int) -> None:
        for bar, degree in enumerate(self.harmony):
            chord = self._chord(degree, center)
            if figure == "pad":
                hits = [(0, 16, chord, 0.75)]
            elif figure == "block":
                hits = [(0, 8, chord, 0.8), (8, 8, chord, 0.72)]
            elif figure == "strum":
                hits = [(s, 2, chord, 0.85 if s in (0, 8) else 0.65) for s in (0, 4, 6, 8, 12, 14)]
            elif figure == "eighths":
                hits = [(s, 2, chord, 0.8 if s % 8 == 0 else 0.66) for s in range(0, 16, 2)]
            elif figure == "offbeat":
                hits = [(s, 2, chord, 0.75) for s in (2, 6, 10, 14)]
            elif figure == "comp":
                steps = ((0, 6), (2, 10), (6, 12), (4, 10))[int(self.rng.integers(4))]
                hits = [(s, 3, chord, 0.72) for s in steps]
            elif figure == "bossa":
                hits = [(s, 3, chord, 0.75) for s in (0, 3, 6, 10, 13)]
            else:
                order = (0, 2, 1, 2) if figure == "alberti" else (0, 1, 2, 3)
                ring = chord + [chord[0] + 12]
                hits = [(s, 3, [ring[order[(s // 2) % 4] % len(ring)]], 0.75) for s in range(0, 16, 2)]
            for onset, length, pitches, loud in hits:
                for spread, pitch in enumerate(pitches):
                    self._add(channel, bar, onset + (0.12 * spread if figure == "strum" else 0), length, pitch, loud)

    def _bass(self, channel: int, figure: str) -> None:
        for bar, degree in enumerate(self.harmony):
            root = self.tonic + self._degree(degree)
            root += 12 * round((40 - root) / 12)
            fifth = self.tonic + self._degree(degree + 4)
            fifth += 12 * round((root + 4 - fifth) / 12)
            upcoming = self.tonic + self._degree(self.harmony[(bar + 1) % self.bars])
            upcoming += 12 * round((root - upcoming) / 12)
            if figure == "walking":
                line = [root, self.tonic + self._degree(degree + 2), fifth, upcoming + int(self.rng.choice([-1, 1]))]
                line[1] += 12 * round((root + 3 - line[1]) / 12)
                hits = [(4 * i, 4, pitch) for i, pitch in enumerate(line)]
            elif figure == "eighths":
                hits = [(s, 2, root) for s in range(0, 16, 2)]
            elif figure == "octaves":
                hits = [(s, 2, root + (12 if s % 4 == 2 else 0)) for s in range(0, 16, 2)]
            elif figure == "root-fifth":
                hits = [(0, 6, root), (8, 6, fifth)]
            elif figure == "syncopated":
                hits = [(0, 3, root), (6, 2, root), (10, 3, fifth), (14, 2, root)]
            else:
                hits = [(0, 14, root)]
            for onset, length, pitch in hits:
                self._add(channel, bar, onset, length, pitch, 1.0)

    def _drums(self) -> None:
        grids = DRUM_GRIDS[self.attributes["drum_style"]]
        grid = grids[int(self.rng.integers(len(grids)))]
        for bar in range(self.bars):
            fill = bar % 4 == 3 and self.rng.random() < 0.6
            for voice, steps in grid.items():
                for onset, accent in enumerate(steps):
                    if accent != "." and not (fill and onset >= 12):
                        self._add(DRUM_CHANNEL, bar, onset, 1, voice, int(accent) / 8)
            if fill:
                for onset in range(12, 16):
                    self._add(DRUM_CHANNEL, bar, onset, 1, int(self.rng.choice([38, 45, 47, 50])), 0.9)
