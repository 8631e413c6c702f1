"""Train compact-flow: text encoder and rectified-flow denoiser on the codec's latents of composed clips.

    python recipes/compact/train_flow.py --data-dir data/compact --minutes 120

Continues from its own checkpoint; `--minutes` is the total over all runs.
Writes <data-dir>/flow/{checkpoint.pt, pipeline/}.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from captions import write_caption
from composer import TEMPI
from diffusers import StableAudio3Pipeline
from flow_parts import FlowModel, build_tokenizer
from text_pretraining import pretrain_text_encoder
from torch import Tensor
from tqdm import tqdm
from training_tools import ComposedClips, Trainer, in_bfloat16

from alignment.codec import SpectralCodec

CROP_UNTIL = 0.45  # share of the budget spent on the clips' first halves, which cost half as much
TEXT_DROPOUT = 0.12  # share of empty prompts, for classifier-free guidance
TEMPO_SHARE = 0.9  # of captions that name the tempo: the attribute learned last
MODE_SHARE = 0.8  # of captions that name the mode, which little else tells
TEMPO_WEIGHT = 0.05  # of the clock's own loss beside the flow's
MODE_WEIGHT = 0.05  # of the velocity's error along `mode_axis` beside the flow's loss
AXIS_CLIPS = 4000  # of which that axis is taken
WORD_DROPOUT = 0.05  # share of words read as unknown, so that foreign words do not derail a prompt


@dataclass(frozen=True)
class Config:
    """Settings of the flow stage."""

    data_dir: Path = Path("data/compact")
    minutes: float = 120.0
    start_from: Path | None = None
    """The shipped compact-flow, to go on from its weights and with its codec, where there is no checkpoint yet."""
    batch_size: int = 16
    learning_rate: float = 1.2e-3
    bfloat16: bool | None = None
    """Products in bfloat16, losses not; if not given, where that is quicker, which a short trial tells."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0


@torch.inference_mode()
def encode_clips(codec: SpectralCodec, clips: ComposedClips, path: Path, device: str) -> np.ndarray:
    """Latents of every clip, float16 [N, D, L], cached under the codec's fingerprint."""
    digest = hashlib.sha256(b"".join(v.cpu().numpy().tobytes() for v in codec.state_dict().values())).hexdigest()[:12]
    path = path.with_name(f"{path.stem}-{digest}-{len(clips)}.npy")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        batches = range(0, len(clips), 16)
        latents = [
            codec.encode(torch.stack([clips.wav(i) for i in range(b, min(b + 16, len(clips)))])[:, None].to(device))
            .latents.half()
            .cpu()
            for b in tqdm(batches, desc=f"encode {path.stem}")
        ]
        np.save(path.with_suffix(".partial.npy"), torch.cat(latents).numpy())
        path.with_suffix(".partial.npy").rename(path)
    return np.load(path, mmap_mode="r")


