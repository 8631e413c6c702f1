"""Two listeners to compact-musicgen's codes, whose gradients tell it where a clip goes against its prompt.

Of unlike build, so that what fools one need not fool the other: `FrameCritic` hears the latents as they are, and
`PitchCritic` the semitones that they mean. Neither is the listener of the benchmarks, which hears audio alone, nor part
of a judge: what the language model learns from these is measured by that one (benchmarks/backbone_quality.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from captions import TEMPO_WORDS
from encodec_parts import HIDDEN, SAMPLE_RATE
from spectral_codes import N_FFT, SpectralCodes
from styles import INSTRUMENTS
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from training_tools import load_checkpoint

CLASSES: dict[str, tuple[Any, ...]] = {
    "lead_family": tuple(sorted({instrument.family for instrument in INSTRUMENTS.values()})),
    "drums": (False, True),
    "tempo_class": tuple(TEMPO_WORDS),
    "minor": (False, True),
}
# tempo, drums and so on lie in the codes' frames of 32 ms; lags up to 3.2 s for the one, 1.9 s in halves for the other
FRAME_LAGS, PITCH_LAGS = 100, 120
LOWEST, PITCHES = 40, 72  # MIDI numbers: those that a window of 64 ms begins to tell apart
QUIET = 0.3  # magnitude below which a semitone is as good as silent


def classes_of(records: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Class index [B] per attribute of composed clips' or prompts' attributes."""
    return {
        name: torch.tensor([classes.index(record[name]) for record in records]) for name, classes in CLASSES.items()
    }


def autocorrelation(rises: Tensor, lags: int) -> Tensor:
    """[B, C, T], rises of loudness -> [B, C * lags], relative to their power: peaks at the time between beats."""
    rises = rises - rises.mean(dim=-1, keepdim=True)
    found = torch.fft.irfft(torch.fft.rfft(rises, n=2 * rises.shape[-1]).abs().square())
    return (found[..., 1 : lags + 1] / (found[..., :1] + 1e-3)).flatten(1)


def _tempo(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(0.3))


def _heads(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(width, len(classes)) for name, classes in CLASSES.items()})


class FrameCritic(nn.Module):
    """Convolutions over the frames of latents [B, D, L]; logits [B, classes] per attribute."""

    def __init__(self, width: int = 160, bands: int = 12) -> None:
        super().__init__()
        self.frames = nn.Sequential(nn.Conv1d(HIDDEN, width, 1), nn.BatchNorm1d(width), nn.ReLU())
        layers: list[nn.Module] = []
        for stride in (1, 2, 2, 2):
            layers += [nn.Conv1d(width, width, 5, stride, 2, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.network = nn.Sequential(*layers)
        self.onsets = nn.Conv1d(HIDDEN, bands, 3, padding=1)
        self.tempo = _tempo(bands * FRAME_LAGS, 128)
        self.dropout = nn.Dropout(0.3)
        self.heads = _heads(4 * width + 128)

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        frames = self.frames(latents)
        longer = self.network(frames)
        rises = self.onsets(latents).diff(dim=-1).relu()
        pooled = [part for grid in (frames, longer) for part in (grid.mean(dim=-1), grid.amax(dim=-1))]
        hidden = self.dropout(torch.cat([*pooled, self.tempo(autocorrelation(rises, FRAME_LAGS))], dim=1))
        return {name: head(hidden) for name, head in self.heads.items()}


class PitchCritic(nn.Module):
    """Convolutions over the semitones and half frames that latents [B, D, L] mean; logits [B, classes] per attribute.

    Args:
        codes: tell what latents mean.
    """

    def __init__(self, codes: SpectralCodes) -> None:
        super().__init__()
        centers = 440 * 2 ** ((torch.arange(LOWEST, LOWEST + PITCHES) - 69) / 12)
        bins = torch.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT
        near = (1 - (bins - centers[:, None]).abs() / (0.06 * centers[:, None]).clamp_min(16)).clamp_min(0)
        self.register_buffer("semitones", near / near.sum(dim=1, keepdim=True))
        self.register_buffer("components", codes.components * codes.scale)
        self.register_buffer("mean", codes.mean)
        widths = (16, 32, 48, 64)
        layers: list[nn.Module] = []
        for before, after, stride in zip((1, *widths), widths, ((1, 2), 2, 2, 2), strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.network = nn.Sequential(*layers)
        self.tempo = _tempo(4 * PITCH_LAGS, 96)
        self.chroma = nn.Sequential(nn.Linear(12 * 16, 64), nn.ReLU())
        self.dropout = nn.Dropout(0.3)
        self.heads = _heads(4 * widths[-1] + 96 + 64)

    def pitches(self, latents: Tensor) -> Tensor:
        """Log magnitudes [B, PITCHES, 2 L]."""
        logs = (latents.transpose(1, 2) @ self.components + self.mean).unflatten(2, (2, -1)).flatten(1, 2)
        # a loudness that no clip has, and that would overflow, is none that can be asked for
        return (logs.clamp(-4, 8).exp() @ self.semitones.T + QUIET).log().transpose(1, 2)

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        pitches = self.pitches(latents)
        pitches = pitches - pitches.mean(dim=(1, 2), keepdim=True)
        low, high = self.network(pitches[:, None] / 2).chunk(2, dim=2)
        pooled = [part.mean(dim=(2, 3)) for part in (low, high)] + [part.amax(dim=(2, 3)) for part in (low, high)]
        rises = torch.stack([band.mean(dim=1) for band in pitches.diff(dim=-1).relu().split(18, dim=1)], dim=1)
        chroma = F.adaptive_avg_pool1d(pitches.unflatten(1, (-1, 12)).mean(dim=1), 16)
        parts = [*pooled, self.tempo(autocorrelation(rises, PITCH_LAGS)), self.chroma(chroma.flatten(1))]
        hidden = self.dropout(torch.cat(parts, dim=1))
        return {name: head(hidden) for name, head in self.heads.items()}


def build_critics(codes: SpectralCodes) -> nn.ModuleDict:
    return nn.ModuleDict({"frame": FrameCritic(), "pitch": PitchCritic(codes)})


def load_critics(path: Path, codes: SpectralCodes) -> nn.ModuleDict:
    """Those of train_critics.py, to listen and not to learn."""
    if (saved := load_checkpoint(path)) is None:
        raise SystemExit(f"error: {path} is missing: run train_critics.py first")
    critics = build_critics(codes)
    critics.load_state_dict(saved["ema"])
    return critics.eval().requires_grad_(False)
