"""Ratings of single clips by people, read from tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunejury.errors import InputError
from tunejury.preferences import number, read_rows

CLIP_COLUMNS = ("audio", "path", "audio_path", "audio-path")
SYSTEM_COLUMNS = ("system", "model")
REWARD_COLUMNS = ("reward", "reward_score", "tunejury_reward")  # ours, then those of TuneJury's published tables
NO_RATINGS = {*CLIP_COLUMNS, *SYSTEM_COLUMNS, *REWARD_COLUMNS, "prompt", "source", "dataset", "split", "clip_id", "id"}


@dataclass(frozen=True)
class RatedClip:
    """A clip and what people said of it."""

    audio: str
    """Path; empty where the table holds rewards alone."""
    prompt: str
    ratings: Mapping[str, float]
    """Rating by scale; a scale the clip was not rated on is left out."""
    system: str = ""
    source: str = ""
    reward: float | None = None


def read_ratings(
    path: str | Path, scales: Sequence[str] = (), *, audio_root: str | Path | None = None
) -> list[RatedClip]:
    """Read ratings of clips.

    Args:
        path: `.jsonl`, `.csv` or `.json` with a clip (`audio` or `path`) or its `reward` in every row, ratings in
            columns of numbers, and `prompt`, `system`, `source` where known.
        scales: names of the columns that hold ratings; none takes every other column that holds numbers alone.
        audio_root: what relative paths start from; None for the folder of the file.

    Raises:
        InputError: the file is missing or damaged, a clip does not exist, or a column is missing or no number.
    """
    path = Path(path)
    root = path.parent if audio_root is None else Path(audio_root)
    rows = list(read_rows(path))
    names = list(scales) or _columns_of_numbers([row for _, row in rows])
    if not names:
        raise InputError(f"{path} has no column of ratings (numbers), there are: {', '.join(map(str, rows[0][1]))}")
    clips = []
    for line, row in rows:
        where = f"{path}:{line}"
        absent = [name for name in names if name not in row]
        if absent:
            raise InputError(f"{where}: no column {absent[0]!r}, there are: {', '.join(map(str, row))}")
        values = {name: number(row[name], name, where) for name in names}
        reward = number(_first(row, REWARD_COLUMNS), "reward", where)
        audio = str(_first(row, CLIP_COLUMNS) or "")
        if reward is None:
            audio = existing_clip(root, audio, where)
        clips.append(
            RatedClip(
                audio=audio,
                prompt=str(row.get("prompt") or "").strip(),
                ratings={name: value for name, value in values.items() if value is not None},
                system=str(_first(row, SYSTEM_COLUMNS) or ""),
                source=str(row.get("source") or path.stem),
                reward=reward,
            )
        )
    return clips


def existing_clip(root: Path, name: str, where: str) -> str:
    """Path of a clip named in a table.

    Raises:
        InputError: there is no name, or no such file.
    """
    if not name:
        raise InputError(f"{where}: neither a clip nor a reward, expected a column audio (a path) or reward")
    path = root / name
    if not path.is_file():
        raise InputError(f"{where}: clip {path} does not exist")
    return str(path)


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _columns_of_numbers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def is_number(value: Any) -> bool:
        try:
            return value in (None, "") or np.isfinite(float(value))
        except (TypeError, ValueError, OverflowError):
            return False

    names = [name for name in rows[0] if str(name).lower() not in NO_RATINGS]
    return [
        n for n in names if all(is_number(r.get(n)) for r in rows) and any(r.get(n) not in (None, "") for r in rows)
    ]