class Batches:
    """Random batches: latents, token ids, attention mask, seconds and tempo class, with word and prompt dropout."""

    def __init__(self, latents: np.ndarray, clips: ComposedClips, tokenizer, seed: int) -> None:  # noqa: ANN001
        self.latents, self.clips, self.tokenizer = latents, clips, tokenizer
        self.rng = np.random.default_rng(seed)

    def draw(self, size: int, frames: int, dropout: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        rows = self.rng.integers(0, len(self.latents), size)
        total = self.latents.shape[-1]
        # from the start always: pieces begin on a beat, and the denoiser has a clock
        latents = np.stack([self.latents[row, :, :frames] for row in rows])
        prompts = [
            write_caption(self.clips.records[row]["attributes"], self.rng, TEMPO_SHARE, MODE_SHARE) for row in rows
        ]
        if dropout:
            prompts = ["" if self.rng.random() < TEXT_DROPOUT else prompt for prompt in prompts]
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        ids, mask = tokens.input_ids, tokens.attention_mask
        if dropout:
            unknown = torch.from_numpy(self.rng.random(ids.shape) < WORD_DROPOUT) & (ids > 2)
            ids = ids.masked_fill(unknown, self.tokenizer.unk_token_id)
        tempo = torch.tensor([TEMPI.index(self.clips.records[row]["attributes"]["tempo"]) for row in rows])
        return torch.from_numpy(latents).float(), ids, mask, torch.full((size,), 8.0 * frames / total), tempo


def mode_axis(latents: np.ndarray, clips: ComposedClips) -> Tensor:
    """[D], on which the means over time of minor and of major clips lie farthest apart, their own spread being 1.

    Source: Fisher's linear discriminant. The two lie 2.4 spreads apart, but on an axis that holds 0.2 % of the flow's
    loss, and through that alone the mode was not learned. The best velocity is the expected one however its errors are
    weighed, so that weighing this one up does not move it.
    """
    rows = range(min(len(latents), AXIS_CLIPS))
    means = torch.tensor(np.stack([latents[row].astype(np.float32).mean(axis=-1) for row in rows]))
    minor = torch.tensor([clips.records[row]["attributes"]["minor"] for row in rows])
    apart = means[minor].mean(dim=0) - means[~minor].mean(dim=0)
    within = torch.cov(torch.cat([means[kind] - means[kind].mean(dim=0) for kind in (minor, ~minor)]).T)
    axis = torch.linalg.solve(within, apart)
    return axis / (axis @ within @ axis).sqrt()


def flow_losses(
    model: FlowModel,
    batch: tuple[Tensor, ...],
    axis: Tensor,
    generator: torch.Generator,
    device: str,
    bfloat16: bool = False,
) -> Tensor:
    """Rectified-flow matching: x = (1 - sigma) x0 + sigma n, target velocity n - x0; sigma logit-normal.

    Source: Esser et al., arXiv 2403.03206.

    Returns:
        [2]: mean square of the velocity's error, and of its mean over time along `axis` [D].
    """
    latents, ids, mask, seconds = (tensor.to(device) for tensor in batch[:4])
    noise = torch.randn(latents.shape, generator=generator).to(device)
    # centred where the pipeline's sampler takes its steps: log-SNR from -6.2 to 2, so sigma from 0.998 to 0.12; what a
    # piece will be is settled above 0.9
    # one level from each of B equal shares of that distribution: the same mean as independent draws, less spread
    share = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(latents)
    sigma = torch.sigmoid(torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)) * 2.0 + 1.8).to(device)
    noisy = torch.lerp(latents, noise, sigma[:, None, None])
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        velocity = model(noisy, sigma, ids, mask, seconds)
    error = velocity.float() - (noise - latents)
    return torch.stack([error.square().mean(), (error.mean(dim=-1) @ axis).square().mean()])


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    out = config.data_dir / "flow"
    shipped = None
    if config.start_from is not None:
        shipped = StableAudio3Pipeline.from_pretrained(config.start_from, torch_dtype=torch.float32)
    codec = SpectralCodec.from_pretrained(config.data_dir / "codec" / "codec") if shipped is None else shipped.vae
    codec = codec.to(config.device).eval()
    clips, held_out = ComposedClips(config.data_dir, "train"), ComposedClips(config.data_dir, "val")
    if shipped is None:
        tokenizer = build_tokenizer(caption for record in clips.records for caption in record["captions"])
    else:
        tokenizer = shipped.tokenizer
    latents = encode_clips(codec, clips, out / "train", config.device)
    held_out_latents = encode_clips(codec, held_out, out / "val", config.device)

    torch.manual_seed(config.seed)
    model = FlowModel(tokenizer, codec.config.latent_dim).to(config.device)
    path = out / "checkpoint.pt"
    if shipped is not None:
        model.take(shipped)
    elif not path.exists():
        pretrain_text_encoder(model.text_encoder, tokenizer, clips.records, seed=config.seed)
    trainer = Trainer(model, path, peak=config.learning_rate, minutes=config.minutes, averaged=0.9985)
    generator = torch.Generator().manual_seed(config.seed + trainer.step)
    bfloat16 = in_bfloat16(config.bfloat16, config.device)
    axis = mode_axis(latents, clips).to(config.device)
    batches = Batches(latents, clips, tokenizer, config.seed + trainer.step)

    @torch.no_grad()
    def held_out_losses(candidate: FlowModel) -> list[float]:
        fixed = torch.Generator().manual_seed(0)
        source = Batches(held_out_latents, held_out, tokenizer, 0)
        frames = held_out_latents.shape[-1]
        batches = [source.draw(16, frames, dropout=False) for _ in range(12)]
        losses = [flow_losses(candidate, batch, axis, fixed, config.device) for batch in batches]
        return [round(value, 4) for value in torch.stack(losses).mean(dim=0).tolist()]

    def save() -> None:
        trainer.save()
        averaged = FlowModel(tokenizer, codec.config.latent_dim).to(config.device).eval()
        averaged.load_state_dict(trainer.ema.state)
        averaged.pipeline(tokenizer, codec).save_pretrained(out / "pipeline")
        print(f"step {trainer.step} minutes {trainer.minutes:.1f} held-out {held_out_losses(averaged)}", flush=True)

    while trainer.progress < 1:
        # a model that knows whole clips forgets their second halves on first ones
        halved = shipped is None and trainer.progress < CROP_UNTIL
        frames = latents.shape[-1] // (2 if halved else 1)
        batch = batches.draw(config.batch_size, frames)
        losses = flow_losses(model, batch, axis, generator, config.device, bfloat16)
        of_tempo = model.tempo_loss(*(tensor.to(config.device) for tensor in batch[1:]))
        trainer.update(losses[0] + MODE_WEIGHT * losses[1] + TEMPO_WEIGHT * of_tempo, shown=losses)
        if trainer.step % 200 == 0:
            save()
    save()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
