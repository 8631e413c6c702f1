"""How far two judges agree with each other: on the teacher's held-out tracks, and on generated clips.

    python benchmarks/judge_accuracy.py --reward compact --output a.json
    python benchmarks/judge_accuracy.py --reward compact-b --output b.json
    python recipes/best_of_n.py --reward compact --held-out-reward compact-b --num-candidates 16 --output-dir runs/both
    python benchmarks/judge_agreement.py a.json b.json --run runs/both --output agreement.json

Two judges that agree on everything watch nothing: the second would be fooled by what fools the first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from judge_accuracy import Values, agreement, ranks

from tunejury import InputError
from tunejury.checkpoints import read_json


@dataclass(frozen=True)
class Config:
    """What to compare."""

    accuracies: Annotated[tuple[Path, Path], tyro.conf.Positional]
    """Outputs of judge_accuracy.py for the two judges."""
    run: Path | None = None
    """Folder that recipes/best_of_n.py wrote with the first judge as reward and the second as held-out reward."""
    output: Path | None = None


def compare_tracks(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float]:
    """How alike the judges' rewards order the teacher's tracks."""
    shared = sorted(first["teacher"]["rewards"].keys() & second["teacher"]["rewards"].keys())
    a, b = (np.array([results["teacher"]["rewards"][name] for name in shared]) for results in (first, second))
    return {"tracks": len(shared), **agreement(a, b)}


def compare_clips(run: Path) -> dict[str, float]:
    """Rank correlations of the judges' rewards of generated clips, and what the first one's choice is worth."""
    lines = [json.loads(line) for line in (run / "candidates.jsonl").read_text().splitlines()]
    groups: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        pair = line["reward"], (line.get("side") or {}).get("held_out_reward")
        if None not in pair:
            groups.setdefault(line["prompt_id"], []).append(pair)
    tables = [np.array(rows) for rows in groups.values() if len(rows) > 2]
    both = np.concatenate(tables)
    chosen = np.array([rows[rows[:, 0].argmax(), 1] - rows[:, 1].mean() for rows in tables])
    best = np.array([rows[:, 1].max() - rows[:, 1].mean() for rows in tables])
    return {
        "prompts": len(tables),
        "clips": len(both),
        "spearman": correlation(both[:, 0], both[:, 1]),
        "spearman_within_prompts": float(np.mean([correlation(rows[:, 0], rows[:, 1]) for rows in tables])),
        "same_best": float(np.mean([rows[:, 0].argmax() == rows[:, 1].argmax() for rows in tables])),
        "gain_of_first_choice_by_second": float(chosen.mean()),
        "gain_of_own_choice_by_second": float(best.mean()),
    }


def correlation(a: Values, b: Values) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def main(config: Config) -> None:
    try:
        first, second = (read_json(path, "result of judge_accuracy.py") for path in config.accuracies)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    tracks = compare_tracks(first, second)
    rows = [(f"held-out teacher tracks, Spearman ({tracks['tracks']})", tracks["spearman"])]
    rows.append(("held-out teacher tracks, pairs ordered alike", tracks["pairs_margin_over_0"]))
    names = [Path(part["reward"]).name for part in (first, second)]  # a judge may be a folder
    results: dict[str, Any] = {"first": names[0], "second": names[1], "teacher": tracks}
    if config.run is not None:
        clips = results["generated"] = compare_clips(config.run)
        what = f"{clips['clips']} clips of {clips['prompts']} prompts"
        rows.append((f"generated, {what}, Spearman over all", clips["spearman"]))
        rows.append(("generated, Spearman within a prompt, mean", clips["spearman_within_prompts"]))
        chance = clips["prompts"] / clips["clips"]
        rows.append((f"generated, same best clip (chance {chance:.2f})", clips["same_best"]))
        gain, own = clips["gain_of_first_choice_by_second"], clips["gain_of_own_choice_by_second"]
        what = f"gain of the clip that {names[0]} keeps, by {names[1]}"
        rows.append((f"generated, {what} (of the clip it would keep itself: {own:.2f})", gain))
    table = [f"| agreement of the two judges | {names[1]} with {names[0]} |", "|---|---|"]
    results["table"] = table + [f"| {name} | {value:.3f} |" for name, value in rows]
    print("\n".join(results["table"]))
    if config.output:
        config.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
