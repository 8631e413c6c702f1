"""What an adapter minimises: the loss of a few clips of a lesson.

Learning the best of one's own clips by their likelihood moves a model by all they happen to have in common, of which
the reward is little. A denoiser's are set against the worst of their prompt: with l a family's own loss of a clip, now
and as training began (ref), both for the same noise and times, a pair's loss is
-log sigmoid(beta * ((l_ref - l)(expert) - (l_ref - l)(counterexample))). It is Diffusion-DPO (Wallace et al., arXiv
2311.12908, equation 14) for diffusion and flows, and DPO (Rafailov et al., arXiv 2305.18290, equation 7), by the mean
over tokens, for language models.

A language model writes thousands of tokens in a clip, and one number for all of them says next to nothing of any. But
the reward's gradient says of every token of the vocabulary, at each step of an expert, what it would do to the reward
to first order: A(v). The loss of a clip is -sum over steps of sum_v (p - p_ref)(v) A(v), the rise of the reward that is
expected of the change from p_ref, plus `kl_weight` times the sum of KL(p || p_ref), where p_ref is what training began
with. The expectation is over all actions, not the drawn one, as in Mean Actor-Critic (Allen et al., arXiv 1709.00503);
the critic is Taylor's expansion, as in MuProp (Gu et al., arXiv 1511.05176); the divergence is that of KL control
(Jaques et al., arXiv 1611.02796).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from alignment.interfaces import LatentBackbone
from alignment.learners import TokenBackbone, TrainableBackbone
from alignment.lessons import FineTuningConfig, Lesson, resolved
from alignment.lora import adapter_parameters

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class LessonLosses:
    """The loss of any clips of a lesson, whatever batch, part or process they are in.

    Args:
        backbone: with the adapter as training begins.
        seed: of the noise and times.
    """

    def __init__(self, backbone: TrainableBackbone, lesson: Lesson, config: FineTuningConfig, seed: int) -> None:
        self.backbone, self.lesson, self.config, self.seed = backbone, lesson, config, seed
        self.parameters = adapter_parameters(backbone)
        self.reference = {name: each.detach().clone() for name, each in self.parameters.items()}
        self.preference_beta = resolved("preference_beta", config, backbone.learning)
        self.kl_weight = resolved("kl_weight", config, backbone.learning)
        self.autocast = _autocast(next(iter(self.parameters.values())).device, config.mixed_precision)
        # encoded once, not in every step
        self.conditioning = (
            backbone.encode_prompts(lesson.prompts, lesson.duration) if isinstance(backbone, LatentBackbone) else None
        )

    def __call__(self, step: int, rows: Sequence[int], places: Sequence[int]) -> Tensor:
        """Mean loss of the clips `rows`, which are at `places` of the batch of a step."""
        import torch
        from torch.nn.functional import logsigmoid

        lesson = self.lesson
        if lesson.reward is not None:
            return self._gradient_losses(rows).mean()
        if lesson.counterexamples is None:
            own = self.backbone.clip_losses
            return self._losses(own, lesson.targets[torch.tensor(rows)], rows, step, places).mean()
        drawn_with = partial(self.backbone.preference_losses, guidance_scale=lesson.guidance_scale)
        both = torch.cat([each[torch.tensor(rows)] for each in (lesson.targets, lesson.counterexamples)])
        with torch.no_grad(), self._as_at_the_start():
            reference = self._losses(drawn_with, both, rows, step, places)
        expert, other = (reference - self._losses(drawn_with, both, rows, step, places)).chunk(2)
        return -logsigmoid(self.preference_beta * (expert - other)).mean()

    def _gradient_losses(self, rows: Sequence[int]) -> Tensor:
        """Losses of clips [B], in rewards."""
        import torch

        from alignment.backbones.token_credit import rise_and_divergence

        lesson, backbone = self.lesson, self.backbone
        assert lesson.reward is not None and isinstance(backbone, TokenBackbone)
        targets, prompts = lesson.targets[torch.tensor(rows)], [lesson.prompts[row] for row in rows]
        credits = backbone.token_credits(targets, prompts, lesson.reward, lesson.duration)
        guidance = {"guidance_scale": lesson.guidance_scale}
        with torch.no_grad(), self._as_at_the_start(), self.autocast:
            reference = backbone.token_log_probabilities(targets, prompts, **guidance)
        with self.autocast:
            now = backbone.token_log_probabilities(targets, prompts, **guidance)
        rise, divergence = rise_and_divergence(now, reference, credits)
        return self.kl_weight * divergence - rise

    def _losses(
        self, losses: Callable[..., Tensor], targets: Tensor, rows: Sequence[int], step: int, places: Sequence[int]
    ) -> Tensor:
        """Losses of clips [B or 2 B, ...]; the counterexamples share the noise, times and dropped prompts of theirs."""
        import torch

        times = len(targets) // len(rows)
        rows, places = list(rows) * times, list(places) * times
        heard = [self.lesson.prompts[row] for row in rows] if self.conditioning is None else None
        with self.autocast:
            return losses(
                targets,
                heard if self.conditioning is None else self.conditioning.select(rows),
                [torch.Generator().manual_seed(mixed_seed(self.seed, step, place)) for place in places],
                self.lesson.duration,
                condition_dropout=self.config.condition_dropout,
            )

    @contextmanager
    def _as_at_the_start(self) -> Iterator[None]:
        now = {name: each.data for name, each in self.parameters.items()}
        try:
            for name, each in self.parameters.items():
                each.data = self.reference[name]
            yield
        finally:
            for name, each in self.parameters.items():
                each.data = now[name]


def mixed_seed(*parts: object) -> int:
    """A seed that is a hash of some numbers or words."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def _autocast(device: torch.device, precision: str) -> Any:
    import torch

    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "no" or (precision == "auto" and not able):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
