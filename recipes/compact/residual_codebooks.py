"""Learning EnCodec's codebooks: residual vector quantisation with moving averages.

transformers' EncodecModel holds codebooks but only uses them; here they learn. Each codebook's entries follow the mean
of the residuals that choose them (van den Oord et al., arXiv 1711.00937, appendix A; residuals as in SoundStream, arXiv
2107.03312), entries that nothing chooses are given to a residual at random, and gradients pass straight through.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import EncodecModel

DECAY = 0.99
DEAD = 0.02  # entries chosen less often than this share of an even use are given away


@torch.no_grad()
def init_codebooks(codec: EncodecModel, frames: Tensor, generator: torch.Generator, rounds: int = 12) -> None:
    """k-means, one codebook after the other, on encoder outputs [N, D] and what the codebooks before leave of them."""
    residual = frames
    for layer in codec.quantizer.layers:
        codebook = layer.codebook
        size = codebook.codebook_size
        entries = residual[torch.randperm(len(residual), generator=generator)[:size].to(residual.device)]
        for _ in range(rounds):
            codebook.embed.copy_(entries)
            chosen = codebook.quantize(residual)
            counts = torch.bincount(chosen, minlength=size).unsqueeze(1)
            sums = torch.zeros_like(entries).index_add_(0, chosen, residual)
            entries = torch.where(counts > 0, sums / counts.clamp_min(1), entries)
        codebook.embed.copy_(entries)
        codebook.embed_avg.copy_(entries)
        codebook.cluster_size.fill_(1.0)
        residual = residual - codebook.decode(codebook.quantize(residual))


def quantize(codec: EncodecModel, latents: Tensor, generator: torch.Generator, learn: bool) -> tuple[Tensor, Tensor]:
    """Nearest entries, straight through, and how far the latents are from them.

    Args:
        latents: [B, D, L], the encoder's output.
        learn: move the codebooks towards what chose them.

    Returns:
        Quantised latents [B, D, L] with the gradient of `latents`, and the commitment loss, a scalar: mean squared
        distance over the latents' variance, averaged over how many codebooks were used.
    """
    frames = latents.transpose(1, 2).flatten(0, 1)
    residual, total = frames.detach(), torch.zeros_like(frames)
    losses = []
    for layer in codec.quantizer.layers:
        codebook = layer.codebook
        chosen = codebook.quantize(residual)
        entries = codebook.decode(chosen)
        if learn:
            _move(codebook, residual, chosen, generator)
        total, residual = total + entries, residual - entries
        losses.append((frames - total).square().mean())
    commitment = torch.stack(losses).mean() / frames.detach().var().clamp_min(1e-6)
    through = frames + (total - frames).detach()
    return through.view(len(latents), -1, frames.shape[1]).transpose(1, 2), commitment


@torch.no_grad()
def _move(codebook: torch.nn.Module, residual: Tensor, chosen: Tensor, generator: torch.Generator) -> None:
    size = codebook.codebook_size
    counts = torch.bincount(chosen, minlength=size).to(residual.dtype)
    sums = torch.zeros_like(codebook.embed_avg).index_add_(0, chosen, residual)
    codebook.cluster_size.lerp_(counts, 1 - DECAY)
    codebook.embed_avg.lerp_(sums, 1 - DECAY)
    even = len(residual) / size
    dead = codebook.cluster_size < DEAD * even
    if bool(dead.any()):
        given = residual[torch.randint(0, len(residual), (int(dead.sum()),), generator=generator).to(residual.device)]
        codebook.cluster_size[dead] = even
        codebook.embed_avg[dead] = given * even
    codebook.embed.copy_(codebook.embed_avg / codebook.cluster_size.clamp_min(1e-6).unsqueeze(1))
