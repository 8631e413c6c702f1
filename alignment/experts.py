"""Choosing experts: the candidates of a round that are learned from.

The best over all prompts by how far their reward is above their prompt's mean, with a floor under the number of
different prompts among them. By the reward itself most experts would come from the prompts that the judge likes
whatever is played, and be hardly better than what else is played there. Or the best few of each prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from alignment.errors import InputError
from alignment.interfaces import Candidate


@dataclass(frozen=True)
class SelectionConfig:
    """Who is kept."""

    keep_fraction: float = 0.4
    """Of all candidates of a round."""
    rank_by: Literal["advantage", "reward"] = "advantage"
    """With keep_fraction: advantage is the reward above the mean of the prompt's candidates."""
    keep_per_prompt: int | None = None
    """So many of each prompt instead."""
    diversity_floor: float = 0.5
    """With keep_fraction: of the prompts that could be among the experts at once, at least this share is."""

    def __post_init__(self) -> None:
        if not 0 < self.keep_fraction <= 1:
            raise InputError(f"keep_fraction is {self.keep_fraction}; expected a number above 0 and up to 1")
        if self.rank_by not in ("advantage", "reward"):
            raise InputError(f"rank_by is {self.rank_by!r}; expected 'advantage' or 'reward'")
        if self.keep_per_prompt is not None and self.keep_per_prompt < 1:
            raise InputError(f"keep_per_prompt is {self.keep_per_prompt}; expected at least 1")
        if not 0 <= self.diversity_floor <= 1:
            raise InputError(f"diversity_floor is {self.diversity_floor}; expected a number from 0 to 1")

    def check(self, num_prompts: int, num_candidates: int) -> None:
        """Say early that so many candidates are too few.

        Raises:
            InputError: nothing would be kept, or more of a prompt than there is.
        """
        if self.keep_per_prompt is not None:
            if self.keep_per_prompt > num_candidates:
                raise InputError(
                    f"keep_per_prompt is {self.keep_per_prompt}, but there are {num_candidates} candidates per prompt"
                )
        elif self.num_kept(num_prompts * num_candidates) < 1:
            raise InputError(
                f"too few candidates: keep_fraction {self.keep_fraction:g} of {num_prompts} prompts x {num_candidates} "
                f"candidates keeps none; expected at least {math.ceil(1 / self.keep_fraction)} in all"
            )

    def num_kept(self, num_candidates: int) -> int:
        # 0.3 * 10 is a little below 3
        return math.floor(self.keep_fraction * num_candidates + 1e-9)


def select_experts(pools: Sequence[Sequence[Candidate]], config: SelectionConfig) -> list[Candidate]:
    """The experts of a round, by prompt and candidate; equal rewards go to the earlier one.

    Args:
        pools: the candidates of each prompt; failed ones have no reward and are never chosen.

    Raises:
        InputError: too few candidates have a reward.
    """
    order = {id(candidate): place for place, candidate in enumerate(c for pool in pools for c in pool)}
    values = {id(c): value for pool in pools for c, value in _values(pool, config.rank_by)}

    def ranked_of(candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those with a reward, the best first; sorting keeps equals in order."""
        return sorted((c for c in candidates if id(c) in values), key=lambda c: -values[id(c)])

    ranked_pools = [ranked_of(pool) for pool in pools]
    if config.keep_per_prompt is not None:
        chosen = [candidate for pool in ranked_pools for candidate in pool[: config.keep_per_prompt]]
        if not chosen:
            raise InputError("too few candidates: none has a reward")
        return sorted(chosen, key=lambda candidate: order[id(candidate)])
    ranked = ranked_of([candidate for pool in ranked_pools for candidate in pool])
    count = config.num_kept(len(ranked))
    if count < 1:
        raise InputError(
            f"too few candidates: keep_fraction {config.keep_fraction:g} of the {len(ranked)} that have a reward keeps "
            "none; draw more of them or keep a larger part"
        )
    leaders = ranked_of([pool[0] for pool in ranked_pools if pool])
    chosen = leaders[: math.ceil(config.diversity_floor * min(count, len(leaders)))]
    taken = {id(candidate) for candidate in chosen}
    chosen += [candidate for candidate in ranked if id(candidate) not in taken][: count - len(chosen)]
    return sorted(chosen, key=lambda candidate: order[id(candidate)])


def counterexamples_of(pools: Sequence[Sequence[Candidate]], experts: Sequence[Candidate]) -> list[Candidate]:
    """For each expert a candidate of its prompt that it is to be preferred to: the worst that are no experts, each once
    if there are enough of them; where all are experts, the worst.

    Args:
        pools: the candidates of each prompt.
        experts: some of them.
    """
    chosen = {id(expert) for expert in experts}
    found: dict[int, Candidate] = {}
    for pool in pools:
        worst = sorted((c for c in pool if c.reward is not None), key=lambda c: c.reward or 0.0)
        others = [c for c in worst if id(c) not in chosen] or worst[:1]
        own = sorted((c for c in pool if id(c) in chosen), key=lambda c: -(c.reward or 0.0))
        found |= {id(expert): others[place % len(others)] for place, expert in enumerate(own)}
    return [found[id(expert)] for expert in experts]


def _values(pool: Sequence[Candidate], rank_by: str) -> list[tuple[Candidate, float]]:
    """What the candidates of a prompt that have a reward are ranked by."""
    scored = [(c, c.reward) for c in pool if c.reward is not None]
    mean = fmean(reward for _, reward in scored) if scored and rank_by == "advantage" else 0.0
    return [(c, reward - mean) for c, reward in scored]
