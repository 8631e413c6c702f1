"""The contracts between what trains and the backbones that can learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from alignment.interfaces import Backbone, Reward
from alignment.records import Conditioning, LearningDefaults

if TYPE_CHECKING:
    import torch

__all__ = ["LearningDefaults", "TokenBackbone", "TrainableBackbone"]


@runtime_checkable
class TrainableBackbone(Backbone, Protocol):
    """A backbone that can learn its own clips, with adapters on one of its modules."""

    # of modules in `trainable_module`: names or ends of names, or one regular expression for whole names
    lora_target_modules: Sequence[str]
    learning: LearningDefaults

    @property
    def trainable_module(self) -> torch.nn.Module:
        """What adapters are put on; assign the wrapped module to use it."""
        ...

    @trainable_module.setter
    def trainable_module(self, module: torch.nn.Module) -> None: ...

    def generate_targets(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> torch.Tensor:
        """What is learned of the clips that `generate` makes for these seeds, on the CPU."""
        ...

    def decode_targets(self, targets: torch.Tensor, duration: float | None = None) -> torch.Tensor:
        """Their sound, wav [B, C, T] on the CPU in [-1, 1]: `generate`'s."""
        ...

    def clip_losses(
        self,
        targets: torch.Tensor,
        prompts: Sequence[str] | Conditioning,
        generator: torch.Generator | Sequence[torch.Generator],
        duration: float | None = None,
        *,
        condition_dropout: float = 0.1,
    ) -> torch.Tensor:
        """The family's own training loss of each clip [B].

        generator: on the CPU; everything random in the loss comes from it. One for each clip, and a clip's loss does
            not depend on its batch.
        condition_dropout: probability with which a clip is learned without its prompt, as guidance needs.
        """
        ...

    def preference_losses(
        self,
        targets: torch.Tensor,
        prompts: Sequence[str] | Conditioning,
        generator: torch.Generator | Sequence[torch.Generator],
        duration: float | None = None,
        *,
        condition_dropout: float = 0.1,
        guidance_scale: float | None = None,
    ) -> torch.Tensor:
        """What stands for minus the log-likelihood of each clip [B] where one is preferred to another.

        guidance_scale: that the clips were drawn with; None for the default.
        The rest is as for `clip_losses`, which this is for families whose likelihood with guidance is not known.
        """
        ...

    def save_pretrained(self, directory: Path) -> None:
        """Write the model in its own libraries' layout; an adapter must have been merged before."""
        ...


@runtime_checkable
class TokenBackbone(TrainableBackbone, Protocol):
    """A backbone that draws tokens, and whose codec lets a reward's gradient through to them."""

    def token_credits(
        self, targets: torch.Tensor, prompts: Sequence[str], reward: Reward, duration: float | None = None
    ) -> torch.Tensor:
        """By how much each clip's reward would change, to first order, with another token in one place.

        reward: differentiable to its clips.
        Returns [B, K, S, V], without gradient: 0 for the token that is there, and where none is drawn.

        Raises:
            InputError: the reward has no gradient.
        """
        ...

    def token_log_probabilities(
        self, targets: torch.Tensor, prompts: Sequence[str], *, guidance_scale: float | None = None
    ) -> torch.Tensor:
        """Of every token, [B, K, S, V] in the order of `token_credits`, as they are drawn with this guidance and the
        default temperature; constant where none is drawn.
        """
        ...
