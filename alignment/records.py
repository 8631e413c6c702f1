"""The records that travel between drivers, backbones and judges; users take them from `alignment.interfaces`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Objective = Literal["gradient", "preference", "likelihood"]


@dataclass(frozen=True)
class GenerationSettings:
    """What a backbone is asked for, with every default resolved.

    duration in seconds; num_inference_steps is None for a backbone that has no denoising steps; a guidance_scale of 1
    means no guidance.
    """

    duration: float
    num_inference_steps: int | None
    guidance_scale: float

    def to_dict(self) -> dict[str, Any]:
        """The settings that mean something to the backbone, as JSON values."""
        values = asdict(self)
        if self.num_inference_steps is None:
            del values["num_inference_steps"]
        return values


@dataclass(frozen=True)
class TokenSettings(GenerationSettings):
    """Settings of a backbone that draws audio tokens one after the other.

    Logits are divided by `temperature`; then the `top_k` most probable tokens stay (0: all), and of those the fewest
    whose probabilities reach `top_p` (1: all).
    """

    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Conditioning:
    """Prompts as a denoiser hears them, encoded once for any number of renders.

    `encoded` maps each distinct prompt to the backbone's own named tensors, a batch of one each, on its device.
    `duration`, in seconds, is part of it: some families are told the length in the text.
    """

    prompts: tuple[str, ...]
    duration: float
    encoded: Mapping[str, Mapping[str, torch.Tensor]]

    def select(self, rows: Sequence[int]) -> Conditioning:
        """The conditioning of some of the prompts, in the order of `rows`."""
        return Conditioning(tuple(self.prompts[row] for row in rows), self.duration, self.encoded)

    def batches(self) -> list[tuple[list[int], dict[str, torch.Tensor]]]:
        """(rows, their tensors as one batch) for each set of rows whose prompts have equally many tokens.

        Padding a short prompt to its longest neighbour would let the neighbour be heard: some families do not mask it.
        """
        import torch

        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, prompt in enumerate(self.prompts):
            shapes = tuple((name, tuple(tensor.shape)) for name, tensor in self.encoded[prompt].items())
            groups.setdefault(shapes, []).append(row)
        batches = []
        for rows in groups.values():
            tensors = [self.encoded[self.prompts[row]] for row in rows]
            batches.append((rows, {name: torch.cat([each[name] for each in tensors]) for name in tensors[0]}))
        return batches


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


@dataclass(frozen=True)
class LearningDefaults:
    """What expert iteration takes for a family where it is not told."""

    num_candidates: int
    """Of each training prompt in a round."""
    preference_beta: float
    """DPO's beta, for the family's `preference_losses` and in their unit."""
    learning_rate: float
    num_steps: int
    """Of training in a round."""
    num_evaluation_seeds: int = 4
    """Of each held-out prompt: enough to tell a prompt's gain from the chance of its draws."""
    batch_size: int = 8
    """Clips generated and judged at once."""
    num_prompts: int | None = None
    """Of the training prompts that the recipe ships, the first so many; None for all."""
    objective: Objective = "preference"
    """What is learned of the experts; see `FineTuningConfig`."""
    kl_weight: float | None = None
    """Of families that draw tokens; see `FineTuningConfig`."""
