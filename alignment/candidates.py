"""Making a batch of clips and judging a batch of files, when single items may fail.

A driver hands in lists and gets lists of the same length back, in which a failed item is the reason why it failed.
Running out of memory halves a batch until it fits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from alignment.diversity import log_mel_embedding
from alignment.errors import InputError, NonFiniteAudioError
from alignment.interfaces import (
    Backbone,
    ContinuingBackbone,
    Embed,
    GenerationSettings,
    LoadAudio,
    Reward,
    UncertainReward,
)
from alignment.learners import TrainableBackbone

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported where it is used: checking a configuration must not wait for it

logger = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")

# samples judged at once: 64 MiB of float32; a folder of hour-long files is judged one by one
MAX_JUDGED_SAMPLES = 1 << 24


def generate_clips(
    backbone: Backbone, settings: GenerationSettings, prompts: Sequence[str], seeds: Sequence[int]
) -> list[Tensor | str]:
    """A clip [C, T] for each (prompt, seed), or the reason why there is none.

    Raises:
        InputError: the backbone refuses the settings or seeds.
    """

    def make(prompts: Sequence[str], seeds: Sequence[int]) -> list[Tensor | str]:
        try:
            return list(backbone.generate(prompts, seeds, settings.duration, **_options(settings)))
        except NonFiniteAudioError as error:
            return [error.failures.get(index, clip) for index, clip in enumerate(error.wav)]

    return _as_fits(make, prompts, seeds)


def generate_further(
    backbone: ContinuingBackbone,
    settings: GenerationSettings,
    prompts: Sequence[str],
    seeds: Sequence[int],
    written: Sequence[Tensor | None],
) -> list[tuple[Tensor, Tensor] | str]:
    """(the clip [C, T], what is written of it now) for each (prompt, seed), or the reason why there is none.

    Args:
        written: of each clip at an earlier stage; None where there is nothing.

    Raises:
        InputError: as `generate_clips`.
    """

    def make(prompts: Sequence[str], begun: Sequence[tuple[int, Tensor | None]]) -> list[tuple[Tensor, Tensor] | str]:
        writing = backbone.begin(prompts, [seed for seed, _ in begun], settings, [before for _, before in begun])
        failures: dict[int, str] = {}
        try:
            clips = writing.extend(settings.duration)
        except NonFiniteAudioError as error:
            failures, clips = error.failures, error.wav
        both = zip(clips, writing.written(), strict=True)
        return [failures.get(index, pair) for index, pair in enumerate(both)]

    return _as_fits(make, prompts, list(zip(seeds, written, strict=True)))


def generate_with_targets(
    backbone: TrainableBackbone, settings: GenerationSettings, prompts: Sequence[str], seeds: Sequence[int]
) -> list[tuple[Tensor, Tensor] | str]:
    """(what training learns of a clip, the clip [C, T]) for each (prompt, seed), or the reason why there is none.

    Raises:
        InputError: as `generate_clips`.
    """

    def make(prompts: Sequence[str], seeds: Sequence[int]) -> list[tuple[Tensor, Tensor] | str]:
        failures: dict[int, str] = {}
        try:
            targets = backbone.generate_targets(prompts, seeds, settings.duration, **_options(settings))
        except NonFiniteAudioError as error:
            failures, targets = error.failures, error.wav
        clips = backbone.decode_targets(targets, settings.duration)
        for index, (target, clip) in enumerate(zip(targets, clips, strict=True)):
            if not (target.isfinite().all() and clip.isfinite().all()):
                failures.setdefault(
                    index, f"{backbone.name} made NaN or infinite samples for seed {seeds[index]}, {prompts[index]!r}"
                )
        return [failures.get(index, (targets[index], clips[index])) for index in range(len(clips))]

    return _as_fits(make, prompts, seeds)


def _options(settings: GenerationSettings) -> dict[str, Any]:
    return {"num_inference_steps": settings.num_inference_steps, "guidance_scale": settings.guidance_scale}


def _as_fits(
    make: Callable[[Sequence[str], Sequence[U]], list[T | str]], prompts: Sequence[str], seeds: Sequence[U]
) -> list[T | str]:
    """What `make` makes of a batch, halved while it does not fit the memory."""
    try:
        return make(prompts, seeds)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        problem = one_line(error)
    # outside the handler, whose traceback keeps the tensors of the failed attempt alive
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(prompts) == 1:
        return [f"out of memory for a single clip: {problem}"]
    half = len(prompts) // 2
    logger.warning("out of memory for %d clips at once; trying %d", len(prompts), half)
    return _as_fits(make, prompts[:half], seeds[:half]) + _as_fits(make, prompts[half:], seeds[half:])


@dataclass(frozen=True)
class Judges:
    """Who hears the clips.

    reward: selects.
    selection: by the "reward", or by its "lower-bound": the reward less the judge's uncertainty of it.
    side: other judges, by name, whose values stand beside and never select.
    embed: embeddings for the diversity of a prompt's clips.
    alone: judge clip by clip: a batch's rounding makes rewards of equal clips differ in the last bits.
    """

    reward: Reward
    selection: str = "reward"
    side: Mapping[str, Reward] = field(default_factory=dict)
    embed: Embed = log_mel_embedding
    alone: bool = False

    def __post_init__(self) -> None:
        if self.selection not in ("reward", "lower-bound"):
            raise InputError(f"selection is {self.selection!r}; expected 'reward' or 'lower-bound'")
        if self.selection == "lower-bound" and not isinstance(self.reward, UncertainReward):
            raise InputError("selection by lower-bound needs a judge with uncertainty(...), which this one has not")


@dataclass(frozen=True)
class Heard:
    """What judges made of a clip; a text instead of a value says why there is none.

    uncertainty is None where selection does not ask for it; side and embedding are those of final clips.
    """

    reward: float | str
    uncertainty: float | str | None = None
    side: Mapping[str, float | str] = field(default_factory=dict)
    embedding: Tensor | str | None = None


def judge_files(
    judges: Judges, load_audio: LoadAudio, paths: Sequence[Path], prompts: Sequence[str], *, draft: bool = False
) -> list[Heard]:
    """What the judges make of each audio file; a draft is heard by the reward alone.

    A file is read once. Neighbouring files of equal length and rate are judged in one call, and all judges get the very
    same tensor, so that judges with common parts may share their work.

    Raises:
        InputError: a judge is no callable of the agreed kind.
    """
    import torch

    heard: list[Heard] = [Heard("")] * len(paths)
    group: list[tuple[int, Tensor, int]] = []  # (place in the lists, wav [C, T], sample rate in Hz)

    def flush() -> None:
        if group:
            places = [place for place, _, _ in group]
            wav = torch.stack([clip for _, clip, _ in group])
            texts = [prompts[place] for place in places]
            for place, one in zip(places, _judge(judges, wav, group[0][2], texts, draft), strict=True):
                heard[place] = one
            group.clear()

    for place, path in enumerate(paths):
        try:
            wav, sample_rate = load_audio(path)
        except (ValueError, OSError) as error:
            heard[place] = Heard(one_line(error))
            continue
        fits = group and not judges.alone and group[0][1].shape == wav.shape and group[0][2] == sample_rate
        if not fits or (len(group) + 1) * wav.numel() > MAX_JUDGED_SAMPLES:
            flush()
        group.append((place, wav, sample_rate))
    flush()
    return heard


def _judge(judges: Judges, wav: Tensor, sample_rate: int, prompts: Sequence[str], draft: bool) -> list[Heard]:
    rewards = _values(judges.reward, wav, sample_rate, prompts)
    uncertain: list[Any] = [None] * len(wav)
    if judges.selection == "lower-bound":
        uncertain = _values(cast(UncertainReward, judges.reward).uncertainty, wav, sample_rate, prompts)
    if draft:
        return [Heard(reward, doubt) for reward, doubt in zip(rewards, uncertain, strict=True)]
    side = {name: _values(judge, wav, sample_rate, prompts) for name, judge in judges.side.items()}
    embeddings = _embeddings(judges.embed, wav, sample_rate)
    return [
        Heard(rewards[i], uncertain[i], {name: values[i] for name, values in side.items()}, embeddings[i])
        for i in range(len(wav))
    ]


def _values(judge: Reward, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> list[float | str]:
    def call(wav: Tensor, prompts: Sequence[str]) -> list[float | str]:
        rewards = judge(wav, sample_rate, prompts)
        if rewards.shape != (len(wav),):
            raise InputError(f"the reward returned shape {list(rewards.shape)} for {len(wav)} clips; expected [B]")
        # a Python float holds a float32 exactly: the record is the very reward
        values = [float(value) for value in rewards.detach().cpu()]
        return [value if math.isfinite(value) else f"the reward is {value}" for value in values]

    return _in_parts(call, wav, prompts)


def _embeddings(embed: Embed, wav: Tensor, sample_rate: int) -> list[Tensor | str]:
    """[E] of each clip, float32 on the CPU."""
    return _in_parts(lambda part, _: list(embed(part, sample_rate).float().cpu()), wav, [""] * len(wav))


def _in_parts(
    call: Callable[[Tensor, Sequence[str]], list[T | str]], wav: Tensor, prompts: Sequence[str]
) -> list[T | str]:
    """What `call` makes of a batch, halved while it does not fit the memory or holds a clip that is refused."""
    import torch

    try:
        with torch.no_grad():
            return call(wav, prompts)
    except (MemoryError, RuntimeError, ValueError) as error:
        # a ValueError is the judge refusing a clip: find out which one by judging fewer at once
        if not isinstance(error, ValueError) and not is_out_of_memory(error):
            raise
        problem = one_line(error)
    if len(wav) == 1:
        return [problem]
    half = len(wav) // 2
    return _in_parts(call, wav[:half], prompts[:half]) + _in_parts(call, wav[half:], prompts[half:])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the machine ran out of memory."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
