"""What a pool of candidate rewards says about best-of-n for every n at once.

Taking the first n candidates of a pool uses one of its C(N, n) subsets and is as noisy as that sounds. The mean of the
maximum over all subsets of size n has a closed form in the order statistics x_(1) <= ... <= x_(N):

    E[max of n] = sum_j C(j-1, n-1) / C(N, n) * x_(j)

(j is the largest of a subset in C(j-1, n-1) of the C(N, n) ways). It is the unbiased estimate of best-of-n, known as
the pass@k estimator when rewards are 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def best_of_n_curves(rewards: ArrayLike, ranking: ArrayLike | None = None) -> Floats:
    """Expected best-of-n reward of every prompt for n = 1..N, n candidates drawn without replacement from its pool.

    Args:
        rewards: [P, N]; NaN marks a candidate that failed. A failed candidate still takes a place in a draw but cannot
            win it; draws in which every candidate failed are left out.
        ranking: [P, N], what the winner of a draw is chosen by (the first of equals wins), NaN where `rewards` is; the
            rewards themselves if not given. With another judge's values as `rewards`, the curve is what that judge
            says of the clips that `ranking` picks.

    Returns:
        [P, N] float64, non-decreasing in n without a `ranking`; a row of NaN for a prompt all of whose candidates
        failed.

    Raises:
        ValueError: `rewards` is not a table with at least one candidate, or holds an infinity.
    """
    pool = np.asarray(rewards, dtype=np.float64)
    if pool.ndim != 2 or pool.shape[1] == 0:
        raise ValueError(f"expected rewards [prompts, candidates] with at least one candidate, got shape {pool.shape}")
    if np.isinf(pool).any():
        raise ValueError("rewards hold an infinity; mark failed candidates by NaN")
    num_candidates = pool.shape[1]
    keys = pool if ranking is None else np.asarray(ranking, dtype=np.float64)
    if keys.shape != pool.shape or not np.array_equal(np.isnan(keys), np.isnan(pool)):
        raise ValueError(f"expected a ranking of the same candidates {pool.shape}, got shape {keys.shape}")
    # failed candidates rank lowest: they are never the winner of a draw that holds a sound one; from the last to the
    # first, so that of equals the first ends higher
    order = np.argsort(np.where(np.isnan(keys), -np.inf, keys)[:, ::-1], axis=1, kind="stable")
    ranked = np.take_along_axis(pool[:, ::-1], order, axis=1)
    sound = np.isfinite(ranked)
    ranked = np.where(sound, ranked, 0.0)
    curves = np.full(pool.shape, np.nan)
    scored = sound[:, -1]
    for n in range(1, num_candidates + 1):
        weights = np.where(sound[scored], _weights_of_ranks(num_candidates, n), 0.0)
        # the weights of the sound ranks sum to 1 - P(all n failed): condition on the rest
        curves[scored, n - 1] = (weights * ranked[scored]).sum(axis=1) / weights.sum(axis=1)
    return curves


def _weights_of_ranks(num_candidates: int, n: int) -> Floats:
    """P(rank j is the largest of n drawn from N) for j = 1..N: C(j-1, n-1) / C(N, n).

    By the ratio of neighbours downwards from j = N, whose weight is n / N: no binomial is ever formed, so nothing
    overflows, and every factor is at most 1.
    """
    ranks = np.arange(num_candidates, 1, -1, dtype=np.float64)
    ratios = np.maximum(ranks - n, 0.0) / (ranks - 1)
    return np.concatenate([[1.0], np.cumprod(ratios)])[::-1] * (n / num_candidates)


def expected_best_of_n(rewards: ArrayLike) -> Floats:
    """Mean over prompts of the expected best-of-n reward, for n = 1..N.

    Args:
        rewards: [P, N], NaN for failed candidates (see `best_of_n_curves`). Prompts without any sound candidate do not
            enter; the caller reports how many there are.

    Returns:
        [N] float64.

    Raises:
        ValueError: no prompt has a sound candidate, or the shape is wrong.
    """
    curves = best_of_n_curves(rewards)
    scored = curves[np.isfinite(curves[:, 0])]
    if not len(scored):
        raise ValueError("no prompt has a candidate with a reward")
    return np.asarray(scored.mean(axis=0))


def bootstrap_mean(
    values: ArrayLike, *, level: float = 0.95, num_resamples: int = 4000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Percentile bootstrap interval of the mean over prompts.

    Prompts are what one would draw anew, so they are resampled; the candidates within a prompt stay together. With a
    single prompt there is nothing to resample and the interval has no width: say so where it is shown.

    Args:
        values: [P, ...], a value or a curve per prompt.
        level: coverage.
        num_resamples: bootstrap samples.
        seed: of the resampling, fixed so that the same rewards give the same interval.

    Returns:
        (low [...], high [...]).
    """
    table = np.asarray(values, dtype=np.float64)
    num_prompts = table.shape[0]
    generator = np.random.default_rng(seed)
    # the mean of a resample is a weighted mean with multinomial counts: [R, P] @ [P, K], no [R, P, K] table
    counts = generator.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=num_resamples)
    means = (counts / num_prompts) @ table.reshape(num_prompts, -1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low.reshape(table.shape[1:]), high.reshape(table.shape[1:])


def within_prompt_deviation(rewards: Iterable[Sequence[float]]) -> float | None:
    """Standard deviation of the reward between candidates of one prompt, pooled over prompts.

    Args:
        rewards: those of each prompt, NaN for failed candidates.

    Returns:
        sqrt(sum of squared deviations from the prompts' means / degrees of freedom), or None without a prompt that has
        two sound candidates.
    """
    squares, freedom = 0.0, 0
    for row in rewards:
        pool = np.asarray(row, dtype=np.float64)
        sound = pool[np.isfinite(pool)]
        if len(sound) > 1:
            squares += float(((sound - sound.mean()) ** 2).sum())
            freedom += len(sound) - 1
    return (squares / freedom) ** 0.5 if freedom else None


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """Spearman's rank correlation of two lists [N], equals sharing their mean rank; None where a list has no order."""
    x, y = (_mean_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _mean_ranks(values: Floats) -> Floats:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group], dtype=np.float64)


def best_of_n_divergence(num_candidates: int) -> float:
    """Upper bound log N - (N - 1) / N, in nats, of the KL divergence of best-of-N from one draw (Beirami et al. 2024).

    Exact for rewards without ties; it says how far selection can have moved the distribution, whatever the reward.
    """
    return float(np.log(num_candidates) - (num_candidates - 1) / num_candidates)
