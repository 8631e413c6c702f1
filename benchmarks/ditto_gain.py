"""What does optimising the initial latents gain, is it real, and does it beat drawing more clips for the same compute?

    python benchmarks/ditto_gain.py --output gain.json --plot gain.svg

Three parts, all with prompts that neither the backbone nor the judge was trained on:
1. DITTO with its defaults from several seeds: gain of the reward beside its spread between seeds, the share of clips
   that improve, and what judges say that were not optimised: the held-out one, which chooses the iterate, and the
   listener of attribute_classifier.py, which has no say. Intervals are over prompts.
2. Over-optimisation: from the first seed, more steps at a constant rate and nothing that stops them; where the held-out
   judges turn, and where the defaults ended.
3. Equal compute: best-of-N from the same first seed with as many denoiser evaluations as DITTO, a backward pass counted
   as two (the recomputing that saves memory is not counted; the seconds have it).
A stopped run continues.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from best_of_n_strategies import Listener
from kept import work_folder
from machine import describe_machine
from tqdm import tqdm

from alignment import load_backbone
from alignment.best_of_n import BestOfNConfig, best_of_n
from alignment.ditto import DittoConfig, evaluations
from alignment.ditto_driver import ditto
from alignment.interfaces import Prompt
from alignment.runs import RunDirectory
from alignment.statistics import bootstrap_mean, within_prompt_deviation
from alignment.strategies import network_evaluations
from alignment.trajectory import Trajectory
from tunejury import load_audio, load_reward, save_audio
from tunejury.loading import KNOWN_REWARDS

PROMPTS = Path(__file__).parent / "prompts" / "gain.jsonl"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    backbone: str = "compact-flow"
    reward: str = "compact"
    held_out_reward: str = "compact-b" if "compact-b" in KNOWN_REWARDS else "listener"
    """A judge, or listener."""
    prompts: Path = PROMPTS
    """Lines with prompt_id, prompt and the attributes that the listener is to hear."""
    seeds: tuple[int, ...] = (0, 10_000, 20_000)
    num_optimization_steps: int = DittoConfig.num_optimization_steps
    learning_rate: float = DittoConfig.learning_rate
    regularization: float = DittoConfig.regularization
    long_steps: int = 60
    """Of part 2; 0 leaves it out."""
    compute_prompts: int = 8
    """Prompts of part 3, the first so many; 0 leaves it out."""
    duration: float | None = None
    num_inference_steps: int | None = None
    batch_size: int = 1
    work_dir: Path | None = None
    """Where the runs are kept; runs/benchmarks/... if not given."""
    output: Path | None = None
    plot: Path | None = None
    """A figure of parts 2 and 3, .svg or .png."""
    quick: bool = False
    """2 prompts, 2 seeds, clips of 4 s, 4 denoising steps, few optimisation steps."""


class Bench:
    """Loaded models, and how a run of each kind is made and kept."""

    def __init__(self, config: Config, root: Path, records: list[dict[str, Any]]) -> None:
        self.config, self.root = config, root
        self.backbone, self.judge = load_backbone(config.backbone), load_reward(config.reward)
        listener, named = Listener(records), config.held_out_reward
        self.held_out: Any = listener if named == "listener" else load_reward(named)
        self.side: dict[str, Any] = {} if named == "listener" else {"listener": listener}

    def _run(self, recipe: str, name: str, settings: dict[str, Any], prompts: Sequence[Prompt]) -> RunDirectory:
        made_by = {"backbone": self.config.backbone, "reward": self.config.reward, **settings}
        made_by |= {"held_out": self.config.held_out_reward, "prompts": [[p.prompt_id, p.prompt] for p in prompts]}
        return RunDirectory(self.root / name, recipe, made_by)

    def ditto(self, name: str, settings: DittoConfig, prompts: Sequence[Prompt]) -> dict[str, Any]:
        with self._run("ditto", name, asdict(settings), prompts) as run, tqdm(desc=name, unit="clip") as bar:
            return ditto(
                self.backbone, self.judge, prompts, settings, run, save_audio=save_audio, load_audio=load_audio,
                held_out=self.held_out, side_rewards=self.side, progress=bar,
            )  # fmt: skip

    def best_of_n(self, name: str, settings: BestOfNConfig, prompts: Sequence[Prompt]) -> dict[str, Any]:
        side = {**self.side, "held_out_reward": self.held_out}
        with self._run("best_of_n", name, asdict(settings), prompts) as run, tqdm(desc=name, unit="clip") as bar:
            return best_of_n(
                self.backbone, self.judge, prompts, settings, run, save_audio=save_audio, load_audio=load_audio,
                side_rewards=side, progress=bar,
            ).summary  # fmt: skip


def gains(runs: Sequence[dict[str, Any]], before: str, after: str) -> dict[str, Any]:
    """Mean over seeds of each prompt's gain, its interval over prompts, and the share of clips that rose."""
    table = np.array([[[e[before], e[after]] for e in run["prompts"]] for run in runs], dtype=np.float64)
    rises = table[..., 1] - table[..., 0]  # [seeds, prompts]; NaN of a clip that failed
    per_prompt = np.nanmean(rises, axis=0)
    low, high = bootstrap_mean(per_prompt[np.isfinite(per_prompt)])
    sound = rises[np.isfinite(rises)]
    return {
        "baseline": float(np.nanmean(table[..., 0])),
        "optimized": float(np.nanmean(table[..., 1])),
        "gain": float(sound.mean()),
        "ci": [float(low), float(high)],
        "share_improved": float((sound > 0).mean()),
        "by_seed": [float(value) for value in np.nanmean(rises, axis=1)],
        "num_failed": int((~np.isfinite(rises)).sum()),
    }


