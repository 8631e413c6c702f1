"""What does optimising the initial latents gain, is it real, and does it beat drawing more clips for the same compute?

    python benchmarks/ditto_gain.py --output gain.json --plot gain.svg

Three parts, all with prompts that neither the backbone nor the judge was trained on:
1. DITTO with its defaults from several seeds: gain of the reward beside its spread between seeds, the share of clips
   that improve, and what judges say that were not optimised: the held-out one, which chooses the iterate, and the
   listener of attribute_classifier.py, which has no say. Intervals are over prompts.
2. Over-optimisation: from the first seed, more steps at a constant rate and nothing that stops them; where the held-out
   judges turn, and whether the defaults ended before.
3. Equal compute: best-of-N from the same first seed with as many denoiser evaluations as DITTO, a backward pass counted
   as two (the recomputing that saves memory is not counted; the seconds have it).
A stopped run continues. With a --work-dir of their own, processes may share the work: one with --seeds 0 and one with
--seeds 10000 20000 --long-steps 0 --compute-prompts 0; the whole command afterwards puts together what they made.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from ditto_parts import LISTENER, Bench, checks, defaults, equal_compute, overoptimization
from kept import work_folder
from machine import describe_machine

from alignment.ditto import DittoConfig
from alignment.interfaces import Prompt

PROMPTS = Path(__file__).parent / "prompts" / "gain.jsonl"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    backbone: str = "compact-flow"
    reward: str = "compact"
    held_out_reward: str = "compact-b"
    """A judge, or listener."""
    prompts: Path = PROMPTS
    """Lines with prompt_id, prompt and the attributes that the listener is to hear."""
    num_prompts: int = 16
    """The first so many."""
    seeds: tuple[int, ...] = (0, 10_000, 20_000)
    num_optimization_steps: int = DittoConfig.num_optimization_steps
    learning_rate: float = DittoConfig.learning_rate
    regularization: float = DittoConfig.regularization
    long_steps: int = 40
    """Of part 2; 0 leaves it out."""
    long_prompts: int = 8
    """Prompts of part 2, the first so many."""
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


def draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = results["overoptimization"]["curves"] if "overoptimization" in results else {}
    for name, curve in curves.items():
        axes = left.twinx() if name == LISTENER else left  # a probability, not a reward
        axes.plot(curve["mean"], label=name.replace("_", "-"), color="tab:green" if name == LISTENER else None)
        if name == LISTENER:
            axes.set_ylabel("listener", color="tab:green")
        else:
            axes.fill_between(range(len(curve["mean"])), *zip(*curve["ci"], strict=True), alpha=0.15)
    if curves:
        ended = results["overoptimization"]["defaults_reward_gain"]
        left.axhline(ended, color="grey", linestyle=":", label="reward where the defaults ended")
    left.set(xlabel="optimisation step, constant rate", ylabel="mean gain")
    for name in ("ditto", "best_of_n") if "equal_compute" in results else ():
        curve = results["equal_compute"][name]
        for judge, style in (("reward", "-"), ("held_out", "--")):
            label = f"{name.replace('_', '-')}, {judge.replace('_', '-')}"
            right.plot(curve["evaluations"], curve[judge], style, label=label)
    right.set(xlabel="denoiser evaluations per prompt, backward as two", ylabel="mean of the clip kept", xscale="log")
    for axes in (left, right):
        if axes.has_data():
            axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.savefig(path)


def tell(config: Config, settings: DittoConfig, results: dict[str, Any], num_prompts: int, machine: str) -> None:
    part = results["defaults"]
    about = (
        f"{num_prompts} unseen prompts, {len(config.seeds)} seeds, {config.backbone} towards {config.reward}, held out"
    )
    about += f" {config.held_out_reward}; {settings.num_optimization_steps} steps at {settings.learning_rate:g}"
    print(f"{about}; {machine}")
    print("| judge | baseline | optimised | gain | 95 % interval | clips that rose | by seed |")
    print("|---|---|---|---|---|---|---|")
    for name, row in part["judges"].items():
        seeds = ", ".join(f"{value:+.3f}" for value in row["by_seed"])
        told = f"{name}, no say" if name == LISTENER else name
        print(f"| {told} | {row['baseline']:.3f} | {row['optimized']:.3f} | {row['gain']:+.3f} ", end="")
        print(f"| {row['ci'][0]:+.3f} to {row['ci'][1]:+.3f} | {100 * row['share_improved']:.0f} % | {seeds} |")
    spreads = "unknown" if part["gain_in_spreads"] is None else f"{part['gain_in_spreads']:.2f}"
    print(f"gain in standard deviations between seeds of a prompt: {spreads} ({part['seed_spread']})")
    print(f"kept: step {part['best_step']:.1f} on average; {part['num_stopped']} of {part['num_clips']} ", end="")
    print("stopped early; ", end="")
    print(f"{part['seconds'] / part['num_clips']:.1f} seconds a clip")
    if "overoptimization" in results:
        row = results["overoptimization"]
        for name, turn in row["turns"].items():
            print(f"{name}: highest at step {turn['step']} of {row['steps']}, {turn['gain']:+.3f}, where the ", end="")
            print(f"reward has gained {turn['reward_gain']:+.3f}; {turn['end']:+.3f} in the end")
        own = row["own_turn"]
        print(f"held_out, each clip's own highest: step {own['step']:.1f} on average, {own['gain']:+.3f}, ", end="")
        print(f"where the reward has gained {own['reward_gain']:+.3f}")
        print(f"the defaults ended at {row['defaults_reward_gain']:+.3f} of the reward")
    if "equal_compute" in results:
        row = results["equal_compute"]
        mean, (low, high) = row["ditto_minus_best_of_n"]["mean"], row["ditto_minus_best_of_n"]["ci"]
        print(f"{row['ditto']['evaluations'][-1]:.0f} evaluations, {row['num_prompts']} prompts: ", end="")
        print(f"DITTO minus best of {row['num_candidates']}: {mean:+.3f} ({low:+.3f} to {high:+.3f})")
    for name, holds in results["checks"].items():
        print(f"{'yes' if holds else 'NO':>4}  {name}")


def main(config: Config) -> None:
    records = [json.loads(line) for line in config.prompts.read_text().splitlines()]
    if config.quick:
        most = {"num_optimization_steps": 3, "num_prompts": 2, "long_steps": 4, "long_prompts": 1, "compute_prompts": 1}
        small = {name: min(getattr(config, name), limit) for name, limit in most.items()}
        config = replace(config, seeds=config.seeds[:2], duration=4.0, num_inference_steps=4, **small)
    records = records[: config.num_prompts]
    prompts = [Prompt(record["prompt_id"], record["prompt"]) for record in records]
    shared = ("num_optimization_steps", "learning_rate", "regularization", "duration", "num_inference_steps")
    settings = DittoConfig(**{name: getattr(config, name) for name in (*shared, "batch_size")})
    root = work_folder("ditto_gain", config, config.work_dir)
    bench = Bench(config.backbone, config.reward, config.held_out_reward, config.seeds, root, records)
    results: dict[str, Any] = {"defaults": defaults(bench, settings, prompts)}
    first = results["defaults"].pop("first_run")
    if config.long_steps:
        results["overoptimization"] = overoptimization(
            bench, settings, prompts[: config.long_prompts], config.long_steps, first
        )
    if config.compute_prompts:
        results["equal_compute"] = equal_compute(bench, settings, prompts[: config.compute_prompts], first)
    results["checks"] = checks(results)

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
