"""A judge's rewards of TuneJury's six published clips beside the published ones.

    python benchmarks/demo_clips.py --data-dir ../shared/data --output demo.json

Each pair is a clip before and after one of the paper's three applications (best-of-N, DITTO, expert iteration); the
released judge rated every second one higher. The clips are DATA_DIR/demo/*.wav, their rewards those of the project
page, which gives two digits. The number after p in a clip's name is taken for its prompt's id in
DATA_DIR/prompts/sdd100.json: the rewards with a prompt are only as right as that guess. The compact judges were trained
on none of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from machine import describe_machine

from tunejury import RewardModel, load_audio, load_reward

# published rewards by clip, the later and better one of each pair second
PAIRS = (
    (("mode1_p75_n1", 0.05), ("mode1_p75_top", 1.71)),
    (("mode2_tangoflux_p0_baseline", -1.11), ("mode2_tangoflux_p0_ditto", 1.13)),
    (("mode3_p46_baseline", -2.06), ("mode3_p46_finetuned", -0.05)),
)
KINDS = ("without_prompt", "with_prompt")


@dataclass(frozen=True)
class Config:
    """What to measure."""

    reward: str = "compact"
    """A known name, a directory or a hub id."""
    data_dir: Path = Path("../shared/data")
    output: Path | None = None
    quick: bool = False
    """No difference: it takes seconds."""


def read_prompts(path: Path) -> dict[int, str]:
    """Prompts by their `prompt_id`; none where the file is absent."""
    if not path.exists():
        print(f"skipped: rewards with prompts ({path} is absent)")
        return {}
    return {int(row["prompt_id"]): str(row["prompt"]) for row in json.loads(path.read_text())}


@torch.inference_mode()
def measure(judge: RewardModel, folder: Path, prompts: dict[int, str]) -> dict[str, Any]:
    """Rewards of all clips, and whether each pair is ordered as published; None where there is no prompt."""
    clips: dict[str, dict[str, Any]] = {}
    pairs = []
    for pair in PAIRS:
        for clip, published in pair:
            wav, sample_rate = load_audio(folder / f"{clip}.wav")
            number = re.search(r"_p(\d+)_", clip)
            prompt = prompts.get(int(number[1])) if number else None
            clips[clip] = {
                "published": published,
                "prompt": prompt,
                "without_prompt": float(judge(wav[None], sample_rate)),
                "with_prompt": None if prompt is None else float(judge(wav[None], sample_rate, [prompt])),
                "uncertainty": float(judge.uncertainty(wav[None], sample_rate)) if judge.has_uncertainty else None,
            }
        first, second = (clips[clip] for clip, _ in pair)
        held = {key: None if second[key] is None else second[key] > first[key] for key in KINDS}
        pairs.append({"first": pair[0][0], "second": pair[1][0], **held})
    return {"clips": clips, "pairs": pairs}


def table(name: str, results: dict[str, Any]) -> list[str]:
    """Lines of Markdown; what does not hold is said in capitals."""
    lines = [f"| clip | published | {name} without prompt | with prompt |", "|---|---|---|---|"]
    for clip, row in results["clips"].items():
        cells = ["" if row[key] is None else f"{row[key]:+.2f}" for key in ("published", *KINDS)]
        lines.append(f"| {clip} | {' | '.join(cells)} |")
    lines += ["", "| pair | published order holds without prompt | with prompt |", "|---|---|---|"]
    for row in results["pairs"]:
        cells = ["" if row[key] is None else "yes" if row[key] else "NO" for key in KINDS]
        lines.append(f"| {row['first']} < {row['second']} | {' | '.join(cells)} |")
    return lines


def main(config: Config) -> None:
    folder = config.data_dir / "demo"
    missing = [clip for pair in PAIRS for clip, _ in pair if not (folder / f"{clip}.wav").exists()]
    if missing:
        print(f"skipped: {len(missing)} of 6 clips are absent from {folder}, first {missing[0]}.wav")
        return
    prompts = read_prompts(config.data_dir / "prompts" / "sdd100.json")
    judge = load_reward(config.reward, device="cpu")
    results = {"reward": config.reward, **measure(judge, folder, prompts)}
    results["table"] = table(judge.config.name, results)
    print(describe_machine())
    print("\n".join(results["table"]))
    if config.output:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
