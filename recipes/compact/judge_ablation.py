"""What each part of a judge's last layers is worth: each left out in turn, on training tracks the fit has not seen.

    python recipes/compact/judge_ablation.py --teacher-dir DIR --data-dir data/compact --output ablation.json

Needs what `train_judge.py` left: the pretrained encoders and the cache. The estimate is fitted anew for all folds by
piece and for all collections left out; the head, which takes longer, once, on four folds of the tracks and most of the
clips, and measured on the rest.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from judge_cache import VERSIONS, Cache, read_cache
from judge_data import ComposedClips, Track, load_tracks
from judge_fit import FitConfig, Judge, fit, predict
from judge_quality import add_quality, estimate_without
from pretrain_judge import JudgeName, Pretraining, checkpoint_path
from prompt_words import near_miss
from train_judge import large_collections, load_pretrained, pair_agreement, piece_folds, spearman

HELD_CLIPS = 400  # cached clips the ablated heads are not fitted on
HEADS: dict[str, dict[str, Any]] = {
    "all": {},
    "faults": {"ladder_weight": 0.0},
    "prompts": {"with_prompts": False},
}


@dataclass(frozen=True)
class Config:
    """What to leave out."""

    teacher_dir: Path
    """Folder with teacher.csv and midi/."""
    data_dir: Path = Path("data/compact")
    judge: JudgeName = "compact"
    heads: bool = True
    """Fit heads too: three minutes each."""
    fit: FitConfig = field(default_factory=FitConfig)
    output: Path | None = None
    threads: int | None = None
    """CPU threads; torch's own choice if not given."""


def ablate_estimate(pretrained: Pretraining, cache: Cache, tracks: list[Track], config: FitConfig) -> dict[str, Any]:
    """Spearman and pair agreement of the estimate without each of its parts."""
    rows = np.array([i for i, track in enumerate(tracks) if not track.is_test])
    whole = config.quality
    variants = {
        "nothing": whole,
        "the tagging network's own features": replace(whole, real=0.0),
        "the prediction of all its features": replace(whole, predicted=0.0),
        "the tags": replace(whole, tags=0.0),
        "all three, which come from the tagging network": replace(whole, real=0.0, predicted=0.0, tags=0.0),
        "the nonlinear part of the embedding": replace(whole, network=0.0),
        "the spectrum": replace(whole, spectrum=0.0),
        "the collections' weights": replace(whole, collection_power=0.0),
    }
    splits = {"folds": piece_folds(tracks, rows, 5), "collections": large_collections(tracks, rows)}
    out: dict[str, Any] = {}
    for name, quality in variants.items():
        out[name] = {}
        for split, parts in splits.items():
            predicted = np.full(len(tracks), np.nan)
            for part in parts.values():
                predicted[part] = estimate_without(pretrained, cache, tracks, part, quality).numpy()
            told = np.concatenate(list(parts.values()))
            teacher = np.array([tracks[i].reward for i in told])
            out[name][split] = {
                "spearman": spearman(predicted[told], teacher),
                "pairs": pair_agreement(predicted[told], teacher),
            }
    return out


@torch.no_grad()
def measure_head(
    judge: Judge, cache: Cache, held: Cache, tracks: list[Track], part: np.ndarray, records: list[dict[str, Any]]
) -> dict[str, float]:
    """Agreement on the tracks `part`; clean over spoiled on them and on the clips of `held`; right prompt over a near
    miss on those clips."""
    predicted = predict(judge, cache, part)
    silent = judge.silent
    pairs = ((cache.tracks[part], cache.spoiled_tracks[part]), (held.clips, held.spoiled_clips))
    won = []
    for clean, spoiled in pairs:
        good, bad = (judge.embed(x.flatten(0, -2)) for x in (clean, spoiled))
        won.append(float((judge.reward(good, silent(len(good))) > judge.reward(bad, silent(len(bad)))).float().mean()))
    rng = np.random.default_rng(0)
    misses = [near_miss(record["attributes"], rng) for record in records]
    heard = judge.embed(held.clips)
    right, wrong = (judge.reward(heard, judge.text([miss[k] for miss in misses])) for k in (0, 1))
    return {
        "spearman": spearman(predicted, np.array([tracks[i].reward for i in part])),
        "faults, tracks": won[0],
        "faults, clips": won[1],
        "prompts": float((right > wrong).float().mean()),
    }


def ablate_head(
    pretrained: Pretraining, cache: Cache, tracks: list[Track], clips: ComposedClips, config: FitConfig
) -> dict[str, Any]:
    """Figures of heads fitted without one of their tasks."""
    rows = np.array([i for i, track in enumerate(tracks) if not track.is_test])
    part = next(iter(piece_folds(tracks, rows, 5).values()))
    kept = len(cache.clips) - HELD_CLIPS
    names = ("clips", "spoiled_clips", "clip_strength")
    known = replace(cache, **{name: getattr(cache, name)[:kept] for name in names})
    held = replace(cache, **{name: getattr(cache, name)[kept:] for name in names})
    records = [clips.records[i // VERSIONS] for i in range(kept, kept + HELD_CLIPS)]
    known_rows = np.setdiff1d(rows, part)
    encoders = copy.deepcopy(pretrained)
    add_quality(encoders, cache, tracks, known_rows, config.quality)
    out = {}
    for name, changes in HEADS.items():
        options = dict(changes)
        prompted = options.pop("with_prompts", True)
        settings = replace(config, **options)
        judge = fit(copy.deepcopy(encoders), known, tracks, clips, known_rows, settings, prompted)
        out[name] = measure_head(judge, cache, held, tracks, part, records)
        print(f"head without {name}: {out[name]}", flush=True)
    return out


def tables(estimates: dict[str, Any], heads: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| the estimate without | Spearman, pairs over 1, in folds | leaving a collection out |", "|---|---|---|"]
    for name, row in estimates.items():
        cells = [f"{row[split]['spearman']:.3f}, {row[split]['pairs']:.3f}" for split in ("folds", "collections")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if heads:
        keys = list(next(iter(heads.values())))
        lines += ["", f"| the head fitted on | {' | '.join(keys)} |", "|---|" + "---|" * len(keys)]
        for name, row in heads.items():
            what = "all its tasks" if name == "all" else f"all but {name}"
            lines.append(f"| {what} | {' | '.join(f'{row[key]:.3f}' for key in keys)} |")
    return lines


def main(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tracks = load_tracks(config.teacher_dir, config.data_dir / "teacher")
    pretrained = load_pretrained(checkpoint_path(config.data_dir, config.judge), config.judge).eval()
    cache = read_cache(config.data_dir / f"judge_cache-{config.judge}.pt", pretrained.audio)
    estimates = ablate_estimate(pretrained, cache, tracks, config.fit)
    heads: dict[str, Any] = {}
    if config.heads:
        clips = ComposedClips(config.data_dir / "composed" / "train", limit=len(cache.clips) // VERSIONS)
        heads = ablate_head(pretrained, cache, tracks, clips, config.fit)
    lines = tables(estimates, heads)
    print("\n".join(lines))
    if config.output:
        config.output.write_text(json.dumps({"estimate": estimates, "head": heads, "table": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
