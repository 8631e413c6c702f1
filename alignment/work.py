"""A list of items done batch by batch: shared among processes, recorded, and found again after a crash.

The list is cut into batches once and for all, across prompts, so that every batch but the last is full and an item has
the same neighbours however many processes there are. A batch is the unit of progress: its records are appended
together, and a run that was killed goes on with the batches that have not all of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from alignment.errors import InputError
from alignment.interfaces import Candidate, Prompt
from alignment.processes import share
from alignment.runs import RunDirectory

Key = tuple[str, int]  # prompt_id, candidate
Done = dict[Key, Candidate]


class Progress(Protocol):
    """A progress bar, as tqdm has it. Counts clips."""

    total: float | None

    def update(self, n: float, /) -> object: ...


@dataclass(frozen=True)
class Item:
    """One candidate to be made or read."""

    prompt: Prompt
    candidate: int
    seed: int | None
    path: Path  # where the audio is, or will be
    name: str  # of that path in the records

    @property
    def key(self) -> Key:
        return self.prompt.prompt_id, self.candidate


def batches_of(items: Sequence[Item], batch_size: int) -> list[Sequence[Item]]:
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]


def carry_out(
    run: RunDirectory,
    name: str,
    items: Sequence[Item],
    batch_size: int,
    do: Callable[[Sequence[Item]], list[Candidate]],
    *,
    known: set[Key],
    after: Callable[[Done, Sequence[Item]], None],
    progress: Progress | None = None,
) -> Done:
    """Do what is left of a list, in this process its share; every process gets the records of all.

    Args:
        run: a started run.
        name: the file of records.
        items: what is to be done, in the same order in every process.
        batch_size: of a batch.
        do: does a batch.
        known: of whom the file may hold records; other ones are none of ours.
        after: called with what is done so far and the items it is new for: those of earlier sessions, then each batch.
        progress: a bar; its total grows by this process's share and by what is done already.

    Raises:
        InputError: the file holds records of something else.
    """

    def select(found: list[tuple[Path, int, dict[str, Any]]]) -> list[dict[str, Any]]:
        """The records of whole batches, in the order of the items."""
        records: dict[Key, dict[str, Any]] = {}
        for path, line, record in found:
            prompt_id, candidate = record.get("prompt_id"), record.get("candidate")
            if not isinstance(prompt_id, str) or not isinstance(candidate, int) or (prompt_id, candidate) not in known:
                raise InputError(f"{path}:{line}: not the candidate expected; --overwrite starts anew")
            records[prompt_id, candidate] = record
        batches = batches_of(items, batch_size)
        whole = [batch for batch in batches if all(item.key in records for item in batch)]
        return [records[item.key] for batch in whole for item in batch]

    def gather() -> Done:
        try:
            found = [Candidate(**record) for record in run.gather(select, name)]
        except TypeError as error:
            raise InputError(f"{run.path / name}: {error}; use --overwrite to start anew") from None
        return {(candidate.prompt_id, candidate.candidate): candidate for candidate in found}

    done = gather()
    left = share([batch for batch in batches_of(items, batch_size) if batch[0].key not in done], run.processes)
    after(done, [item for item in items if item.key in done])
    if progress is not None:
        progress.total = (progress.total or 0) + len(done) + sum(map(len, left))
        progress.update(len(done))
    for batch in left:
        new = do(batch)
        run.append_records((candidate.to_dict() for candidate in new), name)
        done.update(zip((item.key for item in batch), new, strict=True))
        after(done, batch)
        if progress is not None:
            progress.update(len(batch))
    return gather()
