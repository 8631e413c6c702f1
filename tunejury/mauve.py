"""MAUVE audio divergence: how far apart two sets of embeddings are as histograms over shared clusters.

MAD (Huang et al., arXiv 2503.16669) is the negative logarithm of MAUVE (Pillutla et al., arXiv 2102.01454): embeddings
of both sets are clustered together, and the two histograms over the clusters are compared by the area under their
divergence frontier. Written from the two papers; the settings are those of TuneJury's evaluation (MAUVE's defaults),
and the values those of the reference program `mauve-text` (`benchmarks/distribution_parity.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tunejury.distribution import check_embeddings

# of faiss's k-means, see `kmeans`
MOST_POINTS = 256  # per cluster
RESTART_STRIDE = 15_486_557
SPLIT_SEED, SPLIT_STEP = 1234, 1 / 1024
TWISTER_MAX = 2**32 - 1
# from a seed of MAUVE to that of its k-means
SEED_STEP = 2


@dataclass(frozen=True)
class MauveConfig:
    """Settings of MAUVE."""

    clusters: int | None = None
    """None: a tenth of the smaller set's size, at least 2."""
    explained_variance: float = 0.9
    """Share of the variance that the principal components kept for clustering explain."""
    scale: float = 5.0
    """Factor on divergences in the exponent of the frontier."""
    points: int = 25
    """Mixture weights on the frontier."""
    restarts: int = 5
    """k-means runs, of which the one with the least distortion counts."""
    max_iterations: int = 500
    seed: int = 42


@dataclass(frozen=True)
class MauveResult:
    """MAUVE of two sets and what it was computed from."""

    mauve: float
    """0 to 1; 1 where both sets have one histogram."""
    divergence: float
    """MAD: -ln mauve, 0 upwards. Histograms without a common cluster give about 5.5, the most there is."""
    first_histogram: tuple[float, ...]
    second_histogram: tuple[float, ...]


def mauve_audio_divergence(first: Tensor, second: Tensor, config: MauveConfig = MauveConfig()) -> MauveResult:
    """MAUVE and its negative logarithm, MAD. Symmetric up to the order k-means sees the embeddings in.

    Embeddings are brought to unit length, rotated to their principal components, cut to those that explain most of the
    variance and clustered; ties and empty clusters are settled by the seed alone. The value depends on the number of
    clusters, so on the size of the sets: compare like with like. Where the embeddings form no clusters it also moves
    with the seed, by a tenth or more for a few hundred of them: compare over several.

    Args:
        first, second: embeddings [N, D] and [M, D], N and M at least 2.
        config: settings.

    Raises:
        ValueError: as for `frechet_distance`.
    """
    first, second = check_embeddings(first, second)
    both = torch.cat([second, first])  # in the reference program's order, which k-means depends on
    # scaled first: squares of tiny or huge values leave float64; an embedding of zeros stays one
    both = normalize(both / both.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny), dim=1)
    components = _principal_components(both, config.explained_variance)
    # equal embeddings stay exactly equal, whatever the decomposition rounds
    _, groups = torch.unique(both, dim=0, return_inverse=True)
    representative = torch.empty(int(groups.max()) + 1, dtype=torch.long).scatter_(0, groups, torch.arange(len(groups)))
    clusters = max(2, round(min(len(first), len(second)) / 10)) if config.clusters is None else config.clusters
    labels = kmeans(
        components[representative[groups]],
        clusters,
        restarts=config.restarts,
        max_iterations=config.max_iterations,
        seed=config.seed + SEED_STEP,
    )
    counts = [torch.bincount(part, minlength=clusters).double() for part in labels.split([len(second), len(first)])]
    q, p = (count / count.sum() for count in counts)
    mauve = frontier_area(p, q, scale=config.scale, points=config.points)
    return MauveResult(mauve, max(0.0, -math.log(mauve)), tuple(p.tolist()), tuple(q.tolist()))


def frontier_area(p: Tensor, q: Tensor, *, scale: float = 5.0, points: int = 25) -> float:
    """Area under the divergence frontier of two histograms [K]: MAUVE.

    The frontier is (exp(-scale KL(q|r)), exp(-scale KL(p|r))) for mixtures r = w p + (1 - w) q, closed by (1, 0) and
    (0, 1). Its area is taken by trapezoids.
    """
    weights = torch.linspace(1e-6, 1 - 1e-6, points, dtype=torch.float64)[:, None]
    mixtures = weights * p + (1 - weights) * q  # [points, K], above 0 wherever p or q is
    curve = torch.stack([torch.exp(-scale * _divergence(part, mixtures)) for part in (q, p)])  # [2, points]
    ends = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    # as the weight of p grows x falls from 1 and y rises to 1
    x, y = torch.cat([ends, curve, ends.flip(0)], dim=1)
    area = -torch.trapezoid(y, x)
    return min(1.0, float(area))


