"""How well a shipped judge's estimate of the teacher's reward carries over to collections it was not fitted on.

    python recipes/compact/left_out_collections.py --teacher-dir DIR --judge compact

Without the pretraining that `train_judge.py` needs for the same figure: the fit leaves the pretrained audio encoder as
it is and adds the estimate as one more dimension, so that the shipped encoder without it is the pretrained one, in half
precision. What only pretraining keeps, the prediction of the tagging network's features, is solved anew by least
squares on the clips of `distill_targets.py`. Neither knows a reward. Then every collection is left out as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from judge_cache import Cache, build_cache
from judge_data import ComposedClips, load_tracks
from judge_quality import QualityConfig, estimate_without
from pretrain_judge import JudgeName, Pretraining
from torch import Tensor
from train_judge import AUDIO_KIND, large_collections, report, rounds_of

from tunejury import load_reward

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # tried for the prediction of features
NUM_CLIPS = 32  # composed clips in the cache, of which nothing here is read


@dataclass(frozen=True)
class Config:
    """What to measure."""

    teacher_dir: Path
    """Folder with teacher.csv and midi/."""
    data_dir: Path = Path("data/compact")
    """Holds teacher/ (renders), composed/ and targets/ (a few rounds are enough)."""
    judge: JudgeName = "compact"
    windows: int = 8
    """Heard of each track."""
    seed: int = 0
    """Of the windows."""


def without_estimate(judge: JudgeName, targets: int) -> Pretraining:
    """The shipped audio encoder as it was before the estimate was added, beside parts that nothing has taught."""
    shipped = load_reward(judge, device="cpu")
    model = Pretraining(judge, tuple(shipped.config.encoders["compact-text"]["vocabulary"]), targets).eval()
    state = {k: v.clone() for k, v in shipped.encoders[AUDIO_KIND[judge]].state_dict().items()}
    for name, value in model.audio.state_dict().items():
        if state[name].shape != value.shape:  # the last layers, wider by one
            state[name] = state[name][: len(value)]
    model.audio.load_state_dict(state)
    return model


def least_squares(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights [d, F] and offsets [F] from standardised columns; x [n, d], y [n, F]."""
    center, spread, mean = x.mean(0), x.std(0) + 1e-6, y.mean(0)
    a = ((x - center) / spread).double()
    moment = a.T @ a / len(a) + penalty * torch.eye(a.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(moment, a.T @ (y - mean).double() / len(a)).float() / spread[:, None]
    return found, mean - center @ found


@torch.no_grad()
def solve_features(model: Pretraining, cache: Cache) -> tuple[float, float]:
    """Teach `model` to predict the tagging network's features.

    Returns:
        The penalty, the one that predicts every second clip best from the others, and the share of their variance that
        is predicted so.
    """
    model.feature_mean.copy_(cache.tags.mean(0))
    model.feature_std.copy_(cache.tags.std(0) + 1e-3)
    y = (cache.tags - model.feature_mean) / model.feature_std
    normalized = model.audio.normalize(cache.tagged)
    x = model.audio.linear(normalized) + model.audio.mlp(normalized)
    errors = {}
    for penalty in PENALTIES:
        found, offset = least_squares(x[::2], y[::2], penalty)
        errors[penalty] = float((x[1::2] @ found + offset - y[1::2]).square().mean() / y[1::2].square().mean())
    best = min(errors, key=errors.__getitem__)
    found, offset = least_squares(x, y, best)
    model.heads["features"].weight.copy_(found.T)
    model.heads["features"].bias.copy_(offset)
    return best, 1 - errors[best]


def main(config: Config) -> None:
    tracks = load_tracks(config.teacher_dir, config.data_dir / "teacher")
    clips = ComposedClips(config.data_dir / "composed" / "train")
    rounds = rounds_of(config.data_dir, tracks, clips)
    model = without_estimate(config.judge, np.load(rounds[0])["T"].shape[-1])
    cache = build_cache(model.audio, tracks, clips, config.data_dir / "targets", config.windows, NUM_CLIPS, config.seed)
    penalty, predicted_share = solve_features(model, cache)
    print(f"{len(cache.tags)} clips with features, of whose variance {predicted_share:.2f} is predicted ({penalty=:g})")
    train = np.array([i for i, track in enumerate(tracks) if not track.is_test])
    predicted = np.full(len(tracks), np.nan)
    large = large_collections(tracks, train)
    for name, part in large.items():
        predicted[part] = estimate_without(model, cache, tracks, part, QualityConfig()).numpy()
        report(name, predicted, tracks, part)
    report("collections left out", predicted, tracks, np.concatenate(list(large.values())))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
