"""A table of scores that a run can be interrupted in: results are journalled batch by batch, and the file appears,
complete and in the order of its items, when the last one is in.

Several processes may each keep a journal of their own beside the same table.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunejury.errors import InputError
from tunejury.files import atomic_path
from tunejury.manifest import Item

TABLE_SUFFIXES = (".jsonl", ".csv")
COLUMNS = ("path", "prompt", "reward", "error", "model", "weights", "protocol")


class ScoreTable:
    """Scores of a list of items by one judge.

    Args:
        path: the table, `.jsonl` or `.csv`.
        items: what is judged, in the table's order.
        model: the judge's name.
        weights: what tells its weights from those of another judge of that name.
        protocol: its protocol's record.
        batches: the plan of the run; a journal made under another plan is not continued.
        overwrite: begin anew whatever is there.

    Raises:
        InputError: the suffix is neither, there is no folder to write to, the table or a journal is of another run or
            damaged, or a clip was written after it.
    """

    def __init__(
        self,
        path: Path,
        items: Sequence[Item],
        model: str,
        weights: str,
        protocol: dict[str, Any],
        batches: Sequence[Sequence[int]],
        overwrite: bool = False,
    ) -> None:
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise InputError(f"{path}: expected a name ending in {' or '.join(TABLE_SUFFIXES)}")
        self._path, self._items, self._model, self._weights, self._protocol = path, items, model, weights, protocol
        listed = [[str(item.path), item.prompt] for item in items]
        plan = json.dumps([listed, model, weights, protocol, [list(batch) for batch in batches]])
        self._identity = hashlib.sha256(plan.encode()).hexdigest()
        self._results: dict[int, float | str] = {}
        self.failed = 0
        """How many items of a complete table have no reward."""
        self._check_can_write()
        if overwrite:
            path.unlink(missing_ok=True)
            for journal in self._journals():
                journal.unlink(missing_ok=True)
        self.complete = path.exists()
        if self.complete:
            self._check_is_ours()
            self._check_is_newer(path)
        for journal in self._journals():
            self._read(journal)
            if journal.exists():
                self._check_is_newer(journal)

    def is_done(self, batch: Iterable[int]) -> bool:
        """Whether every item of a batch has its result."""
        return all(place in self._results for place in batch)

    def add(self, results: Iterable[tuple[int, float | Exception]], rank: int = 0) -> None:
        """Journal a batch: (place, reward or why there is none) of each item; on disk when this returns."""
        journal = self._journal(rank)
        lines = "" if journal.exists() else json.dumps({"run": self._identity}) + "\n"
        for place, result in results:
            value = " ".join(str(result).split()) if isinstance(result, Exception) else result
            self._results[place] = value
            lines += json.dumps({"item": place, "error" if isinstance(value, str) else "reward": value}) + "\n"
        with journal.open("a", encoding="utf-8") as file:
            file.write(lines)

    def reload(self) -> None:
        """Read what other processes have journalled since."""
        for journal in self._journals():
            self._read(journal)

    def finish(self) -> None:
        """Write the table and drop the journals.

        Raises:
            OSError: the table cannot be written.
        """
        rows = [self._row(place) for place in range(len(self._items))]
        if self._path.suffix.lower() == ".csv":
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({**row, "protocol": f"{row['protocol']['name']}/{row['protocol']['version']}"})
            content = text.getvalue()
        else:
            content = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with atomic_path(self._path) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="")
        for journal in self._journals():
            journal.unlink(missing_ok=True)
        self.complete, self.failed = True, sum("error" in row for row in rows)

    def _row(self, place: int) -> dict[str, Any]:
        item, value = self._items[place], self._results[place]
        result = {"error": value} if isinstance(value, str) else {"reward": value}
        return {
            "path": str(item.path), "prompt": item.prompt, **result, "model": self._model, "weights": self._weights,
            "protocol": self._protocol,
        }  # fmt: skip

    def _journal(self, rank: int) -> Path:
        return self._path.with_name(f".{self._path.name}.{rank}.partial")

    def _journals(self) -> list[Path]:
        names = f".{self._path.name}."
        return sorted(
            p for p in self._path.parent.iterdir() if p.name.startswith(names) and p.name.endswith(".partial")
        )

    def _check_can_write(self) -> None:
        """Now, not after the work."""
        folder, name = self._path.parent, self._path.name
        if not folder.is_dir():
            state = "is a file" if folder.exists() else "does not exist"
            raise InputError(f"{folder} {state}, expected the folder {name} is to be written to")
        if self._path.is_dir():
            raise InputError(f"{self._path} is a folder, expected the name of a file to write")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(f"{name} cannot be written to the folder {folder}: {error.strerror}") from error

    def _read(self, journal: Path) -> None:
        try:
            self._read_lines(journal, journal.read_text(encoding="utf-8").split("\n"))
        except InputError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{journal} is damaged: remove it, or give --overwrite") from error

    def _read_lines(self, journal: Path, lines: list[str]) -> None:
        if len(lines) > 1 and json.loads(lines[0]).get("run") != self._identity:
            raise InputError(
                f"{journal} is of a run with other files, prompts, settings or judge: repeat that one, name another "
                "--output, or give --overwrite"
            )
        if lines[-1] or len(lines) < 2:  # cut off in the middle of a line: what is whole counts
            whole = "".join(f"{line}\n" for line in lines[:-1])
            with atomic_path(journal) as temporary:
                temporary.write_text(whole, encoding="utf-8")
            if not whole:
                journal.unlink()
        for line in lines[1:-1]:
            row = json.loads(line)
            self._results[row["item"]] = row["reward"] if "reward" in row else row["error"]

    def _check_is_newer(self, result: Path) -> None:
        """A clip that was written after its reward was is another clip."""
        for item in self._items:
            if item.path.exists() and item.path.stat().st_mtime_ns > result.stat().st_mtime_ns:
                raise InputError(
                    f"{item.path} was written after {result}: name another --output, or give --overwrite to judge anew"
                )

    def _check_is_ours(self) -> None:
        """A finished table is the answer to the same question, and to no other."""
        text = self._path.read_text(encoding="utf-8")
        try:
            if self._path.suffix.lower() == ".csv":
                rows: list[Any] = list(csv.DictReader(io.StringIO(text, newline="")))
                protocol: Any = f"{self._protocol['name']}/{self._protocol['version']}"
            else:
                rows, protocol = [json.loads(line) for line in text.splitlines()], self._protocol
            self.failed = sum(bool(row.get("error")) for row in rows)
            found = [(row["path"], row["prompt"], row["model"], row["weights"], row["protocol"]) for row in rows]
        except (ValueError, KeyError, TypeError, AttributeError):
            found = []
        if found != [(str(item.path), item.prompt, self._model, self._weights, protocol) for item in self._items]:
            raise InputError(
                f"{self._path} is there already and of another run: name another --output, or give --overwrite"
            )
