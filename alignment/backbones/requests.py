"""Checking what a backbone is asked for, and what it made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from alignment.errors import InputError, NonFiniteAudioError
from alignment.interfaces import GenerationSettings, TokenSettings

MAX_SEED = 2**63 - 1
# far above what is of use (a family's own is 1 to 7), far below where float32 numbers end
MAX_GUIDANCE_SCALE = 1_000.0
# a draft shorter than this says little of the clip it begins
MIN_DRAFT_SECONDS = 1.0


def check_pairs(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """
    Raises:
        InputError: no prompts, unequal numbers, or a seed that is no whole number from 0 to 2**63 - 1.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise InputError(f"expected one seed per prompt, got {len(prompts)} prompts and {len(seeds)} seeds")
    check_seeds(seeds)


def check_seeds(seeds: Sequence[int]) -> None:
    """
    Raises:
        InputError: a seed that is no whole number from 0 to 2**63 - 1.
    """
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise InputError(f"seed is {seed!r}; expected a whole number from 0 to 2**63 - 1")


def generators_from(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per seed, on the CPU whatever the device: the same seed is the same noise everywhere.

    Raises:
        InputError: as `check_seeds`.
    """
    check_seeds(seeds)
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def check_duration_and_guidance(name: str, sample_rate: int, max_duration: float, duration: Any, guidance: Any) -> None:
    """
    Raises:
        InputError: a duration that is not positive or longer than the model goes, or a guidance scale that is negative
            or above MAX_GUIDANCE_SCALE.
    """
    if not is_number(duration) or not 1 <= duration * sample_rate <= max_duration * sample_rate:
        longest = "" if math.isinf(max_duration) else f" and up to {max_duration:g} s"
        raise InputError(f"duration is {duration} s; {name} makes clips longer than 0{longest}")
    if not is_number(guidance) or not 0 <= guidance <= MAX_GUIDANCE_SCALE:
        raise InputError(
            f"guidance_scale is {guidance}; expected a number from 0 to {MAX_GUIDANCE_SCALE:g} (1: no guidance)"
        )


def checked_settings(
    name: str, sample_rate: int, max_duration: float, duration: Any, steps: Any, guidance: Any
) -> GenerationSettings:
    """The settings, if a diffusion model called `name` can do them; `duration` and `max_duration` in seconds.

    Raises:
        InputError: as `check_duration_and_guidance`, or no steps.
    """
    check_duration_and_guidance(name, sample_rate, max_duration, duration, guidance)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"num_inference_steps is {steps}; expected a whole number of at least 1")
    return GenerationSettings(float(duration), steps, float(guidance))


def token_settings(
    name: str,
    defaults: TokenSettings,
    sample_rate: int,
    max_duration: float,
    *,
    num_inference_steps: int | None,
    **given: Any,
) -> TokenSettings:
    """Settings of an autoregressive backbone: what is given and not None, else the default, checked.

    Args:
        name: of the backbone.
        given: fields of TokenSettings.

    Raises:
        InputError: names the setting, its value, and what was expected.
    """
    if num_inference_steps is not None:
        raise InputError(
            f"num_inference_steps is {num_inference_steps}, but {name} writes audio tokens one after the other and has "
            "no denoising steps; leave it out"
        )
    chosen = {**vars(defaults), **{key: value for key, value in given.items() if value is not None}}
    duration, guidance = chosen["duration"], chosen["guidance_scale"]
    temperature, top_k, top_p = chosen["temperature"], chosen["top_k"], chosen["top_p"]
    check_duration_and_guidance(name, sample_rate, max_duration, duration, guidance)
    if not is_number(temperature) or temperature <= 0:
        raise InputError(f"temperature is {temperature}; expected a finite number above 0 (top_k 1: the best token)")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise InputError(f"top_k is {top_k}; expected a whole number of at least 0 (0: all tokens)")
    if not is_number(top_p) or not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; expected a number above 0 and up to 1 (1: all tokens)")
    return TokenSettings(float(duration), None, float(guidance), float(temperature), top_k, float(top_p))


def shorter(settings: GenerationSettings) -> list[GenerationSettings]:
    """Settings of the first quarter and half of a clip, as far as they are long enough to foretell it."""
    drafts = [replace(settings, duration=settings.duration * part) for part in (0.25, 0.5)]
    return [draft for draft in drafts if draft.duration >= MIN_DRAFT_SECONDS]


def finished(name: str, wav: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Clips [B, C, T] as backbones hand them out: float32 on the CPU, in [-1, 1].

    Raises:
        NonFiniteAudioError: names the seeds and prompts of the clips that hold NaN or infinity.
    """
    wav = wav.to("cpu", torch.float32)
    return tell_apart(name, wav.clamp(-1, 1), wav.isfinite().flatten(1).all(dim=1), prompts, seeds)


def tell_apart(name: str, made: Tensor, sound: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """What was made, [B, ...], where all of it is `sound` [B].

    Raises:
        NonFiniteAudioError: names the seeds and prompts of what is not.
    """
    failures = {
        index: f"{name} made NaN or infinite samples for seed {seeds[index]}, prompt {prompts[index]!r}"
        for index in (~sound).nonzero().flatten().tolist()
    }
    if failures:
        raise NonFiniteAudioError(failures, made)
    return made


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
