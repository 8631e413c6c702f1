"""`tunejury evaluate`: a table of votes or ratings in, how well the judge agrees with them out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from tunejury.command_options import check_can_write, load_judge, to_json
from tunejury.errors import InputError

if TYPE_CHECKING:
    from tunejury.calibration import AnchorCalibration
    from tunejury.preferences import PreferencePair
    from tunejury.ratings import RatedClip


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
    calibration: Path | None = None
    """File of a calibration, as `tunejury calibrate` writes it: adds the figures of calibrated probabilities for votes
    that name their systems. Votes it was made from flatter it.
    """
    intervals_over: Literal["prompt", "system", "row"] = "prompt"
    """What is drawn anew, as a whole, for the 95 % intervals: prompts, (pairs of) systems, or single rows."""
    output: Path | None = None
    """Where to write the figures (JSON)."""
    report: Path | None = None
    """Where to write a page of tables and plots (HTML, one file)."""
    json: bool = False
    """Print the report as JSON instead of a table."""

    def run(self) -> None:
        """Read, judge, measure, write, print."""
        for path in (self.output, self.report):
            check_can_write(path)
        report, pairs, clips, calibration = self._measure()
        report = {"table": str(self.table), **report}
        text = to_json(report)
        if self.output is not None:
            from tunejury.files import atomic_path

            with atomic_path(self.output) as temporary:
                temporary.write_text(text, encoding="utf-8")
        from tunejury.evaluation_page import format_table, write_evaluation_page

        if self.report is not None:
            write_evaluation_page(self.report, report, pairs, clips, calibration)
        sys.stdout.write(text if self.json else format_table(report))

    def _measure(
        self,
    ) -> tuple[dict[str, Any], list[PreferencePair], dict[str, list[RatedClip]], AnchorCalibration | None]:
        """The report, and what it is of: judged pairs, and judged clips by data set."""
        from tunejury.calibration import AnchorCalibration
        from tunejury.cmi_rewardbench import benchmark_accuracy, read_cmi_rewardbench
        from tunejury.evaluation import judge_clips, judge_pairs, pair_report, rating_report
        from tunejury.preferences import COLUMNS, read_pairs, read_rows
        from tunejury.ratings import read_ratings
        from tunejury.votes import say_repeated

        calibration = None if self.calibration is None else AnchorCalibration.load(self.calibration)
        used: dict[str, Any] = {}

        def judge(files: Any, prompts: Any) -> list[float]:
            from tunejury.scoring import score_files

            model = load_judge(self.reward, self.device, self.protocol, self.files)
            if calibration is not None:
                calibration.check_reward(model.config.name)
            used.update(reward=model.config.name, protocol=model.protocol, prompts=not self.ignore_prompts)
            chosen = [""] * len(files) if self.ignore_prompts else prompts
            return score_files(model, files, chosen, batch_size=self.batch_size)

        _, row = next(iter(read_rows(self.table)))
        kind = _kind(row, self.table) if self.kind == "auto" else self.kind
        pairs: list[PreferencePair] = []
        clips: dict[str, list[RatedClip]] = {}
        report: dict[str, Any] = {}
        if kind == "pairs":
            has_rewards = all(
                any(row.get(name) not in (None, "") for name in COLUMNS[side]) for side in ("reward_a", "reward_b")
            )
            pairs = read_pairs(self.table, audio_root=self.audio_root, needs="rewards" if has_rewards else "audio")
            say_repeated(pairs, self.table)
        elif kind == "ratings":
            clips = {"": read_ratings(self.table, self.ratings, audio_root=self.audio_root)}
        else:
            bench = read_cmi_rewardbench(self.table, audio_root=self.audio_root, split=self.split)
            pairs = [pair for pairs in bench.pairs.values() for pair in pairs]
            clips = bench.clips
            report = {"num_with_lyrics": bench.num_with_lyrics, "num_with_reference": bench.num_with_reference}
        if calibration is not None and not pairs:
            raise InputError(f"{self.table} holds no votes, which --calibration is for")
        # one call for each kind, so that a judge is loaded no more often
        judged = iter(judge_clips([clip for part in clips.values() for clip in part], judge))
        clips = {name: [next(judged) for _ in part] for name, part in clips.items()}
        pairs = judge_pairs(pairs, judge)
        tables = {name: rating_report(part, groups=self.intervals_over) for name, part in clips.items()}
        if kind == "ratings":
            report["ratings"] = tables[""]
        elif tables:
            report["ratings_by_dataset"] = tables
        if pairs:
            report["pairs"] = pair_report(pairs, calibration=calibration, groups=self.intervals_over)
        if kind == "cmi-rewardbench" and pairs:
            sources = dict.fromkeys(pair.source for pair in pairs)
            report["benchmark_accuracy"] = {
                source: benchmark_accuracy([pair for pair in pairs if pair.source == source]) for source in sources
            }
        if calibration is not None:
            used["calibration"] = str(self.calibration)
        return {"kind": kind, **used, **report}, pairs, clips, calibration


def _kind(row: dict[str, Any], table: Path) -> str:
    from tunejury.cmi_rewardbench import is_cmi_row
    from tunejury.preferences import COLUMNS
    from tunejury.ratings import CLIP_COLUMNS, REWARD_COLUMNS

    if is_cmi_row(row):
        return "cmi-rewardbench"
    if any(name in row for name in COLUMNS["winner"]):
        return "pairs"
    if not any(name in row for name in (*CLIP_COLUMNS, *REWARD_COLUMNS)):
        raise InputError(
            f"{table} holds neither votes (a column winner) nor ratings (a column audio or reward), there are: "
            f"{', '.join(map(str, row))}"
        )
    return "ratings"
