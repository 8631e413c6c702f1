"""An independent listener that never meets the judge: lead-instrument family, drums, tempo class and mode from audio.

It is trained on real renders (recipes/compact/compose.py --split train) and measured on held-out ones (--split test);
its own accuracy there is the ceiling of what it can confirm about generated clips. No part or output of it reaches the
compact judge or backbone.

    python benchmarks/attribute_classifier.py --composed data/compact/composed    # trains, writes the weights
    python benchmarks/attribute_classifier.py --composed data/compact/composed --only-mode    # the key listener alone
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from key_listener import KEYS, KeyListener, chroma
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WEIGHTS = Path(__file__).parent / "attribute_classifier.safetensors"
SAMPLE_RATE = 16_000
FAMILIES = (
    "bells",
    "brass",
    "distortion",
    "flute",
    "guitar",
    "keys",
    "organ",
    "pad",
    "reed",
    "strings",
    "synth",
    "voice",
)
CLASSES: dict[str, tuple[str, ...]] = {
    "lead_family": FAMILIES,
    "drums": ("False", "True"),
    "tempo_class": ("slow", "medium", "fast"),
    "mode": ("major", "minor"),
}
# what the mean of a clip's attributes is of; it leaves out the mode, which generators here learned to follow last
RELIABLE = ("lead_family", "drums", "tempo_class")


def labels_of(attributes: dict) -> dict[str, int]:
    """Class index per attribute of a composed clip (or of a prompt's record)."""
    return {
        "lead_family": FAMILIES.index(attributes["lead_family"]),
        "drums": int(attributes["drums"]),
        "tempo_class": CLASSES["tempo_class"].index(attributes["tempo_class"]),
        "mode": int(attributes["minor"]),
    }


def features(wav: Tensor) -> tuple[Tensor, Tensor]:
    """Log-frequency spectrogram [B, 84, frames] (a semitone a bin, from C2) and onset autocorrelation [B, 3, 128].

    Args:
        wav: [B, T] mono 16 kHz.
    """
    wav = wav / (wav.square().mean(1, keepdim=True).sqrt() + 1e-4)
    window = torch.hann_window(2048)
    power = torch.stft(wav, 2048, 320, window=window, return_complex=True).abs().square()
    frequencies = torch.arange(1025) * SAMPLE_RATE / 2048
    centers = 65.41 * 2 ** (torch.arange(84) / 12)
    distance = (frequencies[None] - centers[:, None]).abs() / torch.clamp(centers[:, None] * 0.06, min=8.0)
    pitch = torch.log1p(torch.einsum("kf,bft->bkt", (1 - distance).clamp_min(0), power)) / 6
    flux = (pitch[..., 1:] - pitch[..., :-1]).clamp_min(0)
    bands = torch.stack([band.mean(1) for band in flux.split(28, dim=1)], dim=1)
    bands = bands - bands.mean(-1, keepdim=True)
    spectrum = torch.fft.rfft(bands, n=2 * bands.shape[-1])
    correlation = torch.fft.irfft(spectrum.abs().square())[..., 1:129]
    return pitch, correlation / (correlation[..., :1].abs() + 1e-4)


class AttributeClassifier(nn.Module):
    """A small convolution network over the semitone spectrogram, a tempo head over the onset autocorrelation, and a
    listener of its own for the mode.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 64, 96)
        layers: list[nn.Module] = []
        for before, after, stride in zip((1, *widths), widths, ((1, 2), 2, 2, 2), strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.network = nn.Sequential(*layers)
        self.chroma = nn.Sequential(nn.Linear(12 * 24, 96), nn.ReLU())
        self.tempo = nn.Sequential(nn.Linear(3 * 128, 128), nn.ReLU(), nn.Dropout(0.2))
        self.dropout = nn.Dropout(0.3)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(4 * 96 + 96 + 128, len(classes)) for name, classes in CLASSES.items() if name != "mode"}
        )
        self.key = KeyListener()

    def forward(self, wav: Tensor) -> dict[str, Tensor]:
        """Logits per attribute, [B, classes], of mono 16 kHz clips [B, T]."""
        pitch, correlation = features(wav)
        grid = self.network(pitch[:, None])  # [B, 96, rows, frames]
        low, high = grid.chunk(2, dim=2)
        pooled = [part.mean((2, 3)) for part in (low, high)] + [part.amax((2, 3)) for part in (low, high)]
        folded = pitch.unflatten(1, (7, 12)).mean(1)  # chroma over time
        folded = F.adaptive_avg_pool1d(folded, 24)
        # rotate to the loudest pitch class, so that modes look alike in every key
        tonic = folded.mean(-1).argmax(1)
        rolled = (torch.arange(12)[None] + tonic[:, None]) % 12
        folded = folded.gather(1, rolled[..., None].expand(-1, -1, 24))
        hidden = torch.cat([*pooled, self.chroma(folded.flatten(1)), self.tempo(correlation.flatten(1))], dim=1)
        hidden = self.dropout(hidden)
        return {name: head(hidden) for name, head in self.heads.items()} | {"mode": self.key(wav)}

    @torch.inference_mode()
    def probability(self, wav: Tensor, records: list[dict]) -> dict[str, np.ndarray]:
        """Probability the listener gives to each record's own attribute, per attribute [B]."""
        logits = self.eval()(wav)
        wanted = [labels_of(record) for record in records]
        return {
            name: value.softmax(1)[torch.arange(len(wav)), torch.tensor([row[name] for row in wanted])].numpy()
            for name, value in logits.items()
        }

    @torch.inference_mode()
    def correct(self, wav: Tensor, records: list[dict]) -> dict[str, np.ndarray]:
        """Whether its first guess is each record's own attribute, per attribute, booleans [B]."""
        logits = self.eval()(wav)
        wanted = [labels_of(record) for record in records]
        return {
            name: (value.argmax(1) == torch.tensor([row[name] for row in wanted])).numpy()
            for name, value in logits.items()
        }


def load_classifier(path: Path = WEIGHTS) -> AttributeClassifier:
    model = AttributeClassifier()
    model.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    )
    return model.eval()


