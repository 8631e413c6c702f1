"""`tunejury calibrate`: votes in, a calibration out."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from tunejury.command_options import check_can_write, load_judge, to_json

if TYPE_CHECKING:
    from tunejury.calibration import AnchorCalibration


@dataclass(frozen=True)
class Calibrate:
    """Calibrate a judge to the systems in a file of votes: a scale for its margins, an offset per system.

    The file (.csv, .jsonl, .json) has system_a, system_b, winner (a, b or tie) and reward_a, reward_b; without rewards,
    audio_a, audio_b and prompt, which the judge then scores.
    """

    votes: Positional[Path]
    """File of votes."""
    output: Path | None = None
    """Where to write the calibration (JSON), for `load_reward(..., calibration=...)`."""
    method: Literal["anchors", "published"] = "anchors"
    """anchors: scale, offsets and ties, shrinkage from the votes. published: offsets alone, l2 = 1."""
    reference_system: str | None = None
    """The system whose offset is shown as 0; left out, the one with the most votes."""
    allow_disconnected: bool = False
    """Take votes that leave groups of systems uncompared."""
    half_width: float = 0.05
    """For the plan: how many more votes until a win probability is known to +- this (95 %)."""
    reward: str = "compact"
    """The judge, for files without rewards: a known name, a directory made by save_pretrained, a released head (.pt),
    or a hub id.
    """
    device: str = "auto"
    """cpu, cuda, cuda:N; auto takes a GPU if there is one."""
    batch_size: int = 16
    """Most clips judged at once."""
    protocol: str | None = None
    """What the judge hears of a clip; left out, what it was made for."""
    files: tuple[str, ...] = ()
    """Parts of a released head that lie here, as part=path: head, clap, roberta, mert, muq, muq-base, xlm-roberta."""
    json: bool = False
    """Print JSON in full precision."""

    def run(self) -> None:
        """Fit, write, print."""
        from tunejury.calibration_fit import fit_anchors, fit_published
        from tunejury.planning import pairs_needed
        from tunejury.votes import count_votes, read_votes

        judged: list[str] = []

        def judge(files: Any, prompts: Any) -> list[float]:
            from tunejury.scoring import score_files

            model = load_judge(self.reward, self.device, self.protocol, self.files)
            judged.append(model.config.name)
            return score_files(model, files, prompts, batch_size=self.batch_size)

        check_can_write(self.output)
        votes = read_votes(self.votes, judge)
        # rewards that came with the file may be any judge's
        shared: dict[str, Any] = {
            "allow_disconnected": self.allow_disconnected,
            "reward": judged[0] if judged else None,
        }
        if self.method == "published":
            counts = count_votes(votes)
            reference = self.reference_system or max(sorted(counts), key=lambda system: counts[system])
            calibration = fit_published(votes, reference_system=reference, **shared)
        else:
            calibration = fit_anchors(votes, reference_system=self.reference_system, **shared)
        reference = calibration.reference_system or ""
        rows = []
        for system, count in zip(calibration.systems, calibration.num_votes, strict=True):
            plan = 0 if system == reference else pairs_needed(calibration, system, reference, self.half_width)
            rows.append(
                {"system": system, "votes": count, "offset": asdict(calibration.offset(system)), "more_votes": plan}
            )
        if self.output is not None:
            calibration.save(self.output)
        if self.json:
            summary = {
                "method": calibration.method, "num_votes": len(votes), "scale": asdict(calibration.scale_interval()),
                "reference_system": reference, "half_width": self.half_width, "systems": rows,
            }  # fmt: skip
            sys.stdout.write(to_json(summary))
        else:
            sys.stdout.write(format_table(calibration, rows, self.half_width))


def format_table(calibration: AnchorCalibration, rows: list[dict[str, Any]], half_width: float) -> str:
    """What a person reads: scale, and per system its offset and how many more votes against the reference it takes."""
    scale = calibration.scale_interval()
    width = max([len("system"), *(len(row["system"]) for row in rows)])
    lines = [
        f"scale {scale.value:.2f} ({scale.low:.2f} to {scale.high:.2f}): what a unit of margin is worth in log-odds",
        f"offsets: by how much the judge overrates a system more than {calibration.reference_system}, in log-odds",
        f"{'system':{width}}  votes  offset  95 % interval     more votes for +-{half_width:g}",
    ]
    for row in rows:
        offset = row["offset"]
        interval = f"{offset['low']:+.2f} to {offset['high']:+.2f}"
        lines.append(
            f"{row['system']:{width}}  {row['votes']:5d}  {offset['value']:+6.2f}  {interval:16}  {row['more_votes']}"
        )
    return "\n".join(lines) + "\n"
