"""Toys with which the logic of a driver can be seen: clips and rewards that say where they come from."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from alignment.backbones.known import FAMILIES
from alignment.errors import InputError, NonFiniteAudioError
from alignment.interfaces import GenerationSettings


class ToyBackbone:
    """A constant clip per (prompt, seed), whose level is a hash of both; what it is asked for is counted."""

    name, license, sample_rate, channels = "toy", "CC0-1.0", 8_000, 1
    defaults = GenerationSettings(0.1, 1, 1.0)

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, int]]] = []
        self.not_finite: set[tuple[str, int]] = set()
        self.fits = 10**9  # clips at once
        self.dies_at: int | None = None  # index of the batch in which the process dies

    def resolve(
        self,
        duration: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> GenerationSettings:
        if duration is not None and duration > 4:
            raise InputError("duration is too long")
        return GenerationSettings(duration or 0.1, num_inference_steps or 1, guidance_scale or 1.0)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        if self.dies_at == len(self.batches):
            raise KeyboardInterrupt
        if len(prompts) > self.fits:
            raise torch.OutOfMemoryError("toy out of memory")
        pairs = list(zip(prompts, seeds, strict=True))
        self.batches.append(pairs)
        wav = torch.stack([torch.full((1, 800), self.level(prompt, seed)) for prompt, seed in pairs])
        failures = {i: f"not finite for seed {p[1]}" for i, p in enumerate(pairs) if p in self.not_finite}
        if failures:
            wav[list(failures)] = math.nan
            raise NonFiniteAudioError(failures, wav)
        return wav

    @staticmethod
    def level(prompt: str, seed: int) -> float:
        return (sum(map(ord, prompt)) * 31 + seed * 7919) % 997 / 1000


def toy_reward(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
    """The level of the clip: its mean."""
    assert wav.ndim == 3 and len(prompts) == len(wav)
    return wav.mean(dim=(1, 2))


def save_audio(path: Path, wav: Tensor, sample_rate: int) -> None:
    soundfile.write(path, wav.T.numpy(), sample_rate, subtype="PCM_24")


def load_audio(path: Path) -> tuple[Tensor, int]:
    try:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError) as error:
        raise ValueError(f"{path} is no audio: {error}") from None
    return torch.from_numpy(samples.T.copy()), sample_rate


@pytest.fixture
def toy_backbone() -> ToyBackbone:
    return ToyBackbone()


@pytest.fixture(scope="session")
def audio_io() -> dict[str, Callable[..., Any]]:
    return {"save_audio": save_audio, "load_audio": load_audio}


@pytest.fixture(scope="session")
def reward() -> Callable[..., Tensor]:
    return toy_reward


def wrap_pipeline(pipeline: Any, **defaults: Any) -> Any:
    """The backbone of a pipeline's family, with settings that run in a moment."""
    module, name = FAMILIES[type(pipeline).__name__].split(":")
    family = getattr(importlib.import_module(module), name)
    settings = {"duration": 0.512, "num_inference_steps": 3, "guidance_scale": 2.0, **defaults}
    return family(pipeline, name="tiny", license="Apache-2.0", defaults=settings)


@pytest.fixture(scope="session")
def wrap() -> Callable[..., Any]:
    return wrap_pipeline


LATENT_FAMILIES = {
    "stable-audio-3": ("stable-audio-3", {}),
    "compact": ("stable-audio-3", {"compact": True}),
    "ping-pong": ("stable-audio-3", {"stochastic_sampling": True}),
    "stable-audio": ("stable-audio", {}),
    "ace-step": ("ace-step", {}),
    "longcat": ("longcat", {}),
    "audioldm2": ("audioldm2", {}),
}


@pytest.fixture(scope="session", params=LATENT_FAMILIES.values(), ids=LATENT_FAMILIES.keys())
def latent_backbone(request: pytest.FixtureRequest, make_pipeline: Callable[..., Any]) -> Any:
    """A tiny backbone of each family whose clips start from latents."""
    family, settings = request.param
    return wrap_pipeline(make_pipeline(family, **settings))
