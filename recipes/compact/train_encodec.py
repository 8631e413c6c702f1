"""Train the EnCodec of compact-musicgen on composed clips: codebooks, then decoder and encoder, apart or side by side.

    python recipes/compact/train_encodec.py --half decoder --data-dir data/compact --minutes 40
    python recipes/compact/train_encodec.py --half encoder --data-dir data/compact --minutes 40

The first run fits the codes (spectral_codes.py) in half a minute; from then on the language model may be trained too.
The decoder learns to sound them, the encoder to give the latents that they quantise. Each half continues from its own
checkpoint; `--minutes` is its total over all runs. Writes <data-dir>/encodec/{codes.pt, decoder.pt, encoder.pt}.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from encodec_parts import HOP, build_codec, start_encoder
from oscillators import start_decoder
from spectral_codes import SpectralCodes, fit_spectral_codes, load_spectral_codes, shipped_spectral_codes
from torch import Tensor
from train_codec import AUDIBLE, evaluate
from training_tools import ComposedClips, Trainer, in_bfloat16, load_checkpoint
from transformers import EncodecModel, MusicgenForConditionalGeneration

from alignment.reconstruction import stft_distance


@dataclass(frozen=True)
class Config:
    """Settings of the EnCodec stage."""

    half: Literal["decoder", "encoder"] = "decoder"
    start_from: Path | None = None
    """The shipped compact-musicgen, to go on from its codec, where there is no checkpoint yet."""
    data_dir: Path = Path("data/compact")
    minutes: float = 40.0
    batch_size: int = 6
    crop_frames: int = 60
    """Of 32 ms."""
    learning_rate: float = 1.5e-3
    bfloat16: bool | None = None
    """Products in bfloat16, losses not; if not given, where that is quicker, which a short trial tells."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0


@torch.no_grad()
def encode(codec: EncodecModel, wav: Tensor) -> Tensor:
    """Codes [B, K, frames] of wav [B, 1, T]."""
    return codec.encode(wav, bandwidth=codec.config.target_bandwidths[-1]).audio_codes[0]


class Sounded(torch.nn.Module):
    """wav [B, 1, T] by the decoder, from the codes that the encoder should give."""

    def __init__(self, decoder: torch.nn.Module, codes: SpectralCodes) -> None:
        super().__init__()
        self.decoder, self.codes = decoder, codes

    def forward(self, wav: Tensor) -> Tensor:
        return self.decoder(self.codes.decode(self.codes.codes(self.codes.latents(wav[:, 0]))))[..., : wav.shape[-1]]


class Reconstruction(torch.nn.Module):
    """The codec as a function of wav [B, 1, T], through its codes, for `evaluate` of the other codec."""

    def __init__(self, codec: EncodecModel) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, wav: Tensor) -> Tensor:
        return self.codec.decode(encode(self.codec, wav)[None], [None])[0][..., : wav.shape[-1]]


@torch.no_grad()
def assemble(out: Path, codes: SpectralCodes) -> EncodecModel:
    """The codec of the codebooks and of the averages of both halves, as far as they are trained."""
    codec = build_codec()
    for layer, entries in zip(codec.quantizer.layers, codes.codebooks, strict=True):
        layer.codebook.embed.copy_(entries)
        layer.codebook.embed_avg.copy_(entries)
        layer.codebook.cluster_size.fill_(1.0)
        layer.codebook.inited.fill_(True)
    for half in ("decoder", "encoder"):
        if (saved := load_checkpoint(out / f"{half}.pt")) is not None:
            getattr(codec, half).load_state_dict(saved["ema"])
    return codec.eval()


@torch.no_grad()
def unexplained(encoder: torch.nn.Module, codes: SpectralCodes, clips: ComposedClips, count: int = 32) -> float:
    """Share of the latents' spread on the first clips that the encoder's miss."""
    wav = torch.stack([clips.wav(index) for index in range(count)])
    latents = codes.latents(wav)
    missed = torch.cat([encoder(part[:, None]) for part in wav.split(8)]) - latents
    return float(missed.square().sum() / (latents - latents.mean((0, 2), keepdim=True)).square().sum())


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    out = config.data_dir / "encodec"
    clips, held_out = ComposedClips(config.data_dir, "train"), ComposedClips(config.data_dir, "val")
    shipped = None
    if config.start_from is not None:
        shipped = MusicgenForConditionalGeneration.from_pretrained(config.start_from, dtype=torch.float32).audio_encoder
    if not (out / "codes.pt").exists():
        if shipped is None:
            found = fit_spectral_codes(clips, seed=config.seed)
        else:
            found = shipped_spectral_codes(torch.stack([layer.codebook.embed for layer in shipped.quantizer.layers]))
        found.save(out / "codes.pt")
    codes = load_spectral_codes(out / "codes.pt")

    torch.manual_seed(config.seed)
    codec = build_codec()
    oscillators = start_decoder(codec, codes)
    start_encoder(codec)
    if shipped is not None:
        codec.load_state_dict(shipped.state_dict())
    learned: torch.nn.Module = getattr(codec, config.half).to(config.device)
    trainer = Trainer(
        learned, out / f"{config.half}.pt", peak=config.learning_rate, minutes=config.minutes, averaged=0.995,
        hold=oscillators.hold,
    )  # fmt: skip
    bfloat16 = in_bfloat16(config.bfloat16, config.device)
    generator = torch.Generator().manual_seed(config.seed + trainer.step)
    crop = config.crop_frames * HOP

    def save() -> None:
        trainer.save()
        averaged = assemble(out, codes)
        if config.half == "decoder":
            held = f"sounds {evaluate(Sounded(averaged.decoder, codes), held_out, 'cpu')}"
        else:
            held = f"misses {unexplained(averaged.encoder, codes, held_out):.3f} of the latents"
        print(f"step {trainer.step} minutes {trainer.minutes:.1f} {config.half} {held}", flush=True)

    while trainer.progress < 1:
        starts = HOP * torch.randint(0, 128_000 // HOP - config.crop_frames, (config.batch_size,), generator=generator)
        rows = torch.randint(0, len(clips), (config.batch_size,), generator=generator)
        drawn = zip(rows.tolist(), starts.tolist(), strict=True)
        wav = torch.stack([clips.wav(row, start, crop) for row, start in drawn])
        latents = codes.latents(wav)
        given = wav[:, None] if config.half == "encoder" else codes.decode(codes.codes(latents))
        with torch.autocast(config.device, torch.bfloat16, enabled=bfloat16):
            found = learned(given.to(config.device)).float()
        if config.half == "encoder":
            trainer.update((found - latents.to(config.device)).square().mean())
        else:
            trainer.update(stft_distance(found[:, 0, :crop], wav.to(config.device), AUDIBLE).mean())
        if trainer.step % 500 == 0:
            save()
    save()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
