"""The codec of compact-musicgen before training: codes without phase, and a decoder that already holds a tone."""

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
import sys
from pathlib import Path

import numpy as np
import torch
from encodec_parts import SAMPLE_RATE, build_codec
from oscillators import start_decoder
from spectral_codes import fit_spectral_codes, shipped_spectral_codes
from train_encodec import assemble
from training_tools import ComposedClips

torch.set_num_threads(1)
folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
time = np.arange(8 * SAMPLE_RATE) / SAMPLE_RATE


def notes():
    # a note every half second, of five partials, and a little hiss
    pitch = np.repeat(rng.integers(45, 75, 16), SAMPLE_RATE // 2)
    tone = sum(np.sin(2 * np.pi * n * 440 * 2 ** ((pitch - 69) / 12) * time) / n for n in range(1, 6))
    return 0.15 * rng.uniform(0.2, 1) * tone + 0.002 * rng.standard_normal(len(time))


target = folder / "composed" / "train"
target.mkdir(parents=True)
np.save(target / "shard-0000.npy", np.stack([np.round(notes() * 32767) for _ in range(12)]).astype(np.int16))
records = [json.dumps({"attributes": {}, "captions": []})] * 12
(target / "shard-0000.jsonl").write_text(chr(10).join(records))
clips = ComposedClips(folder, "train")
codes = fit_spectral_codes(clips)
says = {}

wav = torch.stack([clips.wav(index) for index in range(3)])
latents = codes.latents(wav)
chosen = codes.codes(latents)
codec = assemble(folder, codes)
by_codec = codec.quantizer.encode(latents, codec.config.target_bandwidths[-1])
says["codes_alike"] = torch.equal(by_codec.transpose(0, 1), chosen)
says["sum_alike"] = float((codec.quantizer.decode(chosen.transpose(0, 1)) - codes.decode(chosen)).abs().max())
codes.ship(folder / "shipped.safetensors")
again = shipped_spectral_codes(codes.codebooks, folder / "shipped.safetensors")
says["shipped_alike"] = [float((again.codes(again.latents(wav)) == chosen)[:, k].float().mean()) for k in range(2)]
says["kept"] = 1 - float((codes.decode(chosen) - latents).square().mean() / latents.var())

frequency = 440 * 2 ** (4 / 12)
tone = 0.1 * torch.sin(2 * math.pi * frequency * torch.from_numpy(time).float())[None]
inner = slice(4, -4)
held = codes.codes(codes.latents(tone))[0, 0, inner]
moved = codes.codes(codes.latents(tone.roll(123, 1)))[0, 0, inner]
says["first_codes_of_a_tone"] = len(held.unique()), float((held == moved).float().mean())

torch.manual_seed(0)
codec = build_codec()
oscillators = start_decoder(codec, codes)
with torch.no_grad():
    sound = codec.decoder(codes.latents(tone))[0, 0]
parts = sound[SAMPLE_RATE : 2 * SAMPLE_RATE], sound[-2 * SAMPLE_RATE : -SAMPLE_RATE]
spectrum = torch.fft.rfft(parts[1] * torch.hann_window(SAMPLE_RATE)).abs()
says["asked"], says["loudest"] = frequency, int(spectrum.argmax())
says["level"] = float(parts[1].square().mean().sqrt() / parts[0].square().mean().sqrt())

before = [part.detach().clone() for part in oscillators.parts()]
optimizer = torch.optim.AdamW(codec.decoder.parameters(), 1e-2)
codec.decoder(codes.latents(wav[:1, : 16 * 512])).square().mean().backward()
optimizer.step()
rows = oscillators.rows
stepped = [float((part - old)[rows].abs().max()) for part, old in zip(oscillators.parts(), before, strict=True)]
oscillators.hold()
held = [float((part - old)[rows].abs().max()) for part, old in zip(oscillators.parts(), before, strict=True)]
others = torch.ones(len(before[0]), dtype=torch.bool)
others[rows] = False
says["moved"], says["held"] = max(stepped), max(held)
says["others_moved"] = float((oscillators.parts()[0] - before[0])[others].abs().max())
print(json.dumps(says))
"""


@pytest.fixture(scope="module")
def says(tmp_path_factory):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("clips"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "recipes" / "compact"), str(root)])},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_codec_chooses_the_codes_that_were_fitted(says):
    assert says["codes_alike"] and says["sum_alike"] < 1e-5
    assert says["kept"] > 0.8


def test_shipped_in_half_precision_the_codes_say_the_same(says):
    assert min(says["shipped_alike"]) > 0.98


def test_codes_have_no_phase(says):
    different, share_alike = says["first_codes_of_a_tone"]
    assert different <= 2 and share_alike > 0.95


def test_an_untrained_decoder_holds_the_tone_it_is_given(says):
    # multiples of the frame rate, 31.25 Hz, are what a decoder without state could hold
    assert abs(says["loudest"] - says["asked"]) < 3 < abs(says["asked"] / 31.25 - round(says["asked"] / 31.25)) * 31.25
    assert 0.8 < says["level"] < 1.25


def test_oscillators_are_held_and_all_else_learns(says):
    assert says["moved"] > 0 and says["held"] == 0 and says["others_moved"] > 0
