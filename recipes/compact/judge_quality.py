"""The linear estimate of the teacher's reward, built into the audio embedding as its last dimension.

257 rewards are few, so the estimate leans on the tagging network: its features carry the reward much better than
the spectrum does, and the encoder has learned to predict them. It is a mean of ridge regressions (`QualityConfig` names
them), all linear in the two parts of the embedding and the mean spectrum. Collections count by the square root of their
size.

Tried and not taken, because they agreed less with the teacher on tracks the encoder had not heard: a Gaussian process
on the predicted features, linear and with a radial kernel. Left-out training tracks flatter whatever leans harder on
those features, since the encoder predicts them better for tracks it was pretrained on.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, fields

import numpy as np
import torch
from judge_cache import Cache
from judge_data import Track
from pretrain_judge import Pretraining
from torch import Tensor, nn

TAGS, FIRST_POOLED = 50, 250  # of the tagging network's features: tags, hidden layer, pooled convolutions
PENALTY = 1.0  # of every regression


@dataclass(frozen=True)
class QualityConfig:
    """How much each regression counts in the mean; 0 leaves it out."""

    real: float = 1.0
    """Weights found on the tagging network's own pooled features, applied to the encoder's prediction of them."""
    predicted: float = 1.0
    """On the encoder's prediction of all its features."""
    tags: float = 1.0
    """On that of the tags alone."""
    network: float = 0.5
    """On the nonlinear part of the embedding."""
    spectrum: float = 0.5
    """On mean and spread of the log-mel spectrum."""
    collection_power: float = 0.5
    """A track's weight is its collection's size to minus this power."""

    @property
    def total(self) -> float:
        """Of the regressions' shares."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "collection_power")


def ridge(x: Tensor, y: Tensor, weights: Tensor, penalty: float = PENALTY) -> tuple[Tensor, Tensor]:
    """Weights [d] and offset of a weighted ridge regression on standardised columns; x [n, d], y [n], weights [n]."""
    share = weights / weights.sum()
    center, spread = share @ x, x.std(0) + 1e-6
    root = weights.double().sqrt()
    a = ((x - center) / spread).double() * root[:, None]
    kernel = a @ a.T / a.shape[1]
    mean = share @ y
    dual = torch.linalg.solve(kernel + penalty * torch.eye(len(a), dtype=torch.float64), root * (y - mean).double())
    found = (a.T @ dual / a.shape[1]).float() / spread
    return found, mean - center @ found


def collection_weights(tracks: list[Track], rows: np.ndarray, power: float) -> Tensor:
    """[len(rows)], of mean 1."""
    sizes = Counter(tracks[i].collection for i in rows)
    weights = torch.tensor([float(sizes[tracks[i].collection]) ** -power for i in rows])
    return weights / weights.mean()


@dataclass(frozen=True)
class Evidence:
    """What the estimate is fitted on, of the training tracks; means over each track's windows."""

    real: Tensor  # [n, F]: standardised features of the tagging network
    predicted: Tensor  # [n, F]: the encoder's prediction of them
    network: Tensor  # [n, dim]: nonlinear part of the embedding
    spectrum: Tensor  # [n, S]
    target: Tensor  # [n]
    weights: Tensor  # [n]

    @classmethod
    @torch.no_grad()
    def gather(
        cls, model: Pretraining, cache: Cache, tracks: list[Track], rows: np.ndarray, config: QualityConfig
    ) -> Evidence:
        """Of the tracks `rows`."""
        normalized = model.audio.normalize(cache.tracks[torch.from_numpy(rows)].flatten(0, 1))
        linear, network = model.audio.linear(normalized), model.audio.mlp(normalized)
        spectrum = normalized[:, : model.audio.num_spectral]
        embedding, network, spectrum = (
            part.unflatten(0, (len(rows), -1)).mean(1) for part in (linear + network, network, spectrum)
        )
        real = torch.stack([cache.tags[cache.tag_track == int(i)].mean(0) for i in rows])
        real = (real - model.feature_mean) / model.feature_std
        target = torch.tensor([tracks[i].reward for i in rows])
        weights = collection_weights(tracks, rows, config.collection_power)
        return cls(real, model.heads["features"](embedding), network, spectrum, target, weights)

    def drawn(self, chosen: Tensor) -> Evidence:
        """The tracks at the places `chosen`."""
        return Evidence(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def on_features(self, target: Tensor, config: QualityConfig) -> tuple[Tensor, Tensor]:
        """Weights [F] and offset of the regressions that read features, in the shares they have in the mean."""
        weights, offset = torch.zeros(self.predicted.shape[1]), torch.zeros(())
        for share, x, columns in (
            (config.real, self.real, slice(FIRST_POOLED, None)),
            (config.predicted, self.predicted, slice(None)),
            (config.tags, self.predicted, slice(TAGS)),
        ):
            if share:
                found, constant = ridge(x[:, columns], target, self.weights)
                weights[columns] += share / config.total * found
                offset += share / config.total * constant
        return weights, offset


@torch.no_grad()
def add_quality(model: Pretraining, cache: Cache, tracks: list[Track], rows: np.ndarray, config: QualityConfig) -> None:
    """Widen the audio embedding of `model` by the estimate from the tracks `rows`."""
    data = Evidence.gather(model, cache, tracks, rows, config)
    weights, offset = data.on_features(data.target, config)
    features, audio = model.heads["features"], model.audio
    on_embedding = features.weight.T @ weights
    offset = offset + features.bias @ weights
    on_network, constant = ridge(data.network, data.target, data.weights)
    on_spectrum, other = ridge(data.spectrum, data.target, data.weights)
    shares = config.network / config.total, config.spectrum / config.total
    offset = offset + shares[0] * constant + shares[1] * other

    row = on_embedding @ audio.linear.weight
    row[: len(on_spectrum)] += shares[1] * on_spectrum
    audio.linear = _extended(audio.linear, row, offset + on_embedding @ audio.linear.bias)
    last = audio.mlp[-1]
    assert isinstance(last, nn.Linear)
    read = on_embedding + shares[0] * on_network
    audio.mlp[-1] = _extended(last, read @ last.weight, read @ last.bias)
    project = nn.Linear(audio.dim + 1, model.text.dim)
    project.weight.zero_()
    project.weight[:, : audio.dim] = model.match.project.weight
    project.bias.copy_(model.match.project.bias)
    model.match.project = project
    audio.dim += 1


@torch.no_grad()
def resampled(
    model: Pretraining, cache: Cache, tracks: list[Track], rows: np.ndarray, config: QualityConfig,
    members: int, seed: int,
) -> nn.Linear:  # fmt: skip
    """How estimates from other collections would differ: a linear map from embeddings [dim] to `members` differences.

    Each member is fitted on as many collections as there are, drawn with replacement (a cluster bootstrap): new
    collections are what the estimate is least sure of. Only the regressions that read features are drawn anew.
    `model` is as before `add_quality`.
    """
    data = Evidence.gather(model, cache, tracks, rows, config)
    names = [tracks[i].collection for i in rows]
    each = [torch.tensor([i for i, name in enumerate(names) if name == one]) for one in sorted(set(names))]
    rng = np.random.default_rng(seed)
    features = model.heads["features"]
    found, offsets = [], []
    for _ in range(members):
        chosen = torch.cat([each[int(k)] for k in rng.integers(0, len(each), len(each))])
        weights, offset = data.drawn(chosen).on_features(data.target[chosen], config)
        found.append(features.weight.T @ weights)
        offsets.append(offset + features.bias @ weights)
    out = nn.Linear(model.audio.dim, members)
    weight, bias = torch.stack(found), torch.stack(offsets)
    out.weight.copy_(weight - weight.mean(0))
    out.bias.copy_(bias - bias.mean())
    return out


def embed_tracks(model: Pretraining, cache: Cache, rows: np.ndarray) -> Tensor:
    """Mean embeddings of whole tracks, [len(rows), dim]."""
    with torch.no_grad():
        statistics = model.audio.normalize(cache.tracks[torch.from_numpy(rows)].flatten(0, 1))
        embedding = model.audio.linear(statistics) + model.audio.mlp(statistics)
    return embedding.unflatten(0, (len(rows), -1)).mean(1)


def estimate_without(
    model: Pretraining, cache: Cache, tracks: list[Track], part: np.ndarray, config: QualityConfig
) -> Tensor:
    """The estimate of the training tracks `part` from all the others, [len(part)]; `model` is as pretrained."""
    rows = np.array([i for i, track in enumerate(tracks) if not track.is_test])
    widened = copy.deepcopy(model)
    add_quality(widened, cache, tracks, np.setdiff1d(rows, part), config)
    return embed_tracks(widened, cache, part)[:, -1]


def _extended(layer: nn.Linear, row: Tensor, offset: Tensor) -> nn.Linear:
    """A copy with one more output."""
    wider = nn.Linear(layer.in_features, layer.out_features + 1)
    wider.weight.copy_(torch.cat([layer.weight, row[None]]))
    wider.bias.copy_(torch.cat([layer.bias, offset[None]]))
    return wider
