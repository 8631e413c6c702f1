"""StableAudio3DiTModel with a sense of time: oscillators added to the patches' embeddings."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_stable_audio3 import StableAudio3DiTModel
from torch import Tensor, nn

# diffusers looks for the base class beside the class that a model_index.json names
__all__ = ["ClockedStableAudio3DiT", "ModelMixin"]


class ClockedProjection(nn.Linear):
    """A bias-free linear map of patches, plus a learned mix of oscillators at each patch's position.

    Args:
        in_features, out_features: as for nn.Linear.
        frequencies: of the oscillators, cycles per patch; each gives a sine and a cosine, phase 0 at the first patch.
    """

    def __init__(self, in_features: int, out_features: int, frequencies: tuple[float, ...]) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.frequencies = frequencies
        self.clock = nn.Linear(2 * len(frequencies), out_features, bias=False)
        nn.init.normal_(self.clock.weight, std=0.03)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, L, in_features] -> [B, L, out_features]."""
        positions = torch.arange(patches.shape[1], device=patches.device, dtype=torch.float32)
        angles = 2 * math.pi * torch.outer(positions, torch.tensor(self.frequencies, device=patches.device))
        oscillators = torch.cat([angles.sin(), angles.cos()], dim=1).to(patches.dtype)
        return super().forward(patches) + self.clock(oscillators)


class ClockedStableAudio3DiT(StableAudio3DiTModel):
    """The stock denoiser with oscillators in its patches, which the feed-forward layers can gate by what a prompt says.

    Without, it knows where a patch is by rotations in its attention alone; a small one does not learn from them where
    the beats of a tempo lie.

    Args:
        clock_frequencies: cycles per patch.
        others: as for StableAudio3DiTModel.
    """

    @register_to_config
    def __init__(
        self,
        io_channels: int = 256,
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
        clock_frequencies: tuple[float, ...] = (),
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
        self.proj_in = ClockedProjection(io_channels * patch_size, embed_dim, tuple(clock_frequencies))
