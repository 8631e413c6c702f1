"""Votes drawn from a known calibration, for the tests of calibrations."""

from __future__ import annotations

import numpy as np

from tunejury.preferences import PreferencePair

SYSTEMS = ("a", "b", "c", "d", "e")
OFFSETS = dict(zip(SYSTEMS, (0.0, 0.8, -0.5, 0.3, -0.9), strict=True))


def draw_votes(
    count: int, scale: float = 0.5, tie: float = 0.0, seed: int = 0, offsets: dict[str, float] = OFFSETS
) -> list[PreferencePair]:
    """Votes of people who follow the model: two different systems, rewards of deviation 1, Davidson ties."""
    generator = np.random.default_rng(seed)
    votes = []
    for place in range(count):
        a, b = generator.choice(list(offsets), 2, replace=False)
        rewards = generator.normal(size=2)
        half = (scale * (rewards[0] - rewards[1]) - offsets[a] + offsets[b]) / 2
        parts = np.exp([half, -half, np.log(tie)]) if tie else np.exp([half, -half])
        outcome = generator.choice([1.0, 0.0, 0.5][: len(parts)], p=parts / parts.sum())
        votes.append(
            PreferencePair(
                str(place), float(outcome), system_a=str(a), system_b=str(b),
                reward_a=float(rewards[0]), reward_b=float(rewards[1]),
            )
        )  # fmt: skip
    return votes


def vote(a: str, b: str, target: float, margin: float = 0.0, name: str = "0") -> PreferencePair:
    return PreferencePair(name, target, system_a=a, system_b=b, reward_a=margin, reward_b=0.0)
