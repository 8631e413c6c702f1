"""report.html: one file with the curve, the table and the sound, to be opened anywhere.

Everything comes from the summary in results.json and the audio beside it; user text goes through an escaping template.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.runs import REPORT, RunDirectory

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

MAX_CLIP_SECONDS = 60.0  # of a clip inside the page; longer ones play their beginning
MAX_EMBEDDED_BYTES = 48_000_000  # of audio inside the page; the rest is linked, so that the page still opens on a phone
MAX_PLAYED_RATE = 48_000  # Hz; above it browsers are not sure to play FLAC

# colours drawn by matplotlib -> the page's own variables, so that the figure follows its light or dark scheme
INKS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)", "#040404": "var(--accent)"}


def write_report(run: RunDirectory, summary: Mapping[str, Any]) -> Path:
    """Render report.html of best-of-N from the contents of results.json.

    Args:
        run: where it goes, and where relative audio paths count from.
        summary: as `alignment.results.summarize` makes it.

    Raises:
        OSError: it cannot be written. A clip that cannot be read has no player; that is no error.
    """
    html = page(
        "best_of_n.html.j2",
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


def page(template: str, **values: Any) -> str:
    """A page from one of the package's templates; text is escaped, and a value that is missing is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alignment", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value, digits: f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
    environment.filters["signed"] = lambda value: f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
    environment.filters["duration"] = _duration
    return environment.get_template(template).render(**values)


class Players:
    """Sources for players of a page, embedded until the page has `MAX_EMBEDDED_BYTES` of them, then links.

    Args:
        folder: where relative paths count from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.embedded = folder, 0

    def source(self, path: str | None) -> str | None:
        """What a player plays; None without a file that can be read."""
        flac = None if path is None else _flac(self.folder / path)
        if path is None or flac is None:
            return None
        if self.embedded + len(flac) <= MAX_EMBEDDED_BYTES:
            self.embedded += len(flac)
            return "data:audio/flac;base64," + base64.b64encode(flac).decode("ascii")
        return path if not Path(path).is_absolute() else Path(path).as_uri()


def _rows(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per prompt: its clips with players, and its rewards as places on a common axis."""
    prompts = summary["prompts"]
    bad = Counter(item["prompt_id"] for item in summary["failed"])
    rewards = [c["reward"] for prompt in prompts for c in prompt["candidates"] if c["reward"] is not None]
    low, high = min(rewards), max(rewards)
    span = (high - low) or 1.0
    players = Players(folder)
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


def _flac(path: Path) -> bytes | None:
    """A clip as 16-bit FLAC, at most MAX_CLIP_SECONDS of it, or None where it cannot be read."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            samples = file.read(int(MAX_CLIP_SECONDS * rate), dtype="float32", always_2d=True)  # [T, C]
    except (OSError, soundfile.LibsndfileError, TypeError) as error:
        logger.warning("no player for %s: %s", path, error)
        return None
    if samples.shape[1] > 2:
        samples = samples.mean(axis=1, keepdims=True)
    if rate > MAX_PLAYED_RATE:
        samples, rate = _slower(samples, rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _slower(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Samples [T, C] brought down by a whole factor to a rate that browsers play."""
    import julius
    import torch

    factor = -(-rate // MAX_PLAYED_RATE)
    while rate % factor:
        factor += 1
    wav = julius.resample_frac(torch.from_numpy(samples.T.copy()), factor, 1)
    return wav.clamp(-1, 1).T.numpy(), rate // factor


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """(figure, axes) of matplotlib in the manner of our pages; colours are `INKS`. Sizes in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    ink, muted, line, _ = INKS
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.family": "sans-serif",
        "font.size": 11,
        "text.color": ink,
        "axes.edgecolor": line,
        "axes.labelcolor": muted,
        "xtick.color": muted,
        "ytick.color": muted,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        axes.grid(axis="y", color=line, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, pad=6)
        yield figure, axes


def inline_svg(figure: Any, label: str) -> str:
    """A figure of `drawing` as SVG in the page's colours, as wide as there is room for; call it within the block."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for drawn, variable in INKS.items():
        svg = svg.replace(drawn, variable)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?)\bheight="[^"]*"', r"\1", svg, count=1)
    return re.sub(r'(<svg [^>]*?)\bwidth="[^"]*"', rf'\1role="img" aria-label="{label}"', svg, count=1)


def _curve_svg(summary: Mapping[str, Any]) -> str:
    """The reward-versus-n curve with its interval."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    accent = list(INKS)[3]
    steps = [int(n) for n in summary["mean_reward_at_n"]]
    means = list(summary["mean_reward_at_n"].values())
    lows, highs = zip(*summary["mean_reward_at_n_ci"].values(), strict=True)
    with drawing(7.2, 3.4) as (figure, axes):
        if summary["ci"]["num_prompts"] > 1:
            axes.fill_between(steps, lows, highs, color=accent, alpha=0.16, linewidth=0)
        axes.plot(steps, means, color=accent, linewidth=2.2, marker="o", markersize=4.5 if len(steps) <= 32 else 0)
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
        return inline_svg(figure, "Mean reward of the best of n")


def licenses(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(role, model, licence) of everything that was loaded."""
    rows = []
    if "backbone" in summary:
        rows.append(("backbone", summary["backbone"]["name"], summary["backbone"]["license"]))
    judges = [("reward", summary.get("reward", {})), *summary.get("side", {}).items()]
    for role, judge in judges:
        for name, license_name in judge.get("licenses", {}).items():
            rows.append((role.replace("_", " "), name, license_name))
    return rows


def settings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings as shown: what was asked for, with what the backbone made of its defaults. The prompts have a table."""
    shown = {**summary.get("settings", {}), **summary.get("generation", {})}
    rows = [(key, "default" if value is None else str(value)) for key, value in shown.items() if key not in _TABLES]
    protocol = summary.get("protocol")
    if isinstance(protocol, Mapping):
        rows = [row for row in rows if row[0] != "protocol"]
        rows.append(("protocol", f"{protocol.get('name')} (version {protocol.get('version')})"))
    return rows + [(name, version) for name, version in summary.get("versions", {}).items()]


_TABLES = ("prompts", "held_out_prompts", "clips")  # shown elsewhere


def _in_table(n: int, largest: int) -> bool:
    """All of a short curve; of a long one the powers of two and the end."""
    return largest <= 16 or n == largest or n & (n - 1) == 0


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
