"""Pretrain the compact judge's encoders, without any reward: what plays, what spoils it, which prompt describes it.

Five tasks share the encoders: the features of a music-tagging network (`distill_targets.py`), the composer's
attributes, the prompt among others and against a near miss, the kind of a corruption, and clean over corrupted. No test
track is heard.

    python recipes/compact/pretrain_judge.py --teacher-dir DIR --data-dir data/compact --minutes 25
    python recipes/compact/pretrain_judge.py --teacher-dir DIR --judge compact-b --seed 1 --clip-share 0.7 --minutes 55
"""

from __future__ import annotations

import collections
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from captions import DRUM_WORDS, GENRE_WORDS, INSTRUMENT_WORDS
from corruptions import CORRUPTIONS, mild_change
from judge_data import ComposedClips, Track, crop, load_tracks
from prompt_words import lose_words, near_miss, training_prompt
from torch import Tensor, nn

from tunejury.encoders.compact import (
    CompactAudioConfig,
    CompactAudioEncoder,
    CompactTextConfig,
    CompactTextEncoder,
    split_words,
)
from tunejury.encoders.patch_audio import PatchAudioConfig, PatchAudioEncoder
from tunejury.head import PromptMatch

FRAME = 187 * 256  # samples of one window of the tagging network
KINDS = list(CORRUPTIONS)
INSTRUMENTS, GENRES, STYLES = list(INSTRUMENT_WORDS), list(GENRE_WORDS), list(DRUM_WORDS)
TEMPO_BINS = 24  # twelve to the octave, from 48 beats per minute
DROPOUT = 0.15  # of the pooled statistics
JudgeName = Literal["compact", "compact-b"]


def fresh_encoders(judge: JudgeName, vocabulary: tuple[str, ...]) -> tuple[Any, CompactTextEncoder]:
    """Audio and text encoder of a shipped judge, untrained."""
    if judge == "compact":
        text = CompactTextConfig(vocabulary=vocabulary)
        return CompactAudioEncoder(CompactAudioConfig()), CompactTextEncoder(text)
    text = CompactTextConfig(vocabulary=vocabulary, width=96, ngram_buckets=2048)
    return PatchAudioEncoder(PatchAudioConfig()), CompactTextEncoder(text)


def checkpoint_path(data_dir: Path, judge: JudgeName) -> Path:
    """Where the pretrained encoders of a judge are kept."""
    return data_dir / f"pretrained-{judge}.pt"


@dataclass(frozen=True)
class Config:
    """Settings of the pretraining stage."""

    teacher_dir: Path
    """Folder with teacher.csv and midi/."""
    data_dir: Path = Path("data/compact")
    """Holds teacher/ (renders), composed/ and targets/; the checkpoint goes here too."""
    judge: JudgeName = "compact"
    """Whose encoders; the two are built differently."""
    minutes: float = 25.0
    clips: int = 24
    """Clean clips per step of each source (composed, teacher); corrupted ones come on top."""
    clip_share: float = 1.0
    """Share of the composed clips that is drawn from, chosen by the seed: two judges should not learn the same ones."""
    learning_rate: float = 2e-3
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    """CPU threads; torch's own choice if not given."""


class Pretraining(nn.Module):
    """The encoders and the heads that only pretraining uses."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, judge: JudgeName, vocabulary: tuple[str, ...], targets: int) -> None:
        super().__init__()
        self.audio, self.text = fresh_encoders(judge, vocabulary)
        self.match = PromptMatch(self.audio.dim, self.text.dim)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("feature_mean", torch.zeros(targets))  # of the tagging network's features
        self.register_buffer("feature_std", torch.ones(targets))
        sizes = {
            "features": targets, "lead": len(INSTRUMENTS), "backing": len(INSTRUMENTS), "genre": len(GENRES),
            "drums": 1, "style": len(STYLES), "tempo": TEMPO_BINS, "bass": 1, "minor": 1, "density": 3,
            "kind": len(KINDS) + 1, "clean": 1,
        }  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(self.audio.dim, size) for name, size in sizes.items()})

    def embed(self, wav: Tensor) -> Tensor:
        """The audio encoder's forward with some of the pooled statistics dropped: wav [B, T] -> [B, dim]."""
        statistics = F.dropout(self.audio.normalize(self.audio.statistics(wav)), DROPOUT, self.training)
        return self.audio.linear(statistics) + self.audio.mlp(statistics)


