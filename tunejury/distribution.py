"""Distances between sets of embeddings: how far generated music as a whole is from a reference.

Everything is computed in float64 and is real and finite for any finite embeddings: rank-deficient, fewer than their
dimension, identical, or far apart. Distances of sets this size carry a bias or a spread that depends on the number of
embeddings, so compare only sets of equal size, or what `frechet_distance_infinity` extrapolates to.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

logger = logging.getLogger(__name__)

KAD_SCALE = 100.0  # kernel audio distance is stated in hundredths (Chung et al., arXiv 2502.15602)
ROWS_PER_BLOCK = 1024  # rows of a table of distances held at a time
TOO_LARGE = "the distance of embeddings this large is beyond a float64, divide both sets by one number first"


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of embeddings (FAD: Kilgour et al., arXiv 1812.08466).

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), in float64, through symmetric eigen-decompositions: no
    complex square roots, never negative. With few embeddings it is biased upwards; a warning is logged where a set has
    fewer than twice as many as they have values.

    Args:
        first, second: embeddings [N, D] and [M, D], N and M at least 2.

    Raises:
        ValueError: wrong shapes, too few rows, values that are not finite or no real numbers, or so large (beyond some
            1e150) that the distance is not finite.
    """
    first, second = check_embeddings(first, second)
    fewest, dim = min(len(first), len(second)), first.shape[1]
    if fewest < 2 * dim:
        logger.warning(
            "Frechet distance of %d embeddings of %d values is biased upwards (expected at least %d): compare only "
            "sets of equal size, or use frechet_distance_infinity or kernel_distance",
            fewest, dim, 2 * dim,
        )  # fmt: skip
    return _Gaussian(first).distance(second)


@dataclass(frozen=True)
class FrechetExtrapolation:
    """Frechet distance extrapolated to sets of unlimited size."""

    distance: float
    """Intercept of the line fitted to distance over 1 / N; slightly negative values happen for equal distributions."""
    slope: float
    r_squared: float
    """Share of the distances' variance the line explains; 1 where they do not vary."""
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_distance_infinity(
    generated: Tensor, reference: Tensor, *, steps: int = 15, min_size: int | None = None, seed: int = 0
) -> FrechetExtrapolation:
    """Frechet distance without the bias of few generated clips (FAD-infinity: Gui et al., arXiv 2311.01616).

    The bias goes with 1 / N: distances of random subsets of growing size, drawn without replacement, are fitted by a
    line in 1 / N, whose value at 0 is the answer. The reference's own size still matters: keep one reference.

    Args:
        generated: embeddings [N, D].
        reference: embeddings [M, D].
        steps: subset sizes, evenly spaced from `min_size` to N.
        min_size: smallest subset; None for the greater of N / 3 and 2.
        seed: of the subsets.

    Raises:
        ValueError: as for `frechet_distance`, or there are not two different sizes.
    """
    generated, reference = check_embeddings(generated, reference)
    smallest = max(2, len(generated) // 3) if min_size is None else min_size
    if steps < 2 or not 2 <= smallest < len(generated):
        raise ValueError(
            f"expected at least 2 steps and 2 <= min_size < {len(generated)} (the number of generated embeddings), "
            f"got {steps} and {smallest}"
        )
    sizes = torch.linspace(smallest, len(generated), steps, dtype=torch.float64).long()
    generator = torch.Generator().manual_seed(seed)
    gaussian = _Gaussian(reference)
    distances = torch.tensor(
        [gaussian.distance(generated[torch.randperm(len(generated), generator=generator)[:size]]) for size in sizes],
        dtype=torch.float64,
    )
    x = 1.0 / sizes.double()
    centred = x - x.mean()
    slope = (centred * (distances - distances.mean())).sum() / centred.square().sum()
    intercept = distances.mean() - slope * x.mean()
    residual = (distances - intercept - slope * x).square().sum()
    spread = (distances - distances.mean()).square().sum()
    r_squared = float(1 - residual / spread) if spread > 0 else 1.0
    return FrechetExtrapolation(
        float(intercept), float(slope), r_squared, tuple(sizes.tolist()), tuple(distances.tolist())
    )


# of squared distance over twice the squared bandwidth
KERNELS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda scaled: torch.exp(-scaled),
    "inverse-quadratic": lambda scaled: 1 / (1 + scaled),
    "inverse-multiquadric": lambda scaled: torch.rsqrt(1 + scaled),
}


