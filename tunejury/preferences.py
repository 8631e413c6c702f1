"""Preference pairs: reading what people voted, and splitting it without leaks.

A pair is two clips made for one prompt and the vote between them, held as the probability that A is preferred: 1, 0,
or 0.5 for a tie. Files are `.jsonl`, `.csv` or a `.json` list, in our own columns (`prompt, audio_a, audio_b, winner,
system_a, system_b`, and `pair_id, source, split, reward_a, reward_b` where there are any) or in those of the reference
implementation and of Music Arena's tables (see `COLUMNS`). A label that is not one of `WINNERS` is an error: a vote
taken for a tie by mistake would train the judge to call a clear case a draw.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tunejury.errors import InputError

logger = logging.getLogger(__name__)

# names a column goes by: ours first, then those of the reference implementation's files and of Music Arena's tables
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "pair_id": ("pair_id", "battle_uuid", "battle_id", "uuid"),
    "prompt": ("prompt",),
    "audio_a": ("audio_a", "a_audio"),
    "audio_b": ("audio_b", "b_audio"),
    "winner": ("winner", "preference"),
    "system_a": ("system_a",),
    "system_b": ("system_b",),
    "source": ("source", "dataset"),
    "split": ("split",),
    "reward_a": ("reward_a", "tj_a"),
    "reward_b": ("reward_b", "tj_b"),
}

# what a label says of A, in lower case
WINNERS: Mapping[str, float] = {
    "a": 1.0, "model_a": 1.0, "b": 0.0, "model_b": 0.0,
    "tie": 0.5, "draw": 0.5, "both": 0.5, "neither": 0.5, "both_bad": 0.5,
}  # fmt: skip

SPLITS = ("train", "validation", "test")
SPLIT_NAMES: Mapping[str, str] = {name: name for name in SPLITS} | {"valid": "validation", "val": "validation"}


@dataclass(frozen=True)
class PreferencePair:
    """Two clips of one prompt and a vote."""

    pair_id: str
    target: float
    """Probability that A is preferred: 1, 0, or 0.5 for a tie."""
    prompt: str = ""
    """What both clips were asked to be; empty where the voters did not know."""
    audio_a: str = ""
    """Path of clip A; empty where the table holds rewards alone."""
    audio_b: str = ""
    system_a: str = ""
    """Name of the system that made clip A; empty if unknown."""
    system_b: str = ""
    source: str = ""
    """Name of the collection the vote comes from."""
    split: str = ""
    """`train`, `validation`, `test`, or empty where the file does not say."""
    reward_a: float | None = None
    """Reward of clip A, where the table holds it."""
    reward_b: float | None = None

    @property
    def is_tie(self) -> bool:
        """Neither clip was preferred."""
        return self.target == 0.5


def read_pairs(
    path: str | Path, *, audio_root: str | Path | None = None, needs: Literal["audio", "rewards", "votes"] = "audio"
) -> list[PreferencePair]:
    """Read preference pairs.

    Args:
        path: `.jsonl`, `.csv` (with a header) or `.json` (a list of objects).
        audio_root: what relative paths of clips start from; None for the folder of the file.
        needs: what every row must hold beside its vote: the paths of both clips (which must exist), both rewards, or
            nothing.

    Returns:
        The pairs in the order of the file, `source` being the file's name where it has no such column.

    Raises:
        InputError: the file is missing, empty or damaged, a column is missing, a label is unknown, a clip does not
            exist, or an id comes twice; the message names the file and the line.
    """
    path = Path(path)
    root = path.parent if audio_root is None else Path(audio_root)
    pairs: list[PreferencePair] = []
    lines: dict[str, int] = {}
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        pair = _pair(row, where, default_id=str(len(pairs)), default_source=path.stem)
        if pair.pair_id in lines:
            raise InputError(f"{where}: pair {pair.pair_id!r} was there already in line {lines[pair.pair_id]}")
        lines[pair.pair_id] = line
        if needs == "audio":
            pair = replace(
                pair, audio_a=_clip(pair.audio_a, "a", root, where), audio_b=_clip(pair.audio_b, "b", root, where)
            )
        if needs == "rewards" and (pair.reward_a is None or pair.reward_b is None):
            raise InputError(f"{where}: a reward is missing, expected columns reward_a and reward_b (or tj_a and tj_b)")
        pairs.append(pair)
    return pairs


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a `.jsonl`, `.csv` or `.json` table, each with its line (its place for `.json`), at least one.

    Raises:
        InputError: the file is missing, of another type, damaged or empty; the message names the line.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
        ".jsonl": _jsonl, ".csv": _csv, ".json": _json,
    }  # fmt: skip
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: expected a file of type {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    rows = 0
    try:
        for line, row in readers[path.suffix.lower()](path):
            if not isinstance(row, dict):
                raise InputError(f"{path}:{line}: expected an object with keys, got {row!r:.60}")
            rows += 1
            yield line, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from error
    if rows == 0:
        raise InputError(f"{path} holds no rows")


def split_pairs(
    pairs: Iterable[PreferencePair],
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    *,
    seed: int = 0,
    group: Literal["prompt", "pair"] = "prompt",
) -> dict[str, list[PreferencePair]]:
    """Split every source by itself into train, validation and test.

    Pairs whose file names a split stay where it says. Of the others, all pairs of one prompt go the same way, so that
    a clip heard in training is not met again in the test; pairs without a prompt go one by one.

    Args:
        pairs: the pairs.
        fractions: shares of train, validation and test; they sum to 1.
        seed: of the shuffle, which depends on it and on the pairs' ids alone, not on their order.
        group: `prompt` (see above), or `pair` to split pair by pair as the published splits do.

    Returns:
        Pairs by split, in the order given.

    Raises:
        InputError: the fractions are no shares, or a split that was asked for got no pair.
    """
    pairs = list(pairs)
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise InputError(f"split fractions are {fractions}, expected three shares that sum to 1")
    chosen: dict[str, str] = {pair.pair_id: pair.split for pair in pairs if pair.split}
    for source in sorted({pair.source for pair in pairs}):
        groups: dict[str, list[PreferencePair]] = {}
        for pair in pairs:
            if pair.source == source and not pair.split:
                key = f"prompt {pair.prompt}" if group == "prompt" and pair.prompt else f"pair {pair.pair_id}"
                groups.setdefault(key, []).append(pair)
        keys = sorted(groups)
        random.Random(f"{seed} {source}").shuffle(keys)
        total, placed = sum(map(len, groups.values())), 0
        for key in keys:
            # the middle of the group decides, so that sizes are kept on average whatever the groups' sizes
            middle = (placed + len(groups[key]) / 2) / total
            place = 0 if middle < fractions[0] else 1 if middle < fractions[0] + fractions[1] else 2
            chosen |= {pair.pair_id: SPLITS[place] for pair in groups[key]}
            placed += len(groups[key])
    splits: dict[str, list[PreferencePair]] = {name: [] for name in SPLITS}
    for pair in pairs:
        splits[chosen[pair.pair_id]].append(pair)
    for name, fraction in zip(SPLITS, fractions, strict=True):
        if fraction > 0 and not splits[name]:
            raise InputError(
                f"{len(pairs)} pairs of {len({p.prompt for p in pairs})} prompts leave none for the {name} split; "
                f"give more pairs, other fractions, or split by pair"
            )
    shared = _clips(splits["train"]) & _clips(splits["test"])
    if shared:
        logger.warning("%d clips are in both the train and the test split, first %s", len(shared), min(shared))
    return splits


def leave_one_source_out(
    pairs: Sequence[PreferencePair],
) -> Iterator[tuple[str, list[PreferencePair], list[PreferencePair]]]:
    """For every source: its name, the pairs of all others, and its own.

    Raises:
        InputError: there is only one source.
    """
    sources = sorted({pair.source for pair in pairs})
    if len(sources) < 2:
        raise InputError(f"leaving one source out needs at least two sources, got {sources}")
    for source in sources:
        yield source, [p for p in pairs if p.source != source], [p for p in pairs if p.source == source]


def _pair(row: Mapping[str, Any], where: str, default_id: str, default_source: str) -> PreferencePair:
    values: dict[str, Any] = {}
    for name, aliases in COLUMNS.items():
        given = [row[alias] for alias in aliases if row.get(alias) not in (None, "")]
        values[name] = given[0] if given else None
    if values["winner"] is None:
        raise InputError(
            f"{where}: the vote is missing, expected a column winner (there are: {', '.join(map(str, row))})"
        )
    winner = str(values["winner"]).strip().lower()
    if winner not in WINNERS:
        raise InputError(f"{where}: unknown winner {values['winner']!r}, expected one of: {', '.join(WINNERS)}")
    split = str(values["split"] or "").strip().lower()
    if split and split not in SPLIT_NAMES:
        raise InputError(f"{where}: unknown split {values['split']!r}, expected one of: {', '.join(SPLIT_NAMES)}")
    prompt = values["prompt"] or ""
    if not isinstance(prompt, str):
        raise InputError(f"{where}: prompt is {prompt!r:.60}, expected text")
    return PreferencePair(
        pair_id=default_id if values["pair_id"] is None else str(values["pair_id"]),
        target=WINNERS[winner],
        prompt=prompt.strip(),
        audio_a=str(values["audio_a"] or ""),
        audio_b=str(values["audio_b"] or ""),
        system_a=_name(values["system_a"], "system_a", where),
        system_b=_name(values["system_b"], "system_b", where),
        source=str(values["source"] or "").strip() or default_source,
        split=SPLIT_NAMES.get(split, ""),
        reward_a=number(values["reward_a"], "reward_a", where),
        reward_b=number(values["reward_b"], "reward_b", where),
    )


def _name(value: Any, name: str, where: str) -> str:
    """A system's name, on one line."""
    if isinstance(value, (list, dict)):
        raise InputError(f"{where}: {name} is {value!r:.60}, expected a name")
    return "" if value is None else " ".join(str(value).split())


