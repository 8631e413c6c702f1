"""The best-of-N recipe from its command line: outputs, resuming after a kill, no network, and every bad input."""

from __future__ import annotations

import json
import os
import signal
import socket
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

from tunejury import load_audio, load_reward
from tunejury.scoring import score_files

ROOT = Path(__file__).parents[2]
Run = Callable[..., int]


@pytest.fixture
def models(backbone_directory: Path, judge_directory: Path) -> list[object]:
    return ["--backbone", backbone_directory, "--reward", judge_directory, "--device", "cpu"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt_id": "a", "prompt": "calm piano"}, {"prompt_id": "b/1", "prompt": 'fast <b>drums</b> & "noise"'}]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was touched")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def comparable(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in results_of(folder).items() if key != "seconds"}


def test_writes_everything_it_promises_without_a_network(
    run_recipe: Run, models: list[object], prompts: Path, tmp_path: Path, no_network: None, judge_directory: Path
) -> None:
    out = tmp_path / "out"
    assert run_recipe("best_of_n", "--prompts", prompts, "--num-candidates", 3, "--output-dir", out, *models) == 0
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {
        "config.json", "candidates.jsonl", "results.json", "report.html", "audio", "timing.json", "embeddings.jsonl",
    }  # fmt: skip
    results, config = results_of(out), json.loads((out / "config.json").read_text())
    assert config["settings"]["num_candidates"] == 3 and config["generation"]["duration"] == 0.5
    assert config["reward"]["licenses"] == load_reward(judge_directory).licenses()
    assert config["backbone"]["license"] == "apache-2.0" and config["protocol"]["name"] == "release"
    assert list(results["mean_reward_at_n"]) == ["1", "2", "3"] and results["failed"] == []
    # the files that were kept have the rewards in the results, for whoever scores them again
    kept = [(e["prompt"], e[role]) for e in results["prompts"] for role in ("first", "best")]
    again = score_files(load_reward(judge_directory), [out / c["path"] for _, c in kept], [p for p, _ in kept])
    assert again == pytest.approx([c["reward"] for _, c in kept], abs=1e-5)
    for _, clip in kept:
        info = soundfile.info(out / clip["path"])
        assert (info.subtype, info.samplerate, info.channels, info.frames) == ("PCM_24", 8_000, 1, 4_000)
    report = (out / "report.html").read_text()
    assert "fast &lt;b&gt;drums&lt;/b&gt; &amp;" in report and "<b>drums" not in report
    assert report.count("<audio") == sum(1 if e["first"] == e["best"] else 2 for e in results["prompts"])
    assert "http://" not in report.replace("http://www.w3.org", "") and "https://" not in report


def test_candidates_do_not_depend_on_the_batch_size(
    run_recipe: Run, models: list[object], prompts: Path, tmp_path: Path
) -> None:
    for size in (1, 4):
        arguments = ["--prompts", prompts, "--num-candidates", 3, "--keep", "all", "--batch-size", size]
        assert run_recipe("best_of_n", *arguments, "--output-dir", tmp_path / str(size), *models) == 0
    names = sorted(path.name for path in (tmp_path / "1" / "audio").iterdir())
    assert len(names) == 6
    for name in names:
        first, second = (load_audio(tmp_path / size / "audio" / name)[0] for size in ("1", "4"))
        assert (first - second).abs().max() <= 1e-4
    rewards = [[c["reward"] for e in results_of(tmp_path / size)["prompts"] for c in e["candidates"]] for size in "14"]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-3) and len(set(rewards[0])) == 6


def test_killed_and_run_again_gives_the_results_of_an_uninterrupted_run(
    run_recipe: Run, start_recipe: Any, models: list[object], prompts: Path, tmp_path: Path
) -> None:
    arguments = ["--prompts", prompts, "--num-candidates", 24, "--batch-size", 1, "--duration", 2, *models]
    process = start_recipe("best_of_n", [*arguments, "--output-dir", tmp_path / "killed"])
    records = tmp_path / "killed" / "candidates.jsonl"
    deadline = time.monotonic() + 120
    while not (records.exists() and records.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "results.json").exists()
    assert 3 <= records.read_bytes().count(b"\n") < 48

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the process that was killed: sums in another order differ in the last bit
    try:
        for folder in ("killed", "whole"):
            assert run_recipe("best_of_n", *arguments, "--output-dir", tmp_path / folder) == 0
    finally:
        torch.set_num_threads(threads)
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
    audio = [{p.name: p.read_bytes() for p in (tmp_path / f / "audio").iterdir()} for f in ("killed", "whole")]
    assert audio[0] == audio[1]


