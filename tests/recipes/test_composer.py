"""The composer: a mode that is asked for must be told by the notes, whatever the key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json

import numpy as np
from composer import DRUM_CHANNEL, compose


def heard(first, count):
    notes, minor = [], []
    for index in range(first, first + count):
        piece = compose(np.random.default_rng(index), 8.0)
        pitches = [note.pitch % 12 for note in piece.notes if note.channel != DRUM_CHANNEL]
        notes.append(np.bincount(pitches, minlength=12) / len(pitches))
        minor.append(piece.attributes["minor"])
    return np.array(notes), np.array(minor)


notes, minor = heard(0, 600)
centres = [notes[minor == mode].mean(0) for mode in (False, True)]
notes, minor = heard(600, 300)
told = ((notes - centres[1]) ** 2).sum(1) < ((notes - centres[0]) ** 2).sum(1)
print(json.dumps({"told": float((told == minor).mean()), "minor": float(minor.mean())}))
"""


def test_the_mode_is_told_by_the_notes_without_knowing_the_key():
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root / "recipes" / "compact")}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    says = json.loads(done.stdout.splitlines()[-1])
    assert 0.35 < says["minor"] < 0.65
    assert says["told"] > 0.8
