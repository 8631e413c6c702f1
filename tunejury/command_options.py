"""Options several subcommands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunejury.errors import InputError

if TYPE_CHECKING:
    from tunejury.model import RewardModel

Precision = Literal["float32", "float64", "bfloat16"]


def load_judge(
    reward: str,
    device: str,
    protocol: str | None,
    files: Sequence[str],
    dtype: Precision = "float32",
    calibration: Path | None = None,
    system: str | None = None,
) -> RewardModel:
    """The judge that the options `--reward --device --protocol --files --dtype` ask for.

    Args:
        reward, protocol: as for `load_reward`.
        device: a device's name, or `auto`.
        files: "part=path" each, for the parts of a released head that are not to be taken from the hub.
        dtype: as for `load_reward`, by name.
        calibration, system: as for `load_reward`.

    Raises:
        InputError: as for `load_reward`, or a file is not given as part=path.
    """
    import torch

    from tunejury.loading import load_reward

    if calibration is None and system is not None:
        raise InputError(f"--system {system} is for a calibrated reward, expected --calibration FILE with it")
    return load_reward(
        reward,
        device=None if device == "auto" else device,
        dtype=getattr(torch, dtype),
        protocol=protocol,
        files=parse_files(files) or None,
        calibration=calibration,
        system=system,
    )


def check_can_write(path: Path | None) -> None:
    """Raise InputError now, not after the work, where a file cannot be written at this path; None is no file."""
    if path is not None and path.is_dir():
        raise InputError(f"{path} is a folder, expected the name of a file to write")
    if path is not None and not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder, {path.name} cannot be written there")


def to_json(values: object) -> str:
    """JSON text with a line end, in full precision."""
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def parse_files(files: Sequence[str]) -> dict[str, Path]:
    """`part=path` each, as paths by part.

    Raises:
        InputError: one is not of that form.
    """
    parts: dict[str, Path] = {}
    for file in files:
        part, equals, path = file.partition("=")
        if not equals or not path:
            raise InputError(f"--files {file}: expected part=path, such as clap=music_audioset_epoch_15_esc_90.14.pt")
        parts[part] = Path(path)
    return parts
