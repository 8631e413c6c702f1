"""report.html: one file with the curve, the table and the sound, to be opened anywhere.

Everything comes from the summary in results.json and the audio beside it; user text goes through an escaping template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.report_parts import (
    ACCENT,
    MAX_CLIP_SECONDS,
    MAX_EMBEDDED_BYTES,
    Players,
    figure_svg,
    licenses,
    settings,
    template,
)
from alignment.runs import REPORT, RunDirectory


def write_report(run: RunDirectory, summary: Mapping[str, Any]) -> Path:
    """Render report.html from the contents of results.json.

    Args:
        run: where it goes, and where relative audio paths count from.
        summary: as `alignment.results.summarize` makes it.

    Raises:
        OSError: it cannot be written. A clip that cannot be read has no player; that is no error.
    """
    html = template("best_of_n.html.j2").render(
        summary=summary,
        curve=_curve_svg(summary) if len(summary["mean_reward_at_n"]) > 1 else "",
        steps=[n for n in summary["mean_reward_at_n"] if _in_table(int(n), summary["num_candidates"])],
        rows=_rows(run.path, summary),
        licenses=licenses(summary),
        settings=settings(summary),
        single_prompt=summary["ci"]["num_prompts"] == 1,
        max_clip_seconds=MAX_CLIP_SECONDS,
    )
    return run.write_text(REPORT, html)


def _rows(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per prompt: its clips with players, and its rewards as places on a common axis."""
    prompts = summary["prompts"]
    bad = Counter(item["prompt_id"] for item in summary["failed"])
    rewards = [c["reward"] for prompt in prompts for c in prompt["candidates"] if c["reward"] is not None]
    low, high = min(rewards), max(rewards)
    span = (high - low) or 1.0
    players = Players(folder, MAX_EMBEDDED_BYTES)
    rows = []
    for prompt in prompts:
        clips = []
        same = prompt["best"] is not None and prompt["best"]["candidate"] == prompt["first"]["candidate"]
        for role, clip in (("First", prompt["first"]), ("Best", prompt["best"])):
            # a first candidate that was given up after its draft has no clip to compare with
            given_up = clip is not None and clip["reward"] is None and "draft_rewards" in clip
            if clip is None or given_up or (same and role == "First"):
                continue
            clips.append({**clip, "role": "First and best" if same else role, "source": players.source(clip["path"])})
        gain = None
        if prompt["best"] is not None and prompt["first"]["reward"] is not None:
            gain = prompt["best"]["reward"] - prompt["first"]["reward"]
        dots = [
            {
                "x": round(1 + 98 * (c["reward"] - low) / span, 2),
                "kind": _kind(c["candidate"], prompt),
                "label": f"candidate {c['candidate']}: {c['reward']:.3f}",
            }
            for c in prompt["candidates"]
            if c["reward"] is not None
        ]
        # the first and the best are drawn last, on top
        dots.sort(key=lambda dot: ("other", "first", "best").index(dot["kind"]))
        rows.append(
            {**prompt, "clips": clips, "gain": gain, "dots": dots, "low": low, "high": high}
            | {"failed": bad[prompt["prompt_id"]]}
        )
    return rows


def _kind(candidate: int, prompt: Mapping[str, Any]) -> str:
    if prompt["best"] is not None and candidate == prompt["best"]["candidate"]:
        return "best"
    return "first" if candidate == prompt["first"]["candidate"] else "other"


def _curve_svg(summary: Mapping[str, Any]) -> str:
    """The reward-versus-n curve with its interval."""
    steps = [int(n) for n in summary["mean_reward_at_n"]]
    means = list(summary["mean_reward_at_n"].values())
    lows, highs = zip(*summary["mean_reward_at_n_ci"].values(), strict=True)

    def draw(axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator, NullLocator

        if summary["ci"]["num_prompts"] > 1:
            axes.fill_between(steps, lows, highs, color=ACCENT, alpha=0.16, linewidth=0)
        axes.plot(steps, means, color=ACCENT, linewidth=2.2, marker="o", markersize=4.5 if len(steps) <= 32 else 0)
        if len(steps) > 16:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_locator(NullLocator())
            ticks = [2**power for power in range(steps[-1].bit_length())]
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("n, candidates per prompt")
        axes.set_ylabel("mean reward of the best of n")

    return figure_svg(draw, "Mean reward of the best of n")


def _in_table(n: int, largest: int) -> bool:
    """All of a short curve; of a long one the powers of two and the end."""
    return largest <= 16 or n == largest or n & (n - 1) == 0
