"""Best-of-n expectations: against every subset, then the properties that must hold at any size."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from alignment.statistics import (
    best_of_n_curves,
    best_of_n_divergence,
    bootstrap_mean,
    expected_best_of_n,
    rank_correlation,
    within_prompt_deviation,
)

RNG = np.random.default_rng(0)


def over_all_subsets(rewards: np.ndarray) -> list[float]:
    """The mean of the maximum over every subset of size n, by definition; all-failed draws are left out."""
    means = []
    for n in range(1, len(rewards) + 1):
        draws = [[r for r in subset if np.isfinite(r)] for subset in combinations(rewards, n)]
        means.append(float(np.mean([max(draw) for draw in draws if draw])))
    return means


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_equals_the_mean_over_all_subsets(size: int) -> None:
    rewards = RNG.normal(size=size)
    assert expected_best_of_n(rewards[None]) == pytest.approx(over_all_subsets(rewards), abs=1e-12)


def test_ties_are_no_special_case() -> None:
    rewards = np.array([0.5, 0.5, -1.0, 0.5, -1.0])
    assert expected_best_of_n(rewards[None]) == pytest.approx(over_all_subsets(rewards), abs=1e-12)


@pytest.mark.parametrize("num_failed", [1, 3, 5])
def test_failed_candidates_take_part_but_never_win(num_failed: int) -> None:
    rewards = RNG.normal(size=6)
    rewards[RNG.permutation(6)[:num_failed]] = np.nan
    assert best_of_n_curves(rewards[None])[0] == pytest.approx(over_all_subsets(rewards), abs=1e-12)


def test_ends_and_direction_of_the_curve_in_a_large_pool() -> None:
    rewards = RNG.normal(size=(3, 3000))
    curve = expected_best_of_n(rewards)
    assert np.isfinite(curve).all()
    assert (np.diff(curve) >= 0).all()
    assert curve[0] == pytest.approx(rewards.mean(), abs=1e-12)
    assert curve[-1] == pytest.approx(rewards.max(axis=1).mean(), abs=1e-12)


def test_order_of_candidates_does_not_matter_and_a_shift_shifts() -> None:
    rewards = RNG.normal(size=(4, 7))
    shuffled = np.stack([RNG.permutation(row) for row in rewards])
    assert expected_best_of_n(shuffled) == pytest.approx(expected_best_of_n(rewards), abs=1e-12)
    assert expected_best_of_n(rewards + 3) == pytest.approx(expected_best_of_n(rewards) + 3, abs=1e-12)


def test_prompts_without_any_reward_do_not_enter() -> None:
    rewards = np.array([[1.0, 2.0], [np.nan, np.nan]])
    assert np.isnan(best_of_n_curves(rewards)[1]).all()
    assert expected_best_of_n(rewards) == pytest.approx([1.5, 2.0])
    with pytest.raises(ValueError, match="no prompt"):
        expected_best_of_n(rewards[1:])


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 0)), np.array([[np.inf, 1.0]])])
def test_refuses_what_is_no_table_of_rewards(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="rewards"):
        best_of_n_curves(bad)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    samples = np.random.default_rng(5).normal(size=(300, 40, 1))
    intervals = [bootstrap_mean(sample, num_resamples=400) for sample in samples]
    covered = np.mean([low[0] <= 0 <= high[0] for low, high in intervals])
    assert 0.90 <= covered <= 0.98


def test_interval_is_repeatable_and_has_no_width_for_one_prompt() -> None:
    curves = RNG.normal(size=(10, 4))
    first, second = bootstrap_mean(curves), bootstrap_mean(curves)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert (first[0] < curves.mean(0)).all() and (curves.mean(0) < first[1]).all()
    low, high = bootstrap_mean(curves[:1])
    assert low == pytest.approx(curves[0]) and high == pytest.approx(curves[0])


def test_deviation_within_prompts_ignores_how_far_prompts_lie_apart() -> None:
    rewards = RNG.normal(size=(50, 8))
    shifted = rewards + 100 * RNG.normal(size=(50, 1))
    assert within_prompt_deviation(shifted) == pytest.approx(within_prompt_deviation(rewards))
    assert within_prompt_deviation([[1.0, 3.0], [np.nan, 5.0]]) == pytest.approx(2**0.5)
    assert within_prompt_deviation([[1.0], [2.0]]) is None


def test_a_ranking_chooses_and_the_values_are_what_it_gets() -> None:
    rewards, other = RNG.normal(size=(4, 6)), RNG.normal(size=(4, 6))
    rewards[1, 2] = other[1, 2] = np.nan
    curves = best_of_n_curves(other, rewards)
    for row in range(4):
        sound = np.isfinite(rewards[row])
        for n in (1, 3, 6):
            draws = [[i for i in subset if sound[i]] for subset in combinations(range(6), n)]
            kept = [other[row, max(draw, key=lambda i: rewards[row, i])] for draw in draws if draw]
            assert curves[row, n - 1] == pytest.approx(np.mean(kept), abs=1e-12)
    assert best_of_n_curves(rewards, rewards) == pytest.approx(best_of_n_curves(rewards), abs=1e-12, nan_ok=True)
    assert best_of_n_curves([[3.0, 5.0]], [[1.0, 1.0]])[0, 1] == 3.0  # the first of equals
    with pytest.raises(ValueError, match="ranking"):
        best_of_n_curves(rewards, other[:2])


def test_rank_correlation_knows_order_alone() -> None:
    values = RNG.normal(size=30)
    assert rank_correlation(values, np.exp(values)) == pytest.approx(1)
    assert rank_correlation(values, -(values**3)) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486832980505138)  # as scipy.stats.spearmanr
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None and rank_correlation([1.0], [2.0]) is None


@pytest.mark.parametrize("size", [2, 5])
def test_divergence_is_that_of_the_best_of_n(size: int) -> None:
    """The best of N draws from U(0, 1) has the density N u^(N - 1); its divergence by the midpoint rule."""
    u = (np.arange(200_000) + 0.5) / 200_000
    density = size * u ** (size - 1)
    assert best_of_n_divergence(size) == pytest.approx(float((density * np.log(density)).mean()), abs=1e-4)
    assert best_of_n_divergence(1) == 0
