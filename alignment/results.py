"""What results.json of best-of-N says, worked out from the candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.interfaces import Candidate
from alignment.statistics import (
    Floats,
    best_of_n_curves,
    best_of_n_divergence,
    bootstrap_mean,
    rank_correlation,
    within_prompt_deviation,
)

LEVEL = 0.95
LOWER_BOUND_DEVIATIONS = 1.0  # of the judge's uncertainty, below the reward


def ranking_value(candidate: Candidate, selection: str = "reward") -> float | None:
    """What candidates are compared by: the reward, or the reward less the judge's uncertainty of it; None for one
    without a reward.
    """
    if candidate.reward is None or selection == "reward":
        return candidate.reward
    return candidate.reward - LOWER_BOUND_DEVIATIONS * (candidate.uncertainty or 0.0)


def best_of(candidates: Sequence[Candidate], selection: str = "reward") -> Candidate | None:
    """The candidate with the highest value, the first of equals; None where none has one."""
    best, highest = None, -math.inf
    for candidate in candidates:
        value = ranking_value(candidate, selection)
        if value is not None and value > highest:
            best, highest = candidate, value
    return best


def summarize(
    pools: Sequence[Sequence[Candidate]],
    config: Mapping[str, Any],
    seconds: Mapping[str, float],
    diversity: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The contents of results.json.

    Args:
        pools: the candidates of each prompt, failed and given-up ones included; at least one has a reward.
        config: config.json of the run; its models, versions and settings are repeated so that the file stands alone.
        seconds: spent on generate, score and in total, over all sessions and processes of the run.
        diversity: of the clips of each prompt, by prompt_id, where there are two.
    """
    selection = config.get("selection", "reward")
    drafted = config.get("strategy", {}).get("name") == "halving"
    # existing audio may give prompts different numbers of candidates: the mean goes as far as every prompt does
    num_candidates = min(map(len, pools))
    # after drafts the clips that were made are no random draw: they do not tell what fewer candidates would give
    steps = [num_candidates] if drafted else list(range(1, num_candidates + 1))

    def at_n(value: Callable[[Candidate], float | None]) -> dict[str, Any]:
        """Mean over prompts, and its interval, of a value of the clip that is kept of n."""
        curves = _curves(pools, value, selection, num_candidates, drafted)
        if not len(curves):
            return {"mean": {}, "ci": {}, "curves": curves}
        low, high = bootstrap_mean(curves, level=LEVEL)
        return {
            "mean": {str(n): float(curves[:, i].mean()) for i, n in enumerate(steps)},
            "ci": {str(n): [float(low[i]), float(high[i])] for i, n in enumerate(steps)},
            "curves": curves,
        }

    rewards = at_n(lambda candidate: candidate.reward)
    curves = rewards["curves"]
    gain = None
    if not drafted:
        gains = curves[:, -1] - curves[:, 0]
        gain_low, gain_high = bootstrap_mean(gains, level=LEVEL)
        gain = {"mean": float(gains.mean()), "ci": [float(gain_low), float(gain_high)]}
    candidates = [candidate for pool in pools for candidate in pool]
    failed = [candidate for candidate in candidates if candidate.error is not None]
    scored = sum(candidate.reward is not None for candidate in candidates)
    summary = {
        "recipe": config.get("recipe"),
        "num_prompts": len(pools),
        "num_prompts_scored": len(curves),
        "num_candidates": num_candidates,
        "num_scored": scored,
        "num_failed": len(failed),
        "num_given_up": len(candidates) - len(failed) - scored,
        "mean_reward_at_n": rewards["mean"],
        "mean_reward_at_n_ci": rewards["ci"],
        "ci": {"level": LEVEL, "method": "percentile bootstrap over prompts", "num_prompts": len(curves)},
        "gain": gain,
        "reward_std_within_prompt": None if drafted else within_prompt_deviation(map(_rewards, pools)),
        "side": {},
        "diversity": _diversity(diversity or {}),
        "kl_bound": None if candidates[0].seed is None else _divergence(num_candidates, drafted),
        "prompts": [_prompt(pool, selection, diversity or {}) for pool in pools],
        "failed": [_failure(candidate) for candidate in failed],
        "seconds": {name: float(seconds.get(name, 0.0)) for name in ("generate", "score", "total")},
        **{key: value for key, value in config.items() if key not in ("recipe", "format")},
    }
    for name in next((candidate.side for candidate in candidates if candidate.side), {}):
        beside = at_n(lambda candidate, name=name: (candidate.side or {}).get(name))  # type: ignore[misc]
        summary["side"][name] = {
            "mean_at_n": beside["mean"],
            "mean_at_n_ci": beside["ci"],
            "num_prompts": len(beside["curves"]),
            **config.get("side", {}).get(name, {}),
        }
    if "strategy" in config:
        summary["strategy"] = {**config["strategy"], **_spending(pools, config["strategy"]["stages"])}
    return summary


