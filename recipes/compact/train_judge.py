"""Fit and save a compact judge: one reward on the scale of the released TuneJury, from pretrained encoders.

    python recipes/compact/train_judge.py --teacher-dir DIR --data-dir data/compact
    python recipes/compact/train_judge.py --teacher-dir DIR --judge compact-b --seed 1 --fit.seed 1
    python recipes/compact/train_judge.py --teacher-dir DIR --start-from JUDGE

Everything a run chooses it chooses by cross-validation over the training tracks; the test tracks (one piece in five)
only give the figures of benchmarks/judge_accuracy.py, which finds their names in benchmarks/judge_held_out.txt. (Which
settings ship was decided with those figures in view: the cards say how.)
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from judge_cache import Cache, load_or_build
from judge_data import ComposedClips, Track, load_tracks
from judge_fit import FitConfig, Judge, averaged, fit, predict, widths_of
from judge_quality import add_quality, embed_tracks, estimate_without, resampled
from pretrain_judge import JudgeName, Pretraining, checkpoint_path

from tunejury import InputError, load_reward
from tunejury.config import HeadConfig, InputBlock, RewardConfig
from tunejury.head import RewardHead
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
    start_from: str | None = None
    """A judge, shipped or saved, whose encoders, match of prompts, estimate of the teacher and ensemble stay: only
    heads are fitted, without pretraining, folds or collections left out, and averaged with its own, which counts half:
    the two err on different faults."""
    output_dir: Path | None = None
    """DATA_DIR/judge-<its name> if not given."""
    windows: int = 16
    """Windows cached per track."""
    num_clips: int = 8000
    """Composed clips cached with spoiled versions of each."""
    folds: int = 5
    """Folds of the cross-validation; 0 leaves it out."""
    leave_one_collection_out: bool = True
    """Report the agreement on each collection of at least 12 training tracks from an estimate without it."""
    members: int = 32
    """Of the ensemble that tells the judge's uncertainty."""
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


def rounds_of(data_dir: Path, tracks: list[Track], clips: ComposedClips) -> list[Path]:
    """The rounds of `distill_targets.py`; one line where they or what other stages make is missing."""
    rounds = sorted((data_dir / "targets").glob("[0-9]*.npz"))
    for found, stage in ((tracks, "render_teacher.py"), (len(clips), "compose.py"), (rounds, "distill_targets.py")):
        if not found:
            raise SystemExit(f"error: nothing of {stage} in {data_dir}: run it first, or give its --data-dir")
    return rounds


def load_pretrained(path: Path, judge: JudgeName) -> Pretraining:
    if not path.exists():
        raise SystemExit(f"error: {path} is missing: run pretrain_judge.py, or give --start-from a finished judge")
    saved = torch.load(path, weights_only=True)
    targets = saved["model"]["heads.features.weight"].shape[0]
    model = Pretraining(judge, tuple(saved["vocabulary"]), targets)
    model.load_state_dict(saved["model"])
    return model


def finished_parts(name: str, judge: JudgeName) -> tuple[Pretraining, RewardHead, torch.nn.Linear]:
    """Of the finished judge `name`: encoders with estimate and match, head, and ensemble as `resampled` gives it."""
    try:
        model = load_reward(name, device="cpu").eval()
    except InputError as error:
        raise SystemExit(f"error: --start-from {name}: {error}") from None
    audio, text = AUDIO_KIND[judge], "compact-text"
    if audio not in model.encoders or model.ensemble is None:
        raise SystemExit(f"error: --start-from {name} is not a judge of the kind {judge}: give its --judge")
    encoders = Pretraining(judge, tuple(model.config.encoders[text]["vocabulary"]), targets=1)
    encoders.audio, encoders.text, encoders.match = model.encoders[audio], model.encoders[text], model.products["1"]
    return encoders.float(), model.head, model.ensemble


def piece_folds(tracks: list[Track], rows: np.ndarray, folds: int) -> dict[str, np.ndarray]:
    """The tracks `rows` in parts that share no piece."""
    groups = sorted({tracks[i].group for i in rows})
    fold = dict(zip(groups, np.random.default_rng(0).permutation(len(groups)) % folds, strict=True))
    return {f"fold {k}": np.array([i for i in rows if fold[tracks[i].group] == k]) for k in range(folds)}


def large_collections(tracks: list[Track], rows: np.ndarray, least: int = 12) -> dict[str, np.ndarray]:
    """The tracks of every collection with at least `least` of the tracks `rows`, the largest first."""
    counts = Counter(tracks[i].collection for i in rows)
    large = [name for name, count in counts.most_common() if count >= least]
    return {name: np.array([i for i in rows if tracks[i].collection == name]) for name in large}


