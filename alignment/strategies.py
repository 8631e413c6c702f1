"""How the generator's time is spent on candidates: all alike, or cheap drafts first and the rest on the promising.

Halving draws every candidate as a cheap draft, keeps the better half, drafts that half again with more care (or goes on
from the draft, where the backbone can), and makes final clips of what is left; a final clip is the same function of
prompt, seed and settings as without drafts. This is successive halving (Jamieson and Talwalkar 2016) with clips for
arms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from alignment.errors import InputError
from alignment.interfaces import Backbone, Candidate, ContinuingBackbone, DraftingBackbone, GenerationSettings
from alignment.results import ranking_value

Strategy = Literal["full", "halving"]

# in fewer, a clip has little to do with the final one
MIN_DRAFT_STEPS = 4


@dataclass(frozen=True)
class Budget:
    """What the generator may spend in the whole run, over all prompts and processes: seconds or network evaluations."""

    amount: float
    unit: Literal["s", "nfe"]


def parse_budget(text: str) -> Budget:
    """Read "120s" (seconds of generator time) or "4000nfe" (network evaluations).

    Raises:
        InputError: it is neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|nfe)\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"budget is {text!r}; expected seconds such as 120s, or network evaluations such as 4000nfe")
    return Budget(float(match[1]), "s" if match[2].lower() == "s" else "nfe")


@dataclass(frozen=True)
class Stage:
    """One pass over the candidates that are still in.

    cost is that of a clip in the budget's unit, network evaluations where there is no budget; nfe are the evaluations.
    Where a backbone goes on from its drafts, both are of what the stage adds, and whole_nfe of a clip from its start.
    """

    settings: GenerationSettings
    num_candidates: int
    cost: float
    nfe: float
    whole_nfe: float

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "settings": self.settings.to_dict()}


def stages_of(
    record: Mapping[str, Any], backbone: Backbone, settings: GenerationSettings, strategy: Strategy
) -> list[Stage]:
    """The stages of a run as its config.json keeps them: a plan that was made with a clock is not made again.

    Raises:
        InputError: the backbone's drafts are others now.
    """
    levels = _levels(backbone, settings, strategy)
    rows = record["stages"]
    same = all(row.keys() == Stage.__dataclass_fields__.keys() for row in rows)
    if not same or [row["settings"] for row in rows] != [level.to_dict() for level in levels]:
        raise InputError(f"{backbone.name} makes other drafts than when this run was begun; --overwrite starts anew")
    return [Stage(**{**row, "settings": level}) for row, level in zip(rows, levels, strict=True)]


def _levels(backbone: Backbone, settings: GenerationSettings, strategy: Strategy) -> list[GenerationSettings]:
    return [*(draft_settings(backbone, settings) if strategy == "halving" else []), settings]


