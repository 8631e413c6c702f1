"""The estimate of the teacher's reward: a Gaussian process on what the embedding says of a tagging network's features.

257 rewards are few, so the estimate leans on the tagging network: its features carry the reward much better than the
spectrum does, and the encoder has learned to predict them. It predicts them better for the tracks it was trained on
than for others, so the mean and spread of the spectrum count too: the embedding is widened by their principal
components.

The process has a linear part, which becomes the embedding's last dimension, and a smooth one (a radial kernel), which a
small network learns to give (judge_smooth.py). Collections count by the square root of their size. The method is that
of Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), sections 2.2 and 2.7.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from judge_cache import Cache
from judge_data import Track
from pretrain_judge import Pretraining
from torch import Tensor, nn

TAGS, FIRST_POOLED = 50, 250  # of the tagging network's features: tags, hidden layer, pooled convolutions
COMPONENTS = 24  # of mean and spread of the log-mel spectrum that the embedding is widened by


@dataclass(frozen=True)
class QualityConfig:
    """What the estimate is made of; variances are in units of the teacher's reward, squared."""

    tags: float = 1.0
    """Variance of the linear part that reads tags."""
    pooled: float = 1.0
    """Of the one that reads the tagging network's pooled features."""
    spectrum: float = 1.0
    """Of the one that reads mean and spread of the log-mel spectrum."""
    smooth: float = 4.0
    """Of the radial kernel on all three; 0 leaves it out."""
    noise: float = 4.0
    """Of what the embedding cannot know of a reward."""
    collection_power: float = 0.5
    """A track's weight is its collection's size to minus this power."""


@dataclass(frozen=True)
class Quality:
    """The estimate as a function of the widened audio embedding; distances are |metric (a - b)|²."""

    places: Tensor  # [tracks, dim]: embeddings the smooth part is anchored at
    shares: Tensor  # [tracks]
    metric: Tensor  # [dim, dim]

    def smooth(self, embedding: Tensor) -> Tensor:
        """The smooth part [...] of embeddings [..., dim + 1]."""
        distance = torch.cdist(embedding[..., :-1] @ self.metric.T, self.places @ self.metric.T)
        return torch.exp(-distance.square()) @ self.shares

    def __call__(self, embedding: Tensor) -> Tensor:
        """Embeddings [..., dim + 1] -> estimates [...]."""
        return embedding[..., -1] + self.smooth(embedding)


def collection_weights(tracks: list[Track], rows: np.ndarray, power: float) -> Tensor:
    """[len(rows)], of mean 1."""
    sizes = Counter(tracks[i].collection for i in rows)
    weights = torch.tensor([float(sizes[tracks[i].collection]) ** -power for i in rows], dtype=torch.float64)
    return weights / weights.mean()


@torch.no_grad()
def embed_tracks(model: Pretraining, cache: Cache, rows: np.ndarray) -> Tensor:
    """Mean embeddings of whole tracks, [len(rows), dim]."""
    statistics = model.audio.normalize(cache.tracks[torch.from_numpy(rows)].flatten(0, 1))
    return (model.audio.linear(statistics) + model.audio.mlp(statistics)).unflatten(0, (len(rows), -1)).mean(1)


@torch.no_grad()
def add_spectrum(model: Pretraining, cache: Cache, rows: np.ndarray) -> Tensor:
    """Widen the audio embedding of `model` by `COMPONENTS` principal components of the tracks' spectral statistics.

    Returns:
        Map [columns, COMPONENTS] from the new dimensions back to standardised spectral statistics.
    """
    audio, count = model.audio, model.audio.num_spectral
    statistics = audio.normalize(cache.tracks[torch.from_numpy(rows)].flatten(0, 1))[:, :count]
    spectrum = statistics.unflatten(0, (len(rows), -1)).mean(1)
    center, spread = spectrum.mean(0), spectrum.std(0) + 1e-6
    _, _, directions = torch.linalg.svd((spectrum - center) / spread, full_matrices=False)
    directions = directions[:COMPONENTS]
    values = ((spectrum - center) / spread) @ directions.T
    # as loud as an average dimension of the embedding
    scale = embed_tracks(model, cache, rows).var(0).mean().sqrt() / values.var(0).mean().sqrt()
    weights = torch.zeros(len(directions), audio.linear.in_features)
    weights[:, :count] = scale * directions / spread
    _widen(model, weights, -(weights[:, :count] @ center), torch.zeros(len(directions), audio.mlp[-1].in_features))
    return directions.T / scale


