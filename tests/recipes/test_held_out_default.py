"""Runs driven by a shipped judge are watched by the other one, unless told otherwise; their reports say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., int]

RECIPES: dict[str, list[object]] = {
    "best_of_n": ["--num-candidates", 2],
    "ditto": ["--num-optimization-steps", 1],
    "expert_iteration": [
        "--num-rounds", 1, "--num-candidates", 2, "--keep-fraction", 0.5, "--num-evaluation-seeds", 2,
        "--num-steps", 1, "--rank", 2,
    ],
}  # fmt: skip


def run_into(run_recipe: Run, out: Path, recipe: str, backbone: Path, *flags: object) -> tuple[dict[str, Any], str]:
    """config.json and the report of a small run driven by `compact`."""
    folder = out.parent
    (folder / "prompts.txt").write_text("calm piano\nfast drums\n")
    (folder / "held.txt").write_text("piano a\ndrums b\n")
    more = ["--held-out-prompts", folder / "held.txt"] if recipe == "expert_iteration" else []
    where = ["--prompts", folder / "prompts.txt", *more, "--backbone", backbone, "--output-dir", out]
    assert run_recipe(recipe, *where, "--reward", "compact", "--device", "cpu", *RECIPES[recipe], *flags) == 0
    return json.loads((out / "config.json").read_text()), (out / "report.html").read_text()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_other_shipped_judge_watches_and_none_means_none(
    run_recipe: Run, backbone_directory: Path, tmp_path: Path, recipe: str
) -> None:
    config, report = run_into(run_recipe, tmp_path / "watched", recipe, backbone_directory)
    assert config["side"]["held_out_reward"]["name"] == "compact-b"
    assert config["side"]["held_out_reward"]["licenses"]["patch-audio"]
    assert "held-out" in report.lower().replace("held out reward", "held-out") and "compact-b" in report
    none = ["--held-out-reward", "none"]
    config, report = run_into(run_recipe, tmp_path / "alone", recipe, backbone_directory, *none)
    assert "held_out_reward" not in config["side"] and "compact-b" not in report
