"""Expert iteration from its command line: outputs, the adapter in other recipes, several processes and a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
Run = Callable[..., int]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a launched process computes: sums in another order differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def options(backbone_directory: Path, judge_directory: Path, tmp_path: Path) -> list[object]:
    (tmp_path / "train.txt").write_text("calm piano\nfast drums\ncalm drums\n")
    (tmp_path / "held.txt").write_text("piano a\ndrums b\n")
    return [
        "--prompts", tmp_path / "train.txt", "--held-out-prompts", tmp_path / "held.txt", "--device", "cpu",
        "--backbone", backbone_directory, "--reward", judge_directory, "--held-out-reward", judge_directory,
        "--num-rounds", 1, "--num-candidates", 4, "--keep-fraction", 0.4, "--num-evaluation-seeds", 2,
        "--num-steps", 8, "--train-batch-size", 4, "--checkpoint-every", 2, "--rank", 2, "--batch-size", 2,
        "--max-held-out-drop", 99, "--max-match-drop", 99, "--max-drift", 99, "--min-diversity", 0,
    ]  # fmt: skip


def launch(arguments: list[object]) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no",
        str(ROOT / "recipes" / "expert_iteration.py"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], env=environment, **pipes)


def children(launcher: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == launcher:
                found.append(int(entry.name))
    return found


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def experts_of(folder: Path) -> list[tuple[str, int]]:
    records = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    return [(record["prompt_id"], record["candidate"]) for record in records if record["expert"]]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the process to kill")
def test_two_processes_killed_while_learning_end_as_one(
    run_recipe: Run, options: list[object], tmp_path: Path, one_thread: None
) -> None:
    shared = ["--output-dir", tmp_path / "shared", *options, "--num-steps", 40]
    process = launch(shared)
    state = tmp_path / "shared" / "training" / "round-1-0.safetensors"
    deadline = time.monotonic() + 900
    while not state.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    process.communicate()
    assert process.returncode != 0 and not (tmp_path / "shared" / "results.json").exists()
    resumed = launch(shared)
    said = resumed.communicate()[0]
    assert resumed.returncode == 0, said
    assert said.count("selected: round") == 1  # the main process speaks for both
    assert run_recipe("expert_iteration", "--output-dir", tmp_path / "alone", *options, "--num-steps", 40) == 0

    assert experts_of(tmp_path / "shared") == experts_of(tmp_path / "alone")
    both = [results_of(tmp_path / name) for name in ("shared", "alone")]
    assert both[0]["base"] == both[1]["base"]
    adapters = [
        load_file(tmp_path / n / both[0]["rounds"][0]["adapter"] / "adapter_model.safetensors")
        for n in ("shared", "alone")
    ]
    for name, tensor in adapters[0].items():
        assert torch.allclose(tensor, adapters[1][name], atol=1e-4), name
    assert both[0]["rounds"][0]["reward_mean"] == pytest.approx(both[1]["rounds"][0]["reward_mean"], abs=1e-2)
    assert {path.name for path in (tmp_path / "shared").glob(".*")} == {".lock"}


def test_its_adapter_serves_best_of_n_and_its_merged_checkpoint_too(
    run_recipe: Run, options: list[object], tmp_path: Path, judge_directory: Path, backbone_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    reference = tmp_path / "music"
    reference.mkdir()
    for k in range(3):
        soundfile.write(reference / f"{k}.wav", torch.randn(8000).mul(0.1).numpy(), 8000)
    options += ["--reference-audio", reference, "--max-reference-rise", 99, "--merge", "--learning-rates", 1e-3, 1e-2]
    out = tmp_path / "out"
    assert run_recipe("expert_iteration", "--output-dir", out, *options) == 0
    first = capsys.readouterr().out
    results = results_of(out)
    assert len(results["trials"]) == 2 and set(results["base"]["side"]) == {"prompt_match", "held_out_reward"}
    assert results["base"]["reference_distance"] > 0 and results["rounds"][0]["reference_distance"] > 0
    assert results["rounds"][0]["held_out_mean"] == pytest.approx(results["rounds"][0]["reward_mean"], abs=1e-4)
    assert "held-out judge" in first and str(out / "report.html") in first
    # finished: answered from the results; other settings are refused
    before = (out / "results.json").stat().st_mtime_ns
    assert run_recipe("expert_iteration", "--output-dir", out, *options) == 0
    assert capsys.readouterr().out == first and (out / "results.json").stat().st_mtime_ns == before
    assert run_recipe("expert_iteration", "--output-dir", out, *options, "--num-steps", 9) == 2
    assert "num_steps was 8, now 9" in capsys.readouterr().err

    adapter = out / results["trials"][0]["adapter"]
    shared = ["--prompt", "piano a", "--reward", judge_directory, "--device", "cpu"]
    own = [*shared, "--num-candidates", 2, "--keep", "all"]
    places = {"base": [], "adapted": ["--adapter", adapter]}
    sounds = {}
    for name, extra in places.items():
        folder = tmp_path / name
        assert run_recipe("best_of_n", "--backbone", backbone_directory, "--output-dir", folder, *own, *extra) == 0
        sounds[name] = soundfile.read(folder / "audio" / "000_01.wav")[0]
    assert abs(sounds["base"] - sounds["adapted"]).max() > 1e-3
    # DITTO begins where best-of-N's first candidate is
    moving = [*shared, "--num-optimization-steps", 1, *places["adapted"]]
    assert run_recipe("ditto", "--backbone", backbone_directory, "--output-dir", tmp_path / "d", *moving) == 0
    drawn, moved = (json.loads((tmp_path / n / "results.json").read_text())["prompts"][0] for n in ("adapted", "d"))
    assert moved["baseline_reward"] == pytest.approx(drawn["first"]["reward"], abs=1e-3)
    for recipe in ("best_of_n", "ditto"):
        assert run_recipe(recipe, *shared, "--adapter", tmp_path, "--output-dir", tmp_path / "x") == 2
        assert "has no adapter_config.json" in capsys.readouterr().err and not (tmp_path / "x").exists()
    assert (out / "merged").exists() == (results["selected_adapter"] is not None)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--keep-fraction", "0.01"], "too few candidates: keep_fraction 0.01 of 3 prompts x 4 candidates keeps none"),
        (["--num-candidates", "None", "--keep-fraction", "0.01"], "of 3 prompts x 7 candidates keeps none"),
        (["--keep-per-prompt", "5"], "keep_per_prompt is 5, but there are 4 candidates per prompt"),
        (["--keep-fraction", "0"], "keep_fraction is 0"),
        (["--held-out-prompts", "train.txt"], "3 held-out prompts are trained on too"),
        (["--reference-audio", "bad"], "text.wav"),
        (["--reference-audio", "none"], "is not a folder"),
        (["--report-to", "wandb"], "--report-to wandb needs the package wandb"),
        (["--learning-rates", "0"], "learning_rates are [0.0]"),
        (["--learning-rates", "1e-4", "fast"], "'fast'"),
        (["--num-steps", "-3"], "num_steps is -3; expected at least 1"),
        (["--rank", "0"], "lora rank is 0; expected at least 1"),
        (["--mixed-precision", "fp8"], "invalid choice 'fp8' for argument '--mixed-precision'"),
        (["--warmup-steps", "some"], "--warmup-steps"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    run_recipe: Run, options: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if "wandb" in arguments and __import__("importlib.util").util.find_spec("wandb"):
        pytest.skip("wandb is here")
    (tmp_path / "bad").mkdir()
    soundfile.write(tmp_path / "bad" / "a.wav", torch.randn(8000).mul(0.1).numpy(), 8000)
    (tmp_path / "bad" / "text.wav").write_text("no audio")
    assert run_recipe("expert_iteration", *options, *arguments, "--output-dir", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and not (tmp_path / "out").exists()
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and named in lines[0] and "│" not in said


def test_of_the_shipped_prompts_a_denoiser_learns_from_48(
    run_recipe: Run, options: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untold = [*options[2:], "--num-candidates", "None", "--keep-fraction", 0.001, "--output-dir", tmp_path / "out"]
    assert run_recipe("expert_iteration", *untold) == 2
    assert "of 48 prompts x 7 candidates keeps none" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['expert_iteration.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'recipes' / 'expert_iteration.py')!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'peft', 'accelerate', 'soundfile', 'matplotlib'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--learning-rates" in done.stdout and "--keep-fraction" in done.stdout