@dataclass(frozen=True)
class Evidence:
    """What an estimate is fitted on, of the training tracks; `features` are standardised, scaled and linear in the
    embedding, so that their product is the kernel of the linear part."""

    embedding: Tensor  # [n, dim]
    center: Tensor  # [dim]
    reader: Tensor  # [features, dim]
    features: Tensor  # [n, features]
    target: Tensor  # [n]
    noise: Tensor  # [n]: variance of each target

    @classmethod
    def gather(
        cls, model: Pretraining, cache: Cache, tracks: list[Track], rows: np.ndarray, spectral: Tensor,
        config: QualityConfig,
    ) -> Evidence:  # fmt: skip
        """Of the tracks `rows`, in double precision; `model` and `spectral` are those of `add_spectrum`."""
        embedding = embed_tracks(model, cache, rows).double()
        weights = collection_weights(tracks, rows, config.collection_power)
        center = weights @ embedding / weights.sum()
        heard, told = model.heads["features"].weight.double(), spectral.double()
        readers = []
        for columns, variance in ((heard[:TAGS], config.tags), (heard[FIRST_POOLED:], config.pooled)):
            readers.append((torch.cat([columns, torch.zeros(len(columns), told.shape[1])], dim=1), variance))
        readers.append((torch.cat([torch.zeros(len(told), heard.shape[1]), told], dim=1), config.spectrum))
        scaled = []
        for reader, variance in readers:
            spread = (embedding @ reader.T).std(0, keepdim=True).T + 1e-6
            if variance:
                scaled.append((variance / len(reader)) ** 0.5 * reader / spread)
        reader = torch.cat(scaled)
        target = torch.tensor([tracks[i].reward for i in rows], dtype=torch.float64)
        return cls(embedding, center, reader, (embedding - center) @ reader.T, target, config.noise / weights)


def _solve(kernel: Tensor, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients [n] and mean of a Gaussian process; kernel [n, n], noise [n] is each target's variance."""
    precision = torch.linalg.inv(kernel + torch.diag(noise))
    mean = (precision @ target).sum() / precision.sum()
    return precision @ (target - mean), mean


@torch.no_grad()
def add_quality(
    model: Pretraining, cache: Cache, tracks: list[Track], rows: np.ndarray, config: QualityConfig
) -> Quality:
    """Widen the audio embedding of `model` by spectral components and the linear part of the estimate from `rows`.

    Returns:
        The whole estimate.
    """
    spectral = add_spectrum(model, cache, rows)
    data = Evidence.gather(model, cache, tracks, rows, spectral, config)
    distance = torch.cdist(data.features, data.features).square()
    width = distance.median().clamp_min(1e-12)
    kernel = data.features @ data.features.T + config.smooth * torch.exp(-distance / width)
    shares, mean = _solve(kernel, data.target, data.noise)
    on_embedding = data.reader.T @ (data.features.T @ shares)
    # the features are many, but all linear in the embedding: their triangular factor gives the same distances
    metric = torch.linalg.qr(data.reader, mode="r").R / width.sqrt()
    weights = on_embedding.float()[None]
    offset = (mean - data.center @ on_embedding).float()[None]
    audio = model.audio
    last = audio.mlp[-1]
    _widen(
        model, weights @ audio.linear.weight, offset + weights @ (audio.linear.bias + last.bias), weights @ last.weight
    )
    return Quality(data.embedding.float(), config.smooth * shares.float(), metric.float())


@torch.no_grad()
def resampled(
    model: Pretraining, cache: Cache, tracks: list[Track], rows: np.ndarray, config: QualityConfig,
    members: int, seed: int,
) -> nn.Linear:  # fmt: skip
    """How estimates from other collections would differ: a linear map to `members` differences, from embeddings as
    `add_quality` widens them but for the last dimension.

    Each member is fitted on as many collections as there are, drawn with replacement (a cluster bootstrap): new
    collections are what the estimate is least sure of. Members have no smooth part. `model` is as before `add_quality`.
    """
    model = copy.deepcopy(model)
    data = Evidence.gather(model, cache, tracks, rows, add_spectrum(model, cache, rows), config)
    names = [tracks[i].collection for i in rows]
    each = [torch.tensor([i for i, name in enumerate(names) if name == one]) for one in sorted(set(names))]
    rng = np.random.default_rng(seed)
    weights, offsets = [], []
    for _ in range(members):
        chosen = torch.cat([each[int(k)] for k in rng.integers(0, len(each), len(each))])
        features = data.features[chosen]
        shares, mean = _solve(features @ features.T, data.target[chosen], data.noise[chosen])
        weights.append(data.reader.T @ (features.T @ shares))
        offsets.append(mean - data.center @ weights[-1])
    out = nn.Linear(model.audio.dim, members)
    weight, bias = torch.stack(weights), torch.stack(offsets)
    out.weight.copy_(weight - weight.mean(0))
    out.bias.copy_(bias - bias.mean())
    return out


def _widen(model: Pretraining, weights: Tensor, offset: Tensor, last_weights: Tensor) -> None:
    """Add dimensions to the audio embedding: rows for the linear layer, its offsets, rows for the network's last layer;
    the match does not read them."""
    audio = model.audio
    last = audio.mlp[-1]
    assert isinstance(last, nn.Linear)
    audio.linear = _extended(audio.linear, weights, offset)
    audio.mlp[-1] = _extended(last, last_weights, torch.zeros(len(weights)))
    project = nn.Linear(audio.dim + len(weights), model.text.dim)
    project.weight.zero_()
    project.weight[:, : audio.dim] = model.match.project.weight
    project.bias.copy_(model.match.project.bias)
    model.match.project = project
    audio.dim += len(weights)


def _extended(layer: nn.Linear, rows: Tensor, offset: Tensor) -> nn.Linear:
    """A copy with more outputs."""
    wider = nn.Linear(layer.in_features, layer.out_features + len(rows))
    wider.weight.copy_(torch.cat([layer.weight, rows]))
    wider.bias.copy_(torch.cat([layer.bias, offset]))
    return wider
