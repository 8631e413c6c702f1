"""Keeping latents where a backbone has been trained: on the thin shell where Gaussian noise lies.

A vector of n independent standard normals has a norm close to sqrt(n), and each of its channels a mean near 0 and a
variance near 1. Latents that follow a reward's gradient drift off that shell, where the denoiser has never been.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def chi_penalty(latents: Tensor) -> Tensor:
    """How much less likely the norm r of each clip's latents is than the likeliest one, in nats: [B, D, L] -> [B].

    The norm of n standard normals is chi distributed, log p(r) = (n - 1) log r - r^2 / 2 + constant, with its mode at
    sqrt(n - 1) (as in ReNO, arXiv 2406.04312). At least 0; about n d^2 for a norm that is off by the fraction d.
    """
    squares = latents.flatten(1).square().sum(dim=1)
    mode = max(latents[0].numel() - 1, 1)
    return 0.5 * ((squares - mode) - mode * (squares.clamp_min(1e-12).log() - math.log(mode)))


def kl_penalty(latents: Tensor) -> Tensor:
    """KL divergence of N(mean, variance) of each channel from N(0, 1), times the channel's L values and summed over
    channels, in nats: [B, D, L] -> [B]. About D for fresh noise.
    """
    variance, mean = torch.var_mean(latents, dim=2, correction=0)
    divergence = 0.5 * (variance + mean.square() - 1 - variance.clamp_min(1e-6).log())
    return latents.shape[2] * divergence.sum(dim=1)


def noise_penalty(latents: Tensor) -> Tensor:
    """Both penalties, the norm's and the channels': [B, D, L] -> [B], in nats."""
    return chi_penalty(latents) + kl_penalty(latents)


def on_sphere_of(latents: Tensor, initial: Tensor) -> Tensor:
    """`latents` [D, L] scaled to the norm that the clip's initial noise [D, L] has."""
    norm = torch.linalg.vector_norm(latents)
    return latents * (torch.linalg.vector_norm(initial) / norm) if norm > 0 else initial.clone()
