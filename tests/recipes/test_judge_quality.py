"""The compact judge's estimate of the teacher: what is built into the encoder is the regressions that were solved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import copy, json
import numpy as np, torch
from judge_cache import Cache
from judge_data import Track
from judge_quality import Evidence, QualityConfig, add_quality, collection_weights, embed_tracks, resampled, ridge
from pretrain_judge import Pretraining

torch.manual_seed(0)
rng = np.random.default_rng(0)
model = Pretraining("compact", ("piano",), 300).eval()
size = model.audio.normalize.num_features
torch.nn.init.normal_(model.audio.mlp[-1].weight, std=0.1)
tracks = [Track(str(i), float(rng.normal()), "", "abb"[i % 3], str(i), np.zeros(0)) for i in range(24)]
none = torch.zeros(0)
tags = torch.randn(48, 300)
cache = Cache(torch.randn(24, 4, size), none, none, none, none, none, none, none, tags, torch.arange(48) % 24)
rows, unseen = np.arange(20), np.arange(20, 24)
parts = ("real", "predicted", "tags", "network", "spectrum")

def estimate(config):
    widened = copy.deepcopy(model)
    add_quality(widened, cache, tracks, rows, config)
    embedding = embed_tracks(widened, cache, unseen)
    assert torch.equal(embedding[:, :-1], embed_tracks(model, cache, unseen))  # the rest is as it was
    return embedding[:, -1].tolist()

whole = QualityConfig()
says = {"whole": estimate(whole), "shares": [getattr(whole, name) / whole.total for name in parts]}
says["each"] = [estimate(QualityConfig(**{name: float(name == one) for name in parts})) for one in parts]
known, asked = (Evidence.gather(model, cache, tracks, part, whole) for part in (rows, unseen))
found = []
for name, x in (("real", "predicted"), ("predicted", "predicted"), ("network", "network"), ("spectrum", "spectrum")):
    columns = slice(250 if name == "real" else 0, None)
    weights, offset = ridge(getattr(known, name)[:, columns], known.target, known.weights)
    found.append((getattr(asked, x)[:, columns] @ weights + offset).tolist())
says["solved"] = found
through, mean = (ridge(known.network, known.target, known.weights, penalty) for penalty in (1e-7, 1e9))
says["through"] = (known.network @ through[0] + through[1] - known.target).abs().max().item()
says["mean"] = [(known.network @ mean[0] + mean[1])[0].item(), (known.weights @ known.target / 20).item()]
says["weights"] = collection_weights(tracks, np.array([0, 1, 2, 4, 5]), 0.5).tolist()
says["spread"] = [
    resampled(model, cache, tracks, part, whole, 6, 0)(embed_tracks(model, cache, unseen)).std(1).tolist()
    for part in (rows, np.array([i for i in rows if tracks[i].collection == "b"]))
]
print(json.dumps(says))
"""


def test_the_estimate_is_the_mean_of_its_regressions_and_the_ensemble_is_over_collections(tmp_path: Path) -> None:
    pytest.importorskip("mido", reason="the recipes of the compact models need it")
    recipes = Path(__file__).parents[2] / "recipes" / "compact"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(recipes), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    says = json.loads(done.stdout)
    expected = [sum(s * e for s, e in zip(says["shares"], row, strict=True)) for row in zip(*says["each"], strict=True)]
    assert says["whole"] == pytest.approx(expected, abs=1e-4) and sum(says["shares"]) == pytest.approx(1.0)
    # each regression alone is the one solved from what the tracks are; the tags (third) are a part of the second
    for place, solved in zip((0, 1, 3, 4), says["solved"], strict=True):
        assert says["each"][place] == pytest.approx(solved, abs=1e-4), place
    assert len({round(row[0], 4) for row in says["each"]}) == 5
    assert says["through"] < 0.01  # without a penalty a regression goes through its points
    assert says["mean"][0] == pytest.approx(says["mean"][1], abs=1e-4)  # with nothing but penalty it knows the mean
    # one track of a and four of b: weights 1 and 1/2, brought to a mean of 1
    assert says["weights"] == pytest.approx([w * 5 / 3 for w in (1.0, 0.5, 0.5, 0.5, 0.5)])
    two, one = says["spread"]
    assert min(two) > 0.01 and one == pytest.approx([0.0] * 4, abs=1e-4)  # drawing one again and again is no news
