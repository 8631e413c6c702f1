"""Distances between sets of embeddings: independent float64 computations, and the degenerate sets people do have."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tunejury.distribution import (
    frechet_distance,
    frechet_distance_infinity,
    kernel_distance,
    mean_pairwise_cosine_distance,
)
from tunejury.mauve import MauveConfig, frontier_area, kmeans, mauve_audio_divergence

Distance = Callable[[Tensor, Tensor], float]

DISTANCES: dict[str, Distance] = {
    "frechet": frechet_distance,
    "kernel": kernel_distance,
    "polynomial": lambda x, y: kernel_distance(x, y, kernel="polynomial"),
    "mauve": lambda x, y: mauve_audio_divergence(x, y).divergence,
}


def normal(rows: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


# degenerate sets: a finite number, never NaN, never complex, and the right one where it is known


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("case", ["fewer than values", "rank one", "constant column", "two rows", "one is constant"])
def test_degenerate_sets_give_a_finite_distance(name: str, case: str) -> None:
    first, second = normal(30, 64, 0), normal(40, 64, 1, shift=0.3)
    if case == "rank one":
        first, second = first[:, :1] @ normal(1, 64, 2), second[:, :1] @ normal(1, 64, 2)
    elif case == "constant column":
        first[:, 3], second[:, 3] = 2.0, 2.0
    elif case == "two rows":
        first, second = first[:2], second[:2]
    elif case == "one is constant":
        first = first[:1].repeat(30, 1)
    distance, back = DISTANCES[name](first, second), DISTANCES[name](second, first)
    assert math.isfinite(distance) and math.isfinite(back)
    if name in ("frechet", "mauve"):
        assert distance >= 0
    if name in ("frechet", "polynomial"):  # no setting is taken from one of the two
        assert distance == pytest.approx(back, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("shape", [(200, 8), (20, 64), (2, 3)])
def test_set_is_at_no_distance_from_itself(shape: tuple[int, int]) -> None:
    x = normal(*shape, 0)
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    assert frechet_distance(x, shuffled) == pytest.approx(0, abs=1e-9)
    assert mauve_audio_divergence(x, shuffled).divergence == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["frechet", "kernel", "mauve"])
def test_constant_equal_sets_are_at_no_distance(name: str) -> None:
    x = torch.full((20, 5), 3.0)
    assert DISTANCES[name](x, x.clone()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shift", [1e3, 1e8, 1e150])
def test_far_sets(shift: float) -> None:
    first, second = normal(50, 8, 0), normal(50, 8, 1)
    far = second + shift
    assert frechet_distance(first, far) == pytest.approx(8 * shift**2, rel=1e-2)
    # no similarity is left between the sets: what remains is that within them
    within = sum((torch.exp(-torch.pdist(x).square() / 2)).mean() for x in (first, second))
    if shift < 1e8:
        assert kernel_distance(first, far, bandwidth=1.0) == pytest.approx(100 * float(within), rel=1e-9)
    assert math.isfinite(kernel_distance(first, far)) and kernel_distance(first, far) > 50
    # sets on opposite sides of the origin share no cluster
    apart = mauve_audio_divergence(first - shift, far)
    assert all(p == 0 or q == 0 for p, q in zip(apart.first_histogram, apart.second_histogram, strict=True))
    assert 4 < apart.divergence < 6


@pytest.mark.parametrize("distance", [frechet_distance, lambda x, y: kernel_distance(x, y, kernel="polynomial")])
def test_distance_beyond_numbers_is_an_error(distance: Callable[[Tensor, Tensor], float]) -> None:
    with pytest.raises(ValueError, match="beyond a float64"):
        distance(normal(20, 5, 0) * 1e200, normal(20, 5, 1) * 1e200)


def test_arrays_are_taken_and_complex_numbers_refused() -> None:
    x, y = normal(20, 5, 0), normal(20, 5, 1)
    assert frechet_distance(x.numpy(), y.tolist()) == frechet_distance(x, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="complex"):
        frechet_distance(x + 1j * y, y)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("bad", ["nan", "inf", "shape", "one row", "empty", "vector"])
def test_unusable_sets_are_refused(name: str, bad: str) -> None:
    x, y = normal(5, 3, 0), normal(5, 3, 1)
    if bad in ("nan", "inf"):
        y[2, 1] = float(bad)
    elif bad == "shape":
        y = y[:, :2]
    elif bad == "one row":
        y = y[:1]
    elif bad == "empty":
        y = y[:0]
    elif bad == "vector":
        y = y[0]
    with pytest.raises(ValueError, match=r"expected|hold NaN"):
        DISTANCES[name](x, y)


@pytest.mark.parametrize("name", DISTANCES)
def test_order_of_rows_does_not_matter(name: str) -> None:
    # two clear clusters: k-means finds them from any start
    x = torch.cat([normal(30, 4, 0, 9.0), normal(10, 4, 1, -9.0)])
    y = torch.cat([normal(15, 4, 2, 9.0), normal(25, 4, 3, -9.0)])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    distance = DISTANCES[name]
    if name == "mauve":
        distance = lambda x, y: mauve_audio_divergence(x, y, MauveConfig(clusters=2)).divergence  # noqa: E731
    assert distance(x[order], y) == pytest.approx(distance(x, y), rel=1e-9)


# Frechet


@pytest.mark.parametrize(("n", "m", "dim"), [(300, 200, 6), (40, 50, 30), (300, 200, 1)])
def test_frechet_distance_is_the_formula(n: int, m: int, dim: int) -> None:
    """Against the eigenvalues of the (unsymmetric) product of the covariances."""
    x, y = normal(n, dim, 0), 1.5 * normal(m, dim, 1, shift=0.5)
    covariances = [torch.cov(z.T).reshape(dim, dim) for z in (x, y)]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp_min(0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * roots
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)


def test_few_embeddings_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="tunejury.distribution"):
        frechet_distance(normal(200, 8, 0), normal(200, 8, 1))
        assert not caplog.records
        frechet_distance(normal(15, 8, 0), normal(200, 8, 1))
    assert "15 embeddings of 8 values" in caplog.text


def test_extrapolation_removes_the_bias_of_few_clips() -> None:
    """Both sets come from known Gaussians, so the distance of unlimited sets is known: here 1."""
    dim, shift = 32, 1 / math.sqrt(32)
    reference = normal(20_000, dim, 0)
    plain, extrapolated = [], []
    for seed in range(5):
        generated = normal(300, dim, 10 + seed, shift=shift)
        plain.append(frechet_distance(generated, reference))
        extrapolated.append(frechet_distance_infinity(generated, reference, seed=seed))
    assert sum(plain) / 5 > 1.5
    assert sum(result.distance for result in extrapolated) / 5 == pytest.approx(1.0, abs=0.2)
    assert all(result.slope > 0 and result.r_squared > 0.5 for result in extrapolated)
    assert extrapolated[0].sizes[-1] == 300
    assert extrapolated[0].distances[-1] == pytest.approx(plain[0])  # the last subset is the whole set


@pytest.mark.parametrize("options", [{"steps": 1}, {"min_size": 1}, {"min_size": 10}])
def test_extrapolation_needs_two_sizes(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 2 steps"):
        frechet_distance_infinity(normal(10, 2, 0), normal(10, 2, 1), **options)


# kernel


@pytest.mark.parametrize("kernel", ["gaussian", "inverse-quadratic", "inverse-multiquadric", "polynomial"])
def test_kernel_distance_is_the_double_sum(kernel: str) -> None:
    """Against sums over pairs one by one, larger than one block of rows on neither side."""
    x, y = normal(12, 3, 0), normal(9, 3, 1, shift=1.0)
    bandwidth = float(torch.pdist(y).median())

    def k(a: Tensor, b: Tensor) -> float:
        if kernel == "polynomial":
            return float((a @ b / 3 + 1) ** 3)
        scaled = float((a - b).square().sum()) / (2 * bandwidth**2)
        values = {
            "gaussian": math.exp(-scaled),
            "inverse-quadratic": 1 / (1 + scaled),
            "inverse-multiquadric": (1 + scaled) ** -0.5,
        }
        return values[kernel]

    def mean(u: Tensor, v: Tensor) -> float:
        pairs = [(i, j) for i in range(len(u)) for j in range(len(v)) if u is not v or i != j]
        return sum(k(u[i], v[j]) for i, j in pairs) / len(pairs)

    expected = 100 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert kernel_distance(x, y, kernel=kernel) == pytest.approx(expected, rel=1e-9)  # type: ignore[arg-type]


def test_kernel_distance_is_unbiased() -> None:
    """Equal distributions give 0 on average, even from five embeddings; a shift does not."""
    same = [kernel_distance(normal(5, 4, 2 * s), normal(5, 4, 2 * s + 1), bandwidth=2.0) for s in range(400)]
    error = torch.tensor(same).std() / 20
    assert abs(sum(same) / 400) < 4 * error and min(same) < 0 < max(same)
    assert kernel_distance(normal(200, 4, 0), normal(200, 4, 1, shift=1.0)) > 4 * float(error)


def test_blocks_of_rows_change_nothing() -> None:
    x, y = normal(2100, 3, 0), normal(1500, 3, 1)
    distances = torch.cdist(x, y), torch.cdist(x, x), torch.cdist(y, y)
    across, first, second = (torch.exp(-d.square() / 2) for d in distances)
    n, m = len(x), len(y)
    expected = (first.sum() - n) / (n * (n - 1)) + (second.sum() - m) / (m * (m - 1)) - 2 * across.mean()
    assert kernel_distance(x, y, bandwidth=1.0) == pytest.approx(100 * float(expected), rel=1e-6)


@pytest.mark.parametrize("options", [{"kernel": "linear"}, {"bandwidth": 0.0}, {"bandwidth": math.nan}])
def test_unknown_kernel_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"unknown kernel|bandwidth is"):
        kernel_distance(normal(5, 2, 0), normal(5, 2, 1), **options)  # type: ignore[arg-type]


# MAUVE


def test_clear_clusters_are_counted() -> None:
    centres = 50 * torch.eye(4, 6, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (200,), generator=generator)
    points = centres[labels] + normal(200, 6, 1)
    found = kmeans(points, 4)
    assert len(set(zip(labels.tolist(), found.tolist(), strict=True))) == 4  # one to one


def test_every_cluster_is_used() -> None:
    points = torch.cat([normal(100, 2, 0), normal(3, 2, 1, shift=100.0)])
    assert len(kmeans(points, 12, seed=3).unique()) == 12


def test_mauve_of_clear_clusters_is_the_area_of_their_shares() -> None:
    directions = torch.eye(3, dtype=torch.float64) * 100
    shares = ([10, 20, 30], [30, 20, 10])
    first, second = (torch.cat([directions[i] + normal(n, 3, i) for i, n in enumerate(s)]) for s in shares)
    result = mauve_audio_divergence(first, second, MauveConfig(clusters=3))
    p, q = (torch.tensor(s, dtype=torch.float64) / 60 for s in shares)
    assert sorted(result.first_histogram) == pytest.approx(sorted(p.tolist()))
    assert result.mauve == pytest.approx(frontier_area(p, q))
    assert result.divergence == pytest.approx(-math.log(result.mauve))


def test_frontier_area_of_known_histograms() -> None:
    p = torch.tensor([0.2, 0.8], dtype=torch.float64)
    assert frontier_area(p, p) == pytest.approx(1.0, abs=1e-6)
    # disjoint histograms: x = (1 - w)^5, y = w^5, of which the area is 5 B(6, 5) = 5 * 5! 4! / 10!
    disjoint = frontier_area(*torch.eye(2, dtype=torch.float64), points=20_001)
    assert disjoint == pytest.approx(5 * math.factorial(5) * math.factorial(4) / math.factorial(10), rel=1e-4)
    q = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert disjoint < frontier_area(p, q) < 1 and frontier_area(p, q) == pytest.approx(frontier_area(q, p), rel=1e-9)


def test_mauve_is_that_of_the_reference_program() -> None:
    """Values of mauve-text 0.4.0 with faiss 1.15.1, seed 42: sets without clusters, of copies, and of so unequal sizes
    that k-means takes a part of them.
    """
    generator = np.random.default_rng(7)

    def draw(rows: int, columns: int) -> np.ndarray:
        return generator.standard_normal((rows, columns))

    sets = {
        0.9253640583924656: (draw(60, 12), 1.2 * draw(60, 12) + 0.2),
        0.9921547665648818: (draw(20, 48), draw(20, 48)),
        0.9976180722095201: (draw(20, 8), draw(600, 8) + 0.1),
        0.5822794855768023: (np.repeat(draw(15, 6), 4, 0), np.repeat(draw(15, 6), 4, 0)),
        0.005674566038970475: (draw(50, 2) @ draw(2, 16), draw(50, 2) @ draw(2, 16)),
    }
    for value, (first, second) in sets.items():
        result = mauve_audio_divergence(torch.from_numpy(first), torch.from_numpy(second), MauveConfig(seed=42))
        assert result.mauve == pytest.approx(value, rel=1e-9)


def test_mauve_is_repeatable() -> None:
    x, y = normal(100, 16, 0), normal(100, 16, 1)
    torch.manual_seed(3)
    first = mauve_audio_divergence(x, y)
    torch.manual_seed(4)
    assert mauve_audio_divergence(x, y) == first


# diversity


def test_mean_pairwise_cosine_distance_is_the_mean_over_pairs() -> None:
    x = normal(10, 5, 0, shift=0.5)
    unit = x / x.norm(dim=1, keepdim=True)
    pairs = [1 - float(unit[i] @ unit[j]) for i in range(10) for j in range(i)]
    assert mean_pairwise_cosine_distance(x) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
    scales = torch.logspace(-200, 200, 10, dtype=torch.float64)[:, None]
    assert mean_pairwise_cosine_distance(x * scales) == pytest.approx(sum(pairs) / len(pairs), rel=1e-9)


def test_copies_are_at_no_cosine_distance() -> None:
    assert mean_pairwise_cosine_distance(normal(1, 5, 0).repeat(7, 1)) == pytest.approx(0, abs=1e-12)
    assert mean_pairwise_cosine_distance(torch.eye(4)) == pytest.approx(1)


def test_zero_embedding_has_no_direction() -> None:
    x = normal(5, 3, 0)
    x[3] = 0
    with pytest.raises(ValueError, match="embedding 3 is all zeros"):
        mean_pairwise_cosine_distance(x)