def defaults(bench: Bench, settings: DittoConfig, prompts: Sequence[Prompt]) -> dict[str, Any]:
    runs = [bench.ditto(f"seed-{seed}", replace(settings, seed=seed), prompts) for seed in bench.config.seeds]
    baselines = [[run["prompts"][i]["baseline_reward"] for run in runs] for i in range(len(prompts))]
    spread = within_prompt_deviation([[math.nan if value is None else value for value in row] for row in baselines])
    rows = {
        "reward": gains(runs, "baseline_reward", "optimized_reward"),
        "held_out": gains(runs, "held_out_baseline", "held_out_optimized"),
    }
    rest = {name: [run["side"][name]["gain"] for run in runs] for name in bench.side}
    return {
        "judges": rows,
        "beside": {name: {"gain": float(np.mean([g["mean"] for g in by]))} for name, by in rest.items()},
        "seed_spread": spread,
        "gain_in_spreads": rows["reward"]["gain"] / spread if spread else None,
        "best_step": float(np.mean([entry["best_step"] for run in runs for entry in run["prompts"]])),
        "num_stopped": sum(run["num_stopped"] for run in runs),
        "num_clips": len(runs) * len(prompts),
        "drift": float(np.mean([run["drift"]["mean"] for run in runs])),
        "seconds": sum(run["seconds"]["total"] for run in runs),
        "first_run": runs[0],
    }


def overoptimization(bench: Bench, settings: DittoConfig, prompts: Sequence[Prompt], steps: int) -> dict[str, Any]:
    long = replace(settings, num_optimization_steps=steps, schedule="constant", patience=steps + 1)
    run = bench.ditto("long", replace(long, seed=bench.config.seeds[0]), prompts)
    held_out = run["held_out_gain_by_step"]["mean"]
    return {
        "reward": run["gain_by_step"],
        "held_out": run["held_out_gain_by_step"],
        "turns_at": int(np.argmax(held_out)),
        "rises_to": max(held_out),
        "ends_at": held_out[-1],
    }


def equal_compute(
    bench: Bench, settings: DittoConfig, prompts: Sequence[Prompt], optimized: dict[str, Any]
) -> dict[str, Any]:
    """Mean reward and held-out reward against denoiser evaluations per prompt, of both ways."""
    backbone = bench.backbone
    render = network_evaluations(
        backbone, backbone.resolve(settings.duration, settings.num_inference_steps, settings.guidance_scale)
    )
    entries = [e for e in optimized["prompts"] if e["prompt_id"] in {p.prompt_id for p in prompts} and e["rewards"]]
    kept = np.array([_kept(e, settings.num_optimization_steps + 1) for e in entries])  # [P, steps, judges]
    costs = [evaluations(backbone, settings, k + 1) for k in range(kept.shape[1])]
    count = max(2, math.ceil(costs[-1] / render))
    drawing = BestOfNConfig(
        num_candidates=count, seed=bench.config.seeds[0], batch_size=8, duration=settings.duration,
        num_inference_steps=settings.num_inference_steps,
    )  # fmt: skip
    drawn = bench.best_of_n("best-of-n", drawing, prompts)
    paired = {e["prompt_id"]: e["best"]["reward"] for e in drawn["prompts"] if e["best"]}
    differences = [e["optimized_reward"] - paired[e["prompt_id"]] for e in entries if e["prompt_id"] in paired]
    low, high = bootstrap_mean(differences)
    mean = kept.mean(axis=0)
    return {
        "num_prompts": len(entries),
        "ditto": {"evaluations": costs, "reward": mean[:, 0].tolist(), "held_out": mean[:, 1].tolist()},
        "best_of_n": {
            "evaluations": [n * render for n in range(1, count + 1)],
            "reward": list(drawn["mean_reward_at_n"].values()),
            "held_out": list(drawn["side"]["held_out_reward"]["mean_at_n"].values()),
        },
        "num_candidates": count,
        "ditto_minus_best_of_n": {"mean": float(np.mean(differences)), "ci": [float(low), float(high)]},
        "seed_spread": drawn["reward_std_within_prompt"],
        "seconds": {"best_of_n": drawn["seconds"]["total"]},
    }


