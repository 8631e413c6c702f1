"""The parts of compact-flow besides its codec: tokenizer, text encoder, denoiser, and how they become a pipeline."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import torch
from composer import TEMPI
from diffusers import StableAudio3Pipeline
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, T5GemmaConfig, T5GemmaEncoderModel
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

from alignment.clocked_denoiser import HARMONICS, ClockedStableAudio3DiT
from alignment.codec import SpectralCodec
from alignment.schedulers import FlowMatchMultistepScheduler

MAX_TOKENS = 48
LATENT_RATE = 62.5  # latents per second of the codec
TEXT_WIDTH = 192
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}


def build_tokenizer(captions: Iterable[str], min_count: int = 3) -> PreTrainedTokenizerFast:
    """Word-level: lower case, accents stripped, digits apart from letters; rare and foreign words become [UNK]."""
    words = Counter(word for text in captions for word in re.findall(r"[a-z]+|\d+|[^\sa-z\d]", text.lower()))
    numbers = {str(bpm) for bpm in range(40, 201)}
    vocabulary = sorted({word for word, count in words.items() if count >= min_count} | numbers)
    ids = {token: index for index, token in enumerate([*SPECIAL.values(), *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=False)]
    )
    end = SPECIAL["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(f"$A {end}", special_tokens=[(end, ids[end])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **SPECIAL)


def build_text_encoder(tokenizer: PreTrainedTokenizerFast) -> T5GemmaEncoderModel:
    module = T5GemmaModuleConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, head_dim=48, max_position_embeddings=MAX_TOKENS,
        sliding_window=MAX_TOKENS, attention_dropout=0.0, dropout_rate=0.0, query_pre_attn_scalar=48,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id,
    ).to_dict()  # fmt: skip
    config = T5GemmaConfig(encoder=module, decoder=dict(module), is_encoder_decoder=False, dropout_rate=0.0)
    return T5GemmaEncoderModel(config)


def build_denoiser(latent_dim: int, width: int = 240, depth: int = 6, heads: int = 4) -> ClockedStableAudio3DiT:
    denoiser = ClockedStableAudio3DiT(
        io_channels=latent_dim + 2 * len(HARMONICS), clock_tempi=TEMPI, latent_rate=LATENT_RATE, patch_size=2,
        embed_dim=width, depth=depth, num_heads=heads,
        cond_token_dim=TEXT_WIDTH, global_cond_dim=TEXT_WIDTH, local_add_cond_dim=1, timestep_features_dim=128,
        ff_mult=2.0, num_memory_tokens=4, use_differential_attention=False,
    )  # fmt: skip
    nn.init.zeros_(denoiser.proj_out.weight)  # start from a zero velocity
    for block in denoiser.transformer_blocks:  # branches start small, so that depth does not add up at the start
        for branch in (block.self_attn.to_out, block.cross_attn.to_out, block.ff.proj_out):
            branch.weight.data.mul_(0.5)
    return denoiser


class FlowModel(nn.Module):
    """Text encoder, duration embedder and denoiser, trained together; the codec stays outside, frozen."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, latent_dim: int) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.duration_embedder = StableAudio3DurationEmbedder(
            output_dim=TEXT_WIDTH, fourier_dim=64, max_val=10.0, max_freq=8.0
        )
        self.denoiser = build_denoiser(latent_dim)

    def forward(self, noisy: Tensor, sigma: Tensor, tokens: Tensor, mask: Tensor, seconds: Tensor) -> Tensor:
        """Velocity [B, D, L] at noise level sigma [B], conditioned exactly as StableAudio3Pipeline does."""
        context, context_mask, duration = self._context(tokens, mask, seconds)
        return self.denoiser(noisy, sigma, context, duration, context_mask, return_dict=False)[0]

    def tempo_loss(self, tokens: Tensor, mask: Tensor, seconds: Tensor, tempo: Tensor) -> Tensor:
        """Cross-entropy of the clock's tempo, of class indices [B] in TEMPI."""
        context, context_mask, _ = self._context(tokens, mask, seconds)
        return functional.cross_entropy(self.denoiser.clock.tempo_logits(context, context_mask), tempo)

    def _context(self, tokens: Tensor, mask: Tensor, seconds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        text = self.text_encoder(tokens, attention_mask=mask)[0]
        duration = self.duration_embedder(seconds)
        context = torch.cat([text, duration[:, None]], dim=1)
        return context, torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1), duration

    def take(self, pipeline: StableAudio3Pipeline) -> None:
        """The weights of a pipeline that `pipeline` made."""
        self.text_encoder.load_state_dict(pipeline.text_encoder.state_dict())
        self.duration_embedder.load_state_dict(pipeline.duration_embedder.state_dict())
        self.denoiser.load_state_dict(pipeline.transformer.state_dict())

    def pipeline(self, tokenizer: PreTrainedTokenizerFast, codec: SpectralCodec) -> StableAudio3Pipeline:
        return StableAudio3Pipeline(
            vae=codec, text_encoder=self.text_encoder, tokenizer=tokenizer, duration_embedder=self.duration_embedder,
            transformer=self.denoiser, scheduler=FlowMatchMultistepScheduler(num_train_timesteps=1, shift=1.0),
        )  # fmt: skip
