"""How often the calibration's intervals hold the truth, on votes drawn from known offsets and scales.

python benchmarks/calibration_coverage.py --output coverage.json

Each study draws new systems, votes on them, fits, and asks whether the 95 % intervals hold the true differences of
offsets, the true scale and the true win probabilities. `as held` draws truths as the default prior holds them; the
others do not: a judge as good as at home, systems far apart or all alike, a third of the votes ties, one system in four
votes out of five, offsets of a heavy-tailed distribution.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from machine import describe_machine

from tunejury.calibration_fit import fit_anchors
from tunejury.preferences import PreferencePair

NUM_VOTES = (30, 100, 300)


@dataclass(frozen=True)
class Study:
    """What truths and votes are drawn from."""

    scale: tuple[float, float] = (0.5, 0.3)
    """Mean and deviation."""
    spread: float = 0.5
    """Of offsets."""
    tail: float | None = None
    """Degrees of freedom of the offsets' t distribution; None for a normal one."""
    tie: float = 0.0
    """Davidson's tie strength."""
    num_systems: int = 6
    uneven: bool = False
    """One system is in most votes."""


STUDIES: Mapping[str, Study] = {
    "as held": Study(),
    "good judge (scale 1)": Study(scale=(1.0, 0.0)),
    "blind judge (scale 0)": Study(scale=(0.0, 0.0)),
    "systems far apart (spread 1)": Study(spread=1.0),
    "systems very far apart (spread 2)": Study(spread=2.0),
    "systems alike (spread 0.1)": Study(spread=0.1),
    "a third ties": Study(tie=1.0),
    "uneven": Study(uneven=True),
    "heavy tails": Study(tail=3.0),
    "12 systems": Study(num_systems=12),
    "12 systems far apart (spread 1)": Study(num_systems=12, spread=1.0),
    "good judge, systems far apart": Study(scale=(1.0, 0.0), spread=1.0),
}


@dataclass(frozen=True)
class Config:
    """What to simulate."""

    simulations: int = 300
    output: Path | None = None
    quick: bool = False
    """40 simulations of each kind."""


def draw(study: Study, num_votes: int, seed: int) -> tuple[list[PreferencePair], float, dict[str, float]]:
    """Votes, the true scale and the true offsets."""
    random = np.random.default_rng(seed)
    scale = float(random.normal(*study.scale))
    noise = (
        random.normal(size=study.num_systems)
        if study.tail is None
        else random.standard_t(study.tail, study.num_systems)
    )
    offsets = {f"s{place}": float(study.spread * value) for place, value in enumerate(noise)}
    shares = np.ones(study.num_systems)
    shares[0] = 4.0 * (study.num_systems - 1) if study.uneven else 1.0
    votes = []
    for place in range(num_votes):
        a, b = random.permutation(random.choice(list(offsets), 2, replace=False, p=shares / shares.sum()))
        rewards = random.normal(size=2)
        half = (scale * (rewards[0] - rewards[1]) - offsets[a] + offsets[b]) / 2
        parts = np.array([np.exp(half), np.exp(-half), study.tie])
        target = float(random.choice([1.0, 0.0, 0.5], p=parts / parts.sum()))
        votes.append(PreferencePair(str(place), target, system_a=a, system_b=b,
                                    reward_a=float(rewards[0]), reward_b=float(rewards[1])))  # fmt: skip
    return votes, scale, offsets


def coverage(study: Study, num_votes: int, simulations: int) -> dict[str, float]:
    """Shares of intervals that hold the truth."""
    held: dict[str, list[bool]] = {"offsets": [], "scale": [], "wins": []}
    for seed in range(simulations):
        votes, scale, offsets = draw(study, num_votes, seed)
        calibration = fit_anchors(votes, allow_disconnected=True)
        reference = calibration.reference_system or ""
        interval = calibration.scale_interval()
        held["scale"].append(interval.low <= scale <= interval.high)
        for system, offset in offsets.items():
            if system == reference:
                continue
            interval = calibration.offset(system)
            held["offsets"].append(interval.low <= offset - offsets[reference] <= interval.high)
            win = calibration.win_interval(0.5, system, reference)
            chance = 1 / (1 + np.exp(offset - offsets[reference] - 0.5 * scale))
            held["wins"].append(win.low <= chance <= win.high)
    return {name: float(np.mean(hits)) for name, hits in held.items()}


def main(config: Config) -> None:
    logging.basicConfig(level=logging.ERROR)  # one-sided and unseen systems are expected at 30 votes
    simulations = 40 if config.quick else config.simulations
    machine = describe_machine()
    print(f"coverage of nominal 95 % intervals, {simulations} simulations a cell, on {machine}\n")
    print("| truths | votes | offsets | scale | win probabilities |\n|---|---|---|---|---|")
    rows = []
    for name, study in STUDIES.items():
        for num_votes in NUM_VOTES:
            shares = coverage(study, num_votes, simulations)
            cells = " | ".join(f"{100 * share:.1f}" for share in shares.values())
            print(f"| {name} | {num_votes} | {cells} |", flush=True)
            rows.append({"truths": name, **asdict(study), "votes": num_votes, "coverage": shares})
    if config.output is not None:
        text = json.dumps({"machine": machine, "simulations": simulations, "rows": rows}, indent=1)
        config.output.write_text(text + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
