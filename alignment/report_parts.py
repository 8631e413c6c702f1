"""What all report.html share: the template, players, figures in the page's colours, tables of licences and settings."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

MAX_CLIP_SECONDS = 60.0  # of a clip inside the page; longer ones play their beginning
MAX_EMBEDDED_BYTES = 48_000_000  # of audio inside the page; the rest is linked, so that the page still opens on a phone
MAX_PLAYED_RATE = 48_000  # Hz; above it browsers are not sure to play FLAC

# colours drawn by matplotlib -> the page's own variables, so that the figure follows its light or dark scheme
INKS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)", "#040404": "var(--accent)"}
INKS |= {"#050505": "var(--first)"}
INK, MUTED, LINE, ACCENT, FIRST = INKS


def template(name: str, folder: Path | None = None) -> Any:
    """A jinja2 template, which escapes everything, with filters for numbers and durations.

    Args:
        name: of a template of this package.
        folder: where it is looked for first, such as for a page that is made by no recipe.
    """
    import jinja2

    own = jinja2.PackageLoader("alignment", "templates")
    environment = jinja2.Environment(
        loader=own if folder is None else jinja2.ChoiceLoader([jinja2.FileSystemLoader(folder), own]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value, digits: f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
    environment.filters["signed"] = lambda value: f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
    environment.filters["duration"] = _duration
    return environment.get_template(name)


class Players:
    """Sources of audio elements: clips inside the page while they fit, then links.

    Args:
        folder: where relative paths count from.
        limit: bytes of audio inside the page.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.left = folder, limit

    def source(self, path: str | None) -> str | None:
        """None for a clip that is not there or cannot be read."""
        flac = None if path is None else _flac(self.folder / path)
        if path is None or flac is None:
            return None
        if len(flac) > self.left:
            return Path(path).as_uri() if Path(path).is_absolute() else path
        self.left -= len(flac)
        return "data:audio/flac;base64," + base64.b64encode(flac).decode("ascii")


def figure_svg(draw: Callable[[Any], None], label: str, size: tuple[float, float] = (7.2, 3.4)) -> str:
    """A figure as inline SVG in the page's colours and as wide as there is room for.

    Args:
        draw: draws on matplotlib axes, with the colours named in this module.
        label: what it shows, for those who do not see it.
        size: width and height in inches, whose ratio is that of the figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.family": "sans-serif",
        "font.size": 11,
        "text.color": INK,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        draw(axes)
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, pad=6)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for drawn, variable in INKS.items():
        svg = svg.replace(drawn, variable)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # sized by the page, as wide as there is room for
    svg = re.sub(r'(<svg [^>]*?)\bheight="[^"]*"', r"\1", svg, count=1)
    return re.sub(r'(<svg [^>]*?)\bwidth="[^"]*"', rf'\1role="img" aria-label="{label}"', svg, count=1)


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
    shown = {**summary.get("settings", {}), **summary.get("generation", {}), **summary.get("learning", {})}
    rows = [(key, "default" if value is None else str(value)) for key, value in shown.items() if key not in _TABLES]
    protocol = summary.get("protocol")
    if isinstance(protocol, Mapping):
        rows = [row for row in rows if row[0] != "protocol"]
        rows.append(("protocol", f"{protocol.get('name')} (version {protocol.get('version')})"))
    return rows + [(name, version) for name, version in summary.get("versions", {}).items()]


_TABLES = ("prompts", "held_out_prompts", "clips")  # shown elsewhere


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


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
