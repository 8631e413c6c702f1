"""Benchmarks go on after a kill: what was measured is kept under its settings, and not measured again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

FOLDERS = """
import dataclasses
from kept import work_folder

@dataclasses.dataclass
class Config:
    steps: int = 3
    output: str | None = None

given = work_folder("some", Config(), Path("given"))
names = [work_folder("some", each, None).name for each in (Config(), Config(output="other.json"), Config(steps=4))]
say([given.name, names])
"""

ONCE = """
from kept import once

def fail():
    raise KeyboardInterrupt

try:
    once(Path("a.json"), fail)
except KeyboardInterrupt:
    left = sorted(path.name for path in Path().glob("*"))
say([left, once(Path("a.json"), lambda: {"x": 1}), once(Path("a.json"), fail)])
"""

OVERHEARD = """
import torch
from ditto_parts import Overheard

def judge(wav, sample_rate, prompts):
    return wav.mean((1, 2))

def hear(steps, prompt="a"):  # the mean of the iterates, and twice that by the other
    noting = Overheard(judge, lambda *clip: 2 * judge(*clip), 3, Path("notes.jsonl"))
    values = [float(noting(torch.full((1, 1, 4), float(step)), 16_000, [prompt])) for step in steps]
    return values, noting.gains()

cut_off = hear([1, 5])
whole = hear([1, 2, 4, 9, 9])  # those after the third are of finished files
hear([0, 3, 3], "b")
say([cut_off, whole[0], whole[1]["mean"], hear([0])[1]["mean"]])
"""


def told(program: str, folder: Path) -> Any:
    """What a program that imports benchmarks says last."""
    begin = "import json\nfrom pathlib import Path\nsay = lambda value: print(json.dumps(value))\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", begin + program], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_folder_is_that_of_the_settings_wherever_the_figures_go(tmp_path: Path) -> None:
    given, (first, elsewhere, other) = told(FOLDERS, tmp_path)
    assert given == "given" and first == elsewhere != other


def test_what_was_measured_is_not_measured_again_and_a_stopped_measurement_leaves_nothing(tmp_path: Path) -> None:
    assert told(ONCE, tmp_path) == [[], {"x": 1}, {"x": 1}]


def test_an_overheard_judge_says_the_same_and_clips_that_were_cut_off_are_noted_anew(tmp_path: Path) -> None:
    cut_off, values, gains, both = told(OVERHEARD, tmp_path)
    assert cut_off == [[1.0, 5.0], None]
    assert values == [1.0, 2.0, 4.0, 9.0, 9.0]
    assert gains == [0.0, 2.0, 6.0] and both == [0.0, 4.0, 6.0]
