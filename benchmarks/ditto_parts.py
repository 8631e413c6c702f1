"""The three measurements of ditto_gain.py, each from runs that stay in a folder of their own."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from best_of_n_strategies import Listener
from tqdm import tqdm

from alignment import load_backbone
from alignment.best_of_n import BestOfNConfig, best_of_n
from alignment.ditto import DittoConfig, evaluations
from alignment.ditto_driver import ditto
from alignment.interfaces import Prompt, Reward
from alignment.runs import RECORDS, RunDirectory
from alignment.statistics import bootstrap_mean, within_prompt_deviation
from alignment.strategies import network_evaluations
from alignment.trajectory import Trajectory
from tunejury import load_audio, load_reward, save_audio

LISTENER = "listener"
REWARDS = ("baseline_reward", "optimized_reward")


class Overheard:
    """A held-out judge, beside whom another notes what it thinks of every iterate: a line of a file for each clip.

    The line is written once the clip has all its iterates, so that one that was cut off is noted anew. What is heard of
    a clip after that (its files, when they are judged) is not noted.
    """

    def __init__(self, judge: Reward, other: Reward, num_iterates: int, file: Path) -> None:
        self.judge, self.other, self.num_iterates, self.file = judge, other, num_iterates, file
        self.heard: dict[str, list[float]] = {}

    def __call__(self, wav: torch.Tensor, sample_rate: int, prompts: Sequence[str]) -> torch.Tensor:
        for prompt, value in zip(prompts, self.other(wav, sample_rate, prompts).tolist(), strict=True):
            values = self.heard.setdefault(prompt, [])
            values.append(value)
            if len(values) == self.num_iterates:
                with self.file.open("a") as lines:
                    lines.write(json.dumps({"prompt": prompt, "values": values}) + "\n")
        return self.judge(wav, sample_rate, prompts)

    def gains(self) -> dict[str, Any] | None:
        """Mean gain over the first iterate at each step, with its interval over the clips that went all the way."""
        if not self.file.exists():
            return None
        rows = {row["prompt"]: row["values"] for row in map(json.loads, self.file.read_text().splitlines())}
        table = np.array([np.subtract(values, values[0]) for values in rows.values()])
        low, high = bootstrap_mean(table)
        ci = np.stack([low, high], axis=1).tolist()
        return {"mean": table.mean(axis=0).tolist(), "ci": ci, "num_prompts": len(table)}


class Bench:
    """Loaded models, and how a run of each kind is made and kept.

    Args:
        backbone, reward: names.
        held_out: a judge's name, or listener.
        seeds: of the repetitions; the first is that of the other parts.
        root: folder of the runs.
        records: prompts with the attributes that the listener is to hear.
    """

    def __init__(
        self,
        backbone: str,
        reward: str,
        held_out: str,
        seeds: Sequence[int],
        root: Path,
        records: list[dict[str, Any]],
    ) -> None:
        self.root, self.seeds = root, seeds
        self.names = {"backbone": backbone, "reward": reward, "held_out": held_out}
        self.backbone, self.judge = load_backbone(backbone), load_reward(reward)
        self.listener = Listener(records)
        self.held_out: Any = self.listener if held_out == LISTENER else load_reward(held_out)
        self.side: dict[str, Any] = {} if held_out == LISTENER else {LISTENER: self.listener}

    def _run(self, recipe: str, name: str, settings: dict[str, Any], prompts: Sequence[Prompt]) -> RunDirectory:
        listed = [[prompt.prompt_id, prompt.prompt] for prompt in prompts]
        return RunDirectory(self.root / name, recipe, {**self.names, **settings, "prompts": listed})

    def ditto(
        self, name: str, settings: DittoConfig, prompts: Sequence[Prompt], held_out: Reward | None = None
    ) -> dict[str, Any]:
        """results.json of a run, its prompts with what the judges beside say of both clips: NAME_baseline and so on."""
        with self._run("ditto", name, asdict(settings), prompts) as run, tqdm(desc=name, unit="clip") as bar:
            summary = ditto(
                self.backbone, self.judge, prompts, settings, run, save_audio=save_audio, load_audio=load_audio,
                held_out=held_out or self.held_out, side_rewards=self.side, progress=bar,
            )  # fmt: skip
        entries = {entry["prompt_id"]: entry for entry in summary["prompts"]}
        for line in (self.root / name / RECORDS).read_text().splitlines():
            record = json.loads(line)
            kind = ("baseline", "optimized")[record["candidate"]]
            side = record.get("side") or {}
            entries[record["prompt_id"]] |= {f"{judge}_{kind}": side.get(judge) for judge in self.side}
        return summary

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
    """Part 1. `first_run` is the whole of the first seed's results, for the other parts."""
    runs = [bench.ditto(f"seed-{seed}", replace(settings, seed=seed), prompts) for seed in bench.seeds]
    baselines = [[run["prompts"][i]["baseline_reward"] for run in runs] for i in range(len(prompts))]
    spread = within_prompt_deviation([[math.nan if value is None else value for value in row] for row in baselines])
    rows = {
        "reward": gains(runs, *REWARDS),
        "held_out": gains(runs, "held_out_baseline", "held_out_optimized"),
        **{name: gains(runs, f"{name}_baseline", f"{name}_optimized") for name in bench.side},
    }
    return {
        "judges": rows,
        "seed_spread": spread,
        "gain_in_spreads": rows["reward"]["gain"] / spread if spread else None,
        "best_step": float(np.mean([entry["best_step"] for run in runs for entry in run["prompts"]])),
        "num_stopped": sum(run["num_stopped"] for run in runs),
        "num_clips": len(runs) * len(prompts),
        "drift": float(np.mean([run["drift"]["mean"] for run in runs])),
        "seconds": sum(run["seconds"]["total"] for run in runs),
        "first_run": runs[0],
    }


