"""From the weight names of LAION-CLAP, MERT and MuQ-MuLan checkpoints to those of our encoders.

CLAP comes in two forms: the training checkpoint of the laion_clap package, and transformers' ClapModel. Every weight is
either taken or one of the leftovers named here; anything else is refused, so that a checkpoint of another architecture
cannot pass for a good one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from tunejury.errors import InputError

# laion_clap's name -> transformers', in this order
RENAMED = (
    (r"^text_branch\.", "text_model."),
    (r"^audio_branch\.", "audio_model.audio_encoder."),
    (r"^(text|audio)_projection\.0\.", r"\1_projection.linear1."),
    (r"^(text|audio)_projection\.2\.", r"\1_projection.linear2."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.bn0\.", ".batch_norm."),
)
# what embeddings do not need: fixed transforms, the training's heads, buffers that follow from the shape
LEFTOVERS = re.compile(
    r"^(audio_branch\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\."
    r"|audio_branch\.layers\.\d+\.blocks\.\d+\.attn_mask$"
    r"|(text|audio)_transform\."
    r"|logit_scale(_a|_t)?$"
    r"|text_(branch|model)\.embeddings\.(position_ids|token_type_ids)$)"
)

# the muq package's name -> ours, within a tower
MUQ_RENAMED = (
    (r"^model\.model\.conv\.conv\.", "convolutions."),
    (r"^model\.model\.conv\.linear\.", "flatten."),
    (r"^model\.model\.conformer\.", "conformer."),
    (r"^transformer\.layers\.(\d+)\.0\.norm\.learned_gamma$", r"transformer.attentions.\1.norm.weight"),
    (r"^transformer\.layers\.(\d+)\.0\.to_q\.", r"transformer.attentions.\1.query."),
    (r"^transformer\.layers\.(\d+)\.0\.to_kv\.", r"transformer.attentions.\1.key_value."),
    (r"^transformer\.layers\.(\d+)\.0\.q_scale$", r"transformer.attentions.\1.query_scale"),
    (r"^transformer\.layers\.(\d+)\.0\.k_scale$", r"transformer.attentions.\1.key_scale"),
    (r"^transformer\.layers\.(\d+)\.0\.to_out\.0\.", r"transformer.attentions.\1.out."),
    (r"^transformer\.layers\.(\d+)\.1\.0\.learned_gamma$", r"transformer.feed_forwards.\1.norm.weight"),
    (r"^transformer\.layers\.(\d+)\.1\.1\.", r"transformer.feed_forwards.\1.widen."),
    (r"^transformer\.layers\.(\d+)\.1\.4\.", r"transformer.feed_forwards.\1.back."),
)
# the training's heads, codebooks and loss, what the forward pass never reads, buffers that follow from the shape
MUQ_LEFTOVERS = re.compile(
    r"^(contrast\.|multi_layer_contrastive_learning\.|(text|audio)_layers_indices$"
    r"|audio\.aggregator\.|audio\.model\.model\.(linear\.|rvq\.|quantizer_|recon_proj\.|cls_token$)"
    r"|audio\.model\.model\.conformer\.pos_conv_embed\."
    r"|text\.model\.pooler\.|text\.model\.embeddings\.(position_ids|token_type_ids)$)"
)


def rename_laion_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a laion_clap checkpoint under transformers' names, leftovers gone.

    Args:
        state: by the names of laion_clap, with or without `module.` before each.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        if LEFTOVERS.search(name):
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if ".attention.self.qkv." in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[name.replace(".qkv.", f".{part}.")] = rows
        else:
            renamed[name] = tensor
    return renamed


def split_towers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide ClapModel's weights into those of the audio and of the text encoder, by their names in ours.

    Raises:
        InputError: a weight belongs to neither and is no known leftover.
    """
    audio: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if LEFTOVERS.search(name):
            continue
        tower = audio if name.startswith("audio_") else text if name.startswith("text_") else None
        if tower is None or "fusion_model" in name or "mel_conv2d" in name:
            what = "a fused CLAP model, expected an unfused one" if tower is not None else "not a weight of CLAP"
            raise InputError(f"{name} is {what}")
        tower[f"model.{name}"] = tensor
    return audio, text


