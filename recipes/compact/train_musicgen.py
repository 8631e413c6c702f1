"""Train compact-musicgen: text encoder and decoder on the codes of composed clips.

    python recipes/compact/train_musicgen.py --data-dir data/compact --minutes 90

Needs the codec of train_encodec.py, whose encoder and codebooks must stand still by then. Continues from its own
checkpoint; `--minutes` is the total over all runs. Writes <data-dir>/musicgen/{checkpoint.pt, model/}.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from flow_parts import build_tokenizer
from musicgen_parts import build_musicgen, prompted_losses
from text_pretraining import pretrain_text_encoder
from torch import Tensor
from tqdm import tqdm
from train_encodec import encode
from train_flow import CROP_UNTIL, Batches
from training_tools import Clock, ComposedClips, Ema, learning_rate, load_checkpoint, save_checkpoint
from transformers import EncodecModel


@dataclass(frozen=True)
class Config:
    """Settings of the language model's stage."""

    data_dir: Path = Path("data/compact")
    minutes: float = 90.0
    batch_size: int = 16
    learning_rate: float = 2e-3
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0


def encode_clips(codec: EncodecModel, clips: ComposedClips, path: Path, device: str) -> np.ndarray:
    """Codes of every clip, int16 [N, K, frames], cached under the fingerprint of encoder and codebooks."""
    parts = [value for name, value in codec.state_dict().items() if not name.startswith("decoder")]
    digest = hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in parts)).hexdigest()[:12]
    path = path.with_name(f"{path.stem}-{digest}-{len(clips)}.npy")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        batches = [range(b, min(b + 4, len(clips))) for b in range(0, len(clips), 4)]
        codes = [
            encode(codec, torch.stack([clips.wav(i) for i in batch])[:, None].to(device)).short().cpu()
            for batch in tqdm(batches, desc=f"encode {path.stem}")
        ]
        np.save(path.with_suffix(".partial.npy"), torch.cat(codes).numpy())
        path.with_suffix(".partial.npy").rename(path)
    return np.load(path, mmap_mode="r")


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    out = config.data_dir / "musicgen"
    codec = EncodecModel.from_pretrained(config.data_dir / "encodec" / "codec").to(config.device).eval()
    clips, held_out = ComposedClips(config.data_dir, "train"), ComposedClips(config.data_dir, "val")
    tokenizer = build_tokenizer(caption for record in clips.records for caption in record["captions"])
    codes = encode_clips(codec, clips, out / "train", config.device)
    held_out_codes = encode_clips(codec, held_out, out / "val", config.device)

    torch.manual_seed(config.seed)
    model = build_musicgen(tokenizer, codec).to(config.device)
    learned = torch.nn.ModuleList([model.text_encoder, model.decoder])
    optimizer = torch.optim.AdamW(learned.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    ema = Ema(learned, 0.9985)
    step, spent = 0, 0.0
    if (saved := load_checkpoint(out / "checkpoint.pt")) is not None:
        learned.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.state, ema.steps = {k: v.to(config.device) for k, v in saved["ema"].items()}, saved["step"]
        step, spent = saved["step"], saved["spent"]
    else:
        pretrain_text_encoder(model.text_encoder, tokenizer, clips.records, seed=config.seed)
    clock = Clock(config.minutes, spent)
    batches = Batches(codes, clips, tokenizer, config.seed + step)

    def losses(candidate: torch.nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        tokens, ids, mask = (tensor.to(config.device) for tensor in batch[:3])
        return prompted_losses(candidate, tokens.long(), ids, mask, mask.sum(1) == 1)  # an empty prompt is its end

    def save() -> None:
        save_checkpoint(out / "checkpoint.pt", {
            "model": learned.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state,
            "step": step, "spent": clock.spent,
        })  # fmt: skip
        averaged = build_musicgen(tokenizer, codec).to(config.device).eval()
        torch.nn.ModuleList([averaged.text_encoder, averaged.decoder]).load_state_dict(ema.state)
        averaged.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
        source = Batches(held_out_codes, held_out, tokenizer, 0)
        with torch.no_grad():
            drawn = [source.draw(16, held_out_codes.shape[-1], dropout=False) for _ in range(6)]
            value = float(torch.cat([losses(averaged, batch) for batch in drawn]).mean())
        print(f"step {step} minutes {clock.spent / 60:.1f} held-out loss {value:.4f}", flush=True)

    running = None
    while clock.progress < 1:
        frames = codes.shape[-1] // (2 if clock.progress < CROP_UNTIL else 1)
        loss = losses(model, batches.draw(config.batch_size, frames)).mean()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.learning_rate, step, clock.progress)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        optimizer.step()
        ema.update(learned)
        step += 1
        running = loss.detach() if running is None else running.lerp(loss.detach(), 0.02)
        if step % 50 == 0:
            print(f"step {step} minutes {clock.spent / 60:.1f} loss {float(running):.4f}", flush=True)
        if step % 200 == 0:
            save()
    save()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
