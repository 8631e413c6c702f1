"""AnchorCalibration against planted truth, and what it promises of every answer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tunejury import AnchorCalibration, InputError, fit_anchors
from tunejury.bradley_terry import fit_map
from tunejury.calibration_fit import AnchorPrior, fit_published
from tunejury.planning import pairs_needed, win_half_width

from .planted_votes import OFFSETS, SYSTEMS, draw_votes, vote


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(a, b) for a in names for b in names]


# the fit


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("tie", [0.0, 0.7])
def test_planted_truth_is_recovered(scale: float, tie: float) -> None:
    calibration = fit_anchors(draw_votes(6000, scale, tie), reference_system="a")
    assert calibration.scale == pytest.approx(scale, abs=0.08)
    for system, offset in OFFSETS.items():
        assert calibration.offset(system).value == pytest.approx(offset, abs=0.2)
    if tie:
        assert calibration.log_tie == pytest.approx(np.log(tie), abs=0.1)
    else:
        assert calibration.log_tie is None


def test_published_method_recovers_offsets_at_scale_one() -> None:
    calibration = fit_published(draw_votes(6000, 1.0), reference_system="a")
    assert calibration.scale == 1 and calibration.scale_interval().high == 1
    for system, offset in OFFSETS.items():
        assert calibration.offset(system).value == pytest.approx(offset, abs=0.2)


def test_published_method_on_paper() -> None:
    """One win of b at equal rewards: d/dx [-log sigmoid(x) + l2 x^2] = 0 is x = sigmoid(-x) / (2 l2)."""
    for l2 in (0.5, 1.0, 3.0):
        calibration = fit_published([vote("a", "b", 0.0)], reference_system="b", l2=l2)
        overrated = calibration.offset("a").value
        assert overrated == pytest.approx(1 / (1 + np.exp(overrated)) / (2 * l2), abs=1e-9)
        assert calibration.win_probability(0.3, "a", "b") == pytest.approx(1 / (1 + np.exp(overrated - 0.3)), abs=1e-12)


def test_no_votes_leave_the_published_reward_alone() -> None:
    calibration = fit_published([], reference_system="a")
    assert calibration.win_probability(0.7, "x", "y") == pytest.approx(1 / (1 + np.exp(-0.7)), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_fit_is_the_maximum_and_its_curvature(ties: bool) -> None:
    """Gradient and Hessian of the log posterior by finite differences."""
    generator = np.random.default_rng(0)
    design = generator.normal(size=(30, 2))
    outcomes = generator.choice([0.0, 1.0, 0.5] if ties else [0.0, 1.0], 30)
    size = 2 + ties
    mean, prior = generator.normal(size=size) / 2, np.diag(generator.uniform(0.2, 2.0, size))

    def log_posterior(x: np.ndarray) -> float:
        z = design @ x[:2] + 0.1
        parts = np.stack([z / 2, -z / 2, np.full(30, x[2])] if ties else [z / 2, -z / 2])
        chosen = np.where(outcomes == 1, 0, np.where(outcomes == 0, 1, 2))
        value = (parts[chosen, np.arange(30)] - np.log(np.exp(parts).sum(0))).sum()
        return float(value - (x - mean) @ np.linalg.inv(prior) @ (x - mean) / 2)

    fit = fit_map(design, outcomes, mean, prior, constant=np.full(30, 0.1), ties=ties)
    step = 1e-4 * np.eye(size)
    slopes = [(log_posterior(fit.mean + d) - log_posterior(fit.mean - d)) / 2e-4 for d in step]
    assert slopes == pytest.approx([0.0] * size, abs=1e-5)
    at = [[log_posterior(fit.mean + s * d + t * e) for s, t in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
          for d in step for e in step]  # fmt: skip
    curvature = np.array([(pp - pm - mp + mm) / 4e-8 for pp, pm, mp, mm in at]).reshape(size, size)
    np.testing.assert_allclose(-np.linalg.inv(curvature), fit.covariance, atol=1e-5)


def test_evidence_is_the_integral() -> None:
    generator = np.random.default_rng(1)
    design, outcomes = generator.normal(size=(25, 1)), generator.choice([0.0, 1.0], 25)
    fit = fit_map(design, outcomes, np.zeros(1), np.full((1, 1), 0.25))
    grid = np.linspace(-4, 4, 4001)
    likelihood = -np.logaddexp(0, -(design * grid) * (2 * outcomes[:, None] - 1)).sum(0)
    density = np.exp(likelihood - grid**2 / 0.5) / np.sqrt(2 * np.pi * 0.25)
    assert fit.log_evidence == pytest.approx(np.log(density.sum() * (grid[1] - grid[0])), abs=0.01)


@pytest.mark.parametrize(
    ("count", "spread", "scales"),
    [(100, 0.5, (0.5, 0.3)), (30, 1.0, (0.5, 0.3)), (30, 0.5, (1.0, 0.0))],
    ids=["as held", "systems far apart, few votes", "good judge, few votes"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(count: int, spread: float, scales: tuple[float, float]) -> None:
    """Offsets' differences, win probabilities and the scale, for truths drawn anew; nominal 95 %."""
    offsets_hit, wins_hit, scale_hit = [], [], []
    for seed in range(100):
        generator = np.random.default_rng(1000 + seed)
        truth = dict(zip(SYSTEMS, generator.normal(0.0, spread, 5), strict=True))
        scale = float(generator.normal(*scales))
        votes = draw_votes(count, scale, seed=seed, offsets=truth)
        calibration = fit_anchors(votes, allow_disconnected=True)
        interval = calibration.scale_interval()
        scale_hit.append(interval.low <= scale <= interval.high)
        reference = calibration.reference_system
        assert reference is not None
        for system in set(calibration.systems) - {reference}:
            interval = calibration.offset(system)
            offsets_hit.append(interval.low <= truth[system] - truth[reference] <= interval.high)
            win = calibration.win_interval(0.5, system, reference)
            chance = 1 / (1 + np.exp(truth[system] - truth[reference] - scale * 0.5))
            wins_hit.append(win.low <= chance <= win.high)
            assert interval.low <= interval.value <= interval.high and win.low <= win.value <= win.high
    assert 0.90 <= np.mean(offsets_hit) <= 0.985
    assert 0.90 <= np.mean(wins_hit) <= 0.985
    assert np.mean(scale_hit) >= 0.90


