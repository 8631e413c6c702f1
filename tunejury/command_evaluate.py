"""`tunejury evaluate`: a table of votes or ratings in, how well the judge agrees with them out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from tunejury.command_options import load_judge, to_json
from tunejury.errors import InputError


@dataclass(frozen=True)
class Evaluate:
    """Measure how well a judge agrees with people.

    The table (.jsonl, .csv, .json) holds votes (winner, with audio_a, audio_b, prompt), ratings (audio, prompt, columns
    of numbers), or is CMI-RewardBench's. Where it has rewards (reward_a and reward_b, or reward) no audio is needed.
    """

    table: Annotated[Positional[Path], arg(metavar="FILE")]
    """Table of votes or ratings."""
    kind: Literal["auto", "pairs", "ratings", "cmi-rewardbench"] = "auto"
    """What the table holds; auto tells by its columns."""
    ratings: tuple[str, ...] = ()
    """Columns of ratings; all columns of numbers if not given."""
    audio_root: Path | None = None
    """What relative paths of clips start from; the folder of the table if not given."""
    split: str = "test"
    """Rows of CMI-RewardBench to take."""
    reward: str = "compact"
    """The judge: a known name, a directory made by save_pretrained, a released head (.pt), or a hub id."""
    ignore_prompts: bool = False
    """Judge the audio by itself."""
    device: str = "auto"
    """cpu, cuda, cuda:N; auto takes a GPU if there is one."""
    batch_size: int = 16
    """Most clips judged at once."""
    protocol: str | None = None
    """What the judge hears of a clip; left out, what it was made for."""
    files: tuple[str, ...] = ()
    """Parts of a released head that lie here, as part=path: head, clap, roberta, mert, muq, muq-base, xlm-roberta."""
    output: Path | None = None
    """Where to write the report (JSON)."""
    json: bool = False
    """Print the report as JSON instead of a table."""

    def run(self) -> None:
        """Read, judge, measure, write, print."""
        if self.output is not None and not self.output.parent.is_dir():
            raise InputError(f"{self.output.parent} is no folder, the report cannot be written there")
        report = {"table": str(self.table), **self._report()}
        text = to_json(report)
        if self.output is not None:
            from tunejury.files import atomic_path

            with atomic_path(self.output) as temporary:
                temporary.write_text(text, encoding="utf-8")
        sys.stdout.write(text if self.json else _table(report))

    def _report(self) -> dict[str, Any]:
        from tunejury.evaluation import judge_clips, judge_pairs, pair_report, rating_report, read_ratings
        from tunejury.preferences import COLUMNS, read_pairs, read_rows

        used: dict[str, Any] = {}

        def judge(files: Any, prompts: Any) -> list[float]:
            from tunejury.scoring import score_files

            model = load_judge(self.reward, self.device, self.protocol, self.files)
            used.update(reward=model.config.name, protocol=model.protocol, prompts=not self.ignore_prompts)
            chosen = [""] * len(files) if self.ignore_prompts else prompts
            return score_files(model, files, chosen, batch_size=self.batch_size)

        _, row = next(iter(read_rows(self.table)))
        kind = _kind(row) if self.kind == "auto" else self.kind
        report: dict[str, Any]
        if kind == "pairs":
            has_rewards = all(any(row.get(name) for name in COLUMNS[side]) for side in ("reward_a", "reward_b"))
            pairs = read_pairs(self.table, audio_root=self.audio_root, needs="rewards" if has_rewards else "audio")
            report = {"pairs": pair_report(judge_pairs(pairs, judge))}
        elif kind == "ratings":
            clips = read_ratings(self.table, self.ratings, audio_root=self.audio_root)
            report = {"ratings": rating_report(judge_clips(clips, judge))}
        else:
            report = self._cmi_rewardbench(judge)
        return {"kind": kind, **used, **report}

    def _cmi_rewardbench(self, judge: Any) -> dict[str, Any]:
        from tunejury.cmi_rewardbench import benchmark_accuracy, read_cmi_rewardbench
        from tunejury.evaluation import judge_clips, judge_pairs, pair_report, rating_report

        bench = read_cmi_rewardbench(self.table, audio_root=self.audio_root, split=self.split)
        # judged in one go, so that the judge is loaded once
        clips = judge_clips([clip for clips in bench.clips.values() for clip in clips], judge) if bench.clips else []
        pairs = judge_pairs([pair for pairs in bench.pairs.values() for pair in pairs], judge) if bench.pairs else []
        report: dict[str, Any] = {
            "num_with_lyrics": bench.num_with_lyrics,
            "num_with_reference": bench.num_with_reference,
        }
        if clips:
            report["ratings_by_dataset"] = {
                name: rating_report([clip for clip in clips if clip.source == name]) for name in bench.clips
            }
        if pairs:
            report["pairs"] = pair_report(pairs)
            report["benchmark_accuracy"] = {
                name: benchmark_accuracy([pair for pair in pairs if pair.source == name]) for name in bench.pairs
            }
        return report


def _kind(row: dict[str, Any]) -> str:
    from tunejury.cmi_rewardbench import is_cmi_row
    from tunejury.preferences import COLUMNS

    if is_cmi_row(row):
        return "cmi-rewardbench"
    return "pairs" if any(name in row for name in COLUMNS["winner"]) else "ratings"


def _table(report: dict[str, Any]) -> str:
    lines = []
    pairs = report.get("pairs")
    if pairs:
        lines += [
            "| pairs | number | ties | accuracy | 95 % | log loss | Brier | ECE |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, row in {"all": pairs, **pairs.get("by_source", {})}.items():
            figures = [_figure(row[key]) for key in ("log_loss", "brier_score", "expected_calibration_error")]
            lines.append(
                f"| {name} | {row['num_pairs']} | {row['num_ties']} | {_figure(row['accuracy'])} "
                f"| {_interval(row['accuracy_ci'])} | {' | '.join(figures)} |"
            )
    tables = report.get("ratings_by_dataset") or ({"": report["ratings"]} if "ratings" in report else {})
    if tables:
        lines += ["| rating | clips | Spearman | 95 % | Pearson | Kendall | systems | Spearman by system |"]
        lines += ["|---" * 8 + "|"]
        for name, table in tables.items():
            for scale, row in table["scales"].items():
                figures = [_figure(row[key]) for key in ("pearson", "kendall")]
                by_system = _figure(row["by_system"]["spearman"]) if "by_system" in row else "-"
                lines.append(
                    f"| {f'{name} {scale}'.strip()} | {row['num_clips']} | {_figure(row['spearman'])} "
                    f"| {_interval(row['spearman_ci'])} | {' | '.join(figures)} | {row.get('num_systems', '-')} "
                    f"| {by_system} |"
                )
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(values: list[float] | None) -> str:
    return "-" if values is None else f"{values[0]:.4f} to {values[1]:.4f}"
