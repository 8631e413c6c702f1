"""The calibration recipe from its command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tunejury import AnchorCalibration

RECIPE = Path(__file__).parents[2] / "recipes" / "calibrate.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, RECIPE, *map(str, arguments)], capture_output=True, text=True)


def write_votes(path: Path) -> None:
    """300 votes; the judge overrates the system `loud` by 2 in log-odds."""
    generator = np.random.default_rng(0)
    lines = ["system_a,system_b,winner,reward_a,reward_b"]
    for _ in range(300):
        a, b = generator.choice(["loud", "plain", "soft"], 2, replace=False)
        rewards = generator.normal(size=2)
        odds = (rewards[0] - rewards[1]) / 2 - 2 * ((a == "loud") - float(b == "loud"))
        winner = "a" if generator.uniform() < 1 / (1 + np.exp(-odds)) else "b"
        lines.append(f"{a},{b},{winner},{rewards[0]},{rewards[1]}")
    path.write_text("\n".join(lines) + "\n")


def test_folder_holds_calibration_results_and_plot(tmp_path: Path) -> None:
    votes, output = tmp_path / "votes.csv", tmp_path / "run"
    write_votes(votes)
    done = run("--votes", votes, "--output-dir", output, "--reference-system", "plain")
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "results.json").read_text())
    assert results["num_votes"] == 300 and results["more_votes"].keys() == {"loud", "soft"}
    assert results["offsets"]["loud"]["low"] > 1 and results["offsets"]["soft"]["low"] < 0
    held_out = results["held_out"]
    assert held_out["anchors"]["log_loss"] < held_out["published"]["log_loss"] < held_out["raw"]["log_loss"]
    low, high = held_out["anchors"]["accuracy_ci"]
    assert low < held_out["anchors"]["accuracy"] < high
    calibration = AnchorCalibration.load(output / "calibration.json")
    assert calibration.offset("loud").value == results["offsets"]["loud"]["value"]
    assert (output / "reliability.png").read_bytes().startswith(b"\x89PNG")
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page and "<td>loud</td>" in page
    assert "log loss" in done.stdout

    # the same command again reads what is there, other settings are refused
    before = (output / "results.json").stat().st_mtime_ns
    assert run("--votes", votes, "--output-dir", output, "--reference-system", "plain").returncode == 0
    assert (output / "results.json").stat().st_mtime_ns == before
    other = run("--votes", votes, "--output-dir", output, "--reference-system", "loud")
    assert other.returncode == 2 and other.stderr.startswith("error: ") and other.stderr.count("\n") == 1


def test_what_is_wrong_with_votes_is_said(tmp_path: Path) -> None:
    """Once for all votes, not for each fold again; ties alone cannot be measured."""
    votes = tmp_path / "votes.csv"
    write_votes(votes)
    text = votes.read_text()
    rows = text.splitlines(True)
    votes.write_text(text + rows[1] + "best,soft,a,0.1,0.3\nbest,loud,a,0.4,0.3\n")
    done = run("--votes", votes, "--output-dir", tmp_path / "run")
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 2, done.stderr
    assert "1 of 303 votes repeat earlier ones" in done.stderr and "best (2)" in done.stderr
    votes.write_text(rows[0] + "x,y,tie,0,1\n" * 9)
    done = run("--votes", votes, "--output-dir", tmp_path / "ties")
    assert done.returncode == 2 and "error: all 9 votes are ties" in done.stderr.splitlines()[-1]


def test_missing_votes_write_nothing(tmp_path: Path) -> None:
    done = run("--votes", tmp_path / "none.csv", "--output-dir", tmp_path / "run")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
