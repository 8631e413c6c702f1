"""report.html of DITTO: what optimising gained, step by step for both judges, and the sound before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.report_parts import (
    ACCENT,
    FIRST,
    MAX_CLIP_SECONDS,
    MAX_EMBEDDED_BYTES,
    Players,
    figure_svg,
    licenses,
    settings,
    template,
)
from alignment.runs import REPORT, RunDirectory


def write_ditto_report(run: RunDirectory, summary: Mapping[str, Any]) -> Path:
    """Render report.html from the contents of results.json.

    Args:
        run: where it goes, and where relative audio paths count from.
        summary: as `alignment.ditto_results.summarize_ditto` makes it.

    Raises:
        OSError: it cannot be written. A clip that cannot be read has no player; that is no error.
    """
    curves = summary["gain_by_step"]
    html = template("ditto.html.j2").render(
        summary=summary,
        curve=_curves_svg(summary) if curves is not None and len(curves["mean"]) > 1 else "",
        rows=_rows(run.path, summary["prompts"]),
        licenses=licenses(summary),
        settings=settings(summary),
        single_prompt=summary["ci"]["num_prompts"] == 1,
        max_clip_seconds=MAX_CLIP_SECONDS,
    )
    return run.write_text(REPORT, html)


def _curves_svg(summary: Mapping[str, Any]) -> str:
    """Mean gain of the reward and of the held-out reward at every step."""

    def draw(axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        curves = (
            (summary["gain_by_step"], ACCENT, "reward"),
            (summary["held_out_gain_by_step"], FIRST, "held-out reward"),
        )
        for curve, colour, name in curves:
            if curve is None:
                continue
            steps = range(len(curve["mean"]))
            if curve["num_prompts"] > 1:
                lows, highs = zip(*curve["ci"], strict=True)
                axes.fill_between(steps, lows, highs, color=colour, alpha=0.16, linewidth=0)
            axes.plot(steps, curve["mean"], color=colour, linewidth=2.2, label=name)
        axes.legend(frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("optimisation step")
        axes.set_ylabel("mean gain")

    return figure_svg(draw, "Mean gain of both judges by optimisation step")


def _rows(folder: Path, prompts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per prompt: both clips with players, and its trajectory as lines on axes of its own."""
    players = Players(folder, MAX_EMBEDDED_BYTES)
    rows = []
    for entry in prompts:
        clips = [
            {
                "role": role.capitalize(),
                "reward": entry[f"{role}_reward"],
                "held_out": entry[f"held_out_{role}"],
                "path": entry[f"{role}_path"],
                "source": players.source(entry[f"{role}_path"]),
            }
            for role in ("baseline", "optimized")
        ]
        rewards = [clip["reward"] for clip in clips]
        gain = None if None in rewards else rewards[1] - rewards[0]
        lines = [
            {"kind": kind, "points": _points(values), "best": _points(values).split(" ")[entry["best_step"]]}
            for kind, values in (("first", entry["held_out_rewards"]), ("best", entry["rewards"]))
            if len(values) > 1 and entry["best_step"] < len(values)
        ]
        rows.append({**entry, "clips": clips, "gain": gain, "lines": lines})
    return rows


def _points(values: Sequence[float]) -> str:
    """The points of a polyline that fills 300 by 40, each curve on its own scale."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    places = [(2 + 296 * i / (len(values) - 1), 37 - 34 * (value - low) / span) for i, value in enumerate(values)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
