"""The compact judge's estimate of the teacher: what is built into the encoder is the regression that was solved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import copy, json
from dataclasses import replace
import numpy as np, torch
from judge_cache import Cache
from judge_data import Track
from judge_quality import QualityConfig, add_quality, embed_tracks, resampled
from pretrain_judge import Pretraining

torch.manual_seed(0)
rng = np.random.default_rng(0)
model = Pretraining("compact", ("piano",), 300).eval()
size = model.audio.normalize.num_features
torch.nn.init.normal_(model.audio.mlp[-1].weight, std=0.1)
tracks = [Track(str(i), float(rng.normal()), "", "ab"[i % 2], str(i), np.zeros(0)) for i in range(60)]
none = torch.zeros(0)
cache = Cache(torch.randn(60, 4, size), none, none, none, none, none, none, none, none, none)
rows, unseen = np.arange(56), np.arange(56, 60)

def estimate(config, known, asked):
    widened = copy.deepcopy(model)
    quality = add_quality(widened, cache, tracks, known, config)
    embedding, before = embed_tracks(widened, cache, asked), embed_tracks(model, cache, asked)
    assert torch.equal(embedding[:, : before.shape[1]], before)  # the rest is as it was
    return quality(embedding).tolist()

exact = QualityConfig(noise=1e-5)
says = {"truth": [tracks[i].reward for i in rows], "mean": float(np.mean([tracks[i].reward for i in rows]))}
for name, config in (("whole", exact), ("linear", replace(exact, smooth=0.0)), ("deaf", QualityConfig(noise=1e6))):
    says[name] = estimate(config, rows, rows)
says["unseen"] = [estimate(exact, rows, unseen), estimate(exact, np.arange(60), unseen)]
spreads = []
for known in (rows, rows[::2]):
    widened = copy.deepcopy(model)
    add_quality(widened, cache, tracks, known, QualityConfig())
    members = resampled(model, cache, tracks, known, QualityConfig(), 6, 0)
    spreads.append(members(embed_tracks(widened, cache, unseen)[:, :-1]).std(1).tolist())
says["two collections"], says["one collection"] = spreads
print(json.dumps(says))
"""


def test_the_estimate_is_the_regression_and_the_ensemble_is_over_collections(tmp_path: Path) -> None:
    pytest.importorskip("mido", reason="the recipes of the compact models need it")
    recipes = Path(__file__).parents[2] / "recipes" / "compact"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(recipes), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    says = json.loads(done.stdout)
    for name in ("whole", "linear"):  # without noise a regression goes through its points
        assert says[name] == pytest.approx(says["truth"], abs=0.02), name
    assert says["deaf"] == pytest.approx([says["mean"]] * 56, abs=0.02)  # with nothing but noise it knows the mean
    without, within = says["unseen"]
    assert max(abs(a - b) for a, b in zip(without, within, strict=True)) > 0.1
    assert min(says["two collections"]) > 0.01
    assert says["one collection"] == pytest.approx([0.0] * 4, abs=1e-4)  # drawing it again and again is no news
