"""The loss with which a diffusion family learns clips, by its own definition of noise, time and target.

The conditioning is what the pipeline itself gives its denoiser: the pipeline runs one step around a module that takes
notes, so training hears exactly what sampling hears, with and without the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

Call = dict[int | str, Any]  # the arguments of one call of a denoiser, by position or name


@dataclass(frozen=True)
class Noised:
    """noisy [B, ...], the target of the denoiser's output for it [B, ...], and the time it is told [B]."""

    noisy: Tensor
    target: Tensor
    time: Tensor


def flow_matching(clean: Tensor, noise: Tensor, sigma: Tensor) -> Noised:
    """x = (1 - sigma) x0 + sigma n, target velocity n - x0 (Liu et al., arXiv 2209.03003); sigma [B] in [0, 1]."""
    return Noised(torch.lerp(clean, noise, _spread(sigma, clean)), noise - clean, sigma)


def reversed_flow_matching(clean: Tensor, noise: Tensor, sigma: Tensor) -> Noised:
    """As `flow_matching` where time runs from noise at 0 to data at 1."""
    return Noised(torch.lerp(clean, noise, _spread(sigma, clean)), clean - noise, 1 - sigma)


def cosine_v_prediction(clean: Tensor, noise: Tensor, time: Tensor) -> Noised:
    """x = a x0 + s n, target v = a n - s x0 (Salimans and Ho, arXiv 2202.00512); a, s = cos, sin of time * pi / 2."""
    alpha, sigma = _spread((time * (math.pi / 2)).cos(), clean), _spread((time * (math.pi / 2)).sin(), clean)
    return Noised(alpha * clean + sigma * noise, alpha * noise - sigma * clean, time)


def discrete_diffusion(clean: Tensor, noise: Tensor, time: Tensor, scheduler: Any) -> Noised:
    """The scheduler's own training steps and prediction type (Ho et al., arXiv 2006.11239); time [B] in [0, 1)."""
    steps = (time * scheduler.config.num_train_timesteps).long()
    retained = scheduler.alphas_cumprod.to(clean.device)[steps]
    alpha, sigma = _spread(retained.sqrt(), clean), _spread((1 - retained).sqrt(), clean)
    targets = {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}
    return Noised(alpha * clean + sigma * noise, targets[scheduler.config.prediction_type], steps)


def _spread(per_row: Tensor, like: Tensor) -> Tensor:
    return per_row.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class NoteTaker(nn.Module):
    """Stands where a pipeline expects its denoiser, keeps what it is called with, and answers zeros."""

    def __init__(self, module: nn.Module, sample: int | str) -> None:
        super().__init__()
        self.module = module
        self.calls: list[Call] = []
        self._sample = sample

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call: Call = dict(enumerate(args))
        for name, value in kwargs.items():
            call[name] = value
        self.calls.append(call)
        zeros = torch.zeros_like(call[self._sample])
        return SimpleNamespace(sample=zeros) if kwargs.get("return_dict", True) else (zeros,)


def split_guidance(calls: Sequence[Call], size: int, unconditional_first: bool) -> tuple[Call, Call]:
    """(with the prompt, without it), from the calls of one guided step: two, or one of twice the batch of `size`."""
    if len(calls) == 2:
        return calls[0], calls[1]
    halves: list[Call] = [dict(calls[0]), dict(calls[0])]
    for key, value in calls[0].items():
        if isinstance(value, Tensor) and value.ndim and len(value) == 2 * size:
            halves[0][key], halves[1][key] = value.chunk(2)
    return (halves[1], halves[0]) if unconditional_first else (halves[0], halves[1])


def choose(dropped: Tensor, conditional: Call, unconditional: Call) -> Call:
    """Row by row, the arguments without the prompt where `dropped` [B] says so."""
    chosen = dict(conditional)
    for key, value in conditional.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == len(dropped):
            mask = dropped.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
            chosen[key] = torch.where(mask, unconditional[key], value)
    return chosen


def predict(denoiser: nn.Module, call: Call, replaced: Mapping[int | str, Tensor]) -> Tensor:
    """The denoiser's output [B, ...] for a noted call with some arguments replaced."""
    arguments: Call = {**call, **replaced}
    positional = [arguments.pop(index) for index in range(sum(isinstance(key, int) for key in call))]
    output = denoiser(*positional, **{str(name): value for name, value in arguments.items()})
    result: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return result
