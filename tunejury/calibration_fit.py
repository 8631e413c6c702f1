"""Fitting an `AnchorCalibration` to votes: the published method, and a better one.

Both take P(A wins) = sigmoid(scale * (reward_A - reward_B) - (offset_A - offset_B)): an offset is by how much the judge
overrates a system, in log-odds of preference.

`fit_published` is the published method (TuneJury, arXiv 2606.17006, section 6): scale 1, offsets by maximum likelihood
with the penalty l2 * sum(offset^2), the reference system's offset held at 0.

`fit_anchors` also estimates the scale, since a judge that is well calibrated at home is overconfident on systems it
never met, and shrinks the offsets by as much as the votes themselves ask for:

    scale     ~ N(0.5, 0.3^2)          between blind (0) and as good as at home (1)
    offset_s  ~ N(0, spread^2) + N(0, 0.5^2) * (mean reward of s, centred)

(the numbers are `AnchorPrior`'s defaults).
The second term says that what the judge makes of the difference between systems may be worth less, or more, than what
it makes of the difference between two clips of like systems; it is one number shared by all systems. The spread has a
log-normal prior around 0.5 with deviation 0.35 of its logarithm, and is averaged over with the weights its marginal
likelihood gives it. Offsets of all systems, the reference included, are drawn alike; only differences count. What other
numbers would give is measured by `benchmarks/calibration_priors.py`.

Intervals come from the same votes under a prior that holds less, `INTERVAL_PRIOR`: its offsets may lie several times as
far apart or as near together, its scale almost anywhere. What draws values towards a good guess would make intervals
miss systems that are farther apart than the guess; how often they hold the truth is measured by
`benchmarks/calibration_coverage.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunejury.bradley_terry import Fit, Floats, fit_map
from tunejury.calibration import AnchorCalibration, Posterior
from tunejury.errors import InputError
from tunejury.preferences import PreferencePair
from tunejury.votes import connected_groups, count_votes, one_sided_systems, reward_table

logger = logging.getLogger(__name__)

MOST_NAMED = 10  # systems in a warning


@dataclass(frozen=True)
class AnchorPrior:
    """What is held of scale, offsets and ties before a vote is seen (see the module); all in log-odds."""

    scale_mean: float = 0.5
    scale_deviation: float = 0.3
    between_deviation: float = 0.5
    """Of what the mean reward of a system adds to its offset, per unit of reward."""
    spread_median: float = 0.5
    spread_log_deviation: float = 0.35
    """Of the logarithm of the offsets' spread; inf for a flat one."""
    spread_range: float = 4.0
    """Spreads within this factor of the median are averaged over, in steps of the square root of 2."""
    log_tie_deviation: float = 1.0
    """A tie strength of 1 makes a third of the votes between equals ties."""

    def __post_init__(self) -> None:
        positive = ("scale_deviation", "spread_median", "spread_log_deviation", "log_tie_deviation")
        wrong = [name for name in positive if not getattr(self, name) > 0]
        wrong += [] if self.between_deviation >= 0 else ["between_deviation"]
        wrong += [] if np.isfinite(self.scale_mean) else ["scale_mean"]
        wrong += [] if 1 <= self.spread_range < np.inf else ["spread_range"]
        if wrong:
            raise InputError(f"{wrong[0]} of the prior is {getattr(self, wrong[0])}, which no prior can have")

    @property
    def spread_steps(self) -> Floats:
        """The spreads averaged over, as multiples of the median."""
        steps = round(2 * np.log2(self.spread_range))
        return np.asarray(2.0 ** (np.arange(-steps, steps + 1) / 2))


INTERVAL_PRIOR = AnchorPrior(scale_deviation=0.7, spread_median=0.9, spread_log_deviation=1.0, spread_range=8.0)
"""What intervals hold before a vote is seen. Chosen in simulation, so that they hold the truth about as often as they
say whether systems lie near together or far apart, and the judge is good or blind."""


