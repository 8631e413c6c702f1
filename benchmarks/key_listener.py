"""Major or minor, heard by way of the key: templates of 24 keys that are one another's transpositions.

A convolution network hardly learned it from the clips. This does with 146 numbers: what a pitch class sounds like,
in three registers, over the whole clip and its beginning, beside that of each possible tonic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

SAMPLE_RATE = 16_000
KEYS = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")  # as the composer writes them
WINDOW, HOP = 8192, 2048
REGISTERS = ((40.0, 180.0), (180.0, 700.0), (700.0, 2800.0))  # Hz: bass, chords, melody
BEGINNING = 12  # frames, 1.5 s: most pieces begin on their tonic


def chroma(wav: Tensor) -> Tensor:
    """How loud each pitch class is [B, 6, 12] in mono 16 kHz clips [B, T]: three registers, whole and beginning."""
    size = wav.shape[-1]
    wav = F.pad(wav, (0, max(0, WINDOW - size)))
    spectrum = torch.stft(wav, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs().sqrt()
    frequencies = torch.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    rows = []
    for low, high in REGISTERS:
        within = (frequencies > low) & (frequencies < high)
        pitch = 69 + 12 * torch.log2(frequencies[within] / 440)
        centred = torch.exp(-(((pitch - pitch.round()) / 0.3) ** 2))
        folded = torch.zeros(len(wav), 12, spectrum.shape[-1])
        folded = folded.index_add(1, pitch.round().long() % 12, spectrum[:, within] * centred[:, None])
        folded = folded / (folded.mean((1, 2), keepdim=True) + 1e-6)
        rows += [folded.mean(2), folded[..., :BEGINNING].mean(2)]
    stacked = torch.stack(rows, dim=1)
    return stacked - stacked.mean(-1, keepdim=True)


class KeyListener(nn.Module):
    """Logits of (major, minor): the probability of a mode is that of its twelve keys together."""

    def __init__(self) -> None:
        super().__init__()
        self.templates = nn.Parameter(torch.zeros(2, 2 * len(REGISTERS), 12))
        self.bias = nn.Parameter(torch.zeros(2))

    def keys(self, heard: Tensor) -> Tensor:
        """Logits [B, 2, 12] of mode and tonic, from `chroma`."""
        transposed = torch.stack([heard.roll(-tonic, -1) for tonic in range(12)], dim=1)  # [B, 12, 6, 12]
        return torch.einsum("btrc,mrc->bmt", transposed, self.templates) + self.bias[:, None]

    def forward(self, wav: Tensor) -> Tensor:
        """[B, T] mono 16 kHz -> [B, 2]."""
        return self.keys(chroma(wav)).logsumexp(2)

    def fit(self, heard: Tensor, tonic: Tensor, minor: Tensor) -> None:
        """Learn from `chroma` [N, 6, 12] of clips whose tonic [N] (0 is C) and mode [N] (1 is minor) are known."""
        optimizer = torch.optim.Adam(self.parameters(), 0.03)
        for _ in range(400):
            loss = F.cross_entropy(self.keys(heard).flatten(1), tonic + 12 * minor)
            loss = loss + 1e-3 * self.templates.square().sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