def test_prior_of_intervals_changes_no_value() -> None:
    votes = draw_votes(40, tie=0.3)
    ours, narrow = fit_anchors(votes), fit_anchors(votes, interval_prior=AnchorPrior())
    assert narrow.interval_posterior == narrow.posterior == ours.posterior != ours.interval_posterior
    assert ours.win_probability(0.4, "a", "b") == narrow.win_probability(0.4, "a", "b")
    assert ours.offset("b").value == pytest.approx(narrow.offset("b").value, abs=1e-12)
    assert ours.offset("b").high - ours.offset("b").low > narrow.offset("b").high - narrow.offset("b").low


# every answer


@pytest.mark.parametrize("tie", [0.0, 0.5])
@pytest.mark.parametrize("method", ["anchors", "published"])
def test_swapped_sides_have_the_other_probability(method: str, tie: float) -> None:
    votes = draw_votes(80, tie=tie)
    calibration = fit_anchors(votes) if method == "anchors" else fit_published(votes, reference_system="b")
    for a, b in pairs_of([*SYSTEMS, "new", "newer"]):
        for margin in (0.0, 0.4, -3.0, 400.0):
            forth, back = calibration.win_probability(margin, a, b), calibration.win_probability(-margin, b, a)
            assert forth + back == pytest.approx(1, abs=1e-12)
            outcomes, other = (
                calibration.outcome_probabilities(margin, a, b),
                calibration.outcome_probabilities(-margin, b, a),
            )
            assert sum(outcomes.values()) == pytest.approx(1)
            assert outcomes["a"] == pytest.approx(other["b"], abs=1e-12)
            assert bool(outcomes["tie"] > 1e-3) == (calibration.log_tie is not None) or abs(margin) > 1
        assert a != b or calibration.win_probability(0.0, a, b) == pytest.approx(0.5, abs=1e-12)


def test_swapped_votes_give_the_same_calibration() -> None:
    votes = draw_votes(60, tie=0.5)
    swapped = [
        dataclasses.replace(v, target=1 - v.target, system_a=v.system_b, system_b=v.system_a, reward_a=v.reward_b,
                            reward_b=v.reward_a) for v in votes
    ]  # fmt: skip
    assert fit_anchors(votes).posterior.mean == pytest.approx(fit_anchors(swapped[::-1]).posterior.mean, abs=1e-9)


