"""Train the spectral codec of compact-flow on composed clips.

    python recipes/compact/train_codec.py --data-dir data/compact --minutes 60
    python recipes/compact/train_codec.py --start-from alignment/weights/compact-flow --minutes 45

The second trains the decoder of a codec alone, with a bank of oscillators, while its latents, and so the flow that
learned them, stay as they are. Continues from its own checkpoint; `--minutes` is the total over all runs. Writes
<data-dir>/codec/{checkpoint.pt, codec/}, or decoder.pt in place of checkpoint.pt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from spectral_codes import FLOOR, N_FFT
from torch import Tensor, nn
from training_tools import ComposedClips, Trainer

from alignment.codec import SpectralCodec
from alignment.reconstruction import reconstruction_quality, stft_distance

LATENT_NOISE = 0.08  # added while training: the decoder must bear the small errors of a generated latent
LATENT_PENALTY = 0.005  # on the mean square, so that the noise keeps its meaning
SHIPPED = Path("alignment/weights/compact-flow")
OSCILLATORS_PER_OCTAVE = 24  # of a decoder trained alone
# for `stft_distance`: most bins of a clip are far below what is heard of it, and would be most of its distance;
# the longest windows tell partials of low notes apart
AUDIBLE = {n_fft: FLOOR * n_fft / N_FFT for n_fft in (512, 1024, 2048, 4096)}


@dataclass(frozen=True)
class Config:
    """Settings of the codec stage."""

    data_dir: Path = Path("data/compact")
    minutes: float = 60.0
    start_from: Path | None = None
    """A compact-flow, to train its codec's decoder alone."""
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


def with_oscillators(codec: SpectralCodec) -> SpectralCodec:
    """The same codec, whose decoder has a bank of oscillators besides; they begin all but silent."""
    if codec.config.oscillators_per_octave:
        return codec
    wider = SpectralCodec.from_config(codec.config, oscillators_per_octave=OSCILLATORS_PER_OCTAVE)
    wider.load_state_dict(codec.state_dict(), strict=False)
    return wider


def train_decoder(config: Config, shipped: SpectralCodec) -> None:
    """Of a codec whose latents stay as they are, by what is heard: it cannot know the phases that a clip had."""
    out = config.data_dir / "codec"
    clips, held_out = ComposedClips(config.data_dir, "train"), ComposedClips(config.data_dir, "val")
    torch.manual_seed(config.seed)
    codec = with_oscillators(shipped).to(config.device).eval()
    decoder = nn.ModuleDict({name: part for name, part in codec.named_children() if name.startswith("decoder_")})
    trainer = Trainer(
        decoder, out / "decoder.pt", peak=config.learning_rate, minutes=config.minutes, averaged=0.995, weight_decay=0.0
    )
    generator = torch.Generator().manual_seed(config.seed + trainer.step)
    ratio = codec.downsampling_ratio
    frames = round(config.crop_seconds * codec.frame_rate)
    length = frames * ratio
    context = 16 * ratio  # samples before a crop that its first latents heard

    def save() -> None:
        trainer.save()
        learned = {name: value.clone() for name, value in decoder.state_dict().items()}
        decoder.load_state_dict(trainer.ema.state)
        codec.save_pretrained(out / "codec")
        quality = evaluate(codec, held_out, config.device)
        decoder.load_state_dict(learned)
        print(f"step {trainer.step} minutes {trainer.minutes:.1f} held out {quality}", flush=True)

    while trainer.progress < 1:
        first = torch.randint(0, 128_000 // ratio - frames, (config.batch_size,), generator=generator)
        rows = torch.randint(0, len(clips), (config.batch_size,), generator=generator).tolist()
        wavs, latents = [], []
        for row, start in zip(rows, (first * ratio).tolist(), strict=True):
            before = min(start, context)
            wav = clips.wav(row, start - before, before + length + context).to(config.device)
            wavs.append(wav[before:][:length])
            with torch.no_grad():
                latents.append(codec.raw_encode(wav[None, None])[..., before // ratio :][..., :frames])
        raw = torch.cat(latents)
        raw = raw + LATENT_NOISE * torch.randn(raw.shape, generator=generator).to(raw.device)
        predicted = codec.raw_decode(raw, first * codec.stride)[:, 0]
        trainer.update(stft_distance(predicted, torch.stack(wavs), AUDIBLE).mean())
        if trainer.step % 1000 == 0:
            save()
    save()


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.start_from is not None:
        path = config.start_from / "vae"
        if not (path / "config.json").exists():
            raise SystemExit(f"error: no codec in {path}: --start-from expects a folder such as {SHIPPED}")
        train_decoder(config, SpectralCodec.from_pretrained(path, torch_dtype=torch.float32))
        return
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