def attribute_loss(model: Pretraining, embedding: Tensor, records: list[dict]) -> Tensor:
    """Cross-entropies of the composer's attributes, embeddings [B, dim] -> scalar."""
    names = [record["attributes"] for record in records]

    def classes(head: str, values: list[int]) -> Tensor:
        return F.cross_entropy(model.heads[head](embedding), torch.tensor(values, device=embedding.device))

    def binary(head: str, values: list[list[float]]) -> Tensor:
        target = torch.tensor(values, device=embedding.device)
        return F.binary_cross_entropy_with_logits(model.heads[head](embedding), target)

    tempo = [min(TEMPO_BINS - 1, max(0, round(12 * math.log2(a["tempo"] / 48)))) for a in names]
    loss = classes("lead", [INSTRUMENTS.index(a["lead"]) for a in names]) + classes("tempo", tempo)
    loss = loss + classes("genre", [GENRES.index(a["genre"]) for a in names])
    loss = loss + 8 * binary("backing", [[float(name == a["accompaniment"]) for name in INSTRUMENTS] for a in names])
    loss = loss + 2 * binary("drums", [[float(a["drums"])] for a in names])
    loss = loss + 4 * binary("style", [[float(a["drums"] and s == a["drum_style"]) for s in STYLES] for a in names])
    loss = loss + 0.5 * binary("bass", [[float(a["bass"] is not None)] for a in names])
    loss = loss + binary("minor", [[float(a["minor"])] for a in names])
    return loss + 0.5 * classes("density", [("sparse", "moderate", "busy").index(a["density"]) for a in names])


class Batches:
    """Draws batches: composed clips, track crops, changed clips (for features), spoiled ones of the first two."""

    def __init__(self, config: Config, tracks: list[Track], clips: ComposedClips, targets: Path) -> None:
        self.tracks, self.clips, self.size = tracks, clips, config.clips
        self.rng = np.random.default_rng((config.seed, int(time.time())))
        chosen = np.random.default_rng(config.seed).permutation(len(clips))
        self.chosen = chosen[: max(1, round(config.clip_share * len(clips)))]
        paths = sorted(targets.glob("[0-9]*.npz"))
        rounds = [np.load(path) for path in paths]
        self.kind, self.index, self.targets = (np.concatenate([r[key] for r in rounds]) for key in ("kind", "idx", "T"))
        self.audio = [wav for path in paths for wav in np.load(path.with_suffix(".npy"), mmap_mode="r")]
        flat = self.targets.astype(np.float32)
        self.windows = np.isfinite(flat[:, :, 0]).sum(1)
        self.mean, self.std = np.nanmean(flat, (0, 1)), np.nanstd(flat, (0, 1)) + 1e-3
        self.rows = [np.flatnonzero(self.kind == kind) for kind in (0, 1, 2)]
        self.rows[1] = self.rows[1][np.isin(self.index[self.rows[1]], self.chosen)]

    def _spoil(self, wav: np.ndarray, length: int) -> tuple[np.ndarray, int]:
        kind = int(self.rng.integers(len(KINDS)))
        strength = float(self.rng.beta(1.2, 1.2))
        spoiled = CORRUPTIONS[KINDS[kind]](wav, strength, self.rng)[:length]
        return np.pad(spoiled, (0, length - len(spoiled))), kind

    def _labelled(self, kind: int, frames: int) -> tuple[np.ndarray, np.ndarray, int]:
        """A stretch of `frames` windows and a little more, its standardised features, and its clip's number."""
        row = int(self.rng.choice(self.rows[kind]))
        part = int(self.rng.integers(0, self.windows[row] - frames + 1))
        target = self.targets[row, part : part + frames].astype(np.float32).mean(0)
        wav = crop(self.audio[row][: self.windows[row] * FRAME], part * FRAME, int(1.06 * frames * FRAME))
        return wav, (target - self.mean) / self.std, int(self.index[row])

    def draw(self, frames: int, count: int) -> dict:
        """`count` composed clips and track crops each, half as many changed ones, `frames` windows of 3 s long, then
        spoiled versions of every other clip of the first two."""
        rng, length = self.rng, frames * FRAME
        wavs: list[np.ndarray] = []
        features, records, captions, spoiled, kinds = [], [], [], [], []
        unknown = np.full(len(self.mean), np.nan, np.float32)
        changed = count // 2 if len(self.rows[2]) else 0
        for source in [1] * count + [0] * count + [2] * changed:
            if source == 1 and rng.random() < 0.6:  # a clip without features of the tagging network
                clip = int(rng.choice(self.chosen))
                start = int(rng.integers(0, 128_000 - length + 1))
                long, target = crop(self.clips.audio[clip], start, int(1.06 * length)), unknown
            else:
                long, target, clip = self._labelled(source, frames)
            if source == 1:
                records.append(self.clips.records[clip])
            elif source == 0:
                captions.append(self.tracks[clip].caption)
            if source < 2 and len(wavs) % 2 == 0:
                bad, kind = self._spoil(long, length)
                spoiled.append(mild_change(bad, rng) if rng.random() < 0.3 else bad)
                kinds.append(kind)
            wav = long[:length]
            wavs.append(mild_change(wav, rng) if rng.random() < 0.4 else wav)
            features.append(target)
        return {
            "wav": torch.from_numpy(np.stack(wavs + spoiled)),
            "features": torch.from_numpy(np.stack(features)),
            "records": records,
            "captions": captions,
            "kinds": torch.tensor(kinds),
        }


def shorten(caption: str, rng: np.random.Generator) -> str:
    """One to three of a caption's sentences, some words lost."""
    sentences = [s for s in caption.split(". ") if s]
    keep = rng.permutation(len(sentences))[: int(rng.integers(1, 4))]
    return lose_words(". ".join(sentences[i] for i in sorted(keep)), rng)


