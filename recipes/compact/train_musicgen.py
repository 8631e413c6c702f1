"""Train compact-musicgen: its text encoder on captions, its decoder on the codes of composed clips.

    python recipes/compact/train_musicgen.py --data-dir data/compact --minutes 90

Needs the codes that train_encodec.py fits first, not the trained codec: both may run side by side. Continues from its
own checkpoint; `--minutes` is the total over all runs. Writes text_encoder.pt, checkpoint.pt and model/ to
<data-dir>/musicgen/.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from encodec_parts import CODEBOOKS
from flow_parts import build_tokenizer
from musicgen_parts import build_musicgen, prompted_losses
from spectral_codes import SpectralCodes, load_spectral_codes
from text_pretraining import pretrain_text_encoder
from torch import Tensor
from tqdm import tqdm
from train_encodec import assemble
from train_flow import Batches
from training_tools import ComposedClips, Trainer, in_bfloat16, load_checkpoint, save_checkpoint
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

# A clip's first second tells most of what its prompt does, so that a model which always hears what came before learns
# little of the prompt. Until this share of the budget half of the clips are heard from a random step on alone; onsets
# are learned after it, for a model that has hardly heard whole clips holds its first chord.
UNHEARD_UNTIL = 0.7
# notes and beats are in the first codebooks; what the last ones say is nearly noise, and as large a part of the loss
WEIGHTS = torch.tensor([1 / (k + 1) for k in range(CODEBOOKS)])
WEIGHTS /= WEIGHTS.sum()


@dataclass(frozen=True)
class Config:
    """Settings of the language model's stage."""

    data_dir: Path = Path("data/compact")
    minutes: float = 90.0
    start_from: Path | None = None
    """The shipped compact-musicgen, to go on from its weights, where there is no checkpoint yet; give it to
    train_encodec.py too."""
    batch_size: int = 16
    learning_rate: float = 2e-3
    bfloat16: bool | None = None
    """Products in bfloat16, losses not; if not given, where that is quicker, which a short trial tells."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0


@torch.no_grad()
def encode_clips(codes: SpectralCodes, clips: ComposedClips, path: Path) -> np.ndarray:
    """Codes of every clip, int16 [N, K, frames], cached under the fingerprint of the codebooks."""
    digest = hashlib.sha256(codes.codebooks.numpy().tobytes()).hexdigest()[:12]
    path = path.with_name(f"{path.stem}-{digest}-{len(clips)}.npy")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        batches = [range(b, min(b + 8, len(clips))) for b in range(0, len(clips), 8)]
        found = [
            codes.codes(codes.latents(torch.stack([clips.wav(i) for i in batch]))).short()
            for batch in tqdm(batches, desc=f"encode {path.stem}")
        ]
        np.save(path.with_suffix(".partial.npy"), torch.cat(found).numpy())
        path.with_suffix(".partial.npy").rename(path)
    return np.load(path, mmap_mode="r")


def draw_unheard(clips: int, frames: int, generator: torch.Generator) -> Tensor:
    """Steps [clips, frames] to hide from the decoder: in half of the clips those before a random one."""
    begin = torch.randint(0, frames + 1, (clips, 1), generator=generator)
    chosen = torch.rand(clips, 1, generator=generator) < 0.5
    return (torch.arange(frames) < begin) & chosen


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    out = config.data_dir / "musicgen"
    spectral = load_spectral_codes(config.data_dir / "encodec" / "codes.pt")
    codec = assemble(config.data_dir / "encodec", spectral)
    clips, held_out = ComposedClips(config.data_dir, "train"), ComposedClips(config.data_dir, "val")
    shipped = None
    if config.start_from is None:
        tokenizer = build_tokenizer(caption for record in clips.records for caption in record["captions"])
    else:
        shipped = MusicgenForConditionalGeneration.from_pretrained(config.start_from, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(config.start_from)
    codes = encode_clips(spectral, clips, out / "train")
    held_out_codes = encode_clips(spectral, held_out, out / "val")

    torch.manual_seed(config.seed)
    model = build_musicgen(tokenizer, codec).to(config.device)
    bfloat16 = in_bfloat16(config.bfloat16, config.device)
    if bfloat16:  # in which the fused attention takes half of a CPU's step
        model.decoder.set_attn_implementation("eager")
    # frozen, as MusicGen's own: learning with the decoder, it forgets words that take long to be heard, such as drums
    text_path = out / "text_encoder.pt"
    if shipped is not None:
        model.text_encoder.load_state_dict(shipped.text_encoder.state_dict())
        model.decoder.load_state_dict(shipped.decoder.state_dict())
    elif (text := load_checkpoint(text_path)) is None:
        pretrain_text_encoder(model.text_encoder, tokenizer, clips.records, seed=config.seed)
        save_checkpoint(text_path, model.text_encoder.state_dict())
    else:
        model.text_encoder.load_state_dict(text)
    model.text_encoder.requires_grad_(False)
    trainer = Trainer(
        model.decoder, out / "checkpoint.pt", peak=config.learning_rate, minutes=config.minutes, averaged=0.99,
        weight_decay=0.05,
    )  # fmt: skip
    batches = Batches(codes, clips, tokenizer, config.seed + trainer.step)
    generator = torch.Generator().manual_seed(config.seed + trainer.step)

    def losses(
        candidate: torch.nn.Module,
        batch: tuple[Tensor, ...],
        weights: Tensor | None = None,
        unheard: Tensor | None = None,
    ) -> Tensor:
        tokens, ids, mask = (tensor.to(config.device) for tensor in batch[:3])
        with torch.autocast(config.device, torch.bfloat16, enabled=bfloat16):
            # an empty prompt is its end
            return prompted_losses(candidate, tokens.long(), ids, mask, mask.sum(1) == 1, weights, unheard)

    def save() -> None:
        trainer.save()
        averaged = build_musicgen(tokenizer, codec).to(config.device).eval()
        averaged.text_encoder.load_state_dict(model.text_encoder.state_dict())
        averaged.decoder.load_state_dict(trainer.ema.state)
        averaged.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
        source = Batches(held_out_codes, held_out, tokenizer, 0)
        with torch.no_grad():
            drawn = [source.draw(16, held_out_codes.shape[-1], dropout=False) for _ in range(6)]
            value = float(torch.cat([losses(averaged, batch) for batch in drawn]).mean())
            wrong = [(tokens, ids.roll(1, 0), mask.roll(1, 0)) for tokens, ids, mask, *_ in drawn]
            other = float(torch.cat([losses(averaged, batch) for batch in wrong]).mean())
        print(
            f"step {trainer.step} minutes {trainer.minutes:.1f} held-out loss {value:.4f}, by a wrong prompt "
            f"{other - value:+.4f}",
            flush=True,
        )

    while trainer.progress < 1:
        frames = codes.shape[-1]
        unheard = draw_unheard(config.batch_size, frames, generator) if trainer.progress < UNHEARD_UNTIL else None
        trainer.update(losses(model, batches.draw(config.batch_size, frames), WEIGHTS, unheard).mean())
        if trainer.step % 400 == 0:
            save()
    save()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