def kmeans(points: Tensor, clusters: int, *, restarts: int = 5, max_iterations: int = 500, seed: int = 0) -> Tensor:
    """Label [N] of each point [N, D]: Lloyd's algorithm from starts at random points, the best of several runs.

    The random choices are those of faiss (Johnson et al., arXiv 1702.08734), whose k-means the reference program calls:
    on data without clear clusters the value moves with the optimum found, so equal figures take equal choices. Starts
    are a shuffle by Mersenne twister; an empty cluster takes half of a large one; of more than 256 points per cluster
    a random part is clustered, and all are labelled by it. Where there are fewer different points than clusters, each
    different point is its own cluster.
    """
    distinct, places = torch.unique(points, dim=0, return_inverse=True)
    if len(distinct) <= clusters:
        return places
    chosen = points
    if len(points) > MOST_POINTS * clusters:
        chosen = points[_shuffle(len(points), seed)[: MOST_POINTS * clusters]]
    best, least = chosen[:clusters], math.inf
    for restart in range(restarts):
        centres = chosen[_shuffle(len(chosen), seed + 1 + restart * RESTART_STRIDE)[:clusters]]
        centres, distortion = _lloyd(chosen, centres, max_iterations)
        if distortion < least:
            best, least = centres, distortion
    return _distances(points, best).argmin(1)


def _lloyd(points: Tensor, centres: Tensor, max_iterations: int) -> tuple[Tensor, float]:
    """Centres [K, D] after so many rounds, or where they stay, and the sum of squared distances in the last one."""
    labels = torch.full((len(points),), -1)
    distortion = math.inf
    for _ in range(max_iterations):
        nearest, new_labels = _distances(points, centres).min(1)
        distortion = float(nearest.sum())
        counts = torch.bincount(new_labels, minlength=len(centres))
        empty = (counts == 0).nonzero().flatten().tolist()
        if torch.equal(labels, new_labels) and not empty:
            break
        labels = new_labels
        centres = torch.zeros_like(centres).index_add_(0, labels, points) / counts.clamp_min(1)[:, None]
        if empty:
            _split(centres, counts.tolist(), empty)
    return centres, distortion


def _split(centres: Tensor, counts: list[int], empty: Sequence[int]) -> None:
    """Give each empty cluster half of another one, drawn by size, by moving both centres slightly apart, in place."""
    twister = np.random.RandomState(SPLIT_SEED)
    spare = sum(counts) - len(counts)
    apart = SPLIT_STEP * (1.0 - 2.0 * (torch.arange(centres.shape[1]) % 2)).to(centres)
    for cluster in empty:
        large = 0
        while not int(_draws(twister, 1)[0]) / TWISTER_MAX < (counts[large] - 1) / spare:
            large = (large + 1) % len(counts)
        centres[cluster] = centres[large] * (1 + apart)
        centres[large] *= 1 - apart
        counts[cluster] = counts[large] // 2
        counts[large] -= counts[cluster]


def _shuffle(number: int, seed: int) -> list[int]:
    """0 .. number - 1, shuffled from the front by remainders of the Mersenne twister's 32-bit numbers."""
    order = list(range(number))
    for place, draw in enumerate(_draws(np.random.RandomState(seed % 2**32), number - 1)):
        other = place + draw % (number - place)
        order[place], order[other] = order[other], order[place]
    return order


def _draws(twister: np.random.RandomState, number: int) -> list[int]:
    drawn: list[int] = twister.randint(0, 2**32, size=number, dtype=np.uint32).tolist()
    return drawn


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances [N, K], as differences squared and summed: nothing cancels."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def _principal_components(points: Tensor, explained_variance: float) -> Tensor:
    """Points [N, D] as their leading principal components [N, K], the fewest that explain the share of variance."""
    centred = points - points.mean(0)
    u, values, directions = torch.linalg.svd(centred, full_matrices=False)
    # a direction's sign is arbitrary: its largest entry is taken as positive
    u = u * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign().T
    variance = values.square()
    if variance[0] <= 1e-24 * len(points):  # all points are one, up to rounding
        return torch.zeros(len(points), 1, dtype=points.dtype)
    share = variance.cumsum(0) / variance.sum()
    kept = int((share < explained_variance).sum()) + 1
    return (u * values)[:, : min(kept, len(values))]


def _divergence(p: Tensor, mixtures: Tensor) -> Tensor:
    """KL(p | r) of every mixture r [points, K] -> [points]."""
    there = p > 0
    return (p[there] * (p[there] / mixtures[:, there]).log()).sum(1)
