"""Figures of a report on a judge, and the page that holds them: one file, opened anywhere, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from tunejury.calibration import AnchorCalibration
from tunejury.files import atomic_path
from tunejury.metrics import ReliabilityBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN_BINS = 8
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
    "td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child"
    "{text-align:left}img{max-width:100%;height:auto}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}"
    "p{color:#555}"
)


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    heading: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[tuple[str, Figure]] = ()
    """(what it shows, for those who cannot see it; the figure)."""


def reliability_figure(bins: Mapping[str, Sequence[ReliabilityBin]]) -> Figure:
    """How often the choice is right, by how sure it is; below the diagonal is too sure. A line per name; bars are 95 %
    Wilson intervals.
    """
    figure, axes = _figure()
    axes.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=1, label="well calibrated")
    for name, parts in bins.items():
        accuracy = np.array([part.accuracy for part in parts])
        low, high = wilson_interval(accuracy, np.array([part.count for part in parts]))
        axes.errorbar(
            [part.confidence for part in parts], accuracy, [accuracy - low, high - accuracy],
            marker="o", markersize=4, linewidth=1, capsize=2, label=name,
        )  # fmt: skip
    axes.set(xlabel="probability given to the choice", ylabel="share of choices that are right", xlim=(0.49, 1.01))
    axes.legend(frameon=False)
    return figure


def margin_figure(margins: ArrayLike, outcomes: ArrayLike) -> Figure:
    """Accuracy by how far apart the rewards are, in bins of equal counts, beside what the margins claim. Ties are left
    out.
    """
    margin, outcome = np.asarray(margins, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    margin, outcome = margin[outcome != 0.5], outcome[outcome != 0.5]
    order = np.argsort(np.abs(margin), kind="stable")
    parts = [part for part in np.array_split(order, MARGIN_BINS) if len(part)]
    right = 0.5 + 0.5 * np.sign(margin) * (2 * outcome - 1)
    accuracy = np.array([right[part].mean() for part in parts])
    low, high = wilson_interval(accuracy, np.array([len(part) for part in parts]))
    centres = [np.abs(margin[part]).mean() for part in parts]
    claimed = [(0.5 + 0.5 * np.tanh(np.abs(margin[part]) / 2)).mean() for part in parts]
    figure, axes = _figure()
    axes.errorbar(centres, accuracy, [accuracy - low, high - accuracy], marker="o", markersize=4, capsize=2,
                  label="people agree")  # fmt: skip
    axes.plot(centres, claimed, color="0.6", linewidth=1, label="claimed by the margin")
    axes.axhline(0.5, color="0.8", linewidth=1)
    axes.set(xlabel="absolute margin", ylabel="share of choices that are right")
    axes.legend(frameon=False)
    return figure


def rating_figure(rewards: ArrayLike, ratings: ArrayLike, systems: Sequence[str], scale: str) -> Figure:
    """A point per clip, and a larger one for the mean of each system."""
    reward, rating = np.asarray(rewards, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    names = np.asarray(systems)
    figure, axes = _figure()
    axes.scatter(rating, reward, s=8, color="0.7", linewidths=0)
    distinct = [name for name in dict.fromkeys(systems) if name]
    for name in distinct if 1 < len(distinct) <= 20 else []:
        axes.scatter(rating[names == name].mean(), reward[names == name].mean(), s=60, label=name)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel=scale, ylabel="reward")
    return figure


def offsets_figure(calibration: AnchorCalibration) -> Figure:
    """By how much the judge overrates each system more than the reference system, with 95 % intervals."""
    systems = sorted(calibration.systems, key=lambda system: calibration.offset(system).value)
    estimates = [calibration.offset(system) for system in systems]
    figure, axes = _figure(height=max(1.5, 0.35 * len(systems) + 1.0))
    values = np.array([estimate.value for estimate in estimates])
    errors = [values - [estimate.low for estimate in estimates], [estimate.high for estimate in estimates] - values]
    axes.errorbar(values, range(len(systems)), xerr=errors, fmt="o", markersize=4, capsize=2)
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set_yticks(range(len(systems)), systems)
    axes.set_xlabel(f"overrated more than {calibration.reference_system}, log-odds")
    return figure


def wilson_interval(share: ArrayLike, count: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of so many (Wilson, JASA 22, 1927): within [0, 1] even for shares of 0 and 1."""
    p, n, z = np.asarray(share, dtype=np.float64), np.asarray(count, dtype=np.float64), 1.959964
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    width = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # rounding must not put the share itself outside
    return np.minimum(centre - width, p), np.maximum(centre + width, p)


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file's contents."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()


def write_page(path: str | Path, title: str, sections: Sequence[Section]) -> None:
    """Write an HTML page with its figures inside.

    Raises:
        OSError: it cannot be written.
    """
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
             "<meta name=viewport content='width=device-width'>", f"<style>{STYLE}</style>",
             f"<h1>{html.escape(title)}</h1>"]  # fmt: skip
    for section in sections:
        parts.append(f"<h2>{html.escape(section.heading)}</h2>")
        if section.text:
            parts.append(f"<p>{html.escape(section.text)}</p>")
        if section.rows:
            rows = [_row("th", section.header), *(_row("td", row) for row in section.rows)]
            parts.append(f"<table>{''.join(rows)}</table>")
        for what, figure in section.figures:
            data = base64.b64encode(png_bytes(figure)).decode()
            parts.append(f'<img alt="{html.escape(what)}" src="data:image/png;base64,{data}">')
    with atomic_path(Path(path)) as temporary:
        temporary.write_text("\n".join(parts) + "\n</html>\n", encoding="utf-8")


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _figure(height: float = 4.0) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, height), layout="constrained")
    return figure, figure.subplots()
