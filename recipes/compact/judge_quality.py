"""The estimate of the teacher's reward: a Gaussian process on what the embedding says of a tagging network's features.

257 rewards are few, so the estimate leans on the tagging network: its features carry the reward much better than the
spectrum does, and the encoder has learned to predict them. The process has a linear part (tags, pooled features, mean
and spread of the spectrum), which becomes the last dimension of the audio embedding, and a smooth one (a radial kernel
on tags and pooled features), which the head learns to add. Collections count by the square root of their size. The
method is that of Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), sections 2.2 and 2.7.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from judge_cache import Cache
from judge_data import Track
from pretrain_judge import Pretraining
from torch import Tensor, nn

TAGS, FIRST_POOLED = 50, 250  # of the tagging network's features: tags, hidden layer, pooled convolutions


@dataclass(frozen=True)
class QualityConfig:
    """What the estimate is made of; variances are shares of a unit of the teacher's reward, squared."""

    tags: float = 1.0
    """Variance of the linear part that reads tags."""
    pooled: float = 1.0
    """Of the one that reads the tagging network's pooled features."""
    spectrum: float = 0.2
    """Of the one that reads mean and spread of the log-mel spectrum."""
    smooth: float = 4.0
    """Of the radial kernel on tags and pooled features; 0 leaves it out."""
    noise: float = 1.5
    """Of what the embedding cannot know of a reward."""
    collection_power: float = 0.5
    """A track's weight is its collection's size to minus this power."""


@dataclass(frozen=True)
class Quality:
    """The estimate as a function of the widened audio embedding."""

    places: Tensor  # [tracks, dim]: embeddings the smooth part is anchored at
    shares: Tensor  # [tracks]
    metric: Tensor  # [dim, dim]: distance² between embeddings a, b is |metric (a - b)|²

    def __call__(self, embedding: Tensor) -> Tensor:
        """Embeddings [..., dim + 1] -> estimates [...]."""
        if not len(self.shares):
            return embedding[..., -1]
        distance = torch.cdist(embedding[..., :-1] @ self.metric.T, self.places @ self.metric.T)
        return embedding[..., -1] + torch.exp(-distance.square()) @ self.shares


@dataclass(frozen=True)
class _Block:
    """Standardised columns of one kind, scaled so that their product is a kernel of the wanted variance."""

    center: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor, weights: Tensor, variance: float) -> _Block:
        center = weights @ x / weights.sum()
        return cls(center, (variance / x.shape[1]) ** 0.5 / (x.std(0) + 1e-6))

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.center) * self.scale


def collection_weights(tracks: list[Track], rows: np.ndarray, power: float) -> Tensor:
    """[len(rows)], of mean 1."""
    sizes = Counter(tracks[i].collection for i in rows)
    weights = torch.tensor([float(sizes[tracks[i].collection]) ** -power for i in rows], dtype=torch.float64)
    return weights / weights.mean()


