"""A small network that gives the smooth part of the estimate: what the shipped head can hold of a kernel method."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from judge_cache import Cache
from judge_quality import Quality
from pretrain_judge import Pretraining
from torch import Tensor, nn

WIDTHS = (96, 32)
STEPS, BATCH = 3000, 192


class SmoothPart(nn.Module):
    """Two rectified layers from the embedding (but for its last dimension) to one number."""

    center: Tensor
    spread: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        sizes = (dim, *WIDTHS, 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings [..., dim + 1] -> [...]."""
        x = (embedding[..., :-1] - self.center) / self.spread
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x).squeeze(-1)

    @torch.no_grad()
    def folded(self) -> list[nn.Linear]:
        """Its layers with the standardisation inside the first."""
        layers = [nn.Linear(layer.in_features, layer.out_features) for layer in self.layers]  # type: ignore[arg-type]
        for mine, theirs in zip(layers, self.layers, strict=True):
            mine.weight.copy_(theirs.weight)
            mine.bias.copy_(theirs.bias)
        layers[0].weight.copy_(layers[0].weight / self.spread)
        layers[0].bias.sub_(layers[0].weight @ self.center)
        return layers


@torch.no_grad()
def embed(model: Pretraining, statistics: Tensor) -> Tensor:
    """Statistics [..., D] -> widened embeddings [..., dim + 1]."""
    flat = model.audio.normalize(statistics.flatten(0, -2))
    return (model.audio.linear(flat) + model.audio.mlp(flat)).unflatten(0, statistics.shape[:-1])


def learn_smooth(model: Pretraining, cache: Cache, quality: Quality, rows: Tensor, seed: int) -> SmoothPart:
    """Teach a network the smooth part on music of all kinds: means of the training tracks' windows, blends of two
    tracks, composed clips, clips of both, all also with noise. No reward is used but through `quality`.
    """
    torch.manual_seed(seed)
    windows = embed(model, cache.tracks[rows])  # [tracks, windows, dim + 1]
    clips = torch.cat([embed(model, cache.clips), embed(model, cache.tagged)])
    whole = windows.mean(1)
    network = SmoothPart(whole.shape[1] - 1)
    network.center.copy_(whole[:, :-1].mean(0))
    network.spread.copy_(whole[:, :-1].std(0) + 1e-6)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        first, second = torch.randint(len(whole), (2, BATCH))
        share = torch.rand(BATCH, 1) * (torch.rand(BATCH, 1) < 0.6)
        heard = torch.rand(BATCH, windows.shape[1], 1) * (
            torch.rand(BATCH, windows.shape[1], 1) < torch.rand(BATCH, 1, 1)
        )
        heard = heard + 1e-3
        mixed = (windows[first] * heard).sum(1) / heard.sum(1)
        mixed = mixed + share * (whole[second] - mixed)
        batch = torch.cat([mixed, clips[torch.randint(len(clips), (BATCH // 2,))]])
        noise = torch.rand(len(batch), 1) * 0.5 * network.spread * torch.randn(len(batch), len(network.spread))
        batch = torch.cat([batch[:, :-1] + noise, batch[:, -1:]], dim=1)
        loss = F.smooth_l1_loss(network(batch), quality.smooth(batch), beta=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)
