"""`tunejury score`: rewards of audio files, folders of them and manifests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from tunejury.command_options import Precision, load_judge, to_json
from tunejury.errors import InputError

if TYPE_CHECKING:
    from tunejury.embedding_cache import EmbeddingCache
    from tunejury.manifest import Item
    from tunejury.model import RewardModel


@dataclass(frozen=True)
class Score:
    """Print the reward of each audio file. Higher is better; a difference of two rewards is a log-odds of
    preference.
    """

    clips: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILES...", help_behavior_hint="(required)")]
    """Audio files (wav, flac, ogg, mp3), folders of them, or manifests (.jsonl, .csv) with a path and a prompt per
    row.
    """
    prompt: str = ""
    """What the music was asked to be; left out, the audio is judged by itself."""
    reward: str = "compact"
    """The judge: a known name, a directory made by save_pretrained, a released head (.pt), or a hub id."""
    device: str = "auto"
    """cpu, cuda, cuda:N; auto takes a GPU if there is one."""
    batch_size: int = 16
    """Most clips judged at once."""
    protocol: str | None = None
    """What the judge hears of a clip; left out, what it was made for."""
    dtype: Precision = "float32"
    """What the judge computes in; bfloat16 is for speed on a GPU, at the cost of small errors."""
    files: tuple[str, ...] = ()
    """Parts of a released head that lie here, as part=path: head, clap, roberta, mert, muq, muq-base, xlm-roberta."""
    calibration: Path | None = None
    """File of a calibration, as `tunejury calibrate` writes it: rewards then differ by log-odds of preference across
    systems.
    """
    system: str | None = None
    """What made the clips; needed with --calibration."""
    output: Path | None = None
    """A .jsonl or .csv file to write instead of printing; the same command continues an interrupted run, and a file
    that cannot be judged has its reason there.
    """
    overwrite: bool = False
    """Begin the output anew whatever is there."""
    cache: Path | None = None
    """A folder that keeps audio embeddings by content, encoder and protocol: a clip heard once is not heard again."""
    json: bool = False
    """Print one JSON list of {path, prompt, reward, protocol}, in full precision."""

    def run(self) -> None:
        """Score the files; standard output stays empty unless every one of them has a reward."""
        from tunejury.embedding_cache import EmbeddingCache
        from tunejury.scoring import find_items

        if self.overwrite and self.output is None:
            raise InputError("--overwrite begins the file of --output anew, expected --output too")
        if self.json and self.output is not None:
            raise InputError("--json prints rewards, expected no --output; with one, name it .jsonl")
        items = find_items(self.clips, self.prompt)
        check_spares_inputs(self.output, self.clips, items)
        model = load_judge(
            self.reward, self.device, self.protocol, self.files, self.dtype, self.calibration, self.system
        )
        cache = EmbeddingCache(self.cache, model) if self.cache is not None else None
        if self.output is not None:
            write_scores(model, items, self.output, self.batch_size, self.overwrite, cache)
        else:
            print_scores(model, items, self.batch_size, cache, as_json=self.json)


def check_spares_inputs(output: Path | None, clips: Sequence[Path], items: Sequence[Item]) -> None:
    """Raise InputError where a table would be written over a clip or over a list of clips."""
    if output is not None and output.exists():
        for path in (*clips, *(item.path for item in items)):
            if path.exists() and path.samefile(output):
                raise InputError(f"--output {output} is one of the files to judge or to read, expected another name")


def print_scores(
    model: RewardModel, items: list[Item], batch_size: int, cache: EmbeddingCache | None, *, as_json: bool
) -> None:
    """Judge items and print them, all or none."""
    from tqdm import tqdm

    from tunejury.scoring import score_files

    paths, prompts = [item.path for item in items], [item.prompt for item in items]
    with tqdm(total=len(items), unit="clip", desc="scoring", file=sys.stderr, disable=None) as bar:
        rewards = score_files(model, paths, prompts, batch_size=batch_size, progress=bar.update, cache=cache)
    if as_json:
        results = [
            {"path": str(path), "prompt": prompt, "reward": reward, "protocol": model.protocol}
            for path, prompt, reward in zip(paths, prompts, rewards, strict=True)
        ]
        sys.stdout.write(to_json(results))
    else:
        sys.stdout.write("".join(f"{reward:+.4f}\t{path}\n" for path, reward in zip(paths, rewards, strict=True)))


def write_scores(
    model: RewardModel,
    items: list[Item],
    output: Path,
    batch_size: int,
    overwrite: bool,
    cache: EmbeddingCache | None,
    rank: int = 0,
    processes: int = 1,
    wait: Callable[[], object] | None = None,
) -> None:
    """Judge items into a table, continuing where an interrupted run stopped.

    Args:
        model, items, output, batch_size, overwrite, cache: as the options of `Score`.
        rank: which of the processes this one is; the first writes the table.
        processes: how many share the work.
        wait: called where all processes must have come before one goes on; None for one process.

    Raises:
        InputError: the output is of another run, or, once the table is written, some items have no reward.
        OSError: the output cannot be written.
    """
    from tqdm import tqdm

    from tunejury.score_table import ScoreTable
    from tunejury.scoring import plan_batches, score_batches

    def everyone() -> None:
        if wait is not None:
            wait()

    paths, prompts = [item.path for item in items], [item.prompt for item in items]
    batches = plan_batches(paths, batch_size)
    if rank > 0:
        everyone()  # the first process clears and mends what an earlier run left
    table = ScoreTable(
        output, items, model.config.name, model.fingerprint(), model.protocol, batches, overwrite and rank == 0
    )
    if rank == 0:
        everyone()
    everyone()  # nobody writes while another one still reads
    if not table.complete:
        mine = [batch for batch in batches[rank::processes] if not table.is_done(batch)]
        with tqdm(
            total=sum(map(len, mine)), unit="clip", desc="scoring", file=sys.stderr, disable=None if rank == 0 else True
        ) as bar:
            for results in score_batches(model, paths, prompts, mine, cache):
                table.add(results, rank)
                bar.update(len(results))
        everyone()
        if rank == 0:
            table.reload()
            table.finish()
    if rank == 0 and table.failed:
        raise InputError(f"{table.failed} of {len(items)} files could not be judged, {output} says why of each")
