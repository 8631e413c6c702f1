"""Train the EnCodec of compact-musicgen on composed clips: encoder, decoder and codebooks.

    python recipes/compact/train_encodec.py --data-dir data/compact --minutes 40

First encoder and decoder alone, then with codebooks; from a point on encoder and codebooks stand still, so that the
language model may learn the codes while the decoder goes on. Continues from its own checkpoint; `--minutes` is the
total over all runs. Writes <data-dir>/encodec/{checkpoint.pt, codec/}.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from encodec_parts import SAMPLE_RATE, build_codec, start_bottleneck
from residual_codebooks import init_codebooks, quantize
from torch import Tensor
from train_codec import complex_loss, evaluate, stft_loss
from training_tools import Clock, ComposedClips, Ema, learning_rate, load_checkpoint, save_checkpoint
from transformers import EncodecModel

PLAIN_UNTIL = 0.1  # share of the budget without codebooks
COMMITMENT = 0.1


@dataclass(frozen=True)
class Config:
    """Settings of the EnCodec stage."""

    data_dir: Path = Path("data/compact")
    minutes: float = 40.0
    frozen_from: float = 0.4
    """Share of the budget from which encoder and codebooks stand still."""
    batch_size: int = 8
    crop_seconds: float = 1.28
    learning_rate: float = 5e-4
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0


@torch.no_grad()
def encode(codec: EncodecModel, wav: Tensor) -> Tensor:
    """Codes [B, K, frames] of wav [B, 1, T]."""
    return codec.encode(wav, bandwidth=codec.config.target_bandwidths[-1]).audio_codes[0]


class Reconstruction(torch.nn.Module):
    """The codec as a function of wav [B, 1, T], through its codes, for `evaluate` of the other codec."""

    def __init__(self, codec: EncodecModel) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, wav: Tensor) -> Tensor:
        return self.codec.decode(encode(self.codec, wav)[None], [None])[0][..., : wav.shape[-1]]


@torch.no_grad()
def frames_of(codec: EncodecModel, clips: ComposedClips, device: str, count: int = 160) -> Tensor:
    """Encoder outputs [N, D] of clips spread over the set."""
    step = max(1, len(clips) // count)
    parts = [codec.encoder(clips.wav(i)[None, None].to(device))[0].T for i in range(0, len(clips), step)]
    return torch.cat(parts)


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    out = config.data_dir / "encodec"
    clips, held_out = ComposedClips(config.data_dir, "train"), ComposedClips(config.data_dir, "val")
    torch.manual_seed(config.seed)
    crop = round(config.crop_seconds * SAMPLE_RATE)
    codec = build_codec().to(config.device)
    optimizer = torch.optim.AdamW(codec.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    ema = Ema(codec, 0.995)
    step, spent, quantized = 0, 0.0, False
    if (saved := load_checkpoint(out / "checkpoint.pt")) is not None:
        codec.load_state_dict(saved["codec"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.state, ema.steps = {k: v.to(config.device) for k, v in saved["ema"].items()}, saved["step"]
        step, spent, quantized = saved["step"], saved["spent"], saved["quantized"]
    else:
        spread = range(0, len(clips), max(1, len(clips) // 64))
        start_bottleneck(codec, torch.stack([clips.wav(i, 0, crop) for i in spread])[:, None].to(config.device))
    clock = Clock(config.minutes, spent)
    generator = torch.Generator().manual_seed(config.seed + step)

    def save() -> None:
        save_checkpoint(out / "checkpoint.pt", {
            "codec": codec.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state,
            "step": step, "spent": clock.spent, "quantized": quantized,
        })  # fmt: skip
        if not quantized:
            return
        shipped = build_codec().to(config.device).eval()
        shipped.load_state_dict(ema.state)
        shipped.save_pretrained(out / "codec")
        quality = evaluate(Reconstruction(shipped), held_out, config.device)
        print(f"step {step} minutes {clock.spent / 60:.1f} held out {quality}", flush=True)

    running = None
    while clock.progress < 1:
        frozen = clock.progress >= config.frozen_from
        if not quantized and clock.progress >= PLAIN_UNTIL:
            init_codebooks(codec, frames_of(codec, clips, config.device), generator)
            quantized = True
            ema.state.update({k: v.clone() for k, v in codec.state_dict().items() if k.startswith("quantizer")})
        if frozen and codec.encoder.training:
            # the average of encoder and codebooks is what is shipped: from here on the decoder learns from that
            for name, value in codec.state_dict().items():
                if not name.startswith("decoder"):
                    value.copy_(ema.state[name])
            codec.encoder.requires_grad_(False).eval()
            save()
        starts = torch.randint(0, 128_000 - crop, (config.batch_size,), generator=generator).tolist()
        rows = torch.randint(0, len(clips), (config.batch_size,), generator=generator).tolist()
        target = torch.stack([clips.wav(row, start, crop) for row, start in zip(rows, starts, strict=True)])
        target = target.to(config.device)
        latents = codec.encoder(target[:, None])
        commitment = latents.new_zeros(())
        if quantized:
            latents, commitment = quantize(codec, latents, generator, learn=not frozen)
        predicted = codec.decoder(latents)[:, 0, :crop]
        spectral, phase = stft_loss(predicted, target), complex_loss(predicted, target)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.learning_rate, step, clock.progress)
        optimizer.zero_grad(set_to_none=True)
        (spectral + 0.25 * phase + COMMITMENT * commitment).backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        ema.update(codec)
        step += 1
        current = torch.stack([spectral.detach(), phase.detach(), commitment.detach()])
        running = current if running is None else running.lerp(current, 0.02)
        if step % 100 == 0:
            losses = [round(value, 4) for value in running.tolist()]
            print(f"step {step} minutes {clock.spent / 60:.1f} stft, complex, commitment {losses}", flush=True)
        if step % 500 == 0:
            save()
    save()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