def contrast(scores: Tensor) -> Tensor:
    """Symmetric cross-entropy of a [B, B] matrix of scores whose diagonal is right."""
    right = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


def step_loss(model: Pretraining, batch: dict, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
    """All tasks on one batch: the loss and its parts."""
    embedding = model.embed(batch["wav"])
    count, labelled = len(batch["records"]), len(batch["features"])
    clean, spoiled = embedding[: 2 * count], embedding[labelled:]
    known = ~batch["features"].isnan().any(1)
    guess = model.heads["features"](embedding[:labelled][known])
    parts = {"features": F.mse_loss(guess, batch["features"][known])}
    parts["attributes"] = attribute_loss(model, clean[:count], batch["records"])

    attributes = [record["attributes"] for record in batch["records"]]
    true = [training_prompt(a, rng) for a in attributes]
    misses = [near_miss(a, rng) for a in attributes]
    real = [shorten(caption, rng) for caption in batch["captions"]]
    text = model.text(true + [m[0] for m in misses] + [m[1] for m in misses] + real)
    ones = torch.ones(1, model.text.dim, device=text.device)
    projected = model.match(clean, ones)  # times one: the projection itself
    scale = model.log_scale.exp().clamp(max=40.0)
    parts["prompt"] = contrast(scale * projected[:count] @ text[:count].T / model.text.dim)
    difference = (projected[:count] * (text[count : 2 * count] - text[2 * count : 3 * count])).mean(-1)
    parts["near miss"] = F.softplus(-scale * difference).mean()
    parts["caption"] = contrast(scale * projected[count:] @ text[3 * count :].T / model.text.dim)

    paired = clean[::2]
    gap = (model.heads["clean"](paired) - model.heads["clean"](spoiled)).squeeze(-1)
    parts["ladder"] = F.softplus(1.0 - gap).mean()
    kinds = torch.cat([torch.full((len(paired),), len(KINDS), device=gap.device), batch["kinds"]])
    parts["kind"] = F.cross_entropy(model.heads["kind"](torch.cat([paired, spoiled])), kinds)
    weights = {"features": 2.0, "attributes": 0.2, "prompt": 0.4, "near miss": 1.0, "caption": 0.15, "ladder": 1.0,
               "kind": 0.2}  # fmt: skip
    loss = sum((weights[name] * value for name, value in parts.items()), torch.zeros(()))
    return loss, {name: float(value.detach()) for name, value in parts.items()}


def build_vocabulary(clips: ComposedClips, tracks: list[Track]) -> tuple[str, ...]:
    """Words that training prompts use at least three times, in alphabetical order."""
    rng = np.random.default_rng(0)
    texts = [training_prompt(record["attributes"], rng) for record in clips.records for _ in range(3)]
    texts += [text for record in clips.records for text in near_miss(record["attributes"], rng)[:2]]
    texts += [track.caption for track in tracks]
    counts = collections.Counter(word for text in texts for word in split_words(text))
    return tuple(sorted(word for word, count in counts.items() if count >= 3 and not word[0].isdigit()))


def main(config: Config) -> None:
    torch.manual_seed(config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tracks = [t for t in load_tracks(config.teacher_dir, config.data_dir / "teacher") if not t.is_test]
    clips = ComposedClips(config.data_dir / "composed" / "train")
    batches = Batches(config, tracks, clips, config.data_dir / "targets")
    checkpoint = checkpoint_path(config.data_dir, config.judge)
    saved = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    vocabulary = tuple(saved["vocabulary"]) if saved else build_vocabulary(clips, tracks)
    model = Pretraining(config.judge, vocabulary, len(batches.mean)).to(config.device).train()
    model.feature_mean.copy_(torch.from_numpy(batches.mean))
    model.feature_std.copy_(torch.from_numpy(batches.std))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.05)
    step, spent = 0, 0.0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]
    print(f"{len(tracks)} tracks, {len(clips)} clips, {len(vocabulary)} words, {len(batches.kind)} rows of features")
    means: collections.defaultdict[str, float] = collections.defaultdict(float)
    begun = time.monotonic() - spent
    while (spent := time.monotonic() - begun) < 60 * config.minutes:
        done = spent / (60 * config.minutes)
        rate = config.learning_rate * min(1.0, (step + 1) / 50, 1.05 - done if done > 0.3 else 1.0)
        rate *= 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        frames = 1 if step % 3 else 2
        batch = batches.draw(frames, config.clips if frames == 1 else config.clips // 2)
        batch = {k: v.to(config.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        loss, parts = step_loss(model, batch, batches.rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        step += 1
        for name, value in parts.items():
            means[name] += value / 50
        if step % 50 == 0:
            print(f"{spent / 60:5.1f} min {step:5d} " + " ".join(f"{k} {v:.3f}" for k, v in means.items()), flush=True)
            means.clear()
        if step % 200 == 0:
            save(checkpoint, model, optimizer, step, spent)
    save(checkpoint, model, optimizer, step, spent)


def save(path: Path, model: Pretraining, optimizer: torch.optim.Optimizer, step: int, spent: float) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}
    state["vocabulary"] = list(model.text.config.vocabulary)
    torch.save(state, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
