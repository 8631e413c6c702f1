"""What results.json and report.html of expert iteration say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.interfaces import Candidate
from alignment.overoptimization import Heard, pareto_front
from alignment.report_parts import (
    ACCENT,
    MAX_CLIP_SECONDS,
    MAX_EMBEDDED_BYTES,
    MUTED,
    Players,
    figure_svg,
    licenses,
    settings,
    template,
)
from alignment.results import LEVEL
from alignment.runs import REPORT, RunDirectory

MAX_LISTENED = 12  # held-out prompts with players in the report


def summarize(outcome: Mapping[str, Any], config: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The contents of results.json.

    Args:
        outcome: of the loop: base, rounds, trials, selected, stopped_because, records, and clips heard by trial.
        config: config.json of the run; its models, versions and settings are repeated so that the file stands alone.
        seconds: spent on generate, score, train and in total, over all sessions and processes of the run.
    """
    selected = outcome["selected"]
    base: Heard = outcome["heard"]["0"]
    best: Heard = base if selected is None else outcome["heard"][selected["trial"]]
    return {
        "recipe": config.get("recipe"),
        "base": outcome["base"],
        "rounds": outcome["rounds"],
        "trials": outcome["trials"],
        "pareto": pareto_front([outcome["base"], *outcome["trials"]]),
        "selected_round": 0 if selected is None else selected["round"],
        "selected_learning_rate": None if selected is None else selected["learning_rate"],
        "selected_adapter": None if selected is None else selected["adapter"],
        "stopped_because": outcome["stopped_because"],
        "num_held_out_prompts": len(base.pools),
        "ci": {"level": LEVEL, "method": "percentile bootstrap over prompts"},
        "prompts": [_pair(first, second) for first, second in zip(base.pools, best.pools, strict=True)],
        "failed": [
            *(_failure(record, {"round": record["round"]}) for record in outcome["records"] if record.get("error")),
            *(
                _failure(candidate.to_dict(), {"evaluation": name})
                for name, heard in outcome["heard"].items()
                for pool in heard.pools
                for candidate in pool
                if candidate.error is not None
            ),
        ],
        "seconds": dict(seconds),
        **{key: value for key, value in config.items() if key not in ("recipe", "format")},
    }


def describe(summary: Mapping[str, Any]) -> str:
    """The contents of results.json in a few lines."""
    base = summary["base"]
    lines = [f"base     reward {base['reward_mean']:.3f} on {summary['num_held_out_prompts']} held-out prompts"]
    for row in summary["rounds"]:
        if row.get("reward_mean") is None:
            lines.append(f"round {row['round']}  {'; '.join(row['broken'])}")
            continue
        low, high = row["reward_delta_ci"]
        held = "" if row["held_out_delta"] is None else f", held-out judge {row['held_out_delta']:+.3f}"
        lines.append(
            f"round {row['round']}  reward {row['reward_mean']:.3f} ({row['reward_delta']:+.3f}, {low:+.3f} to "
            f"{high:+.3f}; {row['improved']} of {row['num_prompts']} prompts improved){held}, learning rate "
            f"{row['learning_rate']:g}"
        )
    lines.append(f"stopped: {summary['stopped_because']}")
    chosen = summary["selected_adapter"] or "the base: no round is better and within the budgets"
    return "\n".join([*lines, f"selected: round {summary['selected_round']}, {chosen}"])


def write_expert_report(run: RunDirectory, summary: Mapping[str, Any]) -> Path:
    """Render report.html from the contents of results.json.

    Raises:
        OSError: it cannot be written.
    """
    players = Players(run.path, MAX_EMBEDDED_BYTES)
    rows = []
    for pair in summary["prompts"][:MAX_LISTENED]:
        clips = [
            {**pair[role], "role": label, "source": players.source(pair[role]["path"])}
            for role, label in (("base", "Before"), ("selected", "After"))
        ]
        rows.append({**pair, "clips": clips[: 1 if summary["selected_round"] == 0 else 2]})
    html = template("expert_iteration.html.j2").render(
        summary=summary,
        selected=next((row for row in summary["rounds"] if row["round"] == summary["selected_round"]), None),
        sides=list(summary["base"]["side"]),
        rounds_figure=_rounds_svg(summary),
        pareto_figure=_pareto_svg(summary),
        rows=rows,
        licenses=licenses(summary),
        settings=settings(summary),
        max_clip_seconds=MAX_CLIP_SECONDS,
    )
    return run.write_text(REPORT, html)


