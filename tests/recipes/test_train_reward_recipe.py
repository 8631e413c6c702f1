"""The training recipe from its command line: votes in, a reward out that agrees with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tunejury import load_audio, load_reward

Run = Callable[..., int]
RATE = 16_000


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Votes of two sources that prefer noise to a tone; one tie, one clip that is no audio."""
    folder = tmp_path_factory.mktemp("votes")
    random = np.random.default_rng(0)
    time = np.arange(RATE // 5) / RATE
    for i in range(12):
        soundfile.write(folder / f"noise{i}.wav", 0.1 * random.standard_normal(len(time)), RATE)
        soundfile.write(folder / f"tone{i}.wav", 0.3 * np.sin(2 * np.pi * (200 + 40 * i) * time), RATE)
    (folder / "broken.wav").write_text("no audio")
    rows: list[dict[str, Any]] = []
    for i in range(60):
        noise, tone = f"noise{i % 12}.wav", f"tone{(i * 5 + i // 12) % 12}.wav"
        a, b, winner = (noise, tone, "a") if i % 2 else (tone, noise, "b")
        rows.append({"pair_id": i, "prompt": f"prompt {i}", "audio_a": a, "audio_b": b, "winner": winner,
                     "source": "arena" if i < 40 else "lab"})  # fmt: skip
    rows[7]["winner"] = "tie"
    rows[8]["audio_a"] = "broken.wav"
    (folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "votes.jsonl"


def options(judge_directory: Path, output: Path) -> list[object]:
    quick = ["--widths", 16, 8, "--batch-size", 8, "--learning-rate", 0.01, "--max-epochs", 12]
    return [*quick, "--reward", judge_directory, "--output-dir", output, "--device", "cpu"]


def test_votes_in_reward_out(run_recipe: Run, judge_directory: Path, votes: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = ["--pairs", votes, "--seeds", 0, 1, "--leave-one-source-out", "--name", "mine"]
    arguments += ["--split-fractions", 0.6, 0.2, 0.2, *options(judge_directory, output)]
    assert run_recipe("train_reward", *arguments) == 0
    results = json.loads((output / "results.json").read_text())
    # what was planted is found, and what is missing is said
    assert results["splits"]["test"]["accuracy"] > 0.9
    assert sum(split["num_pairs"] for split in results["splits"].values()) == 59
    assert sum(split["ties"] for split in results["splits"].values()) == 1
    assert results["pairs_left_out"] == 1 and [Path(f["path"]).name for f in results["failed"]] == ["broken.wav"]
    assert set(results["test_by_source"]) == set(results["leave_one_source_out"]) == {"arena", "lab"}
    assert results["leave_one_source_out"]["lab"]["num_pairs"] == 20
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert {(line["seed"], line["left_out"]) for line in lines} == {
        (s, o) for s in (0, 1) for o in (None, "arena", "lab")
    }

    # the reward is a whole one
    reward = load_reward(output / "reward", device="cpu")
    clips = [load_audio(votes.parent / name)[0] for name in ("noise0.wav", "tone0.wav")]
    noise, tone = (float(reward(clip[None], RATE, ["prompt 0"])) for clip in clips)
    assert noise > tone and reward.config.name == "mine" and reward.config.head.widths == (32, 16)
    card = (output / "reward" / "README.md").read_text()
    assert "pairs; mean of 2 head(s)" in card

    # the same command does nothing more; other settings are refused
    before = (output / "results.json").stat().st_mtime_ns
    assert run_recipe("train_reward", *arguments) == 0
    assert (output / "results.json").stat().st_mtime_ns == before
    assert run_recipe("train_reward", *arguments, "--max-epochs", 13) == 2


def test_blocks_and_preset(
    run_recipe: Run, judge_directory: Path, votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    arguments = [*options(judge_directory, output), "--max-epochs", 1, "--preset", "paper", "--blocks", "audio"]
    assert run_recipe("train_reward", "--pairs", votes, *arguments) == 0
    reward = load_reward(output / "reward", device="cpu")
    assert list(reward.config.encoders) == ["audio"] and reward.config.input_dim == 12
    settings = json.loads((output / "results.json").read_text())["seeds"]["0"]["config"]
    assert settings["patience"] == 30 and settings["batch_size"] == 8
    assert "| test |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "no.jsonl"], "no.jsonl does not exist"),
        (["--blocks", "mert"], "unknown input block 'mert', expected some of: audio, audio*text"),
        (["--learning-rate", "-1"], "learning_rate is -1"),
        (["--split-fractions", "1", "1", "1"], "expected three shares"),
        (["--reward", "nonsense"], "unknown reward 'nonsense'"),
        (["--seeds", "1", "1"], "no seed twice"),
        (["--export-released"], "cannot be written in the released format"),
    ],
)
def test_bad_input_is_one_line(
    run_recipe: Run, judge_directory: Path, votes: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str,
) -> None:  # fmt: skip
    pairs = [] if "--pairs" in arguments else ["--pairs", votes]
    code = run_recipe("train_reward", *pairs, *options(judge_directory, tmp_path / "run"), *arguments)
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and message in errors[0] and "Traceback" not in captured.err
    assert not (tmp_path / "run" / "results.json").exists()