def test_a_finished_run_answers_without_loading_a_model(
    run_recipe: Run, models: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--prompt", "calm piano", "--num-candidates", 2, "--output-dir", tmp_path / "out", *models]
    assert run_recipe("best_of_n", *arguments) == 0
    first, before = capsys.readouterr().out, (tmp_path / "out" / "results.json").stat().st_mtime_ns
    assert run_recipe("best_of_n", *arguments) == 0
    assert capsys.readouterr().out == first and str(tmp_path / "out" / "report.html") in first
    assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == before


def test_other_settings_are_refused_until_overwritten(
    run_recipe: Run, models: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--prompt", "calm piano", "--output-dir", tmp_path / "out", *models]
    assert run_recipe("best_of_n", *arguments, "--num-candidates", 2) == 0
    capsys.readouterr()
    assert run_recipe("best_of_n", *arguments, "--num-candidates", 3) == 2
    assert "num_candidates was 2, now 3" in error_line(capsys)
    assert run_recipe("best_of_n", *arguments, "--num-candidates", 3, "--overwrite") == 0
    assert list(results_of(tmp_path / "out")["mean_reward_at_n"]) == ["1", "2", "3"]


def test_ranks_existing_audio_and_records_what_cannot_be_read(
    run_recipe: Run, judge_directory: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    soundfile.write(folder / "long.wav", 0.1 * rng.normal(size=48_000), 16_000)
    soundfile.write(folder / "rate.flac", 0.1 * rng.normal(size=(22_050, 2)), 44_100)
    soundfile.write(folder / "packed.ogg", 0.1 * rng.normal(size=16_000), 16_000, format="OGG")
    soundfile.write(folder / "mp.mp3", 0.1 * rng.normal(size=16_000), 16_000, format="MP3")
    soundfile.write(folder / "wide.wav", 0.1 * rng.normal(size=(19_200, 8)), 192_000)
    soundfile.write(folder / "one.wav", np.full(1, 0.5), 16_000)
    (folder / "text.wav").write_text("no audio at all")
    (folder / "empty.wav").touch()
    (folder / "cut.wav").write_bytes((folder / "long.wav").read_bytes()[:9_000])
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan, 0.1]), 16_000, subtype="FLOAT")
    arguments = ["--candidates", folder, "--prompt", "calm piano", "--reward", judge_directory]
    assert run_recipe("best_of_n", *arguments, "--output-dir", tmp_path / "out") == 0
    results = results_of(tmp_path / "out")
    failed = {Path(item["path"]).name: item["error"] for item in results["failed"]}
    assert set(failed) == {"text.wav", "empty.wav", "cut.wav", "nan.wav"}
    assert all(name in error and "\n" not in error for name, error in failed.items())
    ranked = {Path(c["path"]).name: c["reward"] for c in results["prompts"][0]["candidates"] if c["reward"] is not None}
    files = [folder / name for name in ranked]
    again = score_files(load_reward(judge_directory), files, ["calm piano"] * len(files))
    assert again == pytest.approx(list(ranked.values()), abs=1e-5)
    best = results["prompts"][0]["best"]
    assert best["reward"] == max(ranked.values()) and best["seed"] is None


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error: one line, and no traceback."""
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err and captured.out == ""
    return lines[0]


def bad_file(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


BAD_INPUT: list[tuple[str, Callable[[Path], list[object]], str]] = [
    ("missing prompt file", lambda d: ["--prompts", d / "none.txt"], "does not exist"),
    ("folder for a file", lambda d: ["--prompts", d], "is a folder"),
    ("empty prompt file", lambda d: ["--prompts", bad_file(d, "p.txt", "")], "is empty"),
    (
        "duplicate ids",
        lambda d: ["--prompts", bad_file(d, "p.csv", "prompt_id,prompt\na,x\na,y\n")],
        "p.csv:3: prompt_id 'a' already",
    ),
    ("bad json", lambda d: ["--prompts", bad_file(d, "p.jsonl", "{\n")], "p.jsonl:1: not JSON"),
    ("bad encoding", lambda d: ["--prompts", bad_file(d, "p.txt", b"caf\xe9\n")], "p.txt:1: not UTF-8"),
    ("empty prompt", lambda d: ["--prompt", ""], "--prompt"),
    ("both", lambda d: ["--prompt", "x", "--prompts", bad_file(d, "p.txt", "x")], "not both"),
    ("unknown backbone", lambda d: ["--backbone", "no-such-model"], "compact-flow"),
    ("unknown reward", lambda d: ["--reward", "no-such-judge"], "compact"),
    ("unknown protocol", lambda d: ["--protocol", "loud"], "release"),
    ("damaged backbone", lambda d: ["--backbone", d], "model_index.json"),
    ("unknown device", lambda d: ["--device", "gpu"], "unknown device"),
    ("unknown dtype", lambda d: ["--dtype", "int8"], "unknown dtype"),
    ("no candidates", lambda d: ["--num-candidates", 0], "num_candidates"),
    ("text for a number", lambda d: ["--num-candidates", "several"], "Error parsing --num-candidates"),
    ("a flag without a value", lambda d: ["--seed"], "Missing value for argument '--seed'"),
    ("unknown choice", lambda d: ["--keep", "none"], "invalid choice 'none'"),
    ("misspelled flag", lambda d: ["--num-candidate", 3], "--num-candidate"),
    ("a sampling control of token models", lambda d: ["--temperature", 0.9], "has no setting 'temperature'"),
    ("no batch", lambda d: ["--batch-size", 0], "batch_size"),
    ("negative seed", lambda d: ["--seed", -1], "seed is -1"),
    ("no duration", lambda d: ["--duration", 0], "duration"),
    ("too long", lambda d: ["--duration", 1000], "up to 4 s"),
    ("no steps", lambda d: ["--num-inference-steps", 0], "num_inference_steps"),
    ("output is a file", lambda d: ["--output-dir", bad_file(d, "f", "x")], "is a file"),
    ("output in a file", lambda d: ["--output-dir", bad_file(d, "f", "x") / "out"], "is a file"),
    ("output cannot be written", lambda d: ["--output-dir", "/proc/out"], "cannot be written"),
    ("missing folder of candidates", lambda d: ["--candidates", d / "none"], "is not a folder"),
    ("no audio", lambda d: ["--candidates", d, "--prompt", "x"], "holds no audio"),
    ("no prompt and no manifest", lambda d: ["--candidates", d], "no manifest"),
    (
        "nothing readable",
        lambda d: ["--candidates", bad_file(d, "text.wav", "no audio").parent, "--prompt", "x"],
        "text.wav",
    ),
]


@pytest.mark.parametrize(("arguments", "named"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT])
def test_bad_input_is_one_line_and_nothing_half_written(
    run_recipe: Run,
    models: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path], list[object]],
    named: str,
) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    given = arguments(folder)
    before = sorted(tmp_path.rglob("*"))
    if "--output-dir" not in given:
        given += ["--output-dir", tmp_path / "out"]
    # the last of two equal flags counts
    assert run_recipe("best_of_n", *models, *given) == 2
    assert named in error_line(capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_something_else_is_refused_and_left_alone(
    run_recipe: Run, models: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    arguments = ["--prompt", "calm", "--output-dir", tmp_path, *models]
    for flags in ([], ["--overwrite"]):
        assert run_recipe("best_of_n", *arguments, *flags) == 2
        assert "no run of ours" in error_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['best_of_n.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'recipes' / 'best_of_n.py')!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'soundfile', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--num-candidates" in done.stdout


def test_shipped_prompts_are_eight_different_ones() -> None:
    from alignment.prompts import load_prompts

    prompts = load_prompts(ROOT / "recipes" / "prompts" / "default.txt")
    assert len({prompt.prompt for prompt in prompts}) == 8
