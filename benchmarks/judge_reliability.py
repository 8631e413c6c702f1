"""What a judge's margins are worth: reliability, agreement by margin, and where it fails.

    python benchmarks/judge_accuracy.py --reward compact --output accuracy.json
    python benchmarks/judge_reliability.py accuracy.json --data-dir ../shared/data --output reliability.json

All from the rewards that judge_accuracy.py wrote; nothing is scored again. A pair is two held-out tracks, its truth the
released judge's order; the probability a judge gives it is the logistic function of its margin, as for votes.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from judge_accuracy import Values
from machine import describe_machine

from tunejury.metrics import ReliabilityBin, calibration_error_of_bins, kendall, spearman

EDGES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, np.inf)  # of absolute margins
LEAST_TRACKS = 6  # of a genre


@dataclass(frozen=True)
class Config:
    """What to read."""

    accuracy: Annotated[Path, tyro.conf.Positional]
    """Output of judge_accuracy.py."""
    data_dir: Path = Path("../shared/data")
    teacher_dir: Path | None = None
    """Folder of teacher.csv; default: DATA_DIR/teacher."""
    worst: int = 8
    """Tracks named among the failures."""
    figure: Path | None = None
    """The reliability diagram as a picture (.svg, .png); needs matplotlib."""
    output: Path | None = None
    quick: bool = False
    """No difference: it takes seconds."""


@dataclass(frozen=True)
class Bin:
    """Pairs of like margin: to the judge, or to the teacher."""

    low: float
    high: float
    count: int
    given: float
    """Mean probability the judge gives its own choice."""
    teacher: float
    """Mean probability the teacher's margin gives that choice."""
    alike: float
    """Share of pairs the teacher orders so too."""


def bins(predicted: Values, teacher: Values, by: Values) -> list[Bin]:
    """Pairs [N] of margins by the absolute margin `by`."""
    choice = np.sign(predicted)
    out = []
    for low, high in zip(EDGES, EDGES[1:], strict=False):
        inside = (np.abs(by) >= low) & (np.abs(by) < high) & (choice != 0) & (teacher != 0)
        if inside.any():
            mine, theirs = np.abs(predicted[inside]), (choice * teacher)[inside]
            values = (1 / (1 + np.exp(-mine)), 1 / (1 + np.exp(-theirs)), theirs > 0)
            out.append(Bin(low, high, int(inside.sum()), *(float(np.mean(value)) for value in values)))
    return out


def reliability_table(margins: list[Bin], teacher_margins: list[Bin], error: float) -> list[str]:
    """Both ways of binning, as lines of Markdown."""
    lines = ["| judge's margin | pairs | win probability it gives | teacher's probability | teacher orders it so |"]
    lines.append("|---|---|---|---|---|")
    for one in margins:
        lines.append(f"| {_range(one)} | {one.count} | {one.given:.3f} | {one.teacher:.3f} | {one.alike:.3f} |")
    lines += ["", f"Expected calibration error against the teacher's order: {error:.3f}.", ""]
    lines += ["| teacher's margin | pairs | ordered alike |", "|---|---|---|"]
    return lines + [f"| {_range(one)} | {one.count} | {one.alike:.3f} |" for one in teacher_margins]


def _range(one: Bin) -> str:
    return f"over {one.low:g}" if np.isinf(one.high) else f"{one.low:g} to {one.high:g}"


def failures(rows: list[dict[str, Any]], worst: int) -> tuple[list[dict[str, Any]], list[str]]:
    """By genre: how far off the judge is and in which direction; then the single tracks it gets most wrong."""
    genres: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for genre in row["genre"].split(",") if row["genre"] else ["not said"]:
            genres.setdefault(genre.strip(), []).append(row)
    table = []
    for genre, inside in genres.items():
        if len(inside) < LEAST_TRACKS:
            continue
        mine, theirs = (np.array([row[key] for row in inside]) for key in ("judge", "teacher"))
        gap = mine - theirs
        figures = {"bias": float(gap.mean()), "rms_error": float(np.sqrt(np.mean(gap**2)))}
        table.append({"genre": genre, "tracks": len(inside), "spearman": spearman(mine, theirs), **figures})
    table.sort(key=lambda row: -row["rms_error"])
    lines = [
        "| genre | tracks | Spearman | judge less teacher | RMS error |",
        "|---|---|---|---|---|",
    ]
    for row in table:
        values = f"{row['spearman']:.2f} | {row['bias']:+.2f} | {row['rms_error']:.2f}"
        lines.append(f"| {row['genre']} | {row['tracks']} | {values} |")
    lines += ["", "| worst single tracks | genre | teacher | judge |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: -abs(row["judge"] - row["teacher"]))[:worst]:
        lines.append(f"| {row['name']} | {row['genre']} | {row['teacher']:+.2f} | {row['judge']:+.2f} |")
    return table, lines


def main(config: Config) -> None:
    accuracy = json.loads(config.accuracy.read_text())
    path = (config.teacher_dir or config.data_dir / "teacher") / "teacher.csv"
    if "teacher" not in accuracy or not path.exists():
        print(f"skipped: {config.accuracy} has no rewards of teacher tracks, or {path} is absent")
        return
    with path.open(newline="") as file:
        known = {row["midi"]: row for row in csv.DictReader(file)}
    rows = [
        {
            "name": Path(name).stem, "genre": known[name]["genre"], "collection": known[name]["collection"],
            "teacher": float(known[name]["teacher_reward"]), "judge": reward,
        }
        for name, reward in accuracy["teacher"]["rewards"].items()
    ]  # fmt: skip
    judge, teacher = (np.array([row[key] for row in rows]) for key in ("judge", "teacher"))
    first, second = np.triu_indices(len(rows), 1)
    predicted, truth = judge[first] - judge[second], teacher[first] - teacher[second]
    margins, teacher_margins = bins(predicted, truth, predicted), bins(predicted, truth, truth)
    reliability = [ReliabilityBin(one.count, one.given, one.alike) for one in margins]
    error = calibration_error_of_bins(reliability)
    genres, failed = failures(rows, config.worst)
    table = reliability_table(margins, teacher_margins, error)
    print(f"{accuracy['reward']}, {len(rows)} tracks, {len(predicted)} pairs, {describe_machine()}")
    print(f"Spearman {spearman(judge, teacher):.3f}, Kendall's tau {kendall(judge, teacher):.3f}\n")
    print("\n".join([*table, "", *failed]))
    if config.figure:
        from tunejury.report_page import reliability_figure

        reliability_figure({accuracy["reward"]: reliability}).savefig(config.figure)
    if config.output:
        results = {
            "reward": accuracy["reward"],
            "expected_calibration_error": error,
            "by_margin": [vars(one) for one in margins],
            "by_teacher_margin": [vars(one) for one in teacher_margins],
            "genres": genres,
            "tracks": rows,
            "table": table,
            "failures": failed,
        }
        config.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
