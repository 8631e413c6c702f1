"""An output directory: written atomically, continued after a crash, never mixed with other settings.

config.json is what makes a folder a run. Its `settings` decide whether a later command continues the run; everything
else in it (resolved defaults, versions, models and their licences) is a record for readers.

Several processes may share a run. The main one looks after the folder; each appends records to a file of its own
(a hidden one beside the main process's), and `gather` makes one file of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from alignment.errors import InputError
from alignment.files import append_lines, json_lines, read_json, read_lines, write_json, write_text
from alignment.interfaces import Processes
from alignment.processes import ALONE, agree, is_main
from alignment.run_folders import (
    CONFIG,
    LOCK,
    RESULTS,
    check_writable,
    compare,
    compare_defaults,
    default_output_directory,
    read_config,
    versions,
    visible,
)

__all__ = [
    "AUDIO",
    "CONFIG",
    "DRAFTS",
    "EMBEDDINGS",
    "RECORDS",
    "REPORT",
    "RESULTS",
    "TIMING",
    "TRAJECTORIES",
    "RunDirectory",
    "default_output_directory",
    "read_config",
    "versions",
]

logger = logging.getLogger(__name__)

RECORDS = "candidates.jsonl"
DRAFTS = "drafts-{}.jsonl"
EMBEDDINGS = "embeddings.jsonl"
TRAJECTORIES = "trajectories.jsonl"
REPORT = "report.html"
TIMING = "timing.json"
AUDIO = "audio"
# of expert iteration: records of its rounds; adapters; what training needs between two sessions; trackers' files
ROUND = "round-{}"
ADAPTERS = "adapters"
TRAINING = "training"
LOGS = "logs"
# of best-of-N with drafts: what the next stage goes on from
UNFINISHED = ".unfinished"
_FORMAT = 1
# everything a run writes but its configuration; {} of a name, and the processes' own parts, are found by pattern
_WRITTEN = (RESULTS, REPORT, RECORDS, DRAFTS.format("*"), EMBEDDINGS, TRAJECTORIES, TIMING, ROUND.format("*"))
_FOLDERS = (AUDIO, ADAPTERS, TRAINING, LOGS, UNFINISHED)


class RunDirectory:
    """One run's folder. Used as a context manager by the processes that write it; others are refused.

    Where several processes share the run, each makes one and all call the same methods in the same order.

    Args:
        path: the folder; it need not exist yet. Shared by all processes.
        recipe: what kind of run it is, e.g. "best_of_n".
        settings: what the user asked for, as JSON values. A run is continued only by the same settings.
        overwrite: clear a run of ours that was made with other settings, or start the same one anew.
        processes: those that share the run.

    Raises:
        InputError: the folder belongs to something else, to a run with other settings, or cannot be written. Nothing
            has been written by then.
    """

    def __init__(
        self,
        path: str | Path,
        recipe: str,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self.path = Path(path)
        self.recipe = recipe
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as it will read back: tuples are lists
        self.overwrite = overwrite
        self.processes = processes
        self._lock: IO[str] | None = None
        self._new = False
        agree(processes, self._check)

    @property
    def is_main(self) -> bool:
        """Whether this process looks after the folder."""
        return is_main(self.processes)

    def _check(self) -> None:
        check_writable(self.path)
        if not self.path.exists() or not visible(self.path):
            return
        config = read_config(self.path)
        if config is None:
            raise InputError(
                f"{self.path} is not empty and is no run of ours (it has no {CONFIG}); choose another --output-dir"
            )
        if not self.overwrite:
            compare(self.path, config, self.recipe, self.settings)

    def __enter__(self) -> RunDirectory:
        agree(self.processes, self._take)
        return self

    def _take(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        lock = open(self.path / LOCK, "w")  # noqa: SIM115 - held until __exit__; the kernel frees it if we are killed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise InputError(f"{self.path} is being written by another process; wait for it to end") from None
        self._lock = lock
        self._check()  # the folder may have changed between the first look and the lock
        for folder in (self.path, *(self.path / name for name in _FOLDERS)):
            for leftover in folder.glob(".*.tmp"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def start(
        self,
        info: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        resolved: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Write config.json for a new run, or leave that of the run being continued.

        Args:
            info: what is recorded beside the settings (JSON values), or what makes it, for a new run only.
            resolved: groups of values that settings came to where they were not told; recorded too.

        Raises:
            InputError: they came to others when the run was begun.
        """
        agree(self.processes, lambda: self._start(info, resolved or {}))

    def _start(
        self,
        info: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        resolved: Mapping[str, Mapping[str, Any]],
    ) -> None:
        config = read_config(self.path)
        if config is not None and not self.overwrite:
            compare_defaults(self.path, config, resolved)
            changed = sorted(
                f"{name} {config['versions'][name]} -> {version}"
                for name, version in versions().items()
                if config.get("versions", {}).get(name, version) != version
            )
            if changed:
                logger.warning("continuing a run made with other versions: %s", ", ".join(changed))
            return
        record = info() if callable(info) else info
        if config is not None:
            # config.json goes last: killed half-way, the folder is still known as ours
            self._clear()
        self._new = config is None
        about = {"recipe": self.recipe, "format": _FORMAT, "settings": self.settings}
        self.write_json(CONFIG, {**about, **resolved, **record})
        self.audio.mkdir(exist_ok=True)

    def _clear(self) -> None:
        for folder in _FOLDERS:
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for pattern in _WRITTEN:
            for path in [*self.path.glob(pattern), *self.path.glob(f".{pattern}.*")]:
                path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Undo `start` for a run that came to nothing and was new: remove what it wrote, and the folder if empty."""
        if not self._new:
            return
        self._clear()
        for name in (CONFIG, LOCK):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @property
    def audio(self) -> Path:
        return self.path / AUDIO

    @property
    def finished(self) -> bool:
        """results.json is there: written last, by the settings in config.json."""
        return (self.path / RESULTS).is_file()

    @property
    def config(self) -> dict[str, Any]:
        """config.json.

        Raises:
            InputError: `start` has not been called, or the file was removed.
        """
        config = read_config(self.path)
        if config is None:
            raise InputError(f"{self.path} has no {CONFIG}")
        return config

    def write_json(self, name: str, value: Any) -> Path:
        """Write a value atomically; floats keep full precision, and NaN is refused (ValueError), not written."""
        return write_json(self.path / name, value)

    def write_text(self, name: str, text: str) -> Path:
        return write_text(self.path / name, text)

    def read_json(self, name: str) -> Any | None:
        """The value in a file of the run, or None where there is none."""
        return read_json(self.path / name)

    def own(self, name: str) -> str:
        """Name of this process's part of a file that every process writes; the main one's is the file itself."""
        return name if self.is_main else f".{name}.{self.processes.process_index}"

    def parts(self, name: str) -> list[Path]:
        """The parts of such a file that are there, of whatever processes wrote them, the main one's first."""
        others = sorted(path for path in self.path.glob(f".{name}.*") if path.suffix[1:].isdigit())
        return [path for path in (self.path / name, *others) if path.is_file()]

    def append_records(self, records: Iterable[Mapping[str, Any]], name: str = RECORDS) -> None:
        """Append one line per record to this process's part, in one write, and wait until they are on the disk."""
        append_lines(self.path / self.own(name), records)

    def write_records(self, records: Iterable[Mapping[str, Any]], name: str = RECORDS) -> None:
        """Replace the whole file atomically."""
        self.write_text(name, json_lines(records))

    def read_records(self, name: str = RECORDS) -> list[dict[str, Any]]:
        """The records in the file so far. A last line that a crash cut short is left out.

        Raises:
            InputError: a line further up is damaged.
        """
        return read_lines(self.path / name)

    def gather(
        self, select: Callable[[list[tuple[Path, int, dict[str, Any]]]], list[dict[str, Any]]], name: str = RECORDS
    ) -> list[dict[str, Any]]:
        """Make one file of all processes' parts; all of them get its records.

        Args:
            select: given (file, line, record) of every part, says which records stay, in what order.
            name: the file.
        """
        agree(self.processes, lambda: None)  # everyone has written what it had to
        agree(self.processes, lambda: self._merge(select, name))
        # from the file, not by broadcast: there may be millions
        records = self.read_records(name)
        agree(self.processes, lambda: None)  # nobody appends before everyone has read
        return records

    def _merge(
        self, select: Callable[[list[tuple[Path, int, dict[str, Any]]]], list[dict[str, Any]]], name: str
    ) -> None:
        parts = self.parts(name)
        if not parts:
            return
        self.write_records(
            select([(path, line, record) for path in parts for line, record in enumerate(read_lines(path), 1)]), name
        )
        for path in parts:
            if path.name != name:
                path.unlink()
