"""Making a batch of clips and judging a batch of files, when single items may fail.

A driver hands in lists and gets lists of the same length back, in which a failed item is the reason why it failed.
Running out of memory halves a batch until it fits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from alignment.errors import InputError, NonFiniteAudioError
from alignment.interfaces import Backbone, Embed, GenerationSettings, LoadAudio, Reward

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported where it is used: checking a configuration must not wait for it

logger = logging.getLogger(__name__)

T = TypeVar("T")

# samples judged at once: 64 MiB of float32; a folder of hour-long files is judged one by one
MAX_JUDGED_SAMPLES = 1 << 24


def generate_clips(
    backbone: Backbone, settings: GenerationSettings, prompts: Sequence[str], seeds: Sequence[int]
) -> list[Tensor | str]:
    """A clip [C, T] for each (prompt, seed), or the reason why there is none.

    Raises:
        InputError: the backbone refuses the settings or seeds.
    """
    try:
        return list(
            backbone.generate(
                prompts,
                seeds,
                settings.duration,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
            )
        )
    except NonFiniteAudioError as error:
        return [error.failures.get(index, clip) for index, clip in enumerate(error.wav)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        problem = _one_line(error)
    # outside the handler, whose traceback keeps the tensors of the failed attempt alive
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(prompts) == 1:
        return [f"out of memory for a single clip: {problem}"]
    half = len(prompts) // 2
    logger.warning("out of memory for %d clips at once; trying %d", len(prompts), half)
    first = generate_clips(backbone, settings, prompts[:half], seeds[:half])
    return first + generate_clips(backbone, settings, prompts[half:], seeds[half:])


def judge_files(
    reward: Reward, load_audio: LoadAudio, paths: Sequence[Path], prompts: Sequence[str]
) -> list[float | str]:
    """The reward of each audio file, or the reason why there is none.

    Neighbouring files of equal length and rate are judged in one call.

    Raises:
        InputError: the reward is no callable of the agreed kind.
    """

    def judge(wav: Tensor, sample_rate: int, places: Sequence[int]) -> Sequence[float | str]:
        return _rewards(reward, wav, sample_rate, [prompts[place] for place in places])

    return _hear(judge, load_audio, paths)


def embed_files(embed: Embed, load_audio: LoadAudio, paths: Sequence[Path]) -> list[Tensor | str]:
    """The embedding [E] of each audio file, float32 on the CPU, or the reason why there is none."""
    import torch

    def listen(wav: Tensor, sample_rate: int, places: Sequence[int]) -> Sequence[Tensor | str]:
        try:
            with torch.no_grad():
                return list(embed(wav, sample_rate).float().cpu())
        except (MemoryError, RuntimeError, ValueError) as error:
            if not isinstance(error, ValueError) and not is_out_of_memory(error):
                raise
            problem = _one_line(error)
        if len(wav) == 1:
            return [problem]
        half = len(wav) // 2
        first = listen(wav[:half], sample_rate, places[:half])
        return [*first, *listen(wav[half:], sample_rate, places[half:])]

    return _hear(listen, load_audio, paths)


def _hear(
    listen: Callable[[Tensor, int, Sequence[int]], Sequence[T | str]], load_audio: LoadAudio, paths: Sequence[Path]
) -> list[T | str]:
    """What `listen(wav [B, C, T], sample_rate, places in paths)` makes of each file, or why it cannot be read."""
    import torch

    values: list[T | str] = [""] * len(paths)
    group: list[tuple[int, Tensor, int]] = []  # (place in the lists, wav [C, T], sample rate in Hz)

    def flush() -> None:
        if group:
            places = [place for place, _, _ in group]
            heard = listen(torch.stack([clip for _, clip, _ in group]), group[0][2], places)
            for place, value in zip(places, heard, strict=True):
                values[place] = value
            group.clear()

    for place, path in enumerate(paths):
        try:
            wav, sample_rate = load_audio(path)
        except (ValueError, OSError) as error:
            values[place] = _one_line(error)
            continue
        fits = group and group[0][1].shape == wav.shape and group[0][2] == sample_rate
        if not fits or (len(group) + 1) * wav.numel() > MAX_JUDGED_SAMPLES:
            flush()
        group.append((place, wav, sample_rate))
    flush()
    return values


def _rewards(reward: Reward, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> list[float | str]:
    import torch

    try:
        with torch.no_grad():
            rewards = reward(wav, sample_rate, prompts)
        if rewards.shape != (len(wav),):
            raise InputError(f"the reward returned shape {list(rewards.shape)} for {len(wav)} clips; expected [B]")
        # a Python float holds a float32 exactly: the record is the very reward
        values = [float(value) for value in rewards.detach().cpu()]
        return [value if math.isfinite(value) else f"the reward is {value}" for value in values]
    except (MemoryError, RuntimeError, ValueError) as error:
        # a ValueError is the judge refusing a clip: find out which one by judging fewer at once
        if not isinstance(error, ValueError) and not is_out_of_memory(error):
            raise
        problem = _one_line(error)
    if len(wav) == 1:
        return [problem]
    half = len(wav) // 2
    first = _rewards(reward, wav[:half], sample_rate, prompts[:half])
    return first + _rewards(reward, wav[half:], sample_rate, prompts[half:])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the machine ran out of memory."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