def fit_published(
    votes: Sequence[PreferencePair], *, reference_system: str, l2: float = 1.0, allow_disconnected: bool = False,
    reward: str | None = None,
) -> AnchorCalibration:  # fmt: skip
    """Fit offsets by the published method. Ties are left out, with a warning.

    Args:
        votes: the anchors: pairs with systems and rewards; none leaves the rewards as they are.
        reference_system: held at 0.
        l2: weight of the penalty l2 * sum(offset^2).
        allow_disconnected: take votes that leave groups of systems uncompared; the prior alone then relates them.
        reward: name of the judge whose rewards these are, kept in the result.

    Raises:
        InputError: a vote has no system or no finite reward, `l2` is not positive, all votes are ties, or groups of
            systems are not compared.
    """
    if not l2 > 0:
        raise InputError(f"l2 is {l2}, expected a positive number: it keeps offsets finite")
    decided = [vote for vote in votes if not vote.is_tie]
    if votes and not decided:
        raise InputError(f"all {len(votes)} votes are ties, which the published method leaves out; use the default one")
    if len(decided) < len(votes):
        logger.warning("%d ties are left out: the published method has none", len(votes) - len(decided))
    rewards = reward_table(decided)
    _check_graph(decided, allow_disconnected)
    counts = count_votes(decided)
    _say_one_sided(decided, counts)
    systems = sorted(counts.keys() | {reference_system})
    free = [place for place, system in enumerate(systems) if system != reference_system]
    design = _offset_design(decided, systems)
    fit = fit_map(
        design[:, free],
        np.array([vote.target for vote in decided]),
        np.zeros(len(free)),
        np.eye(len(free)) / (2 * l2),  # the penalty is the negative log of this Gaussian
        constant=rewards[:, 0] - rewards[:, 1],
    )
    mean, covariance = np.zeros(1 + len(systems)), np.zeros((1 + len(systems), 1 + len(systems)))
    places = 1 + np.array(free, dtype=int)
    mean[0] = 1.0
    mean[places] = fit.mean
    covariance[np.ix_(places, places)] = fit.covariance
    posterior = Posterior(tuple(mean.tolist()), tuple(map(tuple, covariance.tolist())), (2 * l2) ** -0.5)
    return AnchorCalibration(
        method="published",
        reward=reward,
        systems=tuple(systems),
        reference_system=reference_system,
        num_votes=tuple(counts[system] for system in systems),
        posterior=posterior,
        interval_posterior=posterior,
        log_tie=None,
        margin_deviation=_margin_deviation(rewards),
    )


def fit_anchors(
    votes: Sequence[PreferencePair], *, reference_system: str | None = None, allow_disconnected: bool = False,
    reward: str | None = None, prior: AnchorPrior = AnchorPrior(), interval_prior: AnchorPrior = INTERVAL_PRIOR,
) -> AnchorCalibration:  # fmt: skip
    """Fit scale, offsets and, if there are ties, the tie strength jointly (see the module).

    Args:
        votes: the anchors: pairs with systems and rewards. None at all gives the prior.
        reference_system: whose offset is shown as 0; None takes the one with the most votes. It changes no
            probability.
        allow_disconnected: take votes that leave groups of systems uncompared; the prior alone then relates them.
        reward: name of the judge whose rewards these are, kept in the result.
        prior: what is held before the votes are seen.
        interval_prior: what intervals hold instead; the same as `prior` saves half of the work where none are needed.

    Raises:
        InputError: a vote has no system or no finite reward, the reference system is in no vote, or groups of systems
            are not compared.
    """
    rewards = reward_table(votes)
    _check_graph(votes, allow_disconnected)
    counts = count_votes(votes)
    systems = sorted(counts)
    if reference_system is None:
        reference_system = max(systems, key=lambda system: counts[system], default=None)
    elif systems and reference_system not in counts:
        raise InputError(f"no vote is on the reference system {reference_system!r}, there are: {', '.join(systems)}")
    _say_one_sided(votes, counts)
    posterior, log_tie = _posterior(votes, rewards, systems, prior)
    if posterior.mean[0] <= 0:
        logger.warning(
            "the votes are against the judge: a higher reward lost more often than it won (scale %.2f), so calibrated "
            "rewards of one system rank in the reverse order", posterior.mean[0],
        )  # fmt: skip
    return AnchorCalibration(
        method="anchors",
        reward=reward,
        systems=tuple(systems),
        reference_system=reference_system,
        num_votes=tuple(counts[system] for system in systems),
        posterior=posterior,
        interval_posterior=posterior
        if interval_prior == prior
        else _posterior(votes, rewards, systems, interval_prior)[0],
        log_tie=log_tie,
        margin_deviation=_margin_deviation(rewards),
    )


