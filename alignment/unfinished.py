"""What drafts leave behind for the stage that goes on from them: a small file for each candidate.

Kept on the disk, not in memory, so that a stage may be another session's or another process's. A file that is missing
costs time and changes nothing; with the end of the run all are gone.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignment.candidates import generate_further
from alignment.errors import InputError
from alignment.interfaces import Backbone, ContinuingBackbone, GenerationSettings
from alignment.prompts import file_stem
from alignment.runs import UNFINISHED, RunDirectory
from alignment.tensors import read_tensors, write_tensors
from alignment.work import Item

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class Unfinished:
    """Clips of a started run that are written stage by stage."""

    def __init__(self, run: RunDirectory, backbone: Backbone) -> None:
        self.folder, self.backbone = run.path / UNFINISHED, backbone

    @property
    def possible(self) -> bool:
        """Whether the backbone's drafts are beginnings of its clips."""
        return isinstance(self.backbone, ContinuingBackbone)

    def clips(self, batch: Sequence[Item], settings: GenerationSettings, last: bool) -> list[Tensor | str]:
        """The clips [C, T] of a stage, or the reasons why there are none; for the next stage, unless it is the last,
        what is written of them stays.
        """
        assert isinstance(self.backbone, ContinuingBackbone)
        texts, seeds = [item.prompt.prompt for item in batch], [item.seed or 0 for item in batch]
        before = [self._read(item) for item in batch]
        made = generate_further(self.backbone, settings, texts, seeds, before)
        for item, further in zip(batch, made, strict=True):
            if not isinstance(further, str) and not last:
                write_tensors(self._path(item), {"written": further[1]})
        return [further if isinstance(further, str) else further[0] for further in made]

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, item: Item) -> Tensor | None:
        with contextlib.suppress(InputError):
            return read_tensors(self._path(item))[0]["written"]
        return None

    def _path(self, item: Item) -> Path:
        return self.folder / f"{file_stem(item.prompt.prompt_id)}_{item.candidate}.safetensors"