def kernel_distance(
    generated: Tensor,
    reference: Tensor,
    *,
    kernel: Literal["gaussian", "inverse-quadratic", "inverse-multiquadric", "polynomial"] = "gaussian",
    bandwidth: float | None = None,
) -> float:
    """Squared maximum mean discrepancy of two sets of embeddings times 100, without bias whatever their sizes (KAD:
    Chung et al., arXiv 2502.15602).

    Sums leave out an embedding's similarity to itself, so equal distributions give 0 on average and about half the
    values are below it. Distances are differences squared and summed, never |x|^2 + |y|^2 - 2 xy, which cancels for
    sets far from the origin.

    Args:
        generated: embeddings [N, D], N at least 2.
        reference: embeddings [M, D], M at least 2.
        kernel: `gaussian`, the metric as published, or the two heavier-tailed ones of its toolkit; `polynomial` is
            (x . y / D + 1)^3, as in the kernel inception distance (Binkowski et al., arXiv 1801.01401).
        bandwidth: of all kernels but the polynomial; None for the median distance between reference embeddings (of
            which the lower of the two middle ones, as torch.median takes it).

    Raises:
        ValueError: as for `frechet_distance`, or an unknown kernel or a bandwidth that is not above 0.
    """
    generated, reference = check_embeddings(generated, reference)
    if kernel == "polynomial":
        dim = generated.shape[1]
        distance = KAD_SCALE * _discrepancy(generated, reference, lambda x, y: (x @ y.T / dim + 1) ** 3)
        if not math.isfinite(distance):
            raise ValueError(TOO_LARGE)
        return distance
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}, expected one of: {', '.join(KERNELS)}, polynomial")
    if bandwidth is None:
        distances = torch.pdist(reference)
        bandwidth = float(distances.median())
        if bandwidth == 0:  # most reference embeddings coincide: what spread there is sets the scale
            distances = torch.pdist(torch.cat([generated, reference]))
            bandwidth = float(distances[distances > 0].median()) if (distances > 0).any() else 1.0
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth is {bandwidth}, expected a finite number above 0")
    width, shape = bandwidth, KERNELS[kernel]

    def similarity(x: Tensor, y: Tensor) -> Tensor:
        scaled = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") / width  # first, lest squares overflow
        return shape(scaled.square() / 2)

    return KAD_SCALE * _discrepancy(generated, reference, similarity)


def mean_pairwise_cosine_distance(embeddings: Tensor) -> float:
    """Mean of 1 - cosine over all pairs of different rows: how varied a set is, 0 (all alike) to about 1.

    In closed form from the sum s of the N unit vectors: 1 - (|s|^2 - N) / (N (N - 1)).

    Args:
        embeddings: [N, D], N at least 2.

    Raises:
        ValueError: wrong shape, too few rows, values that are not finite, or a row of zeros, which has no direction.
    """
    embeddings, _ = check_embeddings(embeddings, embeddings)
    largest = embeddings.abs().amax(1, keepdim=True)
    if (largest == 0).any():
        raise ValueError(f"embedding {int(largest.flatten().argmin())} is all zeros and has no direction")
    unit = normalize(embeddings / largest, dim=1)  # scaled first: squares of tiny or huge values leave float64
    number = len(unit)
    return max(0.0, float(1 - (unit.sum(0).square().sum() - number) / (number * (number - 1))))


def check_embeddings(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of embeddings [N, D] and [M, D] in float64; arrays are taken too.

    Raises:
        ValueError: wrong shapes, fewer than 2 rows in a set, or values that are not finite or no real numbers.
    """
    # through numpy: torch alone would take lists as float32
    first, second = (
        torch.as_tensor(part if isinstance(part, Tensor) else np.asarray(part)) for part in (first, second)
    )
    if first.is_complex() or second.is_complex():
        raise ValueError("embeddings are complex, expected real numbers")
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not first.shape[1]:
        raise ValueError(f"expected embeddings [N, D] and [M, D], got {tuple(first.shape)} and {tuple(second.shape)}")
    if len(first) < 2 or len(second) < 2:
        raise ValueError(f"expected at least 2 embeddings in each set, got {len(first)} and {len(second)}")
    first, second = first.detach().double(), second.detach().double()
    if not (first.isfinite().all() and second.isfinite().all()):
        raise ValueError("embeddings hold NaN or infinite values")
    return first, second


class _Gaussian:
    """A Gaussian fitted to embeddings [N, D], and its Frechet distance to others; the root is taken once.

    The root is a factor F with S = F F^T rather than the symmetric one: the trace of (F^T S2 F)^1/2 is the same, and a
    set of N < D embeddings needs eigenvalues of N x N only.
    """

    def __init__(self, embeddings: Tensor) -> None:
        self.mean, self.factor = _mean_and_factor(embeddings)

    def distance(self, embeddings: Tensor) -> float:
        mean, factor = _mean_and_factor(embeddings)
        # tr (F1^T S2 F1)^1/2 = sum of the singular values of F2^T F1: no square root of a rounding error is taken
        product = factor.T @ self.factor
        apart = (mean - self.mean).square().sum() + factor.square().sum() + self.factor.square().sum()
        if not (product.isfinite().all() and apart.isfinite()):
            raise ValueError(TOO_LARGE)
        return float((apart - 2 * torch.linalg.svdvals(product).sum()).clamp_min(0))


def _mean_and_factor(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and a factor F [D, min(N, D)] of the sample covariance, S = F F^T."""
    mean = embeddings.mean(0)
    centred = (embeddings - mean) / (len(embeddings) - 1) ** 0.5
    if centred.shape[0] <= centred.shape[1]:
        return mean, centred.T
    return mean, torch.linalg.qr(centred, mode="r").R.T


def _discrepancy(first: Tensor, second: Tensor, similarity: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Unbiased squared maximum mean discrepancy, a block of rows at a time."""

    def mean(x: Tensor, y: Tensor, *, same: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        for start in range(0, len(x), ROWS_PER_BLOCK):
            block = similarity(x[start : start + ROWS_PER_BLOCK], y)
            total += block.sum()
            if same:
                total -= block.diagonal(offset=start).sum()
        return total / (len(x) * (len(y) - 1 if same else len(y)))

    within = mean(first, first, same=True) + mean(second, second, same=True)
    return float(within - 2 * mean(first, second, same=False))
