"""The part of best-of-N that making and ranking share: judging batches, timing, keeping what is to be kept, the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from alignment.candidates import embed_files, judge_files
from alignment.diversity import diversities, embedding_record, log_mel_embedding
from alignment.errors import InputError
from alignment.interfaces import Candidate, Embed, LoadAudio, Reward, UncertainReward
from alignment.processes import agree
from alignment.report import write_report
from alignment.results import best_of, summarize
from alignment.runs import EMBEDDINGS, RECORDS, RESULTS, TIMING, RunDirectory
from alignment.work import Done, Item, Progress, carry_out

logger = logging.getLogger(__name__)

# brings a batch's files into being; an error per item, or None
Make = Callable[[Sequence[Item]], list["str | None"]]


@dataclass(frozen=True)
class Judges:
    """Who hears the clips.

    reward: selects.
    selection: by the "reward", or by its "lower-bound": the reward less the judge's uncertainty of it.
    side: other judges, by name, whose values stand beside and never select.
    embed: embeddings for the diversity of a prompt's clips.
    """

    reward: Reward
    selection: str = "reward"
    side: Mapping[str, Reward] = field(default_factory=dict)
    embed: Embed = log_mel_embedding

    def __post_init__(self) -> None:
        if self.selection not in ("reward", "lower-bound"):
            raise InputError(f"selection is {self.selection!r}; expected 'reward' or 'lower-bound'")
        if self.selection == "lower-bound" and not isinstance(self.reward, UncertainReward):
            raise InputError("selection by lower-bound needs a judge with uncertainty(...), which this one has not")


class Driver:
    """Makes and judges the items of a run's stages, and writes what came of it.

    Args:
        run: a started run.
        judges: who hears the clips.
        load_audio: reads a file as the judges are to hear it.
        batch_size: files made and judged at once.
        keep: "best" removes the clips that are neither the first nor the best of their prompt; "all" none.
        progress: a bar.
    """

    def __init__(
        self,
        run: RunDirectory,
        judges: Judges,
        load_audio: LoadAudio,
        batch_size: int,
        keep: str,
        progress: Progress | None,
    ) -> None:
        self.run, self.judges, self.load_audio, self.keep, self.progress = run, judges, load_audio, keep, progress
        self.batch_size = batch_size
        self.timing = run.read_json(run.own(TIMING)) or {"generate": 0.0, "score": 0.0, "total": 0.0}

    def draft(self, name: str, items: Sequence[Item], make: Make, known: set[tuple[str, int]]) -> Done:
        """Make and judge items whose files are not kept; `name` is the file of records."""

        def do(batch: Sequence[Item]) -> list[Candidate]:
            started = time.perf_counter()
            candidates = self._judged(batch, make, started, draft=True)
            for item in batch:
                item.path.unlink(missing_ok=True)
            return candidates

        return self._carry_out(name, items, do, known, lambda done, new: None)

    def final(self, items: Sequence[Item], make: Make, known: set[tuple[str, int]]) -> Done:
        """Make and judge items whose files are results."""
        pools: dict[str, list[Item]] = {}
        for item in items:
            pools.setdefault(item.prompt.prompt_id, []).append(item)

        def drop_losers(done: Done, new: Sequence[Item]) -> None:
            """Of the prompts that `new` completes. Those that processes share are seen to at the end."""
            for prompt_id in dict.fromkeys(item.prompt.prompt_id for item in new):
                pool = pools[prompt_id]
                if self.keep != "best" or any(item.key not in done for item in pool):
                    continue
                kept = _kept([done[item.key] for item in pool], self.judges.selection)
                for item in pool:
                    if id(done[item.key]) not in kept:
                        item.path.unlink(missing_ok=True)

        def do(batch: Sequence[Item]) -> list[Candidate]:
            return self._judged(batch, make, time.perf_counter(), draft=False)

        done = self._carry_out(RECORDS, items, do, known, drop_losers)
        if self.run.is_main:
            drop_losers(done, items)
        return done

    def _carry_out(
        self,
        name: str,
        items: Sequence[Item],
        do: Callable[[Sequence[Item]], list[Candidate]],
        known: set[tuple[str, int]],
        after: Callable[[Done, Sequence[Item]], None],
    ) -> Done:
        def timed(batch: Sequence[Item]) -> list[Candidate]:
            started = time.perf_counter()
            candidates = do(batch)
            self.timing["total"] += time.perf_counter() - started
            self.run.write_json(self.run.own(TIMING), self.timing)
            return candidates

        size, progress = self.batch_size, self.progress
        return carry_out(self.run, name, items, size, timed, known=known, after=after, progress=progress)

    def _judged(self, batch: Sequence[Item], make: Make, started: float, *, draft: bool) -> list[Candidate]:
        errors = make(batch)
        made = time.perf_counter()
        rewards = self._values(self.judges.reward, batch, errors)
        uncertain: list[float | str] = [0.0] * len(batch)
        if self.judges.selection == "lower-bound":
            judge = cast(UncertainReward, self.judges.reward)
            uncertain = self._values(judge.uncertainty, batch, errors)
        pairs = zip(rewards, uncertain, strict=True)
        values = [doubt if isinstance(doubt, str) and not isinstance(r, str) else r for r, doubt in pairs]
        sound = [item for item, value in zip(batch, values, strict=True) if not isinstance(value, str)]
        side = {} if draft else self._beside(sound)
        if not draft:
            self._embed(sound)
        candidates = []
        for item, value, deviation in zip(batch, values, uncertain, strict=True):
            failed = isinstance(value, str)
            if failed:
                logger.warning("prompt %s, candidate %d: %s", item.prompt.prompt_id, item.candidate, value)
                if item.seed is not None:
                    item.path.unlink(missing_ok=True)
            asked = self.judges.selection == "lower-bound" and not failed
            candidates.append(
                Candidate(
                    prompt_id=item.prompt.prompt_id,
                    prompt=item.prompt.prompt,
                    candidate=item.candidate,
                    seed=item.seed,
                    reward=None if isinstance(value, str) else value,
                    path=None if draft or (failed and item.seed is not None) else item.name,
                    error=value if isinstance(value, str) else None,
                    uncertainty=float(deviation) if asked else None,
                    side=side.get(item.key),
                )
            )
        self.timing["generate"] += made - started
        self.timing["score"] += time.perf_counter() - made
        return candidates

    def _values(self, judge: Reward, batch: Sequence[Item], errors: Sequence[str | None]) -> list[float | str]:
        """A value, or the reason why there is none, for each item of a batch."""
        sound = [item for item, error in zip(batch, errors, strict=True) if error is None]
        values = iter(self._hear(judge, sound))
        return [next(values) if error is None else error for error in errors]

    def _hear(self, judge: Reward, items: Sequence[Item]) -> list[float | str]:
        return judge_files(judge, self.load_audio, [i.path for i in items], [i.prompt.prompt for i in items])

    def _beside(self, items: Sequence[Item]) -> dict[tuple[str, int], dict[str, float | None]]:
        """What the side judges say; a clip that one of them cannot judge keeps its reward."""
        found: dict[tuple[str, int], dict[str, float | None]] = {}
        for name, judge in self.judges.side.items():
            for item, value in zip(items, self._hear(judge, items), strict=True):
                if isinstance(value, str):
                    logger.warning("prompt %s, candidate %d: %s: %s", *item.key, name, value)
                found.setdefault(item.key, {})[name] = None if isinstance(value, str) else value
        return found

    def _embed(self, items: Sequence[Item]) -> None:
        embeddings = embed_files(self.judges.embed, self.load_audio, [item.path for item in items])
        records = []
        for item, embedding in zip(items, embeddings, strict=True):
            if isinstance(embedding, str):
                logger.warning("prompt %s, candidate %d: no embedding: %s", *item.key, embedding)
            else:
                records.append(embedding_record(item.key, embedding))
        self.run.append_records(records, EMBEDDINGS)

    def finish(self, pools: list[list[Candidate]]) -> tuple[list[list[Candidate]], dict[str, Any]]:
        """Write candidates.jsonl as it finally is, the report, and results.json last.

        Args:
            pools: all candidates of each prompt, in every process the same.

        Returns:
            the candidates as written, and the contents of results.json.
        """
        if self.keep == "best":
            kept = {place for pool in pools for place in _kept(pool, self.judges.selection)}
            pools = [[c if id(c) in kept else replace(c, path=None) for c in pool] for pool in pools]
        keys = [(candidate.prompt_id, candidate.candidate) for pool in pools for candidate in pool]

        def in_order(found: list[tuple[Any, int, dict[str, Any]]]) -> list[dict[str, Any]]:
            records = {(record["prompt_id"], record["candidate"]): record for _, _, record in found}
            return [records[key] for key in keys if key in records]

        embeddings = self.run.gather(in_order, EMBEDDINGS)
        agree(self.run.processes, lambda: self._write(pools, diversities(embeddings)))
        return pools, self.run.read_json(RESULTS) or {}

    def _write(self, pools: list[list[Candidate]], diversity: Mapping[str, float]) -> None:
        candidates = [candidate for pool in pools for candidate in pool]
        if all(candidate.reward is None for candidate in candidates):
            reason = next((candidate.error for candidate in candidates if candidate.error), None)
            if candidates[0].seed is None:
                self.run.discard()
            raise InputError(f"none of the {len(candidates)} candidates could be judged; the first: {reason}")
        self.run.write_records([candidate.to_dict() for candidate in candidates])
        parts = self.run.parts(TIMING)
        times = [self.run.read_json(path.name) or {} for path in parts]
        timing = {name: sum(time.get(name, 0.0) for time in times) for name in self.timing}
        self.run.write_json(TIMING, timing)
        for path in parts:
            if path.name != TIMING:
                path.unlink()
        summary = summarize(pools, self.run.config, timing, diversity)
        write_report(self.run, summary)
        self.run.write_json(RESULTS, summary)


def _kept(pool: Sequence[Candidate], selection: str) -> set[int]:
    """Who of a prompt's candidates keeps its clip, by id(): the first, to compare with, and the best."""
    best = best_of(pool, selection)
    return {id(candidate) for candidate in pool if candidate is best or candidate.candidate == 0}