def _kept(entry: dict[str, Any], steps: int) -> list[list[float]]:
    """What both judges say of the iterate that would be kept, were the trajectory ended at each step."""
    path, rows = Trajectory(torch.zeros(())), []
    for reward, held_out in zip(entry["rewards"], entry["held_out_rewards"], strict=True):
        path.visit(torch.zeros(()), reward, held_out)
        rows.append([path.rewards[path.best_step], path.held_out[path.best_step]])
    return rows + [rows[-1]] * (steps - len(rows))


def draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("reward", "held_out") if "overoptimization" in results else ():
        curve = results["overoptimization"][name]
        left.plot(curve["mean"], label=name.replace("_", "-"))
        left.fill_between(range(len(curve["mean"])), *zip(*curve["ci"], strict=True), alpha=0.15)
    left.axvline(
        results["defaults"]["best_step"], color="grey", linestyle=":", label="kept by the defaults, on average"
    )
    left.set(xlabel="optimisation step, constant rate", ylabel="mean gain")
    for name in ("ditto", "best_of_n") if "equal_compute" in results else ():
        curve = results["equal_compute"][name]
        for judge, style in (("reward", "-"), ("held_out", "--")):
            label = f"{name.replace('_', '-')}, {judge.replace('_', '-')}"
            right.plot(curve["evaluations"], curve[judge], style, label=label)
    right.set(xlabel="denoiser evaluations per prompt, backward as two", ylabel="mean of the clip kept", xscale="log")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def tell(config: Config, settings: DittoConfig, results: dict[str, Any], num_prompts: int, machine: str) -> None:
    part = results["defaults"]
    print(
        f"{num_prompts} unseen prompts, {len(config.seeds)} seeds, {config.backbone} towards {config.reward}, ", end=""
    )
    print(
        f"held out {config.held_out_reward}; {config.num_optimization_steps} steps at {config.learning_rate}; ", end=""
    )
    print(machine)
    print("| judge | baseline | optimised | gain | 95 % interval | clips that rose | by seed |")
    print("|---|---|---|---|---|---|---|")
    for name, row in part["judges"].items():
        seeds = ", ".join(f"{value:+.3f}" for value in row["by_seed"])
        print(f"| {name} | {row['baseline']:.3f} | {row['optimized']:.3f} | {row['gain']:+.3f} ", end="")
        print(f"| {row['ci'][0]:+.3f} to {row['ci'][1]:+.3f} | {100 * row['share_improved']:.0f} % | {seeds} |")
    for name, row in part["beside"].items():
        print(f"{name}, which has no say: {row['gain']:+.4f}")
    spreads = "unknown" if part["gain_in_spreads"] is None else f"{part['gain_in_spreads']:.2f}"
    print(f"gain in standard deviations between seeds of a prompt: {spreads} ({part['seed_spread']})")
    print(f"kept: step {part['best_step']:.1f} on average; {part['num_stopped']} of {part['num_clips']} stopped early")
    if "overoptimization" in results:
        row = results["overoptimization"]
        print(
            f"over-optimisation: held-out is highest at step {row['turns_at']} of {config.long_steps}, ",
            end="",
        )
        print(f"{row['rises_to']:+.3f}, and at {row['ends_at']:+.3f} in the end")
    if "equal_compute" in results:
        row = results["equal_compute"]
        mean, (low, high) = row["ditto_minus_best_of_n"]["mean"], row["ditto_minus_best_of_n"]["ci"]
        print(f"{row['ditto']['evaluations'][-1]:.0f} evaluations, {row['num_prompts']} prompts: ", end="")
        print(f"DITTO minus best of {row['num_candidates']}: {mean:+.3f} ({low:+.3f} to {high:+.3f})")


def main(config: Config) -> None:
    records = [json.loads(line) for line in config.prompts.read_text().splitlines()]
    if config.quick:
        small = {"num_optimization_steps": 3, "long_steps": 4, "compute_prompts": 1, "duration": 4.0}
        config = replace(config, seeds=config.seeds[:2], num_inference_steps=4, **small)  # type: ignore[arg-type]
        records = records[:2]
    prompts = [Prompt(record["prompt_id"], record["prompt"]) for record in records]
    shared = (
        "num_optimization_steps",
        "learning_rate",
        "regularization",
        "duration",
        "num_inference_steps",
        "batch_size",
    )
    settings = DittoConfig(**{name: getattr(config, name) for name in shared})
    bench = Bench(config, work_folder("ditto_gain", config, config.work_dir), records)
    results: dict[str, Any] = {"defaults": defaults(bench, settings, prompts)}
    optimized = results["defaults"].pop("first_run")
    if config.long_steps:
        results["overoptimization"] = overoptimization(bench, settings, prompts, config.long_steps)
    if config.compute_prompts:
        results["equal_compute"] = equal_compute(bench, settings, prompts[: config.compute_prompts], optimized)

    machine = describe_machine()
    tell(config, settings, results, len(prompts), machine)
    if config.plot:
        draw(results, config.plot)
    if config.output:
        record = {"machine": machine, "backbone": config.backbone, "reward": config.reward, **results}
        record |= {"held_out_reward": config.held_out_reward, "seeds": list(config.seeds), "settings": asdict(settings)}
        config.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
