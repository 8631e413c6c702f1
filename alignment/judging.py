"""The part that making and ranking candidates share: judging batches, timing, keeping what is to be kept, the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.candidates import Heard, Judges, judge_files
from alignment.diversity import diversities, embedding_record
from alignment.errors import InputError
from alignment.interfaces import Candidate, LoadAudio
from alignment.processes import agree
from alignment.report import write_report
from alignment.results import best_of, summarize
from alignment.runs import EMBEDDINGS, RECORDS, RESULTS, TIMING, RunDirectory
from alignment.work import Done, Item, Progress, carry_out

logger = logging.getLogger(__name__)

# brings a batch's files into being; an error per item, or None
Make = Callable[[Sequence[Item]], list["str | None"]]
# (candidates of each prompt, config.json, seconds, diversity by prompt_id) -> the contents of results.json
Conclude = Callable[
    [Sequence[Sequence[Candidate]], Mapping[str, Any], Mapping[str, float], Mapping[str, float]], dict[str, Any]
]
Show = Callable[[RunDirectory, Mapping[str, Any]], object]


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
            candidates = self._judged(batch, make, started, None)
            for item in batch:
                item.path.unlink(missing_ok=True)
            return candidates

        return self._carry_out(name, items, do, known, lambda done, new: None)

    def final(
        self,
        items: Sequence[Item],
        make: Make,
        known: set[tuple[str, int]],
        name: str = RECORDS,
        embeddings: str = EMBEDDINGS,
    ) -> Done:
        """Make and judge items whose files are results; `name` and `embeddings` are files of records."""
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
            return self._judged(batch, make, time.perf_counter(), embeddings)

        done = self._carry_out(name, items, do, known, drop_losers)
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

    def _judged(self, batch: Sequence[Item], make: Make, started: float, embeddings: str | None) -> list[Candidate]:
        """`embeddings` is the file of records for them; None for drafts, which the reward alone hears."""
        draft = embeddings is None
        errors = make(batch)
        made = time.perf_counter()
        sound = [item for item, error in zip(batch, errors, strict=True) if error is None]
        paths, texts = [item.path for item in sound], [item.prompt.prompt for item in sound]
        judged = iter(judge_files(self.judges, self.load_audio, paths, texts, draft=draft))
        heard = [next(judged) if error is None else Heard(error) for error in errors]
        candidates = [self._candidate(item, one, draft) for item, one in zip(batch, heard, strict=True)]
        if embeddings is not None:
            judged_ones = [(c, one) for c, one in zip(candidates, heard, strict=True) if c.reward is not None]
            self._embed(judged_ones, embeddings)
        self.timing["generate"] += made - started
        self.timing["score"] += time.perf_counter() - made
        return candidates

    def _candidate(self, item: Item, heard: Heard, draft: bool) -> Candidate:
        made_elsewhere = item.seed is None
        problem = next((text for text in (heard.reward, heard.uncertainty) if isinstance(text, str)), None)
        if problem is not None:
            logger.warning("prompt %s, candidate %d: %s", *item.key, problem)
            if not made_elsewhere:
                item.path.unlink(missing_ok=True)
        side: dict[str, float | None] = {}
        for name, value in heard.side.items() if problem is None else ():
            # a clip that a side judge cannot hear keeps its reward
            if isinstance(value, str):
                logger.warning("prompt %s, candidate %d: %s: %s", *item.key, name, value)
            side[name] = None if isinstance(value, str) else value
        return Candidate(
            prompt_id=item.prompt.prompt_id,
            prompt=item.prompt.prompt,
            candidate=item.candidate,
            seed=item.seed,
            reward=None if problem is not None or isinstance(heard.reward, str) else heard.reward,
            path=None if draft or (problem is not None and not made_elsewhere) else item.name,
            error=problem,
            uncertainty=None if problem is not None or isinstance(heard.uncertainty, str) else heard.uncertainty,
            side=side or None,
        )

    def _embed(self, judged: Sequence[tuple[Candidate, Heard]], name: str) -> None:
        records = []
        for candidate, heard in judged:
            key = candidate.prompt_id, candidate.candidate
            if isinstance(heard.embedding, str):
                logger.warning("prompt %s, candidate %d: no embedding: %s", *key, heard.embedding)
            elif heard.embedding is not None:
                records.append(embedding_record(key, heard.embedding))
        self.run.append_records(records, name)

    def finish(
        self, pools: list[list[Candidate]], conclude: Conclude = summarize, show: Show = write_report
    ) -> tuple[list[list[Candidate]], dict[str, Any]]:
        """Write candidates.jsonl as it finally is, the report, and results.json last.

        Args:
            pools: all candidates of each prompt, in every process the same.
            conclude: makes the contents of results.json, as `alignment.results.summarize` does.
            show: writes the report of that.

        Returns:
            the candidates as written, and the contents of results.json.
        """
        if self.keep == "best":
            kept = {place for pool in pools for place in _kept(pool, self.judges.selection)}
            pools = [[c if id(c) in kept else replace(c, path=None) for c in pool] for pool in pools]
        embeddings = self.embeddings([candidate for pool in pools for candidate in pool])
        agree(self.run.processes, lambda: self._write(pools, diversities(embeddings), conclude, show))
        return pools, self.run.read_json(RESULTS) or {}

    def embeddings(self, candidates: Sequence[Candidate], name: str = EMBEDDINGS) -> list[dict[str, Any]]:
        """The records of their embeddings, of whatever processes, in order; candidates without one are left out."""
        keys = [(candidate.prompt_id, candidate.candidate) for candidate in candidates]

        def in_order(found: list[tuple[Any, int, dict[str, Any]]]) -> list[dict[str, Any]]:
            records = {(record["prompt_id"], record["candidate"]): record for _, _, record in found}
            return [records[key] for key in keys if key in records]

        return self.run.gather(in_order, name)

    def seconds(self) -> dict[str, float]:
        """What was spent, over all sessions and processes; makes one file of theirs. For the main process."""
        parts = self.run.parts(TIMING)
        times = [self.run.read_json(path.name) or {} for path in parts]
        timing = {name: sum(time.get(name, 0.0) for time in times) for name in self.timing}
        self.run.write_json(TIMING, timing)
        for path in parts:
            if path.name != TIMING:
                path.unlink()
        return timing

    def _write(
        self, pools: list[list[Candidate]], diversity: Mapping[str, float], conclude: Conclude, show: Show
    ) -> None:
        candidates = [candidate for pool in pools for candidate in pool]
        if all(candidate.reward is None for candidate in candidates):
            reason = next((candidate.error for candidate in candidates if candidate.error), None)
            if candidates[0].seed is None:
                self.run.discard()
            raise InputError(f"none of the {len(candidates)} candidates could be judged; the first: {reason}")
        self.run.write_records([candidate.to_dict() for candidate in candidates])
        summary = conclude(pools, self.run.config, self.seconds(), diversity)
        show(self.run, summary)
        self.run.write_json(RESULTS, summary)


def _kept(pool: Sequence[Candidate], selection: str) -> set[int]:
    """Who of a prompt's candidates keeps its clip, by id(): the first, to compare with, and the best."""
    best = best_of(pool, selection)
    return {id(candidate) for candidate in pool if candidate is best or candidate.candidate == 0}
