"""Who is learned from, and what is allowed: selection, the Pareto front, the budgets."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from alignment.errors import InputError
from alignment.experts import SelectionConfig, counterexamples_of, select_experts
from alignment.interfaces import Candidate
from alignment.lessons import FineTuningConfig
from alignment.overoptimization import HELD_OUT, BudgetConfig, Guard, Heard, pareto_front


def pools(*rows: Sequence[float | None]) -> list[list[Candidate]]:
    return [[Candidate(f"p{i}", "x", k, k, reward, None) for k, reward in enumerate(row)] for i, row in enumerate(rows)]


def keys(experts: Sequence[Candidate]) -> list[tuple[str, int]]:
    return [(expert.prompt_id, expert.candidate) for expert in experts]


def test_without_a_floor_the_best_of_all_are_kept() -> None:
    table = pools([9, 8, 7], [1, 2, 3], [4, None, 5])
    kept = select_experts(table, SelectionConfig(keep_fraction=0.5, diversity_floor=0.0, rank_by="reward"))
    assert keys(kept) == [("p0", 0), ("p0", 1), ("p0", 2), ("p2", 2)]  # half of the eight that have a reward


def test_what_the_judge_thinks_of_a_prompt_chooses_nothing() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(6, 8))
    taste = 100 * rng.normal(size=(6, 1))
    kept = [
        keys(select_experts(pools(*rows.tolist()), SelectionConfig(keep_fraction=0.25)))
        for rows in (table, table + taste)
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 12
    above = table - table.mean(axis=1, keepdims=True)
    best = sorted(np.ndindex(6, 8), key=lambda place: -above[place])[:6]
    assert {(f"p{i}", k) for i, k in best} <= set(kept[0])


def test_one_prompt_cannot_fill_the_set() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(12, 8))
    table[3] += 100  # a prompt that the judge likes whatever is played
    for floor in (0.25, 0.5, 1.0):
        kept = select_experts(pools(*table.tolist()), SelectionConfig(0.125, "reward", None, floor))
        assert len(kept) == 12 and len({expert.prompt_id for expert in kept}) >= 12 * floor
        # the floor is met by the best of the best prompts, the rest goes to the best
        assert ("p3", int(table[3].argmax())) in keys(kept)
    assert len({expert.prompt_id for expert in kept}) == 12
    free = select_experts(pools(*table.tolist()), SelectionConfig(1 / 12, "reward", None, 0.0))
    assert {expert.prompt_id for expert in free} == {"p3"}


def test_an_expert_is_preferred_to_the_worst_of_its_prompt() -> None:
    table = pools([1, 3, 2, 0], [None, 5, 4, None], [7, 6, 9, 8])
    experts = select_experts(table, SelectionConfig(keep_per_prompt=2))
    assert keys(experts) == [("p0", 1), ("p0", 2), ("p1", 1), ("p1", 2), ("p2", 2), ("p2", 3)]
    # the best is set against the worst, each once; where all are experts, against the worst of them
    assert keys(counterexamples_of(table, experts)) == [
        ("p0", 3), ("p0", 0), ("p1", 2), ("p1", 2), ("p2", 1), ("p2", 0),
    ]  # fmt: skip


def test_the_best_few_of_each_prompt() -> None:
    kept = select_experts(pools([1, 3, 2], [None, 5, None], [7, 7, 7]), SelectionConfig(keep_per_prompt=2))
    assert keys(kept) == [("p0", 1), ("p0", 2), ("p1", 1), ("p2", 0), ("p2", 1)]


@pytest.mark.parametrize(
    ("config", "prompts", "candidates", "named"),
    [
        (SelectionConfig(keep_fraction=0.1), 2, 4, "too few candidates: keep_fraction 0.1 of 2 prompts x 4"),
        (SelectionConfig(keep_per_prompt=5), 2, 4, "keep_per_prompt is 5, but there are 4"),
    ],
)
def test_too_few_candidates_are_told_early(config: SelectionConfig, prompts: int, candidates: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        config.check(prompts, candidates)
    SelectionConfig(keep_fraction=0.3).check(1, 10)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preference_beta": -1.0}, "preference_beta is -1"),
        ({"preference_beta": 0.0}, "objective likelihood learns the experts by themselves"),
        ({"kl_weight": -0.1}, "kl_weight is -0.1; expected a finite number of at least 0"),
        ({"objective": "luck"}, "objective is 'luck'; expected one of gradient, preference, likelihood"),
    ],
)
def test_impossible_objectives(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        FineTuningConfig(**options)


def test_too_few_candidates_that_did_not_fail() -> None:
    with pytest.raises(InputError, match="of the 3 that have a reward keeps none"):
        select_experts(pools([1, None, None], [2, 3, None]), SelectionConfig(keep_fraction=0.2))
    with pytest.raises(InputError, match="none has a reward"):
        select_experts(pools([None]), SelectionConfig(keep_per_prompt=1))


def heard(
    shift: float = 0.0, held_out: float = 0.0, spread: float = 1.0, sound: bool = True, away: float = 0.0
) -> Heard:
    """24 prompts x 4 seeds; equal seeds of two calls are the same clip, moved."""
    rng = np.random.default_rng(7)
    rewards, others = rng.normal(size=(24, 4)), rng.normal(size=(24, 4))
    centre = np.ones(16) * 3
    clips = centre + rng.normal(size=(24, 1, 16)) * 0.3 + spread * rng.normal(size=(24, 4, 16)) + away * np.eye(16)[0]
    table, embeddings = [], []
    for i in range(24):
        row: list[Candidate] = []
        for k in range(4):
            side = {HELD_OUT: float(others[i, k] + held_out)}
            row.append(Candidate(f"p{i}", "x", k, k, float(rewards[i, k] + shift) if sound else None, None, side=side))
            unit = (clips[i, k] / np.linalg.norm(clips[i, k])).astype("<f2")
            text = base64.b64encode(unit.tobytes()).decode()
            embeddings.append({"prompt_id": f"p{i}", "candidate": k, "embedding": text})
        table.append(row)
    return Heard(table, embeddings)


def gap(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.mean(0) - second.mean(0)).norm())


def measured(other: Heard, reference: torch.Tensor | None = None, **budgets: float) -> dict[str, Any]:
    return Guard(heard(), BudgetConfig(**budgets), gap, reference).measure(other)


def test_nothing_changed_breaks_nothing() -> None:
    same = measured(heard(), max_held_out_drop=0.0)
    assert same["broken"] == [] and same["drift"] == 0.0 and same["drift_ratio"] == 1.0
    assert same["reward_delta"] == 0.0 and same["improved"] == 0 and same["num_prompts"] == 24


def test_a_gain_is_measured_in_pairs() -> None:
    better = measured(heard(shift=0.2, held_out=0.1))
    assert better["reward_delta"] == pytest.approx(0.2) and better["improved"] == 24 and better["broken"] == []
    assert better["held_out_delta"] == pytest.approx(0.1) and better["improved_fraction_ci"][0] > 0.999
    # the interval is that of the differences: prompts differ much more than that
    assert better["reward_delta_ci"] == pytest.approx([0.2, 0.2])
    deviation = Guard(heard(), BudgetConfig(), gap, None).deviations[None]
    assert better["reward_delta_in_deviations"] == pytest.approx(0.2 / deviation)


@pytest.mark.parametrize(
    ("other", "budgets", "named"),
    [
        (heard(shift=1, held_out=-0.3), {}, "held out reward -0.300"),
        (heard(shift=1, spread=0.4), {"max_drift": 1e6}, "diversity"),
        (heard(shift=1, away=40.0), {"min_diversity": 0.0}, "drift"),
        (heard(sound=False), {}, "none of its clips could be judged"),
    ],
)
def test_each_budget_is_kept(other: Heard, budgets: dict[str, float], named: str) -> None:
    broken = measured(other, **budgets)["broken"]
    assert len(broken) == 1 and named in broken[0]


def test_a_drop_within_the_budget_or_the_noise_is_allowed() -> None:
    assert measured(heard(held_out=-0.3), max_held_out_drop=0.5)["broken"] == []
    assert measured(heard(away=40.0), min_diversity=0.0, max_drift=1e6)["broken"] == []


def test_the_distance_to_reference_audio_has_a_budget() -> None:
    reference = torch.full((8, 16), 0.25, dtype=torch.float64)
    far = measured(heard(away=40.0), reference, min_diversity=0.0, max_drift=1e6)
    assert len(far["broken"]) == 1 and "distance to the reference" in far["broken"][0]
    assert measured(heard(), reference)["broken"] == []


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(0.0, 0.0), (1.0, 1.0), (0.5, 2.0), (1.0, 3.0), (2.0, 4.0), (None, None)]
    assert pareto_front([{"reward_mean": reward, "drift": drift} for reward, drift in points]) == [0, 1, 4]
