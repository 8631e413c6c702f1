"""How well rewards agree with people: pairwise accuracy, calibration, proper scores, rank correlations, intervals.

Everything is float64 numpy on arrays of one value per pair or per clip. An `outcome` is 1 where A won, 0 where B won
and 0.5 for a tie; a `margin` is reward(A) - reward(B); a `probability` is that of A winning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunejury.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of like confidence: how sure the judge was of its choice, and how often the choice was right."""

    count: int
    confidence: float
    accuracy: float


def pairwise_accuracy(margins: ArrayLike, outcomes: ArrayLike) -> float:
    """Share of decided pairs whose winner has the higher reward; ties are left out, a margin of exactly 0 counts half.

    Args:
        margins: [N].
        outcomes: [N], 1 (A won), 0 (B won) or 0.5 (tie, not counted).

    Raises:
        InputError: shapes differ, a value is not finite or no outcome, or no pair is decided.
    """
    margin, outcome = _decided(margins, outcomes)
    return float(np.mean(0.5 + 0.5 * np.sign(margin) * (2 * outcome - 1)))


def log_loss(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean negative log-likelihood in nats of the decided pairs (ln 2 = 0.693 for a coin).

    Args:
        probabilities: [N], of A winning; 0 or 1 is allowed and costs infinity where it is wrong.
        outcomes: [N] as for `pairwise_accuracy`.

    Raises:
        InputError: as for `pairwise_accuracy`, or a probability lies outside [0, 1].
    """
    probability, outcome = _decided(probabilities, outcomes)
    _check_probabilities(probability)
    with np.errstate(divide="ignore"):
        return float(0.0 - np.mean(np.log(np.where(outcome == 1, probability, 1 - probability))))


def brier_score(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared difference of probability and outcome of the decided pairs (0.25 for a coin); see `log_loss`."""
    probability, outcome = _decided(probabilities, outcomes)
    _check_probabilities(probability)
    return float(np.mean((probability - outcome) ** 2))


def reliability_bins(probabilities: ArrayLike, outcomes: ArrayLike, num_bins: int = 10) -> list[ReliabilityBin]:
    """Decided pairs sorted by confidence max(p, 1 - p) and cut into bins of equal counts, the last taking the rest.

    Args:
        probabilities: [N], of A winning.
        outcomes: [N] as for `pairwise_accuracy`.
        num_bins: how many; with fewer pairs than that, one per pair.

    Raises:
        InputError: as for `log_loss`, or `num_bins` is below 1.
    """
    probability, outcome = _decided(probabilities, outcomes)
    _check_probabilities(probability)
    if num_bins < 1:
        raise InputError(f"number of bins is {num_bins}, expected at least 1")
    confidence = np.maximum(probability, 1 - probability)
    correct = 0.5 + 0.5 * np.sign(probability - 0.5) * (2 * outcome - 1)
    order = np.argsort(confidence, kind="stable")
    size = max(len(order) // num_bins, 1)
    starts = [size * place for place in range(min(num_bins, len(order)))]
    parts = [order[start:stop] for start, stop in zip(starts, [*starts[1:], len(order)], strict=True)]
    return [ReliabilityBin(len(part), float(confidence[part].mean()), float(correct[part].mean())) for part in parts]


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, num_bins: int = 10) -> float:
    """Mean over pairs of |confidence - accuracy| of their bin (see `reliability_bins`)."""
    return calibration_error_of_bins(reliability_bins(probabilities, outcomes, num_bins))


def calibration_error_of_bins(bins: Iterable[ReliabilityBin]) -> float:
    """Expected calibration error from bins, one's own or published ones.

    Raises:
        InputError: there are no pairs in the bins.
    """
    bins = list(bins)
    total = sum(part.count for part in bins)
    if not total:
        raise InputError("no pairs in the reliability bins, expected at least one")
    return sum(part.count * abs(part.confidence - part.accuracy) for part in bins) / total


def ranks(values: ArrayLike, ties: Literal["average", "first"] = "average") -> Floats:
    """Ranks 1..N; equal values share their mean rank, or with `first` are ranked in the order they stand."""
    array = np.asarray(values, dtype=np.float64)
    order = np.argsort(array, kind="stable")
    result = np.empty(len(array))
    result[order] = np.arange(1, len(array) + 1)
    if ties == "average":
        _, group, count = np.unique(array, return_inverse=True, return_counts=True)
        result = (np.bincount(group, weights=result) / count)[group]
    return result


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """Correlation coefficient.

    Raises:
        InputError: shapes differ, fewer than 2 values, one not finite, or one side is constant.
    """
    x, y = (_centred(series) for series in _two_series(first, second))
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _centred(series: Floats) -> Floats:
    """Less its mean, brought near 1 by powers of two, which round nothing: squares of huge values leave float64."""
    scaled = np.ldexp(series, -np.frexp(np.abs(series).max())[1])
    scaled = scaled - scaled.mean()
    return np.asarray(np.ldexp(scaled, -np.frexp(np.abs(scaled).max())[1]))


def spearman(first: ArrayLike, second: ArrayLike, ties: Literal["average", "first"] = "average") -> float:
    """Rank correlation, equal values sharing their mean rank; errors as for `pearson`.

    `ties="first"` ranks equal values in the order they stand, which depends on the order of the file: some published
    figures were made so, and are recomputed so.
    """
    x, y = _two_series(first, second)
    return pearson(ranks(x, ties), ranks(y, ties))


def kendall(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau-b: concordant minus discordant pairs, corrected for ties; O(N^2) time; errors as for `pearson`."""
    x, y = _two_series(first, second)
    agreement = 0.0
    untied = np.zeros(2)
    for place in range(len(x) - 1):
        dx, dy = np.sign(x[place + 1 :] - x[place]), np.sign(y[place + 1 :] - y[place])
        agreement += float(dx @ dy)
        untied += np.count_nonzero(dx), np.count_nonzero(dy)
    return float(agreement / np.sqrt(untied.prod()))


def system_means(values: ArrayLike, systems: Sequence[str]) -> dict[str, float]:
    """Mean of the values of each system, in the order the systems first appear.

    Raises:
        InputError: there is not one system per value.
    """
    array = _series(values)
    if len(systems) != len(array):
        raise InputError(f"expected one system per value, got {len(systems)} systems for {len(array)} values")
    names = np.asarray(systems)
    return {name: float(array[names == name].mean()) for name in dict.fromkeys(systems)}


def bootstrap_interval(
    statistic: Callable[..., float],
    *series: ArrayLike,
    groups: Sequence[Any] | None = None,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of some series.

    Whole groups (prompts, systems, voters) are drawn anew where they are given: clips of one prompt, or votes of one
    voter, are not independent, and an interval that takes them as such is too narrow.

    Args:
        statistic: of as many arrays as there are series.
        series: each [N].
        groups: [N], the group of each row; None takes every row as its own.
        level: coverage.
        num_resamples: bootstrap samples; those for which the statistic is undefined (InputError) are left out.
        seed: of the resampling, fixed so that the same rows give the same interval.

    Returns:
        (low, high).

    Raises:
        InputError: lengths differ, there are no rows, or the statistic is undefined in every sample.
    """
    arrays = [np.asarray(values) for values in series]
    lengths = {len(array) for array in arrays} | ({len(groups)} if groups is not None else set())
    if len(lengths) != 1 or not lengths - {0}:
        raise InputError(f"expected series and groups of one length of at least 1, got lengths {sorted(lengths)}")
    rows = np.arange(len(arrays[0]))
    if groups is None:
        members = list(rows[:, None])
    else:
        labels = {label: place for place, label in enumerate(dict.fromkeys(groups))}
        group_of = np.array([labels[label] for label in groups])
        members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))[:-1])
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        drawn = np.concatenate([members[place] for place in generator.integers(len(members), size=len(members))])
        try:
            values.append(statistic(*(array[drawn] for array in arrays)))
        except InputError:
            continue
    if not values:
        raise InputError("the statistic is undefined in every bootstrap sample: there are too few different rows")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def preference_metrics(probabilities: ArrayLike, outcomes: ArrayLike) -> Mapping[str, float]:
    """Accuracy, log loss, Brier score and expected calibration error of predicted win probabilities in one go."""
    probability = _series(probabilities)
    return {
        "accuracy": pairwise_accuracy(probability - 0.5, outcomes),
        "log_loss": log_loss(probability, outcomes),
        "brier_score": brier_score(probability, outcomes),
        "expected_calibration_error": expected_calibration_error(probability, outcomes),
    }


