"""Encoder families: what turns audio and prompts into embeddings.

An encoder is a torch module with the attributes of `AudioEncoder` or `TextEncoder`. A reward's config names the kind
of each and holds its settings; the module that implements it is imported only when one is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from torch import Tensor, nn

from tunejury.errors import InputError


class AudioEncoder(Protocol):
    """A module that embeds mono audio."""

    name: str
    license: str
    sample_rate: int
    """Hz it listens at."""
    dim: int
    batches_on_cpu: bool
    """Whether it gains by hearing several windows at once on a CPU. A large one does not: its products fill the cores
    with one window, and their last digits would depend on how many rows there are."""

    def __call__(self, wav: Tensor) -> Tensor:
        """wav [B, T] mono at `sample_rate`, T >= 1 -> [B, dim]."""
        ...


class FrameEncoder(AudioEncoder, Protocol):
    """An audio encoder whose embedding is a mean over frames."""

    def num_frames(self, num_samples: int) -> int:
        """Frames it makes of a clip of so many samples."""
        ...


class TextEncoder(Protocol):
    """A module that embeds prompts."""

    name: str
    license: str
    dim: int

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> [B, dim], exactly zeros for an empty one."""
        ...


@dataclass(frozen=True)
class EncoderKind:
    """Where an encoder kind is implemented."""

    modality: Literal["audio", "text"]
    module: str
    encoder: str
    config: str


ENCODER_KINDS: Mapping[str, EncoderKind] = {
    "compact-audio": EncoderKind("audio", "tunejury.encoders.compact", "CompactAudioEncoder", "CompactAudioConfig"),
    "compact-text": EncoderKind("text", "tunejury.encoders.compact", "CompactTextEncoder", "CompactTextConfig"),
    "patch-audio": EncoderKind("audio", "tunejury.encoders.patch_audio", "PatchAudioEncoder", "PatchAudioConfig"),
    "clap-audio": EncoderKind("audio", "tunejury.encoders.clap", "ClapAudioEncoder", "ClapAudioConfig"),
    "clap-text": EncoderKind("text", "tunejury.encoders.clap", "ClapTextEncoder", "ClapTextConfig"),
    "mert": EncoderKind("audio", "tunejury.encoders.mert", "MertEncoder", "MertConfig"),
    "muq-audio": EncoderKind("audio", "tunejury.encoders.muq", "MuqAudioEncoder", "MuqAudioConfig"),
    "muq-text": EncoderKind("text", "tunejury.encoders.muq", "MuqTextEncoder", "MuqTextConfig"),
}

LARGEST = 10_000_000  # number in an encoder's config
MOST_LAYERS = 200


def encoder_kind(kind: object) -> EncoderKind:
    """Look a kind up.

    Raises:
        InputError: there is no such kind; the message lists those there are.
    """
    if not isinstance(kind, str) or kind not in ENCODER_KINDS:
        raise InputError(f"unknown encoder kind {kind!r}, expected one of: {', '.join(ENCODER_KINDS)}")
    return ENCODER_KINDS[kind]


def default_config(kind: str) -> Any:
    """A kind's config dataclass with its defaults.

    Raises:
        InputError: there is no such kind.
    """
    found = encoder_kind(kind)
    return getattr(importlib.import_module(found.module), found.config)()


def build_encoder(config: Mapping[str, Any]) -> nn.Module:
    """Build an encoder, with fresh weights, from its config: "kind" and the fields of that kind's config dataclass.

    Raises:
        InputError: the kind or a field is unknown, or a value cannot be used.
    """
    kind = encoder_kind(config.get("kind"))
    module = importlib.import_module(kind.module)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k != "kind"}
    try:
        for field, value in fields.items():
            _check_size(field, value)
        return cast(nn.Module, getattr(module, kind.encoder)(getattr(module, kind.config)(**fields)))
    except ImportError:
        raise
    # a config is a file's content: whatever a constructor stumbles over in it is that file's fault, and transformers'
    # own checks raise what derives from Exception alone
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"an encoder of kind {config['kind']!r} cannot be built from its config: {reason}") from error


def _check_size(field: str, value: Any) -> None:
    """Raise ValueError for a number that asks for more memory or time than any model of music needs."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, (int, float)) and not -LARGEST <= number <= LARGEST:
            raise ValueError(f"{field} is {number}, beyond {LARGEST}")
        if isinstance(number, int) and ("layers" in field or "depth" in field) and number > MOST_LAYERS:
            raise ValueError(f"{field} is {number}, beyond {MOST_LAYERS} layers")
