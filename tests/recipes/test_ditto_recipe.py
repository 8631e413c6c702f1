"""The DITTO recipe from its command line: outputs, resuming after a kill, sums of rewards, and every bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tunejury import load_reward
from tunejury.scoring import score_files

ROOT = Path(__file__).parents[2]
Run = Callable[..., int]
ONE = ["--prompt", "calm piano", "--num-optimization-steps", 1]


@pytest.fixture
def models(backbone_directory: Path, judge_directory: Path) -> list[object]:
    return ["--backbone", backbone_directory, "--reward", judge_directory, "--device", "cpu"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt_id": "a", "prompt": "calm piano"}, {"prompt_id": "b/1", "prompt": 'fast <b>drums</b> & "noise"'}]
    file.write_text("\n".join(map(json.dumps, [*rows, {"prompt_id": "c", "prompt": "a b c d"}])))
    return file


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def comparable(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in results_of(folder).items() if key not in ("seconds", "peak_memory_bytes")}


def test_writes_everything_it_promises(
    run_recipe: Run, models: list[object], prompts: Path, tmp_path: Path, judge_directory: Path
) -> None:
    out = tmp_path / "out"
    flags = ["--num-optimization-steps", 3, "--held-out-reward", judge_directory]
    assert run_recipe("ditto", "--prompts", prompts, *flags, "--batch-size", 2, "--output-dir", out, *models) == 0
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {
        "config.json", "candidates.jsonl", "results.json", "report.html", "audio", "timing.json", "embeddings.jsonl",
        "trajectories.jsonl",
    }  # fmt: skip
    results, config = results_of(out), json.loads((out / "config.json").read_text())
    assert config["settings"]["num_optimization_steps"] == 3 and config["reward"]["licenses"]
    assert config["generation"] == config["render"] and config["generation"]["num_inference_steps"] == 2
    assert results["num_prompts"] == 3 and results["failed"] == [] and results["peak_memory_bytes"] > 1_000_000
    entries = results["prompts"]
    assert [entry["prompt_id"] for entry in entries] == ["a", "b/1", "c"]
    for key in ("reward", "path"):
        assert all(f"{kind}_{key}" in entry for kind in ("baseline", "optimized") for entry in entries)
    # the rewards are those of the files, for whoever scores them again
    judge = load_reward(judge_directory)
    for kind in ("baseline", "optimized"):
        files = [out / entry[f"{kind}_path"] for entry in entries]
        again = score_files(judge, files, [entry["prompt"] for entry in entries])
        assert again == pytest.approx([entry[f"{kind}_reward"] for entry in entries], abs=1e-5)
        assert results[f"{kind}_reward_mean"] == pytest.approx(np.mean(again), abs=1e-5)
        assert results[f"held_out_{kind}_mean"] == results[f"{kind}_reward_mean"]  # the same judge twice
        match = np.subtract(again, score_files(judge, files, [""] * 3)).mean()
        assert results["side"]["prompt_match"][f"{kind}_mean"] == pytest.approx(match, abs=1e-5)
        info = soundfile.info(files[0])
        assert (info.subtype, info.samplerate, info.channels, info.frames) == ("PCM_24", 8_000, 1, 4_000)
    rises = [entry["optimized_reward"] > entry["baseline_reward"] for entry in entries]
    assert results["improved"] == results["held_out_improved"] == sum(rises) == 3
    for entry in entries:
        assert len(entry["rewards"]) == 4 and entry["seed"] == 0
        # kept by the held-out judge, which is the same; the file is what was judged on the way
        assert entry["rewards"][entry["best_step"]] == max(entry["rewards"])
        assert entry["optimized_reward"] == pytest.approx(max(entry["rewards"]), abs=1e-3)
        assert entry["drift"] > 1e-4 and entry["latent_shift"] > 0
    report = (out / "report.html").read_text()
    assert report.count("<audio") == 6 and report.count("<polyline") == 6
    assert "fast &lt;b&gt;drums&lt;/b&gt; &amp;" in report and "<b>drums" not in report
    assert "held-out reward</text>" in report or "held-out reward" in report
    assert "http://" not in report.replace("http://www.w3.org", "") and "https://" not in report
    lines = [json.loads(line) for line in (out / "candidates.jsonl").read_text().splitlines()]
    assert [(line["prompt_id"], line["candidate"]) for line in lines[:3]] == [("a", 0), ("a", 1), ("b/1", 0)]


def test_prompts_do_not_depend_on_the_batch_and_the_baseline_is_best_of_ns_first(
    run_recipe: Run, models: list[object], prompts: Path, tmp_path: Path
) -> None:
    found = []
    for size in (1, 3):
        flags = ["--prompts", prompts, "--num-optimization-steps", 2, "--batch-size", size]
        assert run_recipe("ditto", *flags, "--output-dir", tmp_path / str(size), *models) == 0
        found.append(
            [(e["baseline_reward"], e["optimized_reward"]) for e in results_of(tmp_path / str(size))["prompts"]]
        )
    assert np.array(found[0]) == pytest.approx(np.array(found[1]), abs=2e-3)
    drawn = ["--prompts", prompts, "--num-candidates", 1, "--output-dir", tmp_path / "drawn"]
    assert run_recipe("best_of_n", *drawn, *models) == 0
    firsts = [entry["first"]["reward"] for entry in results_of(tmp_path / "drawn")["prompts"]]
    assert firsts == pytest.approx([baseline for baseline, _ in found[0]], abs=1e-4)


def test_learning_rate_zero_writes_the_same_file_twice(run_recipe: Run, models: list[object], tmp_path: Path) -> None:
    flags = ["--learning-rate", 0, "--render-steps", 4, "--output-dir", tmp_path / "out"]
    assert run_recipe("ditto", *ONE, *flags, *models) == 0
    first, second = sorted((tmp_path / "out" / "audio").iterdir())
    assert first.read_bytes() == second.read_bytes()
    results = results_of(tmp_path / "out")
    assert results["improved"] == 0 and results["gain"]["mean"] == 0 and results["prompts"][0]["best_step"] == 0
    assert (results["generation"]["num_inference_steps"], results["render"]["num_inference_steps"]) == (2, 4)
    # the reward in the results is that of the file, not of the shorter render
    assert results["prompts"][0]["rewards"][0] != pytest.approx(results["baseline_reward_mean"], abs=1e-3)


def test_killed_and_run_again_gives_the_results_of_an_uninterrupted_run(
    run_recipe: Run, start_recipe: Any, models: list[object], tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"calm piano {letter}" for letter in "abcdef"))
    arguments = ["--prompts", tmp_path / "p.txt", "--num-optimization-steps", 3, *models]
    process = start_recipe("ditto", [*arguments, "--output-dir", tmp_path / "killed"])
    records = tmp_path / "killed" / "candidates.jsonl"
    deadline = time.monotonic() + 240
    while not (records.exists() and records.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "results.json").exists()
    done = records.read_bytes().count(b"\n")
    assert 2 <= done < 12
    first = [json.loads(line) for line in records.read_text().splitlines()[:2]]
    files = [tmp_path / "killed" / record["path"] for record in first]
    stamps = [file.stat().st_mtime_ns for file in files]
    # as if killed between optimising and judging: this prompt is optimised again, and counts once
    last = json.loads((tmp_path / "killed" / "config.json").read_text())["settings"]["prompts"][-1][0]
    with open(tmp_path / "killed" / "trajectories.jsonl", "a") as file:
        file.write(json.dumps({"prompt_id": last, "rewards": [9.0], "best_step": 0, "peak_memory_bytes": 1}) + "\n")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the process that was killed: sums in another order differ in the last bit
    try:
        for folder in ("killed", "whole"):
            assert run_recipe("ditto", *arguments, "--output-dir", tmp_path / folder) == 0
    finally:
        torch.set_num_threads(threads)
    assert [file.stat().st_mtime_ns for file in files] == stamps  # what was done is not done again
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
    audio = [{p.name: p.read_bytes() for p in (tmp_path / f / "audio").iterdir()} for f in ("killed", "whole")]
    assert audio[0] == audio[1] and len(audio[0]) == 12


def test_a_sum_of_rewards_and_controls(
    run_recipe: Run, backbone_directory: Path, judge_directory: Path, tmp_path: Path
) -> None:
    tune = tmp_path / "tune.wav"
    soundfile.write(tune, 0.3 * np.sin(2 * np.pi * 262 * np.arange(16_000) / 16_000), 16_000)
    rewards = [str(judge_directory), f"intensity={tune}:0.5", f"melody={tune}:2"]
    flags = [flag for reward in rewards for flag in ("--reward", reward)]
    out = tmp_path / "out"
    assert run_recipe("ditto", *ONE, *flags, "--backbone", backbone_directory, "--output-dir", out) == 0
    results = results_of(out)
    parts = [results["side"][name]["optimized_mean"] for name in (rewards[0], f"intensity={tune}", f"melody={tune}")]
    assert results["optimized_reward_mean"] == pytest.approx(parts[0] + 0.5 * parts[1] + 2 * parts[2], abs=1e-5)
    assert results["reward"]["name"] == " + ".join(rewards) and results["improved"] == 1


def test_a_finished_run_answers_without_loading_a_model_and_others_are_refused(
    run_recipe: Run, models: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ONE, "--output-dir", tmp_path / "out", *models]
    assert run_recipe("ditto", *arguments) == 0
    first, before = capsys.readouterr().out, (tmp_path / "out" / "results.json").stat().st_mtime_ns
    assert re.search(r"mean reward: .* improved: 1 of 1", first)
    assert run_recipe("ditto", *arguments) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == before
    assert run_recipe("ditto", *arguments, "--learning-rate", 0.2) == 2
    assert "learning_rate was 0.05, now 0.2" in capsys.readouterr().err
    assert run_recipe("ditto", *arguments, "--learning-rate", 0, "--overwrite") == 0
    assert results_of(tmp_path / "out")["improved"] == 0
    assert len((tmp_path / "out" / "trajectories.jsonl").read_text().splitlines()) == 1


BAD_INPUT: list[tuple[str, list[object], str]] = [
    ("steps", ["--num-optimization-steps", -1], "num_optimization_steps is -1"),
    ("rate", ["--learning-rate", "nan"], "learning_rate is nan"),
    ("text for a number", ["--num-optimization-steps", "many"], "--num-optimization-steps"),
    ("unknown choice", ["--schedule", "linear"], "invalid choice 'linear'"),
    ("no adapter", ["--adapter", "/none"], "has no adapter_config.json"),
    ("reward twice", ["--reward", "compact", "--reward", "compact:2"], "is given twice"),
    ("unknown reward", ["--reward", "no-such-judge"], "no-such-judge"),
    ("missing reference", ["--reward", "melody=/none.wav"], "/none.wav"),
    ("unknown held-out", ["--held-out-reward", "no-such-judge"], "no-such-judge"),
    ("unknown backbone", ["--backbone", "no-such-model"], "compact-flow"),
    ("too long", ["--duration", 1000], "up to 4 s"),
    ("device", ["--device", "gpu"], "unknown device"),
    ("prompts", ["--prompts", "/none.txt"], "does not exist"),
]


@pytest.mark.parametrize(("arguments", "named"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT])
def test_bad_input_is_one_line_and_nothing_half_written(
    run_recipe: Run,
    models: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    named: str,
) -> None:
    assert run_recipe("ditto", *models, *arguments, "--output-dir", tmp_path / "out") == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and named in lines[0] and "Traceback" not in captured.err and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_a_model_without_latents_is_told_of_those_that_have_some(
    run_recipe: Run,
    musicgen_directory: Path,
    judge_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = ["--backbone", musicgen_directory, "--reward", judge_directory]
    assert run_recipe("ditto", *ONE, *models, "--output-dir", tmp_path / "out") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "no initial latents" in error[0]
    assert "compact-flow" in error[0] and "StableAudioPipeline" in error[0] and "compact-musicgen" not in error[0]
    assert not (tmp_path / "out").exists()


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['ditto.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'recipes' / 'ditto.py')!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'soundfile', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--num-optimization-steps" in done.stdout and "--render-steps" in done.stdout