def draft_settings(backbone: Backbone, settings: GenerationSettings) -> list[GenerationSettings]:
    """Cheaper settings that foretell the clips of `settings`, cheapest first.

    The backbone is asked. One that does not say is taken for a diffusion model: an eighth and a quarter of its steps,
    from the same noise, but not fewer than MIN_DRAFT_STEPS. (The clean signal as it is predicted half-way, from which
    the sampling could be gone on with, foretells the clip worse than a whole sampling in as few steps.)
    """
    if isinstance(backbone, DraftingBackbone):
        return list(backbone.draft_settings(settings))
    most = settings.num_inference_steps or 1
    steps = sorted({max(MIN_DRAFT_STEPS, most // part) for part in (8, 4)})
    return [replace(settings, num_inference_steps=n) for n in steps if n < most]


def network_evaluations(backbone: Backbone, settings: GenerationSettings) -> float:
    """Evaluations of the network for one clip: the backbone's own count, or steps, twice with guidance."""
    if isinstance(backbone, DraftingBackbone):
        return float(backbone.cost(settings))
    return (settings.num_inference_steps or 1) * (2.0 if settings.guidance_scale > 1 else 1.0)


def plan_stages(
    backbone: Backbone,
    settings: GenerationSettings,
    num_candidates: int,
    num_prompts: int,
    strategy: Strategy,
    budget: Budget | None = None,
    seconds_of: Callable[[GenerationSettings], float] | None = None,
) -> list[Stage]:
    """Decide how many candidates of each prompt every stage makes; the last stage makes the final clips.

    Without a budget halving halves at every stage. A budget is divided equally among prompts: as many candidates are
    drawn, up to `num_candidates`, as leave enough for the final clips, and what remains buys more final clips.

    Args:
        backbone, settings: what makes the final clips.
        num_candidates: of each prompt, at most.
        num_prompts: that share the budget.
        strategy: full or halving.
        budget: for the whole run.
        seconds_of: generator seconds per clip of some settings; asked for a budget in seconds only.

    Raises:
        InputError: the backbone has no drafts of these settings, or the budget is too small for one clip per prompt.
    """
    levels = _levels(backbone, settings, strategy)
    if strategy == "halving" and len(levels) == 1:
        asked = ", ".join(f"{name} {value:g}" for name, value in settings.to_dict().items())
        raise InputError(f"{backbone.name} has no cheaper drafts of {asked}; give more steps, or --strategy full")
    whole = [network_evaluations(backbone, level) for level in levels]
    evaluations = costs = _added(backbone, whole)
    if budget is not None and budget.unit == "s":
        assert seconds_of is not None
        costs = _added(backbone, [seconds_of(level) for level in levels])
    sizes = halved(num_candidates, len(levels))
    if budget is not None:
        sizes = _within(budget.amount / num_prompts, num_candidates, costs, budget.unit, num_prompts)
    rows = zip(levels, sizes, costs, evaluations, whole, strict=True)
    return [Stage(*row) for row in rows]


def _added(backbone: Backbone, whole: Sequence[float]) -> list[float]:
    """What each stage costs a candidate that went through those before. (Hearing again what was written is one more
    evaluation, of all steps at once.)
    """
    if not isinstance(backbone, ContinuingBackbone):
        return list(whole)
    # seconds are measured, and noisy
    return [max(now - before, 0.01 * now) for before, now in pairwise([0.0, *whole])]


def halved(num_candidates: int, num_stages: int) -> list[int]:
    """Candidates of each stage when every stage keeps half of the one before, rounded up; a single draft, which has to
    do for two, a quarter.
    """
    powers = [1, 4] if num_stages == 2 else [2**stage for stage in range(num_stages)]
    return [max(1, math.ceil(num_candidates / power)) for power in powers]


def _within(share: float, most: int, costs: Sequence[float], unit: str, num_prompts: int) -> list[int]:
    def total(sizes: Sequence[int]) -> float:
        return sum(size * cost for size, cost in zip(sizes, costs, strict=True))

    fitting = [n for n in range(1, most + 1) if total(halved(n, len(costs))) <= share]
    if not fitting:
        least = total(halved(1, len(costs))) * num_prompts
        raise InputError(f"the budget is too small; expected at least {math.ceil(least)}{unit} for one clip per prompt")
    sizes = halved(fitting[-1], len(costs))
    if len(sizes) > 1:  # what is left makes more of the last drafts into clips
        sizes[-1] += min(sizes[-2] - sizes[-1], int((share - total(sizes)) / costs[-1]))
    return sizes


def promising(values: Mapping[int, float | None], count: int) -> list[int]:
    """The `count` candidates with the highest values, in their own order; the lower number wins among equals, and
    failed ones (None) come last.
    """

    def merit(k: int) -> tuple[float, int]:
        value = values[k]
        return (math.inf if value is None else -value), k

    return sorted(sorted(values, key=merit)[:count])


def latest_values(
    histories: Mapping[tuple[str, int], Sequence[Candidate]], prompt_id: str, among: Sequence[int], selection: str
) -> dict[int, float | None]:
    """What the last drafts of some candidates of a prompt were worth; None before the first and for a failed one."""
    latest = {k: histories[prompt_id, k][-1:] for k in among}
    return {k: ranking_value(drafts[0], selection) if drafts else None for k, drafts in latest.items()}
