"""Fit and save a compact judge: one reward on the scale of the released TuneJury, from pretrained encoders.

    python recipes/compact/train_judge.py --teacher-dir DIR --data-dir data/compact
    python recipes/compact/train_judge.py --teacher-dir DIR --judge compact-b --seed 1 --fit.seed 1

Everything is chosen by cross-validation over the training tracks; the test tracks (one piece in five) only give the
figures of benchmarks/judge_accuracy.py, which finds their names in held_out.txt.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from judge_cache import Cache, load_or_build
from judge_data import ComposedClips, Track, load_tracks
from judge_fit import FitConfig, Judge, fit, predict
from judge_quality import add_quality
from pretrain_judge import JudgeName, Pretraining, checkpoint_path

from tunejury.config import HeadConfig, InputBlock, RewardConfig
from tunejury.model import RewardModel

LICENSE = "CC BY-NC 4.0"
AUDIO_KIND = {"compact": "compact-audio", "compact-b": "patch-audio"}


@dataclass(frozen=True)
class Config:
    """Settings of the last stage."""

    teacher_dir: Path
    """Folder with teacher.csv and midi/."""
    data_dir: Path = Path("data/compact")
    """Holds teacher/ (renders), composed/, targets/ and the pretrained encoders; the cache goes here too."""
    judge: JudgeName = "compact"
    output_dir: Path | None = None
    """DATA_DIR/judge-<its name> if not given."""
    windows: int = 8
    """Windows cached per track."""
    num_clips: int = 4000
    """Composed clips cached with a spoiled version of each."""
    folds: int = 5
    """Folds of the cross-validation; 0 leaves it out."""
    leave_one_collection_out: bool = True
    """Report the agreement on each collection of at least 12 training tracks from an estimate without it."""
    fit: FitConfig = field(default_factory=FitConfig)
    seed: int = 0
    """Of the windows and faults in the cache; `--fit.seed` is that of the fit."""
    threads: int | None = None
    """CPU threads; torch's own choice if not given."""


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation (no ties expected)."""
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])


def pair_agreement(predicted: np.ndarray, teacher: np.ndarray, margin: float = 1.0) -> float:
    """Share of the pairs further apart than `margin` to the teacher that are ordered as the teacher orders them."""
    far = teacher[:, None] - teacher[None] > margin
    return float((predicted[:, None] > predicted[None])[far].mean())


def load_pretrained(path: Path, judge: JudgeName) -> Pretraining:
    saved = torch.load(path, weights_only=True)
    targets = saved["model"]["heads.features.weight"].shape[0]
    model = Pretraining(judge, tuple(saved["vocabulary"]), targets)
    model.load_state_dict(saved["model"])
    return model


@torch.no_grad()
def left_out_estimates(
    pretrained: Pretraining, cache: Cache, tracks: list[Track], parts: list[np.ndarray]
) -> np.ndarray:
    """The linear estimate [tracks] of every part from the other training tracks; the head hardly changes it."""
    rows = np.array([i for i, track in enumerate(tracks) if not track.is_test])
    rewards = torch.tensor([track.reward for track in tracks])
    out = np.full(len(tracks), np.nan)
    for part in parts:
        model = copy.deepcopy(pretrained)
        add_quality(model, cache, rewards, np.setdiff1d(rows, part))
        statistics = model.audio.normalize(cache.tracks[part].flatten(0, 1))
        embedding = model.audio.linear(statistics) + model.audio.mlp(statistics)
        out[part] = embedding[:, -1].unflatten(0, (len(part), -1)).mean(1).numpy()
    return out


def report(name: str, predicted: np.ndarray, tracks: list[Track], rows: np.ndarray) -> dict[str, float]:
    teacher = np.array([tracks[i].reward for i in rows])
    figures = {"spearman": spearman(predicted[rows], teacher), "pairs": pair_agreement(predicted[rows], teacher)}
    print(f"{name}: {len(rows)} tracks, Spearman {figures['spearman']:.3f}, pairs {figures['pairs']:.3f}", flush=True)
    return figures


def assemble(judge: Judge, config: FitConfig, name: JudgeName) -> RewardModel:
    """The judge as a `RewardModel` of the toolkit."""
    audio, text = judge.audio, judge.text
    head = judge.whole_head()
    widths = tuple(layer.num_features for layer in head.net if isinstance(layer, torch.nn.BatchNorm1d))
    blocks = (
        InputBlock("audio", (audio.name,), audio.dim),
        InputBlock("product", (audio.name, text.name), text.dim),
    )
    encoders = {
        audio.name: {"kind": AUDIO_KIND[name], **asdict(audio.config), "dim": audio.dim},
        text.name: {"kind": "compact-text", **asdict(text.config)},
    }
    model = RewardModel(RewardConfig(name, LICENSE, encoders, blocks, HeadConfig(widths, config.dropout), "release"))
    model.encoders[audio.name].load_state_dict(audio.state_dict())
    model.encoders[text.name].load_state_dict(text.state_dict())
    model.products["1"].load_state_dict(judge.match.state_dict())
    model.head.load_state_dict(head.state_dict())
    return model


def main(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tracks = load_tracks(config.teacher_dir, config.data_dir / "teacher")
    clips = ComposedClips(config.data_dir / "composed" / "train")
    pretrained = load_pretrained(checkpoint_path(config.data_dir, config.judge), config.judge).eval()
    path = config.data_dir / f"judge_cache-{config.judge}.pt"
    targets = config.data_dir / "targets"
    cache = load_or_build(
        path, pretrained.audio, tracks, clips, targets, config.windows, min(config.num_clips, len(clips)), config.seed
    )
    train = np.array([i for i, track in enumerate(tracks) if not track.is_test])
    figures: dict[str, object] = {}
    if config.folds:
        groups = sorted({tracks[i].group for i in train})
        fold = dict(zip(groups, np.random.default_rng(0).permutation(len(groups)) % config.folds, strict=True))
        parts = [np.array([i for i in train if fold[tracks[i].group] == k]) for k in range(config.folds)]
        predicted = left_out_estimates(pretrained, cache, tracks, parts)
        figures["cross_validation"] = report("cross-validation", predicted, tracks, train)
    if config.leave_one_collection_out:
        counts = Counter(tracks[i].collection for i in train)
        large = [name for name, count in counts.most_common() if count >= 12]
        parts = [np.array([i for i in train if tracks[i].collection == name]) for name in large]
        predicted = left_out_estimates(pretrained, cache, tracks, parts)
        each = {name: report(name, predicted, tracks, part) for name, part in zip(large, parts, strict=True)}
        each["all together"] = report("collections left out", predicted, tracks, np.concatenate(parts))
        figures["leave_one_collection_out"] = each
    judge = fit(pretrained, cache, tracks, clips, train, config.fit, log=lambda line: print(line, flush=True))
    test = np.array([i for i, track in enumerate(tracks) if track.is_test])
    report("test tracks", predict(judge, cache, np.arange(len(tracks))), tracks, test)
    model = assemble(judge, config.fit, config.judge)
    output_dir = config.output_dir or config.data_dir / f"judge-{config.judge}"
    model.save_pretrained(output_dir, weights_dtype=torch.float16)
    names = sorted(track.name for track in tracks if track.is_test)
    (output_dir / "held_out.txt").write_text("\n".join(names) + "\n")
    (output_dir / "fit.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
