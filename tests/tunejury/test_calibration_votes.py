"""Calibrations from hostile votes: systems never compared, one-sided votes, ties alone, what is no number."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import pytest

from tunejury import AnchorCalibration, InputError, fit_anchors
from tunejury.calibration_fit import fit_published
from tunejury.planning import win_half_width

from .planted_votes import draw_votes, vote


def test_uncompared_groups_are_refused_by_name() -> None:
    votes = [vote("a", "b", 1), vote("c", "d", 1), vote("a", "e", 0)]
    for fit in (fit_anchors, lambda v, **k: fit_published(v, reference_system="a", **k)):
        with pytest.raises(InputError, match=r"2 groups of systems uncompared: a, b, e \| c, d;"):
            fit(votes)
        assert fit(votes, allow_disconnected=True).win_probability(0.0, "a", "b") > 0.5


def test_system_that_always_wins_has_a_finite_offset(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        calibration = fit_anchors([vote("a", "b", 1)] * 500 + [vote("b", "c", 1), vote("b", "c", 0)])
    assert "won, or lost, every one of their votes: a (500); the prior alone limits their offsets" in caplog.text
    assert 0.9 < calibration.win_probability(0.0, "a", "b") < 0.9999


def test_many_one_sided_systems_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    votes = [vote("hub", f"s{place:02}", place % 2) for place in range(30)]
    for fit in (fit_anchors, lambda v: fit_published(v, reference_system="hub")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            fit(votes)
        assert [record.getMessage().count(" (1)") for record in caplog.records] == [10]
        assert "s09 (1) and 20 more;" in caplog.text


def test_votes_against_the_judge_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        against = fit_anchors([vote("a", "a", 0.0, 2.0)] * 30)
    assert against.scale < 0 and "the votes are against the judge" in caplog.text
    caplog.clear()
    assert fit_anchors([vote("a", "a", 1.0, 2.0)] * 30).scale > 0 and not caplog.records


def test_single_system_calibrates_the_scale_alone() -> None:
    generator = np.random.default_rng(0)
    margins = generator.normal(size=2000)
    wins = generator.uniform(size=2000) < 1 / (1 + np.exp(-0.2 * margins))
    calibration = fit_anchors([vote("a", "a", float(w), m) for w, m in zip(wins, margins, strict=True)])
    assert calibration.scale == pytest.approx(0.2, abs=0.1)
    assert calibration.offset("a").value == 0


def test_only_ties_make_everything_even() -> None:
    calibration = fit_anchors([vote("a", "b", 0.5)] * 50)
    assert calibration.win_probability(0.0, "a", "b") == pytest.approx(0.5)
    assert calibration.outcome_probabilities(0.0, "a", "b")["tie"] > 0.75


def test_published_method_leaves_ties_out(caplog: pytest.LogCaptureFixture) -> None:
    votes = draw_votes(50, tie=1.0)
    with caplog.at_level(logging.WARNING):
        with_ties = fit_published(votes, reference_system="a")
    assert "ties are left out" in caplog.text
    assert with_ties == fit_published([v for v in votes if not v.is_tie], reference_system="a")


def test_published_method_refuses_ties_alone() -> None:
    with pytest.raises(InputError, match="all 3 votes are ties"):
        fit_published([vote("a", "b", 0.5)] * 3, reference_system="a")


def test_no_votes_give_the_prior() -> None:
    calibration = fit_anchors([])
    assert calibration.systems == () and calibration.scale == pytest.approx(0.5)
    assert 0.5 < calibration.win_probability(1.0, "x", "y") < 0.65


@pytest.mark.parametrize("margin", [300.0, -300.0, 1e-300])
def test_huge_margins_stay_finite(margin: float) -> None:
    calibration = fit_anchors([vote("a", "b", 1, margin), vote("a", "b", 0, -margin), vote("a", "b", 0, margin)])
    assert np.isfinite(calibration.posterior.mean).all() and 0 <= calibration.win_probability(margin, "a", "b") <= 1
    assert np.isfinite(win_half_width(calibration, "a", "b", more_pairs=10))
    assert 0 <= calibration.win_probability(-1e6, "a", "b") <= 1


def test_number_that_is_no_reward_is_refused() -> None:
    with pytest.raises(InputError, match=r"pair '0' has rewards 1e\+06 and 0, expected log-odds within"):
        fit_anchors([vote("a", "b", 1, 1e6)])


@pytest.mark.parametrize("bad", [{"reward_a": None}, {"reward_b": float("nan")}, {"system_a": ""}])
def test_vote_without_what_it_needs(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="pair '7'"):
        fit_anchors([vote("a", "b", 1), dataclasses.replace(vote("a", "b", 0, name="7"), **bad)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.win_probability(float("nan"), "a", "b"), "finite"),
        (lambda c: c.win_probability(-1e300, "a", "b"), "a margin is -1e.300"),
        (lambda c: c.win_probabilities([1.0, 2.0], ["a"], ["b"]), "two systems per pair"),
        (lambda c: c.offset("a", level=1.5), "level is 1.5"),
        (lambda c: fit_anchors([vote("a", "b", 1)], reference_system="z"), "reference system 'z'"),
        (lambda c: fit_published([], reference_system="z", l2=0.0), "l2 is 0"),
    ],
)
def test_bad_argument(fitted: AnchorCalibration, call: Callable[[AnchorCalibration], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(fitted)
