"""Does halving find as good a clip in less time, and does more reward keep meaning more to a judge held out?

    python benchmarks/best_of_n_strategies.py --output strategies.json --plot strategies.svg

For every backbone: the mean best reward of the full strategy and of halving from the same seeds, with the interval over
prompts, the paired difference, and the generator's seconds and network evaluations of both; then the reward of the kept
clip against N beside what the held-out judges say of the same clip. Held out are the listener of
attribute_classifier.py (how probable the prompted attributes sound) and any --held-out-reward. A stopped run continues.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from attribute_classifier import RELIABLE, SAMPLE_RATE, load_classifier
from kept import work_folder
from machine import describe_machine
from tqdm import tqdm

from alignment import load_backbone
from alignment.best_of_n import BestOfNConfig, best_of_n
from alignment.interfaces import Prompt
from alignment.runs import RunDirectory
from alignment.statistics import bootstrap_mean
from tunejury import convert_audio, load_audio, load_reward, save_audio
from tunejury.loading import KNOWN_REWARDS

PROMPTS = Path(__file__).parent / "prompts" / "gain.jsonl"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    backbones: tuple[str, ...] = ("compact-flow",)
    reward: str = "compact"
    held_out_reward: str | None = "compact-b" if "compact-b" in KNOWN_REWARDS else None
    prompts: Path = PROMPTS
    """Lines with prompt_id, prompt and the attributes that the listener is to hear."""
    num_prompts: int = 20
    """The first so many."""
    num_candidates: int = 32
    seeds: tuple[int, ...] = (0, 10_000, 20_000)
    """First seed of each repetition."""
    num_inference_steps: int | None = None
    duration: float | None = None
    batch_size: int = 8
    work_dir: Path | None = None
    """Where the runs are kept; runs/benchmarks/... if not given."""
    output: Path | None = None
    plot: Path | None = None
    """A figure of the curves, .svg or .png."""
    quick: bool = False
    """2 prompts, 4 candidates, one repetition, clips of 4 s."""


class Listener:
    """The independent listener as a judge: the mean probability it gives to the prompted attributes."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.attributes = {record["prompt"]: record["attributes"] for record in records}
        self.classifier = load_classifier()

    def __call__(self, wav: torch.Tensor, sample_rate: int, prompts: Sequence[str]) -> torch.Tensor:
        mono = convert_audio(wav.cpu(), sample_rate, SAMPLE_RATE, 1)[:, 0]
        heard = self.classifier.probability(mono, [self.attributes[prompt] for prompt in prompts])
        return torch.from_numpy(np.mean([heard[name] for name in RELIABLE], axis=0))


def best_rewards(summary: dict[str, Any]) -> np.ndarray:
    return np.array([entry["best"]["reward"] if entry["best"] else np.nan for entry in summary["prompts"]])