def audio_shape(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Fields of a `ClapAudioConfig` read from the shapes of the audio encoder's weights.

    Raises:
        InputError: a weight that tells a size is missing.
    """
    encoder = "model.audio_model.audio_encoder"
    stages = _count(state, rf"{encoder}\.layers\.(\d+)\.")
    depths = [_count(state, rf"{encoder}\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)]
    tables = [
        _weight(state, f"{encoder}.layers.{stage}.blocks.0.attention.self.relative_position_bias_table").shape
        for stage in range(stages)
    ]
    if not tables:
        raise InputError("it holds no layer of an audio tower (HTSAT)")
    first = f"{encoder}.layers.0.blocks.0"
    width = len(_weight(state, f"{encoder}.patch_embed.proj.weight"))
    return {
        "dim": len(_weight(state, "model.audio_projection.linear2.weight")),
        "patch_embeds_hidden_size": width,
        "hidden_size": len(_weight(state, f"{encoder}.norm.weight")),
        "depths": depths,
        "num_attention_heads": [table[1] for table in tables],
        "window_size": (math.isqrt(tables[0][0]) + 1) // 2,  # a table has (2 * window - 1)^2 rows
        "mlp_ratio": len(_weight(state, f"{first}.intermediate.dense.weight")) / width,
    }


def text_shape(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Fields of a `ClapTextConfig` read from the shapes of the text encoder's weights; heads are RoBERTa's 64 wide.

    Raises:
        InputError: a weight that tells a size is missing.
    """
    words = _weight(state, "model.text_model.embeddings.word_embeddings.weight").shape
    return {
        "dim": len(_weight(state, "model.text_projection.linear2.weight")),
        "vocab_size": words[0],
        "hidden_size": words[1],
        "num_hidden_layers": _count(state, r"model\.text_model\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(1, words[1] // 64),
        "intermediate_size": len(_weight(state, "model.text_model.encoder.layer.0.intermediate.dense.weight")),
        "max_position_embeddings": len(_weight(state, "model.text_model.embeddings.position_embeddings.weight")),
        "type_vocab_size": len(_weight(state, "model.text_model.embeddings.token_type_embeddings.weight")),
    }


def rename_mert_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a MERT checkpoint by their names in `MertEncoder`: today's names of weight normalisation, and without
    the embedding of masked frames, which only training reads.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("hubert.").removeprefix("mert.")
        name = name.replace("pos_conv_embed.conv.weight_g", "pos_conv_embed.conv.parametrizations.weight.original0")
        name = name.replace("pos_conv_embed.conv.weight_v", "pos_conv_embed.conv.parametrizations.weight.original1")
        if name != "masked_spec_embed":
            renamed[f"model.{name}"] = tensor
    return renamed


def rename_muq_weights(state: Mapping[str, Tensor], tower: str) -> dict[str, Tensor]:
    """Weights of one tower, "audio" or "text", of a MuQ-MuLan checkpoint by their names in our encoders.

    Raises:
        InputError: a weight belongs to neither tower and is no known leftover.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("mulan.")
        if MUQ_LEFTOVERS.search(name):
            continue
        if not name.startswith(("audio.", "audio_to_latents.", "text.", "text_to_latents.")):
            raise InputError(f"{name} is not a weight of MuQ-MuLan")
        if name.startswith(f"{tower}_to_latents."):
            renamed[name.removeprefix(f"{tower}_")] = tensor
        elif name.startswith(f"{tower}."):
            name = name.removeprefix(f"{tower}.")
            for pattern, replacement in MUQ_RENAMED:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
    return renamed


def keep_muq_layers(state: Mapping[str, Tensor], layers: int, final_norm: bool) -> dict[str, Tensor]:
    """Weights of MuQ's audio tower without the conformer's layers from number `layers` on, nor, unless `final_norm`,
    its last normalisation.
    """
    kept = {}
    for name, tensor in state.items():
        layer = re.match(r"conformer\.layers\.(\d+)\.", name)
        if (layer and int(layer[1]) >= layers) or (not final_norm and name.startswith("conformer.layer_norm.")):
            continue
        kept[name] = tensor
    return kept


def _weight(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise InputError(f"it lacks {name.removeprefix('model.')}")
    return state[name]


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number the pattern finds, 0 if it finds none."""
    found: Sequence[int] = [int(match[1]) for match in (re.match(pattern, name) for name in names) if match]
    return max(found, default=-1) + 1