def left_out_estimates(
    pretrained: Pretraining, cache: Cache, tracks: list[Track], parts: list[np.ndarray], config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """The estimate of every part from the other training tracks and how far the ensemble's members lie apart there,
    [tracks] each; the head hardly changes the estimate.
    """
    rows = np.array([i for i, track in enumerate(tracks) if not track.is_test])
    quality = config.fit.quality
    out, spread = np.full(len(tracks), np.nan), np.full(len(tracks), np.nan)
    for part in parts:
        out[part] = estimate_without(pretrained, cache, tracks, part, quality).numpy()
        known = np.setdiff1d(rows, part)
        members = resampled(pretrained, cache, tracks, known, quality, config.members, config.fit.seed)
        spread[part] = members(embed_tracks(pretrained, cache, part)).std(1).detach().numpy()
    return out, spread


def report(name: str, predicted: np.ndarray, tracks: list[Track], rows: np.ndarray) -> dict[str, float]:
    teacher = np.array([tracks[i].reward for i in rows])
    figures = {"spearman": spearman(predicted[rows], teacher), "pairs": pair_agreement(predicted[rows], teacher)}
    print(f"{name}: {len(rows)} tracks, Spearman {figures['spearman']:.3f}, pairs {figures['pairs']:.3f}", flush=True)
    return figures


def report_spread(spread: np.ndarray, predicted: np.ndarray, tracks: list[Track], rows: np.ndarray) -> dict[str, Any]:
    """Whether the error grows with the spread: their rank correlation, and the error in thirds of growing spread."""
    error = np.abs(predicted[rows] - np.array([tracks[i].reward for i in rows]))
    thirds = np.array_split(np.argsort(spread[rows]), 3)
    rms = [float(np.sqrt(np.square(error[third]).mean())) for third in thirds]
    figures = {"spearman": spearman(spread[rows], error), "rms_error": rms, "mean_spread": float(spread[rows].mean())}
    print(
        f"uncertainty: mean {figures['mean_spread']:.2f}, Spearman with the error {figures['spearman']:.3f}, error in "
        f"thirds of growing uncertainty {', '.join(f'{value:.2f}' for value in rms)}",
        flush=True,
    )
    return figures


def assemble(
    judge: Judge, head: RewardHead, config: FitConfig, name: JudgeName, members: torch.nn.Linear
) -> RewardModel:
    """The judge as a `RewardModel` of the toolkit, with a `head` that has the estimate inside, and with `members` of
    the ensemble as `resampled` gives them."""
    audio, text = judge.audio, judge.text
    blocks = (
        InputBlock("audio", (audio.name,), audio.dim),
        InputBlock("product", (audio.name, text.name), text.dim),
    )
    encoders = {
        audio.name: {"kind": AUDIO_KIND[name], **asdict(audio.config), "dim": audio.dim},
        text.name: {"kind": "compact-text", **asdict(text.config)},
    }
    heads = HeadConfig(tuple(widths_of(head)), config.dropout)
    count, read = members.weight.shape
    model = RewardModel(RewardConfig(name, LICENSE, encoders, blocks, heads, "release", ensemble=count))
    model.encoders[audio.name].load_state_dict(audio.state_dict())
    model.encoders[text.name].load_state_dict(text.state_dict())
    model.products["1"].load_state_dict(judge.match.state_dict())
    model.head.load_state_dict(head.state_dict())
    assert model.ensemble is not None
    with torch.no_grad():
        model.ensemble.weight.zero_()
        model.ensemble.weight[:, :read] = members.weight
        model.ensemble.bias.copy_(members.bias)
    return model


def main(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tracks = load_tracks(config.teacher_dir, config.data_dir / "teacher")
    clips = ComposedClips(config.data_dir / "composed" / "train")
    rounds_of(config.data_dir, tracks, clips)
    if config.start_from is None:
        encoders = load_pretrained(checkpoint_path(config.data_dir, config.judge), config.judge).eval()
    else:
        encoders, own_head, members = finished_parts(config.start_from, config.judge)
    path = config.data_dir / f"judge_cache-{config.judge}.pt"
    targets = config.data_dir / "targets"
    cache = load_or_build(
        path, encoders.audio, tracks, clips, targets, config.windows, min(config.num_clips, len(clips)), config.seed
    )
    train = np.array([i for i, track in enumerate(tracks) if not track.is_test])
    figures: dict[str, Any] = {}
    if config.folds and config.start_from is None:
        parts = list(piece_folds(tracks, train, config.folds).values())
        predicted, spread = left_out_estimates(encoders, cache, tracks, parts, config)
        figures["cross_validation"] = report("cross-validation", predicted, tracks, train)
        figures["uncertainty"] = report_spread(spread, predicted, tracks, train)
    if config.leave_one_collection_out and config.start_from is None:
        large = large_collections(tracks, train)
        predicted, _ = left_out_estimates(encoders, cache, tracks, list(large.values()), config)
        each = {name: report(name, predicted, tracks, part) for name, part in large.items()}
        each["all together"] = report("collections left out", predicted, tracks, np.concatenate(list(large.values())))
        figures["leave_one_collection_out"] = each
    fixed = config.start_from is not None
    if not fixed:
        members = resampled(encoders, cache, tracks, train, config.fit.quality, config.members, config.fit.seed)
        add_quality(encoders, cache, tracks, train, config.fit.quality)
    judge = fit(
        encoders, cache, tracks, clips, train, config.fit, match_fixed=fixed, log=lambda line: print(line, flush=True)
    )
    head = averaged([own_head, judge.whole_head()]) if fixed else judge.whole_head()
    test = np.array([i for i, track in enumerate(tracks) if track.is_test])
    report("test tracks", predict(judge, cache, np.arange(len(tracks)), head), tracks, test)
    model = assemble(judge, head, config.fit, config.judge, members)
    output_dir = config.output_dir or config.data_dir / f"judge-{config.judge}"
    model.save_pretrained(output_dir, weights_dtype=torch.float16)
    names = sorted(track.name for track in tracks if track.is_test)
    (output_dir / "held_out.txt").write_text("\n".join(names) + "\n")
    if figures:
        (output_dir / "fit.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