def _rounds_svg(summary: Mapping[str, Any]) -> str:
    """Difference to the base on held-out prompts, by round."""
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in summary["rounds"] if row.get("reward_delta") is not None]
    if not rows:
        return ""

    def draw(axes: Any) -> None:
        rounds = [0, *(row["round"] for row in rows)]
        low, high = ([0.0, *(row["reward_delta_ci"][end] for row in rows)] for end in (0, 1))
        axes.fill_between(rounds, low, high, color=ACCENT, alpha=0.16, linewidth=0)
        deltas = [0.0, *(row["reward_delta"] for row in rows)]
        axes.plot(rounds, deltas, color=ACCENT, linewidth=2.2, marker="o", label="reward")
        held = [row["held_out_delta"] for row in rows]
        if None not in held:
            axes.plot(rounds, [0.0, *held], color=MUTED, linewidth=1.8, marker="s", ls="--", label="held-out judge")
            axes.legend(frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("round")
        axes.set_ylabel("difference to the base")

    return figure_svg(draw, "Reward by round")


def _pareto_svg(summary: Mapping[str, Any]) -> str:
    """Reward against drift over rounds and learning rates; what breaks a budget is hollow."""
    points = [{**summary["base"], "round": 0, "learning_rate": None, "broken": []}, *summary["trials"]]
    known = [point.get("drift") is not None and point.get("reward_mean") is not None for point in points]
    if sum(known) < 2:
        return ""

    def draw(axes: Any) -> None:
        front = sorted((points[place]["drift"], points[place]["reward_mean"]) for place in summary["pareto"])
        axes.plot(*zip(*front, strict=True), color=ACCENT, linewidth=1.2, alpha=0.6)
        several = len({point["learning_rate"] for point in summary["trials"]}) > 1
        for point, there in zip(points, known, strict=True):
            if not there:
                continue
            fill = "none" if point["broken"] else ACCENT
            place = point["drift"], point["reward_mean"]
            axes.scatter(*place, s=46, facecolors=fill, edgecolors=MUTED if point["broken"] else ACCENT, zorder=3)
            name = "base" if point["round"] == 0 else f"round {point['round']}"
            name += f", {point['learning_rate']:g}" if several and point["round"] else ""
            axes.annotate(name, place, xytext=(7, 5), textcoords="offset points", color=MUTED, fontsize=9)
        axes.margins(x=0.16, y=0.16)
        axes.set_xlabel("drift: distance of the clips to the base's")
        axes.set_ylabel("reward")

    return figure_svg(draw, "Reward against drift")


def _pair(base: Sequence[Candidate], selected: Sequence[Candidate]) -> dict[str, Any]:
    deltas = [
        second.reward - first.reward
        for first, second in zip(base, selected, strict=True)
        if first.reward is not None and second.reward is not None
    ]
    return {
        "prompt_id": base[0].prompt_id,
        "prompt": base[0].prompt,
        "delta": math.fsum(deltas) / len(deltas) if deltas else None,
        "base": _clip(base[0]),
        "selected": _clip(selected[0]),
    }


def _clip(candidate: Candidate) -> dict[str, Any]:
    return {"seed": candidate.seed, "reward": candidate.reward, "path": candidate.path, "error": candidate.error}


def _failure(record: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, Any]:
    return {**where, **{key: record[key] for key in ("prompt_id", "candidate", "seed", "error")}}
