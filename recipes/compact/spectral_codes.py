"""What the codes of compact-musicgen say: residual codebooks over log spectra, without phase.

Codes of a waveform codec spend their bits on phase, which differs from frame to frame while a tone stands still; a
small language model finds little to learn in them. Here a frame of 32 ms is the log magnitudes of its two halves,
reduced to their principal components and quantised in residual steps (SoundStream, arXiv 2107.03312, section 3.3) by
k-means. That takes seconds, and the language model may learn these codes at once, beside the codec's decoder, which
sounds them, and its encoder, which learns to give them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from encodec_parts import CODEBOOKS, ENTRIES, HIDDEN, HOP
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_tools import ComposedClips, save_checkpoint

# what of the shipped codes their codebooks, which are in the model, do not say
SHIPPED = Path(__file__).with_name("spectral_codes.safetensors")
N_FFT = 1024
FLOOR = 0.1  # of an STFT bin: 68 dB below a sine at full scale; what is below is silence


def log_spectra(wav: Tensor) -> Tensor:
    """Log magnitudes [B, T / 512, 2 * 513] of wav [B, T], T whole frames: those of a frame's two halves."""
    window = torch.hann_window(N_FFT, device=wav.device)
    magnitude = torch.stft(wav, N_FFT, HOP // 2, window=window, return_complex=True).abs()
    logs = (magnitude + FLOOR).log()[..., : 2 * wav.shape[-1] // HOP]
    return logs.transpose(1, 2).unflatten(1, (-1, 2)).flatten(2)


def _nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """Index [N] of the entry [E, D] next to each vector [N, D]."""
    squares = entries.square().sum(1)
    return torch.cat([(squares - 2 * part @ entries.T).argmin(1) for part in vectors.split(16_384)])


@dataclass
class SpectralCodes:
    """Latents and codes of audio, and what they mean.

    `mean` [F], `components` [D, F] and `scale` [] make latents of log spectra of F numbers; `codebooks` [K, E, D].
    """

    mean: Tensor
    components: Tensor
    scale: Tensor
    codebooks: Tensor

    def latents(self, wav: Tensor) -> Tensor:
        """wav [B, T], T whole frames of 512 samples -> [B, D, T / 512]."""
        return ((log_spectra(wav) - self.mean) @ self.components.T / self.scale).transpose(1, 2)

    def codes(self, latents: Tensor) -> Tensor:
        """Latents [B, D, L] -> codes [B, K, L], as EncodecModel chooses them."""
        residual = latents.transpose(1, 2).flatten(0, 1)
        chosen = []
        for entries in self.codebooks:
            chosen.append(_nearest(residual, entries))
            residual = residual - entries[chosen[-1]]
        return torch.stack(chosen, dim=1).unflatten(0, (len(latents), -1)).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, K, L] -> what the decoder hears, [B, D, L]."""
        parts = [entries[codes[:, k]] for k, entries in enumerate(self.codebooks)]
        return torch.stack(parts).sum(0).transpose(1, 2)

    def save(self, path: Path) -> None:
        save_checkpoint(path, asdict(self))

    def ship(self, path: Path = SHIPPED) -> None:
        """Write all but the codebooks, in half precision."""
        parts = {"mean": self.mean, "components": self.components, "scale": self.scale}
        save_file({name: part.half().contiguous() for name, part in parts.items()}, path)


def load_spectral_codes(path: Path) -> SpectralCodes:
    if not path.exists():
        raise SystemExit(f"error: {path} is missing: run train_encodec.py first")
    return SpectralCodes(**torch.load(path, map_location="cpu", weights_only=True))


def shipped_spectral_codes(codebooks: Tensor, path: Path = SHIPPED) -> SpectralCodes:
    """Those of the shipped model, whose codebooks are [K, E, D]."""
    parts = {name: part.float() for name, part in load_file(path).items()}
    return SpectralCodes(**parts, codebooks=codebooks)


def fit_spectral_codes(clips: ComposedClips, num_clips: int = 750, frames: int = 100, seed: int = 0) -> SpectralCodes:
    """From frames drawn of clips spread over the set: principal components, then one codebook after the other."""
    generator = torch.Generator().manual_seed(seed)
    step = max(1, len(clips) // num_clips)
    drawn = []
    for index in range(0, len(clips), step):
        spectra = log_spectra(clips.wav(index)[None])[0]
        drawn.append(spectra[torch.randperm(len(spectra), generator=generator)[:frames]])
    spectra = torch.cat(drawn)
    mean = spectra.mean(0)
    centred = spectra - mean
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1).T[:HIDDEN].contiguous()
    latents = centred @ components.T
    scale = latents.std()
    residual, codebooks = latents / scale, []
    for _ in range(CODEBOOKS):
        codebooks.append(k_means(residual, ENTRIES, generator))
        residual = residual - codebooks[-1][_nearest(residual, codebooks[-1])]
    return SpectralCodes(mean, components, scale, torch.stack(codebooks))


def k_means(vectors: Tensor, size: int, generator: torch.Generator, rounds: int = 30, fewest: int = 8) -> Tensor:
    """Entries [size, D]; until shortly before the end those that fewer than `fewest` vectors chose are drawn again."""
    entries = vectors[torch.randperm(len(vectors), generator=generator)[:size]].clone()
    for turn in range(rounds):
        chosen = _nearest(vectors, entries)
        counts = torch.bincount(chosen, minlength=size)
        means = torch.zeros_like(entries).index_add_(0, chosen, vectors) / counts.clamp_min(1)[:, None]
        entries = torch.where(counts[:, None] > 0, means, entries)
        if turn < rounds - 3 and bool((rare := counts < fewest).any()):
            entries[rare] = vectors[torch.randint(len(vectors), (int(rare.sum()),), generator=generator)]
    return entries
