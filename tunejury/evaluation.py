"""How well a judge agrees with people: the figures of a report on votes or on ratings.

Votes between two clips are read by `tunejury.preferences`, ratings of single clips by `tunejury.ratings`.
CMI-RewardBench's table mixes both; `tunejury.cmi_rewardbench` takes it apart into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tunejury import metrics
from tunejury.bradley_terry import Floats
from tunejury.calibration import AnchorCalibration
from tunejury.errors import InputError
from tunejury.preferences import PreferencePair
from tunejury.ratings import RatedClip

# (audio files, prompts) -> rewards
Judge = Callable[[Sequence[Path], Sequence[str]], Sequence[float]]

# what a bootstrap draws anew, as a whole
Groups = Literal["prompt", "system", "row"]

FIGURES = ("accuracy", "log_loss", "brier_score", "expected_calibration_error")
FEWEST_SYSTEMS = 3  # of which a correlation over systems says anything


def judge_pairs(pairs: Sequence[PreferencePair], judge: Judge) -> list[PreferencePair]:
    """The pairs with both rewards; a clip is judged once for each prompt, and not where the table has its reward."""
    clips = [
        (clip, pair.prompt)
        for pair in pairs
        for clip, reward in ((pair.audio_a, pair.reward_a), (pair.audio_b, pair.reward_b))
        if reward is None
    ]
    rewards = _judge(clips, judge)
    return [
        replace(
            pair,
            reward_a=rewards[pair.audio_a, pair.prompt] if pair.reward_a is None else pair.reward_a,
            reward_b=rewards[pair.audio_b, pair.prompt] if pair.reward_b is None else pair.reward_b,
        )
        for pair in pairs
    ]


def judge_clips(clips: Sequence[RatedClip], judge: Judge) -> list[RatedClip]:
    """The clips with rewards; see `judge_pairs`."""
    rewards = _judge([(clip.audio, clip.prompt) for clip in clips if clip.reward is None], judge)
    return [replace(clip, reward=rewards[clip.audio, clip.prompt]) if clip.reward is None else clip for clip in clips]


def pair_report(
    pairs: Sequence[PreferencePair],
    *,
    calibration: AnchorCalibration | None = None,
    groups: Groups = "prompt",
    num_resamples: int = 1000,
) -> dict[str, Any]:
    """Agreement with votes, over all pairs and by source.

    A difference of rewards is taken as a log-odds, which gives the probabilities. Ties are left out of every figure
    and counted; the figures are None where every vote is one. Under `position` is how often A won and how often the
    judge chose A: sides are drawn at random in a sound study, so a share of A whose interval leaves 0.5 out says that
    they were not, or that place had a part.

    Args:
        pairs: with rewards.
        calibration: what the rewards go through for the figures under `calibrated`; the pairs then name their systems.
        groups: what is drawn anew for the 95 % bootstrap intervals: prompts (a pair without one stands alone), pairs of
            systems, or single pairs.
        num_resamples: bootstrap samples.

    Raises:
        InputError: a reward, or a system that is needed, is missing, or there is no pair.
    """
    if not pairs:
        raise InputError("expected at least one pair to evaluate")
    sources = sorted({pair.source for pair in pairs})
    report = _pair_figures(pairs, calibration, groups, num_resamples)
    if len(sources) > 1:
        report["by_source"] = {
            source: _pair_figures([p for p in pairs if p.source == source], calibration, groups, num_resamples)
            for source in sources
        }
    return report


def pair_probabilities(pairs: Sequence[PreferencePair], calibration: AnchorCalibration | None = None) -> Floats:
    """Probability [N] that A wins each pair: of the margin alone, or through a calibration.

    Raises:
        InputError: a reward is missing, or with a calibration a system.
    """
    margins = pair_margins(pairs)
    if calibration is None:
        probabilities = 0.5 * (1 + np.tanh(margins / 2))  # the logistic function, without overflow
    else:
        _check_systems(pairs, "a calibration")
        systems = [pair.system_a for pair in pairs], [pair.system_b for pair in pairs]
        probabilities = calibration.win_probabilities(margins, *systems)
    # the sharpest probability a float64 holds would cost infinity where it is wrong
    return np.clip(probabilities, 1e-15, 1 - 1e-15)


def pair_margins(pairs: Sequence[PreferencePair]) -> Floats:
    """reward(A) - reward(B) [N].

    Raises:
        InputError: a reward is missing, or their difference is too large for a number.
    """
    margins = np.array([_known(pair.reward_a) - _known(pair.reward_b) for pair in pairs])
    for pair, margin in zip(pairs, margins, strict=True):
        if not np.isfinite(margin):
            raise InputError(
                f"pair {pair.pair_id!r} has rewards {pair.reward_a} and {pair.reward_b}, expected two finite numbers "
                "with a finite difference"
            )
    return margins


def rating_report(
    clips: Sequence[RatedClip], *, groups: Groups = "prompt", num_resamples: int = 1000
) -> dict[str, Any]:
    """Correlation of reward and rating on each scale: per clip, and per system where there are enough of them.

    A correlation is None where it is not defined (fewer than two clips, or all values equal).

    Args:
        clips: with rewards.
        groups: what is drawn anew for the 95 % bootstrap intervals: prompts (a clip without one stands alone), systems,
            or single clips.
        num_resamples: bootstrap samples.

    Raises:
        InputError: a reward, or a system that is needed, is missing, or there is no clip.
    """
    if not clips:
        raise InputError("expected at least one clip to evaluate")
    scales = list(dict.fromkeys(name for clip in clips for name in clip.ratings))
    report: dict[str, Any] = {"num_clips": len(clips), "scales": {}}
    for scale in scales:
        rated = [clip for clip in clips if scale in clip.ratings]
        rewards = np.array([_known(clip.reward) for clip in rated])
        ratings = np.array([clip.ratings[scale] for clip in rated])
        systems = [clip.system for clip in rated]
        if groups == "system" and "" in systems:
            raise InputError("a clip does not name its system, which intervals over systems need: a column system")
        drawn = {
            "prompt": [f"prompt {clip.prompt}" if clip.prompt else f"clip {place}" for place, clip in enumerate(rated)],
            "system": systems,
            "row": None,
        }[groups]
        figures: dict[str, Any] = {"num_clips": len(rated), **_correlations(rewards, ratings)}
        figures["spearman_ci"] = _interval(
            metrics.spearman, rewards, ratings, groups=drawn, num_resamples=num_resamples
        )
        if len(set(systems)) >= FEWEST_SYSTEMS and "" not in systems:
            means = [metrics.system_means(values, systems) for values in (rewards, ratings)]
            figures["num_systems"] = len(means[0])
            figures["by_system"] = _correlations(*(np.array(list(mean.values())) for mean in means))
        report["scales"][scale] = figures
    return report


def _pair_figures(
    pairs: Sequence[PreferencePair], calibration: AnchorCalibration | None, groups: Groups, num_resamples: int
) -> dict[str, Any]:
    if groups == "system":
        _check_systems(pairs, "intervals over systems")
    kept = [pair for pair in pairs if not pair.is_tie]
    pair_margins(pairs)  # a reward that is missing is no tie's excuse
    report: dict[str, Any] = {"num_pairs": len(pairs), "num_ties": len(pairs) - len(kept)}
    if not kept:
        return {**report, **dict.fromkeys((*FIGURES, "accuracy_ci", "position"))}
    outcomes = np.array([pair.target for pair in kept])
    drawn = {
        "prompt": [f"prompt {pair.prompt}" if pair.prompt else f"pair {pair.pair_id}" for pair in kept],
        "system": [" ".join(sorted((pair.system_a, pair.system_b))) for pair in kept],
        "row": None,
    }[groups]
    margins = pair_margins(kept)

    def figures(probabilities: Floats, sides: Floats) -> dict[str, Any]:
        return {
            **metrics.preference_metrics(probabilities, outcomes),
            "accuracy": metrics.pairwise_accuracy(sides, outcomes),
            "accuracy_ci": _interval(
                metrics.pairwise_accuracy, sides, outcomes, groups=drawn, num_resamples=num_resamples
            ),
        }

    def share(values: Floats) -> dict[str, Any]:
        interval = _interval(lambda x: float(x.mean()), values, groups=drawn, num_resamples=num_resamples)
        return {"share": float(values.mean()), "ci": interval}

    report |= figures(pair_probabilities(kept), margins)
    report["position"] = {"a_won": share(outcomes), "judge_chose_a": share(0.5 + 0.5 * np.sign(margins))}
    if calibration is not None:
        probabilities = pair_probabilities(kept, calibration)
        report["calibrated"] = figures(probabilities, probabilities - 0.5)
    return report


def _check_systems(pairs: Sequence[PreferencePair], what: str) -> None:
    for pair in pairs:
        if not pair.system_a or not pair.system_b:
            raise InputError(
                f"pair {pair.pair_id!r} does not name its systems, which {what} needs: columns system_a and system_b"
            )


def _correlations(first: Any, second: Any) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for name in ("spearman", "pearson", "kendall"):
        try:
            value: float = getattr(metrics, name)(first, second)
        except InputError:  # not defined for these values
            value = math.nan
        figures[name] = value if math.isfinite(value) else None
    return figures


def _interval(statistic: Callable[..., float], *series: Any, **options: Any) -> list[float] | None:
    try:
        return list(metrics.bootstrap_interval(statistic, *series, **options))
    except InputError:
        return None


def _judge(clips: Sequence[tuple[str, str]], judge: Judge) -> dict[tuple[str, str], float]:
    distinct = list(dict.fromkeys(clips))
    if not distinct:
        return {}
    rewards = judge([Path(clip) for clip, _ in distinct], [prompt for _, prompt in distinct])
    return dict(zip(distinct, rewards, strict=True))


def _known(reward: float | None) -> float:
    if reward is None:
        raise InputError("a reward is missing, judge the clips first")
    return reward
