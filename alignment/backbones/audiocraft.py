"""audiocraft's own MusicGen, for checkpoints that exist only in its format.

Its sampling loop runs as it is, asked for the best token at each step. A hook on the language model, which is torch's
own, does the guidance and adds each candidate's noise to the logits: the best token then is a draw, and depends on the
candidate's seed alone. audiocraft is imported when a model is loaded; see requirements/audiocraft.txt.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alignment.backbones.requests import check_pairs, finished, shorter, token_settings
from alignment.backbones.token_draws import gumbel_noise, perturb
from alignment.interfaces import GenerationSettings, TokenSettings

# stands for minus infinity where audiocraft takes the difference of two of them
_IMPOSSIBLE = -1e9


class AudiocraftBackbone:
    """A `Backbone` around audiocraft's MusicGen.

    Args:
        model: audiocraft.models.MusicGen.
        name: what results call it.
        license: of its weights.
        defaults: any of duration (s), guidance_scale, temperature, top_k and top_p; the rest falls back to 10 s and
            audiocraft's guidance 3, temperature 1 and 250 most probable tokens.

    Raises:
        InputError: `defaults` holds something impossible.
    """

    # beyond the length it was trained on the model goes on from the end of what it wrote
    max_duration = math.inf

    def __init__(self, model: Any, *, name: str, license: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.model, self.name, self.license = model, name, license
        self.sample_rate, self.channels = int(model.sample_rate), int(model.audio_channels)
        self.defaults = TokenSettings(min(10.0, float(model.max_duration)), None, 3.0, 1.0, 250, 1.0)
        known = {key: value for key, value in (defaults or {}).items() if key in self.defaults.to_dict()}
        self.defaults = self.resolve(**known)

    @staticmethod
    def load_model(source: str, device: torch.device) -> Any:
        """What `MusicGen.get_pretrained` makes of a hub id, a folder of its checkpoints, or "debug"."""
        return importlib.import_module("audiocraft.models").MusicGen.get_pretrained(source, device=str(device))

    def resolve(
        self,
        duration: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> TokenSettings:
        """Fill in the defaults and check the values.

        Raises:
            InputError: a duration that is not positive, a negative guidance scale, an impossible temperature, top_k or
                top_p, or any num_inference_steps: there are none here.
        """
        return token_settings(
            self.name,
            self.defaults,
            self.sample_rate,
            self.max_duration,
            num_inference_steps=num_inference_steps,
            duration=duration,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """One clip per (prompt, seed), by audiocraft's own loop.

        Each prompt's candidates run as a batch of their own: audiocraft's attention hears the padding of a shorter
        prompt beside a longer one.

        Returns:
            wav float32 [B, C, floor(duration * sample_rate)] in [-1, 1], on the CPU.

        Raises:
            InputError: as `resolve`, unequal numbers of prompts and seeds, or an impossible seed.
            NonFiniteAudioError: names the seeds and prompts of the clips whose logits or samples hold NaN or infinity.
        """
        settings = self.resolve(
            duration, num_inference_steps, guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p
        )
        check_pairs(prompts, seeds)
        samples = int(settings.duration * self.sample_rate)
        frames = math.ceil(samples * self.model.frame_rate / self.sample_rate)
        self.model.set_generation_params(
            use_sampling=False, duration=self._seconds(frames), cfg_coef=1.0, two_step_cfg=False
        )
        clips: dict[int, Tensor] = {}
        for prompt in dict.fromkeys(prompts):
            rows = [row for row, other in enumerate(prompts) if other == prompt]
            noise = _CandidateNoise([seeds[row] for row in rows], settings)
            with self.model.lm.register_forward_hook(noise):
                wav = self.model.generate([prompt] * len(rows), progress=False)[..., :samples]
            wav[~noise.sound.to(wav.device)] = torch.nan
            clips |= dict(zip(rows, wav, strict=True))
        return finished(self.name, torch.stack([clips[row] for row in range(len(prompts))]), prompts, seeds)

    def draft_settings(self, settings: GenerationSettings) -> list[GenerationSettings]:
        """Settings whose clips foretell those of `settings`, cheapest first: their first quarter and half.

        A draft's last frames, as many as there are codebooks less one, differ from the longer clip's: audiocraft pads.
        """
        return shorter(settings)

    def cost(self, settings: GenerationSettings) -> float:
        """Evaluations of the language model for one clip; audiocraft always takes two for each step."""
        return 2.0 * (math.ceil(settings.duration * self.model.frame_rate) + self.model.lm.num_codebooks - 1)

    def _seconds(self, frames: int) -> float:
        """A duration that audiocraft turns into so many frames: it multiplies and rounds down."""
        seconds = frames / self.model.frame_rate
        while int(seconds * self.model.frame_rate) < frames:
            seconds = math.nextafter(seconds, math.inf)
        return seconds


class _CandidateNoise:
    """A forward hook on audiocraft's language model: the step's logits become scores whose argmax is a draw.

    The module gets and gives the conditional rows and, behind them, the unconditional ones; both are given the same
    scores, so that audiocraft's own guidance changes nothing any more.
    """

    def __init__(self, seeds: Sequence[int], settings: TokenSettings) -> None:
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.settings = settings
        self.sound = torch.ones(len(seeds), dtype=torch.bool)

    def __call__(self, module: Any, arguments: Any, logits: Tensor) -> Tensor:
        """logits [2B, K, S, V] of S positions, of which the last is drawn."""
        settings = self.settings
        conditional, unconditional = logits[:, :, -1:].float().chunk(2)
        guided = unconditional + settings.guidance_scale * (conditional - unconditional)
        noise = gumbel_noise(self.generators, tuple(guided.shape[1:])).to(guided.device)
        scores = perturb(guided, noise, settings.temperature, settings.top_k, settings.top_p)
        self.sound &= scores.amax(dim=-1).isfinite().flatten(1).all(dim=1).cpu()
        return scores.clamp_min(_IMPOSSIBLE).repeat(2, 1, 1, 1)
