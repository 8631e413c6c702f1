"""What a family of diffusion pipelines says about itself; everything else is the same for all (see latent.py)."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignment.backbones.training import Noised
from alignment.interfaces import GenerationSettings, LearningDefaults


@dataclass(frozen=True)
class Traits:
    """What a family reads from its pipeline: Hz, channels, longest clip in s (may be infinite), its own settings."""

    sample_rate: int
    channels: int
    max_duration: float
    settings: GenerationSettings


def converted_scheduler(scheduler_class: Any, config: Mapping[str, Any], **missing: Any) -> Any:
    """A scheduler of another class with the values of `config`, and `missing` for what that does not say.

    `from_config` would replace every value that was a default of the old class by the new class's own default.
    """
    known = inspect.signature(scheduler_class.__init__).parameters
    return scheduler_class(**{**missing, **{name: config[name] for name in known if name in config}})


class DiffusionFamily(ABC):
    """The questions that sampling and training ask; `pipeline` is the loaded one."""

    pipeline_class: ClassVar[Any]
    sampler_class: ClassVar[Any]  # rebuilt for sampling: pipeline_class, or a version of it for prompts encoded before
    denoiser_name: ClassVar[str] = "transformer"
    lora_target_modules: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    # squared errors of two clips differ by thousandths: beta is of the order of their inverse. Of as many clips in all,
    # 10 of each of 48 prompts taught compact-flow more than 3 of each of 160; 7 fit three rounds into 45 minutes of two
    # slow cores
    learning: LearningDefaults = LearningDefaults(
        num_candidates=7, preference_beta=300.0, learning_rate=6.5e-4, num_steps=120, num_prompts=48
    )
    # how the pipeline calls its denoiser: places or names of the noisy latents and of the time
    sample_argument: ClassVar[int | str] = 0
    time_arguments: ClassVar[tuple[int | str, ...]] = (1,)
    # guided, it is called once with the batch twice: is the half without the prompt the first?
    unconditional_first: ClassVar[bool] = True

    pipeline: Any
    name: str
    sample_rate: int

    @abstractmethod
    def _traits(self) -> Traits: ...

    @abstractmethod
    def _noise_shape(self, duration: float) -> tuple[int, ...]:
        """Shape of one clip's noise as the pipeline lays it out, without the batch."""

    @abstractmethod
    def _encode(self, prompts: Sequence[str], duration: float) -> list[dict[str, Tensor]]:
        """Named tensors of each prompt, a batch of one, independent of the other prompts."""

    @abstractmethod
    def _arguments(
        self, sampler: Any, prompts: Sequence[str], encoded: Mapping[str, Tensor], settings: GenerationSettings
    ) -> dict[str, Any]:
        """Arguments of the pipeline's call for these prompts; `encoded` as from `_encode`, stacked to a batch."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """Final latents [B, D, L] -> wav [B, C, T], neither cut nor clamped."""

    @abstractmethod
    def _noised(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> Noised:
        """Latents in the pipeline's layout at times drawn from the CPU generator, one per clip."""

    def _from_pipeline(self, latents: Tensor) -> Tensor:
        """The pipeline's layout -> [B, D, L]."""
        return latents

    def _to_pipeline(self, latents: Tensor) -> Tensor:
        """[B, D, L] -> the pipeline's layout."""
        return latents

    def _deterministic_scheduler(self) -> Any | None:
        """Where the pipeline's scheduler draws noise between steps: one of the same parametrisation that does not."""
        return None

    def _can_be_guided(self) -> bool:
        return True

    def _calls_per_step(self, guidance_scale: float) -> int:
        return 1
