"""A large folder scored by `tunejury score`: killed twice, scored again from the cache, shared by two processes.

python benchmarks/scoring_resume.py --output scoring_resume.json

2,000 short clips of noise are made in a temporary folder. The judge has the released one's parts with random weights,
at a tenth of its size (`--judge full` for all of it, `--judge compact` for the shipped one, whose hearing is so cheap
that reading files becomes a part of the time). Seconds are those of scoring, after the judge was loaded.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from machine import describe_machine
from random_judge import write_random_judge

from tunejury import load_reward, save_audio
from tunejury.command_score import write_scores
from tunejury.embedding_cache import EmbeddingCache
from tunejury.scoring import find_items

SPEED_UP = 20.0
RATE = 16_000
COMMAND = [sys.executable, "-c", "import sys; from tunejury.cli import main; sys.exit(main())", "score"]


@dataclass(frozen=True)
class Config:
    """What to run."""

    num_clips: int = 2000
    duration: float = 3.0
    judge: Literal["compact", "tiny", "reduced", "full"] = "reduced"
    batch_size: int = 16
    processes: int = 2
    output: Path | None = None
    quick: bool = False
    """60 clips and the tiny judge."""


def make_clips(folder: Path, count: int, duration: float) -> None:
    """Noise of five lengths about `duration`, a different one in each file."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        samples = round(duration * RATE * (0.8 + 0.1 * (i % 5)))
        save_audio(folder / f"{i:05}.wav", 0.1 * torch.randn(1, samples, generator=generator), RATE)


def journalled(folder: Path) -> int:
    """Results that an unfinished run has on disk."""
    journals = folder.glob(".*.partial")
    return sum(max(0, len(journal.read_bytes().splitlines()) - 1) for journal in journals)


def run_killed(command: list[str], folder: Path, until: int, environment: dict[str, str]) -> int:
    """Start a run, kill its process once `until` results are on disk; returns how many there were."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while journalled(folder) < until:
        if process.poll() is not None:
            raise SystemExit(f"the run ended (code {process.returncode}) before it could be killed: use more clips")
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return journalled(folder)


def free_port() -> str:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def rewards(table: Path) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """Rows without their rewards, and the rewards [N]."""
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    return rows, torch.tensor([row.pop("reward") for row in rows], dtype=torch.float64)


def measure(config: Config, folder: Path) -> list[dict[str, Any]]:
    """All three, each a row."""
    make_clips(folder / "clips", config.num_clips, config.duration)
    judge = "compact" if config.judge == "compact" else str(write_random_judge(folder / "judge", config.judge))
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    options = ["--reward", judge, "--batch-size", str(config.batch_size), "--prompt", "a piano"]
    command = [*COMMAND, str(folder / "clips"), *options, "--device", "cpu", "--output"]

    subprocess.run([*command, str(folder / "whole.jsonl")], check=True, env=environment, stderr=subprocess.DEVNULL)
    kills = [
        run_killed([*command, str(folder / "killed.jsonl")], folder, part * config.num_clips // 3, environment)
        for part in (1, 2)
    ]
    subprocess.run([*command, str(folder / "killed.jsonl")], check=True, env=environment, stderr=subprocess.DEVNULL)
    same = (folder / "whole.jsonl").read_bytes() == (folder / "killed.jsonl").read_bytes()
    rows = [{
        "what": f"killed at {kills[0]} and {kills[1]} of {config.num_clips}", "passed": same,
        "detail": f"{'the same' if same else 'OTHER'} bytes as the undisturbed run",
    }]  # fmt: skip

    model = load_reward(judge, device="cpu")
    items, seconds = find_items([folder / "clips"], "a piano"), {}
    for name, cached in (("plain", False), ("filling", True), ("cached", True)):
        cache = EmbeddingCache(folder / "cache", model) if cached else None
        started = time.perf_counter()
        write_scores(model, items, folder / f"{name}.jsonl", config.batch_size, False, cache)
        seconds[name] = time.perf_counter() - started
    (listed, plain), (listed_too, cached_rewards) = rewards(folder / "plain.jsonl"), rewards(folder / "cached.jsonl")
    difference, ratio = float((plain - cached_rewards).abs().max()), seconds["plain"] / seconds["cached"]
    rows.append({
        "what": f"second run with the cache, {seconds['plain']:.2f} s to {seconds['cached']:.2f} s",
        "passed": ratio >= SPEED_UP and difference <= 1e-5 and listed == listed_too,
        "detail": f"{ratio:.0f} times faster (at least {SPEED_UP:g}), largest difference {difference:.1e}; "
        f"filling the cache took {seconds['filling']:.2f} s",
    })  # fmt: skip

    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(config.processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port(),
        "-m", "tunejury.score_collection", str(folder / "clips"), *options, "--output", str(folder / "shared.jsonl"),
    ]  # fmt: skip
    done = subprocess.run(launch, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    (one, first), (two, second) = rewards(folder / "whole.jsonl"), rewards(folder / "shared.jsonl")
    difference = float((first - second).abs().max())
    rows.append({
        "what": f"{config.processes} processes beside one", "passed": one == two and difference <= 1e-5,
        "detail": f"the same rows, largest difference {difference:.1e} (they compute with fewer threads each)",
    })  # fmt: skip
    return rows


def main(config: Config) -> None:
    if config.quick:
        config = Config(60, 1.0, "tiny", 4, config.processes, config.output, True)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(config, Path(folder))
    machine = describe_machine()
    print(f"{config.num_clips} clips of about {config.duration:g} s, judge {config.judge}, on {machine}")
    print("| run | result | |")
    print("|---|---|---|")
    for row in rows:
        print(f"| {row['what']} | {'pass' if row['passed'] else 'FAIL'} | {row['detail']} |")
    if config.output:
        result = {"machine": machine, "config": {**asdict(config), "output": None}, "rows": rows}
        config.output.write_text(json.dumps(result, indent=1) + "\n")
    if not all(row["passed"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
