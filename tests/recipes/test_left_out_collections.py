"""Leaving collections out, from the shipped encoder: the reward of the left-out tracks has no say, nor has the estimate
that the shipped embedding ends with.
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
from judge_data import Track
from left_out_collections import describe, estimate
from tunejury import load_reward

rng = np.random.default_rng(0)
audio = (3000 * rng.standard_normal((6, 32000))).astype(np.int16)
says = {"dims": [], "moved": []}
for judge, kind in (("compact", "compact-audio"), ("compact-b", "patch-audio")):
    encoder = load_reward(judge, device="cpu").encoders[kind]
    track = Track("a", 0.0, "", "a", "a", audio[0])
    before = describe(encoder, track, 3)
    with torch.no_grad():
        encoder.linear.weight[-1] += 1.0
        encoder.mlp[-1].bias[-1] += 1.0
    says["moved"].append(max((a - b).abs().max().item() for a, b in zip(before, describe(encoder, track, 3))))
    whole = encoder(torch.from_numpy(audio[:1].astype(np.float32) / 32768))[0, :-1]
    says["dims"].append([len(before[0]) - encoder.dim, (before[0] - whole).abs().max().item()])

x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
rewards = x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]) + 0.7
tracks = [Track(str(i), float(rewards[i]), "", "ab"[i % 3 == 0], str(i), audio[0]) for i in range(60)]
known, asked = np.array([i for i in range(60) if i % 3]), np.arange(0, 60, 3)
found = estimate([(3.0, x), (1.0, x)], tracks, known, asked)
says["planted"] = float(np.corrcoef(found, rewards[asked])[0, 1])
unknown = [replace(t, reward=-9.0) if t.collection == "b" else t for t in tracks]
says["blind"] = bool((estimate([(3.0, x), (1.0, x)], unknown, known, asked) == found).all())
print(json.dumps(says))
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
    says = json.loads(done.stdout)
    assert says["moved"] == [0.0, 0.0]
    for missing, difference in says["dims"]:
        assert missing == -1 and difference < 1e-4  # a short track is one window, heard as the judge hears it
    assert says["planted"] > 0.99 and says["blind"]


def test_one_line_for_a_judge_that_is_none_and_for_no_renders(tmp_path: Path) -> None:
    (tmp_path / "teacher.csv").write_text("midi,teacher_reward,caption,genre,tempo,key,collection\n")
    (tmp_path / "teacher").mkdir()
    command = ["left_out_collections.py", "--teacher-dir", str(tmp_path), "--data-dir", str(tmp_path)]
    for more, says in ((["--judge", "clap"], "--judge expects one of compact, compact-b"), ([], "render_teacher.py")):
        done = run([*command, *more], tmp_path)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and says in done.stderr
        assert len(done.stderr.splitlines()) == 1