def overoptimization(
    bench: Bench, settings: DittoConfig, prompts: Sequence[Prompt], steps: int, first_run: dict[str, Any]
) -> dict[str, Any]:
    """Part 2. A judge turns where it is highest: the mean over clips, and each clip by itself. The defaults stop a clip
    by its own curve, so their gain of the reward is compared with that at the clips' own turns: the reward's, as the
    steps of two schedules are not alike.
    """
    long = replace(settings, num_optimization_steps=steps, schedule="constant", patience=steps + 1)
    noting = Overheard(bench.held_out, bench.listener, steps + 1, bench.root / "long-listener.jsonl")
    run = bench.ditto("long", replace(long, seed=bench.seeds[0]), prompts, noting)
    curves = {"reward": run["gain_by_step"], "held_out": run["held_out_gain_by_step"]}
    heard = noting.gains()
    if bench.side and heard:
        curves[LISTENER] = heard
    turns = {}
    for name, curve in curves.items():
        step = int(np.argmax(curve["mean"]))
        reward = curves["reward"]["mean"][step]
        turns[name] = {"step": step, "gain": curve["mean"][step], "end": curve["mean"][-1], "reward_gain": reward}
    same = {prompt.prompt_id for prompt in prompts}
    ended = gains([{"prompts": [e for e in first_run["prompts"] if e["prompt_id"] in same]}], *REWARDS)["gain"]
    own = []
    for entry in run["prompts"]:
        step = int(np.argmax(entry["held_out_rewards"]))
        reward, held_out = (entry[name][step] - entry[name][0] for name in ("rewards", "held_out_rewards"))
        own.append({"step": step, "reward_gain": reward, "gain": held_out})
    own_turn = {name: float(np.mean([each[name] for each in own])) for name in own[0]}
    return {
        "curves": curves,
        "turns": turns,
        "own_turn": own_turn,
        "steps": steps,
        "defaults_reward_gain": ended,
        "defaults_end_before": bool(ended <= own_turn["reward_gain"]),
        "seconds": run["seconds"]["total"],
    }


def equal_compute(
    bench: Bench, settings: DittoConfig, prompts: Sequence[Prompt], optimized: dict[str, Any]
) -> dict[str, Any]:
    """Part 3: mean reward and held-out reward against denoiser evaluations per prompt, of both ways."""
    backbone = bench.backbone
    render = network_evaluations(
        backbone, backbone.resolve(settings.duration, settings.num_inference_steps, settings.guidance_scale)
    )
    entries = [e for e in optimized["prompts"] if e["prompt_id"] in {p.prompt_id for p in prompts} and e["rewards"]]
    kept = np.array([_kept(e, settings.num_optimization_steps + 1) for e in entries])  # [P, steps, judges]
    costs = [evaluations(backbone, settings, k + 1) for k in range(kept.shape[1])]
    count = max(2, math.ceil(costs[-1] / render))
    drawing = BestOfNConfig(
        num_candidates=count, seed=bench.seeds[0], batch_size=8, duration=settings.duration,
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


def checks(results: dict[str, Any]) -> dict[str, bool]:
    """What is asked of the defaults, and whether it holds."""
    part = results["defaults"]
    reward, held_out = part["judges"]["reward"], part["judges"]["held_out"]
    found = {
        "the reward rises by a standard deviation between seeds": (part["gain_in_spreads"] or 0.0) >= 1,
        "its interval is above zero": reward["ci"][0] > 0,
        "at least 95 % of clips improve": reward["share_improved"] >= 0.95,
        "the held-out judge rises on average": held_out["gain"] > 0,
        "and on at least 70 % of clips": held_out["share_improved"] >= 0.7,
    }
    if "overoptimization" in results:
        end_before = results["overoptimization"]["defaults_end_before"]
        found["the defaults end before a clip's held-out judge turns, on average"] = end_before
    return found
