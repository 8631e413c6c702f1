"""Reading the encoders the released heads stand on: from files as their authors publish them to our configs and
weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tunejury.checkpoints import read_bpe, read_json, read_state_dict, read_weights
from tunejury.encoders.clap import AUDIO_SHAPE, TEXT_SHAPE, ClapAudioConfig, ClapTextConfig
from tunejury.encoders.mert import REQUIRED, SHAPE, MertConfig
from tunejury.encoders.muq import CONFORMER_SHAPE, MuqAudioConfig, MuqTextConfig
from tunejury.encoders.muq import TEXT_SHAPE as MUQ_TEXT_SHAPE
from tunejury.encoders.weights import (
    audio_shape,
    keep_muq_layers,
    rename_laion_weights,
    rename_mert_weights,
    rename_muq_weights,
    split_towers,
    text_shape,
)
from tunejury.errors import InputError

# an encoder's config without its kind, its weights by their names in it, and the size of its embedding
Part = tuple[dict[str, Any], dict[str, Tensor], int]

MERT_LARGE_WIDTH = 1024
# settings of MuQ and MuQ-MuLan that mean another front end than ours; the value each must have
MUQ_REQUIRED: Mapping[str, Any] = {"hop_length": 240, "n_mels": 128}
MULAN_REQUIRED: Mapping[str, Any] = {"sr": 24_000, "clip_secs": 10}
MUQ_STRIDES: Mapping[int, tuple[int, int]] = {25: (2, 2), 50: (2, 1)}  # of time, by frames per second
# shape of a tower's transformer: our name, MuQ-MuLan's, and what its package takes where the config says nothing
MULAN_TOWER = (
    ("tower_dim", "dim", 768), ("tower_depth", "tf_depth", 12), ("tower_heads", "heads", 8),
    ("tower_head_dim", "dim_head", 64), ("tower_multiple", "ff_mult", 4),
)  # fmt: skip


def read_clap_audio(path: Path) -> Part:
    """CLAP's audio encoder from the checkpoint of laion_clap (`.pt`) or a folder with transformers' ClapModel.

    Raises:
        InputError: the files are missing, damaged, or of another architecture.
        OSError: a file may not be read.
    """
    state, shapes = _read_clap(path)
    weights, _ = _towers(path, state)
    shape = shapes.get("audio_config") or _shape(path, audio_shape, weights)
    if shape.get("enable_fusion"):
        raise InputError(f"{path} is a fused CLAP model, expected an unfused one")
    config = ClapAudioConfig(**_kept(shape, AUDIO_SHAPE))
    return asdict(config), weights, config.dim


def read_clap_text(path: Path, tokenizer: Path) -> Part:
    """CLAP's text encoder, from the same files, with RoBERTa's tokeniser from a folder.

    Raises:
        InputError: the files are missing, damaged, or of another architecture.
        OSError: a file may not be read.
    """
    state, shapes = _read_clap(path)
    _, weights = _towers(path, state)
    shape = shapes.get("text_config") or _shape(path, text_shape, weights)
    vocabulary, merges = read_bpe(tokenizer)
    kept = _kept(shape, TEXT_SHAPE)
    if len(vocabulary) > kept.get("vocab_size", ClapTextConfig.vocab_size):
        raise InputError(
            f"{tokenizer} has {len(vocabulary)} tokens, {path} was trained with {kept['vocab_size']}; expected the "
            "tokeniser of roberta-base"
        )
    config = ClapTextConfig(**kept, vocabulary=vocabulary, merges=merges)
    return asdict(config), weights, config.dim


def read_mert(directory: Path) -> Part:
    """MERT from a folder with its `config.json`, `preprocessor_config.json` and weights.

    Raises:
        InputError: the files are missing, damaged, or of another architecture.
        OSError: a file may not be read.
    """
    values = _mapping(directory / "config.json", "config of MERT-v1")
    _require(directory / "config.json", values, REQUIRED)
    preprocessor = directory / "preprocessor_config.json"
    normalize = _mapping(preprocessor, "preprocessor config of MERT-v1").get("do_normalize")
    if not isinstance(normalize, bool):
        raise InputError(f"{preprocessor} does not hold the flag do_normalize, expected true or false")
    shape = _kept(values, SHAPE)
    if shape.get("hidden_size", MERT_LARGE_WIDTH) != MERT_LARGE_WIDTH:
        shape["name"] = f"mert-{shape['hidden_size']}"
    config = MertConfig(**shape, do_normalize=normalize)
    return asdict(config), rename_mert_weights(read_weights(directory)), config.hidden_size


def read_muq_audio(directory: Path, base: Path) -> Part:
    """MuQ-MuLan's audio encoder from its folder (`config.json` and weights), with the `config.json` of the MuQ it was
    made from, which alone tells the conformer's shape.

    Raises:
        InputError: the files are missing, damaged, or of another architecture.
        OSError: a file may not be read.
    """
    mulan, tower, audio = _read_mulan(directory, "audio")
    muq = _mapping(base, "config of MuQ")
    _require(base, muq, MUQ_REQUIRED)
    stat, conformer = muq.get("stat"), muq.get("w2v2_config")
    if not isinstance(stat, Mapping) or not isinstance(conformer, Mapping):
        raise InputError(f"{base} is no config of MuQ: stat or w2v2_config is missing")
    strides = MUQ_STRIDES.get(int(_number(base, {"label_rate": 25, **muq}, "label_rate")))
    if strides is None:
        raise InputError(f"{base}: label_rate is {muq['label_rate']!r}, expected one of: {list(MUQ_STRIDES)}")
    depth, layer = muq.get("encoder_depth", 12), audio.get("use_layer_idx", -1)
    if not isinstance(depth, int) or not isinstance(layer, int) or not -depth <= layer <= depth or layer == 0:
        raise InputError(f"{directory / 'config.json'}: use_layer_idx is {layer!r} of {depth!r} layers")
    layers = layer if layer > 0 else depth + 1 + layer  # the last state is the normalised one
    shape = _kept(conformer, CONFORMER_SHAPE) | {"hidden_size": muq.get("encoder_dim", MuqAudioConfig.hidden_size)}
    config = MuqAudioConfig(
        **shape,
        **tower,
        dim=mulan.get("dim_latent", MuqAudioConfig.dim),
        mel_mean=_number(base, stat, "melspec_2048_mean"),
        mel_std=_number(base, stat, "melspec_2048_std"),
        conv_dim=muq.get("conv_dim", MuqAudioConfig.conv_dim),
        time_strides=strides,
        num_hidden_layers=layers,
        final_norm=layers == depth,
    )
    weights = keep_muq_layers(_muq_weights(directory, "audio"), layers, config.final_norm)
    return asdict(config), weights, config.dim


def read_muq_text(directory: Path, roberta: Path) -> Part:
    """MuQ-MuLan's text encoder from its folder, with XLM-RoBERTa's `config.json` and `tokenizer.json` from another.

    Raises:
        InputError: the files are missing, damaged, or of another architecture.
        OSError: a file may not be read.
    """
    mulan, tower, text = _read_mulan(directory, "text")
    if "xlm-roberta" not in str(text.get("name", "xlm-roberta")):
        raise InputError(f"{directory / 'config.json'}: the text model is {text['name']!r}, expected xlm-roberta")
    shape = _kept(_mapping(roberta / "config.json", "config of XLM-RoBERTa"), MUQ_TEXT_SHAPE)
    tokenizer = json.dumps(read_json(roberta / "tokenizer.json", "tokeniser of XLM-RoBERTa"), ensure_ascii=False)
    weights = _muq_weights(directory, "text")
    config = MuqTextConfig(
        **shape,
        **tower,
        dim=mulan.get("dim_latent", MuqTextConfig.dim),
        projected="proj.weight" in weights,
        tokenizer=tokenizer,
    )
    return asdict(config), weights, config.dim


def _read_mulan(directory: Path, tower: str) -> tuple[Mapping[str, Any], dict[str, Any], Mapping[str, Any]]:
    """Of MuQ-MuLan's config: the part about both towers, the shape of one's transformer, the part about its model."""
    path = directory / "config.json"
    values = _mapping(path, "config of MuQ-MuLan")
    parts = [values.get(part) for part in ("mulan", f"{tower}_transformer", f"{tower}_model")]
    if not all(isinstance(part, Mapping) for part in parts):
        raise InputError(f"{path} is no MuQ-MuLan's: mulan, {tower}_transformer or {tower}_model is missing")
    mulan, transformer, model = ({**(part or {})} for part in parts)
    _require(path, mulan, MULAN_REQUIRED)
    return mulan, {ours: transformer.get(theirs, default) for ours, theirs, default in MULAN_TOWER}, model


def _muq_weights(directory: Path, tower: str) -> dict[str, Tensor]:
    try:
        return rename_muq_weights(read_weights(directory), tower)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from error


def _require(path: Path, values: Mapping[str, Any], required: Mapping[str, Any]) -> None:
    for field, value in required.items():
        if values.get(field, value) != value:
            raise InputError(f"{path}: {field} is {values[field]!r}, expected {value!r}")


def _number(path: Path, values: Mapping[str, Any], field: str) -> float:
    value = values.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{path}: {field} is {value!r:.60}, expected a number")
    return float(value)


def _read_clap(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Mapping[str, Any]]]:
    """Weights by transformers' names, and transformers' configs of the towers where there are any."""
    if path.is_dir():
        values = _mapping(path / "config.json", "config of a ClapModel")
        towers = {tower: values.get(tower) for tower in ("audio_config", "text_config")}
        if not all(isinstance(tower, Mapping) for tower in towers.values()):
            raise InputError(f"{path / 'config.json'} is no ClapModel's: audio_config or text_config is missing")
        # a model's own field wins over that of its towers
        shared = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
        return read_weights(path), {name: {**(tower or {}), **shared} for name, tower in towers.items()}
    return rename_laion_weights(read_state_dict(path)), {}


def _towers(path: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    try:
        return split_towers(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _shape(path: Path, read: Any, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
    try:
        shape: Mapping[str, Any] = read(weights)
    except (InputError, LookupError, ArithmeticError, ValueError) as error:  # of a weight of another rank, too
        raise InputError(f"{path} is no checkpoint of CLAP: {error}") from error
    return shape


def _kept(values: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """The fields a config of ours keeps; lists as tuples, `projection_dim` as `dim`."""
    kept = {field: values[field] for field in (*fields, "dim") if field in values}
    if "projection_dim" in values:
        kept["dim"] = values["projection_dim"]
    return {field: tuple(value) if isinstance(value, list) else value for field, value in kept.items()}


def _mapping(path: Path, what: str) -> Mapping[str, Any]:
    values = read_json(path, what)
    if not isinstance(values, Mapping):
        raise InputError(f"{path} holds {values!r:.60}, expected a {what}")
    return values
