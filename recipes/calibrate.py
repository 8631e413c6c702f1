"""Calibrate a judge to the systems in a file of votes, and measure on held-out votes whether that helps.

python recipes/calibrate.py --votes votes.csv
python recipes/calibrate.py --votes votes.jsonl --reward compact --num-folds 10

The file (.csv, .jsonl, .json) has system_a, system_b, winner (a, b or tie) and reward_a, reward_b; without rewards,
audio_a, audio_b and prompt. In the output folder: calibration.json for `load_reward(..., calibration=...)`,
results.json, report.html, and reliability.png.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from alignment.errors import InputError as AlignmentInputError
from alignment.runs import REPORT, RESULTS, RunDirectory, default_output_directory, versions
from tunejury.command_line import read_flags
from tunejury.errors import InputError

CALIBRATION = "calibration.json"
PLOT = "reliability.png"
FIGURES = ("accuracy", "log_loss", "brier_score", "expected_calibration_error")


@dataclass(frozen=True)
class Arguments:
    """Calibrate a judge to new systems."""

    votes: Path
    """File of votes."""
    reference_system: str | None = None
    """The system whose offset is shown as 0; the one with the most votes if not given."""
    allow_disconnected: bool = False
    """Take votes that leave groups of systems uncompared."""
    num_folds: int = 5
    """Parts the votes are held out in to measure."""
    half_width: float = 0.05
    """For the plan: how many more votes until a win probability is known to +- this (95 %)."""
    seed: int = 0
    """Of the partition into folds."""
    reward: str = "compact"
    """Judge, for files without rewards: a known name, a directory made by save_pretrained, or a hub id."""
    device: str = "auto"
    batch_size: int = 16
    output_dir: Path | None = None
    """Where everything goes; runs/calibrate/<timestamp> if not given."""
    overwrite: bool = False
    """Clear what a run left in the output folder and start anew."""


def run(arguments: Arguments) -> tuple[Path, dict[str, Any]]:
    """Read, fit, measure, write. Returns the output folder and the contents of results.json."""
    from tunejury.calibration_check import held_out_probabilities
    from tunejury.calibration_fit import fit_anchors
    from tunejury.metrics import bootstrap_interval, pairwise_accuracy, preference_metrics, reliability_bins
    from tunejury.planning import pairs_needed
    from tunejury.report_page import Section, offsets_figure, png_bytes, reliability_figure, write_page
    from tunejury.votes import read_votes

    settings = {key: value for key, value in vars(arguments).items() if key not in ("output_dir", "overwrite")}
    if arguments.votes.is_file():
        settings["votes"] = hashlib.sha256(arguments.votes.read_bytes()).hexdigest()
    settings = json.loads(json.dumps(settings, default=str))
    output_dir = arguments.output_dir or default_output_directory("calibrate", settings)
    directory = RunDirectory(output_dir, "calibrate", settings, overwrite=arguments.overwrite)
    if directory.finished and not arguments.overwrite:
        return output_dir, directory.read_json(RESULTS) or {}

    info: dict[str, Any] = {"versions": versions(), "votes_file": str(arguments.votes)}
    judged: list[str] = []

    def judge(files: Any, prompts: Any) -> list[float]:
        from tunejury import load_reward
        from tunejury.scoring import score_files

        model = load_reward(arguments.reward, device=None if arguments.device == "auto" else arguments.device)
        info.update(licenses=model.licenses(), protocol=model.protocol)
        judged.append(model.config.name)
        return score_files(model, files, prompts, batch_size=arguments.batch_size)

    votes = read_votes(arguments.votes, judge)
    calibration = fit_anchors(
        votes, reference_system=arguments.reference_system, allow_disconnected=arguments.allow_disconnected,
        reward=judged[0] if judged else None,
    )  # fmt: skip
    reference = calibration.reference_system or ""
    outcomes = [vote.target for vote in votes]
    if set(outcomes) == {0.5}:
        raise InputError(
            f"all {len(votes)} votes are ties, on which nothing can be measured; `tunejury calibrate` only fits"
        )
    probabilities = held_out_probabilities(votes, reference, num_folds=arguments.num_folds, seed=arguments.seed)
    groups = [vote.prompt or vote.pair_id for vote in votes]
    held_out = {
        method: {**preference_metrics(values, outcomes), "accuracy_ci": bootstrap_interval(
            pairwise_accuracy, values - 0.5, outcomes, groups=groups)}
        for method, values in probabilities.items()
    }  # fmt: skip
    plan = {s: pairs_needed(calibration, s, reference, arguments.half_width) for s in calibration.systems
            if s != reference}  # fmt: skip
    summary = {
        "recipe": "calibrate", "num_votes": len(votes), "num_ties": outcomes.count(0.5), "held_out": held_out,
        "scale": asdict(calibration.scale_interval()), "reference_system": reference,
        "offsets": {system: asdict(calibration.offset(system)) for system in calibration.systems},
        "votes_per_system": dict(zip(calibration.systems, calibration.num_votes, strict=True)),
        "half_width": arguments.half_width, "more_votes": plan,
    }  # fmt: skip
    bins = {method: reliability_bins(values, outcomes) for method, values in probabilities.items()}
    figures = [("reliability diagram of held-out votes", reliability_figure(bins)),
               ("offset of each system with its interval", offsets_figure(calibration))]  # fmt: skip
    with directory:
        directory.start(info)
        calibration.save(output_dir / CALIBRATION)
        (output_dir / PLOT).write_bytes(png_bytes(figures[0][1]))
        table = [[method, *(f"{values[key]:.4f}" for key in FIGURES)] for method, values in held_out.items()]
        offsets = [[s, str(n), f"{o.value:+.2f}", f"{o.low:+.2f} to {o.high:+.2f}", str(plan.get(s, 0))]
                   for s, n in summary["votes_per_system"].items() for o in [calibration.offset(s)]]  # fmt: skip
        write_page(output_dir / REPORT, f"Calibration on {len(votes)} votes", [
            Section("Held-out votes", f"{arguments.num_folds} folds; ties are left out", ["", *FIGURES], table,
                    figures[:1]),
            Section("Offsets", f"by how much the judge overrates a system more than {reference}, in log-odds; scale "
                    f"{calibration.scale:.2f}", ["system", "votes", "offset", "95 %",
                    f"more votes for +-{arguments.half_width:g}"], offsets, figures[1:]),
        ])  # fmt: skip
        directory.write_json(RESULTS, summary)
    return output_dir, summary


def show(output_dir: Path, summary: dict[str, Any]) -> None:
    print("held-out votes    accuracy  log loss  calibration error")
    for method, values in summary["held_out"].items():
        print(f"{method:16}  {values['accuracy']:8.3f}  {values['log_loss']:8.4f}  "
              f"{values['expected_calibration_error']:8.4f}")  # fmt: skip
    print(f"scale {summary['scale']['value']:.2f}; offsets relative to {summary['reference_system']}:")
    for system, offset in summary["offsets"].items():
        more = summary["more_votes"].get(system, 0)
        interval = f"{offset['low']:+.2f} to {offset['high']:+.2f}"
        print(f"{offset['value']:+7.2f}  ({interval})  {system}, {more} more votes for +-{summary['half_width']:g}")
    print(f"calibration: {output_dir / CALIBRATION}\nresults: {output_dir / RESULTS}")


def main() -> None:
    arguments = read_flags(lambda: tyro.cli(Arguments))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        show(*run(arguments))
    except (AlignmentInputError, InputError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
