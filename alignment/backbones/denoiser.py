"""A denoiser whose activations are recomputed in the backward pass instead of kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as checkpointed


class CheckpointedDenoiser(nn.Module):
    """Stands where a pipeline expects its denoiser, for one run of the sampler.

    The scheduler keeps state between steps, so it stays outside of what is recomputed: only the denoiser's call is.
    Inputs that are equal in every step (the conditioning, which pipelines concatenate anew each time) are kept once.

    Args:
        module: the denoiser.
        scheduler: of the same run; its number of timesteps is known when the first call comes.
        checkpoint: recompute the calls in the backward pass.
        calls_per_step: how often the pipeline calls its denoiser in a step.
        backprop_last_steps: the outputs of all earlier steps are constants to the gradient; None: of no step.
        guided: a call holds the batch twice, with and without the prompt; the latents are then kept once.
    """

    def __init__(
        self,
        module: nn.Module,
        scheduler: Any,
        checkpoint: bool,
        calls_per_step: int,
        backprop_last_steps: int | None,
        guided: bool,
    ) -> None:
        super().__init__()
        self.module = module
        self._scheduler = scheduler
        self._checkpoint = checkpoint
        self._last_calls = None if backprop_last_steps is None else backprop_last_steps * calls_per_step
        self._calls_per_step = calls_per_step
        self._guided = guided
        self._calls = 0
        self._seen: dict[int | str, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        # config, dtype, device and the like are the denoiser's
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call, self._calls = self._calls, self._calls + 1
        if not torch.is_grad_enabled():
            return self.module(*args, **kwargs)
        total = len(self._scheduler.timesteps) * self._calls_per_step
        if self._last_calls is not None and call < total - self._last_calls:
            with torch.no_grad():
                return self.module(*args, **kwargs)
        if not self._checkpoint:
            return self.module(*args, **kwargs)
        inputs: dict[int | str, torch.Tensor] = {}  # what the gradient goes to
        constants: dict[int | str, Any] = {}
        twice: set[int | str] = set()
        arguments: list[tuple[int | str, Any]] = list(enumerate(args))
        arguments.extend(kwargs.items())
        for key, value in arguments:
            if not isinstance(value, torch.Tensor) or not value.requires_grad:
                constants[key] = self._share(key, value)
            elif self._guided and len(value) % 2 == 0 and torch.equal(*value.chunk(2)):
                inputs[key] = value[: len(value) // 2].clone()  # of the same latents with and without the prompt
                twice.add(key)
            else:
                inputs[key] = value
        places, names = range(len(args)), list(kwargs)

        def run(*tensors: torch.Tensor) -> Any:
            call = dict(constants)
            for key, tensor in zip(inputs, tensors, strict=True):
                call[key] = torch.cat([tensor, tensor]) if key in twice else tensor
            return self.module(*(call[place] for place in places), **{name: call[name] for name in names})

        # random numbers only matter to dropout, and their state is larger than a clip's latents
        random = self.module.training
        return checkpointed(run, *inputs.values(), use_reentrant=False, preserve_rng_state=random)

    def _share(self, key: int | str, value: Any) -> Any:
        """The tensor this argument was before, if it is equal: then the new copy is not kept."""
        if not isinstance(value, torch.Tensor):
            return value
        before = self._seen.get(key)
        if before is not None and (before is value or (before.shape == value.shape and torch.equal(before, value))):
            return before
        self._seen[key] = value
        return value