def compare(full: list[dict[str, Any]], halving: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over prompts of the mean over repetitions; the interval is over prompts."""
    values = {"full": np.stack([*map(best_rewards, full)]), "halving": np.stack([*map(best_rewards, halving)])}
    sound = np.isfinite(values["full"] + values["halving"]).all(axis=0)
    rows = {}
    for name, runs in (("full", full), ("halving", halving)):
        means = values[name][:, sound].mean(axis=0)
        low, high = bootstrap_mean(means)
        rows[name] = {
            "mean_best_reward": float(means.mean()),
            "ci": [float(low), float(high)],
            "seconds": sum(run["seconds"]["generate"] for run in runs),
            "nfe": sum(run["strategy"]["nfe"]["spent"] for run in runs),
        }
    difference = (values["halving"] - values["full"])[:, sound].mean(axis=0)
    low, high = bootstrap_mean(difference)
    drafts = [[draft["rank_correlation"] for draft in run["strategy"]["drafts"]] for run in halving]
    told = [[value for value in column if value is not None] for column in zip(*drafts, strict=True)]
    return {
        "strategies": rows,
        "difference": {"mean": float(difference.mean()), "ci": [float(low), float(high)]},
        "share_of_seconds": rows["halving"]["seconds"] / rows["full"]["seconds"],
        "share_of_nfe": rows["halving"]["nfe"] / rows["full"]["nfe"],
        "within_interval": bool(rows["halving"]["mean_best_reward"] >= rows["full"]["ci"][0]),
        "rank_correlation": [float(np.mean(column)) if column else None for column in told],
    }


def curves(full: list[dict[str, Any]]) -> dict[str, list[float]]:
    """By judge: the mean over repetitions, for n = 1 to N, of its value of the clip the reward keeps."""
    tables = {"reward": [list(run["mean_reward_at_n"].values()) for run in full]}
    for name in full[0]["side"]:
        tables[name] = [list(run["side"][name]["mean_at_n"].values()) for run in full]
    return {name: [float(value) for value in np.mean(table, axis=0)] for name, table in tables.items()}


def draw_curves(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    judges = list(next(iter(results.values()))["curves"])
    figure = Figure(figsize=(4 * len(judges), 3 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), len(judges), squeeze=False)
    for row, (backbone, result) in zip(grid, results.items(), strict=True):
        for axes, name in zip(row, judges, strict=True):
            curve = result["curves"][name]
            axes.plot(range(1, len(curve) + 1), curve, marker=".")
            axes.set(title=f"{Path(backbone).name}: {name.replace('_', ' ')}", xlabel="N, kept by the reward")
            axes.set_xscale("log", base=2)
            ticks = [2**power for power in range(len(curve).bit_length())]
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
    figure.savefig(path)


def main(config: Config) -> None:
    records = [json.loads(line) for line in config.prompts.read_text().splitlines()]
    if config.quick:
        config = replace(config, num_prompts=2, num_candidates=4, seeds=config.seeds[:1], duration=4.0)
    records = records[: config.num_prompts]
    prompts = [Prompt(record["prompt_id"], record["prompt"]) for record in records]
    judge = load_reward(config.reward)
    side: dict[str, Any] = {"listener": Listener(records)}
    if config.held_out_reward is not None:
        side["held_out_reward"] = load_reward(config.held_out_reward)
    results: dict[str, Any] = {}
    root = work_folder("best_of_n_strategies", config, config.work_dir)
    for name in config.backbones:
        backbone = load_backbone(name)
        warm = {"duration": config.duration, "num_inference_steps": config.num_inference_steps}
        backbone.generate([prompts[0].prompt], [0], **warm)  # type: ignore[arg-type]
        found: dict[str, list[dict[str, Any]]] = {"full": [], "halving": []}
        for seed in config.seeds:
            for strategy, runs in found.items():
                settings = BestOfNConfig(
                    num_candidates=config.num_candidates, seed=seed, batch_size=config.batch_size,
                    strategy=strategy, duration=config.duration, num_inference_steps=config.num_inference_steps,
                )  # type: ignore[arg-type]  # fmt: skip
                folder = root / Path(name).name / f"{strategy}-{seed}"
                made_by = {**asdict(settings), "backbone": name, "reward": config.reward, "side": sorted(side)}
                listed = [[prompt.prompt_id, prompt.prompt] for prompt in prompts]
                with (
                    RunDirectory(folder, "best_of_n", {**made_by, "prompts": listed}) as run,
                    tqdm(desc=f"{name}, {strategy}, seed {seed}", unit="clip") as bar,
                ):
                    drawn = best_of_n(
                        backbone, judge, prompts, settings, run, save_audio=save_audio, load_audio=load_audio,
                        side_rewards=side, progress=bar,
                    )  # fmt: skip
                runs.append(drawn.summary)
        results[name] = {**compare(found["full"], found["halving"]), "curves": curves(found["full"])}
        results[name]["highest_at"] = {told: int(np.argmax(c)) + 1 for told, c in results[name]["curves"].items()}
        results[name]["stages"] = found["halving"][0]["strategy"]["stages"]

    machine, n = describe_machine(), config.num_candidates
    print(f"{len(prompts)} prompts, N = {n}, {len(config.seeds)} repetitions, judge {config.reward}, on {machine}")
    print("| backbone | strategy | mean best reward | 95 % interval | generator seconds | network evaluations |")
    print("|---|---|---|---|---|---|")
    for name, result in results.items():
        for strategy, row in result["strategies"].items():
            low, high = row["ci"]
            print(f"| {name} | {strategy} | {row['mean_best_reward']:.3f} | {low:.3f} to {high:.3f} ", end="")
            print(f"| {row['seconds']:.1f} | {row['nfe']:.0f} |")
    for name, result in results.items():
        low, high = result["difference"]["ci"]
        inside = "inside" if result["within_interval"] else "below"
        print(f"{name}: halving minus full {result['difference']['mean']:+.3f} ({low:+.3f} to {high:+.3f}), ", end="")
        print(f"{inside} the interval of full, at {result['share_of_seconds']:.2f} of its seconds and ", end="")
        print(f"{result['share_of_nfe']:.2f} of its evaluations")
        told = ["none" if value is None else f"{value:.2f}" for value in result["rank_correlation"]]
        print(f"{name}: rank correlation of drafts with final clips, among those made: {', '.join(told)}")
        steps = [k for k in range(1, n + 1) if k == n or k & (k - 1) == 0]
        for judge_name, curve in result["curves"].items():
            points = ", ".join(f"{k}: {curve[k - 1]:.3f}" for k in steps)
            print(
                f"{name}: {judge_name} of the clip kept of n: {points}; highest at {result['highest_at'][judge_name]}"
            )
    if config.plot:
        draw_curves(results, config.plot)
    if config.output:
        record = {"machine": machine, "num_prompts": len(prompts), "num_candidates": n, "seeds": list(config.seeds)}
        record |= {"reward": config.reward, "held_out_reward": config.held_out_reward, "backbones": results}
        config.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
