"""The guard of expert iteration: what a round gained on held-out prompts, what that cost, and whether it may.

Clips of the base and of a round with the same prompt and seed are compared in pairs. A budget counts as broken when the
95 % interval of a side metric lies wholly beyond it: the guard acts on evidence, not on noise.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.diversity import diversities
from alignment.errors import InputError
from alignment.interfaces import Candidate
from alignment.statistics import Floats, bootstrap_mean, within_prompt_deviation

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT = "held_out_reward"

Distance = Callable[["Tensor", "Tensor"], float]
"""Of two sets of embeddings [N, E] and [M, E]."""


@dataclass(frozen=True)
class BudgetConfig:
    """How far the side metrics may go; a round beyond one of these is not returned."""

    max_held_out_drop: float = 0.0
    """Of the held-out judge, in standard deviations of the base's rewards over seeds."""
    max_match_drop: float = 0.25
    """Of the CLAP score or prompt match, likewise."""
    min_diversity: float = 0.7
    """Mean distance of a prompt's clips, as a part of the base's."""
    max_drift: float = 2.0
    """Distance from the base's clips to the round's other seeds, as a multiple of that to the base's own."""
    max_reference_rise: float = 1.25
    """Distance to the reference audio, as a multiple of the base's."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}; expected a finite number of at least 0")


@dataclass(frozen=True)
class Heard:
    """Clips of the held-out prompts as the judges heard them.

    pools: of each prompt, in the same order for every round. embeddings: lines of an embeddings file.
    """

    pools: Sequence[Sequence[Candidate]]
    embeddings: Sequence[Mapping[str, Any]]


class Guard:
    """Measures rounds against the base.

    Args:
        base: the base's clips.
        budgets: what is allowed.
        distance: of sets of embeddings, such as the Frechet distance.
        reference: embeddings [M, E] of real music; None without.

    Raises:
        InputError: the base has no sound clips.
    """

    def __init__(self, base: Heard, budgets: BudgetConfig, distance: Distance, reference: Tensor | None) -> None:
        self.base, self.budgets, self.distance, self.reference = base, budgets, distance, reference
        if not np.isfinite(_table(base, None)).any():
            reason = next((c.error for pool in base.pools for c in pool if c.error), None)
            raise InputError(f"none of the base's clips for held-out prompts could be judged; the first: {reason}")
        self.sides = sorted({name for pool in base.pools for c in pool for name in (c.side or {})})
        self.deviations = {name: within_prompt_deviation(_table(base, name)) for name in [None, *self.sides]}

    @cached_property
    def of_base(self) -> dict[str, Any]:
        """What results.json says of the base."""
        rewards = _table(self.base, None)
        reference = None if self.reference is None else self._distance(_vectors(self.base), self.reference)
        return {
            "reward_mean": _mean(rewards),
            "reward_deviation": self.deviations[None],
            "held_out_mean": _mean(_table(self.base, HELD_OUT)) if HELD_OUT in self.sides else None,
            "side": {name: _mean(_table(self.base, name)) for name in self.sides},
            "diversity": _average(self._diversities(self.base)),
            "drift": 0.0,
            "drift_unit": self._across(self.base),
            "reference_distance": reference,
            "num_prompts": len(self.base.pools),
            "num_failed": int((~np.isfinite(rewards)).sum()),
        }

    def measure(self, other: Heard) -> dict[str, Any]:
        """What a round's clips are worth beside the base's, and which budgets they break."""
        base = self.of_base
        rewards = self._paired(other, None)
        if not rewards["num_prompts"]:
            reason = next((c.error for pool in other.pools for c in pool if c.error), None)
            return {"reward_mean": None, "broken": [f"none of its clips could be judged; the first: {reason}"]}
        sides = {name: self._paired(other, name) for name in self.sides}
        drift, across = self._distance(_vectors(self.base), _vectors(other)), self._across(other)
        ratio = None if across is None or not base["drift_unit"] else across / base["drift_unit"]
        measured: dict[str, Any] = {
            "reward_mean": rewards["mean"],
            "reward_delta": rewards["delta"],
            "reward_delta_ci": rewards["ci"],
            "reward_delta_in_deviations": rewards["delta"] / self.deviations[None] if self.deviations[None] else None,
            "improved": rewards["improved"],
            "improved_fraction": rewards["improved"] / rewards["num_prompts"],
            "improved_fraction_ci": rewards["improved_ci"],
            "num_prompts": rewards["num_prompts"],
            "held_out_mean": sides[HELD_OUT]["mean"] if HELD_OUT in sides else None,
            "held_out_delta": sides[HELD_OUT]["delta"] if HELD_OUT in sides else None,
            "held_out_delta_ci": sides[HELD_OUT]["ci"] if HELD_OUT in sides else None,
            "side": sides,
            "diversity": _average(self._diversities(other)),
            "drift": drift,
            "drift_ratio": ratio,
            "reference_distance": (None if self.reference is None else self._distance(_vectors(other), self.reference)),
            "num_failed": int((~np.isfinite(_table(other, None))).sum()),
        }
        return {**measured, "broken": self._broken(measured, base, other)}

    def _broken(self, measured: Mapping[str, Any], base: Mapping[str, Any], other: Heard) -> list[str]:
        budgets, broken = self.budgets, []
        for name, row in measured["side"].items():
            allowed = budgets.max_held_out_drop if name == HELD_OUT else budgets.max_match_drop
            limit = -allowed * (self.deviations[name] or 0.0)
            if row["ci"] is not None and row["ci"][1] < limit:
                broken.append(f"{name.replace('_', ' ')} {row['delta']:+.3f} (budget {limit:+.3f})")
        own, first = self._diversities(other), self._diversities(self.base)
        both = [own[name] - budgets.min_diversity * first[name] for name in first if name in own]
        if both and float(bootstrap_mean(both)[1]) < 0:
            broken.append(
                f"diversity {measured['diversity']:.3f} (budget {budgets.min_diversity:g} x {base['diversity']:.3f})"
            )
        if measured["drift_ratio"] is not None and measured["drift_ratio"] > budgets.max_drift:
            broken.append(f"drift {measured['drift_ratio']:.2f} times the base's own (budget {budgets.max_drift:g})")
        reference = measured["reference_distance"]
        if reference is not None and reference > budgets.max_reference_rise * base["reference_distance"]:
            limit = budgets.max_reference_rise
            broken.append(
                f"distance to the reference {reference:.3g} (budget {limit:g} x {base['reference_distance']:.3g})"
            )
        if 2 * measured["num_prompts"] < len(self.base.pools):
            broken.append(f"only {measured['num_prompts']} of {len(self.base.pools)} prompts have clips to compare")
        return broken

    def _paired(self, other: Heard, name: str | None) -> dict[str, Any]:
        """Over prompts: means, difference to the base over the seeds that both have, with intervals."""
        first, second = _table(self.base, name), _table(other, name)
        both = np.isfinite(first) & np.isfinite(second)
        rows = both.any(axis=1)
        if not rows.any():
            return {"mean": None, "delta": None, "ci": None, "num_prompts": 0}
        first, second = (
            np.where(both, table, 0.0)[rows].sum(axis=1) / both[rows].sum(axis=1) for table in (first, second)
        )
        deltas = second - first
        (low, high), (few, many) = bootstrap_mean(deltas), bootstrap_mean(deltas > 0)
        return {
            "mean": float(second.mean()),
            "delta": float(deltas.mean()),
            "ci": [float(low), float(high)],
            "improved": int((deltas > 0).sum()),
            "improved_ci": [float(few), float(many)],
            "num_prompts": int(rows.sum()),
        }

    def _diversities(self, heard: Heard) -> dict[str, float]:
        return diversities(dict(record) for record in heard.embeddings)

    def _across(self, other: Heard) -> float | None:
        """Distance from the base's clips to clips of other seeds: equal sizes and no pairs, so that the base's own
        value says what is no drift at all.
        """
        halves = [[_vectors(heard, parity) for parity in (0, 1)] for heard in (self.base, other)]
        values = [self._distance(halves[0][parity], halves[1][1 - parity]) for parity in (0, 1)]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def _distance(self, first: Tensor, second: Tensor) -> float | None:
        if len(first) < 2 or len(second) < 2:
            return None
        value = self.distance(first, second)
        return value if math.isfinite(value) else None


def pareto_front(trials: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the trials that no other one beats in both reward (higher) and drift (lower)."""
    points = [(trial.get("reward_mean"), trial.get("drift")) for trial in trials]
    known = [(place, r, d) for place, (r, d) in enumerate(points) if r is not None and d is not None]
    return [
        place
        for place, reward, drift in known
        if not any(r >= reward and d <= drift and (r > reward or d < drift) for _, r, d in known)
    ]


def _table(heard: Heard, name: str | None) -> Floats:
    """[P, S], NaN for what failed; name None is the reward."""

    def value(candidate: Candidate) -> float:
        found = candidate.reward if name is None else (candidate.side or {}).get(name)
        return math.nan if found is None else found

    return np.array([[value(candidate) for candidate in pool] for pool in heard.pools], dtype=np.float64)


def _vectors(heard: Heard, parity: int | None = None) -> Tensor:
    """Embeddings [N, E] of all clips, or of those of even or odd number."""
    import torch

    rows = [
        np.frombuffer(base64.b64decode(record["embedding"]), "<f2").astype(np.float64)
        for record in heard.embeddings
        if parity is None or record["candidate"] % 2 == parity
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 1)


def _mean(table: Floats) -> float | None:
    """Over prompts, of the mean over seeds."""
    means = [float(row[np.isfinite(row)].mean()) for row in table if np.isfinite(row).any()]
    return sum(means) / len(means) if means else None


def _average(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
