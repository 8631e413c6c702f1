"""What an adapter is to learn, and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from alignment.errors import InputError
from alignment.interfaces import Reward
from alignment.learners import TokenBackbone, TrainableBackbone
from alignment.records import LearningDefaults, Objective

if TYPE_CHECKING:
    from torch import Tensor


OBJECTIVES: tuple[str, ...] = get_args(Objective)


class DivergedError(RuntimeError):
    """The loss or its gradient is not finite: one line that says where."""


@dataclass(frozen=True)
class FineTuningConfig:
    """How an adapter learns: AdamW, a linear warm-up, then a constant rate."""

    objective: Objective | None = None
    """What is learned of the experts: gradient, what the reward's gradient says of each of their tokens, for language
    models; preference, to prefer each to the worst clip of its prompt; likelihood, the experts by themselves. None for
    the family's own."""
    kl_weight: float | None = None
    """With objective gradient: how much reward a nat (of a clip's tokens) away from where the round began has to bring;
    None for the family's own."""
    preference_beta: float | None = None
    """With objective preference: how sharply an expert is preferred (DPO's beta, for the family's own loss); None for
    the family's own."""
    num_steps: int | None = None
    """Of the optimizer in a round; None for the family's own default."""
    train_batch_size: int = 8
    """Clips in a step, over all processes."""
    gradient_accumulation_steps: int = 1
    """Parts a process cuts its share of a batch into; doubled where a part does not fit the memory."""
    warmup_steps: int = 10
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.98
    """Of the average over steps that becomes the adapter; lower at the start: (1 + step) / (10 + step)."""
    condition_dropout: float = 0.1
    """Of the clips that are learned without their prompt, as guidance needs; MusicGen's preferences and gradients,
    which are of guided clips, leave none out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """auto: bf16 on a GPU that has it."""
    checkpoint_every: int = 25
    """Steps between two states on the disk."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "train_batch_size", "gradient_accumulation_steps", "checkpoint_every"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise InputError(f"{name} is {count}; expected at least 1")
        if self.objective not in (None, *OBJECTIVES):
            raise InputError(f"objective is {self.objective!r}; expected one of {', '.join(OBJECTIVES)}")
        if self.preference_beta is not None and not 0 < self.preference_beta < math.inf:
            raise InputError(
                f"preference_beta is {self.preference_beta}; expected a finite number above 0; "
                "objective likelihood learns the experts by themselves"
            )
        if self.kl_weight is not None and not 0 <= self.kl_weight < math.inf:
            raise InputError(f"kl_weight is {self.kl_weight}; expected a finite number of at least 0")
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps is {self.warmup_steps}; expected at least 0")
        if not 0 <= self.weight_decay < math.inf or not 0 < self.max_grad_norm:
            raise InputError("weight_decay is expected to be at least 0, and max_grad_norm above 0")
        for name in ("ema_decay", "condition_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number from 0 to below 1")
        if self.mixed_precision not in ("auto", "no", "bf16"):
            raise InputError(f"mixed_precision is {self.mixed_precision!r}; expected auto, no or bf16")


def resolved(name: str, config: FineTuningConfig, learning: LearningDefaults) -> Any:
    """The setting of this name: what was asked for, or the family's own."""
    asked = getattr(config, name)
    return getattr(learning, name) if asked is None else asked


def check_objective(backbone: TrainableBackbone, config: FineTuningConfig, num_candidates: int) -> None:
    """
    Raises:
        InputError: the backbone cannot learn this way, or from so few candidates of a prompt.
    """
    objective = resolved("objective", config, backbone.learning)
    if objective == "gradient" and not isinstance(backbone, TokenBackbone):
        raise InputError(
            f"{backbone.name} draws no tokens for objective gradient to judge; expected preference or likelihood"
        )
    if objective == "preference" and num_candidates == 1:
        raise InputError(
            "num_candidates is 1; expected at least 2, an expert and what it is preferred to, or objective likelihood"
        )


@dataclass(frozen=True)
class Lesson:
    """What is learned: targets [N, ...] as `generate_targets` gives them, their N prompts, seconds of a clip, what each
    is to be preferred to, [N, ...] too, the guidance of the drawing, and a reward whose gradient judges their tokens.
    Without counterexamples and reward the targets are learned by themselves.
    """

    targets: Tensor
    prompts: Sequence[str]
    duration: float
    counterexamples: Tensor | None = None
    guidance_scale: float | None = None
    reward: Reward | None = None
