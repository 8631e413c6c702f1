"""MusicGen through the best-of-N recipe with the shipped judge: load, generate, score, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunejury import load_audio, load_reward

Run = Callable[..., int]


@pytest.fixture
def command(musicgen_directory: Path, tmp_path: Path) -> list[object]:
    models = ["--backbone", musicgen_directory, "--reward", "compact", "--device", "cpu", "--keep", "all"]
    return ["best_of_n", *models, "--prompt", "calm piano", "--output-dir", tmp_path / "out"]


def test_load_generate_score_report(command: list[object], run_recipe: Run, tmp_path: Path) -> None:
    assert run_recipe(*command, "--num-candidates", 5, "--batch-size", 2) == 0
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text())
    own = {"duration": 0.5, "guidance_scale": 2.0, "temperature": 1.1, "top_k": 20, "top_p": 1.0}
    assert config["generation"] == own and config["backbone"]["license"] == "cc-by-nc-4.0"
    lines = [json.loads(line) for line in (out / "candidates.jsonl").read_text().splitlines()]
    wav, sample_rate = load_audio(out / lines[3]["path"])
    assert wav.shape == (1, 4_000) and sample_rate == 8_000
    assert lines[3]["reward"] == pytest.approx(float(load_reward("compact")(wav[None], sample_rate, ["calm piano"])))
    assert len({line["reward"] for line in lines}) == 5 and (out / "report.html").stat().st_size > 10_000


def test_candidates_do_not_depend_on_how_many_there_are(command: list[object], run_recipe: Run, tmp_path: Path) -> None:
    rewards = []
    for count, batch in ((4, 4), (7, 3)):
        assert run_recipe(*command, "--num-candidates", count, "--batch-size", batch, "--overwrite") == 0
        lines = (tmp_path / "out" / "candidates.jsonl").read_text().splitlines()
        rewards.append([json.loads(line)["reward"] for line in lines])
    assert rewards[1][:4] == pytest.approx(rewards[0], abs=1e-4)


def test_sampling_controls_are_heard_and_recorded(command: list[object], run_recipe: Run, tmp_path: Path) -> None:
    """With one token to choose from all seeds sing alike; the numbers stand beside the results."""
    flags = ["--num-candidates", 2, "--temperature", 0.7, "--top-k", 1, "--top-p", 0.9, "--guidance-scale", 1]
    assert run_recipe(*command, *flags) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    asked = {"temperature": 0.7, "top_k": 1, "top_p": 0.9, "guidance_scale": 1.0}
    assert config["generation"] == {"duration": 0.5, **asked} and config["settings"]["top_k"] == 1
    assert json.loads((tmp_path / "out" / "results.json").read_text())["generation"] == config["generation"]
    first, second = (load_audio(path)[0] for path in sorted((tmp_path / "out" / "audio").iterdir()))
    assert (first - second).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--temperature", 0], "temperature is 0"), (["--top-k", -1], "top_k is -1"), (["--top-p", 1.5], "top_p is 1.5")],
)
def test_impossible_sampling_controls_are_refused_in_one_line(
    command: list[object], run_recipe: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[object],
    named: str,
) -> None:  # fmt: skip
    assert run_recipe(*command, *flags) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and named in error[0] and not (tmp_path / "out").exists()


def test_denoising_steps_are_refused_in_one_line(
    command: list[object], run_recipe: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_recipe(*command, "--num-inference-steps", 8) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "no denoising steps; leave it out" in error[0]
    assert not (tmp_path / "out").exists()
