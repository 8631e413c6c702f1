"""Best-of-N shared by two launched processes: the outputs of one, also when one of them was killed on the way."""

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
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a launched process computes: sums in another order differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def options(backbone_directory: Path, judge_directory: Path, tmp_path: Path) -> list[object]:
    file = tmp_path / "prompts.txt"
    file.write_text("calm piano\nfast drums\ncalm drums\n")
    return ["--prompts", file, "--backbone", backbone_directory, "--reward", judge_directory, "--device", "cpu"]


def launch(arguments: list[object]) -> subprocess.Popen[str]:
    # --multi_gpu is what starts several processes at all; --device cpu among the arguments keeps them on the CPU
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no",
        str(ROOT / "recipes" / "best_of_n.py"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], env=environment, **pipes)


def outputs(folder: Path) -> dict[str, Any]:
    """Everything but the clocks; the report has them too."""
    results = json.loads((folder / "results.json").read_text())
    del results["seconds"]
    texts = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    audio = {path.name: path.read_bytes() for path in (folder / "audio").iterdir()}
    return {"results": results, **texts, **audio}


def process_of_rank(rank: int, launcher: int) -> int:
    """The launcher's child that is the process of this rank."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != launcher:
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == launcher and f"RANK={rank}".encode() in environment:
                return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the process to kill")
def test_two_processes_one_of_them_killed_end_as_one(
    run_recipe: Callable[..., int], options: list[object], tmp_path: Path, one_thread: None
) -> None:
    options += ["--num-candidates", 15, "--batch-size", 2, "--duration", 2]
    shared = ["--output-dir", tmp_path / "shared", *options]
    process = launch(shared)
    own = tmp_path / "shared" / ".candidates.jsonl.1"
    deadline = time.monotonic() + 600
    while not (own.exists() and own.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
    process.communicate()
    assert process.returncode != 0 and not (tmp_path / "shared" / "results.json").exists()

    resumed = launch(shared)
    said = resumed.communicate()[0]
    assert resumed.returncode == 0, said
    assert said.count("mean reward:") == 1  # the main process speaks for both
    assert run_recipe("best_of_n", "--output-dir", tmp_path / "alone", *options) == 0
    assert outputs(tmp_path / "shared") == outputs(tmp_path / "alone")
    hidden = {path.name for path in (tmp_path / "shared").glob(".*")}
    assert hidden == {".lock"}


def test_two_processes_share_the_drafts_too(
    run_recipe: Callable[..., int], options: list[object], judge_directory: Path, tmp_path: Path, one_thread: None
) -> None:
    options += ["--num-candidates", 5, "--batch-size", 2, "--strategy", "halving", "--num-inference-steps", 8]
    options += ["--held-out-reward", judge_directory]
    if not torch.accelerator.is_available():  # then they find the CPU by themselves
        place = options.index("--device")
        del options[place : place + 2]
    process = launch(["--output-dir", tmp_path / "shared", *options])
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert run_recipe("best_of_n", "--output-dir", tmp_path / "alone", *options) == 0
    assert outputs(tmp_path / "shared") == outputs(tmp_path / "alone")
