"""Pooled statistics of many clips, computed once with the pretrained encoder: what the last layers are fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from corruptions import CORRUPTIONS, mild_change
from judge_data import SAMPLE_RATE, ComposedClips, Track, crop
from torch import Tensor, nn
from tqdm import tqdm

WINDOW = 10 * SAMPLE_RATE  # samples; what the judge hears at a time
TAGGER_WINDOW = 187 * 256  # samples; what the tagging network hears at a time
KINDS = list(CORRUPTIONS)
VERSIONS = 2  # spoiled ones of each composed clip: row i is of clip i // VERSIONS
# the hardest to hear, drawn more often
SUBTLE = [*["clipping"] * 3, *["hum", "drop_outs"] * 2, "silence", "band_limit", "reverb_mud"]


@dataclass(frozen=True)
class Cache:
    """Statistics [..., D] of clean clips and of a spoiled version of each; strength 0 where a row has none."""

    tracks: Tensor  # [tracks, windows, D]
    spoiled_tracks: Tensor  # [tracks, windows, D]
    track_strength: Tensor  # [tracks, windows]
    clips: Tensor  # [clips * VERSIONS, D]
    spoiled_clips: Tensor  # [clips * VERSIONS, D]
    clip_strength: Tensor  # [clips * VERSIONS]
    junk: Tensor  # [n, D]: no music at all
    tagged: Tensor  # [rows, D]: clips with features of the tagging network
    tags: Tensor  # [rows, F]: those features, averaged over the clip
    tag_track: Tensor  # [rows]: the track a tagged clip is from, -1 for a composed or changed one


def _spoil(wav: np.ndarray, length: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    kinds = SUBTLE if rng.random() < 0.5 else KINDS
    kind, strength = kinds[int(rng.integers(len(kinds)))], float(rng.beta(1.3, 1.1))
    spoiled = CORRUPTIONS[kind](wav, strength, rng)[:length]
    if rng.random() < 0.3:  # two faults at once
        spoiled = CORRUPTIONS[KINDS[int(rng.integers(len(KINDS)))]](spoiled, strength * float(rng.random()), rng)
    return spoiled, strength


def _junk(rng: np.random.Generator) -> np.ndarray:
    time = np.arange(WINDOW) / SAMPLE_RATE
    kind = int(rng.integers(5))
    if kind == 0:
        out = rng.standard_normal(WINDOW)
    elif kind == 1:  # brown noise
        out = np.cumsum(rng.standard_normal(WINDOW))
        out = out - np.convolve(out, np.full(4001, 1 / 4001), mode="same")
    elif kind == 2:  # a lasting tone
        out = np.sin(2 * np.pi * np.exp(rng.uniform(4.5, 8.5)) * time)
    elif kind == 3:  # tones without order, every 50 to 500 ms
        hop = int(SAMPLE_RATE * rng.uniform(0.05, 0.5))
        pitch = np.repeat(np.exp(rng.uniform(4.5, 8.0, WINDOW // hop + 1)), hop)[:WINDOW]
        out = np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)
    else:
        out = rng.standard_normal(WINDOW) * 10.0 ** rng.uniform(-6, -3)
        return out.astype(np.float32)
    return (out / (np.abs(out).max() + 1e-9) * 10 ** rng.uniform(-1.5, -0.1)).astype(np.float32)


def _tagged(targets: Path, tracks: list[Track], write: _Writer) -> list[Tensor]:
    """The clips of `distill_targets.py`, as the tagging network heard them; its track numbers count the training tracks
    only."""
    train = [i for i, track in enumerate(tracks) if not track.is_test]
    statistics, tags, numbers = [], [], []
    for path in tqdm(sorted(targets.glob("[0-9]*.npz")), desc="tagged"):
        rows, heard = np.load(path), np.load(path.with_suffix(".npy"), mmap_mode="r")
        wavs = []
        for kind, index, features, audio in zip(rows["kind"], rows["idx"], rows["T"], heard, strict=True):
            windows = int(np.isfinite(features[:, 0].astype(np.float32)).sum())
            wavs.append(crop(audio, 0, windows * TAGGER_WINDOW))
            tags.append(torch.from_numpy(features[:windows].astype(np.float32).mean(0)))
            numbers.append(-1 if kind else train[index])
        statistics.append(write(wavs))
    return [torch.cat(statistics), torch.stack(tags), torch.tensor(numbers)]


class _Writer:
    def __init__(self, encoder: nn.Module, batch: int = 32) -> None:
        self.encoder, self.batch = encoder, batch

    @torch.no_grad()
    def __call__(self, wavs: list[np.ndarray]) -> Tensor:
        """Statistics [len(wavs), D]; clips of one length are batched together."""
        out: list[Tensor] = [torch.empty(0)] * len(wavs)
        order = sorted(range(len(wavs)), key=lambda i: len(wavs[i]))
        while order:
            rows = [i for i in order if len(wavs[i]) == len(wavs[order[0]])][: self.batch]
            order = order[len(rows) :]
            values = self.encoder.statistics(torch.from_numpy(np.stack([wavs[i] for i in rows]).astype(np.float32)))
            for i, value in zip(rows, values, strict=True):
                out[i] = value
        return torch.stack(out)


def build_cache(
    encoder: nn.Module, tracks: list[Track], clips: ComposedClips, targets: Path, windows: int,
    num_clips: int, seed: int,
) -> Cache:  # fmt: skip
    """Draw windows and faults, and embed them. `tracks` may hold test tracks: the fit must not use their rows."""
    rng = np.random.default_rng(seed)
    write = _Writer(encoder.eval())
    track_rows: list[list[Tensor]] = [[], []]
    track_strength = []
    for track in tqdm(tracks, desc="tracks"):
        last = max(0, len(track.audio) - WINDOW)
        # spread evenly from start to end, as the judge hears a track, and moved a little
        starts = np.clip(np.linspace(0, last, windows) + rng.normal(0, 8000, windows), 0, last).astype(int)
        clean = [crop(track.audio, int(s), min(WINDOW, len(track.audio))) for s in starts]
        spoiled = [_spoil(crop(track.audio, int(s), int(1.06 * WINDOW)), WINDOW, rng) for s in starts]
        track_strength.append([s for _, s in spoiled])
        clean = [mild_change(wav, rng) if i % 3 == 0 else wav for i, wav in enumerate(clean)]
        spoiled_wavs = [mild_change(wav, rng) if i % 4 == 0 else wav for i, (wav, _) in enumerate(spoiled)]
        track_rows[0].append(write([wav[:WINDOW] for wav in clean]))
        track_rows[1].append(write([np.pad(wav, (0, WINDOW - len(wav))) for wav in spoiled_wavs]))
    clip_rows: list[list[Tensor]] = [[], []]
    clip_strength: list[float] = []
    for begin in tqdm(range(0, num_clips, 32), desc="clips"):
        some = clips.audio[begin : min(begin + 32, num_clips)]
        audio = [crop(a, 0, len(a)) for a in some for _ in range(VERSIONS)]
        spoiled = [_spoil(wav, len(wav), rng) for wav in audio]
        clip_strength += [s for _, s in spoiled]
        # a clip's length must not betray a change of speed
        short = int(0.94 * len(audio[0]))
        clean = [mild_change(wav, rng) if i % 3 == 0 else wav for i, wav in enumerate(audio)]
        clip_rows[0].append(write([wav[:short] if i % 2 else wav for i, wav in enumerate(clean)]))
        clip_rows[1].append(
            write([(mild_change(wav, rng) if i % 4 == 0 else wav)[:short] for i, (wav, _) in enumerate(spoiled)])
        )
    junk = write([_junk(rng) for _ in range(512)])
    return Cache(
        torch.stack(track_rows[0]), torch.stack(track_rows[1]), torch.tensor(track_strength),
        torch.cat(clip_rows[0]), torch.cat(clip_rows[1]), torch.tensor(clip_strength), junk,
        *_tagged(targets, tracks, write),
    )  # fmt: skip


def read_cache(path: Path, encoder: nn.Module) -> Cache:
    """The cache at `path`; one line if it is of other encoders, or laid out otherwise."""
    if not path.exists():
        raise SystemExit(f"error: {path} is missing: train_judge.py makes it")
    kept, probe = torch.load(path, weights_only=True), _probe(encoder)
    made, versions = kept.pop("probe", torch.empty(0)), kept.pop("versions", None)
    if versions != VERSIONS or made.shape != probe.shape or not torch.allclose(made, probe, atol=0.05):
        raise SystemExit(f"error: {path} is of other encoders, or of an earlier form: delete it, and it is made anew")
    return Cache(**kept)


@torch.no_grad()
def _probe(encoder: nn.Module) -> Tensor:
    """Statistics [1, D] of a fixed noise: half precision changes them little, another pretraining much."""
    noise = torch.randn(1, 2 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    return encoder.eval().statistics(0.1 * noise)


def load_or_build(
    path: Path, encoder: nn.Module, tracks: list[Track], clips: ComposedClips, targets: Path, windows: int,
    num_clips: int, seed: int,
) -> Cache:  # fmt: skip
    """The cache at `path`, made if it is not there."""
    if not path.exists():
        cache = build_cache(encoder, tracks, clips, targets, windows, num_clips, seed)
        kept = {**vars(cache), "probe": _probe(encoder), "versions": VERSIONS}
        torch.save(kept, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    return read_cache(path, encoder)
