"""Does expert iteration help on prompts it never trained on, and what does it cost? The recipe as a user runs it.

    python benchmarks/expert_iteration_gain.py --output expert_iteration.json
    python benchmarks/expert_iteration_gain.py --scaling --output expert_iteration_scaling.json

Prints each round beside the base: the reward's rise with its interval over prompts, in standard deviations of the base
over seeds, the share of held-out prompts that improve, the held-out judge and the side metrics; then what was asked for
and whether it holds. --scaling times the drawing of candidates by one and by two processes of one thread each instead.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from kept import work_folder
from machine import describe_machine

from alignment import load_backbone

RECIPE = Path(__file__).parents[1] / "recipes" / "expert_iteration.py"
QUICK = ("--num-candidates", "2", "--num-evaluation-seeds", "2", "--num-steps", "5", "--keep-fraction", "0.5")
QUICK_DIFFUSION, QUICK_TOKENS = ("--num-inference-steps", "4"), ("--duration", "2")
QUICK_PROMPTS = 4  # of either kind; an expert of each


@dataclass(frozen=True)
class Config:
    """What to measure."""

    backbone: str = "compact-flow"
    reward: str = "compact"
    held_out_reward: str | None = "compact-b"
    num_rounds: int = 3
    seed: int = 0
    num_processes: int = 0
    """Launched ones, of a thread each; 0: a single one of all threads."""
    more: str = ""
    """Further flags of the recipe, such as --more="--learning-rates 1e-4 5e-4"."""
    work_dir: Path | None = None
    """Where the run stays, and is continued; runs/benchmarks/... if not given."""
    scaling: bool = False
    """One and two processes drawing candidates, instead of the gain."""
    output: Path | None = None
    quick: bool = False
    """1 round, 4 prompts of 2 candidates, 4 denoising steps or clips of 2 s, 5 training steps."""


def run_recipe(config: Config, folder: Path, *flags: str, num_processes: int = 0) -> float:
    """Run the recipe into a folder; returns seconds. With `num_processes` launched, of one thread each."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(RECIPE)]
    environment = dict(os.environ)
    if num_processes:
        environment["OMP_NUM_THREADS"] = "1"
    if num_processes > 1:
        launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)]
        launcher += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no"]
        command = [sys.executable, *launcher, "--dynamo_backend", "no", str(RECIPE)]
    command += ["--backbone", config.backbone, "--reward", config.reward, "--seed", str(config.seed)]
    command += ["--num-rounds", str(1 if config.quick else config.num_rounds), "--output-dir", str(folder)]
    if config.held_out_reward:
        command += ["--held-out-reward", config.held_out_reward]
    if config.quick:
        for kind, flag in (("training", "--prompts"), ("held_out", "--held-out-prompts")):
            file = folder.with_name(f"{folder.name}-{kind}.txt")
            lines = (RECIPE.parent / "prompts" / f"{kind}.txt").read_text().splitlines()[:QUICK_PROMPTS]
            file.write_text("\n".join(lines) + "\n")
            command += [flag, str(file)]
        writes_tokens = load_backbone(config.backbone, device="cpu").defaults.num_inference_steps is None
        command += [*QUICK, *(QUICK_TOKENS if writes_tokens else QUICK_DIFFUSION)]
    started = time.perf_counter()
    done = subprocess.run([*command, *shlex.split(config.more), *flags], env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the recipe ended with code {done.returncode}; the same command goes on where it stopped")
    return time.perf_counter() - started


def checks(results: dict[str, Any], seconds: float) -> dict[str, bool | None]:
    """What was asked for of three rounds; None where it was not measured."""
    base, rounds = results["base"], [row for row in results["rounds"] if row.get("reward_mean") is not None]
    means = [base["reward_mean"], *(row["reward_mean"] for row in rounds)]
    selected = next((row for row in rounds if row["round"] == results["selected_round"]), None)
    held = None if selected is None else selected["held_out_delta"]
    return {
        "the mean reward rises in the first round": len(means) > 1 and means[1] > means[0],
        "and again in the second": len(means) > 2 and means[2] > means[1],
        "in all by 0.5 standard deviations over seeds": bool(
            selected and selected["reward_delta_in_deviations"] >= 0.5
        ),
        "its interval is above zero": bool(selected and selected["reward_delta_ci"][0] > 0),
        "at least 70 % of held-out prompts improve": bool(selected and selected["improved_fraction"] >= 0.7),
        "held-out judge not below the base": None if held is None else held >= 0,
        "under 45 minutes": seconds < 45 * 60,
    }


def gain(config: Config, folder: Path) -> dict[str, Any]:
    wall = run_recipe(config, folder, num_processes=config.num_processes)
    results = json.loads((folder / "results.json").read_text())
    base = results["base"]
    print(f"base: reward {base['reward_mean']:.3f}, {base['reward_deviation']:.3f} between seeds of a prompt")
    names = [name for name in base["side"] if name != "held_out_reward"]
    header = ["round", "learning rate", "reward", "difference", "95 % interval", "in deviations", "improved", "95 %"]
    header += ["held-out judge", "95 % interval", *names, "diversity", "drift", "times the base's own", "beyond budget"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in results["trials"]:
        if row.get("reward_mean") is None:
            print(f"| {row['round']} | {row['learning_rate']:g} |" + " |" * (len(header) - 3), *row["broken"], "|")
            continue
        held = ["-", "-"]
        if row["held_out_delta"] is not None:
            held = [f"{row['held_out_delta']:+.3f}", _interval(row["held_out_delta_ci"])]
        ratio = "-" if row["drift_ratio"] is None else f"{row['drift_ratio']:.2f}"
        low, high = row["improved_fraction_ci"]
        cells = [str(row["round"]), f"{row['learning_rate']:g}", f"{row['reward_mean']:.3f}"]
        cells += [f"{row['reward_delta']:+.3f}", _interval(row["reward_delta_ci"])]
        cells += [f"{row['reward_delta_in_deviations']:.2f}", f"{row['improved']} of {row['num_prompts']}"]
        cells += [f"{low:.2f} to {high:.2f}", *held, *(f"{row['side'][name]['delta']:+.3f}" for name in names)]
        cells += [f"{row['diversity']:.3f}", f"{row['drift']:.4f}", ratio, "; ".join(row["broken"])]
        print("| " + " | ".join(cells) + " |")
    print(f"base: diversity {base['diversity']:.3f}; selected: round {results['selected_round']}")
    print(f"stopped: {results['stopped_because']}")
    # the recipe's seconds are of all its processes, and of all sessions where a run was continued
    seconds = max(wall, results["seconds"]["total"] / max(1, config.num_processes))
    spent = {name: round(each) for name, each in results["seconds"].items()}
    print(f"{seconds / 60:.1f} minutes; seconds over all processes", spent)
    held_to = checks(results, seconds)
    for name, holds in held_to.items():
        print(f"{'not measured' if holds is None else 'yes' if holds else 'NO':>12}  {name}")
    kept = (
        "base",
        "rounds",
        "trials",
        "pareto",
        "selected_round",
        "stopped_because",
        "seconds",
        "settings",
        "learning",
    )
    return {**{name: results[name] for name in kept}, "wall_seconds": seconds, "checks": held_to}


def scaling(config: Config, folder: Path) -> dict[str, Any]:
    """Seconds from the end of the base's evaluation to the last candidate, which is drawing and judging them."""
    drawing = {}
    for count in (1, 2):
        run = folder / f"{count}-processes"
        run_recipe(config, run, "--num-rounds", "1", "--num-steps", "1", num_processes=count)
        ends = [(run / f"round-{name}.jsonl").stat().st_mtime for name in ("0-embeddings", "1-candidates")]
        drawing[count] = ends[1] - ends[0]
    speedup = drawing[1] / drawing[2]
    print(f"candidates: {drawing[1]:.1f} s by one process, {drawing[2]:.1f} s by two: {speedup:.2f} times as fast")
    return {"seconds": drawing, "speedup": speedup}


def _interval(values: list[float]) -> str:
    return f"{values[0]:+.3f} to {values[1]:+.3f}"


def main(config: Config) -> None:
    machine = describe_machine()
    print(f"{config.backbone} learning from {config.reward} on {machine}")
    folder = work_folder("expert_iteration_gain", config, config.work_dir) / "run"
    measured = scaling(config, folder) if config.scaling else gain(config, folder)
    if config.output:
        about = {"backbone": config.backbone, "reward": config.reward, "machine": machine, "quick": config.quick}
        config.output.write_text(json.dumps({**about, **measured}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
