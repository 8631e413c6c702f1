"""Scoring a large collection with several processes.

accelerate launch --num_processes 4 -m tunejury.score_collection tracks.jsonl --output scores.jsonl

(on CPUs with `--multi_gpu` too, or accelerate starts a single process).

Every process judges its share of the batches and journals them beside the output; the first one writes the table when
all are in. The plan of batches does not depend on the number of processes, so the table does not either, and a run that
was interrupted may be continued by more processes or fewer.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from tunejury.command_line import read_flags
from tunejury.command_options import Precision
from tunejury.errors import InputError

# a process that is done waits for the slowest; torch's own patience ends after minutes
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class ScoreCollection:
    """Write the reward of each clip to a table, with as many processes as accelerate has launched."""

    clips: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILES...", help_behavior_hint="(required)")]
    """Audio files (wav, flac, ogg, mp3), folders of them, or manifests (.jsonl, .csv) with a path and a prompt per
    row.
    """
    output: Path
    """A .jsonl or .csv file; the same command continues an interrupted run."""
    prompt: str = ""
    """For clips that have none of their own."""
    reward: str = "compact"
    """The judge: a known name, a directory made by save_pretrained, a released head (.pt), or a hub id."""
    batch_size: int = 16
    """Most clips judged at once."""
    protocol: str | None = None
    """What the judge hears of a clip; left out, what it was made for."""
    dtype: Precision = "float32"
    """What the judge computes in; bfloat16 is for speed on a GPU, at the cost of small errors."""
    files: tuple[str, ...] = ()
    """Parts of a released head that lie here, as part=path: head, clap, roberta, mert, muq, muq-base, xlm-roberta."""
    overwrite: bool = False
    """Begin the output anew whatever is there."""
    cache: Path | None = None
    """A folder that keeps audio embeddings by content, encoder and protocol; all processes share it."""

    def run(self) -> None:
        """Judge this process's share."""
        import torch
        from accelerate import PartialState

        from tunejury.command_options import load_judge
        from tunejury.command_score import check_spares_inputs, write_scores
        from tunejury.embedding_cache import EmbeddingCache
        from tunejury.scoring import find_items

        # without `cpu`, processes on a machine that has no GPU would each believe to be alone
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
        try:
            items = find_items(self.clips, self.prompt)
            check_spares_inputs(self.output, self.clips, items)
            model = load_judge(self.reward, str(state.device), self.protocol, self.files, self.dtype)
            cache = EmbeddingCache(self.cache, model) if self.cache is not None else None
            write_scores(
                model,
                items,
                self.output,
                self.batch_size,
                self.overwrite,
                cache,
                rank=state.process_index,
                processes=state.num_processes,
                wait=state.wait_for_everyone,
            )
        finally:
            state.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for a user's mistake, after one line on standard error)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    command = read_flags(lambda: tyro.cli(ScoreCollection, args=argv, config=(FlagCreatePairsOff,)))
    try:
        command.run()
    except (InputError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
