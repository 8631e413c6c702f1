"""The contracts between drivers, backbones and judges, and the records that travel between them.

Drivers are written against these protocols alone: a judge is any callable `reward(wav, sample_rate, prompts)`, and
reading or writing audio files is a callable too, so that this package needs no particular judge and no audio library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


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


@dataclass(frozen=True)
class GenerationSettings:
    """What a backbone is asked for, with every default resolved.

    duration in seconds; a guidance_scale of 1 means no guidance.
    """

    duration: float
    num_inference_steps: int
    guidance_scale: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@runtime_checkable
class Backbone(Protocol):
    """A text-to-music model. A candidate is a function of (backbone, prompt, seed, settings) alone."""

    name: str
    license: str
    sample_rate: int
    channels: int
    defaults: GenerationSettings

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


@runtime_checkable
class LatentBackbone(Backbone, Protocol):
    """A backbone whose clips start from Gaussian latents that a caller may look at and change."""

    def initial_latents(self, seeds: Sequence[int], duration: float | None = None) -> torch.Tensor:
        """The noise [B, D, L] that `generate` starts from for these seeds, float32 on the CPU."""
        ...


@dataclass(frozen=True)
class Prompt:
    """One request. `prompt_id` is unique in its file and need not be a safe file name (see `file_stem`)."""

    prompt_id: str
    prompt: str


@dataclass(frozen=True)
class ExistingClip:
    """An audio file made elsewhere, to be ranked among the clips of the same prompt."""

    prompt_id: str
    prompt: str
    path: Path


@dataclass(frozen=True)
class Candidate:
    """One line of candidates.jsonl.

    reward is None where `error` says why, and for a candidate that a strategy gave up after its drafts. path is
    relative to the output directory (absolute for audio made elsewhere) and None where there is no file: a failed or
    given-up candidate, or a loser removed by keep="best".
    """

    prompt_id: str
    prompt: str
    candidate: int
    seed: int | None
    reward: float | None
    path: str | None
    error: str | None = None
    uncertainty: float | None = None
    """Standard deviation of the reward, where it was asked for."""
    side: dict[str, float | None] | None = None
    """What other judges say, by name; never used for selection."""
    draft_rewards: list[float | None] | None = None
    """By stage, as far as the candidate got; None for a draft that failed."""

    def to_dict(self) -> dict[str, Any]:
        record = asdict(self)
        optional = ("error", "uncertainty", "side", "draft_rewards")
        return {key: value for key, value in record.items() if value is not None or key not in optional}
