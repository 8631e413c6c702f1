"""Fitting a judge's head: several average to one, a finished judge keeps all but its head, faults are learned,
and a cache of other encoders is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

AVERAGED = """
import torch
from judge_fit import averaged
from tunejury.head import RewardHead

torch.manual_seed(0)
heads = [RewardHead(7, (6 + more, 3)) for more in range(3)]
for head in heads:
    for _ in range(4):
        head.train()(2.0 + 3.0 * torch.randn(32, 7))  # running means and variances of its own
    for layer in head.net:
        if isinstance(layer, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    head.eval()
x = 5.0 * torch.randn(64, 7)
with torch.no_grad():
    each = torch.stack([head(x) for head in heads])
    assert each.std(0).min() > 0.001
    assert torch.allclose(averaged(heads)(x), each.mean(0), atol=1e-5)
    assert torch.equal(averaged(heads[:1])(x), each[0])
"""

FINISHED = """
import copy
from types import SimpleNamespace
import numpy as np, torch
from judge_cache import VERSIONS, Cache
from judge_data import Track
from judge_fit import FitConfig, averaged, fit, predict
from train_judge import assemble, finished_parts
from tunejury import load_reward

torch.manual_seed(0)
shipped = load_reward("compact", device="cpu").eval()
attributes = {
    "genre": "classical", "tempo": 80, "tempo_class": "slow", "key": "F", "mode": "major", "minor": False,
    "lead": "piano", "lead_family": "piano", "accompaniment": "harp", "bass": "cello bass", "drums": True,
    "drum_style": "cinematic drums", "density": "sparse", "dynamics": "soft",
}
clips = SimpleNamespace(records=[{"attributes": attributes}] * 48)
encoders, own_head, members = finished_parts("compact", "compact")
before = copy.deepcopy(encoders.state_dict())
normalize = encoders.audio.normalize
fault = normalize.running_var.sqrt() * torch.randn(normalize.num_features)

def drawn(*shape):
    return normalize.running_mean + normalize.running_var.sqrt() * torch.randn(*shape, normalize.num_features)

tracks = [Track(str(i), 0.0, "a calm piano piece", "a", str(i), np.zeros(0)) for i in range(12)]
heard, played = drawn(12, 4), drawn(48 * VERSIONS)
cache = Cache(
    heard, heard + fault, torch.full((12, 4), 0.5), played, played + fault, torch.full((48 * VERSIONS,), 0.5),
    drawn(20), drawn(60), torch.zeros(60, 3), torch.full((60,), -1),
)
config = FitConfig(heads=2, steps=150)
judge = fit(encoders, cache, tracks, clips, np.arange(12), config, match_fixed=True)
model = assemble(judge, judge.whole_head(), config, "compact", members).eval()
after = encoders.state_dict()
assert all(torch.equal(value, after[name]) for name, value in before.items())
kept = shipped.state_dict()
assert {name for name, value in model.state_dict().items() if value.shape != kept[name].shape or not torch.equal(
    value, kept[name])} <= {name for name in kept if name.startswith("head.")}
wav = 0.1 * torch.randn(2, 1, 32000)
with torch.no_grad():
    assert torch.equal(model.uncertainty(wav, 16000), shipped.uncertainty(wav, 16000))
    new = drawn(200)  # planted: one fault, told from what is sound in clips nobody fitted
    clean, spoiled = (judge.reward(judge.embed(x), judge.silent(200)) for x in (new, new + fault))
    assert (clean > spoiled).float().mean() > 0.95, (clean > spoiled).float().mean()
    embedding = encoders.audio(wav[:, 0])
    says = judge.reward(embedding, judge.text(["a calm piano piece"] * 2))
    assert torch.allclose(model(wav, 16000, ["a calm piano piece"] * 2), says, atol=1e-3)
rows = np.arange(12)
alone, kept = predict(judge, cache, rows), predict(judge, cache, rows, own_head)
both = predict(judge, cache, rows, averaged([own_head, judge.whole_head()]))
assert np.abs(both - (alone + kept) / 2).max() < 1e-3 and np.abs(alone - kept).max() > 0.1
try:
    finished_parts("compact-b", "compact")
except SystemExit as error:
    assert "give its --judge" in str(error)
else:
    raise AssertionError("compact-b taken for compact")
"""

KEPT = """
from pathlib import Path
import torch
import judge_cache
from judge_cache import Cache, load_or_build, read_cache
from train_judge import finished_parts

encoder = finished_parts("compact", "compact")[0].audio
cache = Cache(*[torch.ones(1)] * 10)
judge_cache.build_cache = lambda *given: cache
path = Path("judge_cache-compact.pt")
load_or_build(path, encoder, [], None, Path(), 1, 1, 0)

def refused(encoder):
    try:
        read_cache(path, encoder)
    except SystemExit as error:
        assert "delete it" in str(error)
        return True
    return False

assert not refused(encoder) and not refused(encoder.half().float())
torch.manual_seed(0)
assert refused(type(encoder)(encoder.config)) and refused(finished_parts("compact-b", "compact-b")[0].audio)
torch.save(vars(cache), path)  # as it was before it said what it is of
assert refused(encoder)
"""


@pytest.mark.parametrize("program", [AVERAGED, FINISHED, KEPT], ids=["averaged", "finished", "kept"])
def test_fit(program: str, tmp_path: Path) -> None:
    pytest.importorskip("mido", reason="the recipes of the compact models need it")
    recipes = Path(__file__).parents[2] / "recipes" / "compact"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(recipes), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