def describe(summary: Mapping[str, Any]) -> str:
    """The contents of results.json in a few lines: the kept clip of each prompt, then the means."""
    lines = []
    for entry in summary["prompts"]:
        best = entry["best"] or {"reward": math.nan, "path": "all candidates failed"}
        lines.append(f"{best['reward']:8.3f}  {best['path']}  {entry['prompt']}")
    last, means = str(summary["num_candidates"]), summary["mean_reward_at_n"]
    one = f"{means['1']:.3f} for one clip, " if summary["gain"] is not None else ""
    lines.append(f"mean reward: {one}{means[last]:.3f} for the best of {last}")
    for name, row in summary["side"].items():
        mean = row["mean_at_n"].get(last)
        lines.append(f"{name.replace('_', ' ')} of the same clips: {'failed' if mean is None else format(mean, '.3f')}")
    total = summary["num_failed"] + summary["num_scored"] + summary["num_given_up"]
    return "\n".join([*lines, f"failed: {summary['num_failed']} of {total} candidates"])


def _curves(
    pools: Sequence[Sequence[Candidate]],
    value: Callable[[Candidate], float | None],
    selection: str,
    num_candidates: int,
    drafted: bool,
) -> Floats:
    """[P, steps] of the prompts that have something to say; see `best_of_n_curves`."""
    rows = []
    for pool in pools:
        scored = [candidate for candidate in pool if candidate.reward is not None]
        best = best_of(pool, selection)
        if best is None or any(value(candidate) is None for candidate in scored):
            continue
        if drafted:
            rows.append(np.array([value(best)], dtype=np.float64))
            continue
        # None, of a candidate without a reward, becomes NaN
        values = np.array([[value(candidate) if candidate.reward is not None else None for candidate in pool]], float)
        keys = np.array([[ranking_value(candidate, selection) for candidate in pool]], float)
        rows.append(best_of_n_curves(values, keys)[0, :num_candidates])
    return np.stack(rows) if rows else np.zeros((0, num_candidates))


def _rewards(pool: Sequence[Candidate]) -> list[float]:
    return [math.nan if candidate.reward is None else candidate.reward for candidate in pool]


def _diversity(values: Mapping[str, float]) -> dict[str, Any] | None:
    if not values:
        return None
    low, high = bootstrap_mean(list(values.values()), level=LEVEL)
    return {
        "mean": float(np.mean(list(values.values()))),
        "ci": [float(low), float(high)],
        "num_prompts": len(values),
        "measure": "mean pairwise cosine distance of the clips of a prompt",
    }


def _divergence(num_candidates: int, drafted: bool) -> dict[str, Any]:
    # choosing one of N draws by whatever rule multiplies no probability by more than N
    if drafted:
        return {"nats": math.log(num_candidates), "formula": "log N"}
    return {"nats": best_of_n_divergence(num_candidates), "formula": "log N - (N - 1) / N"}


def _spending(pools: Sequence[Sequence[Candidate]], stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Network evaluations of the stages beside those of as many final clips, and how well drafts foretold the end."""
    spent = sum(stage["num_candidates"] * stage["nfe"] for stage in stages) * len(pools)
    drafts = []
    for number, stage in enumerate(stages[:-1]):
        values = []
        for pool in pools:
            both = [
                (candidate.draft_rewards[number], candidate.reward)
                for candidate in pool
                if candidate.reward is not None and candidate.draft_rewards and len(candidate.draft_rewards) > number
            ]
            pairs = [(draft, final) for draft, final in both if draft is not None]
            if len(pairs) > 1:
                values.append(rank_correlation(*zip(*pairs, strict=True)))
        found = [value for value in values if value is not None]
        low, high = bootstrap_mean(found, level=LEVEL) if found else (math.nan, math.nan)
        drafts.append(
            {
                **stage,
                "rank_correlation": float(np.mean(found)) if found else None,
                "rank_correlation_ci": [float(low), float(high)] if found else None,
                "num_prompts": len(found),
            }
        )
    full = stages[0]["num_candidates"] * stages[-1]["whole_nfe"] * len(pools)
    return {"nfe": {"spent": spent, "full": full}, "drafts": drafts}


def _prompt(pool: Sequence[Candidate], selection: str, diversity: Mapping[str, float]) -> dict[str, Any]:
    best = best_of(pool, selection)
    return {
        "prompt_id": pool[0].prompt_id,
        "prompt": pool[0].prompt,
        "best": None if best is None else _brief(best),
        "first": _brief(pool[0]),
        "candidates": [_brief(candidate) for candidate in pool],
        "diversity": diversity.get(pool[0].prompt_id),
    }


def _brief(candidate: Candidate) -> dict[str, Any]:
    record = candidate.to_dict()
    return {key: record[key] for key in _BRIEF if key in record}


_BRIEF = ("candidate", "seed", "reward", "path", "uncertainty", "side", "draft_rewards")


def _failure(candidate: Candidate) -> dict[str, Any]:
    return {
        "prompt_id": candidate.prompt_id,
        "candidate": candidate.candidate,
        "seed": candidate.seed,
        "path": candidate.path,
        "error": candidate.error,
    }