def number(value: Any, name: str, where: str) -> float | None:
    """A finite number from a table's cell, None from an empty one.

    Raises:
        InputError: it is something else.
    """
    if value is None or value == "":
        return None
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if isinstance(value, bool) or not math.isfinite(result):
        raise InputError(f"{where}: {name} is {value!r:.60}, expected a finite number")
    return result


def _clip(name: str, side: str, root: Path, where: str) -> str:
    if not name:
        raise InputError(f"{where}: clip {side.upper()} is missing, expected its path in a column audio_{side}")
    path = root / name
    if not path.is_file():
        raise InputError(f"{where}: clip {path} does not exist")
    return str(path)


def _clips(pairs: Iterable[PreferencePair]) -> set[str]:
    return {clip for pair in pairs for clip in (pair.audio_a, pair.audio_b) if clip}


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                try:
                    yield line, json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}:{line}: no JSON object: {error}") from error


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    yield from enumerate(rows, 1)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            header = (reader.fieldnames or [""])[0]
            if len(reader.fieldnames or ()) == 1 and (other := next((mark for mark in ";\t|" if mark in header), "")):
                raise InputError(f"{path}:1: columns are separated by {other!r}, expected commas")
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}:{reader.line_num}: expected {len(reader.fieldnames or ())} columns as in the header"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: damaged CSV: {error}") from error
