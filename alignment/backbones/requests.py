"""Checks of what a backbone is asked for, the same for every family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from alignment.errors import InputError
from alignment.interfaces import GenerationSettings

MAX_SEED = 2**63 - 1


def checked_settings(
    name: str, sample_rate: int, max_duration: float, duration: Any, steps: Any, guidance: Any
) -> GenerationSettings:
    """The settings, if a model called `name` can do them; `duration` and `max_duration` in seconds.

    Raises:
        InputError: a duration that is not positive or longer than the model goes, no steps, or a negative guidance
            scale.
    """
    if not _is_number(duration) or not 1 <= duration * sample_rate <= max_duration * sample_rate:
        limit = f" and up to {max_duration:g} s" if math.isfinite(max_duration) else ""
        raise InputError(f"duration is {duration} s; {name} makes clips longer than 0{limit}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"num_inference_steps is {steps}; expected a whole number of at least 1")
    if not _is_number(guidance) or guidance < 0:
        raise InputError(f"guidance_scale is {guidance}; expected a finite number of at least 0 (1: no guidance)")
    return GenerationSettings(float(duration), steps, float(guidance))


def generators_from(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per seed, on the CPU whatever the device: the same seed is the same noise everywhere.

    Raises:
        InputError: a seed that is no whole number from 0 to 2**63 - 1.
    """
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise InputError(f"seed is {seed!r}; expected a whole number from 0 to 2**63 - 1")
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
