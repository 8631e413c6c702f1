"""AnchorCalibration: what a few votes on new systems teach about a judge's rewards.

A judge trained on some systems overrates or underrates others, and is too sure of its margins on them. Votes between
the systems in question (the anchors) correct both without training: a scale for all margins and an offset per system.

    calibration = fit_anchors(read_votes("votes.csv"))
    calibration.win_probability(reward_a - reward_b, "musicgen-medium", "new-system")

`tunejury.calibration_fit` makes one, `tunejury.planning` says how many more votes a wanted precision takes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunejury.bradley_terry import Floats
from tunejury.errors import InputError
from tunejury.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = "tunejury-anchor-calibration/2"
METHODS = ("anchors", "published")
MOST_MARGIN = 1e6  # a margin is a difference of log-odds; what lies beyond is none, and its square may overflow
# nodes and weights of E[f(x)], x standard normal; symmetric, so swapped systems have exactly opposite odds
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(31)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()

Rewards = TypeVar("Rewards", float, NDArray[np.float64], "Tensor")


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that holds it with the probability asked for."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Posterior:
    """A Gaussian over the scale and the offset of each system."""

    mean: tuple[float, ...]
    """[1 + S], the scale, then the offset of each system."""
    covariance: tuple[tuple[float, ...], ...]
    """[1 + S, 1 + S], of the same."""
    unseen_deviation: float
    """Prior standard deviation of the offset of a system without votes."""

    def check(self, num_systems: int) -> None:
        """Raise InputError if it is not one over the scale and so many offsets."""
        numbers, matrix = np.array(self.mean, dtype=np.float64), np.array(self.covariance, dtype=np.float64)
        size = 1 + num_systems
        if numbers.shape != (size,) or matrix.shape != (size, size):
            raise InputError(f"expected {size} means, their covariance and the votes of {size - 1} systems")
        if not all(np.isfinite(part).all() for part in (numbers, matrix, self.unseen_deviation)):
            raise InputError("a mean, a covariance or a deviation is not finite")
        if self.unseen_deviation < 0:
            raise InputError(f"a deviation is negative: {self.unseen_deviation}")
        if not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix).min() < -1e-9:
            raise InputError("the covariance is not one: it is not symmetric with eigenvalues of at least 0")

    def extended(self, num_unseen: int) -> tuple[Floats, Floats]:
        """Mean and covariance with so many systems without votes after the others."""
        size = len(self.mean)
        mean, covariance = np.zeros(size + num_unseen), np.eye(size + num_unseen) * self.unseen_deviation**2
        mean[:size], covariance[:size, :size] = self.mean, self.covariance
        return mean, covariance


@dataclass(frozen=True)
class AnchorCalibration:
    """P(A wins) = sigmoid(scale * (reward_A - reward_B) - (offset_A - offset_B)), with what is unsure about it.

    An offset is by how much the judge overrates a system, in log-odds; it is shown relative to the reference system's.
    Values and probabilities are those of `posterior`, intervals those of `interval_posterior`, which holds less before
    the votes are seen: a prior that guesses well from few votes makes intervals too narrow for what it did not expect.
    """

    method: str
    """`anchors` or `published`: which of the fits in `tunejury.calibration_fit` made it."""
    reward: str | None
    """Name of the judge whose rewards it is for; None if not said."""
    systems: tuple[str, ...]
    reference_system: str | None
    """Whose offset is shown as 0; None if there were no votes."""
    num_votes: tuple[int, ...]
    """Of each system."""
    posterior: Posterior
    interval_posterior: Posterior
    log_tie: float | None
    """Log of Davidson's tie strength; None if there were no ties."""
    margin_deviation: float
    """Root mean square margin of the anchors, for planning."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}, expected one of: {', '.join(METHODS)}")
        if len(self.num_votes) != len(self.systems) or not all(isinstance(n, int) and n >= 0 for n in self.num_votes):
            raise InputError(f"expected the numbers of votes of {len(self.systems)} systems, got {self.num_votes}")
        if not all(isinstance(name, str) for name in (*self.systems, self.reference_system or "", self.reward or "")):
            raise InputError("the name of a system or of the judge is no text")
        for posterior in (self.posterior, self.interval_posterior):
            posterior.check(len(self.systems))
        rest = [self.margin_deviation, 0.0 if self.log_tie is None else self.log_tie]
        if not np.isfinite(rest).all() or self.margin_deviation < 0:
            raise InputError(f"a deviation of margins or a tie strength is no such number: {rest}")
        if len(set(self.systems)) < len(self.systems) or (self.systems and self.reference_system not in self.systems):
            raise InputError("expected each system once, and the reference system among them")

    @property
    def scale(self) -> float:
        """What a unit of reward margin is worth in log-odds."""
        return self.posterior.mean[0]

    def scale_interval(self, level: float = 0.95) -> Estimate:
        """The scale with its interval."""
        wide = self.interval_posterior
        return _estimate(self.scale, wide.mean[0], wide.covariance[0][0], level)

    def offset(self, system: str, level: float = 0.95) -> Estimate:
        """By how much the judge overrates a system more than the reference system, in log-odds. A system without votes
        has the prior's wide interval.
        """
        if self.reference_system is None:
            return _estimate(0.0, 0.0, self.interval_posterior.unseen_deviation**2, level)
        mean, _ = self.joint([system, self.reference_system])
        wide, covariance = self.joint([system, self.reference_system], for_intervals=True)
        contrast = np.zeros(len(mean))
        if system != self.reference_system:
            contrast[1:] = 1.0, -1.0
        variance = float(contrast @ covariance @ contrast)
        return _estimate(float(contrast @ mean), float(contrast @ wide), variance, level)

    def check_reward(self, name: str) -> None:
        """Raise InputError if it says that it is for another judge than the one of this name."""
        if self.reward not in (None, name):
            raise InputError(f"the calibration is for the judge {self.reward!r}, not {name!r}")

    def unseen(self, systems: Iterable[str]) -> list[str]:
        """Those of the systems that no vote was on: for them only the scale is calibrated."""
        return sorted(set(systems) - set(self.systems))

    def win_probability(self, margin: float, system_a: str, system_b: str) -> float:
        """Probability that a person who prefers one of the two prefers A.

        Args:
            margin: reward(A) - reward(B) of the raw judge.
            system_a, system_b: what made the clips. One without votes is taken as an average system, with a warning.

        Raises:
            InputError: the margin is not finite, or too large to be a difference of log-odds.
        """
        return float(self.win_probabilities([margin], [system_a], [system_b])[0])

    def win_probabilities(self, margins: ArrayLike, systems_a: Sequence[str], systems_b: Sequence[str]) -> Floats:
        """`win_probability` of each of N pairs, [N].

        The method `anchors` averages over what is unsure about scale and offsets, which draws the probability towards
        one half; `published` takes the estimates as certain, as published.
        """
        z, deviation = self._log_odds(margins, systems_a, systems_b)
        if self.method == "published":
            return _sigmoid(z)
        return np.asarray(_sigmoid(z[:, None] + deviation[:, None] * _NODES) @ _WEIGHTS)

    def win_interval(self, margin: float, system_a: str, system_b: str, level: float = 0.95) -> Estimate:
        """`win_probability` with the interval that offsets and scale leave for it."""
        value = self.win_probability(margin, system_a, system_b)
        z, deviation = self._log_odds([margin], [system_a], [system_b], for_intervals=True)
        width = _quantile(level) * deviation[0]
        low, high = _sigmoid(np.array([z[0] - width, z[0] + width]))
        return Estimate(value, min(value, float(low)), max(value, float(high)))

    def outcome_probabilities(self, margin: float, system_a: str, system_b: str) -> dict[str, float]:
        """Probabilities {"a", "tie", "b"} of the three votes; a tie has 0 if there was none among the anchors."""
        z, deviation = self._log_odds([margin], [system_a], [system_b])
        if self.method == "published":
            deviation = np.zeros(1)
        half = (z[0] + deviation[0] * _NODES) / 2
        logits = np.stack([half, np.full_like(half, -np.inf if self.log_tie is None else self.log_tie), -half])
        parts = np.exp(logits - logits.max(axis=0))
        a, tie, b = (parts / parts.sum(axis=0)) @ _WEIGHTS
        return {"a": float(a), "tie": float(tie), "b": float(b)}

    def calibrated(self, rewards: Rewards, system: str) -> Rewards:
        """Rewards on the calibrated scale: the difference of two is a log-odds of preference, whatever their systems.

        Args:
            rewards: a number, an array or a tensor (through which a gradient passes).
            system: what made the clips.
        """
        self._say_unseen([system])
        return rewards * self.scale - self.offset(system).value

    def joint(self, systems: Sequence[str], *, for_intervals: bool = False) -> tuple[Floats, Floats]:
        """Mean [1 + S] and covariance [1 + S, 1 + S] of the scale and the offsets of the given systems, which may
        include ones without votes; of the wider posterior if they are for an interval.
        """
        unseen = self.unseen(systems)
        names = [*self.systems, *unseen]
        posterior = self.interval_posterior if for_intervals else self.posterior
        mean, covariance = posterior.extended(len(unseen))
        places = [0, *(1 + names.index(system) for system in systems)]
        return mean[places], covariance[np.ix_(places, places)]

    def save(self, path: str | Path) -> None:
        """Write it as JSON.

        Raises:
            OSError: the file cannot be written.
        """
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> AnchorCalibration:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, damaged or something else.
            OSError: it may not be read.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path} does not exist, expected a calibration as `tunejury calibrate` writes it")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, Mapping) or values.get("format") != FORMAT:
                raise InputError(f"it does not say that its format is {FORMAT!r}")
            return cls._from_dict({name: value for name, value in values.items() if name != "format"})
        except (InputError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(f"{path} is no calibration: {' '.join(str(error).split())}") from error

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> AnchorCalibration:
        lists = {name: tuple(values[name]) for name in ("systems", "num_votes")}
        posteriors = {}
        for name in ("posterior", "interval_posterior"):
            part = values[name]
            covariance = tuple(map(tuple, part["covariance"]))
            posteriors[name] = Posterior(**{**part, "mean": tuple(part["mean"]), "covariance": covariance})
        return cls(**{**values, **lists, **posteriors})

    def _log_odds(
        self, margins: ArrayLike, systems_a: Sequence[str], systems_b: Sequence[str], *, for_intervals: bool = False
    ) -> tuple[Floats, Floats]:
        """Mean and standard deviation [N] of the log-odds of A; see `joint`."""
        margin = np.asarray(margins, dtype=np.float64)
        if margin.ndim != 1 or not np.isfinite(margin).all() or not len(margin) == len(systems_a) == len(systems_b):
            raise InputError(
                f"expected one finite margin and two systems per pair, got margins {list(margin.shape)} "
                f"for {len(systems_a)} and {len(systems_b)} systems"
            )
        if (abs(margin) > MOST_MARGIN).any():
            raise InputError(f"a margin is {margin[abs(margin) > MOST_MARGIN][0]:g}, expected a difference of log-odds")
        names = list(dict.fromkeys([*systems_a, *systems_b]))
        if not for_intervals:  # or it would be said twice
            self._say_unseen(names)
        mean, covariance = self.joint(names, for_intervals=for_intervals)
        places = {system: 1 + place for place, system in enumerate(names)}
        rows = np.arange(len(margin))
        design = np.zeros((len(margin), len(mean)))
        design[:, 0] = margin
        design[rows, [places[system] for system in systems_a]] -= 1.0
        design[rows, [places[system] for system in systems_b]] += 1.0
        variance = np.einsum("np,pq,nq->n", design, covariance, design)
        return design @ mean, np.sqrt(np.maximum(variance, 0.0))

    def _say_unseen(self, systems: Iterable[str]) -> None:
        unseen = self.unseen(systems)
        if unseen:
            logger.warning("no votes on %s: taken as average, with a wide interval", ", ".join(unseen))


def _sigmoid(z: Floats) -> Floats:
    # tanh overflows nowhere, and is odd to the last bit
    return np.asarray(0.5 + 0.5 * np.tanh(z / 2))


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"level is {level}, expected a probability such as 0.95")
    return NormalDist().inv_cdf((1 + level) / 2)


def _estimate(value: float, centre: float, variance: float, level: float) -> Estimate:
    """The value, in the interval around the centre, widened to hold it where it must be."""
    width = _quantile(level) * max(variance, 0.0) ** 0.5
    return Estimate(value, min(value, centre - width), max(value, centre + width))
