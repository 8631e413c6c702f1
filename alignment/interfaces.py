"""The contracts between drivers, backbones and judges; the records that travel between them are taken from here too.

Drivers are written against these protocols alone: a judge is any callable `reward(wav, sample_rate, prompts)`, and
reading or writing audio files is a callable too, so that this package needs no particular judge and no audio library.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from alignment.records import (
    Candidate,
    Conditioning,
    ExistingClip,
    GenerationSettings,
    LearningDefaults,
    Prompt,
    TokenSettings,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "Backbone",
    "Candidate",
    "Conditioning",
    "ContinuingBackbone",
    "DraftingBackbone",
    "Embed",
    "ExistingClip",
    "GenerationSettings",
    "LatentBackbone",
    "LearningDefaults",
    "LoadAudio",
    "Processes",
    "Prompt",
    "Reward",
    "SaveAudio",
    "TokenSettings",
    "UncertainReward",
    "Writing",
]


class Reward(Protocol):
    """Judges clips: higher is better."""

    def __call__(self, wav: torch.Tensor, sample_rate: int, prompts: Sequence[str], /) -> torch.Tensor:
        """
        Args:
            wav: float32 [B, C, T] in [-1, 1].
            sample_rate: of `wav`, in Hz.
            prompts: B texts; "" where there is none.

        Returns:
            rewards [B].
        """
        ...


@runtime_checkable
class UncertainReward(Reward, Protocol):
    """A judge that also says how sure it is."""

    def uncertainty(self, wav: torch.Tensor, sample_rate: int, prompts: Sequence[str], /) -> torch.Tensor:
        """Standard deviation [B] of the rewards of these clips, in units of the reward."""
        ...


class Embed(Protocol):
    def __call__(self, wav: torch.Tensor, sample_rate: int, /) -> torch.Tensor:
        """Embeddings [B, E] of clips wav [B, C, T]; close ones sound alike. For diversity, never to select."""
        ...


class Processes(Protocol):
    """The processes of a run, with the names of accelerate's PartialState, which is one."""

    @property
    def num_processes(self) -> int: ...

    @property
    def process_index(self) -> int: ...


class LoadAudio(Protocol):
    def __call__(self, path: Path, /) -> tuple[torch.Tensor, int]:
        """Read a file as (wav float32 [C, T], sample rate in Hz); a ValueError or OSError says what is wrong."""
        ...


class SaveAudio(Protocol):
    def __call__(self, path: Path, wav: torch.Tensor, sample_rate: int, /) -> object:
        """Write wav [C, T] at `sample_rate` Hz, atomically."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """A text-to-music model. A candidate is a function of (backbone, prompt, seed, settings) alone."""

    name: str
    license: str
    sample_rate: int
    channels: int

    @property
    def defaults(self) -> GenerationSettings: ...

    def resolve(
        self,
        duration: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> GenerationSettings:
        """Fill in the backbone's own defaults and check the values; InputError for one it cannot do."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> torch.Tensor:
        """One clip per (prompt, seed): wav float32 [B, C, T] on the CPU, in [-1, 1].

        Raises:
            NonFiniteAudioError: some clips are not finite; it names their seeds and prompts.
        """
        ...


@runtime_checkable
class DraftingBackbone(Backbone, Protocol):
    """A backbone that says how its clips are foretold cheaply. For one without these methods fewer denoising steps are
    taken (see `alignment.strategies.draft_settings`).
    """

    def draft_settings(self, settings: GenerationSettings) -> Sequence[GenerationSettings]:
        """Settings whose clips foretell those of `settings` for the same prompt and seed, cheapest first: fewer steps
        for diffusion, a shorter duration for a model that writes from left to right. Empty where there are none.
        """
        ...

    def cost(self, settings: GenerationSettings) -> float:
        """Evaluations of the network (denoiser or decoder) for one clip."""
        ...


class Writing(Protocol):
    """Clips that are being written from their start on."""

    def extend(self, duration: float, /) -> torch.Tensor:
        """Write until `duration` seconds: wav [B, C, T] from the start on, as `generate` makes it.

        Raises:
            NonFiniteAudioError: as `generate`.
        """
        ...

    def written(self) -> list[torch.Tensor]:
        """What there is of each clip so far, on the CPU: `begin` goes on from it."""
        ...


@runtime_checkable
class ContinuingBackbone(DraftingBackbone, Protocol):
    """A backbone whose drafts are the beginnings of its clips, and need not be made again to go on."""

    def begin(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: Any = None,
        written: Sequence[torch.Tensor | None] | None = None,
    ) -> Writing:
        """The clips of `generate`, from their start or from what was `written` of each for the same prompt and seed."""
        ...


@runtime_checkable
class LatentBackbone(Backbone, Protocol):
    """A backbone whose clips start from Gaussian latents that a caller may look at and change."""

    def initial_latents(self, seeds: Sequence[int], duration: float | None = None) -> torch.Tensor:
        """The noise [B, D, L] that `generate` starts from for these seeds, float32 on the CPU."""
        ...

    def encode_prompts(self, prompts: Sequence[str], duration: float | None = None) -> Conditioning:
        """What `render` needs of the prompts, so that it is computed once."""
        ...

    def render(
        self,
        initial_latents: torch.Tensor,
        prompts: Sequence[str] | Conditioning,
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seeds: Sequence[int] | None = None,
        checkpoint: bool = True,
        backprop_last_steps: int | None = None,
    ) -> torch.Tensor:
        """Clips [B, C, T] from latents [B, D, L], differentiable to the latents, not clamped.

        seeds: where the family's sampler draws noise between steps, draw it from these seeds, as `generate` does; None
        takes a deterministic sampler instead, through which the gradient to the latents survives.
        checkpoint: keep no activations of the denoiser and the decoder for the backward pass, recompute them.
        backprop_last_steps: take the denoiser's outputs in all earlier steps as constants.

        Raises:
            InputError: shapes, numbers or settings that do not fit.
        """
        ...