def load_composed(folder: Path) -> tuple[list[np.ndarray], list[dict]]:
    """Shards (memory-mapped int16 [n, T]) and attribute records of one split folder."""
    paths = sorted(folder.glob("shard-????.npy"))
    if not paths:
        raise SystemExit(f"error: no composed shards in {folder}: run recipes/compact/compose.py first")
    records = [json.loads(line) for path in paths for line in path.with_suffix(".jsonl").read_text().splitlines()]
    return [np.load(path, mmap_mode="r") for path in paths], [record["attributes"] for record in records]


@dataclass(frozen=True)
class Config:
    """Training of the independent listener."""

    composed: Path = Path("data/compact/composed")
    epochs: int = 5
    threads: int = 1
    only_mode: bool = False
    """Leave the network as it is."""


def accuracy(model: AttributeClassifier, shards: list[np.ndarray], records: list[dict]) -> dict[str, float]:
    hits: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    position = 0
    for shard in shards:
        for start in range(0, len(shard), 50):
            wav = torch.from_numpy(shard[start : start + 50].astype(np.float32) / 32767)
            for name, values in model.correct(wav, records[position : position + len(wav)]).items():
                hits[name].append(values)
            position += len(wav)
    return {name: float(np.concatenate(values).mean()) for name, values in hits.items()}


def train_network(model: AttributeClassifier, shards: list[np.ndarray], records: list[dict], config: Config) -> None:
    rng = np.random.default_rng(0)
    offsets = np.cumsum([0] + [len(shard) for shard in shards])
    labels = {name: torch.tensor([labels_of(record)[name] for record in records]) for name in model.heads}
    learned = [value for name, value in model.named_parameters() if not name.startswith("key.")]
    optimizer = torch.optim.AdamW(learned, 2e-3, weight_decay=0.02)
    batch_size = 32
    total = config.epochs * (len(records) // batch_size)
    step = 0
    model.train()
    for epoch in range(config.epochs):
        order = rng.permutation(len(records))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            rows = np.sort(order[start : start + batch_size])
            which = np.searchsorted(offsets, rows, side="right") - 1
            clips = (
                np.stack([shards[s][r - offsets[s]] for s, r in zip(which, rows, strict=True)]).astype(np.float32)
                / 32767
            )
            wav = torch.from_numpy(clips)
            # a little noise and a random tilt, so that a codec's colour is not mistaken for an instrument
            wav = wav + torch.randn_like(wav) * wav.std(1, keepdim=True) * float(10 ** rng.uniform(-4, -1.5))
            tilt = float(rng.uniform(-0.5, 0.5))
            wav = F.pad(wav, (1, 0))[:, :-1] * tilt + wav
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / total)) + 1e-5
            logits = model(wav)
            loss = torch.stack([F.cross_entropy(logits[name], labels[name][rows]) for name in model.heads]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            if step % 50 == 0:
                print(f"epoch {epoch} step {step}/{total} loss {float(loss.detach()):.3f}", flush=True)
    model.eval()


def fit_mode(model: AttributeClassifier, shards: list[np.ndarray], records: list[dict]) -> None:
    heard = []
    for shard in shards:
        for start in range(0, len(shard), 50):
            heard.append(chroma(torch.from_numpy(shard[start : start + 50].astype(np.float32) / 32767)))
    tonic = torch.tensor([KEYS.index(record["key"]) for record in records])
    model.key.fit(torch.cat(heard), tonic, torch.tensor([labels_of(record)["mode"] for record in records]))


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    shards, records = load_composed(config.composed / "train")
    model = load_classifier() if config.only_mode else AttributeClassifier()
    if not config.only_mode:
        train_network(model, shards, records, config)
    fit_mode(model, shards, records)
    test_shards, test_records = load_composed(config.composed / "test")
    heard = accuracy(model, test_shards, test_records)
    print("held-out renders:", {name: round(value, 3) for name, value in heard.items()}, flush=True)
    about = {"trained_by": "benchmarks/attribute_classifier.py", "clips": str(len(records))}
    if config.only_mode:
        with safe_open(WEIGHTS, "pt") as file:
            about = {**file.metadata(), "mode_clips": str(len(records))}
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file(state, WEIGHTS, metadata=about)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
