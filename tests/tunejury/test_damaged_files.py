"""Damaged audio files and judges are one error line or a right score; nothing crashes, hangs or runs code. A few of
them here; `benchmarks/fuzz_inputs.py` makes as many as one likes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLIPS, CHECKPOINTS = 64, 45

LIVE = """
import random, sys
import torch
from pathlib import Path
from mutations import poisoned

state, found = {"net.0.weight": torch.zeros(2)}, []
for seed in range(40):
    Path("poison.pt").write_bytes(poisoned(state, "MARKER", random.Random(seed)))
    try:
        torch.load("poison.pt", weights_only=False)  # as nobody should
    except Exception:
        pass
    found.append(Path("MARKER").exists())
    Path("MARKER").unlink(missing_ok=True)
print(sum(found))
"""


def run(command: list[str], folder: Path, limit: float) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=limit
    )


def test_damaged_input_is_an_error_line_or_a_right_score(tmp_path: Path) -> None:
    command = [str(ROOT / "benchmarks" / "fuzz_inputs.py"), "--output", "fuzz.json"]
    done = run([*command, "--num-clips", str(CLIPS), "--num-checkpoints", str(CHECKPOINTS)], tmp_path, 900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    cases: list[dict[str, Any]] = json.loads((tmp_path / "fuzz.json").read_text())["cases"]
    assert {case["outcome"] for case in cases} == {"score", "error"}
    clips = [case["outcome"] for case in cases if case["group"] in ("wav", "flac", "ogg", "mp3")]
    judges = [case["outcome"] for case in cases if ": " in case["group"]]
    assert len(clips) >= CLIPS and len(judges) == CHECKPOINTS
    # neither answer is given to all: both of the ways are walked
    assert min(clips.count("score"), clips.count("error")) > 10
    assert min(judges.count("score"), judges.count("error")) > 3
    poison = [case for case in cases if case["group"].endswith("poison")]
    assert poison and all(case["outcome"] == "error" for case in poison)


def test_the_poison_would_run_if_it_were_let(tmp_path: Path) -> None:
    done = run(["-c", LIVE], tmp_path, 300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 20