def test_reference_changes_what_is_shown_and_no_probability() -> None:
    votes = draw_votes(100)
    one, other = fit_anchors(votes, reference_system="a"), fit_anchors(votes, reference_system="e")
    assert one.offset("a").value == one.offset("a").high == other.offset("e").value == 0
    assert one.offset("e").value == pytest.approx(-other.offset("a").value)
    for a, b in pairs_of([*SYSTEMS, "new"]):
        assert one.win_probability(0.3, a, b) == pytest.approx(other.win_probability(0.3, a, b), abs=1e-12)


def test_probability_is_drawn_to_one_half_by_doubt(fitted: AnchorCalibration) -> None:
    interval = fitted.win_interval(2.0, "e", "b")
    certain = 1 / (1 + np.exp(fitted.offset("e").value - fitted.offset("b").value - 2 * fitted.scale))
    assert 0.5 < interval.low < interval.value < certain < interval.high < 1


def test_more_votes_narrow_the_interval() -> None:
    widths = []
    for count in (20, 200, 2000):
        interval = fit_anchors(draw_votes(count)).win_interval(0.0, "a", "b")
        widths.append(interval.high - interval.low)
    assert widths == sorted(widths, reverse=True) and widths[2] < widths[0] / 3


def test_unseen_system_is_average_and_said(fitted: AnchorCalibration, caplog: pytest.LogCaptureFixture) -> None:
    assert fitted.unseen(["new", "a"]) == ["new"]
    with caplog.at_level(logging.WARNING):
        fitted.win_probability(0.0, "a", "b")
        assert not caplog.records
        probability = fitted.win_probability(0.0, "new", "b")
    assert "no votes on new" in caplog.text
    assert probability > 0.5  # b is overrated, an average system is less so
    assert fitted.win_probability(0.0, "new", "newer") == pytest.approx(0.5)
    new, known = fitted.win_interval(0.0, "new", "b"), fitted.win_interval(0.0, "a", "b")
    assert new.high - new.low > 1.3 * (known.high - known.low)


def test_calibrated_rewards_give_the_odds(fitted: AnchorCalibration) -> None:
    rewards = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    difference = fitted.calibrated(rewards, "b")[0] - fitted.calibrated(-0.2, "c")
    expected = fitted.scale * 0.7 - (fitted.offset("b").value - fitted.offset("c").value)
    assert float(difference.detach()) == pytest.approx(expected)
    difference.backward()
    assert rewards.grad is not None and rewards.grad.tolist() == pytest.approx([fitted.scale, 0.0])


# planning


def test_plan_is_kept_by_the_votes_it_asks_for() -> None:
    """Half width after as many simulated votes as planned."""
    two = {"a": 0.0, "b": 0.6}
    start = draw_votes(30, offsets=two)
    needed = pairs_needed(fit_anchors(start), "a", "b", 0.05)
    assert 100 < needed < 1000
    reached = [
        win_half_width(fit_anchors([*start, *draw_votes(needed, seed=seed, offsets=two)]), "a", "b")
        for seed in range(1, 6)
    ]
    assert np.mean(reached) == pytest.approx(0.05, rel=0.15)


def test_plan_is_the_least_number(fitted: AnchorCalibration) -> None:
    for a, b in (("a", "b"), ("a", "new")):
        needed = pairs_needed(fitted, a, b, 0.04)
        assert win_half_width(fitted, a, b, more_pairs=needed) <= 0.04
        assert win_half_width(fitted, a, b, more_pairs=needed - 1) > 0.04
    interval = fitted.win_interval(0.0, "a", "b")
    assert win_half_width(fitted, "a", "b") == pytest.approx((interval.high - interval.low) / 2)
    assert pairs_needed(fitted, "a", "b", 0.4) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("a", "a", 0.1), "itself"), (("a", "b", 0.7), "half width"), (("a", "b", 1e-6), "over 10000000 votes")],
)
def test_plan_without_answer(fitted: AnchorCalibration, arguments: tuple[str, str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pairs_needed(fitted, *arguments)
