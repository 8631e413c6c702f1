"""A MusicGen that can learn its own clips: tokens of audio, and where LoRA goes; its losses are in `musicgen_losses`.

Train on the tokens that were drawn (`Draft.tokens`) where they are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.backbones.musicgen import MusicgenBackbone
from alignment.backbones.musicgen_conditions import encode_prompts
from alignment.backbones.musicgen_losses import (
    CONDITION_DROPOUT,
    check_codes,
    clip_losses,
    codebook_logits,
)
from alignment.backbones.musicgen_sampling import delays_of
from alignment.backbones.requests import check_pairs, tell_apart
from alignment.backbones.token_credit import latent_gradients, token_credits
from alignment.errors import InputError
from alignment.interfaces import Conditioning, LearningDefaults, Reward

# within `model.decoder`, matched as a whole: attention and feed-forward of its layers, nothing of text encoder or codec
LORA_TARGETS = r"model\.decoder\.layers\.\d+\.((self_attn|encoder_attn)\.(q|k|v|out)_proj|fc[12])"


@torch.no_grad()
def encode_audio(backbone: MusicgenBackbone, wav: Tensor) -> Tensor:
    """Tokens of audio that is there as audio only.

    Args:
        wav: [B, C, T] at the backbone's sample rate and channels.

    Returns:
        codes [B, K, ceil(T / hop_length)] on the backbone's device.

    Raises:
        InputError: another number of channels.
    """
    if wav.ndim != 3 or wav.shape[1] != backbone.channels:
        raise InputError(f"wav has shape {list(wav.shape)}; expected [B, {backbone.channels}, T]")
    codec, codebooks = backbone.codec, int(backbone.model.decoder.config.num_codebooks) // backbone.channels
    wav = wav.to(codec.device, torch.float32)
    sides = [
        codec.encode(wav[:, side : side + 1], bandwidth=codec.config.target_bandwidths[-1]).audio_codes[0]
        for side in range(backbone.channels)
    ]
    # codebooks of left and right alternate
    return torch.stack([codes[:, :codebooks] for codes in sides], dim=2).flatten(1, 2)


class TrainableMusicgenBackbone(MusicgenBackbone):
    """A `MusicgenBackbone` that is a `TrainableBackbone` too: what it learns of a clip are its tokens."""

    lora_target_modules = LORA_TARGETS
    # five times the weight on divergence and twice the steps gain half as much; with these the second or third round
    # comes to the drift that is allowed.
    # Clips of one seed are soon different ones, and pairing takes no chance out of a difference: more seeds do.
    # Writing a step of 32 clips takes about twice the time of one of 8
    learning = LearningDefaults(
        objective="gradient",
        kl_weight=0.02,
        num_candidates=3,
        preference_beta=300.0,
        learning_rate=1e-3,
        num_steps=48,
        num_evaluation_seeds=8,
        batch_size=32,
    )

    def __init__(self, model: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
        # frozen, but for what an adapter adds
        self.model.requires_grad_(False)
        self._trainable: torch.nn.Module | None = None

    @property
    def trainable_module(self) -> torch.nn.Module:
        """The language model; assign it wrapped in an adapter, and sampling and training use that."""
        module: torch.nn.Module = self.model.decoder if self._trainable is None else self._trainable
        return module

    @trainable_module.setter
    def trainable_module(self, module: torch.nn.Module) -> None:
        self._trainable = module
        # peft puts its layers into the module it wraps, whose parts are called here one by one
        inner = getattr(module, "get_base_model", None)
        self.model.decoder = module if inner is None else inner()

    @torch.no_grad()
    def generate_targets(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """The tokens [B, K, frames], int64 on the CPU, of the clips that `generate` makes.

        Raises:
            InputError: as `generate`.
            NonFiniteAudioError: names the seeds and prompts of the clips whose logits hold NaN or infinity.
        """
        check_pairs(prompts, seeds)
        settings = self.resolve(duration, num_inference_steps, guidance_scale)
        draft = self.begin(prompts, seeds, settings)
        tokens = draft.tokens(self.num_frames(settings.duration)).cpu()
        return tell_apart(self.name, tokens, draft.sound(), prompts, seeds)

    def decode_targets(self, targets: Tensor, duration: float | None = None) -> Tensor:
        """Tokens [B, K, frames] -> wav float32 [B, C, floor(duration * sample_rate)] in [-1, 1], on the CPU."""
        wav = self.decode(targets.to(self.model.decoder.device))
        return wav[..., : int(self.resolve(duration).duration * self.sample_rate)].to("cpu", torch.float32).clamp(-1, 1)

    def clip_losses(
        self,
        targets: Tensor,
        prompts: Sequence[str] | Conditioning,
        generator: torch.Generator | Sequence[torch.Generator],
        duration: float | None = None,
        *,
        condition_dropout: float = CONDITION_DROPOUT,
    ) -> Tensor:
        """Cross-entropy of each clip [B] in nats per token; see `clip_losses` of `musicgen_losses`.

        Raises:
            InputError: shapes that do not fit, clips too short, or a dropout that is no probability.
        """
        texts = list(prompts.prompts if isinstance(prompts, Conditioning) else prompts)
        if not 0 <= condition_dropout < 1:
            raise InputError(f"condition_dropout is {condition_dropout}; expected a number from 0 to below 1")
        return clip_losses(self, texts, targets, condition_dropout=condition_dropout, generator=generator)

    def preference_losses(
        self,
        targets: Tensor,
        prompts: Sequence[str] | Conditioning,
        generator: torch.Generator | Sequence[torch.Generator],
        duration: float | None = None,
        *,
        condition_dropout: float = CONDITION_DROPOUT,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Cross-entropy of each clip [B] in nats per token where it is drawn: with guidance and the default
        temperature. No prompt is left out, so that `condition_dropout` and `generator` have no say.

        What is preferred by the model's own likelihood comes undone under guidance u + g * (c - u): what its
        unconditional half learned is taken away g - 1 times.

        Raises:
            InputError: shapes that do not fit, or clips too short.
        """
        texts = list(prompts.prompts if isinstance(prompts, Conditioning) else prompts)
        return clip_losses(self, texts, targets, drawn_with=self.resolve(guidance_scale=guidance_scale))

    def token_credits(
        self, targets: Tensor, prompts: Sequence[str], reward: Reward, duration: float | None = None
    ) -> Tensor:
        """By how much each clip's reward would change, to first order, with another token in one place: [B, K, T, V] in
        the delay pattern; see `token_credit`.

        Raises:
            InputError: shapes that do not fit, clips too short, or a reward without gradient.
        """
        check_codes(self, prompts, targets)
        samples = int(self.resolve(duration).duration * self.sample_rate)
        gradients = latent_gradients(self, prompts, targets, reward, samples)
        return token_credits(self, targets, gradients, delays_of(self.model.decoder.config))

    def token_log_probabilities(
        self, targets: Tensor, prompts: Sequence[str], *, guidance_scale: float | None = None
    ) -> Tensor:
        """Of every token as it is drawn, with guidance and the default temperature and before improbable ones are left
        out: [B, K, T, V] in the delay pattern, 0 where a codebook has not begun.

        Raises:
            InputError: shapes that do not fit, or clips too short.
        """
        check_codes(self, prompts, targets)
        settings, decoder = self.resolve(guidance_scale=guidance_scale), self.model.decoder
        scale, order, parts = settings.guidance_scale, [], []
        for rows, heard in encode_prompts(self.model, self.tokenizer, prompts, guided=scale != 1):
            found = [
                logits.log_softmax(dim=-1).masked_fill(own[..., None] == -100, 0.0)
                for own, logits in codebook_logits(
                    decoder, targets[rows], heard.states, heard.mask, None, scale, settings.temperature
                )
            ]
            order += rows
            parts.append(torch.stack(found, dim=1))
        return torch.cat(parts)[torch.tensor(order).argsort().to(decoder.device)]

    def save_pretrained(self, directory: Path) -> None:
        """Write model and tokenizer in transformers' layout; an adapter must have been merged before."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
