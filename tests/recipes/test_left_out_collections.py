"""Leaving collections out: the encoders are the shipped ones but for the estimate, features are solved for,
and the rewards of what is left out have no say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json
from dataclasses import replace
import numpy as np, torch
from judge_cache import Cache
from judge_data import Track
from judge_quality import QualityConfig, estimate_without
from left_out_collections import solve_features, without_estimate
from tunejury import load_reward

torch.manual_seed(0)
wav, none = 0.1 * torch.randn(2, 32000), torch.zeros(0)
says = []
for judge, kind in (("compact", "compact-audio"), ("compact-b", "patch-audio")):
    model, shipped = without_estimate(judge, 300), load_reward(judge, device="cpu").encoders[kind]
    with torch.no_grad():
        same = torch.equal(model.audio(wav), shipped(wav)[:, :-1])
        normalize = model.audio.normalize
        size = normalize.num_features
        drawn = normalize.running_mean + normalize.running_var.sqrt() * torch.randn(900 + 24 * 4, size)
        heard = normalize(drawn[:900])
        features = (model.audio.linear(heard) + model.audio.mlp(heard)) @ torch.randn(model.audio.dim, 300) + 5.0
    cache = Cache(drawn[900:].view(24, 4, size), *[none] * 6, drawn[:900], features, torch.arange(900) % 24)
    penalty, share = solve_features(model, cache)
    with torch.no_grad():
        embedding = model.audio.linear(heard) + model.audio.mlp(heard)
        told = model.heads["features"](embedding) * model.feature_std + model.feature_mean
    rng = np.random.default_rng(0)
    tracks = [Track(str(i), float(rng.normal()), "", "ab"[i % 2], str(i), np.zeros(0)) for i in range(24)]
    tracks = [replace(track, group="a") for track in tracks]
    assert not tracks[0].is_test
    part = np.arange(0, 24, 2)
    found = estimate_without(model, cache, tracks, part, QualityConfig())
    other = [replace(track, reward=-9.0) if track.collection == "a" else track for track in tracks]
    again = estimate_without(model, cache, other, part, QualityConfig())
    error = float((told - features).square().mean() / features.var(0).mean())
    says.append([same, share, error, torch.equal(found, again), float(found.std())])
print(json.dumps(says))
"""

TAGGED = """
from pathlib import Path
import numpy as np, torch
from judge_cache import TAGGER_WINDOW, _tagged
from judge_data import Track

rng = np.random.default_rng(0)
tracks = [Track(str(i), 0.0, "", "a", "a", np.zeros(9)) for i in range(3)]
heard = rng.integers(-9000, 9000, (3, 3 * TAGGER_WINDOW)).astype(np.int16)
features = rng.standard_normal((3, 3, 5)).astype(np.float16)
features[1:, 2] = np.nan  # two windows
np.save("000.npy", heard)
np.savez("000.npz", kind=[0, 1, 2], idx=[1, 0, 2], start=[4, 7, -1], T=features)
given = []
_, tags, numbers = _tagged(Path(), tracks, lambda wavs: given.extend(wavs) or torch.zeros(len(wavs), 1))
for wav, stored, windows in zip(given, heard, (3, 2, 2)):
    assert np.array_equal(wav, stored[: windows * TAGGER_WINDOW].astype(np.float32) / 32768), windows
assert numbers.tolist() == [1, -1, -1] and tags.isfinite().all()
"""


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mido", reason="the recipes of the compact models need it")
    recipes = Path(__file__).parents[2] / "recipes" / "compact"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(recipes), os.environ.get("PYTHONPATH", "")])}
    arguments = [str(recipes / a) if a.endswith(".py") else a for a in arguments]
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_what_was_left_out_has_no_say(tmp_path: Path) -> None:
    done = run(["-c", PROGRAM], tmp_path)
    assert done.returncode == 0, done.stderr
    for same_encoder, share, error, blind, spread in json.loads(done.stdout):
        assert same_encoder
        assert share > 0.99 and error < 0.01  # planted: the features were linear in the embedding
        assert blind and spread > 0


def test_tagged_clips_are_heard_as_the_tagging_network_heard_them(tmp_path: Path) -> None:
    done = run(["-c", TAGGED], tmp_path)
    assert done.returncode == 0, done.stderr


def test_one_line_where_a_stage_before_is_missing(tmp_path: Path) -> None:
    command = ["left_out_collections.py", "--teacher-dir", str(tmp_path), "--data-dir", str(tmp_path)]

    def says(expected: str) -> None:
        done = run(command, tmp_path)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ") and expected in done.stderr

    says("--teacher-dir expects the folder of teacher.csv")
    (tmp_path / "teacher.csv").write_text("midi,teacher_reward,caption,genre,tempo,key,collection\n")
    says("run render_teacher.py first")
    (tmp_path / "teacher").mkdir()
    says("nothing of render_teacher.py")