def _series(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise InputError(
            f"expected a list of finite numbers, got shape {list(array.shape)} with NaN or infinite values"
            if array.ndim == 1
            else f"expected a list of numbers, got shape {list(array.shape)}"
        )
    return array


def _decided(values: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, Floats]:
    array, outcome = _series(values), _series(outcomes)
    if len(array) != len(outcome):
        raise InputError(f"expected one outcome per pair, got {len(outcome)} outcomes for {len(array)} pairs")
    if not np.isin(outcome, (0.0, 0.5, 1.0)).all():
        raise InputError("outcomes must be 1 (A won), 0 (B won) or 0.5 (tie)")
    decided = outcome != 0.5
    if not decided.any():
        raise InputError(f"none of {len(outcome)} pairs is decided, expected at least one that is not a tie")
    return array[decided], outcome[decided]


def _two_series(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    x, y = _series(first), _series(second)
    if len(x) != len(y) or len(x) < 2:
        raise InputError(f"expected two lists of one length of at least 2, got {len(x)} and {len(y)} values")
    for side, values in (("first", x), ("second", y)):
        if values.min() == values.max():
            raise InputError(f"all {len(values)} values of the {side} list are equal: a correlation is undefined")
    return x, y


def _check_probabilities(values: Floats) -> None:
    if values.min() < 0 or values.max() > 1:
        raise InputError(f"probabilities must lie within [0, 1], got {values.min():g} to {values.max():g}")
