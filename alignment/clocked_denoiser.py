"""StableAudio3DiTModel with a clock: oscillators at the tempo that a prompt asks for, beside the latents."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_stable_audio3 import StableAudio3DiTModel, StableAudio3DiTModelOutput
from torch import Tensor, nn

# diffusers looks for the base class beside the class that a model_index.json names
__all__ = ["ClockedStableAudio3DiT", "ModelMixin"]

HARMONICS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)  # of the beat: bar and half bar of four, beat, eighth, triplet, sixteenth


class BeatClock(nn.Module):
    """Sines and cosines of beats that start at 0, for a tempo read from text.

    Where the text leaves several tempi open, their oscillators are added by probability: what a linear map makes of the
    sum is then its expectation, and a tempo nobody asked for gives a clock that fades.

    Args:
        text_width: of the text's token states.
        tempi: beats per minute to choose from.
        latent_rate: latents per second.
        sharpness: exponent on the probabilities. 1 is what the text leaves open, and how to train; above, the clock
            holds to one of the tempi that a word such as "slow" leaves, and beats do not blur.
    """

    def __init__(self, text_width: int, tempi: tuple[float, ...], latent_rate: float, sharpness: float = 1.0) -> None:
        super().__init__()
        self.tempi, self.latent_rate, self.sharpness = tempi, latent_rate, sharpness
        self.attention = nn.Linear(text_width, 1)
        self.tempo = nn.Linear(text_width, len(tempi))

    def tempo_logits(self, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token states [B, S, text_width], mask [B, S] -> [B, len(tempi)]."""
        scores = self.attention(text)[..., 0].float()
        if mask is not None:
            scores = scores.masked_fill(~mask.bool(), -math.inf)
        logits: Tensor = self.tempo((scores.softmax(dim=1)[..., None].to(text.dtype) * text).sum(dim=1))
        return logits

    def forward(self, text: Tensor, mask: Tensor | None, length: int) -> Tensor:
        """-> oscillators [B, 2 * len(HARMONICS), length] in the dtype of `text`."""
        probability = (self.sharpness * self.tempo_logits(text, mask).float()).softmax(dim=1)
        seconds = torch.arange(length, device=text.device, dtype=torch.float32) / self.latent_rate
        beats = torch.tensor(self.tempi, device=text.device)[:, None] / 60 * seconds
        angles = 2 * math.pi * torch.tensor(HARMONICS, device=text.device)[:, None] * beats[:, None]
        oscillators = torch.cat([angles.sin(), angles.cos()], dim=1)  # [tempi, 2 * harmonics, length]
        return torch.einsum("bt,tfl->bfl", probability, oscillators).to(text.dtype)


class ClockedStableAudio3DiT(StableAudio3DiTModel):
    """The stock denoiser, whose patches also hold a clock.

    Without, it knows where a patch is by rotations in its attention alone; a small one does not learn from them where
    the beats of a tempo lie.

    Args:
        io_channels: of the latents and, behind them, 2 * len(HARMONICS) of the clock.
        clock_tempi: beats per minute the clock may run at.
        latent_rate: latents per second.
        clock_sharpness: of the BeatClock.
        others: as for StableAudio3DiTModel.
    """

    @register_to_config
    def __init__(
        self,
        io_channels: int,
        clock_tempi: tuple[float, ...],
        latent_rate: float,
        patch_size: int = 1,
        embed_dim: int = 1536,
        depth: int = 24,
        num_heads: int = 24,
        cond_token_dim: int = 768,
        global_cond_dim: int = 768,
        local_add_cond_dim: int = 257,
        timestep_features_dim: int = 256,
        ff_mult: float = 4.0,
        num_memory_tokens: int = 64,
        use_differential_attention: bool = True,
        clock_sharpness: float = 1.0,
    ) -> None:
        super().__init__(
            io_channels=io_channels,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            cond_token_dim=cond_token_dim,
            global_cond_dim=global_cond_dim,
            local_add_cond_dim=local_add_cond_dim,
            timestep_features_dim=timestep_features_dim,
            ff_mult=ff_mult,
            num_memory_tokens=num_memory_tokens,
            use_differential_attention=use_differential_attention,
        )
        self.clock = BeatClock(cond_token_dim, tuple(clock_tempi), latent_rate, clock_sharpness)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        global_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        local_add_cond: Tensor | None = None,
        return_dict: bool = True,
    ) -> StableAudio3DiTModelOutput | tuple[Any, ...]:
        """As the stock model: noisy latents [B, io_channels - 2 * len(HARMONICS), L] -> velocity of the same shape."""
        channels, length = hidden_states.shape[1:]
        clock = self.clock(encoder_hidden_states, encoder_attention_mask, length).to(hidden_states.dtype)
        (output,) = super().forward(
            torch.cat([hidden_states, clock], dim=1),
            timestep,
            encoder_hidden_states,
            global_hidden_states,
            encoder_attention_mask,
            local_add_cond,
            return_dict=False,
        )
        output = output[:, :channels]
        return StableAudio3DiTModelOutput(sample=output) if return_dict else (output,)
