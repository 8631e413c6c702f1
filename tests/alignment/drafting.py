"""A toy backbone with drafts, and best-of-N over it, for the tests of strategies and of judges that stand beside."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.best_of_n import BestOfNConfig, BestOfNResult, best_of_n
from alignment.interfaces import GenerationSettings, Prompt
from alignment.runs import RESULTS, RunDirectory

PROMPTS = [Prompt("a", "calm piano"), Prompt("b/c", "fast drums"), Prompt("c", "harp")]
AudioIO = dict[str, Callable[..., Any]]
FINAL = GenerationSettings(0.1, 16, 1.0)


class Drafting:
    """A toy whose drafts foretell the clip (as much as `told` says), which counts what it makes at which steps."""

    name, license, sample_rate, channels = "toy", "CC0-1.0", 8_000, 1
    defaults = FINAL

    def __init__(self, told: float = 1.0) -> None:
        self.told = told
        self.made: list[tuple[int, list[tuple[str, int]]]] = []
        self.dies_at: int | None = None

    def resolve(self, duration: Any = None, num_inference_steps: Any = None, guidance_scale: Any = None) -> Any:
        return GenerationSettings(0.1, num_inference_steps or 16, guidance_scale or 1.0)

    def draft_settings(self, settings: GenerationSettings) -> Sequence[GenerationSettings]:
        steps = settings.num_inference_steps
        return [dataclasses.replace(settings, num_inference_steps=n) for n in (2, 4) if steps and n < steps]

    def cost(self, settings: GenerationSettings) -> float:
        return float(settings.num_inference_steps or 1)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], duration: Any = None, **asked: Any) -> Tensor:
        if self.dies_at == len(self.made):
            raise KeyboardInterrupt
        steps = asked["num_inference_steps"]
        pairs = list(zip(prompts, seeds, strict=True))
        self.made.append((steps, pairs))
        return torch.stack([torch.full((1, 800), self.level(p, s, steps)) for p, s in pairs])

    def level(self, prompt: str, seed: int, steps: int) -> float:
        def hashed(salt: int) -> float:
            generator = torch.Generator().manual_seed(sum(map(ord, prompt)) * 100_000 + seed * 100 + salt)
            return float(torch.rand((), generator=generator))

        told = self.told if steps < 16 else 1.0
        return told * hashed(0) + (1 - told) * hashed(steps)


def draw(
    path: Path, backbone: Any, reward: Any, audio_io: AudioIO, config: BestOfNConfig, **more: Any
) -> BestOfNResult:
    settings = {**dataclasses.asdict(config), "prompts": [[p.prompt_id, p.prompt] for p in PROMPTS]}
    with RunDirectory(path, "best_of_n", settings) as run:
        return best_of_n(backbone, reward, PROMPTS, config, run, **audio_io, **more)


def results_of(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((path / RESULTS).read_text())
    del results["seconds"]
    return results
