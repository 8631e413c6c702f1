"""What a reward is made of, as stored in its `config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tunejury.encoders import encoder_kind
from tunejury.errors import InputError

LARGEST_SIZE = 1_000_000  # of a layer or a block of features; more is a damaged file
# the encoders each kind of input block takes, by modality, in order
BLOCK_MODALITIES: Mapping[str, tuple[str, ...]] = {
    "audio": ("audio",),
    "text": ("text",),
    "product": ("audio", "text"),
}


@dataclass(frozen=True)
class InputBlock:
    """One stretch of the head's input features."""

    kind: str
    """`audio` or `text`: an encoder's embedding; `product`: projected audio embedding times text embedding, by
    element.
    """
    encoders: tuple[str, ...]
    """Names of the encoders it takes: one, or for a product the audio and the text encoder."""
    dim: int


@dataclass(frozen=True)
class HeadConfig:
    """Shape of the `RewardHead`."""

    widths: tuple[int, ...] = (1024, 512, 256, 128)
    dropout: float = 0.0


@dataclass(frozen=True)
class RewardConfig:
    """What a reward is made of.

    Raises:
        InputError: the parts do not fit together.
    """

    name: str
    license: str
    """Licence of the head and the projections; the encoders' own are in their configs."""
    encoders: Mapping[str, Mapping[str, Any]]
    """Config of each encoder by its name: "kind" and the fields of that kind's config."""
    inputs: tuple[InputBlock, ...]
    """The head's features, in order."""
    head: HeadConfig
    protocol: str = "release"
    """Name of the listening protocol the reward was made for."""
    ensemble: int = 0
    """Members of the ensemble that tells how sure it is; 0: it has none."""

    def __post_init__(self) -> None:
        if self.ensemble < 0 or self.ensemble == 1:
            raise InputError("an ensemble of one has no spread, expected 2 members or more, or 0 for none")
        modalities = {}
        for name, encoder in self.encoders.items():
            if not re.fullmatch(r"[\w-]+", name):
                raise InputError(f"encoder name {name!r}: expected letters, digits, - and _")
            modalities[name] = encoder_kind(encoder.get("kind")).modality
        if not self.inputs:
            raise InputError("a reward needs at least one input block")
        for block in self.inputs:
            if block.kind not in BLOCK_MODALITIES:
                raise InputError(f"unknown input block {block.kind!r}, expected one of: {', '.join(BLOCK_MODALITIES)}")
            given = tuple(modalities.get(name) for name in block.encoders)
            if given != BLOCK_MODALITIES[block.kind]:
                raise InputError(
                    f"input block {block.kind!r} takes encoders of modality {BLOCK_MODALITIES[block.kind]}, got "
                    f"{block.encoders} (encoders there are: {', '.join(self.encoders)})"
                )

    @property
    def input_dim(self) -> int:
        """Size of the head's features."""
        return sum(block.dim for block in self.inputs)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> RewardConfig:
        """Read the JSON form.

        Raises:
            InputError: a key is missing or a value is of the wrong type; the message names it.
        """
        top = _mapping(values, "the config")
        encoders = _mapping(_value(top, "encoders"), "encoders")
        head = _mapping(_value(top, "head"), "head")
        inputs = [_mapping(block, "an input block") for block in _list(_value(top, "inputs"), "inputs")]
        return cls(
            name=_text(_value(top, "name"), "name"),
            license=_text(_value(top, "license"), "license"),
            encoders={name: _mapping(config, f"encoder {name!r}") for name, config in encoders.items()},
            inputs=tuple(
                InputBlock(
                    kind=_text(_value(block, "kind"), "kind"),
                    encoders=tuple(_text(name, "encoders") for name in _list(_value(block, "encoders"), "encoders")),
                    dim=_size(_value(block, "dim"), "dim"),
                )
                for block in inputs
            ),
            head=HeadConfig(
                widths=tuple(_size(width, "widths") for width in _list(_value(head, "widths"), "widths")),
                dropout=_probability(head.get("dropout", 0.0), "dropout"),
            ),
            protocol=_text(top.get("protocol", "release"), "protocol"),
            ensemble=_size(top.get("ensemble", 0), "ensemble", least=0),
        )


def _value(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise InputError(f"key {key!r} is missing (there are: {', '.join(map(str, values)) or 'none'})")
    return values[key]


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{what} is {value!r:.60}, expected an object with keys")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{what} is {value!r:.60}, expected a list")
    return list(value)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{what} is {value!r:.60}, expected text")
    return value


def _size(value: object, what: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST_SIZE:
        raise InputError(f"{what} holds {value!r:.60}, expected a whole number from {least} to {LARGEST_SIZE}")
    return value


def _probability(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise InputError(f"{what} is {value!r:.60}, expected a number from 0 up to, not including, 1")
    return float(value)
