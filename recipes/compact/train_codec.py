"""Train the spectral codec of compact-flow on composed clips.

    python recipes/compact/train_codec.py --data-dir data/compact --minutes 60

Continues from its own checkpoint; `--minutes` is the total over all runs.
Writes <data-dir>/codec/{checkpoint.pt, codec/}.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor
from training_tools import ComposedClips, Trainer

from alignment.codec import SpectralCodec
from alignment.reconstruction import reconstruction_quality, stft_distance

LATENT_NOISE = 0.08  # added while training: the decoder must bear the small errors of a generated latent
LATENT_PENALTY = 0.005  # on the mean square, so that the noise keeps its meaning


@dataclass(frozen=True)
class Config:
    """Settings of the codec stage."""

    data_dir: Path = Path("data/compact")
    minutes: float = 60.0
    batch_size: int = 8
    crop_seconds: float = 1.024
    learning_rate: float = 1.5e-3
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0


def complex_loss(predicted: Tensor, target: Tensor, n_fft: int = 1024, power: float = 0.3) -> Tensor:
    """Mean distance between power-compressed complex spectra over the target's mean: phase where it can be heard."""
    window = torch.hann_window(n_fft, device=target.device)
    compressed = []
    for wav in (predicted, target):
        spectrum = torch.view_as_real(torch.stft(wav, n_fft, n_fft // 4, window=window, return_complex=True))
        compressed.append(spectrum * (spectrum.square().sum(-1, keepdim=True) + 1e-6).pow((power - 1) / 2))
    return (compressed[0] - compressed[1]).abs().mean() / compressed[1].abs().mean().clamp_min(1e-3)


def stft_loss(predicted: Tensor, target: Tensor) -> Tensor:
    return stft_distance(predicted, target).mean()


@torch.no_grad()
def evaluate(codec: SpectralCodec, clips: ComposedClips, device: str, count: int = 32) -> dict[str, float]:
    target = torch.stack([clips.wav(index) for index in range(count)]).to(device)
    return reconstruction_quality(codec(target[:, None])[:, 0], target)


@torch.no_grad()
def set_latent_statistics(codec: SpectralCodec, clips: ComposedClips, device: str, count: int = 400) -> None:
    step = max(1, len(clips) // count)
    raw = torch.cat([codec.raw_encode(clips.wav(i)[None, None].to(device))[0].T for i in range(0, len(clips), step)])
    codec.latent_mean.copy_(raw.mean(0))
    codec.latent_std.copy_(raw.std(0).clamp_min(1e-3))


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    out = config.data_dir / "codec"
    clips, held_out = ComposedClips(config.data_dir, "train"), ComposedClips(config.data_dir, "val")
    torch.manual_seed(config.seed)
    codec = SpectralCodec().to(config.device)
    trainer = Trainer(codec, out / "checkpoint.pt", peak=config.learning_rate, minutes=config.minutes, averaged=0.998)
    generator = torch.Generator().manual_seed(config.seed + trainer.step)
    crop = round(config.crop_seconds * 16_000)

    def save() -> None:
        trainer.save()
        shipped = SpectralCodec().to(config.device).eval()
        shipped.load_state_dict(trainer.ema.state)
        set_latent_statistics(shipped, clips, config.device)
        shipped.save_pretrained(out / "codec")
        quality = evaluate(shipped, held_out, config.device)
        print(f"step {trainer.step} minutes {trainer.minutes:.1f} held out {quality}", flush=True)

    while trainer.progress < 1:
        starts = torch.randint(0, 128_000 - crop, (config.batch_size,), generator=generator).tolist()
        rows = torch.randint(0, len(clips), (config.batch_size,), generator=generator).tolist()
        target = torch.stack([clips.wav(row, start, crop) for row, start in zip(rows, starts, strict=True)])
        gain = torch.rand(config.batch_size, 1, generator=generator) * 1.2 + 0.3
        target = (target * gain).clamp(-1, 1).to(config.device)
        raw = codec.raw_encode(target[:, None])
        noisy = raw + LATENT_NOISE * torch.randn(raw.shape, generator=generator).to(raw.device)
        predicted = codec.raw_decode(noisy)[:, 0, :crop]
        spectral = stft_loss(predicted, target)
        phase = complex_loss(predicted, target)
        loss = spectral + 0.25 * phase + LATENT_PENALTY * raw.square().mean()
        trainer.update(loss, shown=torch.stack([spectral, phase, raw.std()]))
        if trainer.step % 1000 == 0:
            save()
    save()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