def _posterior(
    votes: Sequence[PreferencePair], rewards: Floats, systems: Sequence[str], prior: AnchorPrior
) -> tuple[Posterior, float | None]:
    """Of scale and offsets, averaged over the spread, and the log tie strength if there are ties."""
    design = np.concatenate([(rewards[:, 0] - rewards[:, 1])[:, None], _offset_design(votes, systems)], axis=1)
    outcomes = np.array([vote.target for vote in votes])
    ties = bool((outcomes == 0.5).any())
    level = _mean_rewards(votes, rewards, systems)
    size = 1 + len(systems)
    prior_mean = np.zeros(size + ties)
    prior_mean[0] = prior.scale_mean
    fits = []
    spreads = prior.spread_median * prior.spread_steps
    for spread in spreads:
        before = np.zeros((size + ties, size + ties))
        before[0, 0] = prior.scale_deviation**2
        before[1:size, 1:size] = spread**2 * np.eye(len(systems)) + prior.between_deviation**2 * np.outer(level, level)
        if ties:
            before[-1, -1] = prior.log_tie_deviation**2
        fits.append(fit_map(design, outcomes, prior_mean, before, ties=ties))
    weights = _weights(fits, prior)
    mean = np.einsum("k,kp->p", weights, np.array([fit.mean for fit in fits]))
    # of the mixture: the mean covariance and the spread of the means
    covariance = sum(
        (weight * (fit.covariance + np.outer(fit.mean - mean, fit.mean - mean))
         for weight, fit in zip(weights, fits, strict=True)), np.zeros((len(mean), len(mean)))
    )  # fmt: skip
    unseen = weights @ spreads**2 + prior.between_deviation**2 * (level @ level / len(level) if systems else 1.0)
    posterior = Posterior(
        tuple(mean[:size].tolist()), tuple(map(tuple, covariance[:size, :size].tolist())), float(unseen**0.5)
    )
    return posterior, float(mean[-1]) if ties else None


def _say_one_sided(votes: Sequence[PreferencePair], counts: Mapping[str, int]) -> None:
    """One line, however many they are."""
    systems = one_sided_systems(votes)
    if systems:
        named = [f"{system} ({counts[system]})" for system in systems[:MOST_NAMED]]
        more = f" and {len(systems) - MOST_NAMED} more" if len(systems) > MOST_NAMED else ""
        logger.warning(
            "won, or lost, every one of their votes: %s%s; the prior alone limits their offsets", ", ".join(named), more
        )


def _check_graph(votes: Sequence[PreferencePair], allow_disconnected: bool) -> None:
    groups = connected_groups(votes)
    if len(groups) > 1 and not allow_disconnected:
        names = " | ".join(", ".join(group) for group in groups)
        raise InputError(
            f"the votes leave {len(groups)} groups of systems uncompared: {names}; add votes between the groups, or "
            f"allow it (allow_disconnected): what lies between two groups is then a guess"
        )


def _offset_design(votes: Sequence[PreferencePair], systems: Sequence[str]) -> Floats:
    """[N, S]: an offset is subtracted from its system's reward."""
    design = np.zeros((len(votes), len(systems)))
    places = {system: place for place, system in enumerate(systems)}
    for row, vote in enumerate(votes):
        design[row, places[vote.system_a]] -= 1.0
        design[row, places[vote.system_b]] += 1.0
    return design


def _mean_rewards(votes: Sequence[PreferencePair], rewards: Floats, systems: Sequence[str]) -> Floats:
    """[S], centred on the mean of all clips and shrunk towards it by one clip's worth."""
    names = np.array([(vote.system_a, vote.system_b) for vote in votes]).reshape(-1, 2)
    centred = rewards - rewards.mean() if len(rewards) else rewards
    return np.array([centred[names == system].sum() / ((names == system).sum() + 1) for system in systems])


def _margin_deviation(rewards: Floats) -> float:
    """Root mean square margin; 1 without votes."""
    return float(np.sqrt(np.mean((rewards[:, 0] - rewards[:, 1]) ** 2))) if len(rewards) else 1.0


def _weights(fits: Sequence[Fit], prior: AnchorPrior) -> Floats:
    """Posterior of the spread on its grid, whose steps are equal in the logarithm."""
    before = -((np.log(prior.spread_steps) / prior.spread_log_deviation) ** 2) / 2
    log_weights = np.array([fit.log_evidence for fit in fits]) + before
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(weights / weights.sum())
