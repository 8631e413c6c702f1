"""Agreement with people: properties first, then worked numbers and a reference implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunejury import InputError
from tunejury.metrics import (
    ReliabilityBin,
    bootstrap_interval,
    brier_score,
    calibration_error_of_bins,
    expected_calibration_error,
    kendall,
    log_loss,
    pairwise_accuracy,
    pearson,
    preference_metrics,
    ranks,
    reliability_bins,
    spearman,
    system_means,
)


@pytest.fixture
def votes() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and outcomes of 500 pairs drawn from them, a tenth ties."""
    generator = np.random.default_rng(0)
    probabilities = generator.uniform(0.01, 0.99, 500)
    outcomes = (generator.uniform(size=500) < probabilities).astype(float)
    outcomes[generator.uniform(size=500) < 0.1] = 0.5
    return probabilities, outcomes


def test_ties_change_nothing(votes: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, outcomes = votes
    decided = outcomes != 0.5
    assert 0 < decided.sum() < 500
    assert preference_metrics(probabilities, outcomes) == preference_metrics(probabilities[decided], outcomes[decided])


def test_swapping_sides_changes_nothing(votes: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, outcomes = votes
    swapped = preference_metrics(1 - probabilities, 1 - outcomes)
    assert preference_metrics(probabilities, outcomes) == pytest.approx(swapped, abs=1e-12)


def test_true_probabilities_score_best(votes: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, outcomes = votes
    sharper = probabilities**3 / (probabilities**3 + (1 - probabilities) ** 3)
    for score in (log_loss, brier_score, expected_calibration_error):
        assert score(probabilities, outcomes) < score(sharper, outcomes)


def test_worked_pairs() -> None:
    # right, wrong, tie (not counted), margin 0 (half)
    assert pairwise_accuracy([1.0, 2.0, 3.0, 0.0], [1, 0, 0.5, 1]) == pytest.approx((1 + 0 + 0.5) / 3)
    assert log_loss([0.8, 0.4], [1, 0]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert log_loss([1.0, 0.0], [1, 0]) == 0 and log_loss([1.0], [0]) == math.inf
    assert brier_score([0.8, 0.4], [1, 0]) == pytest.approx((0.04 + 0.16) / 2)


def test_bins_have_equal_counts_and_every_pair() -> None:
    generator = np.random.default_rng(1)
    for size, expected in ((2035, [203] * 9 + [208]), (7, [1] * 7), (10, [1] * 10)):
        bins = reliability_bins(generator.uniform(size=size), generator.integers(0, 2, size))
        assert [part.count for part in bins] == expected
        confidences = [part.confidence for part in bins]
        assert confidences == sorted(confidences) and confidences[0] >= 0.5


def test_calibration_error_is_the_weighted_gap() -> None:
    assert calibration_error_of_bins([ReliabilityBin(3, 0.9, 0.5), ReliabilityBin(1, 0.6, 0.8)]) == pytest.approx(0.35)
    # half the pairs at 0.9 right half the time, half at 0.6 always right
    probabilities = [0.9, 0.1, 0.6, 0.4]
    assert expected_calibration_error(probabilities, [1, 1, 1, 0], num_bins=2) == pytest.approx(0.4)


def test_ranks_of_equal_values() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert ranks([3.0, 1.0, 3.0, 2.0], ties="first").tolist() == [3.0, 1.0, 4.0, 2.0]


@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_correlations_equal_the_reference(levels: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(levels)
    x = generator.integers(0, levels, 60)
    y = x + generator.integers(0, levels, 60)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y)[0], abs=1e-12)


@pytest.mark.parametrize("unit", [1e200, 1e-200, 1.7e308, 1e-310])
def test_correlation_knows_no_unit(unit: float) -> None:
    x, y = np.array([0.1, 0.7, 0.3, 1.0]), np.array([0.2, 0.9, 0.1, 0.5])
    assert pearson(x * unit, y) == pytest.approx(pearson(x, y), abs=1e-9)
    assert pearson(y, -x * unit) == pytest.approx(-pearson(x, y), abs=1e-9)


def test_rank_correlations_see_order_alone() -> None:
    x = np.random.default_rng(2).normal(size=40)
    for correlation in (spearman, kendall):
        assert correlation(x, np.exp(3 * x)) == pytest.approx(1) and correlation(x, -(x**3)) == pytest.approx(-1)


def test_system_means() -> None:
    assert system_means([1.0, 2.0, 3.0], ["b", "a", "b"]) == {"b": 2.0, "a": 2.0}


def test_whole_groups_are_drawn() -> None:
    """Fifty copies of eight values say no more than the eight do."""
    values = np.random.default_rng(3).normal(size=8)
    mean = lambda x: float(x.mean())  # noqa: E731
    copies = np.repeat(values, 50)
    low, high = bootstrap_interval(mean, copies, groups=np.repeat(np.arange(8), 50).tolist())
    assert bootstrap_interval(mean, values) == pytest.approx((low, high))
    narrow = bootstrap_interval(mean, copies)
    assert narrow[1] - narrow[0] < (high - low) / 4 and low < values.mean() < high


def test_undefined_samples_are_left_out() -> None:
    low, high = bootstrap_interval(spearman, [1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    assert -1 <= low <= high <= 1
    with pytest.raises(InputError, match="every bootstrap sample"):
        bootstrap_interval(spearman, [1.0, 1.0], [1.0, 3.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pairwise_accuracy([], []), "none of 0 pairs"),
        (lambda: pairwise_accuracy([1.0], [0.5]), "none of 1 pairs"),
        (lambda: pairwise_accuracy([1.0, 2.0], [1]), "1 outcomes for 2 pairs"),
        (lambda: pairwise_accuracy([math.nan], [1]), "finite"),
        (lambda: pairwise_accuracy([1.0], [2]), "outcomes must be"),
        (lambda: log_loss([1.5], [1]), "within"),
        (lambda: reliability_bins([0.5], [1], 0), "number of bins is 0"),
        (lambda: calibration_error_of_bins([]), "no pairs"),
        (lambda: spearman([1.0, 1.0], [1.0, 2.0]), "first list are equal"),
        (lambda: pearson([1.0], [2.0]), "at least 2"),
        (lambda: system_means([1.0], []), "0 systems for 1 values"),
        (lambda: bootstrap_interval(pairwise_accuracy, [1.0], [1.0, 2.0]), "one length"),
        (lambda: bootstrap_interval(pairwise_accuracy, [], []), "at least 1"),
    ],
)
def test_what_has_no_answer_is_an_error(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
