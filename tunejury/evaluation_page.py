"""What `tunejury evaluate` shows: tables, and a page with plots of the judge's rewards beside the people's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunejury.calibration import AnchorCalibration
from tunejury.evaluation import pair_margins, pair_probabilities
from tunejury.metrics import reliability_bins
from tunejury.preferences import PreferencePair
from tunejury.ratings import RatedClip
from tunejury.report_page import Section, margin_figure, rating_figure, reliability_figure, write_page


def write_evaluation_page(
    path: str | Path,
    report: Mapping[str, Any],
    pairs: Sequence[PreferencePair],
    clips: Mapping[str, Sequence[RatedClip]],
    calibration: AnchorCalibration | None = None,
) -> None:
    """Write the page.

    Args:
        path: of the .html file.
        report: what the command writes as JSON.
        pairs: the judged pairs it is of.
        clips: the judged clips it is of, by data set.
        calibration: the one whose figures are in the report.

    Raises:
        OSError: it cannot be written.
    """
    judge = f"judge {report['reward']}, protocol {report['protocol']['name']}" if "reward" in report else ""
    sections = []
    if pairs:
        header, rows = pair_rows(report["pairs"])
        sections.append(
            Section(
                "Votes",
                f"{judge or 'rewards of the table'}; ties are left out; a difference of rewards is taken as a log-odds",
                header, rows, _pair_figures(pairs, calibration),
            )
        )  # fmt: skip
    tables = rating_tables(report)
    if tables:
        header, rows = rating_rows(tables)
        figures = [
            (
                f"reward over {scale}, a point per clip {name}".strip(),
                rating_figure(
                    [clip.reward or 0.0 for clip in part if scale in clip.ratings],
                    [clip.ratings[scale] for clip in part if scale in clip.ratings],
                    [clip.system for clip in part if scale in clip.ratings],
                    f"{name} {scale}".strip(),
                ),
            )
            for name, part in clips.items()
            for scale in tables[name]["scales"]
        ]
        sections.append(Section("Ratings", judge or "rewards of the table", header, rows, figures))
    write_page(path, f"Agreement with people: {Path(report['table']).name}", sections)


def _pair_figures(pairs: Sequence[PreferencePair], calibration: AnchorCalibration | None) -> list[tuple[str, Any]]:
    kept = [pair for pair in pairs if not pair.is_tie]
    if not kept:
        return []
    outcomes = [pair.target for pair in kept]
    probabilities = {"raw": pair_probabilities(kept)}
    if calibration is not None:
        probabilities["calibrated"] = pair_probabilities(kept, calibration)
    bins = {name: reliability_bins(values, outcomes) for name, values in probabilities.items()}
    return [
        ("reliability diagram: share of right choices over the probability given", reliability_figure(bins)),
        ("share of right choices over the absolute margin", margin_figure(pair_margins(kept), outcomes)),
    ]


def pair_rows(pairs: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of votes, from `pair_report`."""
    header = ["pairs", "number", "ties", "accuracy", "95 %", "log loss", "Brier", "ECE", "A won", "judge chose A"]
    rows = []
    for name, row in {"all": pairs, **pairs.get("by_source", {})}.items():
        position = row["position"] or {}
        sides = [_number(position[key]["share"]) if position else "-" for key in ("a_won", "judge_chose_a")]
        for label, values in ((name, row), (f"{name}, calibrated", row.get("calibrated"))):
            if values is not None:
                figures = [_number(values[key]) for key in ("log_loss", "brier_score", "expected_calibration_error")]
                counts = [str(row["num_pairs"]), str(row["num_ties"])]
                accuracy = [_number(values["accuracy"]), _interval(values["accuracy_ci"])]
                rows.append([label, *counts, *accuracy, *figures, *(sides if label == name else ["", ""])])
    return header, rows


def rating_rows(tables: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of ratings, from `rating_report` by data set."""
    header = ["rating", "clips", "Spearman", "95 %", "Pearson", "Kendall", "systems", "Spearman by system"]
    rows = []
    for name, table in tables.items():
        for scale, row in table["scales"].items():
            figures = [_number(row[key]) for key in ("pearson", "kendall")]
            by_system = _number(row["by_system"]["spearman"]) if "by_system" in row else "-"
            rows.append(
                [f"{name} {scale}".strip(), str(row["num_clips"]), _number(row["spearman"]),
                 _interval(row["spearman_ci"]), *figures, str(row.get("num_systems", "-")), by_system]
            )  # fmt: skip
    return header, rows


def rating_tables(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rating reports in a report, by data set."""
    alone = {"": report["ratings"]} if "ratings" in report else {}
    return report.get("ratings_by_dataset", alone)


def format_table(report: Mapping[str, Any]) -> str:
    """Tables for a terminal."""
    lines = []
    for header, rows in (
        *([pair_rows(report["pairs"])] if "pairs" in report else []),
        *([rating_rows(rating_tables(report))] if rating_tables(report) else []),
    ):
        lines += [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    position = report["pairs"]["position"] if "pairs" in report else None
    won = position["a_won"] if position else None
    if won and won["ci"] and not won["ci"][0] <= 0.5 <= won["ci"][1]:
        lines.append(
            f"sides: A won {won['share']:.1%} of votes (95 %: {_interval(won['ci'])}): sides were not drawn at random, "
            "or place had a part"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(values: list[float] | None) -> str:
    return "-" if values is None else f"{values[0]:.4f} to {values[1]:.4f}"
