"""What the compact judge learns from: teacher tracks split by piece, composed clips, crops of both."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pieces import fold_of, group_pieces

SAMPLE_RATE = 16_000  # Hz
TEST_FOLDS = 5  # one piece in five is kept for the reported figures


@dataclass(frozen=True)
class Track:
    """A rendered teacher file; `audio` is int16 mono at 16 kHz, mapped from disk."""

    name: str
    reward: float
    caption: str
    collection: str
    group: str
    audio: NDArray[np.int16]

    @property
    def is_test(self) -> bool:
        return fold_of(self.group, TEST_FOLDS) == 0


def load_tracks(teacher_dir: Path, renders: Path) -> list[Track]:
    """Teacher tracks whose render is in `renders`, in the order of teacher.csv."""
    for needed, told in (
        (teacher_dir / "teacher.csv", "--teacher-dir expects the folder of teacher.csv and midi/"),
        (renders, "run render_teacher.py first, or give its --data-dir"),
    ):
        if not needed.exists():
            raise SystemExit(f"error: {needed} does not exist: {told}")
    with (teacher_dir / "teacher.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = _groups(teacher_dir, rows, renders / "pieces.json")
    tracks = []
    for row, group in zip(rows, groups, strict=True):
        name = Path(row["midi"]).stem
        render = renders / f"{name}.npy"
        if render.exists():
            audio = np.load(render, mmap_mode="r")
            first = Path(rows[group]["midi"]).stem
            reward, caption = float(row["teacher_reward"]), row["caption"]
            tracks.append(Track(name, reward, caption, row["collection"], first, audio))
    return tracks


def _groups(teacher_dir: Path, rows: list[dict[str, str]], cache: Path) -> list[int]:
    """Piece numbers of all rows; reading the MIDI files takes a minute, so the answer is kept beside the renders."""
    names = [row["midi"] for row in rows]
    if cache.exists():
        kept = json.loads(cache.read_text())
        if kept["names"] == names:
            return list(kept["groups"])
    groups = group_pieces([teacher_dir / name for name in names], [row["caption"] for row in rows])
    cache.write_text(json.dumps({"names": names, "groups": groups}))
    return groups


def crop(audio: NDArray[np.int16], start: int, length: int) -> NDArray[np.float32]:
    """`length` samples from `start` as float32 in [-1, 1], zero-padded at the end of the track."""
    piece = np.asarray(audio[start : start + length], dtype=np.float32) / 32768
    return np.pad(piece, (0, length - len(piece)))


class ComposedClips:
    """Clips of one split of `compose.py`: audio mapped from disk, attributes and captions in memory."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.audio: list[NDArray[np.int16]] = []
        self.records: list[dict[str, Any]] = []
        for path in sorted(folder.glob("shard-*.npy")):
            clips = np.load(path, mmap_mode="r")
            with path.with_suffix(".jsonl").open() as file:
                records = [json.loads(line) for line in file]
            self.audio.extend(clips[: len(records)])
            self.records.extend(records[: len(clips)])
            if limit is not None and len(self.records) >= limit:
                break
        self.audio, self.records = self.audio[:limit], self.records[:limit]

    def __len__(self) -> int:
        return len(self.records)
