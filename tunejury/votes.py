"""Votes between systems: preference pairs with both rewards and both systems' names, and what can be said of them
before anything is fitted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunejury.errors import InputError
from tunejury.preferences import PreferencePair, read_pairs

logger = logging.getLogger(__name__)

# (audio files, prompts) -> rewards
Judge = Callable[[Sequence[Path], Sequence[str]], Sequence[float]]

# a reward is a log-odds; what lies beyond is no reward but a mistake, and leaves the range of exp
MOST_REWARD = 300.0


def read_votes(path: str | Path, judge: Judge | None = None) -> list[PreferencePair]:
    """Read preference pairs (see `tunejury.preferences`) that name both systems and have both rewards.

    Args:
        path: `.jsonl`, `.csv` or `.json`.
        judge: what gives the rewards where the file has clips instead of them; each clip is judged once.

    Raises:
        InputError: as for `read_pairs`, or a system's name is missing, or there is neither a reward nor a clip.
        OSError: the file may not be read.
    """
    votes = read_pairs(path, needs="votes")
    for vote in votes:
        if not vote.system_a or not vote.system_b:
            raise InputError(
                f"{path}: pair {vote.pair_id!r} does not name its systems, expected columns system_a and system_b"
            )
    # a file that has some rewards is meant to have all
    if judge is None or any(vote.reward_a is not None or vote.reward_b is not None for vote in votes):
        votes = read_pairs(path, needs="rewards")
        say_repeated(votes, path)
        return votes
    votes = read_pairs(path, needs="audio")
    say_repeated(votes, path)
    clips = [(clip, vote.prompt) for vote in votes for clip in (vote.audio_a, vote.audio_b)]
    distinct = list(dict.fromkeys(clips))
    judged = judge([Path(clip) for clip, _ in distinct], [prompt for _, prompt in distinct])
    rewards = dict(zip(distinct, judged, strict=True))
    return [
        replace(vote, reward_a=rewards[vote.audio_a, vote.prompt], reward_b=rewards[vote.audio_b, vote.prompt])
        for vote in votes
    ]


def reward_table(votes: Iterable[PreferencePair]) -> NDArray[np.float64]:
    """Rewards [N, 2] of A and B.

    Raises:
        InputError: a vote lacks a reward or a system's name, or a reward is not finite or beyond `MOST_REWARD`.
    """
    rows = []
    for vote in votes:
        if not vote.system_a or not vote.system_b:
            raise InputError(f"pair {vote.pair_id!r} does not name its systems, expected system_a and system_b")
        if vote.reward_a is None or vote.reward_b is None or not np.isfinite([vote.reward_a, vote.reward_b]).all():
            raise InputError(
                f"pair {vote.pair_id!r} has rewards {vote.reward_a} and {vote.reward_b}, expected two finite numbers"
            )
        if max(abs(vote.reward_a), abs(vote.reward_b)) > MOST_REWARD:
            raise InputError(
                f"pair {vote.pair_id!r} has rewards {vote.reward_a:g} and {vote.reward_b:g}, expected log-odds within "
                f"+-{MOST_REWARD:g}"
            )
        rows.append((vote.reward_a, vote.reward_b))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def battle_key(vote: PreferencePair) -> tuple[object, ...]:
    """What makes two votes a vote on the same two clips, whichever side each was on."""
    return (vote.prompt, *sorted(_sides(vote)))


def say_repeated(votes: Sequence[PreferencePair], source: str | Path) -> int:
    """Count votes that are copies of earlier ones (same clips, systems, rewards and outcome) and warn of them: one
    battle listed twice counts twice, and intervals come out too narrow. Two voters may well agree on a pair.
    """
    distinct = set()
    for vote in votes:
        first, second = _sides(vote)
        distinct.add((battle_key(vote), vote.target if first <= second else 1 - vote.target))
    repeated = len(votes) - len(distinct)
    if repeated:
        logger.warning(
            "%s: %d of %d votes repeat earlier ones to the letter; if they are battles listed twice, take them out: "
            "each copy counts as a further vote", source, repeated, len(votes),
        )  # fmt: skip
    return repeated


def _sides(vote: PreferencePair) -> tuple[str, str]:
    return (
        repr((vote.audio_a, vote.system_a, vote.reward_a)),
        repr((vote.audio_b, vote.system_b, vote.reward_b)),
    )


def count_votes(votes: Iterable[PreferencePair]) -> Counter[str]:
    """In how many votes each system takes part."""
    return Counter(system for vote in votes for system in {vote.system_a, vote.system_b})


def connected_groups(votes: Iterable[PreferencePair]) -> list[list[str]]:
    """The groups of systems that votes compare with one another, largest first. Between two groups the votes say
    nothing: one group means that every difference of offsets can be told from them.
    """
    group: dict[str, set[str]] = {}
    for vote in votes:
        joined = group.get(vote.system_a, {vote.system_a}) | group.get(vote.system_b, {vote.system_b})
        for system in joined:
            group[system] = joined
    distinct = {id(members): sorted(members) for members in group.values()}
    return sorted(distinct.values(), key=lambda members: (-len(members), members))


def one_sided_systems(votes: Iterable[PreferencePair]) -> list[str]:
    """Systems that won, or lost, every vote against another system: only the prior keeps their offsets finite."""
    results: dict[str, set[float]] = {}
    for vote in votes:
        if vote.system_a != vote.system_b:
            results.setdefault(vote.system_a, set()).add(vote.target)
            results.setdefault(vote.system_b, set()).add(1 - vote.target)
    return sorted(system for system, seen in results.items() if seen in ({0.0}, {1.0}))
