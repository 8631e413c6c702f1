"""Does calibration help on these votes? Votes held out in turn, judged raw, by the published method and by ours."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from tunejury.bradley_terry import Floats
from tunejury.calibration import AnchorCalibration
from tunejury.calibration_fit import fit_anchors, fit_published
from tunejury.errors import InputError
from tunejury.preferences import PreferencePair
from tunejury.votes import battle_key, reward_table

METHODS = ("raw", "published", "anchors")
# what they say of all votes they would say of every fold again
LOGGERS = ("tunejury.calibration", "tunejury.calibration_fit")


def held_out_probabilities(
    votes: Sequence[PreferencePair], reference_system: str, *, num_folds: int = 5, seed: int = 0
) -> dict[str, Floats]:
    """Probability [N] that A wins each vote, by methods fitted to the other folds alone.

    Votes on one prompt fall into one fold where prompts are known, else votes on the same clips: a fold must not be
    judged by what its own clips taught. Folds whose anchors leave systems uncompared, or are one-sided, are taken as
    they are, without a warning.

    Args:
        votes: with systems and rewards.
        reference_system: for the published method.
        num_folds: parts the votes are held out in.
        seed: of the partition, which does not depend on the order of the votes.

    Returns:
        {"raw": sigmoid of the margin, "published": ..., "anchors": ...}.

    Raises:
        InputError: there are fewer groups of votes than folds, or fewer than 2 folds.
    """
    rewards = reward_table(votes)
    keys = [f"prompt {vote.prompt}" if vote.prompt else repr(battle_key(vote)) for vote in votes]
    groups = sorted(set(keys))
    if not 2 <= num_folds <= len(groups):
        raise InputError(
            f"{num_folds} folds of {len(groups)} prompts (or battles without one), expected 2 folds or more and a "
            "prompt for each: ask for fewer folds or give more votes"
        )
    random.Random(seed).shuffle(groups)
    fold_of = {group: place % num_folds for place, group in enumerate(groups)}
    fits: Mapping[str, Callable[[list[PreferencePair]], AnchorCalibration]] = {
        "raw": lambda train: fit_published([], reference_system=reference_system),
        "published": lambda train: fit_published(
            [vote for vote in train if not vote.is_tie], reference_system=reference_system, allow_disconnected=True
        ),
        "anchors": lambda train: fit_anchors(train, allow_disconnected=True),
    }
    probabilities = {method: np.empty(len(votes)) for method in METHODS}
    for fold in range(num_folds):
        held_out = [place for place, key in enumerate(keys) if fold_of[key] == fold]
        train = [vote for vote, key in zip(votes, keys, strict=True) if fold_of[key] != fold]
        margins = rewards[held_out, 0] - rewards[held_out, 1]
        sides = [[votes[place].system_a for place in held_out], [votes[place].system_b for place in held_out]]
        with _silenced():
            for method in METHODS:
                probabilities[method][held_out] = fits[method](train).win_probabilities(margins, *sides)
    return probabilities


@contextmanager
def _silenced() -> Iterator[None]:
    def none_passes(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(none_passes)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(none_passes)
