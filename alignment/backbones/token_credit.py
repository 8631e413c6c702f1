"""What each token of a clip does to its reward, told from the reward's gradient.

A language model's tokens are drawn, so that a reward's gradient does not reach its parameters by itself. But the codec
that turns tokens into audio is differentiable, and adds up a vector e of each codebook's code in every frame: with g
the gradient of the reward to a frame's sum, another code v in place of the drawn one u changes the reward by
g * (e_v - e_u), to first order. So one backward pass judges every code of the vocabulary at every step, where the
reward of the whole clip is one number for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignment.errors import InputError
from alignment.interfaces import Reward

if TYPE_CHECKING:
    from alignment.backbones.musicgen import MusicgenBackbone


def latent_gradients(
    backbone: MusicgenBackbone, prompts: Sequence[str], codes: Tensor, reward: Reward, num_samples: int
) -> Tensor:
    """Gradient of each clip's reward to what its codec decodes.

    Args:
        prompts: B texts.
        codes: tokens [B, K, T].
        reward: differentiable to its clips.
        num_samples: of a clip; what the codec makes beyond is not heard.

    Returns:
        gradients [B, C, D, T], in rewards per unit of the sum of the codes' vectors; C channels.

    Raises:
        InputError: the reward has no gradient.
    """
    codec, gradients = backbone.codec, []
    codes = codes.to(codec.device)
    for clip, prompt in zip(codes, prompts, strict=True):  # one by one: its activations are the largest of all
        sides = [clip[None, side :: backbone.channels] for side in range(backbone.channels)]
        latents = torch.stack([codec.quantizer.decode(side.transpose(0, 1)) for side in sides], dim=1)
        with torch.enable_grad():
            latents.requires_grad_(True)
            wav = torch.cat([codec.decoder(latents[:, side]) for side in range(backbone.channels)], dim=1)
            wav = wav[..., :num_samples].clamp(-1, 1)
            value = reward(wav, backbone.sample_rate, [prompt])
            if not value.requires_grad:
                raise InputError("the reward has no gradient to its clips; take another one, or --objective preference")
            gradients.append(torch.autograd.grad(value.sum(), latents)[0])
    return torch.cat(gradients)


def rise_and_divergence(now: Tensor, before: Tensor, credits: Tensor) -> tuple[Tensor, Tensor]:
    """What clips' tokens gain and how far they went, both to be differentiated.

    Args:
        now, before: log probabilities [B, K, T, V] of the model that learns and of the one it began as.
        credits: [B, K, T, V], see `token_credits`.

    Returns:
        The rise of the expected reward, to first order, and the divergence of now from before in nats, [B] each.
    """
    rise = (now.exp() - before.exp()) * credits
    divergence = now.exp() * (now - before)
    return rise.sum(dim=(1, 2, 3)), divergence.sum(dim=(1, 2, 3))


def token_credits(backbone: MusicgenBackbone, codes: Tensor, gradients: Tensor, delays: Sequence[int]) -> Tensor:
    """By how much the reward would change with another token in one place.

    Args:
        codes: tokens [B, K, T].
        gradients: [B, C, D, T], see `latent_gradients`.
        delays: steps by which each codebook begins late.

    Returns:
        credits [B, K, T, V] in the delay pattern: 0 for the token that is there, and where a codebook has not begun.
    """
    vocabulary = int(backbone.model.decoder.config.vocab_size)
    codes, frames = codes.to(gradients.device), codes.shape[-1]
    found = gradients.new_zeros(*codes.shape, vocabulary)
    for k, delay in enumerate(delays):
        level, side = divmod(k, backbone.channels)
        vectors = backbone.codec.quantizer.layers[level].codebook.embed[:vocabulary]
        own = torch.einsum("vd,bdt->btv", vectors, gradients[:, side, :, : frames - delay])
        found[:, k, delay:] = own - own.gather(-1, codes[:, k, : frames - delay, None])
    return found
