"""How many more votes a wanted precision takes."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from tunejury.calibration import AnchorCalibration
from tunejury.errors import InputError

# where a needed number of votes stops being a plan
MOST_PAIRS = 10_000_000


def win_half_width(
    calibration: AnchorCalibration, system_a: str, system_b: str, *, more_pairs: int = 0, level: float = 0.95
) -> float:
    """Half the width of the interval of A's win probability at equal rewards, expected after more votes on that pair.

    Each further vote is expected to bring the information of Davidson's model at the present estimates, p(1 - p) per
    vote without ties, averaged over margins as wide as the anchors' were.

    Args:
        calibration: the present state.
        system_a, system_b: two different systems; either may be without votes so far.
        more_pairs: further votes, all between these two.
        level: coverage of the interval.

    Raises:
        InputError: the systems are one, the number is negative, or the level is no probability.
    """
    if system_a == system_b:
        raise InputError(f"both systems are {system_a!r}: there is nothing to learn between a system and itself")
    if more_pairs < 0 or not 0 < level < 1:
        raise InputError(f"expected 0 or more pairs and a level within (0, 1), got {more_pairs} and {level}")
    mean, covariance = calibration.joint([system_a, system_b], for_intervals=True)
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    design = np.stack([calibration.margin_deviation * nodes, -np.ones(15), np.ones(15)], axis=1)  # [15, 3]
    half = design @ mean / 2
    log_tie = -np.inf if calibration.log_tie is None else calibration.log_tie
    exponents = np.stack([half, -half, np.full_like(half, log_tie)])
    a, b, tie = np.exp(exponents - exponents.max(axis=0))
    decided, lead = 1 - tie / (a + b + tie), (a - b) / (a + b + tie)
    information = (decided - lead**2) / 4 * weights / weights.sum()  # variance of the exponent's z part
    gained = more_pairs * np.einsum("n,np,nq->pq", information, design, design)
    # (C^-1 + G)^-1 without inverting C, which is singular where the scale is held fixed
    covariance = covariance @ np.linalg.inv(np.eye(3) + gained @ covariance)
    contrast = np.array([0.0, -1.0, 1.0])
    z, variance = contrast @ mean, max(contrast @ covariance @ contrast, 0.0)
    width = NormalDist().inv_cdf((1 + level) / 2) * variance**0.5
    return float(np.tanh((z + width) / 2) - np.tanh((z - width) / 2)) / 4


def pairs_needed(
    calibration: AnchorCalibration, system_a: str, system_b: str, half_width: float, *, level: float = 0.95
) -> int:
    """Least number of further votes between two systems after which the interval of A's win probability at equal
    rewards is expected to reach no more than `half_width` to each side; 0 if it does already.

    Raises:
        InputError: as for `win_half_width`, or `half_width` is not within (0, 0.5), or takes over ten million votes.
    """
    if not 0 < half_width < 0.5:
        raise InputError(f"the wanted half width is {half_width}, expected a probability such as 0.05")

    def reached(pairs: int) -> bool:
        return win_half_width(calibration, system_a, system_b, more_pairs=pairs, level=level) <= half_width

    if reached(0):
        return 0
    low, high = 0, 1
    while not reached(high):
        low, high = high, 2 * high
        if high > MOST_PAIRS:
            raise InputError(f"a half width of {half_width} takes over {MOST_PAIRS} votes, ask for a wider one")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
