"""MuQ-MuLan in the form its authors publish it, small."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# our name -> the muq package's
RENAMED = (
    (r"^convolutions\.", "model.model.conv.conv."),
    (r"^flatten\.", "model.model.conv.linear."),
    (r"^conformer\.", "model.model.conformer."),
    (r"^transformer\.attentions\.(\d+)\.norm\.weight", r"transformer.layers.\1.0.norm.learned_gamma"),
    (r"^transformer\.attentions\.(\d+)\.query\.", r"transformer.layers.\1.0.to_q."),
    (r"^transformer\.attentions\.(\d+)\.key_value\.", r"transformer.layers.\1.0.to_kv."),
    (r"^transformer\.attentions\.(\d+)\.query_scale", r"transformer.layers.\1.0.q_scale"),
    (r"^transformer\.attentions\.(\d+)\.key_scale", r"transformer.layers.\1.0.k_scale"),
    (r"^transformer\.attentions\.(\d+)\.out\.", r"transformer.layers.\1.0.to_out.0."),
    (r"^transformer\.feed_forwards\.(\d+)\.norm\.weight", r"transformer.layers.\1.1.0.learned_gamma"),
    (r"^transformer\.feed_forwards\.(\d+)\.widen\.", r"transformer.layers.\1.1.1."),
    (r"^transformer\.feed_forwards\.(\d+)\.back\.", r"transformer.layers.\1.1.4."),
)
# what a checkpoint holds beside the embeddings' weights
LEFTOVERS = (
    "mulan.audio.aggregator.weight", "mulan.audio.model.model.linear.bias", "mulan.audio.model.model.cls_token",
    "mulan.audio.model.model.rvq.quantizers.0.codebook.weight", "mulan.audio.model.model.conformer.pos_conv_embed.bias",
    "mulan.text.model.pooler.dense.weight", "mulan.text.model.embeddings.position_ids", "mulan.contrast.temperatures",
)  # fmt: skip
WORDS = ("<s>", "<pad>", "</s>", "<unk>", "▁a", "▁calm", "▁piano", "▁drums", "▁", *"acdilmnoprsu.,", "<mask>")


def published_weights(audio: nn.Module, text: nn.Module) -> dict[str, Tensor]:
    """Weights of both encoders under the names of a published checkpoint, with what else it holds."""
    state: dict[str, Tensor] = {name: torch.zeros(2) for name in LEFTOVERS}
    for tower, module in (("audio", audio), ("text", text)):
        for name, tensor in module.state_dict().items():
            for pattern, replacement in RENAMED:
                name = re.sub(pattern, replacement, name)
            if name.startswith("to_latents."):
                state[f"mulan.{tower}_{name}"] = tensor
            else:
                state[f"mulan.{tower}.{name}"] = tensor
    return state


def write_xlm_roberta(folder: Path) -> None:
    """Config and tokeniser as their repository has them, of a few words."""
    from transformers import XLMRobertaTokenizer

    folder.mkdir()
    scores = {word: -2.0 if word.startswith("▁") else -5.0 for word in WORDS}
    XLMRobertaTokenizer(vocab=[(word, scores[word]) for word in WORDS]).save_pretrained(folder)
    config = {
        "model_type": "xlm-roberta", "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5, "pad_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def write_muq(folder: Path, audio: Any, text: Any) -> dict[str, Path]:
    """The parts of MuQ-MuLan, for `files` of `load_reward`.

    Args:
        folder: where to; made if missing.
        audio, text: our encoders, whose shape and weights they get.
    """
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    write_xlm_roberta(folder / "xlm-roberta")
    towers = {
        f"{tower}_transformer": {
            "dim": module.config.tower_dim, "tf_depth": module.config.tower_depth, "heads": module.config.tower_heads,
            "dim_head": module.config.tower_head_dim, "ff_mult": module.config.tower_multiple, "attn_dropout": 0.0,
        }
        for tower, module in (("audio", audio), ("text", text))
    }  # fmt: skip
    mulan = {
        "mulan": {"sr": 24_000, "clip_secs": 10, "dim_latent": audio.dim, "rank_contrast": True},
        "audio_model": {"name": "MuQ-large-msd-iter", "model_dim": audio.config.hidden_size, "use_layer_idx": -1},
        "text_model": {"name": "xlm-roberta-base", "model_dim": None, "use_layer_idx": -1},
        **towers,
    }
    (folder / "muq").mkdir()
    (folder / "muq" / "config.json").write_text(json.dumps(mulan))
    save_file({k: v.clone() for k, v in published_weights(audio, text).items()}, folder / "muq" / "model.safetensors")
    shape = audio.config
    base = {
        "label_rate": 25, "hop_length": 240, "n_mels": 128, "conv_dim": shape.conv_dim,
        "encoder_dim": shape.hidden_size, "encoder_depth": shape.num_hidden_layers,
        "stat": {"melspec_2048_mean": shape.mel_mean, "melspec_2048_std": shape.mel_std, "melspec_2048_cnt": 9},
        "w2v2_config": {
            "num_attention_heads": shape.num_attention_heads, "intermediate_size": shape.intermediate_size,
            "hidden_act": "swish", "position_embeddings_type": "rotary", "conv_depthwise_kernel_size": 5,
            "layerdrop": 0.1, "attention_dropout": 0.1,
        },
    }  # fmt: skip
    (folder / "muq-base.json").write_text(json.dumps(base))
    return {"muq": folder / "muq", "muq-base": folder / "muq-base.json", "xlm-roberta": folder / "xlm-roberta"}
