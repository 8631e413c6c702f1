"""The parts of compact-musicgen besides its codec's training, and how they become a MusicGen of transformers."""

from __future__ import annotations

import torch
from encodec_parts import CODEBOOKS, ENTRIES
from flow_parts import TEXT_WIDTH
from torch import Tensor, nn
from transformers import (
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

from alignment.backbones.musicgen_losses import token_losses

WIDTH, LAYERS, HEADS = TEXT_WIDTH, 6, 4  # as wide as the text encoder: no projection between them
MAX_FRAMES = 320  # 10 s and the delays of the codebooks


def build_musicgen(tokenizer: PreTrainedTokenizerFast, codec: EncodecModel) -> MusicgenForConditionalGeneration:
    """An untrained text encoder and decoder around a trained codec."""
    text = T5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=48, d_ff=384, num_layers=2, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=ENTRIES, num_codebooks=CODEBOOKS, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, ffn_dim=4 * WIDTH, dropout=0.0, max_position_embeddings=MAX_FRAMES,
        pad_token_id=ENTRIES, bos_token_id=ENTRIES, audio_channels=1, tie_word_embeddings=False,
    )  # fmt: skip
    config = MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=codec.config.to_dict(), decoder=decoder.to_dict()
    )
    model = MusicgenForConditionalGeneration(config)
    model.audio_encoder.load_state_dict(codec.state_dict())
    model.audio_encoder.requires_grad_(False)
    generation = model.generation_config
    generation.decoder_start_token_id = generation.pad_token_id = generation.bos_token_id = ENTRIES
    # positions have norm sqrt(WIDTH / 2); tokens that begin far below them are not heard for a long time
    for embedding in model.decoder.model.decoder.embed_tokens:
        nn.init.normal_(embedding.weight, std=0.25)
    for layer in model.decoder.model.decoder.layers:
        for branch in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
            branch.weight.data.mul_((2 * LAYERS) ** -0.5)
    return model


def prompted_losses(
    model: MusicgenForConditionalGeneration,
    codes: Tensor,
    ids: Tensor,
    mask: Tensor,
    dropped: Tensor,
    weights: Tensor | None = None,
    unheard: Tensor | None = None,
) -> Tensor:
    """Loss [B] in nats per token of codes [B, K, T], conditioned as MusicGen is.

    Args:
        ids, mask: tokens of the prompts [B, S] and where they are.
        dropped: [B], true where the clip is to be heard without its prompt: zeros that are all attended to.
        weights, unheard: as for `token_losses`.
    """
    states = model.text_encoder(ids, attention_mask=mask).last_hidden_state
    states = states * (mask * ~dropped[:, None])[..., None]
    attended = torch.where(dropped[:, None], torch.ones_like(mask), mask)
    return token_losses(model.decoder, codes, states, attended, weights, unheard)