def _solve(kernel: Tensor, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients [n] and mean of a Gaussian process; kernel [n, n], noise [n] is each target's variance."""
    precision = torch.linalg.inv(kernel + torch.diag(noise))
    mean = (precision @ target).sum() / precision.sum()
    return precision @ (target - mean), mean


@torch.no_grad()
def embed_tracks(model: Pretraining, cache: Cache, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean embedding and mean normalised statistics of whole tracks, [len(rows), dim] and [len(rows), D]."""
    statistics = model.audio.normalize(cache.tracks[torch.from_numpy(rows)].flatten(0, 1))
    embedding = model.audio.linear(statistics) + model.audio.mlp(statistics)
    return tuple(x.unflatten(0, (len(rows), -1)).mean(1) for x in (embedding, statistics))  # type: ignore[return-value]


@dataclass(frozen=True)
class Evidence:
    """What an estimate is fitted on, of the training tracks."""

    embedding: Tensor  # [n, dim]
    reader: Tensor  # [features, dim]: standardised, scaled features of the kernel from a centred embedding
    features: Tensor  # [n, features]
    spectrum: Tensor  # [n, columns]: standardised and scaled too
    spectral: _Block
    center: Tensor  # [dim]
    target: Tensor  # [n]
    noise: Tensor  # [n]

    @classmethod
    def gather(
        cls, model: Pretraining, cache: Cache, tracks: list[Track], rows: np.ndarray, config: QualityConfig
    ) -> Evidence:
        """Embed the tracks `rows`, in double precision."""
        embedding, statistics = (x.double() for x in embed_tracks(model, cache, rows))
        weights = collection_weights(tracks, rows, config.collection_power)
        reader = model.heads["features"]
        predicted = embedding @ reader.weight.double().T
        center = weights @ embedding / weights.sum()
        readers = []
        for columns, variance in ((slice(TAGS), config.tags), (slice(FIRST_POOLED, None), config.pooled)):
            if variance:
                block = _Block.of(predicted[:, columns], weights, variance)
                readers.append(block.scale[:, None] * reader.weight[columns].double())
        read = torch.cat(readers) if readers else torch.zeros(0, embedding.shape[1], dtype=torch.float64)
        spectrum = statistics[:, : model.audio.num_spectral]
        spectral = _Block.of(spectrum, weights, config.spectrum)
        target = torch.tensor([tracks[i].reward for i in rows], dtype=torch.float64)
        features = (embedding - center) @ read.T
        return cls(
            embedding, read, features, spectral(spectrum), spectral, center, target, config.noise / weights
        )  # fmt: skip


@torch.no_grad()
def add_quality(
    model: Pretraining, cache: Cache, tracks: list[Track], rows: np.ndarray, config: QualityConfig
) -> Quality:
    """Widen the audio embedding of `model` by the linear part of the estimate from the tracks `rows`.

    Returns:
        The whole estimate.
    """
    data = Evidence.gather(model, cache, tracks, rows, config)
    kernel = data.features @ data.features.T + data.spectrum @ data.spectrum.T
    distance = torch.cdist(data.features, data.features).square()
    width = distance.median().clamp_min(1e-12)
    shares, mean = _solve(kernel + config.smooth * torch.exp(-distance / width), data.target, data.noise)

    on_embedding = (data.reader.T @ (data.features.T @ shares)).float()
    on_spectrum = (data.spectral.scale * (data.spectrum.T @ shares)).float()
    offset = (mean - data.spectral.center @ on_spectrum.double()).float() - data.center.float() @ on_embedding
    audio = model.audio
    row = on_embedding @ audio.linear.weight
    row[: len(on_spectrum)] += on_spectrum
    audio.linear = _extended(audio.linear, row, offset + on_embedding @ audio.linear.bias)
    last = audio.mlp[-1]
    assert isinstance(last, nn.Linear)
    audio.mlp[-1] = _extended(last, on_embedding @ last.weight, on_embedding @ last.bias)
    project = nn.Linear(audio.dim + 1, model.text.dim)
    project.weight.zero_()
    project.weight[:, : audio.dim] = model.match.project.weight
    project.bias.copy_(model.match.project.bias)
    model.match.project = project
    audio.dim += 1
    if not config.smooth:
        return Quality(data.embedding[:0].float(), shares[:0].float(), torch.zeros(0, audio.dim - 1))
    # the features are many, but all linear in the embedding: their triangular factor gives the same distances
    metric = torch.linalg.qr(data.reader, mode="r").R / width.sqrt()
    return Quality(data.embedding.float(), config.smooth * shares.float(), metric.float())


@torch.no_grad()
def resampled(
    model: Pretraining, cache: Cache, tracks: list[Track], rows: np.ndarray, config: QualityConfig,
    members: int, seed: int,
) -> nn.Linear:  # fmt: skip
    """How estimates from other collections would differ: a linear map from embeddings [dim] to `members` differences.

    Each member is fitted on as many collections as there are, drawn with replacement (a cluster bootstrap): new
    collections are what the estimate is least sure of. Members share its spectral part and have no smooth one. `model`
    is as before `add_quality`.
    """
    data = Evidence.gather(model, cache, tracks, rows, config)
    shares, _ = _solve(data.features @ data.features.T + data.spectrum @ data.spectrum.T, data.target, data.noise)
    target = data.target - data.spectrum @ (data.spectrum.T @ shares)
    names = [tracks[i].collection for i in rows]
    each = [torch.tensor([i for i, name in enumerate(names) if name == one]) for one in sorted(set(names))]
    rng = np.random.default_rng(seed)
    weights, offsets = [], []
    for _ in range(members):
        chosen = torch.cat([each[int(k)] for k in rng.integers(0, len(each), len(each))])
        features = data.features[chosen]
        shares, mean = _solve(features @ features.T, target[chosen], data.noise[chosen])
        weights.append(data.reader.T @ (features.T @ shares))
        offsets.append(mean - data.center @ weights[-1])
    out = nn.Linear(model.audio.dim, members)
    weight, bias = torch.stack(weights), torch.stack(offsets)
    out.weight.copy_(weight - weight.mean(0))
    out.bias.copy_(bias - bias.mean())
    return out


def _extended(layer: nn.Linear, row: Tensor, offset: Tensor) -> nn.Linear:
    """A copy with one more output."""
    wider = nn.Linear(layer.in_features, layer.out_features + 1)
    wider.weight.copy_(torch.cat([layer.weight, row[None]]))
    wider.bias.copy_(torch.cat([layer.bias, offset[None]]))
    return wider
