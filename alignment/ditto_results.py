"""What results.json of DITTO says, worked out from the judged files and the trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.interfaces import Candidate
from alignment.results import LEVEL
from alignment.statistics import bootstrap_mean


def summarize_ditto(
    pools: Sequence[Sequence[Candidate]],
    config: Mapping[str, Any],
    seconds: Mapping[str, float],
    diversity: Mapping[str, float],
    *,
    trajectories: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The contents of results.json.

    Args:
        pools: (baseline, optimised) of each prompt; at least one has a reward.
        config: config.json of the run; its models, versions and settings are repeated so that the file stands alone.
        seconds: spent on generate, score and in total, over all sessions and processes of the run.
        diversity: cosine distance of the two clips, by prompt_id.
        trajectories: the lines of trajectories.jsonl, by prompt_id.
    """
    entries = [_prompt(pool, trajectories.get(pool[0].prompt_id, {}), diversity) for pool in pools]
    before, after = _both(entries, "baseline_reward", "optimized_reward")
    held_before, held_after = _both(entries, "held_out_baseline", "held_out_optimized")
    steps = max((len(entry["rewards"]) for entry in entries), default=0)
    cost = [path["denoiser_evaluations"] for path in trajectories.values()]
    sides = dict.fromkeys(name for pool in pools for clip in pool for name in clip.side or {})
    return {
        "recipe": config.get("recipe"),
        "num_prompts": len(pools),
        "num_prompts_scored": len(before),
        "baseline_reward_mean": _mean(before),
        "optimized_reward_mean": _mean(after),
        "gain": _with_interval(after - before),
        "improved": int((after > before).sum()),
        "held_out_baseline_mean": _mean(held_before),
        "held_out_optimized_mean": _mean(held_after),
        "held_out_gain": _with_interval(held_after - held_before),
        "held_out_improved": int((held_after > held_before).sum()) if len(held_before) else None,
        "ci": {"level": LEVEL, "method": "percentile bootstrap over prompts", "num_prompts": len(before)},
        "side": {name: _side(pools, name) | config.get("side", {}).get(name, {}) for name in sides},
        "drift": _with_interval(np.array([e["drift"] for e in entries if e["drift"] is not None])),
        "latent_shift_mean": _mean(np.array([e["latent_shift"] for e in entries if e["latent_shift"] is not None])),
        "gain_by_step": _curve([entry["rewards"] for entry in entries], steps),
        "held_out_gain_by_step": _curve([entry["held_out_rewards"] for entry in entries], steps),
        "num_stopped": sum(entry["stopped"] is not None for entry in entries),
        "prompts": entries,
        "failed": _failed(pools, trajectories),
        "denoiser_evaluations_per_prompt": float(np.mean(cost)) if cost else None,
        "peak_memory_bytes": max((path["peak_memory_bytes"] for path in trajectories.values()), default=None),
        "seconds": {name: float(seconds.get(name, 0.0)) for name in ("generate", "score", "total")},
        **{key: value for key, value in config.items() if key not in ("recipe", "format", "side")},
    }


def describe_ditto(summary: Mapping[str, Any]) -> str:
    """The contents of results.json in a few lines: each prompt, then the means."""
    lines = []
    for entry in summary["prompts"]:
        rewards = [entry["baseline_reward"], entry["optimized_reward"]]
        shown = "failed" if None in rewards else "{:.3f} -> {:.3f}".format(*rewards)
        lines.append(f"{shown:>18}  {entry['optimized_path'] or '(no clip)'}  {entry['prompt']}")
    scored = summary["num_prompts_scored"]
    if scored:
        means = f"{summary['baseline_reward_mean']:.3f} -> {summary['optimized_reward_mean']:.3f}"
        lines.append(f"mean reward: {means}; improved: {summary['improved']} of {scored}")
    if summary["held_out_baseline_mean"] is not None:
        means = f"{summary['held_out_baseline_mean']:.3f} -> {summary['held_out_optimized_mean']:.3f}"
        lines.append(f"held-out reward of the same clips: {means}; improved: {summary['held_out_improved']}")
    return "\n".join([*lines, f"failed: {len(summary['failed'])} of {summary['num_prompts']} prompts"])


def _prompt(pool: Sequence[Candidate], path: Mapping[str, Any], diversity: Mapping[str, float]) -> dict[str, Any]:
    before, after = pool
    return {
        "prompt_id": before.prompt_id,
        "prompt": before.prompt,
        "seed": before.seed,
        "baseline_reward": before.reward,
        "optimized_reward": after.reward,
        "held_out_baseline": (before.side or {}).get("held_out_reward"),
        "held_out_optimized": (after.side or {}).get("held_out_reward"),
        "best_step": path.get("best_step"),
        "rewards": path.get("rewards", []),
        "held_out_rewards": path.get("held_out_rewards", []),
        "baseline_path": before.path,
        "optimized_path": after.path,
        "drift": diversity.get(before.prompt_id),
        "latent_shift": path.get("latent_shift"),
        "stopped": path.get("stopped"),
        "problem": path.get("problem"),
    }


def _both(entries: Sequence[Mapping[str, Any]], first: str, second: str) -> tuple[Any, Any]:
    """Two values of the prompts that have both."""
    pairs = [(e[first], e[second]) for e in entries if e[first] is not None and e[second] is not None]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _mean(values: Any) -> float | None:
    return float(values.mean()) if len(values) else None


def _with_interval(values: Any) -> dict[str, Any] | None:
    if not len(values):
        return None
    low, high = bootstrap_mean(values, level=LEVEL)
    return {"mean": float(values.mean()), "ci": [float(low), float(high)]}


def _side(pools: Sequence[Sequence[Candidate]], name: str) -> dict[str, Any]:
    pairs = [{"before": (b.side or {}).get(name), "after": (a.side or {}).get(name)} for b, a in pools]
    before, after = _both(pairs, "before", "after")
    return {
        "baseline_mean": _mean(before),
        "optimized_mean": _mean(after),
        "gain": _with_interval(after - before),
        "num_prompts": len(before),
    }


def _curve(rewards: Sequence[Sequence[float]], steps: int) -> dict[str, Any] | None:
    """Mean gain over the first iterate at each step; a clip that has ended stays where it was."""
    rows = [[values[min(step, len(values) - 1)] - values[0] for step in range(steps)] for values in rewards if values]
    if not rows:
        return None
    table = np.array(rows, dtype=np.float64)
    low, high = bootstrap_mean(table, level=LEVEL)
    return {"mean": table.mean(axis=0).tolist(), "ci": np.stack([low, high], axis=1).tolist(), "num_prompts": len(rows)}


def _failed(
    pools: Sequence[Sequence[Candidate]], trajectories: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A prompt each: what went wrong while optimising, or why a clip could not be judged."""
    failed = []
    for pool in pools:
        error = trajectories.get(pool[0].prompt_id, {}).get("problem")
        error = error or next((clip.error for clip in pool if clip.error), None)
        if error:
            failed.append({"prompt_id": pool[0].prompt_id, "seed": pool[0].seed, "error": error})
    return failed
