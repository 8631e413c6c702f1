"""Write a shipped judge's card: its text in cards/, with the figures its measurements printed.

    python benchmarks/judge_accuracy.py --reward data/compact/judge-compact --output accuracy.json
    python benchmarks/judge_reliability.py accuracy.json --output reliability.json
    python benchmarks/demo_clips.py --reward data/compact/judge-compact --output demo.json
    python recipes/compact/judge_ablation.py --teacher-dir DIR --output ablation.json
    python recipes/compact/write_judge_card.py --judge compact --directory data/compact/judge-compact
        --accuracy accuracy.json --reliability reliability.json --demo demo.json --ablation ablation.json

The second judge's card also takes `--agreement`, of benchmarks/judge_agreement.py. What is not given is left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from pretrain_judge import JudgeName

from tunejury import load_reward

CARDS = Path(__file__).parent / "cards"
MEASURES = {
    "spearman": "Spearman",
    "kendall": "Kendall's tau",
    "pairs_margin_over_0": "pairs ordered alike, all",
    "pairs_margin_over_1": "pairs ordered alike, teacher margin over 1",
}
NO_RATES = ("mean reward", "standard deviation")  # among the figures on prompts


@dataclass(frozen=True)
class Config:
    """What the card is made of."""

    judge: JudgeName
    directory: Path
    """The judge, with the fit.json that `train_judge.py` wrote; the card becomes its README.md."""
    accuracy: Path
    """Output of benchmarks/judge_accuracy.py."""
    agreement: Path | None = None
    """Output of benchmarks/judge_agreement.py."""
    reliability: Path | None = None
    """Output of benchmarks/judge_reliability.py."""
    demo: Path | None = None
    """Output of benchmarks/demo_clips.py."""
    ablation: Path | None = None
    """Output of judge_ablation.py."""
    note: str = ""
    """Put before the figures: how the measurements differed from the default."""


def accuracy_tables(results: dict[str, Any], fit: dict[str, Any] | None) -> list[str]:
    """Agreement with the teacher, faults, prompts."""
    teacher = results["teacher"]
    lines = [f"| agreement with the teacher, {len(teacher['rewards'])} held-out tracks | value | 95 % interval |"]
    lines.append("|---|---|---|")
    for key, name in MEASURES.items():
        low, high = teacher["intervals"][key]
        lines.append(f"| {name} | {teacher['figures'][key]:.3f} | {low:.3f} to {high:.3f} |")
    if fit is not None:
        lines += ["", fit_line(fit)]
    both = results["faults_teacher"], results["faults_composed"]
    strengths = list(next(iter(both[0].values())))
    columns = [f"{source}, {strength}" for strength in strengths for source in ("teacher", "composed")]
    lines += ["", f"| clean over degraded | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for fault in both[0]:
        rates = [f"{part[fault][strength]:.2f}" for strength in strengths for part in both]
        lines.append(f"| {fault} | {' | '.join(rates)} |")
    lines += ["", "| right prompt over wrong, composed clips | rate |", "|---|---|"]
    rates = {key: rate for key, rate in results["prompts"].items() if not key.startswith(NO_RATES)}
    return lines + [f"| {name} | {rate:.2f} |" for name, rate in rates.items()]


def fit_line(fit: dict[str, Any]) -> str:
    """The estimate on training tracks it had not seen."""
    parts = []
    for name, figures in (
        ("in folds by piece", fit["cross_validation"]),
        ("leaving a collection out", fit["leave_one_collection_out"]["all together"]),
    ):
        parts.append(f"Spearman {figures['spearman']:.3f} and pairs over 1 {figures['pairs']:.3f} {name}")
    line = (
        f"Training tracks, estimate fitted without them: {', '.join(parts)} (all collections of at least 12 "
        "tracks pooled; `train_judge.py` prints both; the encoder had heard these tracks, not their rewards)."
    )
    if "uncertainty" not in fit:
        return line
    doubt = fit["uncertainty"]
    thirds = ", ".join(f"{value:.2f}" for value in doubt["rms_error"])
    return (
        f"{line} Uncertainty, in the same folds: mean {doubt['mean_spread']:.2f}; its rank correlation with the error "
        f"is {doubt['spearman']:.2f}, the root mean square error in thirds of growing uncertainty {thirds}."
    )


def tables_of(path: Path | None, heading: str, *keys: str) -> list[list[str]]:
    """A heading and the lines that a measurement kept under `keys`; nothing for a measurement that is not given."""
    if path is None:
        return []
    kept = json.loads(path.read_text())
    return [[heading], *(kept[key] for key in keys)]


def main(config: Config) -> None:
    given = (config.accuracy, config.agreement, config.reliability, config.demo, config.ablation)
    for path in given:
        if path is not None and not path.is_file():
            raise SystemExit(f"error: {path} is missing: expected the --output of one of the commands in --help")
    model = load_reward(config.directory, device="cpu")
    sizes = {
        "AUDIO" if hasattr(encoder, "sample_rate") else "TEXT": sum(p.numel() for p in encoder.parameters())
        for encoder in model.encoders.values()
    }
    text = (CARDS / f"{config.judge}.md").read_text()
    for name, size in sizes.items():
        text = text.replace(f"{name}_PARAMETERS", f"{size / 1e6:.1f} million")
    kept = config.directory / "fit.json"
    fit = json.loads(kept.read_text()) if kept.exists() else None
    blocks = [[config.note], accuracy_tables(json.loads(config.accuracy.read_text()), fit)]
    blocks += tables_of(config.reliability, "### Reliability", "table")
    blocks += tables_of(config.agreement, "### Beside the other judge", "table")
    blocks += tables_of(config.demo, "### The six published clips", "table")
    blocks += tables_of(config.ablation, "### What each part is worth", "table")
    blocks += tables_of(config.reliability, "### Where it fails", "failures")
    text = text.replace("FIGURES", "\n\n".join("\n".join(block) for block in blocks if any(block)))
    (config.directory / "README.md").write_text(text)
    print(f"{config.directory / 'README.md'}: {len(text.splitlines())} lines")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
