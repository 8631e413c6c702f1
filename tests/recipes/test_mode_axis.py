"""The axis that train_flow.py weighs up, on which minor and major lie apart, is the one that was planted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json
from types import SimpleNamespace

import numpy as np
from train_flow import mode_axis

# latents whose mean over time is moved by the mode, in noise that is wide in other directions
rng = np.random.default_rng(0)
minor = rng.random(4000) < 0.4
mixing = rng.normal(size=(6, 6)) / 2 + np.eye(6)
moved = rng.normal(size=6)
means = rng.normal(size=(4000, 6)) @ mixing.T + minor[:, None] * moved
latents = means[..., None] + rng.normal(size=(4000, 6, 1)) * np.array([1.0, -1.0])  # a mean over time of 0
clips = SimpleNamespace(records=[{"attributes": {"minor": bool(one)}} for one in minor])
axis = mode_axis(latents, clips).numpy()
true = np.linalg.solve(mixing @ mixing.T, moved)
says = {"axis": float(axis @ true / np.linalg.norm(axis) / np.linalg.norm(true))}
says["spread"] = float(np.std(means[minor] @ axis))
print(json.dumps(says))
"""


def test_the_mode_axis_is_the_planted_one():
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "recipes" / "compact"), str(root)])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    says = json.loads(done.stdout.splitlines()[-1])
    assert says["axis"] > 0.99
    assert says["spread"] == pytest.approx(1, abs=0.05)
