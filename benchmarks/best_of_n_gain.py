"""Is best-of-N's gain real? N candidates for unseen prompts, kept by the judge, heard by a listener it never met.

    python benchmarks/best_of_n_gain.py --output gain.json

Prints the mean reward from n = 1 to N beside the reward's spread between seeds, and how often the independent listener
(attribute_classifier.py) hears the prompted attributes in the kept clips and in the first ones, with a bootstrap
interval over prompts for the difference.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from attribute_classifier import RELIABLE, SAMPLE_RATE, load_classifier
from machine import describe_machine
from tqdm import tqdm

from alignment import load_backbone
from alignment.statistics import expected_best_of_n
from tunejury import convert_audio, load_reward

PROMPTS = Path(__file__).parent / "prompts" / "gain.jsonl"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    backbone: str = "compact-flow"
    reward: str = "compact"
    prompts: Path = PROMPTS
    num_candidates: int = 16
    batch_size: int = 8
    seed: int = 5000
    output: Path | None = None
    quick: bool = False
    """4 prompts, 4 candidates."""


def main(config: Config) -> None:
    records = [json.loads(line) for line in config.prompts.read_text().splitlines()]
    count = 4 if config.quick else config.num_candidates
    records = records[:4] if config.quick else records
    backbone, judge, listener = load_backbone(config.backbone), load_reward(config.reward), load_classifier()
    seeds = [config.seed + k for k in range(count)]
    rewards, agreement = [], []
    for record in tqdm(records, desc="prompts"):
        wav = torch.cat(
            [
                backbone.generate([record["prompt"]] * len(seeds[start : start + config.batch_size]), part)
                for start in range(0, count, config.batch_size)
                for part in [seeds[start : start + config.batch_size]]
            ]
        )
        with torch.inference_mode():
            rewards.append(judge(wav, backbone.sample_rate, [record["prompt"]] * count).numpy())
        mono = convert_audio(wav, backbone.sample_rate, SAMPLE_RATE, 1)[:, 0]
        heard = listener.probability(mono, [record["attributes"]] * count)
        agreement.append(np.stack([heard[name] for name in RELIABLE], axis=1))
    reward, heard_all = np.stack(rewards), np.stack(agreement)  # [P, N], [P, N, attributes]

    curve = expected_best_of_n(reward)
    spread = float(reward.std(axis=1, ddof=1).mean())
    gain = float(curve[-1] - curve[0])
    best = reward.argmax(1)
    rng = np.random.default_rng(0)
    table = {}
    for column, name in [*enumerate(RELIABLE), (None, "all attributes")]:
        values = heard_all.mean(2) if column is None else heard_all[:, :, column]
        kept = values[np.arange(len(values)), best]
        # the pool's mean is what a first clip gives on average, without one draw's luck
        for label, baseline in (("first", values[:, 0]), ("pool", values.mean(1))):
            difference = kept - baseline
            draws = difference[rng.integers(0, len(difference), (5000, len(difference)))].mean(1)
            low, high = np.quantile(draws, [0.025, 0.975])
            table[f"{name} vs {label}"] = {
                "kept": float(kept.mean()),
                "baseline": float(baseline.mean()),
                "difference": float(difference.mean()),
                "ci": [float(low), float(high)],
            }

    machine = describe_machine()
    print(f"{config.backbone} kept by {config.reward}: {len(records)} unseen prompts, N = {count}, on {machine}")
    print(f"mean reward {curve[0]:.3f} (n = 1) -> {curve[-1]:.3f} (n = {count}): gain {gain:.3f}, ", end="")
    print(f"{gain / spread:.2f} standard deviations between seeds of a prompt ({spread:.3f})")
    print("| listener's probability of the prompted class | kept | baseline | difference | 95 % interval |")
    print("|---|---|---|---|---|")
    for name, row in table.items():
        print(
            f"| {name} | {row['kept']:.3f} | {row['baseline']:.3f} | {row['difference']:+.3f} "
            f"| {row['ci'][0]:+.3f} to {row['ci'][1]:+.3f} |"
        )
    if config.output:
        results = {
            "backbone": config.backbone,
            "reward": config.reward,
            "machine": machine,
            "num_prompts": len(records),
            "num_candidates": count,
            "mean_reward_at_n": [float(value) for value in curve],
            "seed_spread": spread,
            "gain_in_spreads": gain / spread,
            "agreement": table,
        }
        config.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
