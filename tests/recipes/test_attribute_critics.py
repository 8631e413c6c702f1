"""The critics of compact-musicgen's codes hear beats where they are, and pitches at their semitones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json
import math

import torch
from attribute_critics import LOWEST, PitchCritic, autocorrelation
from spectral_codes import SpectralCodes, log_spectra

rises = torch.zeros(1, 2, 250)
rises[0, 0, ::7] = 1
rises[0, 1, ::11] = 3
found = autocorrelation(rises, 100).view(2, 100)
says = {"lags": (found.argmax(dim=1) + 1).tolist(), "peaks": found.amax(dim=1).tolist()}

time = torch.arange(64 * 512) / 16_000
wav = torch.stack([torch.sin(2 * math.pi * 440 * 2 ** ((note - 69) / 12) * time) for note in (57, 69, 88)])
logs = log_spectra(wav)
codes = SpectralCodes(torch.zeros(logs.shape[-1]), torch.eye(logs.shape[-1]), torch.ones(()), torch.zeros(1, 1, 1))
critic = PitchCritic(codes).eval()
pitches = critic.pitches(logs.transpose(1, 2))
says["notes"] = (pitches[..., 10:-10].mean(dim=-1).argmax(dim=1) + LOWEST).tolist()
says["frames"] = [pitches.shape[-1], logs.shape[1]]
alone = critic(logs[:1].transpose(1, 2))
together = critic(logs.transpose(1, 2))
says["alike"] = max(float((together[name][:1] - alone[name]).abs().max()) for name in alone)
print(json.dumps(says))
"""


@pytest.fixture(scope="module")
def says() -> dict:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "recipes" / "compact"), str(root)])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_beat_is_heard_at_its_own_lag_whatever_its_loudness(says):
    assert says["lags"] == [7, 11]
    assert all(0.9 < peak <= 1 for peak in says["peaks"])


def test_a_tone_is_heard_at_its_semitone_in_each_half_of_a_frame(says):
    assert says["notes"] == [57, 69, 88]
    assert says["frames"][0] == 2 * says["frames"][1]


def test_a_clip_is_heard_alike_alone_and_in_a_batch(says):
    assert says["alike"] < 1e-4
