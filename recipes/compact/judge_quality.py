"""The linear estimate of the teacher's reward, built into the audio embedding as its last dimension.

257 rewards are few, so the estimate leans on the tagging network: its features carry the reward much better than
the spectrum does, and the encoder has learned to predict them. The mean of four ridge regressions, all linear in the
embedding and the mean spectrum: weights found on the network's own features; on the encoder's prediction of all of
them; of the tags alone; and, for half as much, on the mean and the spread of the spectrum.
"""

from __future__ import annotations

import numpy as np
import torch
from judge_cache import Cache
from pretrain_judge import Pretraining
from torch import Tensor, nn

TAGS, FIRST_POOLED = 50, 250  # of the tagging network's features


def ridge(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights [d] and offset of a ridge regression on standardised columns; x [n, d], y [n]."""
    center, spread = x.mean(0), x.std(0) + 1e-6
    a = ((x - center) / spread).double()
    kernel = a @ a.T / a.shape[1]
    dual = torch.linalg.solve(kernel + penalty * torch.eye(len(a), dtype=torch.float64), (y - y.mean()).double())
    weights = (a.T @ dual / a.shape[1]).float() / spread
    return weights, y.mean() - center @ weights


@torch.no_grad()
def add_quality(model: Pretraining, cache: Cache, rewards: Tensor, rows: np.ndarray) -> None:
    """Widen the audio embedding of `model` by the estimate from the tracks `rows`; rewards are of all tracks."""
    audio = model.audio
    known = torch.from_numpy(rows)
    normalized = audio.normalize(cache.tracks[known].flatten(0, 1))
    shape = (len(rows), -1)
    embedding = (audio.linear(normalized) + audio.mlp(normalized)).unflatten(0, shape).mean(1)
    spectrum = normalized[:, : audio.num_spectral].unflatten(0, shape).mean(1)
    features = model.heads["features"]
    predicted = features(embedding)
    real = torch.stack([cache.tags[cache.tag_track == int(i)].mean(0) for i in rows])
    real = (real - model.feature_mean) / model.feature_std

    target = rewards[known]
    on_features = torch.zeros(predicted.shape[1])
    offset = torch.zeros(())
    for x, columns, penalty in (
        (real, slice(FIRST_POOLED, None), 1.0),
        (predicted, slice(None), 3.0),
        (predicted, slice(TAGS), 1.0),
    ):
        weights, constant = ridge(x[:, columns], target, penalty)
        on_features[columns] += weights / 3.5
        offset += constant / 3.5
    on_spectrum, constant = ridge(spectrum, target, 1.0)
    offset += 0.5 * constant / 3.5 + features.bias @ on_features
    on_embedding = features.weight.T @ on_features

    row = on_embedding @ audio.linear.weight
    row[: len(on_spectrum)] += 0.5 * on_spectrum / 3.5
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


def _extended(layer: nn.Linear, row: Tensor, offset: Tensor) -> nn.Linear:
    """A copy with one more output."""
    wider = nn.Linear(layer.in_features, layer.out_features + 1)
    wider.weight.copy_(torch.cat([layer.weight, row[None]]))
    wider.bias.copy_(torch.cat([layer.bias, offset[None]]))
    return wider
